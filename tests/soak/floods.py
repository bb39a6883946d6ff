"""What the clients of other slots notice of thousands of connections, and what those cost.

    python -m tests.soak.floods --kind asgi --only dribble,client --part 0.1

In turn the server is left alone and flooded, five times each, and meanwhile short requests of
clients of the other slots are measured. Under a flood their p99 is to be within three times that of
the quiet time, each the median of the five; differences under FLOOR are those of a machine with two
cores. What else is done there can be seen from the time in which the master had to wait for one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import sticky
from tests.harness import KINDS as CLASSES
from tests.harness import ROOT

from .game import NUM, SEED
from .program import prepare, verdict
from .server import Server, until

TIMES = 3.0
FLOOR = 0.005
"""Seconds: less than this is the scheduler's."""
ROUNDS = 5
SECONDS = 2.0
"""Of each measurement."""
QUEUED = 500
"""``max_queued`` of the server: what one client floods is more."""


class Kind(NamedTuple):
    """A kind of flood."""

    count: int
    slots: range
    """Whose clients they are."""
    stopped: bool = False
    """Whether the worker of slot 0 stands still meanwhile, so that its queue fills."""


FLOODS = {
    "idle": Kind(10_000, range(NUM)),  # first, while no memory has been used and freed
    "dribble": Kind(5000, range(NUM)),
    "bodies": Kind(500, range(1)),
    "websockets": Kind(5000, range(1)),
    "client": Kind(2000, range(1), stopped=True),
}
FEWER = {("threads", "websockets"): 500, ("threads", "bodies"): 200}
"""Where each connection costs a thread."""


def address_of(slot: int, numbers: Iterator[int]) -> str:
    """A client of this slot."""
    while True:
        number = next(numbers)
        address = f"198.51.{number // 250}.{number % 250 + 1}"
        head = f"GET / HTTP/1.1\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
        if sticky.explain(head, "127.0.0.1", num=NUM, seed=SEED, proxy=True).slot == slot:
            return address


class Probe:
    """Short requests of clients of the slots 1, 2, 3, on new connections; seconds of each."""

    def __init__(self, port: int, addresses: list[str]) -> None:
        self.port = port
        self.addresses = itertools.cycle(addresses)
        self.failed: list[str] = []

    def measure(self, seconds: float) -> list[float]:
        found = []
        by = time.monotonic() + seconds
        while time.monotonic() < by:
            address = next(self.addresses)
            began = time.monotonic()
            try:
                self._ask(address)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{address}: {error!r} after {time.monotonic() - began:.3f} s")
            found.append(time.monotonic() - began)
            time.sleep(0.004)
        return found

    def _ask(self, address: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            fields = {"X-Forwarded-For": address, "Connection": "close"}
            connection.request("GET", "/short?token=probe", headers=fields)
            response = connection.getresponse()
            said = response.read()
            if response.status != 200 or json.loads(said)["slot"] == 0:
                self.failed.append(f"{address}: {response.status} {said!r}")
        finally:
            connection.close()


class Phase:
    """What the clients have noticed, each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rounds: list[list[float]] = []
        self.seconds = self.waited = 0.0

    @property
    def p99(self) -> float:
        """Of one time; the others of this machine may spoil two of five."""
        return statistics.median(self._each())

    def _each(self) -> list[float]:
        return [sorted(found)[int(0.99 * len(found))] for found in self.rounds]

    def __str__(self) -> str:
        found = sorted(seconds for one in self.rounds for seconds in one)
        each = ", ".join(f"{1000 * it:.1f}" for it in self._each())
        return (
            f"{self.name} {1000 * self.p99:.1f} ms ({each}; of all: median "
            f"{1000 * statistics.median(found):.1f}, worst {1000 * found[-1]:.0f}; "
            f"no CPU for {self.waited / self.seconds:.0%})"
        )


def waited(pid: int) -> float:
    """Seconds in which this process could have run, and others did."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def rss(pids: list[int]) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


@contextmanager
def flooding(name: str, port: int, count: int, addresses: list[str]) -> Iterator[dict[str, Any]]:
    """The body runs while they stand. Yields what was counted, which goes on when it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.flooding", name, str(port), str(count), *addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("begin\n")
        process.stdin.flush()
        counted = json.loads(process.stdout.readline())
        yield counted
        said, _ = process.communicate("end\n", timeout=20)
        counted |= json.loads(said)
    finally:
        process.kill()
        process.wait(10)


class Check:
    """All floods on one worker class."""

    def __init__(self, kind: str, folder: Path, names: list[str], part: float) -> None:
        self.kind = kind
        self.names = names
        self.part = part
        options = ["--proxy", "--seed", SEED, "--max-queued", str(QUEUED)]
        options += ["--timeout", "300"]  # a worker that a flood finds stopped is to go on again
        self.server = Server(kind, folder, options, num=NUM)
        self.problems: list[str] = []
        self.numbers = itertools.count()

    async def run(self) -> None:
        async with self.server as server:
            probed = [address_of(slot, self.numbers) for slot in (1, 2, 3) for _ in range(10)]
            probe = Probe(server.port, probed)
            await asyncio.to_thread(probe.measure, SECONDS)
            for name in self.names:
                await self._flood(name, probe)
            if not await until(server.settled, 30):
                self.problems.append(f"processes: {server.children()}")
            status = await server.stop(45)
            if status != 0 or server.left():
                self.problems.append(f"exit status {status}, left {server.left()}")
            self.problems += server.traces()

    async def _flood(self, name: str, probe: Probe) -> None:
        kind = FLOODS[name]
        count = min(int(kind.count * self.part), FEWER.get((self.kind, name), kind.count))
        addresses = [address_of(slot, self.numbers) for slot in kind.slots for _ in range(25)]
        quiet, flooded, at_end = Phase("quiet"), Phase("flooded"), Phase("when they go")
        sizes: tuple[float, float] = (0.0, 0.0)
        wanted = self.server.size().fds
        for _ in range(ROUNDS):
            await self._measure(probe, SECONDS, quiet)
            master, workers = self._rss()
            with (
                self._standing(kind),
                flooding(name, self.server.port, count, addresses) as counted,
            ):
                await self._measure(probe, SECONDS, flooded)
                now = self._rss()
                # The first time is the dearest: what was freed is used again.
                sizes = (
                    max(sizes[0], (now[0] - master) / count),
                    max(sizes[1], (now[1] - workers) / count),
                )
            # They all go at once, and that is seen as well.
            await self._measure(probe, 1.0, at_end)
            if not await until(lambda: self.server.size().fds <= wanted, 20):
                self.problems.append(f"{name}: {self.server.size().fds} descriptors, not {wanted}")
        print(
            f"  {name:10} {count:6}: p99 {quiet}; {flooded}; {at_end}; bytes of a connection: "
            f"master {sizes[0]:.0f}, workers {sizes[1]:.0f}; {json.dumps(counted)}",
            flush=True,
        )
        for phase in (flooded, at_end):
            if phase.p99 > TIMES * max(quiet.p99, FLOOR):
                self.problems.append(f"{name}: p99 of the other slots {phase}; {quiet}")
        self.problems += [f"{name}: failed: {text}" for text in probe.failed[:5]]
        probe.failed.clear()

    async def _measure(self, probe: Probe, seconds: float, phase: Phase) -> None:
        before = waited(self.server.pid)
        found = await asyncio.to_thread(probe.measure, seconds)
        phase.rounds.append(found)
        phase.seconds += seconds
        phase.waited += waited(self.server.pid) - before

    @contextmanager
    def _standing(self, kind: Kind) -> Iterator[None]:
        pid = self.server.current[0]
        if kind.stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # it stood for too long, and was killed
                os.kill(pid, signal.SIGCONT)

    def _rss(self) -> tuple[int, int]:
        return rss([self.server.pid]), rss(list(self.server.current.values()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.floods", description=__doc__)
    parser.add_argument("--kind", default="eventlet", help=", ".join(CLASSES))
    parser.add_argument("--only", default="", help=", ".join(FLOODS))
    parser.add_argument("--part", type=float, default=1.0, help="of the connections, 0.1 a tenth")
    asked = parser.parse_args()
    names = [name for name in asked.only.split(",") if name] or list(FLOODS)
    if asked.kind not in CLASSES or set(names) - FLOODS.keys():
        parser.error("no such kind")
    prepare()
    folder = Path(tempfile.mkdtemp(prefix="sticky-floods-"))
    os.environ["SOAK_PING"] = "600"  # thousands of silent websockets are not to be missed
    print(f"{asked.kind}: clients of other slots", flush=True)
    check = Check(asked.kind, folder, names, asked.part)
    asyncio.run(check.run())
    bad = [problem[:1500] for problem in check.problems]
    return verdict(bad, check.server.log_file, folder)


if __name__ == "__main__":
    sys.exit(main())
