"""Threads: as many as are needed and may be, and nobody is lost where there are too few."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import KINDS, Kind, Running, serve, wait_until

from .clients import Client, head

KIND = KINDS["threads"]


class Folder:
    """Where apps wait for files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def serve(self, app: str = "app", *options: str, granted: int = 0, **more: Any) -> Running:
        env = {"FOLDER": str(self.path), "GRANTED": str(granted)}
        return KIND.serve(f"tests.wsgi_threads:{app}", num=1, env=env, options=options, **more)

    def waiting(self) -> int:
        """How many have waited."""
        return len(list(self.path.glob("waits-*")))

    def open(self, name: str) -> None:
        (self.path / name).touch()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Folder(tmp_path_factory.mktemp("threads")).serve() as running:
        yield running


def ask(running: Running, path: str) -> Client:
    return Client(running.port, head(target=path))


def test_nothing_is_patched_and_requests_are_served_in_threads_of_ours(server: Running) -> None:
    said = server.get("/thread").json()
    assert re.fullmatch(r"sticky-\d+", said.pop("name"))
    assert said == {"daemon": True, "main": False, "patched": False, "real": True}


def test_more_clients_than_threads_wait_and_none_is_lost(folder: Folder) -> None:
    with folder.serve("app", "--threads", "2") as running:
        clients = [ask(running, "/wait/go") for _ in range(12)]
        wait_until(lambda: folder.waiting() == 2, what="two are in hand")
        folder.open("go")
        names = set()
        for client in clients:
            answer = client.answer()
            assert answer.status == 200
            names.add(answer.json()["name"])
        assert names == {"sticky-1", "sticky-2"}
        assert folder.waiting() == 12
        for client in clients:  # on the same connections, as many at once
            client.send(head(target="/wait/go") + head("Connection: close", target="/thread"))
        for client in clients:
            assert client.rest().count(b"HTTP/1.1 200 OK\r\n") == 2
            client.close()
        assert running.get("/stats").json()["threads"] == 2


def test_what_waits_for_a_thread_survives_the_worker(folder: Folder) -> None:
    with folder.serve("app", "--threads", "1") as running:
        first = ask(running, "/wait/never")
        wait_until(lambda: folder.waiting() == 1)
        others = [ask(running, "/pid") for _ in range(8)]
        killed = running.kill_worker(0, signal.SIGKILL)
        assert first.sock.recv(1) == b""
        pids = {client.answer().json() for client in others}
        assert pids == {running.wait_for_successor(0, killed)}
        for client in (first, *others):
            client.close()


def test_idle_connections_hold_no_thread(server: Running) -> None:
    clients = [Client(server.port) for _ in range(40)]
    for _ in range(2):
        for client in clients:
            client.send(head(target="/thread"))
            assert client.answer().status == 200
    stats = server.get("/stats").json()
    assert stats["open"] == 41
    assert stats["threads"] < 10
    for client in clients:
        client.close()


def test_without_a_limit_everybody_has_a_thread(folder: Folder) -> None:
    with folder.serve() as running:
        clients = [ask(running, "/wait/go") for _ in range(30)]
        wait_until(lambda: folder.waiting() == 30, what="all are in hand")
        assert running.get("/stats").json()["threads"] >= 31
        folder.open("go")
        for client in clients:
            assert client.answer().status == 200
            client.close()


def test_a_thread_that_cannot_be_started_leaves_its_connection_in_the_inbox(
    folder: Folder,
) -> None:
    with folder.serve("starved", granted=1) as running:
        first = ask(running, "/wait/go")
        wait_until(lambda: folder.waiting() == 1)
        others = [ask(running, "/stats") for _ in range(3)]
        running.wait_for("no thread could be started .can't start new thread.: connections wait")
        folder.open("go")
        assert first.answer().status == 200
        stats = [client.answer().json() for client in others]
        assert all(seen["thread_starved"] >= 1 for seen in stats)
        assert all(seen["threads"] == 1 for seen in stats)
        assert running.log().count("no thread could be started") == 1
        for client in (first, *others):
            client.close()


def test_a_connection_in_the_inbox_of_a_starved_worker_survives_it(folder: Folder) -> None:
    with folder.serve("starved", granted=1) as running:
        first = ask(running, "/wait/never")
        wait_until(lambda: folder.waiting() == 1)
        other = ask(running, "/pid")
        running.wait_for("no thread could be started")
        killed = running.kill_worker(0)
        assert other.answer().json() == running.wait_for_successor(0, killed)
        first.close()
        other.close()


def test_a_worker_without_any_thread_serves_as_soon_as_there_is_one(folder: Folder) -> None:
    with folder.serve("starved", granted=0) as running:
        client = ask(running, "/thread")
        running.wait_for("no thread could be started")
        folder.open("granted")
        assert client.answer().status == 200
        client.close()


def test_a_graceful_stop_waits_for_threads_that_are_at_work(folder: Folder) -> None:
    with folder.serve() as running:
        client = ask(running, "/wait/go")
        wait_until(lambda: folder.waiting() == 1)
        running.send_signal(signal.SIGTERM)
        running.wait_for("stopping gracefully")
        folder.open("go")
        assert client.answer().status == 200
        assert client.rest() == b""
        client.close()
        assert running.wait() == 0


def test_a_thread_that_never_returns_does_not_keep_the_server_from_ending(folder: Folder) -> None:
    with folder.serve("app", "--graceful-timeout", "1") as running:
        client = ask(running, "/wait/never")
        wait_until(lambda: folder.waiting() == 1)
        assert running.stop() == 0
        client.close()


def test_async_views_of_flask_run_at_the_same_time_and_choose_threads() -> None:
    with serve("tests.wsgi_threads:async_views", num=1) as running:
        clients = [ask(running, "/") for _ in range(4)]
        answers = [client.answer() for client in clients]
        assert [answer.status for answer in answers] == [200] * 4
        names = {answer.body.decode() for answer in answers}
        assert len(names) == 4
        assert "Traceback" not in running.log()
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["eventlet", "gevent", "threads"], indirect=True)
def test_context_variables_do_not_leak_from_one_request_to_the_next(
    kind: Kind, tmp_path: Path
) -> None:
    env = {"FOLDER": str(tmp_path)}
    with kind.serve("tests.wsgi_threads:app", num=1, env=env) as running:
        with Client(running.port) as client:
            for _ in range(5):  # one after another, and all at once
                client.send(head(target="/context"))
                assert client.answer().json() == "nothing"
            client.send(head(target="/context") * 5 + head("Connection: close", target="/pid"))
            assert client.rest().count(b'"nothing"') == 5
        assert [running.get("/context").json() for _ in range(5)] == ["nothing"] * 5
        assert os.getpid() != running.get("/pid").json()
