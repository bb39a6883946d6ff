"""``sticky ctl`` and a real server: what people type, and what they read."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness import ROOT, Running, serve, wait_until

from .clients import SEED, slot_of

APP = "tests.apps:lab"
OPTIONS = ("-k", "threads", "--seed", SEED)


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of our own to meet: other tests run servers at the same time."""
    folder = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def ctl(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sticky", "ctl", *words],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def answer(*words: str) -> dict:
    ended = ctl(*words, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


def refused(*words: str, status: int = 1) -> str:
    ended = ctl(*words)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.fixture
def running(runtime: Path) -> Iterator[Running]:
    with serve(APP, num=2, options=OPTIONS) as server:
        yield server


def test_status_says_what_there_is(running: Running) -> None:
    for _ in range(5):
        running.get()
    found = answer("status")
    assert (found["pid"], found["n"], found["stage"]) == (running.master_pid, 2, "serving")
    assert found["listening"] == [running.url]
    assert found["accepted"] == 5
    assert [slot["slot"] for slot in found["slots"]] == [0, 1]
    processes = [process for slot in found["slots"] for process in slot["processes"]]
    assert [process["pid"] for process in processes] == list(running.worker_pids().values())
    assert {process["state"] for process in processes} == {"ready"}
    assert sum(process["requests"] for process in processes) == 5
    for process in processes:
        assert process["rss"] > 1 << 20
        assert process["age"] >= 0
        assert process["worker_class"] == "threads"
    busiest = max(processes, key=lambda process: process["requests"])
    assert busiest["requests_per_second"] > 0
    shown = ctl("status").stdout
    assert f"pid {running.master_pid}: serving, 2 slots" in shown
    assert running.url in shown
    for process in processes:
        row = next(line.split() for line in shown.splitlines() if f" {process['pid']} " in line)
        assert row[2:4] == ["ready", "threads"]


def test_stats_are_the_counters(running: Running) -> None:
    running.get()
    found = answer("stats")
    assert found["accepted"] == 1
    assert sum(worker["requests"] for worker in found["workers"].values()) == 1
    assert re.search(r"^accepted +1$", ctl("stats").stdout, re.MULTILINE)


def test_why_says_where_a_client_goes_and_why(running: Running) -> None:
    for address in ("10.0.0.1", "203.0.113.9", "2001:db8::1"):
        slot = slot_of(address, 2)
        found = answer("why", address)
        assert (found["slot"], found["n"]) == (slot, 2)
        assert found["pid"] == running.worker_pids()[slot]
        shown = ctl("why", address).stdout
        assert f"slot  {slot} of 2 (pid {found['pid']})\n" in shown
    assert "no address" in refused("why", "abc")
    assert SEED not in json.dumps(found) + shown + ctl("status", "--json").stdout


def test_reload_replaces_every_process(running: Running) -> None:
    before = running.worker_pids()
    assert ctl("reload").stdout == "begun\n"
    for slot, pid in before.items():
        running.wait_for_successor(slot, pid)
    assert "sticky ctl: reload" in running.log()


def test_kill_kills_the_process_of_a_slot_and_another_one_comes(running: Running) -> None:
    before = running.worker_pids()
    assert ctl("kill", "1").stdout == "done\n"
    running.wait_for(rf"worker 1 \(pid {before[1]}\) was killed by SIGKILL")
    running.wait_for_successor(1, before[1])
    assert running.worker_pids()[0] == before[0]
    assert "there is no slot 9: they are 0 to 1" in refused("kill", "9")
    assert "slot is -1" in refused("kill", "--", "-1")


def test_scale_has_more_and_fewer_slots(running: Running) -> None:
    assert ctl("scale", "4").stdout == "begun\n"
    running.wait_for("There are 4 workers now")
    found = answer("status")
    assert found["n"] == 4
    assert [slot["slot"] for slot in found["slots"]] == [0, 1, 2, 3]
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        assert answer("why", address)["slot"] == slot_of(address, 4)
    assert ctl("scale", "1").stdout == "begun\n"
    running.wait_for("There are 1 worker now")
    assert answer("status")["n"] == 1
    assert running.get().status == 200
    assert "n is 251: it must be a number from 1 to 250" in refused("scale", "251")


def test_drain_replaces_the_process_of_one_slot(running: Running) -> None:
    before = running.worker_pids()
    assert ctl("drain", "1").stdout == "begun\n"
    running.wait_for_successor(1, before[1])
    running.wait_for(rf"worker 1 \(pid {before[1]}\) ended")
    assert running.worker_pids()[0] == before[0]
    assert answer("status")["restarts"] == 0
    assert "there is no slot 2: they are 0 to 1" in refused("drain", "2")


def test_why_knows_no_slot_where_any_may_have_it(runtime: Path) -> None:
    options = (*OPTIONS, "--session", "sid", "--balance", "least")
    with serve(APP, num=2, options=options):
        found = answer("why", "10.0.0.1")
        assert (found["slot"], found["pid"]) == (None, None)
        assert "balance is 'least'" in found["why"]
        assert answer("why", "abc")["slot"] in (0, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [(["stop"], "quick=False"), (["stop", "--quick"], "quick=True")],
)
def test_stop_ends_the_server(running: Running, words: list[str], says: str) -> None:
    assert ctl(*words).stdout == "begun\n"
    assert running.wait() == 0
    assert says in running.log()
    assert "no server has a socket in" in refused("status")


def test_the_socket_is_the_users_alone_and_goes_with_the_server(
    running: Running, runtime: Path
) -> None:
    folder = runtime / "sticky"
    path = folder / f"{running.master_pid}.sock"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert running.stop() == 0
    assert not path.exists()


def test_with_several_servers_it_says_which_there_are(running: Running) -> None:
    with serve(APP, num=1, options=OPTIONS) as other:
        said = refused("status")
        assert "2 servers run here; say which:" in said
        for server in (running, other):
            assert f"--pid {server.master_pid}  {server.url}" in said
            assert answer("--pid", str(server.master_pid), "status")["listening"] == [server.url]
        assert answer("status", "--pid", str(other.master_pid))["n"] == 1
    assert answer("status")["pid"] == running.master_pid
    assert "no server with process id 1 " in refused("status", "--pid", "1")


def test_a_server_that_was_killed_is_not_found_and_its_socket_removed(
    running: Running, runtime: Path
) -> None:
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert "no server has a socket in" in refused("status")
    assert not list((runtime / "sticky").iterdir())


def test_the_place_can_be_named_or_there_can_be_none(tmp_path: Path, runtime: Path) -> None:
    path = tmp_path / "private" / "ctl"
    with serve(APP, num=1, options=(*OPTIONS, "--ctl", str(path))) as server:
        assert answer("--ctl", str(path), "status")["pid"] == server.master_pid
        assert "no server" in refused("status")
        assert json.loads(ctl("status", "--json", STICKY_CTL=str(path)).stdout)["n"] == 1
    assert not path.exists()
    assert "no server answers at" in refused("--ctl", str(path), "status")
    with serve(APP, num=1, options=(*OPTIONS, "--no-ctl")):
        assert not list(runtime.iterdir())


def test_a_named_place_that_is_open_to_others_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with serve(APP, options=(*OPTIONS, "--ctl", str(tmp_path / "ctl")), ready=False) as server:
        assert server.wait() == 1
        assert "option 'ctl': the directory" in server.log()
        assert "it must have 0700" in server.log()


def test_without_a_place_the_server_goes_on(runtime: Path) -> None:
    (runtime / "sticky").touch()
    with serve(APP, num=1, options=OPTIONS) as server:
        assert "sticky ctl cannot be used with this server" in server.log()
        assert server.get().status == 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "COMMAND"),
        (["restart"], "invalid choice: 'restart'"),
        (["scale"], "required: N"),
        (["scale", "many"], "invalid int value: 'many'"),
        (["status", "extra"], "this is too much: extra"),
        (["status", "--jsn"], "did you mean --json?"),
    ],
    ids=str,
)
def test_what_is_no_command_is_one_line_and_status_two(words: list[str], says: str) -> None:
    said = refused(*words, status=2)
    assert says in said
    assert said.count("\n") == 1


def test_somebody_else_who_listens_there_is_not_believed(runtime: Path) -> None:
    folder = runtime / "sticky"
    folder.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(folder / "77.sock"))
        impostor.listen()

        def answer_rubbish() -> None:
            for _ in range(2):  # who looks for servers, and who asks
                client, _ = impostor.accept()
                with client:
                    if client.recv(1000):
                        client.sendall(b"\x1b[2Jrubbish\n")

        thread = threading.Thread(target=answer_rubbish)
        thread.start()
        said = refused("status")
        thread.join()
        assert "not what sticky ctl says" in said
        assert "\x1b" not in said


def test_top_shows_the_same_live_and_ends_with_q(running: Running) -> None:
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "sticky", "ctl", "top"]
    top = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, cwd=ROOT)
    os.close(other)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        while select.select([terminal], [], [], 0)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # it has ended
                break
        return seen

    running.get()
    wait_until(lambda: re.search(rb"accepted 1.*accepted 1", read(), re.DOTALL), what="two tables")
    os.write(terminal, b"q")
    assert top.wait(20) == 0
    assert read().endswith(b"\x1b[?1049l")  # the screen is as it was
    os.close(terminal)


def test_top_is_a_line_of_json_each_time_for_programs(running: Running) -> None:
    command = [sys.executable, "-m", "sticky", "ctl", "top", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as top:
        assert top.stdout is not None
        assert top.stderr is not None
        for _ in range(2):
            assert json.loads(top.stdout.readline())["pid"] == running.master_pid
        top.stdout.close()  # as head(1) does
        assert top.stderr.read() == b""
        assert top.wait(20) == 0


def test_top_needs_a_terminal(running: Running) -> None:
    assert "top needs a terminal: use status" in refused("top")


def test_many_who_ask_and_say_nothing_stop_neither_the_server_nor_each_other(
    running: Running, runtime: Path
) -> None:
    path = str(runtime / "sticky" / f"{running.master_pid}.sock")
    before = psutil.Process(running.master_pid).num_fds()
    silent = []
    for _ in range(40):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.settimeout(20)
        sock.sendall(b'{"sticky"')
        silent.append(sock)
    assert answer("status")["n"] == 2
    assert running.get().status == 200
    for sock in silent:
        assert sock.recv(10) == b""  # by the newer ones, or after a few seconds
        sock.close()
    wait_until(lambda: psutil.Process(running.master_pid).num_fds() <= before, what="all closed")


def test_a_script_is_asked_in_the_same_way(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text("import sticky, tests.apps\nsticky.listen(tests.apps.lab, 0, 1)\n")
    env = {"PYTHONPATH": str(ROOT)}
    with serve(str(script), script=True, num=1, env=env) as server:
        found = answer("status")
        assert found["pid"] == server.master_pid
        assert ctl("stop").returncode == 0
        assert server.wait() == 0
