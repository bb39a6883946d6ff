"""A client's socket between two requests: the same for every worker class.

A connection is adopted, its head is awaited, it is looked at, and then it is served here, handed
back to the master, or refused; behind the answer it rests until its next request, or ends. All of
that happens in the worker's own loop, without a thread or a task for it; only to serve a request
the worker class starts one (``serve``), and says ``answered`` behind it.

The socket is registered with the hub, edge-triggered, only when it has to wait for its client for
the first time: one that lives for one request never is, and further requests cost no system call.
"""

from __future__ import annotations

import abc
import errno
import logging
import math
import socket
import time
from typing import TYPE_CHECKING

from ..board import (
    CLIENT_LEFT,
    HEAD_TIMEOUTS,
    KEEP_ALIVE_ENDED,
    LEFT_UNRELEASED,
    LOOKED,
    REFUSED_HEADS,
    SYNC_TIMEOUTS,
)
from ..board import RESTING as AT_REST
from ..channel import Address, socket_family
from ..core import Head
from ..rules import MISSING
from .http1 import Http1, Refused
from .kernel import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLRDHUP, Socket
from .placing import UNHELD
from .sync import Connection

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger("sticky.worker")

WATCH = EPOLLIN | EPOLLRDHUP | EPOLLET
ENDED = EPOLLRDHUP | EPOLLHUP | EPOLLERR
READ_SIZE = 65536
_DONTWAIT = int(socket.MSG_DONTWAIT)
SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_STREAM = int(socket.SOCK_STREAM)
_MOST_READS = 16
"""Reads of what nobody wants, before everybody else gets their turn."""
LINGER = 2.0
"""Seconds for a client to read an answer that ends its connection, while it may still send: closing
with bytes unread would reset the connection, and the answer with it (RFC 9112, 9.6)."""

# Where a connection is.
NEW, HELD, HEAD, SERVING, UNREAD, RESTING, LEAVING, LINGERING, TAKEN, CLOSED = range(10)


class Wire(abc.ABC):
    """One connection in this process. It is in the hands of the worker's loop, or while it is
    SERVING in those of whoever serves it.

    Args:
        service: what serves it.
        fd: its socket, which is this object's from now on.
        address: the client's, as ``accept()`` gives it; "" for a unix socket's.
        moves: how often it has moved for its first request.
        asks: look at its first request, too.
    """

    __slots__ = (
        "address",
        "asks",
        "connection",
        "due",
        "ended",
        "fd",
        "first",
        "http",
        "moves",
        "peer",
        "pending",
        "registered",
        "service",
        "slice",
        "sock",
        "state",
    )

    def __init__(
        self, service: Service, fd: int, address: Address, moves: int = 0, *, asks: bool = False
    ) -> None:
        self.service = service
        self.fd = fd
        family = socket_family(address)
        self.sock = Socket(family, _STREAM, 0, fd)
        self.address = address
        self.peer: str = address[0] if address else ""
        self.moves = moves
        self.asks = asks
        self.first = True
        self.state = NEW
        self.http = Http1(service.max_head_size)
        self.registered = False
        self.pending = False  # something has arrived since the last read
        self.ended = False  # the client has closed its side, behind what is still to be read
        self.due = math.inf
        self.slice = 0
        self.connection: Connection | None = None

    # -- what a worker class provides ---------------------------------------------------------

    @abc.abstractmethod
    def serve(self, head: Head) -> None:
        """Serve this request; say ``answered`` behind it."""

    # -- how it begins ------------------------------------------------------------------------

    def begin(self, prefix: bytes) -> None:
        """It has just been adopted.

        Args:
            prefix: what was read from it before.
        """
        if prefix:
            self.http.receive(prefix)
        if self.service.sync.wanted:
            self.service.sync.hold(self)
        else:
            self.go_on()

    def begin_at_rest(self) -> None:
        """It comes from another process, at a boundary: it is no news to anybody."""
        self.first = False
        self.rest()

    def go_on(self) -> None:
        """Serve the next request, once it is there and if it is to be served here."""
        if self.state == RESTING:
            self.service.count(AT_REST, -1)
            self.state = SERVING  # or on its way there
        head = self.next()
        if head is not None:
            self.serve(head)

    # -- before its first request -------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether it waits for the app (see ``sync``)."""
        return self.state == HELD

    def hold(self) -> None:
        """It waits for the app, and nothing of it is read."""
        self.state = HELD

    def release(self) -> None:
        """It waits no longer."""
        self.unregister()
        self.state = NEW

    # -- between two requests -----------------------------------------------------------------

    def next(self) -> Head | None:
        """The next request, if it is there and to be served here: it is in hand now. Otherwise what
        is to be done with the connection is done, or waited for."""
        http = self.http
        try:
            head = http.next_head()
            while head is None:
                if not self._read():
                    return None
                head = http.next_head()
        except Refused as refused:
            self.service.malformed(self, refused)
            self.refuse(refused.status)
            return None
        if (self.service.looks or self.asks) and not self._is_ours():
            return None
        if head.method == "CONNECT":  # nothing behind this is a proxy (RFC 9110, 9.3.6)
            self.refuse(501)
            return None
        http.begin(head)
        self.asks = self.first = False
        self.moves = 0
        self.due = math.inf
        self.state = SERVING
        if self.service.closing or not self.service.keeps:
            http.stays = False
        return head

    def _is_ours(self) -> bool:
        """Look at the next request; whether it is this worker's to serve. If it is not, the
        connection goes back to the master with all that was read of it, or is refused."""
        service = self.service
        placing = service.placing
        if self.first and not self.asks:
            return True  # the master has looked, just now
        service.count(LOOKED)
        look = placing.look_first if self.first else placing.look
        buffer = self.http.buffer
        slot = look(buffer, len(buffer), self.peer)
        if slot == placing.slot:
            return True
        if slot >= 0:
            self._leave(unheld=slot == UNHELD)
        else:
            if slot == MISSING:
                service.missing()
            self.refuse(400)
        return False

    def _read(self) -> bool:
        """Read what has arrived of a next request; whether there was something. If not, it is
        waited for, or the connection is at its end."""
        self.pending = False
        try:
            data = self.sock.recv(READ_SIZE, _DONTWAIT)
        except BlockingIOError:
            self._wait()
            return False
        except OSError:
            self.close()
            return False
        if not data:
            if self.http.buffer:
                self.refuse(400)  # in mid-head: the rest will never come
            else:
                self.close()
            return False
        # No event comes any more for an end that was announced together with this.
        self.pending = self.ended or len(data) == READ_SIZE
        self.http.receive(data)
        return True

    def _wait(self) -> None:
        """For the rest of a head. It has ``head_timeout`` in all, however slowly it dribbles."""
        if self.state == NEW:
            if self.due == math.inf:
                self.service.hub.keep(self, time.monotonic() + self.service.options.head_timeout)
        elif not self.http.buffer:
            self.rest()
            return
        elif self.state != HEAD:
            self.service.hub.keep(self, time.monotonic() + self.service.options.head_timeout)
            self.state = HEAD
        self.watch()

    def rest(self) -> None:
        """At a boundary, with nothing there of a next request."""
        service = self.service
        draining = service.draining
        if draining.passes_on or draining.finishing:
            draining.at_rest(self)
        else:
            self.stay()

    def stay(self) -> None:
        """Wait here for its next request; perhaps in another thread than the loop's.

        In this order: once it is at rest, the loop may take it, whoever is here. What the loop has
        seen before that it has left alone, so it is to look once more.
        """
        service = self.service
        draining = service.draining
        service.hub.keep(self, time.monotonic() + service.options.keep_alive)
        if not self.registered:
            self.registered = True
            service.hub.register(self.fd, self, WATCH)
        service.count(AT_REST)
        self.state = RESTING
        if self.pending or draining.passes_on or draining.finishing:
            service.hub.call(self.settle)

    def settle(self) -> None:
        """If it is at rest, look whether there is something after all; and if not, whether it may
        stay."""
        if self.state == RESTING:
            self.pending = True
            self.look_again()

    def watch(self, events: int = WATCH) -> None:
        """Have ``ready`` called when something happens."""
        if not self.registered:
            self.registered = True
            self.service.hub.register(self.fd, self, events)
        elif self.pending:
            self.service.hub.call(self.look_again)

    def unregister(self) -> None:
        """The hub is to know nothing of this descriptor: it is closed, or given away."""
        if self.registered:
            self.registered = False
            self.service.hub.unregister(self.fd)

    # -- what the hub says --------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """Something has arrived, or the client has closed its side."""
        if events & ENDED:
            self.ended = True
        self.pending = True
        self.look_again()

    def look_again(self) -> None:
        """Something may have arrived."""
        state = self.state
        if not self.pending:
            return
        if state in (RESTING, HEAD, NEW):
            self.go_on()
        elif state == UNREAD:
            self.read_on()
        elif state == LINGERING:
            self._forget()
        elif state == HELD:
            self.service.sync.over(self, LEFT_UNRELEASED)

    def late(self, now: float) -> None:
        """A deadline has passed."""
        service, state = self.service, self.state
        if state in (NEW, HEAD):
            service.count(HEAD_TIMEOUTS)
            if self.http.buffer:
                self.refuse(408)
            else:
                self.close()
        elif state == RESTING:
            service.count(KEEP_ALIVE_ENDED)
            self.close()
        elif state == HELD:
            service.sync.over(self, SYNC_TIMEOUTS)
        elif state in (UNREAD, LINGERING):
            self.close()

    # -- behind an answer ---------------------------------------------------------------------

    def answered(self) -> Head | None:
        """The answer is complete; the next request if it can be served at once."""
        http = self.http
        if self.state != SERVING:
            return None  # it was closed meanwhile, or taken
        if not http.stays:
            self.finish()
            return None
        if not http.body_is_over:
            self.state = UNREAD
            # Nobody waits for the rest of it, so it has as long as an idle connection.
            patience = self.service.options.keep_alive
            self.service.hub.keep(self, time.monotonic() + patience)
            self.watch()
            return self._drop_body()
        return self._after()

    def _after(self) -> Head | None:
        self.http.end()
        if self.http.buffer or self.pending:
            return self.next()
        self.rest()
        return None

    def _drop_body(self) -> Head | None:
        """Read on to the end of a body that the app has left unread, as far as it is there."""
        http = self.http
        try:
            for _ in range(_MOST_READS):
                while http.body():
                    pass
                if http.body_is_over:
                    self.due = math.inf
                    return self._after()
                self.pending = False
                data = self.sock.recv(READ_SIZE, _DONTWAIT)
                if not data:
                    self.close()
                    return None
                http.receive(data)
        except BlockingIOError:
            return None
        except (OSError, Refused):
            self.close()
            return None
        self.pending = True
        self.service.hub.call(self.look_again)
        return None

    def read_on(self) -> None:
        """More of such a body has arrived."""
        head = self._drop_body()
        if head is not None:
            self.serve(head)

    def finish(self) -> None:
        """Close behind an answer, so that the client can read it."""
        http = self.http
        if http.body_is_over and not http.ahead and not self.pending:
            self.close()
        else:
            self.linger()

    def refuse(self, status: int) -> None:
        """Answer, and close. Nothing else is on its way to the client."""
        if self.state == CLOSED:
            return
        self.service.count(REFUSED_HEADS)
        try:
            self.sock.send(self.service.refusals[status], SEND)
        except OSError:
            self.close()
            return
        self.linger()

    def linger(self) -> None:
        """Let the client read its answer; what it still sends is read and forgotten."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.state = LINGERING
        self.service.hub.keep(self, time.monotonic() + LINGER)
        self.watch()
        self._forget()

    def _forget(self) -> None:
        self.pending = False
        try:
            for _ in range(_MOST_READS):
                if not self.sock.recv(READ_SIZE, _DONTWAIT):
                    self.close()
                    return
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self.pending = True
        self.service.hub.call(self.look_again)

    # -- how it ends here ---------------------------------------------------------------------

    def _leave(self, *, unheld: bool) -> None:
        """Hand it back to the master, with what was read of its next request."""
        self.state = LEAVING
        self.service.link.hand_back(self, moves=self.moves, unheld=unheld)

    def pass_on(self) -> None:
        """Give it to the process that has the slot now; it is at rest."""
        self.state = LEAVING
        self.service.link.pass_on(self)

    def take(self) -> bytes:
        """The app has taken the socket: what was read ahead, which is the app's too. From now on
        nothing of ours reads, writes, or looks at it."""
        self.unregister()
        self.state = TAKEN
        self.due = math.inf
        return self.http.unread

    def lost(self, error: OSError | None = None) -> None:
        """The client left while it was being answered."""
        if self.state != CLOSED:
            self.service.count(CLIENT_LEFT)
            log.debug("%s: the client was lost: %s", self.address, error)
            self.close()

    def close(self) -> None:
        """Close it, here: close(2) and no more, because it may live on in another process."""
        if self.state == CLOSED:
            return
        if self.state == RESTING:
            self.service.count(AT_REST, -1)
        self.state = CLOSED
        self.unregister()
        self.service.hub.forget(self)
        try:
            self.sock.close()
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                raise
        self.service.closed(self)

    def close_after_fork(self) -> None:
        """In a child of the app's: the connection is the parent's."""
        self.state = CLOSED
        self.sock.close()
