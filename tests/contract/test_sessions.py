"""Sessions follow their id: on connections that many share, from any address, over the death
and the reload of their worker."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

import sticky
from tests.harness import Kind, Running, wait_until
from tests.process.clients import SEED, XFF, Client
from tests.process.session_kit import POLLING, Shared, connect, of, open_session, replace

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


# -- other protocols -------------------------------------------------------------------------------


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


def test_many_reloads_in_a_row_leave_the_last_process_its_sessions(kind: Kind) -> None:
    with kind.serve("keeper", num=1, options=["--session", "query:id"]) as running:
        for _ in range(6):
            made = running.get("/new").json()
            replace(running)
        assert running.get(f"/count?id={made['id']}").json() == {**made, "count": 2}
        assert running.stats()["workers"]["0"]["pid"] == running.worker_pids()[0]
        # Those before it are asked for nothing any more, and end without waiting for sessions.
        wait_until(lambda: len(running.processes()) <= 3)
