"""Life and death: workers that die, hang or cannot start, masters that are killed, and stopping."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import websocket

from tests.harness import MARK, ROOT, Kind, Running, marked, request, serve, wait_until

from .clients import SEED, XFF, Client, addresses_of, head
from .test_listen import Script
from .test_options import assert_one_line

NUM = 3
PREFETCH = 4
ROUTED = ("--seed", SEED)


def ask(running: Running, slot: int, path: str = "/", *lines: str) -> Client:
    """A client of a slot who has asked, and has yet to read."""
    address = addresses_of(slot, running.num, 1)[0]
    return Client(running.port, head(f"{XFF}: {address}", *lines, target=path))


def served_by(running: Running, slot: int) -> int:
    """The process that serves a new client of this slot."""
    with ask(running, slot) as client:
        answer = client.answer()
    assert answer.status == 200, answer
    found = answer.json()
    assert found["worker"] == slot
    pid = found["pid"]
    assert isinstance(pid, int)
    return pid


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still meanwhile (if it lives)."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def wait_until_it_computes(pid: int) -> None:
    process = psutil.Process(pid)
    used = process.cpu_times().user
    wait_until(lambda: process.cpu_times().user > used + 0.3, what="it computes")


def wait_for_none(running: Running, timeout: float) -> None:
    wait_until(lambda: not running.processes(), timeout, "no process is left")


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Running]:
    """For what a server has to survive."""
    options = (*ROUTED, "--queue-timeout", "5")
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
    stuck = ask(shared, 1, "/stuck?seconds=60")
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
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


def test_killed_workers_leave_no_zombie(shared: Running) -> None:
    for slot in range(NUM):
        pid = shared.kill_worker(slot)
        shared.wait_for_successor(slot, pid)
    children = psutil.Process(shared.master_pid).children(recursive=True)
    assert sorted(child.pid for child in children) == sorted(shared.worker_pids().values())
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_worker_that_stands_still_holds_up_nobody_else(shared: Running) -> None:
    """Those of its clients for whom there is no room are told to come again, with a 503."""
    with stopped(served_by(shared, 0)):
        clients = [ask(shared, 0) for _ in range(40)]
        for _ in range(10):
            served_by(shared, 1)
            served_by(shared, 2)
        refused = [client.answer() for client in clients[30:]]  # an inbox takes about 20
        for answer in refused:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert answer.headers["Connection"] == "close"
    answers = [client.answer() for client in clients[:10]]
    assert [answer.status for answer in answers] == [200] * 10
    for client in clients:
        client.close()


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
def test_a_worker_that_does_not_answer_is_killed_and_replaced(impatient: Running, how: str) -> None:
    pid = served_by(impatient, 0)
    others = {slot: served_by(impatient, slot) for slot in (1, 2)}
    mark = len(impatient.log())
    paths = {"it is stopped": "/", "it waits in C": "/stuck?seconds=90"}
    if how == "it is stopped":
        os.kill(pid, signal.SIGSTOP)
    with ask(impatient, 0, paths.get(how, "/spin?seconds=90")):
        impatient.wait_for(rf"worker 0 \(pid {pid}\) is killed: .*3 s", 60, after=mark)
    assert impatient.wait_for_successor(0, pid) == served_by(impatient, 0)
    assert {slot: served_by(impatient, slot) for slot in (1, 2)} == others


def test_a_master_that_stood_still_does_not_blame_its_workers(impatient: Running) -> None:
    before = impatient.worker_pids()
    mark = len(impatient.log())
    with stopped(impatient.master_pid):
        time.sleep(5)  # longer than the heartbeat may be late: the time itself is the condition
    os.kill(before[0], signal.SIGSTOP)  # who is really late is noticed later than who is not
    impatient.wait_for(r"worker 0 .* is killed", 60, after=mark)
    impatient.wait_for_successor(0, before[0])
    assert {slot: served_by(impatient, slot) for slot in (1, 2)} == {1: before[1], 2: before[2]}
    assert impatient.log()[mark:].count("is killed") == 1


# -- everything dies ---------------------------------------------------------------------------


@pytest.mark.parametrize("busy", ["idle", "computing", "stopped"])
def test_a_killed_master_leaves_no_process_for_a_second(kind: Kind, busy: str) -> None:
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
            wait_for_none(running, 1.0)


def test_a_killed_launcher_leaves_no_process(kind: Kind, tmp_path: Path) -> None:
    script = Script(tmp_path, kind)
    call = f'sticky.listen(factory, 0, {NUM}, proxy=True, seed="{SEED}")'
    with script.serve(call, NUM) as running, ask(running, 0, "/spin?seconds=60"):
        wait_until_it_computes(running.worker_pids()[0])
        os.kill(running.pid, signal.SIGKILL)
        wait_for_none(running, 10)


def test_a_killed_master_is_told_to_the_launcher_and_leaves_no_process(
    kind: Kind, tmp_path: Path
) -> None:
    script = Script(tmp_path, kind)
    with script.serve("sticky.listen(factory, 0, 2)", 2) as running:
        os.kill(running.master_pid, signal.SIGKILL)
        wait_for_none(running, 5)
        assert running.wait() == 128 + signal.SIGKILL


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
    with kind.serve("socketio_server", num=1, options=("--no-defer-accept",)) as running:
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
        started = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - started < 15, "it waited for the graceful timeout of 30 s"
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
    with kind.serve("websocket_echo", num=2, proxy=True, options=ROUTED) as running:
        url, header = f"ws://127.0.0.1:{running.port}/ws", {XFF: addresses_of(0, 2, 1)[0]}
        ws = websocket.create_connection(url, timeout=20, header=header)
        with ask(running, 0, "/slow?seconds=60"), ask(running, 1, "/spin?seconds=60"):
            wait_until_it_computes(running.worker_pids()[1])
            started = time.monotonic()
            assert running.stop(sig) == 0
            assert time.monotonic() - started < 10
        ws.shutdown()
        assert "Traceback" not in running.log()


def test_an_interrupt_overtakes_a_graceful_stop(kind: Kind) -> None:
    with (
        kind.serve("lab", num=2, proxy=True, options=ROUTED) as running,
        ask(running, 0, "/slow?seconds=60"),
    ):
        served_by(running, 0)
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(running.port), what="new connections are refused")
        started = time.monotonic()
        assert running.stop(signal.SIGINT) == 0
        assert time.monotonic() - started < 10


# -- starting ----------------------------------------------------------------------------------


def failing(server: Running) -> tuple[int, str]:
    """Start what cannot start: its exit status and log."""
    with server as running:
        status = running.wait(60)
        wait_for_none(running, 5)
        running._reader.join(10)
        return status, running.log()


def test_workers_that_cannot_start_end_everything_with_their_own_traceback_once(
    kind: Kind,
) -> None:
    status, log = failing(kind.serve("broken", num=4, ready=False))
    assert status == 3
    assert log.count("Traceback") == log.count("RuntimeError: the database is not there") == 1
    assert "in broken" in log
    assert str(ROOT / "sticky") not in log  # their traceback, not ours


def test_a_script_whose_workers_cannot_start_exits_3(kind: Kind, tmp_path: Path) -> None:
    script = Script(tmp_path, kind)
    call = """
        def bad():
            return 1 / 0
        sticky.listen(bad, 0, 4)
        record("after")
        """
    with script.serve(call, 4, ready=False) as running:
        assert running.wait(60) == 3
        running._reader.join(10)
        log = running.log()
    assert log.count("Traceback") == log.count("ZeroDivisionError") == 1
    assert "after" not in script.recorded()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tests.nothing:app", "there is no module 'tests.nothing'"),
        ("nothing_at_all:app", "there is no module 'nothing_at_all'"),
        ("tests.apps:nothing", "'tests.apps' has no attribute 'nothing'"),
        ("tests.apps:no_app", "the factory returned 42"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_one_line_and_exit_4(target: str, said: str) -> None:
    status, log = failing(serve(target, ready=False))
    assert status == 4
    assert_one_line(log, re.escape(said))


def test_a_module_with_an_error_in_it_is_told_by_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("import nothing_at_all\n")
    status, log = failing(serve("wrong:app", ready=False, options=["--app-dir", str(tmp_path)]))
    assert status == 3
    assert log.count("Traceback") == 1
    assert "ModuleNotFoundError: No module named 'nothing_at_all'" in log
    assert str(tmp_path / "wrong.py") in log


def test_a_worker_that_dies_before_it_is_ready_is_one_line_and_exit_3(kind: Kind) -> None:
    status, log = failing(kind.serve("dies", ready=False))
    assert status == 3
    assert_one_line(log, r"worker \d \(pid \d+\) could not start: it exited with status 7 before")


def test_a_worker_that_is_not_ready_in_time_ends_everything_with_3(kind: Kind) -> None:
    options = ["--boot-timeout", "2"]
    status, log = failing(kind.serve("never_ready", ready=False, options=options))
    assert status == 3
    assert "not ready within 2 s" in log
    assert "Traceback" not in log


def test_a_crash_loop_is_slowed_down_and_touches_nobody_else(kind: Kind, tmp_path: Path) -> None:
    flag = tmp_path / "crash"
    env = {"CRASH_LOOP": str(flag)}
    with kind.serve("crashes_later", num=2, proxy=True, options=ROUTED, env=env) as running:
        other = served_by(running, 1)
        flag.touch()
        killed = running.kill_worker(0)
        said = re.compile(r"worker 0 .*starting it again in ([\d.]+) s")

        def delays() -> list[float]:
            return [float(found) for found in said.findall(running.log())]

        def grown() -> bool:
            assert served_by(running, 1) == other
            return len(delays()) >= 4

        wait_until(grown, 60, "four starts that failed", 0.1)
        assert delays()[:4] == [0.1, 0.2, 0.4, 0.8]
        flag.unlink()
        waiting = ask(running, 0)
        successor = running.wait_for_successor(0, killed)
        with waiting:
            assert waiting.answer().json()["pid"] == successor


# -- a log that nobody reads -------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def when_served(act: Callable[[], int]) -> int:
    """The first answer without an error."""

    def attempt() -> int:
        try:
            return act()
        except OSError:
            return 0

    return wait_until(attempt, 60, "it is served")


def test_a_log_that_nobody_reads_stops_nobody(kind: Kind) -> None:
    """Its pipe is full from the start."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    port, mark = free_port(), os.urandom(16).hex()
    command = [sys.executable, "-m", "sticky", kind.app("lab"), "-b", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*command, "-w", "2", "--proxy", "--log-level", "info"],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        cwd=ROOT,
        env={**os.environ, **kind.env, MARK: mark},
        start_new_session=True,
    )
    try:
        os.close(writer)
        pid = when_served(lambda: request(port, "/", {XFF: "10.0.0.1"}).json()["pid"])
        for data in (head(), b"\0\r\n\r\n", b"\x16\x03\x01\x00", b"PRI * HTTP/2.0\r\n\r\n") * 50:
            with Client(port, data) as client:
                assert client.rest().startswith(b"HTTP/1.1 400")
        os.kill(pid, signal.SIGKILL)
        assert when_served(lambda: request(port, "/", {XFF: "10.0.0.1"}).json()["pid"]) != pid
        assert os.read(reader, 4096).strip(b"x") == b""  # now somebody does
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        os.set_blocking(reader, False)
        assert re.search(rb"\d+ (log )?lines were (dropped|lost)", os.read(reader, 65536))
    finally:
        os.close(reader)
        for left in marked(mark):
            left.kill()
        process.wait(10)
