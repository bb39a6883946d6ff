"""An HTTP client of our own, for asyncio: it does what it is told, sends nothing twice, and says
how far it came."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

SECONDS = 60.0
"""For any answer; longer than anything a server is allowed to take."""
FAILURES = (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError)
"""What it looks like when an answer does not come, or is none."""


class Lost(Exception):
    """There was no answer, or only a part of one.

    Attributes:
        started: whether a byte of an answer has come.
    """

    def __init__(self, why: str, *, started: bool) -> None:
        super().__init__(why)
        self.started = started


@dataclass
class Reply:
    status: int
    fields: dict[str, str]
    body: bytes = b""
    closes: bool = False
    arrived: list[float] = field(default_factory=list)  # when each chunk of the body came


async def still(seconds: float) -> None:
    """Wait, also for nothing: other tasks get their turn."""
    await asyncio.sleep(seconds)


class Line:
    """One connection. ``pace`` is what is awaited before each read of an answer."""

    def __init__(self, port: int, *, buffer: int | None = None) -> None:
        self.port = port
        self.buffer = buffer
        self.asked = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def open(self) -> bool:
        return self._writer is not None

    async def connect(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        if self.buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            self._reader, self._writer = await asyncio.open_connection(
                sock=sock, limit=self.buffer or 65536
            )
        except OSError:
            sock.close()
            raise

    def ended(self) -> bool:
        """Whether the other side has closed it, between two requests."""
        assert self._reader is not None
        return self._reader.at_eof() or self._reader.exception() is not None

    def close(self, *, reset: bool = False) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):
                if reset:
                    self._writer.transport.abort()
                else:
                    self._writer.close()
        self._reader = self._writer = None

    async def ask(
        self,
        head: bytes,
        body: AsyncIterator[bytes] | None = None,
        *,
        pace: Callable[[], float] | None = None,
        method: str = "GET",
    ) -> Reply:
        """Send a request, read its answer.

        Raises:
            Lost: no answer, or not all of it.
        """
        self._started = False
        sending: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(SECONDS):
                if not self.open:
                    await self.connect()
                assert self._writer is not None
                self.asked += 1
                self._writer.write(head)
                if body is not None:
                    sending = asyncio.create_task(self._send(body))
                reply = await self._read(pace, method)
                if sending is not None and not reply.closes:
                    await sending
        except FAILURES as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}", started=self._started) from error
        except asyncio.CancelledError:
            self.close(reset=True)
            raise
        finally:
            if sending is not None:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await sending
        if reply.closes:
            self.close()
        return reply

    async def ask_all(self, data: bytes, methods: Sequence[str]) -> AsyncIterator[Reply]:
        """Send several requests at once; the answers, as they come. After one that closes the
        connection there are no more.

        Raises:
            Lost: the next answer is not there, or not all of it.
        """
        self._started = False
        try:
            async with asyncio.timeout(SECONDS):
                if not self.open:
                    await self.connect()
                assert self._writer is not None
                self._writer.write(data)
                for method in methods:
                    self._started = False
                    reply = await self._read(None, method)
                    self.asked += 1
                    yield reply
                    if reply.closes:
                        self.close()
                        return
        except FAILURES as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}", started=self._started) from error

    async def send(self, data: bytes) -> None:
        """Bytes as they are, for those who do not wait for an answer."""
        if not self.open:
            await self.connect()
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def _send(self, body: AsyncIterator[bytes]) -> None:
        writer = self._writer
        assert writer is not None
        async for piece in body:
            if writer.is_closing():
                return
            writer.write(piece)
            # A server may answer before it has read everything: then its answer is what counts.
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    async def _read(self, pace: Callable[[], float] | None, method: str) -> Reply:
        reader = self._reader
        assert reader is not None
        raw = b""
        while not raw or raw.startswith(b"HTTP/1.1 1"):
            first = await reader.readexactly(1)
            self._started = True
            raw = first + await reader.readuntil(b"\r\n\r\n")
        first_line, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        fields = {}
        for line in lines:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        reply = Reply(int(first_line.split(" ", 2)[1]), fields)
        reply.closes = fields.get("connection", "").lower() == "close"
        if method == "HEAD" or reply.status in (204, 304):
            return reply
        if fields.get("transfer-encoding") == "chunked":
            await self._chunks(reader, reply)
        elif "content-length" in fields:
            left = int(fields["content-length"])
            pieces = []
            while left:
                if pace is not None:
                    await still(pace())
                piece = await reader.read(min(left, 65536))
                if not piece:
                    raise EOFError(f"{left} bytes of the body are missing")
                pieces.append(piece)
                left -= len(piece)
            reply.body = b"".join(pieces)
        else:
            reply.body = await reader.read()
            reply.closes = True
        return reply

    @staticmethod
    async def _chunks(reader: asyncio.StreamReader, reply: Reply) -> None:
        pieces = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
            reply.arrived.append(asyncio.get_running_loop().time())
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        reply.body = b"".join(pieces)
