"""The access log of running servers."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

from tests.harness import Kind, Running, wait_until

from .clients import Client, head
from .test_options import assert_one_line, run

FORM = '%(h)s|%(m)s|%(U)s|%(q)s|%(H)s|%(s)s|%(b)s|%({x-mine}i)s|"%(a)s"|%(p)s|%(L)s'


class Logged:
    def __init__(self, running: Running, path: Path) -> None:
        self.running = running
        self.path = path
        self._seen = 0

    def next(self) -> list[str]:
        """The fields of the next line."""
        lines = wait_until(lambda: self.path.read_text().splitlines()[self._seen :])
        self._seen += 1
        return str(lines[0]).split("|")


@pytest.fixture(scope="module")
def logged(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    path = tmp_path_factory.mktemp("log") / "access.log"
    options = ["--access-logfile", str(path), "--access-logformat", FORM]
    with kind.serve("websocket_echo", num=1, options=options) as running:
        yield Logged(running, path)


def test_a_request_is_one_line(logged: Logged) -> None:
    logged.running.get("/a%20path?query=1&x", {"X-Mine": "yes", "User-Agent": "test/1"})
    client, method, path, query, protocol, status, size, mine, agent, pid, seconds = logged.next()
    assert (client, method, path, query) == ("127.0.0.1", "GET", "/a%20path", "query=1&x")
    assert (protocol, status, mine, agent) == ("HTTP/1.1", "200", "yes", '"test/1"')
    assert int(size) > 20
    assert pid == f"<{logged.running.worker_pids()[0]}>"
    assert 0 <= float(seconds) < 60


def test_each_request_of_a_connection_has_its_line(logged: Logged) -> None:
    with Client(logged.running.port) as client:
        for number in range(3):
            client.send(head(target=f"/{number}"))
            client.answer()
            assert logged.next()[2] == f"/{number}"


def test_the_time_is_that_of_the_whole_answer(logged: Logged) -> None:
    logged.running.get("/slow?seconds=0.3")  # an event loop may wake up a moment early
    assert 0.29 <= float(logged.next()[-1]) < 30


def test_a_websocket_is_a_line_when_it_ends(logged: Logged) -> None:
    url = f"ws://127.0.0.1:{logged.running.port}/ws?x=1"
    ws = websocket.create_connection(url, timeout=20, header=["X-Mine: socket"])
    ws.send("hello")
    assert ws.recv() == "hello"
    ws.close()
    line = logged.next()
    assert line[1:8] == ["GET", "/ws", "x=1", "HTTP/1.1", "101", line[6], "socket"]


def test_clients_cannot_write_lines_of_their_own(logged: Logged) -> None:
    with Client(logged.running.port) as client:
        client.send(head('User-Agent: x" 200|\u2028\u0085', target="/evil"))
        client.answer()
    line = logged.next()
    assert line[2] == "/evil"
    text = logged.path.read_text()
    assert all(row.isprintable() for row in text.splitlines())
    assert re.search(r'"x\\" 200', text)


def test_an_error_of_the_app_is_a_line_with_500(logged: Logged) -> None:
    assert logged.running.get("/raise").status == 500
    line = logged.next()
    assert (line[2], line[5]) == ("/raise", "500")


def test_a_hyphen_is_the_standard_output_in_gunicorns_format(kind: Kind) -> None:
    with kind.serve("whoami", num=2, options=["--access-logfile", "-"]) as running:
        running.get("/here", {"User-Agent": "me", "Referer": "there"})
        running.wait_for(r'^127\.0\.0\.1 - - \[.*\] "GET /here HTTP/1\.1" 200 \d+ "there" "me"$')


def test_without_the_option_nothing_is_logged(kind: Kind) -> None:
    with kind.serve("whoami", num=1) as running:
        running.get("/here")
        assert running.stop() == 0
        assert "/here" not in running.log()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "folder"
    words = ["-m", "sticky", "tests.apps:whoami", "-w", "2", "-b", "127.0.0.1:0"]
    ended = run(*words, "--access-logfile", str(path))
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if "[ERROR]" in line]
    assert_one_line("".join(errors) + "\n", "'access_logfile' is '.*folder': it cannot be written")
    ended = run(*words, "--access-logformat", "%(h)d")
    assert ended.returncode == 2
    assert_one_line(ended.stderr, "'access_logformat' is '%\\(h\\)d': it must be made of gunicorn")


def test_several_workers_share_a_file(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "log"
    options = ["--access-logfile", str(path), "--access-logformat", "%(U)s %(p)s"]
    with kind.serve("whoami", num=2, proxy=True, options=options) as running:
        for number in range(40):
            running.get(f"/{number}", {"X-Forwarded-For": f"10.0.0.{number}"})
        wait_until(lambda: path.read_text().count("\n") == 40)
        pids = set(re.findall(r"<(\d+)>", path.read_text()))
        assert pids == {str(pid) for pid in running.worker_pids().values()}
    assert stat.S_ISREG(path.stat().st_mode)
