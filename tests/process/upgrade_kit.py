"""Servers that are upgraded in place: from a copy of the package that a test can change, and under
a load that notes every failure."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil

from sticky import ctl
from tests.harness import ROOT, Kind, Running, request, wait_until

DONE = r"Upgraded in place from (\S+) to (\S+) \(pid (\d+)\)"


def upgrade(running: Running, pid: int | None = None) -> int:
    """Upgrade the server and wait until it has happened; where the log was then."""
    mark = len(running.log())
    os.kill(pid or running.master_pid, signal.SIGUSR2)
    found = running.wait_for(DONE, 60, after=mark)
    assert int(found[3]) == running.master_pid
    return found.end()


def wait_for_new_workers(running: Running, mark: int) -> None:
    """Wait until every slot has another process than it had there, and the old ones have ended."""
    for slot in range(running.num):
        running.wait_for(rf"worker {slot} ready", 60, after=mark)
    master = psutil.Process(running.master_pid)
    current = set(running.worker_pids().values())
    wait_until(lambda: {child.pid for child in master.children()} == current, 60, "only the new")
    wait_until(lambda: targets(master.pid).count("anon_inode:[pidfd]") == len(current))


def children(running: Running) -> dict[int, str]:
    """The children of the master, and their states."""
    found = {}
    for child in psutil.Process(running.master_pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[child.pid] = child.status()
    return found


def has_no_trial(running: Running) -> bool:
    """Whether no process of a trial is left, not even as a zombie."""
    workers = set(running.worker_pids().values())
    return set(children(running)) == workers


def targets(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


def open_files(pid: int) -> list[str]:
    """The same without the numbers that differ each time."""
    return sorted(target.partition(":[")[0] for target in targets(pid))


class Copied:
    """A copy of the package, in a folder from which servers are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", "*.pyx", "*.c")
        shutil.copytree(ROOT / "sticky", folder / "sticky", ignore=ignore)
        # No compiled files: two changes within a second may have the same size.
        self.env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def change(self, name: str, before: str, after: str) -> None:
        """Replace a text in a module, wherever it is."""
        path = self.folder / "sticky" / name
        text = path.read_text()
        assert before in text, (name, before)
        path.write_text(text.replace(before, after))

    @contextlib.contextmanager
    def changed(self, name: str, before: str, after: str) -> Iterator[None]:
        """The same for a while."""
        path = self.folder / "sticky" / name
        text = path.read_text()
        self.change(name, before, after)
        try:
            yield
        finally:
            path.write_text(text)

    def serve(self, kind: Kind, target: str, **options: Any) -> Running:
        """A server of this copy."""
        env = {**self.env, **options.pop("env", {})}
        return kind.serve(target, env=env, cwd=self.folder, **options)


class Ctl:
    """The socket of a server, where ``sticky ctl`` reaches it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = folder / "ctl"
        self.options = ("--ctl", str(self.path))

    def ask(self, command: str, **arguments: Any) -> Any:
        return ctl.ask(self.path, command, arguments)


class Load:
    """Clients that ask without a pause, on a new connection each time or on one that they keep,
    and note whatever is not a good answer."""

    def __init__(self, running: Running, *, new: int = 4, kept: int = 4) -> None:
        self.port = running.port
        self.failures: list[str] = []
        self.answers = [0] * (new + kept)
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, number < new), daemon=True)
            for number in range(new + kept)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)

    def goes_on(self) -> None:
        """Wait until each of them has been answered twice more: so once to a new question."""
        before = list(self.answers)
        wait_until(
            lambda: (
                self.failures
                or all(now >= old + 2 for now, old in zip(self.answers, before, strict=True))
            ),
            60,
            "everybody is answered",
        )
        assert not self.failures

    def _run(self, number: int, new: bool) -> None:
        kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        path, headers = f"/{number}", {"X-Forwarded-For": f"10.0.{number}.1"}
        while not self._end.is_set():
            try:
                if new:
                    status = request(self.port, path, headers, timeout=60).status
                else:
                    kept.request("GET", path, headers=headers)
                    response = kept.getresponse()
                    status = response.status
                    response.read()
            except Exception as error:
                self.failures.append(f"{'new' if new else 'kept'} {number}: {error!r}")
                kept.close()
                continue
            if status != 200:
                self.failures.append(f"{'new' if new else 'kept'} {number}: {status}")
            self.answers[number] += 1
        kept.close()
