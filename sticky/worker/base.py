"""What every kind of server has in common: the worker's two channels and what they bring.

An adapter adopts connections from the inbox of its slot and obeys its control pair. How it waits
for either, and how it serves a connection, is its framework's business: the methods at the end.
"""

from __future__ import annotations

import abc
import contextlib
import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from .. import channel
from ..answers import answer, refusals
from ..board import Row, private
from ..errors import ChannelError
from ..options import Options
from ..routing import make_router
from ..rules import ANYWHERE
from .accesslog import AccessLog
from .sessions import Sessions, close, instances, of_engineio

log = logging.getLogger("sticky.worker")


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

    def __init__(self, address: channel.Address, key: bytes, head: bytes, came: str) -> None:
        self.address = address
        self.key = key
        self.head = head
        self.came = came
        self.released = False
        self._release: Callable[[], None] | None = None
        self._event: str | None = None

    def hold(self, event: str, release: Callable[[], None] | None) -> None:
        """Have ``release`` called when this event is emitted, once; None: no longer."""
        self._event, self._release = event, release

    def emit(self, event: str) -> bool:
        """Release the connection: the app may have its first byte now.

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

# What ``look`` says besides slots and verdicts: the connection is to go back to the master, who
ELSEWHERE = 1 << 16  # decides which worker is to have it,
UNHELD = 1 << 17  # or asks the process that had this slot before.

_LINGER = 0.25
"""Seconds between two looks at whether sessions are still held."""


class Adapter(abc.ABC):
    """Serves one app in one worker process.

    Args:
        app: what the factory returned.
        options: the settings.
        control: our end of the control pair.
        inbox: the worker's end of the slot's inbox.
        slot: the number of the slot.
        handlers: what is called with each connection before it is served; more may be added.
        counters: where to count.
        sessions: those of this process, with the option ``session``.
        has_others: whether another process of this slot is there, or may be.
        is_replaced: whether another process has the slot now, and we have not been told yet.
        rivals: what each of the other workers has to do, as its sessions and what will be some.
    """

    def __init__(
        self,
        app: Any,
        options: Options,
        control: socket.socket,
        inbox: socket.socket,
        handlers: Sequence[Handler] = (),
        *,
        slot: int = 0,
        counters: Row | None = None,
        sessions: Sessions | None = None,
        has_others: Callable[[], bool] = lambda: False,
        is_replaced: Callable[[], bool] = lambda: False,
        rivals: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self.app = app
        self.options = options
        self.control = control
        self.inbox = inbox
        self.handlers = handlers
        self.ending = False
        self.has_left = False
        self.closing = False
        self._stopping = False  # the whole server, not this process alone
        self._lingers = False
        self._finished = False
        self.counters = private() if counters is None else counters
        self._router = make_router(options)
        self.slot = slot
        self.sessions = sessions
        self._has_others = has_others
        self._is_replaced = is_replaced
        self._rivals = rivals
        # A connection may carry another client's request next, behind a proxy, or that of another
        # session: it is looked at.
        self.looking = bool(options.session) or (options.proxy and options.num > 1)
        self.route = self._router.route
        self.look: Callable[[bytes | bytearray, int, str], int] = self.route
        if sessions is not None:
            self.look = self._look
        self.refusals = refusals(options)
        self.access_log = AccessLog(options) if options.access_logfile else None
        self._reader = channel.Reader()

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return self.counters["open"]

    @open.setter
    def open(self, count: int) -> None:
        self.counters["open"] = count

    @property
    def not_begun(self) -> int:
        """Connections that were picked up and not yet given to the app."""
        return self.counters["not_begun"]

    @not_begun.setter
    def not_begun(self, count: int) -> None:
        self.counters["not_begun"] = count

    # -- looking ------------------------------------------------------------------------------

    def asks_first(self, unheld: bool) -> bool:
        """Whether already the first request of a connection is to be looked at: its session may be
        held by the process before this one.

        Args:
            unheld: that process was asked.
        """
        return not unheld and self.sessions is not None and (self.ending or self._has_others())

    def look_first(self, data: bytes | bytearray, length: int, peer: str) -> int:
        """The same for the first request of a connection, which the master has placed here: where
        it may be served anywhere it is not given back to be placed once more."""
        if self.sessions is None:
            return self.route(data, length, peer)
        return self._look(data, length, peer, placed=True)

    def _look(
        self, data: bytes | bytearray, length: int, peer: str, *, placed: bool = False
    ) -> int:
        """Whose request this is: as ``route`` says it, or ELSEWHERE, or UNHELD."""
        slot = self.route(data, length, peer)
        if slot == ANYWHERE:
            if self._leaves_to_successor:
                return ELSEWHERE
            return self.slot if placed or self._keeps() else ELSEWHERE
        if slot == self.slot and (self.ending or self._has_others()):
            session = self._router.session(data, length)
            if not session:
                return ELSEWHERE if self._leaves_to_successor else slot
            assert self.sessions is not None
            if not self.sessions.hold(session.decode(errors="replace")):
                return UNHELD
        return slot

    @property
    def _leaves_to_successor(self) -> bool:
        """Whether a new session would begin in the wrong process: another has the slot, or this
        one ends and another will have it."""
        return not self._stopping and (self.ending or self._is_replaced())

    def _keeps(self) -> bool:
        """Whether this worker serves a request that may be served anywhere, instead of giving it
        to the master to place. A little more than others have is no reason to move it."""
        if self.options.balance == "round-robin":
            return False
        assert self.sessions is not None
        self.sessions.count_servers()
        ours = self.counters["sessions"]
        return all(ours <= theirs + 1 + ours // 50 for theirs in self._rivals())

    def recount(self) -> None:
        """A connection has ended, and perhaps its session with it."""
        if self.sessions is not None:
            self.sessions.count_servers()

    # -- what the framework's event loop calls ------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another connection may be picked up: at most ``prefetch`` are not yet begun.

        Connections that have begun (long polls, websockets, those that wait for their client)
        do not count, or a few of them would keep everyone else out.
        """
        options = self.options
        return (
            not self.ending
            and self.not_begun < options.prefetch
            and self.open < options.max_connections
            # What comes now may be of a session that the successor has begun.
            and not (self.sessions is not None and self._is_replaced())
        )

    def receive_connections(self) -> None:
        """The inbox is readable: adopt what is there, within the bound."""
        while self.has_room:
            try:
                message = self._reader.receive(self.inbox)
            except BlockingIOError:
                return
            except ChannelError as error:
                self.counters["lost"] += 1
                log.error("a connection was lost: %s", error)
                continue
            if message is None:
                self.orphaned()
            self._adopt(message)

    def receive_control(self) -> None:
        """The control pair is readable: obey."""
        while not self.has_left:
            try:
                message = self._reader.receive(self.control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = None
            if message is None:
                self.orphaned()
            if message.kind == channel.PING:
                self.tell(channel.PONG)
                if self.sessions is not None:
                    self.sessions.count()
            elif message.kind == channel.CONNECTION and self._finished:
                self._return(message)  # no session is held any more
            elif message.kind == channel.CONNECTION:
                self._adopt(message, asked=True)
            elif message.kind == channel.CLOSING:
                self.closing = True
                self.close_after_answers()
            elif message.kind == channel.END:
                self.end(replaced=not self.closing)
            elif message.kind == channel.QUIT:
                self.quit()

    def tell(self, kind: int, content: Any = None) -> None:
        """Send the master a message."""
        payload = b"" if content is None else json.dumps(content).encode()
        try:
            channel.send(self.control, channel.pack_header(kind), payload)
        except BlockingIOError:
            pass  # the master is behind; it will ask again
        except OSError:
            self.orphaned()

    def notice(self, subject: str, text: str) -> None:
        """Have the master log this, once for all workers."""
        self.tell(channel.NOTICE, {"subject": subject, "text": text})

    def look_around(self) -> None:
        """What is probably not meant, now that the app is there."""
        if self.sessions is not None and self.options.session == "sid":
            self.sessions.mint_for_engineio()
        if self.options.sync and not self.handlers:
            self.notice(
                "sync",
                f"option 'sync' is {self.options.sync!r}, but the app has registered no handler "
                "that could release a connection: sticky.current_worker().on('connection', ...)",
            )
        socketio = sys.modules.get("socketio")
        if socketio is None or self.options.num == 1:
            return
        for server in instances(socketio.Server, socketio.AsyncServer):
            if not any("PubSub" in kind.__name__ for kind in type(server.manager).__mro__):
                use = "socketio.Server(client_manager=sticky.cluster.Manager()), or one for Redis"
                if isinstance(server, socketio.AsyncServer):
                    use = "socketio.AsyncServer(client_manager=socketio.AsyncRedisManager(url))"
                self.notice(
                    "client manager",
                    "this is a Socket.IO app on several workers without a client manager: what "
                    f"one worker emits does not reach the clients of the others; use {use}",
                )
                return

    def orphaned(self) -> NoReturn:
        """The master is gone: nobody will ever send anything, so there is no reason to be."""
        os._exit(1)

    def _adopt(self, message: channel.Message, *, asked: bool = False) -> None:
        """Args: asked: for a session that this process may hold, having had the slot before."""
        fd = message.fds[0]
        self.counters["adopted"] += 1
        self.not_begun += 1
        asks = asked or (self.looking and self.asks_first(message.unheld))
        self.adopt(fd, message.address, message.payload, message.moves, asks)

    def introduce(self, address: channel.Address, head: bytes, moves: int) -> Connection:
        """The connection as the handlers see it."""
        _, key, _ = self._router.explain(head, len(head), address[0] if address else "")
        return Connection(address, key, head, "moved" if moves else "accepted")

    def handler_failed(self, connection: Connection) -> None:
        """Say that a handler raised the exception that is being handled."""
        self.counters["handler_errors"] += 1
        log.exception("a handler of 'connection' failed; %r is answered 500", connection)

    # -- ending -------------------------------------------------------------------------------

    def end(self, *, replaced: bool = False) -> None:
        """Nothing more will come: finish what is in hand, then end.

        Args:
            replaced: another process has the slot, and asks for the sessions that it lacks.
        """
        if self.ending:  # and told once more: it is not to wait for sessions any longer
            self._lingers = False
            return
        self._stopping = self.closing
        self.ending = self.closing = True
        self.close_after_answers()
        if self.sessions is not None and replaced:
            self._lingers = True
            sessions = of_engineio()
            self._linger(sessions, len(sessions), time.monotonic())
        else:
            self._finish()

    def _linger(self, sessions: list[Any], count: int, began: float) -> None:
        """Stay while sessions are held. Those of Engine.IO are ended one after another, so that not
        all their clients come back at once; others end when they like: the master sets the limit.

        Args:
            sessions: those of Engine.IO that are left.
            count: how many there were.
            began: when that was.
        """
        assert self.sessions is not None
        spread = self.options.drain_spread
        elapsed = time.monotonic() - began
        left = math.ceil(count * max(0.0, 1 - elapsed / spread)) if spread else 0
        while len(sessions) > left:
            self.end_session(sessions.pop())
        self.sessions.count()
        if self._lingers and (left or self.sessions.last):
            self.later(_LINGER, lambda: self._linger(sessions, count, began))
        else:
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        for session in of_engineio():
            self.end_session(session)
        self.finish()

    def end_session(self, session: Any) -> None:
        """Close an Engine.IO session."""
        close(session)

    def leave(self) -> None:
        """Give back what has been sent to this process meanwhile; then nothing more can be."""
        self.has_left = True  # what is read from now on is the end that is made here
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RD)
        while True:
            try:
                message = self._reader.receive(self.control)
            except (BlockingIOError, ChannelError, OSError):
                break
            if message is None:
                break
            if message.kind == channel.CONNECTION:
                self._return(message)

    def _return(self, message: channel.Message) -> None:
        """Hand back a connection that nothing was done with."""
        with contextlib.suppress(OSError):
            channel.send_connection(
                self.control,
                channel.HAND_BACK,
                message.fds[0],
                message.address,
                message.payload,
                moves=message.moves,
                unheld=True,
            )
        os.close(message.fds[0])

    # -- what a framework provides ------------------------------------------------------------

    @abc.abstractmethod
    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call this from the framework's loop in so many seconds."""

    @abc.abstractmethod
    def run(self) -> None:
        """Serve until ended. Tells READY when it is ready to adopt."""

    @abc.abstractmethod
    def adopt(
        self, fd: int, address: channel.Address, prefix: bytes, moves: int, asks: bool
    ) -> None:
        """Serve this connection; lower ``not_begun`` when it has begun.

        Args:
            moves: how often it has moved for its first request; to be said where it is handed back.
            asks: look at its first request, too.
        """

    @abc.abstractmethod
    def close_after_answers(self) -> None:
        """From now on answer with Connection: close."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Close what is idle; let ``run`` return when the rest has been answered."""

    @abc.abstractmethod
    def quit(self) -> None:
        """Let ``run`` return now."""


TLS_CLIENT = (
    "a client speaks TLS to this port, which expects plain HTTP: "
    "put a proxy in front that terminates TLS, or use http:// in the client's URL"
)

HTTP2_CLIENT = (
    "a client speaks HTTP/2 to this port, which expects HTTP/1.1: "
    "put a proxy in front that speaks HTTP/2 with the clients"
)

REFUSALS = {
    500: answer(500, "The server could not prepare this connection."),
    503: answer(503, "The server could not begin with this connection in time."),
}


def another_protocol(begun: bytes) -> tuple[str, str] | None:
    """What to say about a client whose first bytes are not HTTP/1: a subject and a text."""
    if begun[:2] == b"\x16\x03":
        return "tls", TLS_CLIENT
    if begun[:14] == b"PRI * HTTP/2.0":
        return "http2", HTTP2_CLIENT
    return None


def peek(sock: socket.socket, limit: int) -> bytes:
    """What has arrived on a non-blocking socket, without consuming it."""
    try:
        return sock.recv(limit, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""
