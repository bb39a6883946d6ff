"""What the oracle excuses, and what it does not; each case without a server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .disturbances import DISTURBANCES, chosen
from .line import Reply
from .oracle import PREFETCH, Attempt, Kill, Oracle, Session, now

SEED = "0123456789abcdef"
ADDRESS = "192.0.2.1"
OLD, NEW = ("old", 100), ("new", 200)  # processes of this client's slot: boot, pid


class Case:
    """An oracle, and a record to write into."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / "record"
        self.record.touch()
        self.oracle = Oracle(self.record, SEED, 4)
        (self.slot,) = self.oracle.slots(ADDRESS, 0, 1)
        for boot, pid in (OLD, NEW):
            self.write("P", boot, self.slot, pid)
        self.oracle.ready(self.slot, OLD[1])

    def write(self, *words: object) -> None:
        with self.record.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def attempt(self, via: str = "direct", token: str = "t1", **more: Any) -> Attempt:
        digest = hashlib.sha256(b"").hexdigest()
        return Attempt(token, "short", via, ADDRESS, "GET", digest=digest, **more)

    def reply(self, **more: Any) -> Reply:
        said = {"token": "t1", "method": "GET", "size": 0, "boot": OLD[0]}
        said |= {"digest": hashlib.sha256(b"").hexdigest(), **more}
        fields = {"x-slot": str(self.slot), "x-boot": OLD[0]}
        return Reply(200, fields, json.dumps(said).encode())

    def kill(self, process: tuple[str, int] = OLD, slot: int | None = None) -> Kill:
        kill = self.oracle.killing(self.slot if slot is None else slot, process[1], current=True)
        kill.ended = now()
        self.oracle.name(kill)
        return kill

    def session(self, via: str = "direct", transport: str = "websocket") -> Session:
        about = {"slot": self.slot, "pid": OLD[1], "boot": OLD[0]}
        return Session("it", "python", transport, via, "sid", about, now())

    @property
    def found(self) -> set[str]:
        return set(self.oracle.violations)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path)
    yield case
    case.oracle.conclude()


def test_a_right_answer_is_well(case: Case) -> None:
    case.oracle.answered(case.attempt(), case.reply())
    assert case.found == set()


@pytest.mark.parametrize("wrong", [{"token": "t2"}, {"digest": "0"}, {"size": 1}, {"boot": "x"}])
def test_an_answer_to_something_else_is_crossed(case: Case, wrong: dict[str, Any]) -> None:
    case.oracle.answered(case.attempt(), case.reply(**wrong))
    assert case.found == {"crossed answer"}


def test_a_worker_of_another_slot_is_wrong_unless_n_changes(case: Case) -> None:
    reply = case.reply()
    oracle = case.oracle
    num = next(n for n in range(5, 50) if oracle.route(ADDRESS, n) != case.slot)
    reply.fields["x-slot"] = str(oracle.route(ADDRESS, num))
    oracle.scaling(num)
    oracle.answered(case.attempt(), reply)
    assert case.found == set()
    reply.fields["x-slot"] = str(num + 1)
    oracle.answered(case.attempt(), reply)
    assert case.found == {"wrong worker"}


def test_what_a_killed_process_had_begun_is_lost(case: Case) -> None:
    attempt = case.attempt()
    case.write("B", "t1", OLD[0], now())
    case.kill()
    case.oracle.failed(attempt, "reset")
    assert case.oracle.lost == {"killed after it was begun": 1}


@pytest.mark.parametrize("via", ["direct", "shared"])
def test_what_a_living_process_had_begun_is_not(case: Case, via: str) -> None:
    attempt = case.attempt(via)
    case.write("B", "t1", NEW[0], now())
    case.kill(OLD)
    case.oracle.failed(attempt, "reset")
    assert case.found == {"lost by a living process"}


def test_a_kill_excuses_as_many_new_connections_as_are_prefetched(case: Case) -> None:
    attempts = [case.attempt() for _ in range(PREFETCH + 1)]
    case.kill()
    for attempt in attempts[:-1]:
        case.oracle.failed(attempt, "reset")
    assert case.found == set()
    case.oracle.failed(attempts[-1], "reset")
    assert case.found == {"more lost than prefetched"}


def test_a_kill_of_another_slot_excuses_only_connections_that_many_share(case: Case) -> None:
    shared, direct = case.attempt("shared", kept=True), case.attempt(kept=True)
    case.kill(NEW, slot=case.slot + 1)
    case.oracle.failed(shared, "reset")
    assert case.found == set()
    case.oracle.failed(direct, "reset")
    assert case.found == {"lost request"}


def test_a_kill_before_a_request_was_sent_excuses_nothing(case: Case) -> None:
    case.kill().ended = now() - 5
    case.oracle.failed(case.attempt(), "reset")
    assert case.found == {"lost request"}


def test_503_is_for_slots_whose_process_was_killed(case: Case) -> None:
    case.oracle.answered(case.attempt(), Reply(503, {}))
    assert case.found == {"503 without cause"}
    case.oracle.violations.clear()
    case.kill()
    case.oracle.answered(case.attempt(), Reply(503, {}))
    assert case.found == set()
    case.oracle.answered(case.attempt(sent=now() - 15, turn=now() - 15), Reply(503, {}))
    assert case.found == {"503 too late"}


@pytest.mark.parametrize("status", [500, 400, 408, 502])
def test_other_answers_are_never_well(case: Case, status: int) -> None:
    case.oracle.answered(case.attempt(), Reply(status, {}))
    assert case.found == {"status"}


def test_a_request_that_waited_longer_than_the_queue_lets_it_is_late(case: Case) -> None:
    attempt = case.attempt(sent=now() - 15, turn=now() - 15)
    case.write("B", "t1", OLD[0], now())
    case.oracle.answered(attempt, case.reply())
    assert case.found == {"served later than queue_timeout"}


def test_who_waits_for_an_answer_before_its_own_is_not_late(case: Case) -> None:
    attempt = case.attempt(sent=now() - 15)
    case.write("B", "t1", OLD[0], now())
    case.oracle.answered(attempt, case.reply())
    assert case.found == set()


def test_a_connection_at_rest_is_closed_by_a_kill_alone(case: Case) -> None:
    case.oracle.closed_at_rest("direct", ADDRESS, now(), "somebody")
    assert case.found == {"closed at rest"}
    case.oracle.violations.clear()
    case.kill()
    case.oracle.closed_at_rest("direct", ADDRESS, now(), "somebody")
    assert case.found == set()


def test_a_session_ends_when_its_process_was_killed_or_replaced(case: Case) -> None:
    session = case.session()
    case.oracle.ended(session, "transport close")
    assert case.found == {"session ended without cause"}
    case.oracle.violations.clear()
    case.oracle.ready(case.slot, NEW[1])
    case.oracle.ended(session, "transport close")
    assert case.found == set()
    case.oracle.ended(session, "server disconnect", final=True)
    assert case.found == {"client does not come back by itself"}
    case.oracle.violations.clear()
    case.oracle.ended(session, "ping timeout")
    assert case.found == {"nobody told the client"}


def test_an_event_is_acknowledged_once_by_its_own_process(case: Case) -> None:
    session = case.session()
    session.pending["e1"] = now()
    case.oracle.acknowledged(session, "e1", {"event": "e1", "boot": OLD[0]})
    assert case.found == set()
    case.oracle.acknowledged(session, "e1", {"event": "e1", "boot": OLD[0]})
    assert case.found == {"acknowledged twice or never sent"}
    session.pending["e2"] = now()
    case.oracle.acknowledged(session, "e2", {"event": "e2", "boot": NEW[0]})
    assert "wrong worker" in case.found


def test_an_event_that_nobody_answers_is_found(case: Case) -> None:
    session = case.session()
    session.pending["e1"] = now() - 31
    case.oracle.overdue(session, 30)
    assert case.found == {"event neither acknowledged nor client told"}


def test_what_is_handled_or_begun_twice_is_found_at_the_end(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.oracle.answered(case.attempt(), case.reply())
    for _ in range(2):
        case.write("V", "e1", OLD[0])
        case.write("B", "t1", OLD[0], now())
    case.oracle.conclude()
    assert case.found == {"begun twice", "handled twice"}


def test_nginx_may_send_a_get_again_when_a_process_was_killed(tmp_path: Path) -> None:
    case = Case(tmp_path)
    attempt = case.attempt("nginx")
    case.write("B", "t1", OLD[0], now())
    case.kill()
    case.write("B", "t1", NEW[0], now())
    reply = case.reply(boot=NEW[0])
    reply.fields["x-boot"] = NEW[0]
    case.oracle.answered(attempt, reply)
    case.oracle.conclude()
    assert case.found == set()


def test_what_the_server_cannot_do_yet_is_left_out_unless_it_is_asked_for() -> None:
    assert set(chosen("")) == DISTURBANCES.keys()
    assert chosen("term,scale") == ["term", "scale"]
    with pytest.raises(ValueError, match="no disturbance 'trem'"):
        chosen("trem")
