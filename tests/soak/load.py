"""Clients of plain HTTP: each a task that asks, waits a moment, and asks again."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from .line import Line, Lost, Reply
from .oracle import Attempt, Oracle, now

KEEP_ALIVE = 75.0


def head(method: str, target: str, address: str, *fields: str, close: bool = False) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: soak", f"X-Forwarded-For: {address}", *fields]
    lines += ["Connection: close"] * close
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Client:
    """One connection, or one after the other, and what is asked on them.

    Args:
        addresses: of the clients whose requests it carries; more than one are a proxy's.
    """

    def __init__(self, load: Load, via: str, addresses: list[str], draw: random.Random) -> None:
        self.load = load
        self.via = via
        self.addresses = addresses
        self.draw = draw
        self.line = Line(load.ports["nginx" if via == "nginx" else "direct"])
        self._last = (0.0, "", "nobody")  # when, for whom and by whom the last was answered

    async def ask(
        self,
        what: str,
        method: str = "GET",
        *,
        body: bytes | None = None,
        chunked: bool = False,
        slow: bool = False,
        keep: bool = True,
        query: str = "",
        size: int = 0,
        pace: Callable[[], float] | None = None,
    ) -> None:
        """A request, and what the oracle says of its answer."""
        oracle, address = self.load.oracle, self.draw.choice(self.addresses)
        await self._look()
        token = self.load.token()
        attempt = Attempt(token, what, self.via, address, method, size=size or len(body or b""))
        attempt.digest = hashlib.sha256(body or b"").hexdigest()
        attempt.kept = self.line.open
        fields = []
        if body is not None:
            fields = ["Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"]
        target = f"/{what}?token={token}{query}"
        raw = head(method, target, address, *fields, close=not keep)
        pieces = None if body is None else self._pieces(body, chunked=chunked, slow=slow)
        attempt.sent = now()
        try:
            reply = await self.line.ask(raw, pieces, pace=pace, method=method)
        except Lost as lost:
            oracle.failed(attempt, str(lost))
            self._last = (now(), address, "nobody")
            return
        self._last = (now(), address, _by(reply))
        oracle.answered(attempt, reply)

    async def burst(self, count: int) -> None:
        """Several requests at once, each perhaps of another client."""
        oracle = self.load.oracle
        await self._look()
        attempts, data = [], b""
        for number in range(count):
            token, address = self.load.token(), self.draw.choice(self.addresses)
            body = self.draw.randbytes(self.draw.choice([0, 10, 5000]))
            attempt = Attempt(token, "burst", self.via, address, "POST", size=len(body))
            attempt.digest = hashlib.sha256(body).hexdigest()
            attempt.kept = self.line.open or number > 0
            length = f"Content-Length: {len(body)}"
            data += head("POST", f"/burst?token={token}", address, length) + body
            attempts.append(attempt)
        try:
            async for reply in self.line.ask_all(data, ["POST"] * count):
                attempt = attempts.pop(0)
                self._last = (now(), attempt.address, _by(reply))
                oracle.answered(attempt, reply)
                if attempts:
                    attempts[0].turn = now()
        except Lost as lost:
            # The first of them may have been begun; those behind it wait on a connection that is
            # kept by whoever has it.
            for attempt in attempts:
                oracle.failed(attempt, str(lost))
        else:
            for attempt in attempts:
                oracle.dropped(attempt)

    async def _look(self) -> None:
        """See what the other side has done meanwhile."""
        await asyncio.sleep(0)
        if self.line.open and self.line.ended():
            self._closed()

    def _closed(self) -> None:
        self.line.close()
        since, address, by = self._last
        if self.via != "nginx" and now() - since < KEEP_ALIVE - 1:
            self.load.oracle.closed_at_rest(self.via, address, since, by)

    async def _pieces(self, body: bytes, *, chunked: bool, slow: bool) -> AsyncIterator[bytes]:
        size = max(1, len(body) // self.draw.randrange(3, 12)) if slow else len(body)
        for start in range(0, len(body), max(size, 1)):
            piece = body[start : start + size]
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
            if slow:
                await asyncio.sleep(self.draw.uniform(0.01, 0.4))
        if chunked:
            yield b"0\r\n\r\n"


def _by(reply: Reply) -> str:
    return f"{reply.fields.get('x-slot')}/{reply.fields.get('x-boot')}"


# -- what clients do -------------------------------------------------------------------------------


async def short(client: Client) -> None:
    """A few short requests, on a new connection each or on one that is kept."""
    keep = client.draw.random() < 0.7
    for _ in range(client.draw.randrange(1, 6)):
        method = client.draw.choice(["GET", "GET", "POST", "HEAD"])
        size = client.draw.choice([0, 1, 100, 20_000])
        body = client.draw.randbytes(size) if method == "POST" else None
        await client.ask("short", method, body=body, keep=keep)
        await asyncio.sleep(client.draw.uniform(0, 0.15))


async def poll(client: Client) -> None:
    """A long poll."""
    await client.ask("poll", query=f"&seconds={client.draw.uniform(0.2, 3):.2f}")


async def stream(client: Client) -> None:
    """An answer that comes line by line."""
    blocks = client.draw.randrange(2, 20)
    seconds = client.draw.uniform(0.01, 0.2)
    await client.ask("stream", query=f"&blocks={blocks}&seconds={seconds:.3f}", size=blocks)


async def upload(client: Client) -> None:
    """A body that comes piece by piece."""
    body = client.draw.randbytes(client.draw.choice([10, 3000, 100_000]))
    chunked = client.draw.random() < 0.5
    await client.ask("upload", "POST", body=body, chunked=chunked, slow=client.draw.random() < 0.7)


async def burst(client: Client) -> None:
    """Requests that do not wait for each other's answers; a proxy never sends such."""
    await client.burst(client.draw.randrange(2, 6))


Habit = Callable[[Client], Awaitable[None]]
HABITS: list[tuple[Habit, int]] = [
    (short, 6),
    (poll, 2),
    (stream, 2),
    (upload, 3),
    (burst, 2),
]
"""What one does, and how many do it, of each kind of connection."""


class Load:
    """All of them.

    Args:
        ports: of the server ("direct") and of nginx before it.
        scale: how many of each; 1 is about forty.
    """

    def __init__(
        self, ports: dict[str, int], oracle: Oracle, draw: random.Random, scale: float = 1.0
    ) -> None:
        self.ports = ports
        self.oracle = oracle
        self._draw = draw
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._scale = scale

    def token(self) -> str:
        return f"t{next(self._numbers)}"

    def address(self) -> str:
        """A client of its own."""
        draw = self._draw
        if draw.random() < 0.3:
            return f"2001:db8:{draw.randrange(1, 65536):x}::{draw.randrange(1, 65536):x}"
        return f"{draw.randrange(1, 224)}.{draw.randrange(256)}.{draw.randrange(256)}.7"

    def client(self, via: str) -> Client:
        addresses = [self.address() for _ in range(8 if via == "shared" else 1)]
        return Client(self, via, addresses, random.Random(self._draw.random()))

    def start(
        self,
        vias: Sequence[str] = ("direct", "shared", "nginx"),
        habits: Sequence[tuple[Habit, int]] = (),
    ) -> None:
        self._stop.clear()
        for habit, count in habits or HABITS:
            for via in vias:
                for _ in range(max(1, round(count * self._scale))):
                    self._tasks.append(asyncio.create_task(self._go_on(habit, self.client(via))))

    async def _go_on(self, habit: Habit, client: Client) -> None:
        try:
            while not self._stop.is_set():
                await habit(client)
                await asyncio.sleep(client.draw.uniform(0.05, 0.6))
        finally:
            client.line.close()

    async def stop(self) -> None:
        """Let each one end what it has begun."""
        self._stop.set()
        for task in self._tasks:
            await task
        self._tasks.clear()

    # -- disturbances of clients -------------------------------------------------------------------

    async def leave(self) -> None:
        """A client sends a part of a request, or all of it, and goes away."""
        draw, address = self._draw, self.address()
        line = Line(self.ports[draw.choice(["direct", "nginx"])])
        target = draw.choice(["/poll?seconds=1", "/stream?blocks=20&seconds=0.1", "/short?"])
        data = head("POST", f"{target}&token=left", address, "Content-Length: 1000") + bytes(1000)
        self.oracle.note(f"a client of {target} leaves")
        try:
            await line.send(data[: draw.choice([5, 40, len(data) - 500, len(data), len(data)])])
            await asyncio.sleep(draw.uniform(0, 0.3))
        except OSError:
            pass
        finally:
            line.close(reset=draw.random() < 0.5)

    async def slow(self) -> None:
        """One reads a large answer slowly, with little room for it."""
        draw = random.Random(self._draw.random())
        client = self.client(draw.choice(["direct", "nginx"]))
        client.line.buffer = 8192
        size = draw.choice([100_000, 1_000_000])
        steps = size / 8192
        try:
            await client.ask(
                "blob", query=f"&size={size}", size=size, keep=False, pace=lambda: 2.0 / steps
            )
        finally:
            client.line.close()
