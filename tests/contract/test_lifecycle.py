"""Workers that die, hang or are told to end, and stopping: nobody is lost but who has to be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import websocket

from tests.harness import Kind, Running, stop_process, wait_until
from tests.process.clients import XFF, Client, addresses_of, head
from tests.process.life_kit import (
    NUM,
    ROUTED,
    ask,
    served_by,
    stopped,
    wait_for_none,
    wait_until_it_computes,
)

PREFETCH = 4


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Running]:
    """For what a server has to survive."""
    options = (*ROUTED, "--queue-timeout", "60")
    with kind.serve("lab", num=NUM, proxy=True, options=options) as running:
        yield running


# -- one worker dies ---------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_replaced_in_its_own_slot(shared: Running, sig: int) -> None:
    before = shared.worker_pids()
    addresses = [f"10.7.{number}.1" for number in range(30)]
    owners = {a: shared.get("/", {XFF: a}).json() for a in addresses}
    killed = shared.kill_worker(1, sig)
    for address, owner in owners.items():  # the others are served as if nothing had been
        if owner["worker"] != 1:
            assert shared.get("/", {XFF: address}).json() == owner
    successor = shared.wait_for_successor(1, killed)
    for address, owner in owners.items():
        now = shared.get("/", {XFF: address}).json()
        expected = successor if owner["worker"] == 1 else owner["pid"]
        assert (now["worker"], now["pid"]) == (owner["worker"], expected)
    assert shared.worker_pids() == {**before, 1: successor}


def test_what_is_asked_while_a_worker_is_dead_is_served_by_its_successor(shared: Running) -> None:
    killed = shared.kill_worker(2)
    clients = [ask(shared, 2) for _ in range(40)]
    pids = set()
    for client in clients:
        with client:
            answer = client.answer()
            assert answer.status == 200
            pids.add(answer.json()["pid"])
    assert pids == {shared.wait_for_successor(2, killed)}


def test_what_waits_in_a_killed_workers_inbox_is_served_by_its_successor(shared: Running) -> None:
    pid = shared.worker_pids()[0]
    with stopped(pid):
        clients = [ask(shared, 0) for _ in range(15)]
        served_by(shared, 1)  # the master has handed them over
        os.kill(pid, signal.SIGKILL)
    lost = 0
    for client in clients:
        with client:
            try:
                assert client.answer().json()["pid"] != pid
            except ConnectionError:
                lost += 1
    assert lost <= PREFETCH


def test_a_worker_killed_under_load_loses_no_more_than_it_had_begun(shared: Running) -> None:
    pid = shared.worker_pids()[1]
    mark = len(shared.log())
    stuck = ask(shared, 1, "/stuck?seconds=60")
    shared.wait_for("standing still", after=mark)
    clients = [ask(shared, 1) for _ in range(15)]
    served_by(shared, 0)
    os.kill(pid, signal.SIGKILL)
    with stuck, pytest.raises(ConnectionError):
        stuck.answer()
    lost = 0
    for client in clients:
        with client:
            try:
                answer = client.answer()
                assert (answer.status, answer.json()["worker"]) == (200, 1)
            except ConnectionError:
                lost += 1
    assert lost <= PREFETCH
    shared.wait_for_successor(1, pid)  # which may serve before the master says that it is ready


def test_a_worker_that_is_told_to_end_finishes_its_request_and_is_replaced(
    shared: Running,
) -> None:
    pid = served_by(shared, 2)
    before = shared.worker_pids()
    with ask(shared, 2, "/slow?seconds=2") as client:
        assert served_by(shared, 2) == pid  # it has begun with the first
        os.kill(pid, signal.SIGTERM)
        answer = client.answer()
        assert (answer.status, answer.json()["pid"]) == (200, pid)
    successor = shared.wait_for_successor(2, pid)
    assert served_by(shared, 2) == successor
    assert shared.worker_pids() == {**before, 2: successor}


def test_a_worker_told_to_end_goes_on_serving_until_its_successor_is_ready(
    kind: Kind, tmp_path: Path
) -> None:
    """No client waits for a boot: this one's takes until the gate is opened."""
    app = {"wsgi": "app", "asgi": "asgi"}[kind.interface]
    gate = tmp_path / "gate"
    env = {"RECORD": str(tmp_path / "record"), "GATE": str(gate)}
    with (
        kind.serve(f"tests.ending_apps:{app}", num=1, env=env) as running,
        Client(running.port, head()) as kept,
    ):
        pid = running.worker_pids()[0]
        assert kept.answer().json() == pid
        gate.touch()
        for _ in range(3):  # once is as good as often
            os.kill(pid, signal.SIGTERM)
            for _ in range(5):
                assert running.get("/").json() == pid
                kept.send(head())
                answer = kept.answer()
                assert (answer.json(), answer.headers["Connection"]) == (pid, None)
        gate.unlink()
        successor = running.wait_for_successor(0, pid)
        wait_until(lambda: running.get("/").json() == successor, what="the successor serves")
        kept.send(head())  # at rest, it has passed to the successor, or will
        assert kept.answer().json() in (pid, successor)
        wait_until(lambda: not psutil.pid_exists(pid), what="the old process has ended")
        assert "Traceback" not in running.log()


def test_killed_workers_leave_no_zombie(shared: Running) -> None:
    for slot in range(NUM):
        pid = shared.kill_worker(slot)
        shared.wait_for_successor(slot, pid)
    children = psutil.Process(shared.master_pid).children(recursive=True)
    assert sorted(child.pid for child in children) == sorted(shared.worker_pids().values())
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_worker_that_stands_still_holds_up_nobody_else(kind: Kind) -> None:
    """Its clients are told to come again, with a 503: those that wait in the master and those that
    lie in its inbox already."""
    options = (*ROUTED, "--queue-timeout", "1")
    with (
        kind.serve("lab", num=NUM, proxy=True, options=options) as shared,
        contextlib.ExitStack() as opened,
    ):
        pid = served_by(shared, 0)
        with stopped(pid):
            clients = [opened.enter_context(ask(shared, 0)) for _ in range(40)]
            for _ in range(10):
                served_by(shared, 1)
                served_by(shared, 2)
            for client in clients:  # an inbox takes about 20
                answer = client.answer()
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "1"
                assert answer.headers["Connection"] == "close"
        assert served_by(shared, 0) == pid


def test_the_queue_of_a_worker_that_goes_on_is_served_in_full(shared: Running) -> None:
    with stopped(served_by(shared, 1)):
        clients = [ask(shared, 1) for _ in range(40)]
        served_by(shared, 0)
    for client in clients:
        with client:
            assert client.answer().status == 200


# -- one worker hangs --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(kind: Kind) -> Iterator[Running]:
    """A server with a short heartbeat."""
    options = (*ROUTED, "--timeout", "3", "--queue-timeout", "60")
    with kind.serve("lab", num=NUM, proxy=True, options=options) as running:
        yield running


@pytest.mark.parametrize("how", ["it is stopped", "it waits in C", "it computes"])
def test_a_worker_that_does_not_answer_is_killed_and_replaced(
    impatient: Running, kind: Kind, how: str
) -> None:
    pid = served_by(impatient, 0)
    others = {slot: served_by(impatient, slot) for slot in (1, 2)}
    mark = len(impatient.log())
    path = {"it is stopped": "/", "it waits in C": "/stuck?seconds="}.get(how, "/spin?seconds=")
    if how == "it is stopped":
        stop_process(pid)
    elif kind.name == "threads":  # one request holds up no other
        with ask(impatient, 0, path + "1") as busy:
            assert served_by(impatient, 0) == pid
            assert busy.answer().status == 200
        return
    with ask(impatient, 0, path if path == "/" else path + "90"):
        impatient.wait_for(rf"worker 0 \(pid {pid}\) is killed: .*3 s", 60, after=mark)
    assert impatient.wait_for_successor(0, pid) == served_by(impatient, 0)
    if how != "it is stopped":  # and so cannot even say where it is
        hangs = {"it waits in C": "_stuck", "it computes": "_spin"}[how]
        impatient.wait_for(f'File ".*apps.py", line \\d+ in {hangs}', after=mark)
    assert {slot: served_by(impatient, slot) for slot in (1, 2)} == others


# -- everything dies ---------------------------------------------------------------------------


@pytest.mark.parametrize("busy", ["idle", "computing", "stopped"])
def test_a_killed_master_leaves_no_process(kind: Kind, busy: str) -> None:
    with kind.serve("lab", num=NUM, proxy=True, options=ROUTED) as running:
        pid = running.worker_pids()[0]
        with ask(running, 0, "/spin?seconds=60" if busy == "computing" else "/") as client:
            if busy == "computing":
                wait_until_it_computes(pid)
            else:
                client.answer()
            if busy == "stopped":
                os.kill(pid, signal.SIGSTOP)
            os.kill(running.master_pid, signal.SIGKILL)
            wait_for_none(running, 10)  # at once, and not when a heartbeat is missed


# -- stopping ----------------------------------------------------------------------------------


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionError:
        return False
    return False


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_are_told_to_stop_end_by_themselves(kind: Kind, sig: int) -> None:
    with kind.serve("whoami", num=2) as running:
        pids = running.worker_pids()
        assert running.stop(sig) == 0
        for slot, pid in pids.items():  # and not with a status, or by a signal
            running.wait_for(rf"worker {slot} \(pid {pid}\) ended")


def test_a_graceful_stop_finishes_what_is_in_hand_and_takes_nothing_new(kind: Kind) -> None:
    with kind.serve("lab", num=2, proxy=True, options=ROUTED) as running:
        pids = running.worker_pids()
        clients = [ask(running, slot, "/slow?seconds=4") for slot in (0, 1, 0, 1)]
        for slot in (0, 1):
            served_by(running, slot)
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(running.port), what="new connections are refused")
        for number, client in enumerate(clients):
            with client:
                answer = client.answer()
                assert (answer.status, answer.json()["pid"]) == (200, pids[number % 2])
                assert answer.headers["Connection"] == "close"
        assert running.wait() == 0


def test_a_graceful_stop_serves_what_waits_in_the_backlog_the_inbox_and_the_queue(
    kind: Kind,
) -> None:
    with kind.serve("lab", num=2, proxy=True, options=ROUTED) as running:
        worker, master = running.worker_pids()[0], running.master_pid
        with stopped(worker):
            clients = [ask(running, 0) for _ in range(40)]  # some in the inbox, some queued
            served_by(running, 1)
            with stopped(master):
                clients += [ask(running, number % 2) for number in range(20)]  # in the backlog
                clients.append(ask(running, 1, "/slow?seconds=1"))
                running.send_signal(signal.SIGTERM)
            wait_until(lambda: refused(running.port), what="new connections are refused")
        for client in clients:
            with client:
                assert client.answer().status == 200
        assert running.wait() == 0


def test_a_graceful_stop_serves_the_inbox_of_a_worker_that_dies_meanwhile(kind: Kind) -> None:
    with kind.serve("lab", num=2, proxy=True, options=ROUTED) as running:
        worker = running.worker_pids()[0]
        with stopped(worker):
            clients = [ask(running, 0) for _ in range(10)]
            served_by(running, 1)
            running.send_signal(signal.SIGTERM)
            wait_until(lambda: refused(running.port), what="new connections are refused")
            os.kill(worker, signal.SIGKILL)
        for client in clients:
            with client:
                answer = client.answer()
                assert answer.status == 200
                assert answer.json()["pid"] != worker
        assert running.wait() == 0


def test_clients_who_only_wait_do_not_hold_up_a_graceful_stop(kind: Kind) -> None:
    """A long poll, a websocket, an idle keep-alive connection, one that has said nothing, and one
    in the middle of its head."""
    options = ("--no-defer-accept", "--graceful-timeout", "600")  # nobody waits for so long
    with kind.serve("socketio_server", num=1, options=options) as running:
        query = "/socket.io/?EIO=4&transport="
        sid = json.loads(running.get(query + "polling").body[1:])["sid"]
        polling = f"{query}polling&sid={sid}"
        assert running.get(polling, method="POST", body=b"40").status == 200
        said = b""
        while not (b"40{" in said and b"welcome" in said):
            said += running.get(polling).body
        # It is connected, and now there is nothing more to be told.
        poll = Client(running.port, head(target=polling))
        ws = websocket.create_connection(f"ws://127.0.0.1:{running.port}{query}websocket")
        assert ws.recv().startswith("0{")
        ws.send("40")
        wait_until(lambda: str(ws.recv()).startswith("40{"))
        idle = Client(running.port, head(target="/none"))
        idle.answer()
        silent = Client(running.port)
        partial = Client(running.port, head()[:20])
        assert running.get("/none").status == 404  # all of them have arrived
        assert running.stop() == 0
        for client in (poll, idle, silent, partial):
            with contextlib.suppress(ConnectionError):
                client.rest()
            client.close()
        ws.close()


def test_a_request_that_never_ends_is_cut_at_the_graceful_timeout(kind: Kind) -> None:
    options = (*ROUTED, "--graceful-timeout", "2")
    with kind.serve("lab", num=2, proxy=True, options=options) as running:
        with ask(running, 0, "/forever") as endless, ask(running, 1, "/slow?seconds=1") as slow:
            endless.read(10_000)
            served_by(running, 1)
            started = time.monotonic()
            running.send_signal(signal.SIGTERM)
            assert slow.answer().status == 200
            with contextlib.suppress(ConnectionError):
                endless.rest()
            assert time.monotonic() - started > 1.5
        assert running.wait(20) == 0


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT])
def test_an_interrupt_is_quick_whatever_goes_on(kind: Kind, sig: int) -> None:
    options = (*ROUTED, "--graceful-timeout", "600")
    with kind.serve("websocket_echo", num=2, proxy=True, options=options) as running:
        url, header = f"ws://127.0.0.1:{running.port}/ws", {XFF: addresses_of(0, 2, 1)[0]}
        ws = websocket.create_connection(url, timeout=20, header=header)
        with ask(running, 0, "/slow?seconds=60"), ask(running, 1, "/spin?seconds=60"):
            wait_until_it_computes(running.worker_pids()[1])
            assert running.stop(sig) == 0
        ws.shutdown()
        assert "Traceback" not in running.log()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("path", ["/", "/stream"])
def test_the_apps_code_for_its_end_runs_whatever_is_open(
    kind: Kind, tmp_path: Path, sig: int, path: str
) -> None:
    app = {"wsgi": "app", "asgi": "asgi"}[kind.interface]
    record = tmp_path / "record"
    options = ("--graceful-timeout", "1")
    env = {"RECORD": str(record)}
    with (
        kind.serve(f"tests.ending_apps:{app}", num=1, env=env, options=options) as running,
        Client(running.port, head(target=path)) as client,
    ):
        client.read(20)
        pid = running.worker_pids()[0]
        running.send_signal(sig)
        wait_until(lambda: not psutil.pid_exists(pid), what="the process has ended")
        lines = record.read_text().split()
        expected = "finally /stream " * (path == "/stream")
        expected += "lifespan " * (kind.name == "asgi") + "atexit"
        assert lines == expected.split()
        if path == "/stream":
            running.wait_for("1 request was cancelled: GET /stream")
        log = running.log()
        assert "Traceback" not in log
        assert "killed" not in log
        assert ("cancelled" in log) == (path == "/stream")


def test_an_interrupt_overtakes_a_graceful_stop(kind: Kind) -> None:
    patient = ("--graceful-timeout", "600")
    with (
        kind.serve("lab", num=2, proxy=True, options=(*ROUTED, *patient)) as running,
        ask(running, 0, "/slow?seconds=600"),
    ):
        served_by(running, 0)
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(running.port), what="new connections are refused")
        assert running.stop(signal.SIGINT) == 0


# -- a log that nobody reads -------------------------------------------------------------------
