"""Views that start processes: a child has nothing of ours, serves nobody, and ends as it likes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import KINDS, Kind, Running, wait_until

from .clients import Client, head

WAYS = ["fork", "multiprocessing", "subprocess", "exits", "returns"]
FORKS = ["fork", "multiprocessing", "exits", "returns"]


class Server:
    """One worker, its children, and the folder in which they report."""

    def __init__(self, kind: Kind, running: Running, folder: Path) -> None:
        self.kind = kind
        self.running = running
        self.folder = folder

    def child(self, way: str) -> int:
        """Start one; it is there and waits."""
        if (self.kind.name, way) == ("eventlet", "multiprocessing"):
            pytest.skip("under eventlet, whatever serves, such a child never ends")
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "go").unlink()
        pid = self.running.get(f"/{way}").json()
        assert isinstance(pid, int)
        assert pid
        wait_until((self.folder / str(pid)).exists, what="the child has reported")
        return pid

    def sockets(self, pid: int) -> set[str]:
        """Of the child, when it began."""
        return set(json.loads((self.folder / str(pid)).read_text()))

    def let_go(self) -> None:
        (self.folder / "go").touch()

    def ended(self, pid: int) -> int:
        """The child's exit status, once it has ended."""
        said: list[int] = []

        def look() -> bool:
            status = self.running.get(f"/ended?{pid}").json()
            said.extend([] if status is None else [status])
            return bool(said)

        wait_until(look, what="the child has ended")
        return said[0]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def server(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("children")
    with serve(kind, folder) as running:
        yield Server(kind, running, folder)


def serve(kind: Kind, folder: Path) -> Running:
    app = {"wsgi": "app", "asgi": "asgi"}[kind.interface]
    return kind.serve(f"tests.fork_apps:{app}", num=1, env={"FOLDER": str(folder)})


@pytest.mark.parametrize("way", WAYS)
def test_a_child_has_nothing_of_ours_and_serves_nobody(server: Server, way: str) -> None:
    running = server.running
    worker = running.worker_pids()[0]
    mark = len(running.log())
    with Client(running.port, head()) as idle, Client(running.port, head()[:10]) as begun:
        assert idle.answer().json() == worker
        ours = set(running.get("/ours").json())
        assert ours
        child = server.child(way)
        assert not ours & server.sockets(child)
        for _ in range(20):
            assert running.get("/").json() == worker
        for _ in range(5):
            idle.send(head())
            assert idle.answer().json() == worker
        begun.send(head("Connection: close")[10:])
        assert begun.answer().json() == worker
        assert begun.rest() == b""  # its end is seen although the child lives
        server.let_go()
        assert server.ended(child) == (7 if way == "exits" else 0)
        idle.send(head("Connection: close"))
        assert idle.answer().json() == worker
        assert idle.rest() == b""
    assert running.worker_pids()[0] == worker
    assert running.log()[mark:] == ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_child_ends_the_child_and_not_the_worker(
    server: Server, way: str, sig: int
) -> None:
    running = server.running
    worker = running.worker_pids()[0]
    child = server.child(way)
    os.kill(child, sig)
    assert server.ended(child) != 0
    for _ in range(5):
        assert running.get("/").json() == worker
    assert running.worker_pids()[0] == worker


@pytest.mark.parametrize("way", FORKS)
def test_a_child_that_outlives_its_worker_keeps_nobody_waiting(
    kind: Kind, tmp_path: Path, way: str
) -> None:
    with serve(kind, tmp_path) as running:
        server = Server(kind, running, tmp_path)
        with Client(running.port, head()) as idle:
            assert idle.answer().status == 200
            server.child(way)
            killed = running.kill_worker(0)
            with contextlib.suppress(ConnectionResetError):
                assert idle.rest() == b""
        successor = running.wait_for_successor(0, killed)
        assert running.get("/").json() == successor
        server.let_go()
