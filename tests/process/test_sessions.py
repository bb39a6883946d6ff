"""Sessions that follow their id: on connections that many share, from any address, over the death
and the reload of their worker."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import sticky
from tests.harness import ROOT, Kind, Running, wait_until

from .clients import SEED, XFF, Client
from .session_kit import POLLING, Shared, connect, of, open_session

NUM = 4


@pytest.fixture(scope="module", params=["direct", "proxy"])
def running(kind: Kind, request: pytest.FixtureRequest) -> Iterator[Running]:
    options = ["--session", "sid", "--seed", SEED]
    proxy = request.param == "proxy"
    with kind.serve("socketio_app", num=NUM, proxy=proxy, options=options) as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture
def shared(running: Running) -> Iterator[Shared]:
    shared = Shared(running.port)
    yield shared
    shared.close()


def stats(running: Running) -> dict[str, Any]:
    mark = len(running.log())
    running.send_signal(signal.SIGUSR1)
    said: dict[str, Any] = json.loads(running.wait_for(r"Stats: (\{.*\})", after=mark)[1])
    return said


def test_two_hundred_sessions_share_connections_and_change_their_addresses(
    running: Running, shared: Shared
) -> None:
    sids = [open_session(shared) for _ in range(200)]
    workers = {sid: connect(shared, sid) for sid in sids}
    for turn in range(2):
        for sid in sids:
            text = f'42{turn}["echo",{turn}]'
            answer = shared.ask(of(sid), "POST", text)
            assert (answer.status, answer.body) == (200, b"OK")
            answer = shared.ask(of(sid))
            assert answer.status == 200
            assert b'"worker":%d,' % workers[sid] in answer.body
    if running.command.count("--proxy"):  # their first requests came from many addresses
        assert set(workers.values()) == set(range(NUM))


def test_each_id_leads_to_the_worker_that_minted_it(running: Running, shared: Shared) -> None:
    for _ in range(20):
        sid = open_session(shared)
        head = f"GET {of(sid)} HTTP/1.1\r\n\r\n".encode()
        found = sticky.explain(head, "192.0.2.1", num=NUM, seed=SEED, session="sid")
        assert found.slot == connect(shared, sid)
        assert (found.key, found.why) == (sid.encode(), "session id in the query parameter 'sid'")
        assert len(sid) == 20


@pytest.fixture(scope="module")
def single(kind: Kind) -> Iterator[Running]:
    """One worker, which does as it would alone."""
    with kind.serve("socketio_app", num=1) as running:
        yield running


def test_an_id_that_nobody_holds_gets_the_answer_of_a_single_server(
    single: Running, running: Running, shared: Shared
) -> None:
    sid = open_session(shared)
    alone = Shared(single.port)
    for other in ("x", "abcdefghijklmnopqrst", sid[:-1], sid + "A", sid.lower(), "a" * 3000, "%00"):
        for method, body in (("GET", None), ("POST", "40")):
            expected = alone.ask(of(other), method, body)
            answer = shared.ask(of(other), method, body)
            assert (answer.status, answer.body) == (expected.status, expected.body)
            assert answer.status == 400
    alone.close()
    assert connect(shared, sid) >= 0  # it is none of theirs


def test_a_client_that_sends_little_by_little_is_waited_for(running: Running) -> None:
    shared = Shared(running.port)
    sid = open_session(shared)
    head = f"POST {of(sid)} HTTP/1.1\r\nHost: x\r\n{XFF}: 10.9.8.7\r\nContent-Length: 2\r\n\r\n"
    with Client(running.port) as client:
        for byte in head:
            client.send(byte.encode())
        client.send(b"40")
        assert client.answer().body == b"OK"
    shared.close()


def test_ids_of_a_killed_worker_get_400_and_others_are_not_touched(kind: Kind) -> None:
    options = ["--session", "sid", "--balance", "round-robin"]
    with kind.serve("socketio_app", num=2, options=options) as running:
        shared = Shared(running.port)
        workers = {sid: connect(shared, sid) for sid in (open_session(shared) for _ in range(8))}
        assert set(workers.values()) == {0, 1}
        shared.close()  # a connection in the hand of the killed worker would be reset
        running.wait_for_successor(0, running.kill_worker(0))
        shared = Shared(running.port)
        for sid, worker in workers.items():
            answer = shared.ask(of(sid), "POST", '42["echo",1]')
            assert answer.status == (400 if worker == 0 else 200), answer
        assert connect(shared, open_session(shared)) >= 0
        shared.close()


# -- balance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["least", "round-robin"])
@pytest.mark.parametrize("how", ["a connection each", "shared connections"])
def test_a_thousand_clients_behind_one_address_are_spread_evenly(
    kind: Kind, balance: str, how: str
) -> None:
    options = ["--session", "sid", "--balance", balance]
    with kind.serve("socketio_app", num=NUM, proxy=True, options=options) as running:
        shared = Shared(running.port)
        for _ in range(1000):
            if how == "shared connections":
                open_session(shared)
            else:
                assert running.get(POLLING, {XFF: "192.0.2.1"}).status == 200
        sessions = [worker["sessions"] for worker in stats(running)["workers"].values()]
        assert sum(sessions) == 1000
        assert all(225 <= count <= 275 for count in sessions), sessions
        shared.close()


def test_by_default_clients_without_an_id_go_by_their_address(
    running: Running, shared: Shared
) -> None:
    if "--proxy" in running.command:
        slots = {running.get("/", {XFF: f"192.0.2.{n}"}).json()["worker"]: n for n in range(1, 100)}
        assert set(slots) == set(range(NUM))
        for slot, number in slots.items():
            answer = running.get(POLLING, {XFF: f"192.0.2.{number}"})
            sid = json.loads(answer.body[1:])["sid"]
            assert connect(shared, sid) == slot
        assert running.get("/").status == 400
    else:
        assert len({running.get("/").json()["worker"] for _ in range(20)}) == 1


def test_new_sessions_go_to_the_worker_with_the_fewest(kind: Kind) -> None:
    options = ["--session", "query:id", "--balance", "least"]
    with kind.serve("keeper", num=2, options=options) as running:
        made = [running.get("/new").json() for _ in range(8)]
        assert Counter(one["worker"] for one in made) == {0: 4, 1: 4}
        for one in made:
            if one["worker"] == 1:
                assert running.get(f"/end?id={one['id']}").status == 200
        # Which are left is found out when the master asks how its workers are.
        wait_until(lambda: stats(running)["workers"]["1"]["sessions"] == 0)
        assert [running.get("/new").json()["worker"] for _ in range(3)] == [1, 1, 1]


# -- other protocols -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["", "?make=uuid"])
@pytest.mark.parametrize(
    ("place", "line"),
    [("query:id", ""), ("header:X-Id", "X_Id"), ("cookie:id", "Cookie")],
)
def test_ids_in_any_place_lead_to_the_worker_that_minted_them(
    kind: Kind, place: str, line: str, make: str
) -> None:
    options = ["--session", place, "--balance", "round-robin"]
    with kind.serve("keeper", num=3, options=options) as running:
        shared = Shared(running.port)
        made = [shared.ask("/new" + make).json() for _ in range(30)]
        assert Counter(one["worker"] for one in made) == {0: 10, 1: 10, 2: 10}
        for count in (2, 3):
            for one in made:
                said = {"Cookie": f"a=b; id={one['id']}", "X_Id": one["id"]}.get(line)
                answer = (
                    shared.ask("/count", **{line: said})
                    if said
                    else shared.ask(f"/count?id={one['id']}")
                )
                assert answer.status == 200, answer
                assert answer.json() == {**one, "count": count}
        assert all(len(one["id"]) == (32 if make else 20) for one in made)
        shared.close()


def test_on_a_reload_sessions_stay_with_the_process_that_holds_them(kind: Kind) -> None:
    with kind.serve("keeper", num=2, options=["--session", "query:id", "--seed", SEED]) as running:
        shared = Shared(running.port)
        made = [shared.ask("/new").json() for _ in range(3)]
        slot = made[0]["worker"]
        assert {one["worker"] for one in made} == {slot}
        old = running.worker_pids()[slot]
        running.send_signal(signal.SIGHUP)
        for other, pid in list(running.worker_pids().items()):
            running.wait_for_successor(other, pid)
        new = running.worker_pids()[slot]
        for count in (2, 3, 4):
            for one in made:
                assert shared.ask(f"/count?id={one['id']}").json() == {**one, "count": count}
        later = shared.ask("/new").json()
        assert later["pid"] == new
        assert shared.ask(f"/count?id={later['id']}").json()["pid"] == new
        with_slot = next(
            text
            for text in map(str, range(1000))
            if sticky.explain(
                f"GET /?id={text} HTTP/1.1\r\n\r\n".encode(),
                "127.0.0.1",
                num=2,
                seed=SEED,
                session="query:id",
            ).slot
            == slot
        )
        answer = shared.ask(f"/count?id={with_slot}")
        assert (answer.status, answer.json()["pid"]) == (404, new)  # nobody's: the current one says
        for one in made:
            assert shared.ask(f"/end?id={one['id']}").json()["pid"] == old
        running.wait_for(rf"worker {slot} \(pid {old}\) ended")
        answer = shared.ask(f"/count?id={made[0]['id']}")
        assert (answer.status, answer.json()["pid"]) == (404, new)
        shared.close()


def test_on_a_reload_sessions_of_socketio_end_one_after_another(kind: Kind) -> None:
    options = ["--session", "sid", "--drain-spread", "600", "--graceful-timeout", "600"]
    with kind.serve("socketio_app", num=2, options=options) as running:
        shared = Shared(running.port)
        sids = [open_session(shared) for _ in range(10)]
        (slot,) = {connect(shared, sid) for sid in sids}
        old = running.worker_pids()[slot]
        running.send_signal(signal.SIGHUP)
        for other, pid in list(running.worker_pids().items()):
            running.wait_for_successor(other, pid)
        new = running.worker_pids()[slot]
        statuses = Counter[int]()
        for sid in sids:
            answer = shared.ask(of(sid), "POST", '42["echo",1]')
            statuses[answer.status] += 1
            if answer.status == 200:
                assert b'"pid":%d,' % old in shared.ask(of(sid)).body
        assert statuses == {200: 10}  # one a minute is ended
        later = open_session(shared)
        connect(shared, later)
        assert shared.ask(of(later), "POST", '42["echo",1]').status == 200
        assert b'"pid":%d,' % new in shared.ask(of(later)).body
        shared.close()
        running.stop()  # which does not wait for the rest of the ten minutes
        assert f"worker {slot} (pid {old}) ended" in running.log()


def replace(running: Running) -> dict[int, int]:
    """Reload; the pids of those that were replaced."""
    old = dict(running.worker_pids())
    running.send_signal(signal.SIGHUP)
    for slot, pid in old.items():
        running.wait_for_successor(slot, pid)
    return old


@pytest.mark.parametrize("balance", ["address", "least", "round-robin"])
def test_a_new_session_begins_in_the_new_process(kind: Kind, balance: str) -> None:
    options = ["--session", "query:id", "--balance", balance]
    with kind.serve("keeper", num=1, options=options) as running:
        kept_alive = Shared(running.port, 1)
        made = kept_alive.ask("/new").json()
        old = replace(running)
        assert made["pid"] == old[0]
        for shared in (kept_alive, Shared(running.port, 1)):
            assert shared.ask("/new").json()["pid"] == running.worker_pids()[0]
            shared.close()
        assert running.get(f"/count?id={made['id']}").json() == {**made, "count": 2}
        assert stats(running)["moved"] <= 3


def test_sessions_of_a_replaced_process_outlive_its_successor(kind: Kind) -> None:
    with kind.serve("keeper", num=1, options=["--session", "query:id"]) as running:
        made = running.get("/new").json()
        old = replace(running)
        running.wait_for_successor(0, running.kill_worker(0))
        again = running.get(f"/count?id={made['id']}").json()
        assert again == {**made, "pid": old[0], "count": 2}


def test_many_reloads_in_a_row_leave_the_last_process_its_sessions(kind: Kind) -> None:
    with kind.serve("keeper", num=1, options=["--session", "query:id"]) as running:
        for _ in range(6):
            made = running.get("/new").json()
            replace(running)
        assert running.get(f"/count?id={made['id']}").json() == {**made, "count": 2}
        assert stats(running)["workers"]["0"]["pid"] == running.worker_pids()[0]
        # Those before it are asked for nothing any more, and end without waiting for sessions.
        wait_until(lambda: len(running.processes()) <= 3)


def test_a_worker_that_is_told_to_end_does_not_wait_for_its_sessions(kind: Kind) -> None:
    with kind.serve("keeper", num=1, options=["--session", "query:id"]) as running:
        running.get("/new")
        old = running.worker_pids()[0]
        os.kill(old, signal.SIGTERM)
        running.wait_for_successor(0, old)
        assert running.get("/new").status == 200


def test_a_stop_does_not_wait_for_the_sessions_of_a_replaced_process(kind: Kind) -> None:
    options = ["--session", "query:id", "--graceful-timeout", "3600"]
    with kind.serve("keeper", num=1, options=options) as running:
        running.get("/new")
        replace(running)
        assert running.stop() == 0  # or it would wait for an hour


def test_without_the_option_there_is_nothing_to_mint_for(kind: Kind) -> None:
    with kind.serve("keeper", num=1, ready=False) as running:
        running.wait_for("sticky.holds\\(\\) needs the option 'session'")
        assert running.wait() == 3


def test_outside_of_a_worker_ids_are_minted_for_nobody() -> None:
    assert sticky.mint() != sticky.mint()
    assert sticky.mint(lambda: "mine") == "mine"
    assert sticky.holds(bool) is bool
    options = {"port": 0, "num": 1, "app_dir": ROOT, "session": "query:id"}
    with sticky.Server("tests.apps:keeper", options) as server:
        assert server.stats()["workers"][0]["sessions"] == 0
