"""Life and death, where the worker class makes no difference: workers that cannot start, masters
that are killed or stand still, a log that nobody reads. The rest is in tests/contract."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MARK, ROOT, Kind, Running, marked, request, serve, wait_until

from .clients import SEED, XFF, Client, addresses_of, head
from .life_kit import (
    NUM,
    ROUTED,
    ask,
    served_by,
    stopped,
    wait_for_none,
    wait_until_it_computes,
)
from .test_listen import Script
from .test_options import assert_one_line

# -- one worker hangs --------------------------------------------------------------------------


def test_a_master_that_stood_still_does_not_blame_its_workers(kind: Kind) -> None:
    options = (*ROUTED, "--timeout", "2", "--queue-timeout", "60")
    with kind.serve("lab", num=NUM, proxy=True, options=options) as running:
        stand_still(running)


def stand_still(impatient: Running) -> None:
    before = impatient.worker_pids()
    mark = len(impatient.log())
    with stopped(impatient.master_pid):
        time.sleep(3)  # longer than the heartbeat may be late: the time itself is the condition
    os.kill(before[0], signal.SIGSTOP)  # who is really late is noticed later than who is not
    impatient.wait_for(r"worker 0 .* is killed", 60, after=mark)
    impatient.wait_for_successor(0, before[0])
    assert {slot: served_by(impatient, slot) for slot in (1, 2)} == {1: before[1], 2: before[2]}
    assert impatient.log()[mark:].count("is killed") == 1


def test_a_worker_that_hands_back_one_request_after_the_other_is_not_killed(kind: Kind) -> None:
    options = (*ROUTED, "--timeout", "3")
    with kind.serve("lab", num=2, proxy=True, options=options) as running:
        before = running.worker_pids()
        mark, until = len(running.log()), time.monotonic() + 8
        with contextlib.ExitStack() as opened:
            clients = [opened.enter_context(Client(running.port)) for _ in range(40)]
            while time.monotonic() < until:
                for slot in (0, 1):  # in turn, so each time it is another's
                    line = f"{XFF}: {addresses_of(slot, 2, 1)[0]}"
                    for client in clients:
                        client.send(head(line, f"X-Filler: {'x' * 4000}"))
                    assert {client.answer().status for client in clients} == {200}
        assert "is killed" not in running.log()[mark:]
        assert running.worker_pids() == before


# -- everything dies ---------------------------------------------------------------------------


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
        wait_for_none(running, 20)
        assert running.wait() == 128 + signal.SIGKILL


# -- stopping ----------------------------------------------------------------------------------


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
        assert b"Listening at: " in os.read(reader, 65536)  # it was kept
    finally:
        os.close(reader)
        for left in marked(mark):
            left.kill()
        process.wait(10)
