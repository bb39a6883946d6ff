"""What is done to a server while it serves: one table, so that each can be chosen alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .oracle import Oracle, now
from .server import Child, Server, exists, until

LEAST, MOST = 2, 6
"""Workers, when their number changes."""


class Disturber:
    """Disturbs one server, as the seed has it.

    Args:
        server: the one.
        oracle: to be told.
        draw: what chooses.
        names: of the disturbances to choose from.
    """

    def __init__(
        self, server: Server, oracle: Oracle, draw: random.Random, names: list[str]
    ) -> None:
        self.server = server
        self.oracle = oracle
        self.draw = draw
        self.names = names
        self.done: Counter[str] = Counter()
        self.leave: Callable[[], Awaitable[None]] | None = None
        """What a client does that leaves in mid-request."""
        self.slow: Callable[[], Awaitable[None]] | None = None
        """And one that reads slowly."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: set[int] = set()
        self.leaving: set[int] = set()
        """Processes that were asked to be replaced."""
        self._scaling = False

    async def run(self, until_then: float) -> None:
        """Go on until this time, one thing every few hundred milliseconds."""
        weights = [DISTURBANCES[name].weight for name in self.names]
        while now() < until_then:
            await asyncio.sleep(self.draw.uniform(0.2, 0.8))
            if not self.names:
                continue
            (name,) = self.draw.choices(self.names, weights)
            self.done[name] += 1
            self.beside(DISTURBANCES[name].act(self))
        await self.calm()

    def beside(self, action: Awaitable[None]) -> None:
        task = asyncio.ensure_future(action)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def calm(self) -> None:
        """Wait until what was begun has ended."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def signal(self, pid: int, number: signal.Signals, why: str) -> bool:
        self.oracle.note(f"{number.name} to {why}")
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            self.oracle.note("  which has ended")
            return False
        return True

    def victim(self, *, ready: bool = False) -> Child | None:
        """A worker process, in whatever state; ready: the one that serves its slot."""
        children = self.server.children()
        if ready:
            children = [it for it in children if self.server.current.get(it.slot) == it.pid]
        return self.draw.choice(children) if children else None

    def describe(self, child: Child) -> str:
        now_ready = self.server.current.get(child.slot)
        state = "ready" if now_ready == child.pid else "starting or draining"
        return f"worker {child.slot}, pid {child.pid}, {state}"


async def _kill(self: Disturber) -> None:
    if (child := self.victim()) is None:
        return
    self.server.look()
    # One that starts while its slot has no other process is the one its slot waits for.
    # One that was asked to leave has ten seconds to do so, and counts for nothing behind them.
    others = [
        it
        for it in self.server.children()
        if it.slot == child.slot and it.pid != child.pid and it.pid not in self.leaving
    ]
    current = self.server.current.get(child.slot) == child.pid or not others
    kill = self.oracle.killing(child.slot, child.pid, current=current)
    if self.signal(child.pid, signal.SIGKILL, self.describe(child)):
        await until(lambda: not exists(child.pid), 20)
    kill.ended = now()
    self.oracle.name(kill)


async def _stand(self: Disturber) -> None:
    child = self.victim()
    if child is None or child.pid in self._stopped:
        return
    self._stopped.add(child.pid)
    try:
        if self.signal(child.pid, signal.SIGSTOP, self.describe(child)):
            await asyncio.sleep(self.draw.uniform(0.05, 1.0))
            self.signal(child.pid, signal.SIGCONT, self.describe(child))
    finally:
        self._stopped.discard(child.pid)


async def _hup(self: Disturber) -> None:
    self.oracle.asked_to_go()
    self.signal(self.server.pid, signal.SIGHUP, "the master")


async def _burst(self: Disturber) -> None:
    for _ in range(self.draw.randrange(2, 9)):
        await _hup(self)
        await asyncio.sleep(self.draw.uniform(0, 0.1))


async def _term(self: Disturber) -> None:
    if child := self.victim(ready=True):
        self.oracle.asked_to_go()
        self.leaving.add(child.pid)
        self.signal(child.pid, signal.SIGTERM, self.describe(child))


async def _scale(self: Disturber) -> None:
    if self._scaling:  # one change at a time, so that it is known what n may be
        return
    self._scaling = True
    try:
        up = self.server.num == LEAST or (self.server.num < MOST and self.draw.random() < 0.5)
        await scale(self, self.server.num + (1 if up else -1))
    finally:
        self._scaling = False


async def scale(self: Disturber, num: int) -> None:
    """One worker more or less, and wait until it is so."""
    up = num > self.server.num
    self.oracle.scaling(num)
    self.oracle.asked_to_go()
    if self.signal(self.server.pid, signal.SIGTTIN if up else signal.SIGTTOU, "the master"):
        self.server.num = num
        # More count when all are ready, which is not when the last one is: another may be away.
        if not await until(lambda: self.server.scaled == num, 60):
            self.oracle.violation("not scaled", f"to {num} within 60 s: {self.server.children()}")
        self.oracle.scaled()


async def _upgrade(self: Disturber) -> None:
    self.oracle.asked_to_go()
    self.signal(self.server.pid, signal.SIGUSR2, "the master")


async def _usr1(self: Disturber) -> None:
    self.signal(self.server.pid, signal.SIGUSR1, "the master")


async def _leave(self: Disturber) -> None:
    if self.leave:
        with contextlib.suppress(OSError):
            await self.leave()


async def _slow(self: Disturber) -> None:
    if self.slow:
        await self.slow()


class Disturbance(NamedTuple):
    act: Callable[[Disturber], Awaitable[None]]
    weight: float
    what: str


DISTURBANCES = {
    "kill": Disturbance(_kill, 2, "kill -9 of a worker process, in whatever state"),
    "stand": Disturbance(_stand, 2, "SIGSTOP of one, and SIGCONT after up to a second"),
    "hup": Disturbance(_hup, 1.5, "HUP to the master"),
    "burst": Disturbance(_burst, 0.5, "two to eight of them"),
    "term": Disturbance(_term, 1, "TERM to a worker that serves"),
    "scale": Disturbance(_scale, 1, "TTIN or TTOU to the master"),
    "upgrade": Disturbance(_upgrade, 0.5, "USR2 to the master"),
    "usr1": Disturbance(_usr1, 1, "USR1 to the master"),
    "leave": Disturbance(_leave, 3, "a client leaves in mid-request"),
    "slow": Disturbance(_slow, 1, "a client reads slowly"),
}


def chosen(only: str) -> list[str]:
    """The names that are asked for, or all that the server can stand.

    Raises:
        ValueError: there is no such disturbance.
    """
    names = [name for name in only.split(",") if name]
    for name in names:
        if name not in DISTURBANCES and name != "none":
            raise ValueError(f"no disturbance {name!r}: {', '.join(DISTURBANCES)}, or none")
    if names == ["none"]:
        return []
    return names or list(DISTURBANCES)
