"""The number of workers changes while the server serves: more, and fewer again."""

from __future__ import annotations

import http.client
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.harness import Kind, Running, wait_until
from tests.process.clients import SEED, XFF, slot_of
from tests.process.session_kit import Shared, connect, of, open_session

FEW, MANY = 2, 5
ADDRESSES = [f"192.0.2.{number}" for number in range(1, 41)]


def scale(running: Running, num: int) -> None:
    """Have so many workers, one signal for each more or less."""
    mark = len(running.log())
    step = num - running.num
    for number in range(abs(step)):
        running.send_signal(signal.SIGTTIN if step > 0 else signal.SIGTTOU)
        running.wait_for("Scaling from", after=mark)
        there = running.num + (number + 1) * (1 if step > 0 else -1)
        running.wait_for(f"There are {there} workers now", after=mark)
    running.num = num


class Load:
    """Clients who ask without a pause: on connections that they share, and on new ones.

    Attributes:
        failures: what went wrong.
        right: for each of ADDRESSES the workers that may answer it just now.
    """

    def __init__(self, port: int, right: dict[str, set[int]]) -> None:
        self.failures: list[str] = []
        self.right = right
        self.answers = 0
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(keeps,)) for keeps in (1, 1, 0)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, keeps: int) -> None:
        shared = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._over.is_set():
            for address in ADDRESSES:
                before = self.right[address]
                try:
                    status, worker = whoami(shared, address)
                    # What may answer can have changed meanwhile.
                    if status != 200 or worker not in before | self.right[address]:
                        self.failures.append(f"{address}: {status} of {worker}")
                except Exception as error:
                    self.failures.append(f"{address}: {error!r}")
                self.answers += 1
                if not keeps:
                    shared.close()
        shared.close()


def whoami(connection: http.client.HTTPConnection, address: str) -> tuple[int, int]:
    """The status, and the worker that has answered."""
    connection.request("GET", "/", headers={XFF: address})
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, int(body.split(b'"worker": ')[1].split(b",")[0])


def test_more_workers_and_fewer_again_cost_no_request_and_move_only_whom_they_must(
    kind: Kind,
) -> None:
    options = ["--seed", SEED]
    with kind.serve("lab", num=FEW, proxy=True, options=options) as running:
        kept = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
        placed = {address: slot_of(address, FEW) for address in ADDRESSES}
        with Load(running.port, {a: {slot} for a, slot in placed.items()}) as load:
            for num in (MANY, FEW):
                passed = range(min(num, running.num), max(num, running.num) + 1)
                load.right = {a: {slot_of(a, n) for n in passed} for a in ADDRESSES}
                scale(running, num)
                moved, answers = 0, load.answers
                for address in ADDRESSES:
                    new = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
                    expected = 200, slot_of(address, num)
                    assert whoami(kept, address) == whoami(new, address) == expected
                    new.close()
                    moved += slot_of(address, num) != placed[address]
                    # Nobody moves between two workers that are there before and after.
                    stays = min(FEW, MANY)
                    assert slot_of(address, MANY) in {placed[address], *range(stays, MANY)}
                assert (moved == 0) is (num == FEW)
                wait_until(lambda before=answers: load.answers > before + 200, what="load")
        kept.close()
        assert not load.failures, load.failures[:5]
        for slot in range(FEW, MANY):
            running.wait_for(rf"worker {slot} \(pid \d+\) ended")


@pytest.fixture
def sessions(kind: Kind) -> Iterator[Running]:
    options = ["--session", "sid", "--seed", SEED, "--drain-spread", "0.2"]
    with kind.serve("socketio_app", num=FEW, proxy=True, options=options) as running:
        yield running
        assert "Traceback" not in running.log()


def test_sessions_stay_where_they_are_until_they_end(sessions: Running) -> None:
    shared = Shared(sessions.port)
    old = {sid: connect(shared, sid) for sid in (open_session(shared) for _ in range(30))}
    scale(sessions, MANY)
    new = {sid: connect(shared, sid) for sid in (open_session(shared) for _ in range(60))}
    assert set(new.values()) == set(range(MANY))
    for sid, worker in [*old.items(), *new.items()] * 2:
        assert said_by(shared, sid) == worker
    assert sessions.stats()["moved"] > 0
    scale(sessions, FEW)
    for sid, worker in [*old.items(), *new.items()]:
        if worker < FEW:
            assert said_by(shared, sid) == worker
    for slot in range(FEW, MANY):
        sessions.wait_for(rf"worker {slot} \(pid \d+\) ended")
    for sid, worker in new.items():  # and the others are over
        if worker >= FEW:
            assert shared.ask(of(sid)).status == 400
    shared.close()


def said_by(shared: Shared, sid: str) -> int:
    """The worker that holds a session, as it says itself."""
    assert shared.ask(of(sid), "POST", '42["echo",1]').status == 200
    answer = shared.ask(of(sid))
    assert answer.status == 200, answer
    return int(answer.body.split(b'"worker":')[1].split(b",")[0])


def test_what_is_no_number_of_workers_is_said_and_changes_nothing(kind: Kind) -> None:
    with kind.serve("lab", num=1) as running:
        running.send_signal(signal.SIGTTOU)
        running.wait_for("0 workers are not possible: from 1 to 250 are")
        assert running.get().status == 200
