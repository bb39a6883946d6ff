"""One worker class: start everything, disturb it, and look at what is left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .disturbances import Disturber, scale
from .load import Load
from .nginx import nginx
from .oracle import Oracle, now
from .server import Server, Size, until
from .talk import TRANSPORTS, Spec, Talk

NUM = 4
SEED = "0123456789abcdef"
GRACEFUL = 10.0
"""Seconds; longer than anything that a client of this load asks for."""
OPTIONS = ["--proxy", "--session", "sid", "--seed", SEED, "--drain-spread", "1"]
OPTIONS += ["--graceful-timeout", f"{GRACEFUL:g}"]
WARM = 2.0
"""Seconds of load before the first quiet point: what is made once is not growth."""
GROWTH = 8 << 20
"""Bytes that the master may have grown by."""
PATIENCE = 40.0
"""Seconds in which everything comes to rest, and everyone is connected."""


@dataclass
class Result:
    """What a round has found."""

    kind: str
    oracle: Oracle
    log: Path
    done: Counter[str] = field(default_factory=Counter)
    sizes: list[Size] = field(default_factory=list)
    seconds: float = 0.0


class Game:
    """A round on one worker class.

    Args:
        kind: its name.
        names: of the disturbances.
        seconds: for which the server is disturbed.
    """

    def __init__(
        self, kind: str, folder: Path, names: Sequence[str], seconds: float, seed: int, size: float
    ) -> None:
        self.draw = random.Random(f"{seed} {kind}")
        self.kind = kind
        self.folder = folder
        self.seconds = seconds
        self.size = size
        self.server = Server(kind, folder, OPTIONS, num=NUM, ready=self._ready, killed=self._killed)
        self.oracle = Oracle(self.server.record, SEED, NUM)
        self.disturber = Disturber(self.server, self.oracle, self.draw, list(names))
        self.result = Result(kind, self.oracle, self.server.log_file, self.disturber.done)

    def _ready(self, slot: int, pid: int) -> None:
        self.oracle.note(f"worker {slot} ready (pid {pid})")
        self.oracle.ready(slot, pid)

    def _killed(self, text: str) -> None:
        """Nothing that a client asks for takes so long."""
        self.oracle.violation("a worker hangs", text)

    async def play(self) -> Result:
        """All of it."""
        began = now()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.server)
            front = await stack.enter_async_context(
                nginx(self.folder / f"nginx-{self.kind}", self.server.port)
            )
            ports = {"direct": self.server.port, "nginx": front}
            load = Load(ports, self.oracle, self.draw, self.size)
            self.disturber.leave, self.disturber.slow = load.leave, load.slow
            talk = Talk(self.oracle)
            overdue = asyncio.create_task(talk.overdue())
            try:
                await talk.start(*self._specs(ports, load))
                await self._disturb(load, talk)
                await self._end(talk)
            finally:
                overdue.cancel()
                await load.stop()
                await talk.stop()
        self.oracle.conclude()
        self.result.seconds = now() - began
        return self.result

    def _specs(self, ports: dict[str, int], load: Load) -> tuple[list[Spec], list[list[Spec]]]:
        def specs(language: str) -> list[Spec]:
            return [
                Spec(
                    f"{language}-{via}-{mode}",
                    via,
                    mode,
                    load.address(),
                    f"http://127.0.0.1:{ports[via]}",
                )
                for via in ("direct", "nginx")
                for mode in TRANSPORTS
            ]

        return specs("py"), [specs("js")]

    async def _disturb(self, load: Load, talk: Talk) -> None:
        load.start()
        await asyncio.sleep(WARM)
        await self._rest(load, talk, "at first")
        load.start()
        talk.quiet(False)
        self.oracle.note("the disturbances begin")
        await self.disturber.run(now() + self.seconds)
        self.oracle.note("no more disturbances")
        while self.server.num != NUM:
            await scale(self.disturber, self.server.num + (1 if self.server.num < NUM else -1))
        # Whatever was lost is back, and everyone has got an answer to something new.
        await asyncio.sleep(WARM)
        await self._rest(load, talk, "at last")
        first, last = self.result.sizes
        if last.rss > first.rss + GROWTH:
            self.oracle.violation("memory", f"the master had {first.rss}, has {last.rss} bytes")

    async def _rest(self, load: Load, talk: Talk, when: str) -> None:
        """Everyone is connected and waits for nothing; only now sizes can be compared."""
        await load.stop()
        talk.quiet()
        if not await until(lambda: not talk.pending(), PATIENCE):
            self.oracle.violation("not all clients are back", f"{when}: {talk.pending()}")
        if not await until(self.server.settled, PATIENCE):
            self.oracle.violation(
                "processes",
                f"{when} there are {self.server.children()}, ready are {self.server.current}",
            )
        wanted = self.result.sizes[0].fds if self.result.sizes else 0
        # Refused connections linger for two seconds, and a first look may see one of those.
        if not await until(lambda: not wanted or self.server.size().fds <= wanted, 10):
            self.oracle.violation(
                "descriptors", f"the master had {wanted}, has {self.server.size().fds}"
            )
        self.result.sizes.append(self.server.size())
        self.oracle.note(f"quiet {when}: {self.result.sizes[-1]}")

    async def _end(self, talk: Talk) -> None:
        """Stop, with clients who go on."""
        talk.quiet(False)
        self.oracle.asked_to_go()
        self.oracle.note("TERM to the master: the end")
        status = await self.server.stop(GRACEFUL + 15)
        if status != 0:
            self.oracle.violation("exit", f"status {status} after TERM")
        if not await until(lambda: not self.server.left(), 5):
            self.oracle.violation("left behind", str(self.server.left()))
        for text in self.server.traces():
            self.oracle.violation("traceback in the log", text)
