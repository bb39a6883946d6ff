"""Logs that nobody reads, that have no room, or that are not there at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness import KINDS, MARK, ROOT, Kind, Running, marked, request, wait_until

from .clients import Client, head
from .test_lifecycle import free_port, when_served

ALL = pytest.mark.parametrize("kind", list(KINDS), indirect=True)
LONG = "User-Agent: " + "x" * 990  # of a line of the access log this much is written


def target(kind: Kind) -> str:
    return f"tests.log_apps:{kind.interface}"


@contextlib.contextmanager
def started(
    kind: Kind, command: Sequence[str], **streams: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A server whose output is not the harness's to read."""
    mark = os.urandom(16).hex()
    environment = {**os.environ, **kind.env, MARK: mark, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, **streams
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        wait_until(lambda: not marked(mark), what="nothing is left of it")
    finally:
        for left in marked(mark):
            left.kill()
        process.wait(10)


def command(kind: Kind, port: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "sticky", target(kind), "-b", f"127.0.0.1:{port}", "-w1", *more]


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        with contextlib.suppress(OSError):
            os.close(writer)


def read_until(pattern: bytes, fd: int, act: Callable[[], object]) -> bytes:
    """What can be read, until it holds this; ``act`` makes the server come by its log."""
    data = bytearray()

    def found() -> bool:
        with contextlib.suppress(BlockingIOError):
            while more := os.read(fd, 65536):
                data.extend(more)
        if re.search(pattern, data):
            return True
        act()
        return False

    wait_until(found, 60, repr(pattern))
    return bytes(data)


@ALL
def test_a_worker_does_not_wait_for_who_reads_its_log(kind: Kind) -> None:
    port = free_port()
    with (
        pipe() as (reader, writer),
        started(kind, command(kind, port), stderr=writer, stdout=subprocess.DEVNULL),
    ):
        assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
        pid = when_served(lambda: int(request(port, "/0").json()["pid"]))
        assert request(port, "/2000").json()["pid"] == pid
        assert request(port, "/0").json()["pid"] == pid
        assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
        lost = rb"(\d+) log lines were lost: nobody read them\n"
        asked: list[object] = []
        text = read_until(lost, reader, lambda: asked.append(request(port, "/1")))
        found = re.search(lost, text)
        assert found is not None
        said = re.findall(rb"\[WARNING\] (\d+) x{500}\n", text[: found.start()])
        assert said == [b"%d" % number for number in range(len(said))]
        # What was logged meanwhile is lost, too, but for what has had the loss told.
        assert len(said) + int(found[1]) in (2000 + len(asked) - 1, 2000 + len(asked))


@ALL
def test_a_worker_does_not_wait_for_who_reads_its_access_log(kind: Kind, tmp_path: Path) -> None:
    port = free_port()
    errors = tmp_path / "errors"
    with (
        pipe() as (reader, writer),
        errors.open("wb") as stderr,
        started(kind, command(kind, port, "--access-logfile", "-"), stdout=writer, stderr=stderr),
    ):
        when_served(lambda: int(request(port, "/0").json()["pid"]))
        with Client(port) as client:
            for number in range(400):
                client.send(head(LONG, target=f"/0?{number}"))
                assert client.answer().status == 200
            read_until(b"/0[?]last ", reader, lambda: request(port, "/0?last"))
        found = re.search(r"(\d+) access log lines were lost: nobody read them", errors.read_text())
        assert found
        assert 0 < int(found[1]) < 400


def test_a_reader_that_is_gone_stops_nobody(kind: Kind) -> None:
    port = free_port()
    with pipe() as (reader, writer):
        more = ["--access-logfile", "-"]
        with started(kind, command(kind, port, *more), stdout=writer, stderr=writer):
            os.close(writer)
            pid = when_served(lambda: int(request(port, "/0").json()["pid"]))
            os.dup2(os.open(os.devnull, os.O_RDONLY), reader)  # it has no reader any more
            assert request(port, "/2000").json()["pid"] == pid
            assert request(port, "/0").json()["pid"] == pid


def test_what_was_kept_is_written_without_anything_new_to_say(kind: Kind) -> None:
    """In the master, too, which has nothing to log meanwhile."""
    port = free_port()
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x")
        os.set_blocking(writer, True)
        with started(kind, command(kind, port), stdout=subprocess.DEVNULL, stderr=writer):
            when_served(lambda: int(request(port, "/1000").json()["pid"]))
            text = read_until(rb"log lines were lost", reader, lambda: None)
            text += (
                read_until(rb"Listening at", reader, lambda: None)
                if b"Listening" not in text
                else b""
            )
            assert b"] 400 xxx" in text


def full(running: Running, is_full: bool) -> None:
    """No file of this worker's may grow (as if its disk was full), or they may again."""
    pid = running.worker_pids()[0]
    limit = 1 if is_full else resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_a_full_disk_is_told_once(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    options = ["--access-logfile", str(path), "--access-logformat", "%(q)s %(a)s"]
    with kind.serve(target(kind), num=1, options=options) as running:
        with Client(running.port) as client:

            def ask(what: str) -> None:
                client.send(head(LONG, target=f"/0?{what}"))
                assert client.answer().status == 200

            ask("before")
            wait_until(lambda: "before" in path.read_text())
            full(running, True)
            for number in range(400):
                ask(str(number))
            assert path.read_text().count("\n") == 1
            mark = len(running.log())
            full(running, False)
            ask("after")
        found = running.wait_for(r"(\d+) access log lines were lost: File too large", after=mark)
        wait_until(lambda: path.read_text().rpartition("\n")[0].rpartition("\n")[2][:5] == "after")
        first, *kept, last = [line.split()[0] for line in path.read_text().splitlines()]
        assert (first, last) == ("before", "after")
        assert len(kept) == 400 - int(found[1])
        # The line of the last answer may have come when there was room again.
        assert list(map(int, kept[:-1])) == list(range(len(kept) - 1))
        assert 100 < len(kept) < 400
        assert "Traceback" not in running.log()
        assert running.log().count("were lost") == 1


def wait_for(pattern: str, path: Path) -> re.Match[str]:
    """Until this is in the file."""
    return wait_until(
        lambda: re.search(pattern, path.read_text()) if path.exists() else None, 60, pattern
    )


def log_config(tmp_path: Path) -> tuple[Path, list[str]]:
    """Options that have all logs in a file."""
    log, config = tmp_path / "log", tmp_path / "log.json"
    handler = {"class": "logging.FileHandler", "filename": str(log)}
    ours = {"handlers": ["h"], "level": "INFO", "propagate": False}
    said = {"version": 1, "handlers": {"h": handler}, "loggers": {"sticky": ours}}
    config.write_text(json.dumps(said))
    return log, ["--log-config", str(config), "--access-logfile", "-"]


def test_a_full_disk_makes_no_tracebacks_with_a_log_config(kind: Kind, tmp_path: Path) -> None:
    log, options = log_config(tmp_path)
    with kind.serve(target(kind), num=1, options=options, ready=False) as running:
        port = int(wait_for(r"at: http://\S+:(\d+) ", log)[1])
        pid = int(wait_for(r"worker 0 ready \(pid (\d+)\)", log)[1])
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, unlimited))
        for _ in range(100):
            assert request(port, "/0").status == 200
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        assert request(port, "/0").status == 200
        wait_for("[0-9]+ log lines were lost: File too large\n", log)
        assert running.stop() == 0
        assert running.log() == ""


def reopened(paths: Sequence[Path], pids: Sequence[int]) -> bool:
    """Whether none of these processes has the renamed files open any more."""
    names = {f"{path}.1" for path in paths}
    open_now = {file.path for pid in pids for file in psutil.Process(pid).open_files()}
    return not names & open_now


def test_after_usr1_lines_go_to_new_files(kind: Kind, tmp_path: Path) -> None:
    """As logrotate does it: rename, then the signal."""
    path = tmp_path / "access.log"
    options = ["--access-logfile", str(path), "--access-logformat", "%(U)s"]
    with kind.serve(target(kind), num=2, proxy=True, options=options) as running:
        everyone = [{"X-Forwarded-For": f"10.0.0.{number}"} for number in range(20)]
        for headers in everyone:
            running.get("/0/before", headers)
        wait_until(lambda: path.read_text().count("\n") == 20)
        path.rename(f"{path}.1")
        for headers in everyone:
            running.get("/0/between", headers)
        running.send_signal(signal.SIGUSR1)
        wait_until(lambda: reopened([path], list(running.worker_pids().values())))
        for headers in everyone:
            running.get("/0/after", headers)
        wait_until(lambda: path.read_text().count("\n") == 20)
        old = Path(f"{path}.1").read_text().split()
        assert old == ["/0/before"] * 20 + ["/0/between"] * 20
        assert set(path.read_text().split()) == {"/0/after"}


def test_after_usr1_a_configured_file_is_a_new_one_in_all_processes(
    kind: Kind, tmp_path: Path
) -> None:
    log, options = log_config(tmp_path)
    with kind.serve(target(kind), num=1, options=options, ready=False) as running:
        pid = int(wait_for(r"worker 0 ready \(pid (\d+)\)", log)[1])
        wait_for("Listening", log)
        log.rename(f"{log}.1")
        running.send_signal(signal.SIGUSR1)
        wait_until(lambda: reopened([log], [running.pid, pid]))
        assert running.stop() == 0
        assert "SIGTERM: stopping" in log.read_text()
        assert "SIGTERM" not in Path(f"{log}.1").read_text()


# -- closed from the start ---------------------------------------------------------------------

CLOSED = ["0", "1", "2", "12", "012"]


def check_closed(closed: str, port: int) -> None:
    served = when_served(lambda: int(request(port, "/0").json()["pid"]))
    number = request(port, "/0").json()["stats"]["accepted"]
    for _ in range(5):
        assert request(port, "/print").status == 200
    said = request(port, "/0").json()
    stats = said["stats"]
    # Each process counts what it has done behind it: what is read just then may lack one.
    assert abs(stats["accepted"] - number - 6) <= 1
    workers = stats.pop("workers")
    figures = {**stats}
    for slot, row in workers.items():
        assert row.pop("pid") in {child.pid for child in psutil.Process(served).parent().children()}
        figures |= {f"{slot} {name}": value for name, value in row.items()}
    assert max(figures.values()) < 1000, figures
    assert abs(sum(row["requests"] for row in workers.values()) - number - 6) <= 2
    worker = psutil.Process(said["pid"])
    for process in (worker, worker.parent()):
        for fd in closed:
            assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == os.devnull


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("way", ["command", "script"])
def test_what_is_closed_from_the_start_is_nobody_elses(
    way: str, closed: str, kind: Kind, tmp_path: Path
) -> None:
    """The numbers are free, and what the server opens first would have them: the memory of the
    counters, which every ``print`` of the app then writes into."""
    port = free_port()
    run = command(kind, port)
    if way == "script":
        script = str(ROOT / "tests" / "log_apps.py")
        run = [sys.executable, script, str(port), kind.name]
    closing = " ".join(f"{fd}>&-" for fd in closed)
    with (
        (tmp_path / "log").open("wb") as log,
        started(
            kind,
            ["sh", "-c", f'exec "$@" {closing}', "sh", *run],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        check_closed(closed, port)
        for fd in closed:
            assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == os.devnull


def test_an_error_of_a_command_whose_streams_are_closed_is_a_status_all_the_same() -> None:
    run = [sys.executable, "-m", "sticky"]
    for more, status in ((["no-such"], 2), (["--version"], 0), (["--check-config", "a:b"], 0)):
        closing = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *run, *more]
        assert subprocess.run(closing, cwd=ROOT, timeout=60).returncode == status
