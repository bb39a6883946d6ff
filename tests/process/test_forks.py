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


def serve(kind: Kind, folder: Path, **env: str) -> Running:
    app = {"wsgi": "app", "asgi": "asgi"}[kind.interface]
    return kind.serve(f"tests.fork_apps:{app}", num=1, env={"FOLDER": str(folder), **env})


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
        if never_ends(server.kind, way):
            os.kill(child, signal.SIGKILL)
            assert server.ended(child) == -signal.SIGKILL
        else:
            assert server.ended(child) == (7 if way == "exits" else 0)
        idle.send(head("Connection: close"))
        assert idle.answer().json() == worker
        assert idle.rest() == b""
    assert running.worker_pids()[0] == worker
    assert running.log()[mark:] == ""


@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_a_child_that_waits_does_none_of_the_workers_work(server: Server, way: str) -> None:
    """While it waits a loop runs that is the parent's, over descriptors with the same numbers."""
    if never_ends(server.kind, way):
        way = "fork"
    running = server.running
    mark = len(running.log())
    for _ in range(10):
        assert running.get(f"/waits?{way}").json() == 0
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
    if sig == signal.SIGINT and never_ends(server.kind, way):
        os.kill(child, signal.SIGKILL)
    assert server.ended(child) != 0
    for _ in range(5):
        assert running.get("/").json() == worker
    assert running.worker_pids()[0] == worker


USUAL = {
    *(signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1),
    *(signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
}


def never_ends(kind: Kind, way: str) -> bool:
    """Under eventlet, whatever serves, a child of multiprocessing's does not end by itself: it
    joins the thread that has forked it, as it was in its parent."""
    return (kind.name, way) == ("eventlet", "multiprocessing")


def signals(pid: int, which: str) -> set[signal.Signals]:
    """Of a process: those that it ignores (SigIgn), or catches (SigCgt); proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition(f"{which}:")[2].split()[0], 16)
    return {number for number in USUAL if mask & 1 << (number - 1)}


@pytest.mark.parametrize("way", WAYS)
def test_a_child_has_the_usual_actions_of_signals(server: Server, way: str) -> None:
    child = server.child(way)
    assert signals(child, "SigIgn") == set()
    # Python has a handler of its own for that, which raises KeyboardInterrupt; so have shells.
    assert signals(child, "SigCgt") == (signals(child, "SigCgt") & {signal.SIGINT})
    os.kill(child, signal.SIGKILL)
    server.ended(child)


@pytest.mark.parametrize("way", FORKS)
def test_a_child_of_the_factorys_has_nothing_of_ours_and_serves_nobody(
    kind: Kind, tmp_path: Path, way: str
) -> None:
    """It is forked before there is anything to serve."""
    with serve(kind, tmp_path, FIRST=f"/{way}") as running:
        server = Server(kind, running, tmp_path)
        child = int((tmp_path / "first").read_text())
        wait_until((tmp_path / str(child)).exists, what="the child has reported")
        assert not set(running.get("/ours").json()) & server.sockets(child)
        assert signals(child, "SigIgn") == set()
        for _ in range(20):
            assert running.get("/").json() == running.worker_pids()[0]
        killed = running.kill_worker(0)  # its end is seen although the child lives
        running.wait_for_successor(0, killed)
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("way", FORKS)
def test_a_child_that_outlives_its_worker_keeps_nobody_waiting(
    kind: Kind, tmp_path: Path, way: str
) -> None:
    with serve(kind, tmp_path) as running:
        server = Server(kind, running, tmp_path)
        with Client(running.port, head()) as idle:
            assert idle.answer().status == 200
            child = server.child(way)
            killed = running.kill_worker(0)
            with contextlib.suppress(ConnectionResetError):
                assert idle.rest() == b""
        successor = running.wait_for_successor(0, killed)
        assert running.get("/").json() == successor
        os.kill(child, signal.SIGKILL)
