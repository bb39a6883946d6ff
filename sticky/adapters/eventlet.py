"""eventlet: WSGI apps, python-socketio and Flask-SocketIO, with websockets.

The server is eventlet's own, which never accepts here: each connection is given to it as if it had
just been accepted. Its parser, its answers and its idea of keep-alive are kept as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import types
from typing import Any

import eventlet
import eventlet.event
import eventlet.hubs
import eventlet.wsgi
from eventlet.greenio import GreenSocket
from eventlet.hubs import trampoline

from .. import channel
from ..errors import WorkerError
from . import base

log = logging.getLogger("sticky.worker")

_IDLE = eventlet.wsgi.STATE_IDLE


class _HeadTimeout(BaseException):
    """The head took too long. Not an Exception, so that no handler in between takes it."""


class _PrefixedSocket(GreenSocket):  # type: ignore[misc]
    """A connection of which some bytes were read before: they are what is read first."""

    prefix: bytes | memoryview = b""

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if not self.prefix:
            return int(super().recv_into(buffer, nbytes, flags))
        view = memoryview(buffer).cast("B")
        size = min(len(self.prefix), nbytes or len(view), len(view))
        view[:size] = self.prefix[:size]
        if not flags & socket.MSG_PEEK:
            self.prefix = memoryview(self.prefix)[size:]
        return size

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if not self.prefix:
            return bytes(super().recv(bufsize, flags))
        data = bytearray(min(bufsize, len(self.prefix)))
        self.recv_into(data, 0, flags)
        return bytes(data)


class _Connection(list):  # type: ignore[type-arg]
    """eventlet's [address, socket, state], and what we know besides."""

    upgraded = False
    __hash__ = object.__hash__  # type: ignore[assignment]


class _Protocol(eventlet.wsgi.HttpProtocol):  # type: ignore[misc]
    """eventlet's HTTP, with one deadline for a whole head and quiet about bad clients."""

    server: _Server

    def _read_request_line(self) -> bytes | str:
        """Wait for a request as long as keep-alive says (for a first one: as long as a head may
        take); then the rest of its head has ``head_timeout``, however slowly it dribbles."""
        options = self.server.options
        first = self.raw_requestline is None
        self.connection.settimeout(options.head_timeout if first else options.keep_alive)
        try:
            begun = self.rfile.peek(1)
        except TimeoutError:
            if first:
                self._answer(b"408 Request Timeout")
            begun = b""
        except (OSError, EOFError):
            begun = b""
        if not begun:
            self.close_connection = True
            return b""
        self.connection.settimeout(None)
        if b"\n\r\n" not in begun and b"\n\n" not in begun:
            self._deadline = eventlet.Timeout(options.head_timeout, _HeadTimeout)
        line: bytes | str = super()._read_request_line()
        # Set by eventlet for the head, and never wanted for the body: those are the app's.
        self.connection.settimeout(None)
        return line

    _deadline: eventlet.Timeout | None = None
    raw_requestline: bytes | None = None

    def parse_request(self) -> bool:
        try:
            return bool(super().parse_request())
        except (eventlet.wsgi.HeaderLineTooLong, eventlet.wsgi.HeadersTooLarge):
            self._answer(b"431 Request Header Fields Too Large")
            return False
        finally:
            self._head_is_over()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except _HeadTimeout:
            self._answer(b"408 Request Timeout")
        finally:
            self._head_is_over()

    def _head_is_over(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _answer(self, status: bytes) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        environ["wsgi.multiprocess"] = self.server.options.num > 1
        self.conn_state.upgraded = environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        return environ

    def log_message(self, format: str, *args: Any) -> None:
        """What BaseHTTPRequestHandler says about bad requests: clients' doing, not the log's."""
        log.debug("%s: " + format, self.client_address, *args)


class _Log:
    """Where eventlet's server writes: tracebacks of the app are errors, the rest is detail."""

    def info(self, message: str, *args: Any) -> None:
        level = logging.ERROR if message.startswith("Traceback ") else logging.DEBUG
        log.log(level, message.rstrip().replace("%", "%%") if not args else message, *args)

    debug = info
    error = info


class _Server(eventlet.wsgi.Server):  # type: ignore[misc]
    """eventlet's server without a listener."""

    def __init__(self, app: Any, adapter: EventletAdapter) -> None:
        self.options = adapter.options
        super().__init__(
            None,
            None,
            app,
            log=_Log(),
            protocol=_Protocol,
            keepalive=adapter.options.keep_alive,
            log_output=True,
            log_format="%(client_ip)s %(request_line)s %(status_code)s",
            debug=False,
        )


class EventletAdapter(base.Adapter):
    """Serves with eventlet's WSGI server, a green thread a connection."""

    def run(self) -> None:
        self._ended = eventlet.event.Event()
        self._room = eventlet.event.Event()
        # No bound: connections are bounded by the descriptors, and a bound on green threads would
        # let long polls and websockets keep everyone else out.
        self._pool = eventlet.GreenPool(sys.maxsize)
        self._connections: set[_Connection] = set()
        # What the master lets through is to be served: eventlet's own limits are lower.
        eventlet.wsgi.MAX_HEADER_LINE = self.options.max_head_size
        eventlet.wsgi.MAX_TOTAL_HEADER_SIZE = self.options.max_head_size
        self._server = _Server(as_wsgi(self.app), self)
        self._watch_signals()
        self.tell(channel.READY)
        eventlet.spawn_n(self._read, self.control, self.receive_control)
        self._reading = eventlet.spawn(self._read, self.inbox, self.receive_connections)
        self._ended.wait()

    def _read(self, source: socket.socket, receive: Any) -> None:
        while True:
            try:
                trampoline(source, read=True)
            except eventlet.hubs.IOClosed:
                return
            receive()
            # Those adopted are begun now, before more are picked up: that is the bound.
            eventlet.sleep(0)

    def _watch_signals(self) -> None:
        """SIGTERM to this worker alone ends it gracefully; its slot gets a new one.

        A Python signal handler runs only when something wakes the hub, so something must.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

        def watch() -> None:
            while data := reader.recv(64):
                if signal.SIGTERM in data:
                    self.end()
            writer.close()  # never reached; keeps a reference to it

        eventlet.spawn_n(watch)

    def adopt(self, fd: int, address: channel.Address, prefix: bytes) -> None:
        family = base.socket_family(address)
        protocol = 0 if family == socket.AF_UNIX else socket.IPPROTO_TCP
        kind = _PrefixedSocket if prefix else GreenSocket
        sock = kind(family, socket.SOCK_STREAM, protocol, fd)
        if prefix:
            sock.prefix = prefix
        self._pool.spawn_n(self._serve, _Connection([address, sock, _IDLE]))

    def _serve(self, connection: _Connection) -> None:
        self.not_begun -= 1
        self._connections.add(connection)
        try:
            self._server.process_request(connection)
        except (OSError, EOFError, _HeadTimeout) as error:
            log.debug("%s: the connection failed: %s", connection[0], error)
        except Exception:
            log.exception("%s: an error outside the app", connection[0])
        finally:
            self._connections.discard(connection)
            # Close the file itself: whoever still holds the socket object (an exception's
            # traceback, a reference cycle) would keep the descriptor until a garbage collection.
            fd = connection[1].fd.detach()
            if fd >= 0:
                eventlet.hubs.notify_close(fd)
                os.close(fd)

    def close_after_answers(self) -> None:
        self._server.keepalive = False

    def finish(self) -> None:
        self._reading.kill()
        for connection in list(self._connections):
            if connection.upgraded or (connection[2] == _IDLE and _is_silent(connection[1])):
                _shut_down(connection[1])
        eventlet.spawn_n(self._wait_for_all)

    def _wait_for_all(self) -> None:
        self._pool.waitall()
        self.quit()

    def quit(self) -> None:
        if not self._ended.ready():
            self._ended.send()


def _is_silent(sock: GreenSocket) -> bool:
    """Whether nothing has arrived that would still be answered."""
    try:
        return not sock.fd.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return True


def _shut_down(sock: GreenSocket) -> None:
    with contextlib.suppress(OSError):  # its client was faster
        sock.shutdown(socket.SHUT_RDWR)


def as_wsgi(app: Any) -> Any:
    """The WSGI callable in what a factory returned.

    Raises:
        WorkerError: there is none.
    """
    flask_socketio = sys.modules.get("flask_socketio")
    socketio = sys.modules.get("socketio")
    if flask_socketio is not None and isinstance(app, flask_socketio.SocketIO):
        return app.sockio_mw
    if socketio is not None and isinstance(app, socketio.Server):
        return socketio.WSGIApp(app)
    if callable(app) and not isinstance(app, types.CoroutineType):
        return app
    raise WorkerError(
        f"the factory returned {app!r}, which the eventlet worker cannot serve: it must return a "
        "WSGI app, a Flask app, a Flask-SocketIO object or a socketio.Server",
        4,
    )
