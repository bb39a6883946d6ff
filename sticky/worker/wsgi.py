"""WSGI (PEP 3333) over the boundary, once for eventlet, gevent and threads.

These differ only in how something is run beside everything else, and how it waits for a socket:
``Loop``. A connection is in a green thread, or a thread, only while one of its requests is served.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from .. import __version__
from ..channel import Address
from ..core import Head
from ..forwarded import scheme_of
from ..mailbox import Waiter
from . import kernel
from .body import FileWrapper
from .boundary import TAKEN, Wire
from .hub import Hub, Watcher
from .kernel import Socket, allocate_lock, read
from .mailing import ThreadWaiter
from .service import Service
from .sessions import end, of_engineio
from .signals import nothing
from .sync import Connection
from .wsgi_http import Exchange, WsgiWire

log = logging.getLogger("sticky.worker")

Behind = Callable[[dict[str, Any]], object]


class Loop(Protocol):
    """How a worker class runs things and waits.

    Attributes:
        threads: whether what is started may run beside the loop, in another thread.
        multithread: ``wsgi.multithread``.
        checks_handshakes: whether apps are given websockets whose handshake is right. (eventlet's
            check it themselves, and know older versions of the protocol, too.)
        cancelled: what ``cancel`` has the app raise.
    """

    threads: bool
    multithread: bool
    checks_handshakes: bool
    cancelled: tuple[type[BaseException], ...]

    @property
    def here(self) -> bool:
        """Whether the calling thread has the loop."""

    def enter(self) -> None:
        """With ``threads``: the calling thread is going to be in the app."""

    def leave(self) -> bool:
        """With ``threads``: it has come back; whether it has the loop."""

    def run(self, hub: Hub) -> None:
        """Have ``hub.turn`` called when it is to be, until ``hub.over``."""

    def start(self, call: Callable[..., object], *arguments: Any) -> None:
        """Run this beside everything else. It raises nothing."""

    @property
    def can_start(self) -> bool:
        """Whether one more can be started now. If not, ``service.link.room`` is called once it
        can."""

    def wait(self, fd: int, *, writing: bool, seconds: float) -> bool:
        """Wait, in what was started, until the descriptor is ready; False: not within this time."""

    def offer(self, wire: WsgiWire, environ: dict[str, Any], head: Head) -> Behind | None:
        """Put into the environ what apps take the socket by.

        Returns:
            What is to be called behind the request, with the environ, or None.
        """

    def cancel(self) -> None:
        """Have what was started end, as far as it can be told to. With greenlets: to be called in
        the hub's."""

    def after_fork(self) -> None:
        """In a child of the app's: wait for nothing of the parent's."""


class WsgiService(Service):
    """Serves a WSGI app.

    Args:
        make_loop: called with this object.
    """

    def __init__(
        self,
        make_loop: Callable[[WsgiService], Loop],
        worker: Any,
        app: Any,
        control: Socket,
        inbox: Socket,
        own_inbox: Socket,
    ) -> None:
        super().__init__(worker, app, control, inbox, own_inbox)
        self.wsgi = as_wsgi(app)
        self.loop = make_loop(self)
        self.exchanges: set[Exchange] = set()  # type: ignore[assignment]
        self._lock = allocate_lock()
        self._ending = 0  # sessions
        self._signals = self._wakes = -1
        self._mail: ThreadWaiter | None = None
        self._base = {
            "SCRIPT_NAME": self.options.root_path,
            "SERVER_SOFTWARE": f"sticky/{__version__}",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr or open(os.devnull, "w"),  # noqa: SIM115 - as long as we live
            "wsgi.multithread": self.loop.multithread,
            "wsgi.multiprocess": self.options.num > 1,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
        }
        if self.loop.threads:
            self.count = self._count_together  # type: ignore[method-assign]

    def mail_waiter(self) -> Waiter:
        # In threads the loop is often in the hands of somebody who is in the app.
        self._mail = ThreadWaiter() if self.loop.threads else None
        return self._mail or super().mail_waiter()

    def run(self) -> None:
        """Serve until told to end."""
        self._watch_signals()
        self.begin()
        self.loop.run(self.hub)

    def _count_together(self, cell: int, by: int = 1) -> None:
        with self._lock:
            self.cells[cell] += by

    def _watch_signals(self) -> None:
        """SIGTERM to this worker alone: see ``Link.ask_to_leave``.

        A Python signal handler runs only when something wakes the loop, so something must.
        """
        self._signals, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, nothing)

        def arrived(_: int) -> None:
            if signal.SIGTERM in read(self._signals, 64):
                self.link.ask_to_leave()

        self.hub.register(self._signals, Watcher(arrived))

    @property
    def can_start(self) -> bool:
        return self.loop.can_start

    def in_loop(self, call: Callable[[], object]) -> None:
        """Have this called in the loop's thread: now, if that is the caller's."""
        if self.loop.here:
            call()
        else:
            self.hub.call(call)

    def make_wire(
        self, fd: int, address: Address, moves: int = 0, *, asks: bool = False
    ) -> WsgiWire:
        return WsgiWire(self, fd, address, moves, asks=asks)

    def introduce(self, wire: Wire, connection: Connection) -> None:
        self.loop.start(self._introduce, wire, connection)

    def _introduce(self, wire: Wire, connection: Connection) -> None:
        failed = False
        try:
            for handler in tuple(self.worker.handlers):
                handler(connection)
        except Exception:
            failed = True
            self.handler_failed(connection)
        self.hub.call(lambda: self.sync.introduced(wire, failed=failed))

    def end_sessions(self, sessions: list[Any]) -> None:
        self._ending += len(sessions)
        for session in sessions:
            self.loop.start(self._end_session, session)

    def _end_session(self, session: Any) -> None:
        self.ended_sessions.add(session.sid)
        try:
            end(session)
        finally:
            self.in_loop(self._session_ended)

    def _session_ended(self) -> None:
        self._ending -= 1
        self._check()

    def ended(self, exchange: Exchange) -> None:
        """A request is over."""
        self.exchanges.discard(exchange)
        if exchange.marking is not None:
            exchange.marking.end()
        if self.draining.finishing:
            self.hub.call(self._check)

    @property
    def busy(self) -> bool:
        return bool(self.wires or self.exchanges or self._ending)

    def _check(self) -> None:
        if not self.draining.cancelling:
            self.draining.check()
        elif not self.exchanges and not self._ending:
            self.hub.stop()

    def cancel(self) -> None:
        for wire in list(self.wires):
            if wire.state == TAKEN:
                self.end_upgraded(wire)
        self.loop.cancel()
        self.end_sessions(of_engineio())
        self.hub.later(max(0.0, self.draining.by - time.monotonic()), self.hub.stop)
        self._check()

    def end_upgraded(self, wire: Wire) -> None:
        """Let whoever has it see its end."""
        assert isinstance(wire, WsgiWire)
        if wire.offer is not None:
            wire.offer.end()

    def forked(self) -> None:
        super().forked()
        if self._mail is not None:
            self._mail.after_fork()
        for fd in (self._signals, self._wakes):
            if fd >= 0:
                kernel.close(fd)
        self.loop.after_fork()

    def environ(self, wire: WsgiWire, head: Head) -> dict[str, Any]:
        """What PEP 3333 asks for, but for ``wsgi.input``."""
        environ: dict[str, Any] = self._base.copy()
        head.environ(environ)
        target = head.target
        if target[:1] != b"/":
            target = _origin_form(target, environ)
        path, _, query = target.partition(b"?")
        if b"%" in path:
            path = unquote_to_bytes(path)
        environ["REQUEST_METHOD"] = head.method
        environ["PATH_INFO"] = path.decode("latin-1")
        environ["QUERY_STRING"] = query.decode("latin-1")
        environ["RAW_URI"] = environ["REQUEST_URI"] = head.target.decode("latin-1")
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if head.minor else "HTTP/1.0"
        if wire.address:
            environ["REMOTE_ADDR"] = wire.peer
            environ["REMOTE_PORT"] = wire.port
        else:
            environ["REMOTE_ADDR"] = "127.0.0.1"
        root = environ["SCRIPT_NAME"]
        if root and (environ["PATH_INFO"] + "/").startswith(root + "/"):
            environ["PATH_INFO"] = environ["PATH_INFO"][len(root) :]
        if wire.peer in self.trusted:
            self._believe(environ)
        local = wire.local or wire.find_local(environ)
        environ["SERVER_NAME"], environ["SERVER_PORT"] = local
        return environ

    def _believe(self, environ: dict[str, Any]) -> None:
        """What a trusted proxy says about its client."""
        named = environ.get("HTTP_X_FORWARDED_FOR")
        if named and (client := self.trusted.client_of(named)):
            environ["REMOTE_ADDR"] = client
            environ.pop("REMOTE_PORT", None)
        proto = environ.get("HTTP_X_FORWARDED_PROTO")
        if proto and (scheme := scheme_of(proto)):
            environ["wsgi.url_scheme"] = scheme


def _origin_form(target: bytes, environ: dict[str, Any]) -> bytes:
    """The path and query of a target in another form (RFC 9112, 3.2); its host comes before that of
    the Host field."""
    if target == b"*":
        return b""
    _, _, rest = target.partition(b"://")
    cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    environ["HTTP_HOST"] = rest[:cut].decode("latin-1")
    path = rest[cut:]
    return path if path[:1] == b"/" else b"/" + path


def as_wsgi(app: Any) -> Any:
    """The WSGI callable in what a factory returned."""
    flask_socketio = sys.modules.get("flask_socketio")
    socketio = sys.modules.get("socketio")
    if flask_socketio is not None and isinstance(app, flask_socketio.SocketIO):
        return app.sockio_mw
    if socketio is not None and isinstance(app, socketio.Server):
        return socketio.WSGIApp(app)
    return app
