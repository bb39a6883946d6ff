"""One reload after another under two hundred Socket.IO clients: what do they notice?

    python -m tests.soak.deploy --seconds 60 --kind eventlet

HUP every three seconds. Each message is acknowledged or its client told, each client is back within
two seconds (of which its own wait before it tries again is 0.1 s at first), no plain request fails,
and on average no slot has more than two processes. Then, as the baseline, the server is left alone
and the clients themselves leave and come back, as many at a time as a reload sends away: by how
much the slowest is slower than is usual is what this machine adds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.harness import KINDS

from .game import NUM, SEED
from .load import Load, burst, short
from .oracle import Oracle, Session, now
from .program import prepare, verdict
from .server import Server, until
from .talk import PythonClient, Spec, Talk

EVERY = 3.0
BACK_WITHIN = 2.0
SAMPLE = 0.1
PROCESSES = 2.0
"""Of a slot, on average."""


class Lag:
    """How late this process itself is: what it measures cannot be more exact."""

    def __init__(self) -> None:
        self.late: list[tuple[float, float]] = []  # when, seconds
        self._task = asyncio.create_task(self._measure())

    async def _measure(self) -> None:
        while True:
            began = now()
            await asyncio.sleep(0.02)
            self.late.append((now(), now() - began - 0.02))

    def worst(self, start: float, end: float) -> float:
        return max((late for when, late in self.late if start <= when <= end + 0.1), default=0.0)

    def close(self) -> None:
        self._task.cancel()


class Absences:
    """How long each client was away, each time."""

    def __init__(self, clients: Sequence[PythonClient], lag: Lag) -> None:
        self.lag = lag
        self.seconds: dict[str, list[float]] = {"polling": [], "websocket": []}
        self.late: list[float] = []
        """Of each absence, how late this process was at the worst."""
        self._left: dict[str, float] = {}
        for client in clients:
            self._watch(client)

    def _watch(self, client: PythonClient) -> None:
        name, mode = client.spec.name, client.spec.mode

        def gone(reason: str) -> None:
            self._left[name] = now()

        def back(session: Session) -> None:
            if (left := self._left.pop(name, None)) is not None:
                self.seconds[mode].append(now() - left)
                self.late.append(self.lag.worst(left, now()))

        client.gone, client.back = gone, back

    @property
    def all(self) -> list[float]:
        return self.seconds["polling"] + self.seconds["websocket"]

    def __str__(self) -> str:
        return "; ".join(f"{mode} {spread(found)}" for mode, found in self.seconds.items())


def spread(found: Sequence[float]) -> str:
    """Some figures of a distribution."""
    if not found:
        return "none"
    ordered = sorted(found)

    def at(part: float) -> float:
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    return (
        f"{len(ordered)} times, median {at(0.5):.2f} s, p90 {at(0.9):.2f} s, "
        f"p99 {at(0.99):.2f} s, worst {ordered[-1]:.2f} s"
    )


class Deploy:
    """The check, on one worker class."""

    def __init__(self, kind: str, folder: Path, asked: argparse.Namespace) -> None:
        options = ["--proxy", "--session", "sid", "--seed", SEED]
        options += ["--drain-spread", f"{asked.drain_spread:g}"]
        self.asked = asked
        self.draw = random.Random(asked.seed)
        self.server = Server(kind, folder, options, num=NUM, ready=self._ready)
        self.oracle = Oracle(self.server.record, SEED, NUM)
        self.processes: list[int] = []

    def _ready(self, slot: int, pid: int) -> None:
        self.oracle.note(f"worker {slot} ready (pid {pid})")
        self.oracle.ready(slot, pid)

    async def run(self) -> None:
        async with self.server as server:
            ports = {"direct": server.port, "nginx": server.port}
            load = Load(ports, self.oracle, self.draw, 0.4)
            talk = Talk(self.oracle, pause=(1.0, 3.0))
            lag, overdue = Lag(), asyncio.create_task(talk.overdue())
            try:
                await talk.start(self._specs(load))
                if not await until(lambda: not talk.pending(), 60):
                    self.oracle.violation("not connected at first", str(talk.pending()[:10]))
                clients = [client for client in talk.clients if isinstance(client, PythonClient)]
                # Nothing that takes long: a process stays for what it has in hand.
                load.start(("direct", "shared"), [(short, 6), (burst, 3)])
                disturbed = Absences(clients, lag)
                await self._reload(disturbed)
                await load.stop()
                talk.quiet()
                if not await until(lambda: not talk.pending(), 40):
                    self.oracle.violation("not all clients are back", str(talk.pending()[:10]))
                if not await until(server.settled, 60):
                    self.oracle.violation("processes", str(server.children()))
                # Last, because polls that such clients leave behind are in hand for a while.
                alone = Absences(clients, lag)
                await self._baseline(clients, alone)
                self._judge(alone, disturbed)
            finally:
                overdue.cancel()
                lag.close()
                await load.stop()
                await talk.stop()
            status = await server.stop(45)
            if status != 0 or server.left():
                self.oracle.violation("exit", f"status {status}, left {server.left()}")
            for text in server.traces():
                self.oracle.violation("traceback in the log", text)
        self.oracle.conclude()

    def _specs(self, load: Load) -> list[Spec]:
        url = f"http://127.0.0.1:{self.server.port}"
        return [
            Spec(f"{mode}-{number}", "direct", mode, load.address(), url)
            for number in range(self.asked.clients)
            for mode in ("polling", "websocket")
        ]

    async def _baseline(self, clients: Sequence[PythonClient], found: Absences) -> None:
        """A slot's clients at a time leave and come back, by themselves."""
        for start in range(NUM):
            for client in clients[start::NUM]:
                client.again()
            await until(lambda: all(client.session for client in clients), 60)
        print(f"  baseline: {found}", flush=True)

    async def _reload(self, found: Absences) -> None:
        began = now()
        next_one = began
        while now() < began + self.asked.seconds:
            if now() >= next_one:
                next_one += self.asked.every
                self.oracle.note("HUP")
                self.oracle.asked_to_go()
                self.server.process.send_signal(signal.SIGHUP)
            self.processes.append(len(self.server.children()))
            await asyncio.sleep(SAMPLE)
        print(f"  reloads:  {found}", flush=True)

    def _judge(self, alone: Absences, found: Absences) -> None:
        # What this machine adds: by how much the slowest of the baseline is slower than is usual.
        noise = max(alone.all) - statistics.median(alone.all) if alone.all else 0.0
        for seconds, late in zip(
            found.seconds["polling"] + found.seconds["websocket"], found.late, strict=True
        ):
            if seconds > BACK_WITHIN + noise + late:
                self.oracle.violation("back too late", f"after {seconds:.2f} s")
        average = statistics.mean(self.processes) / NUM
        print(
            f"  noise {noise:.2f} s, this process late by {max(found.late, default=0):.2f} s; "
            f"{average:.2f} processes a slot on average, at most {max(self.processes)} in all"
        )
        if average > PROCESSES:
            self.oracle.violation("too many processes", f"{average:.2f} a slot on average")
        for name, counted in (("served", self.oracle.served), ("told", self.oracle.told)):
            print(f"  {name}: {', '.join(f'{key} {n}' for key, n in sorted(counted.items()))}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.deploy", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=EVERY, help="seconds between two HUPs")
    parser.add_argument("--clients", type=int, default=100, help="of each transport")
    parser.add_argument("--kind", default="eventlet", help=", ".join(KINDS))
    parser.add_argument("--drain-spread", type=float, default=1.0, help="the server's option")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    prepare(8192)
    folder = Path(tempfile.mkdtemp(prefix="sticky-deploy-"))
    print(
        f"{asked.kind}: HUP every {asked.every:g} s for {asked.seconds:g} s, {asked.clients} "
        f"clients of each transport, drain_spread {asked.drain_spread:g} s",
        flush=True,
    )
    deploy = Deploy(asked.kind, folder, asked)
    asyncio.run(deploy.run())
    bad = []
    for kind, texts in deploy.oracle.violations.items():
        bad += [f"{len(texts)} times: {kind}", *(f"  {text[:500]}" for text in texts[:3])]
    return verdict(bad, deploy.server.log_file, folder)


if __name__ == "__main__":
    sys.exit(main())
