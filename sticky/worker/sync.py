"""Connection events, and with the option ``sync`` the wait until the app releases a connection.

Handlers are called before the app sees any byte of a connection. They may take their time: each
runs where the worker class runs the app (a green thread, a thread, a task), and from wherever an
event is emitted, the connection goes on in the worker's own loop.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..channel import Address
from .kernel import EPOLLET, EPOLLRDHUP

if TYPE_CHECKING:
    from .boundary import Wire
    from .service import Service

_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_WATCH = EPOLLRDHUP | EPOLLET


class Connection:
    """A connection that this process has just adopted, as handlers see it.

    Attributes:
        address: the TCP peer's, as ``accept()`` gives it; "" for a unix socket's.
        key: the bytes that identify its client, b"" while they are not known: what it was routed
            by (``sticky.explain`` says more).
        head: what is there of its request, without anything being consumed. The whole head with
            ``proxy``; possibly less, or nothing yet, without.
        came: how it came: "accepted", or "moved" from another worker.
        released: whether its event was emitted (option ``sync``).
    """

    def __init__(self, address: Address, key: bytes, head: bytes, came: str) -> None:
        self.address = address
        self.key = key
        self.head = head
        self.came = came
        self.released = False
        self._release: Callable[[], object] | None = None
        self._event: str | None = None

    def hold(self, event: str, release: Callable[[], object] | None) -> None:
        """Have ``release`` called when this event is emitted, once; None: no longer."""
        self._event, self._release = event, release

    def emit(self, event: str) -> bool:
        """Release the connection: the app may have its first byte now. From any thread.

        Args:
            event: the one that the option ``sync`` names; others have no effect.

        Returns:
            Whether this released it: it does so once, and not after its time is over.
        """
        if event != self._event or self._release is None:
            return False
        release, self._release = self._release, None
        self.released = True
        release()
        return True

    def __repr__(self) -> str:
        return f"<sticky connection of {self.key!r} from {self.address!r}, {self.came}>"


Handler = Callable[[Connection], object]


class Sync:
    """What comes before a connection's first request, where the app has asked for it.

    Args:
        service: whose connections are meant. It calls the handlers (``introduce``).
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._event = service.options.sync

    @property
    def wanted(self) -> bool:
        """Whether the app wants to know of a connection before it is served."""
        return self._event is not None or bool(self._service.worker.handlers)

    def hold(self, wire: Wire) -> None:
        """The handlers' turn, before the app has any byte of it."""
        service = self._service
        wire.hold()
        head = wire.http.unread
        with contextlib.suppress(OSError):  # its client may have left, which is noticed later
            head += wire.sock.recv(service.max_head_size, _PEEK)
        came = "moved" if wire.moves else "accepted"
        key = service.placing.key_of(head, wire.peer)
        wire.connection = Connection(wire.address, key, head, came)
        if self._event is not None:
            wire.connection.hold(self._event, lambda: service.hub.call(lambda: self._go(wire)))
        service.introduce(wire, wire.connection)

    def introduced(self, wire: Wire, *, failed: bool = False) -> None:
        """The handlers have had their turn (in the loop's thread)."""
        connection = wire.connection
        if not wire.held or connection is None:
            return
        if failed:
            self._let_go(wire)
            wire.refuse(500)
        elif self._event is None:
            self._go(wire)
        elif not connection.released:
            # Its first bytes are there and are not read: only its end can be waited for.
            wire.watch(_WATCH)
            seconds = self._service.options.sync_timeout
            self._service.hub.keep(wire, time.monotonic() + seconds)

    def over(self, wire: Wire, cell: int) -> None:
        """It was not released in time, or its client has left, which is counted there."""
        self._service.count(cell)
        self._let_go(wire)
        wire.refuse(503)

    def _go(self, wire: Wire) -> None:
        """Serve it (in the loop's thread)."""
        if wire.held:
            self._let_go(wire)
            wire.go_on()

    def _let_go(self, wire: Wire) -> None:
        """It is held no longer, and cannot be released any more."""
        if wire.connection is not None and self._event is not None:
            wire.connection.hold(self._event, None)
        wire.connection = None
        wire.due = math.inf
        wire.release()
