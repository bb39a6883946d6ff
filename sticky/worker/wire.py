"""A connection of an ASGI app: reading while it is served, and writing without waiting.

The app's bytes go out at once, and what the client does not take yet is kept. Nothing is read that
nobody waits for: what a client sends meanwhile stays in the kernel, which lets it wait. The
registration is edge-triggered, so leaving it there costs no wake-up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..board import BODY_TIMEOUTS, NOT_BEGUN, REQUESTS, WRITE_TIMEOUTS
from ..channel import Address
from ..core import Head
from .boundary import _DONTWAIT as DONTWAIT
from .boundary import CLOSED, ENDED, READ_SIZE, SEND, SERVING, TAKEN, WATCH, Wire

if TYPE_CHECKING:
    from .asgi import AsgiService

log = logging.getLogger("sticky.worker")

_OUT = select.EPOLLOUT
HIGH = 65536
"""Bytes that are kept for a slow client before the app has to wait."""
LOW = 16384
"""It goes on when no more than these are left."""


class Exchange(Protocol):
    """What is served on a connection: a request, or a WebSocket."""

    def settle(self) -> None:
        """All tasks that began in this turn of the loop have had their first turn."""

    def arrived(self) -> None:
        """Something has arrived, or the client has closed its side."""

    def overdue(self) -> None:
        """What was waited for (``AsgiWire.read_by``) has not come."""

    def relieved(self) -> None:
        """The client has taken most of what was kept for it."""

    def gone(self) -> None:
        """The connection is closed."""


class AsgiWire(Wire):
    """One connection; see ``Wire``.

    Attributes:
        exchange: what is served on it now.
        out: what could not be sent yet; None: nothing.
        full: the app is to wait (``drain``) before it sends more.
    """

    __slots__ = (
        "_drains",
        "_fresh",
        "_over",
        "_read_due",
        "_reader",
        "_write_due",
        "_writes",
        "exchange",
        "full",
        "local",
        "out",
    )
    service: AsgiService

    def __init__(
        self,
        service: AsgiService,
        fd: int,
        address: Address,
        moves: int = 0,
        *,
        asks: bool = False,
    ) -> None:
        super().__init__(service, fd, address, moves, asks=asks)
        self.exchange: Exchange | None = None
        self.out: bytearray | None = None
        self.full = False
        self.local: tuple[str, int | None] | None = None
        self._fresh = True  # its first request is still to begin
        self._over = False  # the answer is complete, and has not left
        self._drains: list[asyncio.Future[None]] = []
        self._read_due = self._write_due = math.inf
        self._reader: Callable[[], object] | None = None
        self._writes = False  # the event loop itself waits until the client takes more

    # -- what is served -----------------------------------------------------------------------

    def serve(self, head: Head) -> None:
        service = self.service
        service.cells[REQUESTS] += 1
        if self._fresh:
            service.cells[NOT_BEGUN] += 1
        self.exchange = service.start(self, head)

    def begun(self) -> None:
        """The app has the request."""
        if self._fresh:
            self._fresh = False
            service = self.service
            service.cells[NOT_BEGUN] -= 1
            if service.link.paused:
                service.link.room()

    def complete(self) -> None:
        """The answer is complete: go on behind it, when all of it has left."""
        self.exchange = None
        self._read_due = math.inf
        if self.out is not None:
            self._over = True
            self.due = self._write_due
            return
        self.due = math.inf
        head = self.answered()
        if head is not None:
            self.serve(head)

    def upgrade(self) -> bytes:
        """It is no HTTP any more; what was read ahead."""
        ahead = self.take()
        self.http.end()
        self.http.buffer = b""
        return ahead

    def end(self) -> None:
        """Close when all has left, so that the client can read it."""
        self.read_with(None)
        self.http.stays = False
        self.state = SERVING
        self.complete()

    # -- what the hub says --------------------------------------------------------------------

    def ready(self, events: int) -> None:
        if events & _OUT and self.out is not None:
            self.send_more()
            if self.state == CLOSED or not events & ~_OUT:
                return
        if events & ENDED:
            self.ended = True
        self.pending = True
        if self.state == SERVING:
            if self.exchange is not None:
                self.exchange.arrived()
        else:
            self.look_again()

    def look_again(self) -> None:
        if self.state == SERVING:
            if self.exchange is not None and self.pending:
                self.exchange.arrived()
        else:
            super().look_again()

    def late(self, now: float) -> None:
        if self.state != SERVING and self.state != TAKEN:
            super().late(now)
        elif self._write_due <= now:
            self.service.count(WRITE_TIMEOUTS)
            self.close()
        elif self._read_due <= now:
            self._read_due = math.inf
            self._keep()
            if self.exchange is not None:
                self.exchange.overdue()
        else:
            self._keep()

    # -- reading ------------------------------------------------------------------------------

    def watch_quietly(self) -> None:
        """As ``watch``, but what has arrived before is no news."""
        if not self.registered and self.state != CLOSED:
            self.registered = True
            self.service.hub.register(self.fd, self, WATCH)

    def body(self) -> bytes:
        """What is there of the request's body. b"": nothing; more is announced by ``arrived``.

        Raises:
            Refused: it is malformed.
        """
        http = self.http
        data = http.body()
        while not data and not http.body_is_over and self._read_more():
            data = http.body()
        return data

    def _read_more(self) -> bool:
        if self.state != SERVING or (self.registered and not self.pending):
            return False
        try:
            data = self.sock.recv(READ_SIZE, DONTWAIT)
        except BlockingIOError:
            self.pending = False
            self.watch_quietly()
            return False
        except OSError as error:
            self.lost(error)
            return False
        if not data:
            self.lost()  # in mid-body: the rest will never come
            return False
        self.pending = self.ended or len(data) == READ_SIZE
        self.http.receive(data)
        return True

    def read_by(self, due: float) -> None:
        """Have the exchange told that it is late from then on; infinity: never."""
        self._read_due = due
        self._keep()

    def body_timed_out(self) -> None:
        """Count it."""
        self.service.count(BODY_TIMEOUTS)

    def _keep(self) -> None:
        due = min(self._read_due, self._write_due)
        if due < math.inf:
            self.service.hub.keep(self, due)
        else:
            self.due = due

    def read_with(self, reader: Callable[[], object] | None) -> None:
        """Have this called when something has arrived, by the event loop itself: what is not HTTP
        any more stays long and talks much, and the hub's epoll would be a second one to ask.

        Args:
            reader: None: nothing is waited for.
        """
        loop = self.service.loop
        self.unregister()
        if self._reader is not None:
            loop.remove_reader(self.fd)
        self._reader = reader
        if reader is not None:
            loop.add_reader(self.fd, reader)

    # -- writing ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send this, now or as soon as the client takes it."""
        out = self.out
        if out is None:
            try:
                sent = self.sock.send(data, SEND)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.lost(error)
                return
            if sent == len(data):
                return
            out = self.out = bytearray(memoryview(data)[sent:])
            self._await_room()
        else:
            out += data
        if len(out) > HIGH:
            self.full = True

    def send_more(self) -> None:
        """The client takes more of what is kept."""
        out = self.out
        if out is None:
            return
        try:
            sent = self.sock.send(out, SEND)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost(error)
            return
        if sent < len(out):
            del out[:sent]
            self._write_due = time.monotonic() + self.service.options.write_timeout
            self._keep()
            if self.full and len(out) <= LOW:
                self._relieve()
            return
        self.out = None
        self._room_is_there()
        self._relieve()
        if self._over:
            self._over = False
            self.complete()

    def _await_room(self) -> None:
        service = self.service
        if self.state == TAKEN:
            self._writes = True
            service.loop.add_writer(self.fd, self.send_more)
        elif self.registered:
            service.hub.modify(self.fd, WATCH | _OUT)
        else:
            self.registered = True
            service.hub.register(self.fd, self, WATCH | _OUT)
        self._write_due = time.monotonic() + service.options.write_timeout
        self._keep()

    def _room_is_there(self) -> None:
        if self._writes:
            self._writes = False
            self.service.loop.remove_writer(self.fd)
        elif self.registered:
            self.service.hub.modify(self.fd, WATCH)
        self._write_due = math.inf
        self._keep()

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was sent, or is gone."""
        if not self.full:
            return
        waiter = self.service.loop.create_future()
        self._drains.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._drains:
                self._drains.remove(waiter)

    def _relieve(self) -> None:
        self.full = False
        waiters, self._drains = self._drains, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.exchange is not None:
            self.exchange.relieved()

    # -- how it ends --------------------------------------------------------------------------

    def close(self) -> None:
        if self.state == CLOSED:
            return
        if self._reader is not None:
            self.read_with(None)
        if self._writes:
            self._writes = False
            self.service.loop.remove_writer(self.fd)
        self.out = None
        if self.exchange is not None:
            self.begun()
        super().close()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.gone()
        self._relieve()
