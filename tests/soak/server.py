"""The server under test, seen from outside: its log in a file, its processes, its size."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.harness import KINDS, LISTENING, MARK, ROOT, WORKER_READY, marked

LOOK_EVERY = 0.05
DUMP_AFTER = 8.0
"""Seconds after which a process that was to end says where it is."""

SCALED = re.compile(r"There (?:is|are) (\d+) workers? now")
"""What it says when from now on there are so many slots."""
THEIRS = re.compile(r"base_manager\.py.*\n +if len\(self\.pending_connect\[namespace\]\) == 0")
"""A race of python-socketio 5.18 with threads: it looks, and looks again, without a lock."""
KILLED = re.compile(r"worker \d+ \(pid \d+\) is killed: .*")
"""What a master says of a process that hangs."""

Ready = Callable[[int, int], None]


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait for a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_EVERY)
    return True


def exists(pid: int) -> bool:
    """Whether a process is there, and has not ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


@dataclass(frozen=True)
class Child:
    """A worker process, whatever its state."""

    slot: int
    pid: int


@dataclass(frozen=True)
class Size:
    """The master at a quiet moment."""

    fds: int
    rss: int


class Server:
    """A server of one kind; start and end it with ``async with``.

    Args:
        kind: the name of a worker class.
        folder: for its log and the record of its processes.
        options: further ones.
        ready: called with slot and pid when a process has become ready.
        killed: called with what the master says when it kills one that hangs.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        options: Sequence[str],
        *,
        num: int = 4,
        ready: Ready = lambda slot, pid: None,
        killed: Callable[[str], None] = lambda text: None,
        app: str | None = None,
    ) -> None:
        self.kind = KINDS[kind]
        self.num = num
        self.log_file = folder / f"server-{kind}.log"
        self.record = folder / f"record-{kind}"
        self.record.touch()
        self.current: dict[int, int] = {}
        """Slot -> the process that was the last to become ready in it."""
        self.scaled = num
        """How many slots there are, as the master has said."""
        self.port = 0
        self.pid = 0
        self._ready = ready
        self._killed = killed
        self._mark = uuid.uuid4().hex
        target = app or f"tests.soak.apps:{self.kind.interface}"
        self._command = [sys.executable, "-m", "sticky", target, "-b", "127.0.0.1:0"]
        self._command += ["-w", str(num), *options]
        self._seen = ""
        self._replaced: dict[int, float] = {}

    async def __aenter__(self) -> Self:
        environment: Mapping[str, str] = {
            **os.environ,
            **self.kind.env,
            "PYTHONUNBUFFERED": "1",
            "SOAK_RECORD": str(self.record),
            MARK: self._mark,
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self._log = self.log_file.open("rb")
        try:
            if not await until(lambda: self.look() or len(self.current) >= self.num, 60):
                raise TimeoutError(f"the server did not start: {self.log_file}")
        except BaseException:
            await self.__aexit__()
            raise
        self._looking = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        if hasattr(self, "_looking"):
            self._looking.cancel()
        for process in marked(self._mark):
            with suppress(psutil.Error):
                process.kill()
        self.process.wait(10)
        self._log.close()

    async def _look_on(self) -> None:
        while True:
            self.look()
            for pid, since in list(self._replaced.items()):
                if time.monotonic() - since > DUMP_AFTER:
                    del self._replaced[pid]
                    self.dump(pid)
            await asyncio.sleep(LOOK_EVERY)

    def dump(self, pid: int) -> None:
        """Have a process that takes so long say in the log where its threads are."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)

    def look(self) -> None:
        """Read on in the log."""
        self._seen += self._log.read().decode(errors="replace")
        whole, newline, self._seen = self._seen.rpartition("\n")
        whole += newline
        if not self.port and (found := LISTENING.search(whole)):
            self.port = int(found[1].rstrip(",/").rpartition(":")[2])
        for slot, pid in WORKER_READY.findall(whole):
            if before := self.current.get(int(slot)):
                self._replaced[before] = time.monotonic()
            self.current[int(slot)] = int(pid)
            self._ready(int(slot), int(pid))
        for num in SCALED.findall(whole):
            self.scaled = int(num)
        for text in KILLED.findall(whole):
            self._killed(text)

    def traces(self) -> list[str]:
        """The tracebacks in the log, each with what is around it."""
        text = self.log_file.read_text(errors="replace")
        found = [
            text[max(0, at.start() - 200) : at.start() + 2000]
            for at in re.finditer(r"^(Traceback|Exception ignored|Fatal Python error)", text, re.M)
        ]
        return [one for one in found if not THEIRS.search(one)]

    # -- processes ---------------------------------------------------------------------------------

    def children(self) -> list[Child]:
        """Its workers that are alive, by pid: those that start and those that drain as well."""
        found = []
        with suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                with suppress(psutil.Error):
                    slot = child.environ().get("STICKY_WORKER_ID")
                    if slot is not None and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(Child(int(slot), child.pid))
        return sorted(found, key=lambda child: child.pid)

    def settled(self) -> bool:
        """Whether each slot has its one process, which is ready."""
        self.look()
        children = self.children()
        return len(children) == self.num and all(
            self.current.get(child.slot) == child.pid for child in children
        )

    def size(self) -> Size:
        """Of the master."""
        process = psutil.Process(self.pid)
        return Size(process.num_fds(), process.memory_info().rss)

    def left(self) -> list[psutil.Process]:
        """What is alive of all that it started."""
        return marked(self._mark)

    async def stop(self, seconds: float) -> int | None:
        """TERM, and its exit status; None if it does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        if not await until(lambda: self.process.poll() is not None, DUMP_AFTER):
            for child in self.children():
                self.dump(child.pid)
        await until(lambda: self.process.poll() is not None, seconds - DUMP_AFTER)
        return self.process.returncode
