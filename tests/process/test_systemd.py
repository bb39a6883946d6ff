"""As a service of systemd (Type=notify): what it is told, and what it keeps for us."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.harness import Kind, Running, wait_until

from .clients import XFF
from .supervisor_kit import Supervisor
from .test_bind import ask

SERVE = ("-m", "sticky", "tests.apps:lab", "-w", "1", "-k", "threads", "--no-ctl")


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    with Supervisor(tmp_path) as it:
        yield it


def kill(running: Running) -> None:
    """The master by SIGKILL; its workers end with it."""
    running.send_signal(signal.SIGKILL)
    running.wait()
    wait_until(lambda: not running.processes(), what="its workers have ended")


def test_it_is_told_when_the_server_is_ready_reloads_and_stops(supervisor: Supervisor) -> None:
    with supervisor.start(*SERVE, "-b", "127.0.0.1:0", num=1) as running:
        ready = supervisor.wait_for("READY")
        assert ready["MAINPID"] == str(running.pid)
        assert ready["STATUS"] == f"1 worker at {running.url}"
        running.send_signal(signal.SIGHUP)
        assert supervisor.wait_for("RELOADING")["MONOTONIC_USEC"].isdecimal()
        assert supervisor.wait_for("READY")["STATUS"] == ready["STATUS"]
        assert running.stop() == 0
        assert supervisor.wait_for("STOPPING")
    supervisor.catch_up()
    assert len([message for message in supervisor.messages if "READY" in message]) == 2
    assert len([message for message in supervisor.messages if "STOPPING" in message]) == 1


def test_it_is_told_how_many_workers_there_are(supervisor: Supervisor) -> None:
    with supervisor.start(*SERVE, "-b", "127.0.0.1:0", num=1) as running:
        supervisor.wait_for("READY")
        running.send_signal(signal.SIGTTIN)
        running.wait_for("There are 2 workers now")
        assert supervisor.wait_for("STATUS")["STATUS"] == f"2 workers at {running.url}"


def test_it_is_not_told_that_a_server_is_ready_that_cannot_start(supervisor: Supervisor) -> None:
    words = ("-m", "sticky", "tests.apps:no_such_app", "-w", "1", "-b", "127.0.0.1:0")
    with supervisor.start(*words, ready=False) as running:
        assert running.wait() == 4
    supervisor.catch_up()
    told = {name for message in supervisor.messages for name in message}
    assert "READY" not in told
    assert "STOPPING" in told


def test_its_watchdog_gets_signs_of_life(supervisor: Supervisor) -> None:
    env = {"WATCHDOG_USEC": "3000000"}
    with supervisor.start(*SERVE, "-b", "127.0.0.1:0", num=1, env=env):
        for _ in range(3):
            assert supervisor.wait_for("WATCHDOG")["WATCHDOG"] == "1"


def test_what_is_for_the_server_is_not_passed_on_to_the_app(supervisor: Supervisor) -> None:
    env = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    with supervisor.start(*SERVE, "-b", "127.0.0.1:0", num=1, env=env) as running:
        environ = running.get("/process").json()["environ"]
        found = [n for n in environ if n.startswith(("NOTIFY_", "WATCHDOG_", "LISTEN_", "FDSTORE"))]
        assert not found


def test_of_a_script_the_main_process_is_the_script(supervisor: Supervisor, tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text("import sticky, tests.apps\nsticky.listen(tests.apps.lab, 0, 1, ctl=False)\n")
    with supervisor.start(str(script), num=1) as running:
        assert supervisor.wait_for("READY")["MAINPID"] == str(running.pid)
        assert running.pid != running.master_pid


# -- what it keeps --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["command", "script"])
def test_a_master_that_is_killed_and_started_anew_refuses_nobody(
    supervisor: Supervisor, tmp_path: Path, how: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = (*SERVE, "-b", f"127.0.0.1:{port}")
    if how == "script":
        script = tmp_path / "serve.py"
        listen = f"sticky.listen(tests.apps.lab, {port}, 1, ctl=False)\n"
        script.write_text("import sticky, tests.apps\n" + listen)
        words = (str(script),)
    with supervisor.start(*words, num=1) as running:
        supervisor.wait_for("FDSTORE")
        kill(running)
    (name, kept), *others = supervisor.store
    assert (name, others) == (f"sticky-127.0.0.1-{port}", [])
    # Nothing runs, and a client is not refused.
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with supervisor.start(*words, num=1) as running:
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
            assert running.port == port
            inode = os.fstat(kept).st_ino
            held = Path(f"/proc/{running.master_pid}/fd").iterdir()
            assert f"socket:[{inode}]" in {os.readlink(fd) for fd in held}
            supervisor.catch_up()
            assert len(supervisor.store) == 1  # it is the one that it has already
            assert running.stop() == 0


def test_without_a_store_the_same_client_is_refused(tmp_path: Path) -> None:
    with Supervisor(tmp_path, stores=False) as supervisor:
        with supervisor.start(*SERVE, "-b", "127.0.0.1:0", num=1) as running:
            port = running.port
            kill(running)
        supervisor.catch_up()  # what it does not keep it closes
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=30)


def test_a_unix_socket_is_kept_with_its_file(supervisor: Supervisor, tmp_path: Path) -> None:
    path = str(tmp_path / "http")
    words = (*SERVE, "-b", f"unix:{path}", "--proxy")
    with supervisor.start(*words, num=1) as running:
        supervisor.wait_for("FDSTORE")
        assert running.stop() == 0  # as systemctl restart does
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(path)
        client.sendall(f"GET / HTTP/1.1\r\nHost: x\r\n{XFF}: 10.0.0.1\r\n\r\n".encode())
        with supervisor.start(*words, num=1):
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_what_is_not_listened_on_any_more_is_given_back(supervisor: Supervisor) -> None:
    with supervisor.start(*SERVE, "-b", "127.0.0.1:0", num=1) as running:
        supervisor.wait_for("FDSTORE")
        before = running.port
        assert running.stop() == 0
    with supervisor.start(*SERVE, "-b", "127.0.0.2:0", num=1):
        supervisor.wait_for("FDSTORE")
        assert [name.rpartition("-")[0] for name, _ in supervisor.store] == ["sticky-127.0.0.2"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", before), timeout=30)


def test_sockets_that_are_passed_can_be_named(supervisor: Supervisor, kind: Kind) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as web,
        socket.create_server(("127.0.0.1", 0)) as admin,
    ):
        supervisor.store = [("web", os.dup(web.fileno())), ("admin", os.dup(admin.fileno()))]
        with supervisor.start(*SERVE, "-b", "fd://admin", num=1) as running:
            port = admin.getsockname()[1]
            assert f"Listening at: http://127.0.0.1:{port} (admin)" in running.log()
            assert ask(("127.0.0.1", port))["worker"] == 0
            supervisor.catch_up()
            assert len(supervisor.store) == 2  # and not kept a second time


def test_a_name_that_was_not_passed_is_said_with_those_that_were(supervisor: Supervisor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        supervisor.store = [("web", os.dup(web.fileno()))]
        with supervisor.start(*SERVE, "-b", "fd://wev", ready=False) as running:
            assert running.wait() == 1
            text = r"cannot listen on fd://wev: .*\(FileDescriptorName=\); there are web"
            assert running.wait_for(text)
