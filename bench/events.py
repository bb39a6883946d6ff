"""Events between workers: sticky's managers beside python-socketio's for Redis, with a real Redis.

    python -m bench.events                      all worker classes; --results rewrites the page
    python -m bench.events asgi threads

Two servers run at the same time, one on sticky.cluster, the other on RedisManager or
AsyncRedisManager, and emit in turn: one worker to all others, as fast as these handle it. What is
counted is the CPU time of all workers, and of redis-server where it takes part. A round trip is the
least that two managers can say to each other, there and back; beside it is what two Python
processes need that do nothing else but wake each other. Once with four workers, which two cores
have to share, and once with two.

It needs redis-server, and the package redis.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from .measure import QUICK, Verdict, ratio, section
from .rigs import CLASSES, ROOT, children_of, cpu_of, machine

WORKERS = (4, 2)
TURNS = 3 if QUICK else 9
EVENTS = {"sticky": 30_000, "redis": 5_000}
TRIPS = 300
SIZE = 100  # bytes of text in an event
MODES = {"eventlet": "eventlet", "gevent": "gevent", "threads": "threading", "asgi": "asgi"}
LIMITS = {"eventlet": 6, "gevent": 6, "threads": 6, "asgi": 4}
PAGE = Path(__file__).with_name("results") / "events.md"


@dataclass
class Side:
    """One of the servers, and what was measured of it, turn by turn."""

    port: int
    workers: int
    pids: list[int]
    rates: list[float] = field(default_factory=list)  # events per second
    cpu: list[float] = field(default_factory=list)  # microseconds per event
    trips: list[float] = field(default_factory=list)  # microseconds

    def get(self, path: str) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=120) as answer:
            return json.load(answer)

    def spent(self) -> int:
        return sum(map(cpu_of, self.pids))

    def turn(self, events: int) -> None:
        before = self.spent()
        found = self.get(f"/emit?n={events}&size={SIZE}&workers={self.workers}")
        spent = self.spent() - before
        if found["handled"] != events:
            raise RuntimeError(f"of {events} events {found['handled']} were handled")
        self.rates.append(events / found["seconds"])
        self.cpu.append(spent / events / 1000)
        to = (int(found["worker"]) + 1) % self.workers
        # The client has an address, so it is always the same worker that is asked to emit.
        self.trips.append(self.get(f"/trips?n={TRIPS}&to={to}")["us"])


@contextlib.contextmanager
def redis() -> Iterator[tuple[str, int]]:
    """A Redis of its own: its address, and its process."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("bench.events needs redis-server (apt install redis-server)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError("redis-server does not answer")
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0", process.pid
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def server(kind: str, bus: str, more: list[int], workers: int = 2) -> Iterator[Side]:
    """A server, all of whose workers take part."""
    app = "emitting_async" if kind == "asgi" else "emitting"
    with tempfile.NamedTemporaryFile() as shared:
        shared.truncate(workers * 32)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "sticky", f"bench.events_app:{app}", "-b", "127.0.0.1:0"),
                *("-w", str(workers), "-k", kind, "--proxy", "--ignore-missing-header", "--no-ctl"),
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "BENCH_BUS": bus,
                "BENCH_MODE": MODES[kind],
                "BENCH_SHARED": shared.name,
            },
        )
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "Listening at: http://127.0.0.1:" in line:
                    break
            else:
                raise RuntimeError("".join(said))
            port = int(line.partition("http://127.0.0.1:")[2].split()[0].rstrip(","))
            side = Side(port, workers, [*children_of(process.pid), *more])
            seen: set[int] = set()
            for number in range(1000):  # each worker begins when it is first asked
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/",
                    headers={"X-Forwarded-For": f"10.0.{number % 250}.1"},
                )
                with urllib.request.urlopen(request, timeout=20) as answer:
                    seen.add(json.load(answer)["worker"])
                if len(seen) == workers:
                    break
            time.sleep(0.5)  # until Redis knows all subscribers
            yield side
        finally:
            process.terminate()
            process.wait(20)
            process.stderr.close()


def bare_trip() -> float:
    """What a round trip takes of a datagram between two processes that wait for it in an epoll, and
    do nothing with it: microseconds, the median."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    sock = ours if child else theirs
    waits = select.epoll()
    waits.register(sock.fileno(), select.EPOLLIN)
    taken = []
    for _ in range(TRIPS):
        began = time.perf_counter()
        if child:
            sock.send(b"x" * SIZE)
        waits.poll()
        sock.recv(SIZE)
        if not child:
            sock.send(b"x" * SIZE)
        taken.append(time.perf_counter() - began)
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    for end in (waits, ours, theirs):
        end.close()
    return median(taken) * 1e6


def measure(kind: str, workers: int) -> tuple[dict[str, Side], list[float]]:
    """What there is to say of both, and the bare round trips of the same time."""
    bare = []
    with (
        redis() as (url, pid),
        server(kind, "sticky", [], workers) as ours,
        server(kind, url, [pid], workers) as theirs,
    ):
        sides = {"sticky": ours, "redis": theirs}
        for turn in range(-1, TURNS):
            for name, side in list(sides.items())[:: -1 if turn % 2 else 1]:
                side.turn(EVENTS[name])
            bare.append(bare_trip())
            if turn < 0:  # to warm up
                for side in sides.values():
                    for samples in (side.rates, side.cpu, side.trips):
                        samples.clear()
                bare.clear()
        return sides, bare


def compared(kinds: list[str], workers: int) -> str:
    """The section of the page about servers with so many workers."""
    rows, verdicts = [], []
    for kind in kinds:
        sides, bare = measure(kind, workers)
        ours, theirs = sides["sticky"], sides["redis"]
        for name, side in sides.items():
            row = {"": f"{kind}, {name}", "events/s": int(median(side.rates))}
            row |= {"CPU us": median(side.cpu), "round trip us": median(side.trips)}
            rows.append(row)
        more = ratio(ours.rates, theirs.rates)
        trips = ratio(ours.trips, theirs.trips)
        verdicts += [
            Verdict(f"{kind}: redis's events per second, of ours", 1 / more, 1 / LIMITS[kind]),
            Verdict(f"{kind}: CPU, of redis's", ratio(ours.cpu, theirs.cpu), 1 / 4),
            Verdict(f"{kind}: round trip, of redis's", trips, 1 / 3 if workers == 2 else None),
            Verdict(f"{kind}: a bare one, of redis's", ratio(bare, theirs.trips)),
        ]
        print(f"{kind}, {workers} workers: {more:.1f} times the events per second", flush=True)
    return section(f"{workers} workers, one emits", rows, verdicts)


def main() -> None:
    kinds = [kind for kind in sys.argv[1:] if kind in CLASSES] or list(CLASSES)
    version_of = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[2]
    about = f"{machine()}, redis {version('redis')}, redis-server {version_of[2:]}"
    load = f"load average {os.getloadavg()[0]:.0f} at the start"
    text = "\n".join(
        [f"# Events between workers\n\n{about}; {load}\n", *(compared(kinds, n) for n in WORKERS)]
    )
    print(text)
    if "--results" in sys.argv:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
