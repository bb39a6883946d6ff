"""What every worker class has in common: its parts, made once, and what they tell each other.

A worker class is a ``Service`` that makes wires (``boundary``) which know how to serve a request,
and runs the hub in its own event loop.
"""

from __future__ import annotations

import abc
import logging
import os
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import parse_qs

from .. import board, channel, logs
from ..addresses import parse_bind
from ..answers import refusals, texts
from ..checks import SID
from ..core import Head
from ..forwarded import Trusted
from ..logs import printable
from ..mailbox import Waiter
from ..options import Options
from . import ending, mailing
from .accesslog import AccessLog
from .affinity import Affinity, Marking
from .boundary import Wire
from .draining import Draining
from .heartbeat import Heartbeat
from .http1 import Refused
from .hub import Hub, Watcher
from .kernel import Socket
from .link import Link
from .placing import Placing
from .sessions import instances
from .sync import Connection, Sync

if TYPE_CHECKING:
    from .main import Worker

log = logging.getLogger("sticky.worker")

_TLS = (
    "a client speaks TLS to this port, which expects plain HTTP: "
    "put a proxy in front that terminates TLS, or use http:// in the client's URL"
)
_HTTP2 = (
    "a client speaks HTTP/2 to this port, which expects HTTP/1.1: "
    "put a proxy in front that speaks HTTP/2 with the clients"
)


def another_protocol(begun: bytes | bytearray) -> tuple[str, str] | None:
    """What to say about a client whose first bytes are not HTTP/1: a subject and a text."""
    if begun[:2] == b"\x16\x03":
        return "tls", _TLS
    if begun[:14] == b"PRI * HTTP/2.0":
        return "http2", _HTTP2
    return None


def _is_one_address(options: Options) -> bool:
    """Whether all clients connect to the same address: the server listens on one that is written
    out, and not on all that a machine or a name has."""
    bind = options.bind or (f"[{options.host}]" if ":" in options.host else options.host,)
    kind, host, _ = parse_bind(bind[0])
    try:
        return len(bind) == 1 and kind == "tcp" and not ip_address(host).is_unspecified
    except ValueError:
        return False


class InHand(Protocol):
    """A request that the app has.

    Attributes:
        head: its head.
        began: when that was, on the monotonic clock.
    """

    head: Head
    began: float


class Service(abc.ABC):
    """Serves one app in one worker process.

    Args:
        worker: the process: its slot, its counters, its sessions, the handlers of its events.
        app: what the factory returned.
        control: our end of the control pair.
        inbox: the worker's end of the slot's inbox.
        own_inbox: and of that of this process alone.

    Attributes:
        closing: the server stops: every answer says that its connection is closed behind it.
        keeps: whether connections stay open for further requests.
        wires: the connections that are open here.
        exchanges: the requests that the app has, also those whose client has left.
        ended_sessions: of Engine.IO, because this process ends: their ids.
    """

    def __init__(
        self, worker: Worker, app: Any, control: Socket, inbox: Socket, own_inbox: Socket
    ) -> None:
        options = worker.options
        logs.take_over(options)
        self.worker = worker
        self.app = app
        self.options = options
        self.slot = worker.id
        self.cells = worker.counters.cells
        self.max_head_size = options.max_head_size
        self.sessions = worker.sessions
        self.closing = False
        self.keeps = options.keep_alive > 0
        self.wires: set[Wire] = set()
        self.exchanges: set[InHand] = set()
        self.ended_sessions: set[str] = set()
        self.refusals = refusals(options)
        self.texts = {status: f"{text}\n".encode() for status, text in texts(options).items()}
        self.access_log = AccessLog(options) if options.access_logfile else None
        self.trusted = Trusted(options.forwarded_allow_ips)
        self.hub = Hub()
        anywhere = options.balance != "address" and options.marks
        firsts = worker.firsts if anywhere else None
        self.placing = Placing(options, worker.topology, worker, worker.sessions, firsts)
        self.affinity: Affinity | None = None
        if worker.firsts is not None and worker.sessions is not None:
            self.affinity = Affinity(
                options,
                worker.topology.router,
                self.slot,
                worker.firsts,
                worker.sessions.held,
            )
        self.link = Link(self, control, inbox, own_inbox)
        self.heartbeat = Heartbeat(self)
        self.draining = Draining(self)
        self.sync = Sync(self)
        self._told: set[str] = set()
        self._one_address = _is_one_address(options)
        self._local: tuple[str, int] | None = None

    @property
    def looks(self) -> bool:
        """Whether further requests of a connection are looked at."""
        return self.placing.looking

    # -- what a worker class provides ---------------------------------------------------------

    @abc.abstractmethod
    def run(self) -> None:
        """Serve until ``hub`` is over. Calls ``begin`` when the app is ready."""

    @abc.abstractmethod
    def make_wire(
        self, fd: int, address: channel.Address, moves: int = 0, *, asks: bool = False
    ) -> Wire:
        """A connection as this worker class serves it."""

    def watch_inbox(self, fd: int, call: Callable[[int], None]) -> None:
        """Have this called when a connection comes."""
        self.hub.register(fd, Watcher(call))

    def leave_inbox(self, fd: int) -> None:
        """Leave in the inbox what is there."""
        self.hub.unregister(fd)

    @abc.abstractmethod
    def introduce(self, wire: Wire, connection: Connection) -> None:
        """Have the handlers called, then ``sync.introduced`` in the loop's thread."""

    @abc.abstractmethod
    def end_upgraded(self, wire: Wire) -> None:
        """End a connection that is none of HTTP any more, because this process ends."""

    @abc.abstractmethod
    def end_sessions(self, sessions: list[Any]) -> None:
        """End Engine.IO sessions (``sessions.end``); not in the loop, where nothing may wait."""

    @abc.abstractmethod
    def cancel(self) -> None:
        """Have what is still in hand end: this process does, at ``draining.by`` at the latest."""

    def mail_waiter(self) -> Waiter:
        """Where mail is read."""
        return mailing.HubWaiter(self.hub)

    @property
    def busy(self) -> bool:
        """Whether something is in hand that is to be finished before this process ends."""
        return bool(self.wires or self.exchanges)

    @property
    def can_start(self) -> bool:
        """Whether one more request can be given to the app now."""
        return True

    # -- what its parts say -------------------------------------------------------------------

    def marking(self, wire: Wire, head: Head) -> Marking | None:
        """What the request that has just begun has to do with ids of ours; what is ours is taken
        out of its head."""
        if self.affinity is None:
            return None
        return self.affinity.begin(head, wire.http.buffer, wire.peer)

    def begin(self) -> None:
        """The app is ready: say so, and take connections."""
        self.look_around()
        mailing.attend(self.worker.mail, self.hub, self.mail_waiter())
        self.heartbeat.begin()
        self.link.begin()

    def count(self, cell: int, by: int = 1) -> None:
        """Count something."""
        self.cells[cell] += by

    def local(self, wire: Wire) -> tuple[str, int] | None:
        """Where the client has connected to: host and port; None on a unix socket, or if it has
        left. Asked of the system once, where there is only one such address."""
        if self._local is not None or not wire.address:
            return self._local
        try:
            name = wire.sock.getsockname()
        except OSError:
            return None
        local = name[0], name[1]
        if self._one_address:
            self._local = local
        return local

    @property
    def has_room(self) -> bool:
        """Whether another connection may be picked up: of at most ``prefetch`` the head is there
        and the app does not have it. Those that wait for their client do not count, or a few of
        them would keep everyone else out."""
        return not self.placing.ending and self.placing.takes_new and self.has_room_for_own

    @property
    def has_room_for_own(self) -> bool:
        """The same for connections of sessions that only this process may hold."""
        options = self.options
        return (
            self.cells[board.NOT_BEGUN] < options.prefetch
            and len(self.wires) < options.max_connections
            and self.can_start
        )

    def opened(self, wire: Wire) -> None:
        """A connection is here."""
        self.wires.add(wire)
        self.cells[board.OPEN] = len(self.wires)

    def closed(self, wire: Wire) -> None:
        """A connection is here no more."""
        self.wires.discard(wire)
        self.cells[board.OPEN] = len(self.wires)
        if self.sessions is not None or self.link.paused or self.draining.finishing:
            self.in_loop(self._one_less)

    def in_loop(self, call: Callable[[], object]) -> None:
        """Have this called in the loop's thread: now, if that is the caller's."""
        call()

    def _one_less(self) -> None:
        self.placing.recount()
        self.link.room()
        if self.draining.finishing and not self.busy:
            self.hub.call(self.draining.check)  # behind whatever is being done with this one

    def handler_failed(self, connection: Connection) -> None:
        """Say that a handler raised the exception that is being handled."""
        self.count(board.HANDLER_ERRORS)
        log.exception("a handler of 'connection' failed; %r is answered 500", connection)

    def app_failed(self, head: Head) -> None:
        """Say that the app raised the exception that is being handled."""
        self.count(board.APP_ERRORS)
        target = head.target[:500].decode("latin-1").encode("unicode_escape").decode("ascii")
        if self.draining.cancelling:  # which the app may not have reckoned with
            error = printable(repr(sys.exception()), 200)
            log.error("%s %s: the app failed as it was cancelled: %s", head.method, target, error)
        else:
            log.exception("%s %s: the app failed", head.method, target)

    def has_ended(self, head: Head) -> bool:
        """Whether a request is of a session that was ended here, of which Engine.IO's server may
        have found out in the middle: it raises KeyError then."""
        if not self.ended_sessions:
            return False
        query = parse_qs(head.target.partition(b"?")[2].decode("latin-1"))
        return not self.ended_sessions.isdisjoint(query.get("sid", ()))

    def malformed(self, wire: Wire, refused: Refused) -> None:
        """Say, once, that a client's head is not to be understood."""
        other = another_protocol(wire.http.buffer)
        if other is not None:
            self.tell_once(*other)
        elif refused.status == 400:
            self.tell_once(
                "malformed",
                f"a client sent a malformed head ({refused.why}) and was answered 400: "
                "it does not speak HTTP, or wants servers to disagree about what it asks",
            )

    def missing(self) -> None:
        """Say, once, that a further request on a connection has nothing to route by."""
        self.tell_once(
            "missing",
            f"a request has no usable {self.options.header!r} header and was answered 400: is "
            "there a proxy in front that sets it? (health probes and direct clients: "
            "--ignore-missing-header; another header: --proxy-header)",
        )

    def tell_once(self, subject: str, text: str) -> None:
        """Have the master log this, once for all workers: a log is not the clients' to fill."""
        if subject not in self._told:
            self._told.add(subject)
            self.link.notice(subject, text)

    def look_around(self) -> None:
        """What is probably not meant, now that the app is there."""
        if self.sessions is not None and SID in self.options.sessions:
            self.sessions.mint_for_engineio()
        if self.options.sync and not self.worker.handlers:
            self.link.notice(
                "sync",
                f"option 'sync' is {self.options.sync!r}, but the app has registered no handler "
                "that could release a connection: sticky.current_worker().on('connection', ...)",
            )
        socketio = sys.modules.get("socketio")
        if socketio is None or self.worker.topology.num == 1:
            return
        asynchronous = sys.modules["socketio.async_pubsub_manager"]  # socketio has loaded it
        reaching = (socketio.PubSubManager, asynchronous.AsyncPubSubManager)
        for server in instances(socketio.Server, socketio.AsyncServer):
            if not isinstance(server.manager, reaching):
                use = "socketio.Server(client_manager=sticky.cluster.Manager()), or one for Redis"
                if isinstance(server, socketio.AsyncServer):
                    use = "socketio.AsyncServer(client_manager=sticky.cluster.AsyncManager())"
                self.link.notice(
                    "client manager",
                    "this is a Socket.IO app on several workers without a client manager: what "
                    f"one worker emits does not reach the clients of the others; use {use}",
                )
                return

    # -- the end ------------------------------------------------------------------------------

    def orphaned(self) -> NoReturn:
        """The master is gone: nobody will ever send anything, so there is no reason to be."""
        os._exit(1)

    def end(self) -> None:
        """End now: nothing is in hand."""
        self.link.leave()
        self.hub.stop()

    def forked(self) -> None:
        """In a child that the app has forked: all of this is the parent's. The child keeps none of
        it open and serves nobody."""
        signal.set_wakeup_fd(-1)  # the other end is the parent's: it would take signals for its own
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.hub.close_after_fork()
        self.link.close_after_fork()
        self.worker.mail.close()
        for wire in self.wires:
            wire.close_after_fork()
        self.wires.clear()

    def end_child(self, error: BaseException | None) -> None:
        """A request is over without its connection: if this is a child that the app has forked in
        it, it has nothing left to do.

        Args:
            error: what the app has raised, ``SystemExit`` for example.
        """
        if os.getpid() != self.worker.pid:
            ending.end_child(error)
