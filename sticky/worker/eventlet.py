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
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import eventlet
import eventlet.event
import eventlet.hubs
import eventlet.patcher
import eventlet.semaphore
import eventlet.wsgi
from eventlet.greenio import GreenSocket
from eventlet.hubs import trampoline

from .. import channel
from ..rules import NEED_MORE
from . import base

log = logging.getLogger("sticky.worker")

_IDLE = eventlet.wsgi.STATE_IDLE
_EPOLLRDHUP = 0x2000  # the patched select module has no epoll constants
_LAST_HEAD = 1.0
"""Seconds for heads that are not complete when the server stops, as in the master."""
_RETRY = 0.05
_PEEK = int(socket.MSG_PEEK)  # as a number: `&` with the enum takes longer than the rest
_LINGER = 2.0
"""Seconds for a refused client to read its answer, as in the master."""
_READ_CHUNKED = eventlet.wsgi.Input._chunked_read.__code__


class _HeadTimeout(BaseException):
    """The head took too long. Not an Exception, so that no handler in between takes it."""


class _ClientSocket(GreenSocket):  # type: ignore[misc]
    """A connection whose errors can be told from those of the app's own connections, and of which
    some bytes may have been read before: they are what is read first."""

    prefix: bytes | memoryview = b""

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self.prefix:
            view = memoryview(buffer).cast("B")
            size = min(len(self.prefix), nbytes or len(view), len(view))
            view[:size] = self.prefix[:size]
            if not flags & _PEEK:
                self.prefix = memoryview(self.prefix)[size:]
            return size
        try:
            return int(super().recv_into(buffer, nbytes, flags))
        except OSError as error:
            error.of_a_client = True  # type: ignore[attr-defined]
            raise

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if self.prefix:
            data = bytearray(min(bufsize, len(self.prefix)))
            self.recv_into(data, 0, flags)
            return bytes(data)
        try:
            return bytes(super().recv(bufsize, flags))
        except OSError as error:
            error.of_a_client = True  # type: ignore[attr-defined]
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return int(super().send(data, flags))
        except OSError as error:
            error.of_a_client = True  # type: ignore[attr-defined]
            raise


def _is_of_a_client(error: BaseException | None) -> bool:
    """Whether this happened because a client left or sent rubbish, and is no fault of the app's
    (which may have wrapped it in an exception of its own)."""
    while error is not None:
        origin = error.__traceback__
        while origin is not None and origin.tb_next is not None:
            origin = origin.tb_next
        # eventlet raises there what is wrong with a chunked body, its early end included.
        broken_chunk = origin is not None and origin.tb_frame.f_code is _READ_CHUNKED
        if broken_chunk or getattr(error, "of_a_client", False):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Connection(list):  # type: ignore[type-arg]
    """eventlet's [address, socket, state], and what we know besides."""

    moves = 0
    upgraded = False
    head_is_awaited = False
    asks = False
    __hash__ = object.__hash__  # type: ignore[assignment]


class _HeadLines:
    """The lines of a head, and whether the empty one that completes it has come."""

    def __init__(self, lines: Any) -> None:
        self._lines = lines
        self.complete = False

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._lines.readline(size)
        self.complete = line in (b"\r\n", b"\n")
        return line


class _Body(eventlet.wsgi.Input):  # type: ignore[misc]
    """eventlet's body of a request, with a limit for what the app has left unread of it."""

    patience: float

    def discard(self, buffer_size: int = 16384) -> None:
        # Nobody waits for the rest of it, so it has as long as an idle connection.
        with eventlet.Timeout(self.patience, TimeoutError()):
            super().discard(buffer_size)


class _Protocol(eventlet.wsgi.HttpProtocol):  # type: ignore[misc]
    """eventlet's HTTP, with one deadline for a whole head and quiet about bad clients."""

    server: _Server
    rfile: Any

    def _read_request_line(self) -> bytes | str:
        """Wait for a request as long as keep-alive says (for a first one: as long as a head may
        take); then the rest of its head has ``head_timeout``, however slowly it dribbles."""
        options = self.server.options
        first = self.raw_requestline is None
        self.connection.settimeout(options.head_timeout if first else options.keep_alive)
        try:
            begun = self.rfile.peek(1)
            if first and (other := base.another_protocol(begun)):
                self.server.adapter.notice(*other)
                self._answer(b"400 Bad Request")
                return b""
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
        looks = self.server.adapter.looking and (not first or self.conn_state.asks)
        if looks and not self._is_ours(begun, first=first):
            self.close_connection = True
            return b""
        head = begun.lstrip(b"\r\n")
        if b"\n\r\n" not in head and b"\n\n" not in head:
            self._deadline = eventlet.Timeout(options.head_timeout, _HeadTimeout)
            self.conn_state.head_is_awaited = True
        line: bytes | str = super()._read_request_line()
        while line in (b"\r\n", b"\n"):  # RFC 9112, 2.2: to be skipped before a request
            line = super()._read_request_line()
        if len(line) >= self.server.url_length_limit:
            self._answer(b"414 URI Too Long")
            return b""
        # Set by eventlet for the head, and never wanted for the body: those are the app's.
        self.connection.settimeout(None)
        return line

    def _is_ours(self, begun: bytes, *, first: bool) -> bool:
        """Look at the next request before the server reads it: is it this worker's to serve?

        If not, the connection goes back to the master with all that was read of it, or is refused.

        Args:
            begun: what the buffered reader holds: all of it, and not consumed.
            first: it is the first one of its connection here.
        """
        adapter, peer = self.server.adapter, self.client_address[0] if self.client_address else ""
        adapter.counters["looked"] += 1
        look = adapter.look_first if first else adapter.look
        slot, read = look(begun, len(begun), peer), begun
        if slot == NEED_MORE:
            read = self._gather(len(begun), peer)
            slot = look(read, len(read), peer)
        if slot == adapter.slot:
            return True
        if slot >= 0:
            self.conn_state[2] = eventlet.wsgi.STATE_REQUEST  # not idle: who ends must not close it
            self.wfile.flush()
            carried = begun if read is begun else b""
            prefix = carried + bytes(self.connection.prefix)
            moves = self.conn_state.moves if first else 0
            adapter.hand_back(self.conn_state, prefix, moves, unheld=slot == base.UNHELD)
            self._moved = True
            return False
        whole = len(read) < self.server.options.max_head_size
        self._refuse(431 if slot == NEED_MORE and not whole else 400)
        return False

    def _gather(self, buffered: int, peer: str) -> bytes:
        """The whole head, where it is not all in the buffer; put back to be read again.

        It has ``head_timeout`` to come, however slowly. What comes back is incomplete if it is
        too long or the client has closed its side.
        """
        options, route = self.server.options, self.server.adapter.route
        head = bytearray(self.rfile.read(buffered))
        with eventlet.Timeout(options.head_timeout, _HeadTimeout):
            self.conn_state.head_is_awaited = True
            while route(head, len(head), peer) == NEED_MORE and len(head) < options.max_head_size:
                more = self.connection.recv(options.max_head_size)
                if not more:
                    break
                head += more
        self.conn_state.head_is_awaited = False
        self.connection.prefix = bytes(head) + bytes(self.connection.prefix)
        return bytes(head)

    def _refuse(self, status: int) -> None:
        """Answer as the master does."""
        self.close_connection = self._refused = True
        self.wfile.write(self.server.adapter.refusals[status])

    _moved = False
    _deadline: eventlet.Timeout | None = None
    raw_requestline: bytes | None = None
    environ: dict[str, Any] | None = None
    _refused = False

    def parse_request(self) -> bool:
        lines = self.rfile = _HeadLines(self.rfile)
        try:
            if not super().parse_request():
                return False
            # A line that is no field ends the fields for this parser, and only for this one: the
            # master may have routed by what comes after it. And the end of the stream ends them
            # too, for this parser, where the rest of the head is missing.
            if self.headers.defects or not lines.complete:
                self._answer(b"400 Bad Request")
                return False
            return True
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
        self.conn_state.head_is_awaited = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library says about a malformed head: HTML, without a status line."""
        self._answer(b"%d %s" % (code, HTTPStatus(code).phrase.encode()))

    def _answer(self, status: bytes) -> None:
        self.close_connection = self._refused = True
        self.wfile.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)

    def finish(self) -> None:
        if self._moved:
            return  # no shutdown: the connection lives on in its new owner
        if self._refused or self._body_is_unread():
            self._wait_until_read()
        super().finish()

    def _body_is_unread(self) -> bool:
        body = self.environ and self.environ["eventlet.input"]
        if not body:
            return False
        if body.chunked_input:
            return bool(body.chunk_length != 0)
        return bool(body.position < (body.content_length or 0))

    def _wait_until_read(self) -> None:
        """Let a client read its answer: to close while it still sends would reset the connection,
        and the answer with it (RFC 9112, 9.6)."""
        with contextlib.suppress(OSError), eventlet.Timeout(_LINGER, False):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(65536):
                pass

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        environ["wsgi.multiprocess"] = self.server.options.num > 1
        self.conn_state.upgraded = environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        return environ

    def handle_one_response(self) -> None:
        """eventlet's, with the app between: what it answers must leave the connection at the
        beginning of the next request."""
        begun, app = time.monotonic(), self.server.app
        status, headers = 0, list[tuple[str, str]]()
        returned = False

        def bodiless() -> bool:
            return self.command == "HEAD" or status in (204, 304)

        def application(environ: dict[str, Any], start_response: Any) -> Any:
            nonlocal returned

            def start(line: str, fields: Any, *exc_info: Any) -> Any:
                nonlocal status, headers
                status, headers = int(line[:3]), fields
                upgrade = "HTTP_UPGRADE" in environ or self.command == "CONNECT"
                if upgrade or (returned and bodiless()):
                    # Refused, so whatever the client sends next may be no HTTP; or too late to
                    # take away a body that must not be there (RFC 9110, 9.3.2).
                    self.close_connection = True
                write = start_response(line, fields, *exc_info)
                return (lambda _: write(b"")) if bodiless() else write

            result = app(environ, start)
            returned = True
            if status and bodiless():
                if hasattr(result, "close"):
                    result.close()
                return ()
            return result

        self.application = application
        access_log = self.server.adapter.access_log
        if access_log is None:
            super().handle_one_response()
            return
        try:
            super().handle_one_response()
        finally:
            size = {name.lower(): value for name, value in headers}.get("content-length", "")
            access_log.write(
                client=str(self.client_address[0]) if self.client_address else "",
                method=self.command,
                target=self.path,
                protocol=self.request_version,
                status=status or (101 if self.conn_state.upgraded else 500),
                size=int(size) if size.isdecimal() else None,
                seconds=time.monotonic() - begun,
                request={name.lower(): value for name, value in self.headers.items()},
                response=headers,
                environ=self.environ or {},
            )

    def log_message(self, format: str, *args: Any) -> None:
        """What BaseHTTPRequestHandler says about bad requests: clients' doing, not the log's."""
        log.debug("%s: " + format, self.client_address, *args)


class _Log:
    """Where eventlet's server writes: tracebacks of the app are errors, the rest is detail."""

    def info(self, message: str, *args: Any) -> None:
        text = (message % args if args else message).rstrip()
        if not text.startswith("Traceback "):
            log.debug("%s", text)
        elif _is_of_a_client(error := sys.exception()):
            log.debug("the client was lost: %s", error)
        else:
            log.error("%s", text)

    debug = info
    error = info


class _Server(eventlet.wsgi.Server):  # type: ignore[misc]
    """eventlet's server without a listener."""

    def __init__(self, app: Any, adapter: EventletAdapter) -> None:
        self.options = adapter.options
        self.adapter = adapter
        super().__init__(
            None,
            None,
            app,
            protocol=_Protocol,
            keepalive=adapter.options.keep_alive,
            log_output=False,  # nothing is formatted that nobody reads: see access_log
            url_length_limit=adapter.options.max_head_size,
            debug=False,
        )
        self.log = _Log()


class EventletAdapter(base.Adapter):
    """Serves with eventlet's WSGI server, a green thread a connection."""

    def run(self) -> None:
        self._ended = eventlet.event.Event()
        self._more_room = eventlet.event.Event()
        self._handing_back = eventlet.semaphore.Semaphore(1)
        self._held: dict[int, eventlet.event.Event] = {}
        self._departures = eventlet.patcher.original("select").epoll()
        self._one_ended = eventlet.event.Event()
        self._connections: set[_Connection] = set()
        # What the master lets through is to be served: eventlet's own limits are lower.
        eventlet.wsgi.MAX_HEADER_LINE = self.options.max_head_size
        eventlet.wsgi.MAX_TOTAL_HEADER_SIZE = self.options.max_head_size
        eventlet.wsgi.Input, _Body.patience = _Body, self.options.keep_alive
        self._server = _Server(as_wsgi(self.app), self)
        self._watch_signals()
        self.look_around()
        self.tell(channel.READY)
        eventlet.spawn_n(self._obey)
        eventlet.spawn_n(self._watch_departures)
        self._picking_up = eventlet.spawn(self._pick_up)
        self._ended.wait()

    def _obey(self) -> None:
        while not self.has_left:
            trampoline(self.control, read=True)
            self.receive_control()
            eventlet.sleep(0)

    def _pick_up(self) -> None:
        while True:
            trampoline(self.inbox, read=True)
            self.receive_connections()
            # Those adopted are begun now, before more are picked up: that is the bound.
            eventlet.sleep(0)
            if not self.has_room:
                self._more_room = eventlet.event.Event()
                self._more_room.wait()

    def _room(self) -> None:
        """A connection has ended: if that makes room for others, pick them up again."""
        self.recount()
        if not self._more_room.ready() and self.has_room:
            self._more_room.send()

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

    def adopt(
        self, fd: int, address: channel.Address, prefix: bytes, moves: int, asks: bool
    ) -> None:
        family = channel.socket_family(address)
        protocol = 0 if family == socket.AF_UNIX else socket.IPPROTO_TCP
        sock = _ClientSocket(family, socket.SOCK_STREAM, protocol, fd)
        sock.prefix = prefix
        connection = _Connection([address, sock, _IDLE])
        connection.moves, connection.asks = moves, asks
        # Not in a pool: connections are bounded by the descriptors, and a bound on green threads
        # would let long polls and websockets keep everyone else out.
        eventlet.spawn_n(self._serve, connection)

    def hand_back(
        self, connection: _Connection, prefix: bytes, moves: int, *, unheld: bool
    ) -> None:
        """Give a connection to the master, with what was read of its next request.

        Only one green thread may wait for a descriptor to become writable, so they take turns.
        """
        fd = connection[1].fileno()
        with self._handing_back:
            while True:
                try:
                    channel.send_connection(
                        self.control,
                        channel.HAND_BACK,
                        fd,
                        connection[0],
                        prefix,
                        moves=moves,
                        unheld=unheld,
                    )
                except BlockingIOError:
                    trampoline(self.control, write=True)
                except OSError as error:
                    if error.errno not in channel.PASSING:
                        raise
                    eventlet.sleep(_RETRY)
                else:
                    break
        self.counters["handed_back"] += 1
        self.counters["unheld"] += unheld

    def _serve(self, connection: _Connection) -> None:
        self.not_begun -= 1
        self._room()
        self.open += 1
        self._connections.add(connection)
        try:
            refusal = self._prepare(connection) if self.handlers or self.options.sync else 0
            if refusal:
                _refuse(connection[1], refusal)
            else:
                self._server.process_request(connection)
        except (OSError, EOFError, _HeadTimeout) as error:
            log.debug("%s: the connection failed: %s", connection[0], error)
        except Exception:
            log.exception("%s: an error outside the app", connection[0])
        finally:
            self._connections.discard(connection)
            self.open -= 1
            self._room()
            # Close the file itself: whoever still holds the socket object (an exception's
            # traceback, a reference cycle) would keep the descriptor until a garbage collection.
            fd = connection[1].fd.detach()
            if fd >= 0:
                eventlet.hubs.notify_close(fd)
                os.close(fd)
            if self.ending and not self._one_ended.ready():
                self._one_ended.send()

    def _prepare(self, connection: _Connection) -> int:
        """The handlers' turn, and with ``sync`` the wait for the event; 0, or a status."""
        sock = connection[1]
        head = bytes(sock.prefix) + base.peek(sock.fd, self.options.max_head_size)
        shown = self.introduce(connection[0], head, connection.moves)
        event = self.options.sync
        outcome = eventlet.event.Event()
        if event is not None:
            shown.hold(event, lambda: None if outcome.ready() else outcome.send(0))
        try:
            for handler in tuple(self.handlers):
                handler(shown)
        except Exception:
            self.handler_failed(shown)
            return 500
        if event is None or outcome.ready():
            return 0
        fd = sock.fileno()
        self._held[fd] = outcome
        self._departures.register(fd, _EPOLLRDHUP)
        try:
            with eventlet.Timeout(self.options.sync_timeout, False):
                status: int = outcome.wait()
                return status
            self.counters["sync_timeouts"] += 1
            return 503
        finally:
            shown.hold(event, None)  # too late
            self._departures.unregister(fd)
            del self._held[fd]

    def _watch_departures(self) -> None:
        """Notice clients that leave while the app has not released them.

        Their first bytes are there and are not read, so waiting for the socket to become readable
        would end at once: this epoll is asked for the closing only. (It is the real one, and is
        itself waited for like any descriptor.)
        """
        while True:
            trampoline(self._departures, read=True)
            for fd, _ in self._departures.poll(0):
                outcome = self._held.get(fd)
                if outcome is not None and not outcome.ready():
                    self.counters["left_unreleased"] += 1
                    outcome.send(503)
            eventlet.sleep(0)

    def close_after_answers(self) -> None:
        self._server.keepalive = False

    def finish(self) -> None:
        self._picking_up.kill()
        for connection in list(self._connections):
            if connection.upgraded or (connection[2] == _IDLE and _is_silent(connection[1])):
                _shut_down(connection[1])
        eventlet.spawn_n(self._wait_for_all)

    def _wait_for_all(self) -> None:
        with eventlet.Timeout(_LAST_HEAD, False):
            self._wait_until_empty()
        for connection in list(self._connections):
            if connection.head_is_awaited:
                _shut_down(connection[1])
        self._wait_until_empty()
        self.quit()

    def _wait_until_empty(self) -> None:
        while self.open or self.not_begun:
            self._one_ended = eventlet.event.Event()
            self._one_ended.wait()

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        eventlet.spawn_after(seconds, call)

    def quit(self) -> None:
        self.leave()
        if not self._ended.ready():
            self._ended.send()


def _refuse(sock: GreenSocket, status: int) -> None:
    """Answer, and read what the client still sends for a moment: closing with bytes unread would
    reset the connection, and the answer with it (RFC 9112, 9.6)."""
    sock.settimeout(1.0)
    sock.sendall(base.REFUSALS[status])
    sock.shutdown(socket.SHUT_WR)
    with eventlet.Timeout(1.0, False):
        while sock.recv(65536):
            pass


def _is_silent(sock: GreenSocket) -> bool:
    """Whether nothing has arrived that would still be answered."""
    return not base.peek(sock.fd, 1)


def _shut_down(sock: GreenSocket) -> None:
    with contextlib.suppress(OSError):  # its client was faster
        sock.shutdown(socket.SHUT_RDWR)


def as_wsgi(app: Any) -> Any:
    """The WSGI callable in what a factory returned."""
    flask_socketio = sys.modules.get("flask_socketio")
    socketio = sys.modules.get("socketio")
    if flask_socketio is not None and isinstance(app, flask_socketio.SocketIO):
        return app.sockio_mw
    if socketio is not None and isinstance(app, socketio.Server):
        return socketio.WSGIApp(app)
    return app
