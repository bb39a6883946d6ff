"""asyncio: ASGI apps, FastAPI, socketio.AsyncServer, on uvicorn.

The server is uvicorn's own with nothing to listen on: each connection is given to its event loop
as if it had just been accepted. Its parsers, its lifespan and its websockets are kept as they are.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvicorn

from .. import channel
from ..errors import WorkerError
from . import base
from .accesslog import AccessLog
from .asgi_shared import CLOSE, shared
from .sessions import close

log = logging.getLogger("sticky.worker")

_RETRY = 0.05
_LINGER = 2.0
"""Seconds for a refused client to read its answer, as in the master."""


class _Messages(logging.Handler):
    """What uvicorn says. While it starts: the reason, if it does not; later the app's errors are
    ours to log, and the rest (bad requests, of which clients can make any number) is detail."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.texts is None:
            level = record.levelno if record.levelno >= logging.ERROR else logging.DEBUG
            log.log(level, "%s", record.getMessage().rstrip(), exc_info=record.exc_info)
        elif record.levelno >= logging.ERROR:
            self.texts.append(self.format(record))


class AsgiAdapter(base.Adapter):
    """Serves with uvicorn on asyncio (or uvloop, where that is installed)."""

    def run(self) -> None:
        options = self.options
        app = as_asgi(self.app)
        self._config = uvicorn.Config(
            app if self.access_log is None else _logged(app, self.access_log),
            interface="auto",
            log_config=None,
            access_log=False,
            # The app sees the request as it was sent; whom to trust is its own decision.
            proxy_headers=False,
            timeout_keep_alive=options.keep_alive,  # type: ignore[arg-type]  # any number will do
            h11_max_incomplete_event_size=options.max_head_size,
        )
        with asyncio.Runner(loop_factory=self._config.get_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = False
        self._held: dict[int, asyncio.Future[int]] = {}
        self._departures = select.epoll()
        self._config.load()
        self._config.loaded_app = _framed(self._config.loaded_app)
        if not self.options.keep_alive:
            self._config.encoded_headers.append(CLOSE)
        self._protocol_class = _watched(self._config.http_protocol_class)
        if self.looking:
            self._protocol_class = shared(self._protocol_class)
        self._leaving: deque[tuple[Any, channel.Address, bytes, int, bool]] = deque()
        if self._config.ws_protocol_class is not None:
            self._config.ws_protocol_class = _counted(self._config.ws_protocol_class, self)
        self._server = server = uvicorn.Server(self._config)
        server.lifespan = self._config.lifespan_class(self._config)
        await self._start()
        self._loop.add_signal_handler(signal.SIGTERM, self.end)
        self._loop.add_reader(self.control, self.receive_control)
        self._loop.add_reader(self._departures.fileno(), self._see_departures)
        self._update_reading()
        self.look_around()
        self.tell(channel.READY)
        await server.main_loop()
        if self._tasks and not server.force_exit:
            await asyncio.wait(self._tasks, timeout=self.options.graceful_timeout)
        await server.shutdown(sockets=[])
        self._loop.remove_reader(self.control)
        self.leave()

    async def _start(self) -> None:
        """uvicorn's start, with the app's lifespan; its reason is ours if that fails."""
        messages, logger = _Messages(), logging.getLogger("uvicorn.error")
        logger.addHandler(messages)
        if not logger.level:  # or uvicorn takes it for one that wants a line for each connection
            logger.setLevel(logging.DEBUG)
        logger.propagate = self.options.log_config is not None
        try:
            await self._server.startup(sockets=[])
        except SystemExit:
            reason = "\n".join(messages.texts or ()) or "the app's lifespan failed"
            raise WorkerError("\n" + reason.rstrip(), 3) from None
        messages.texts = None
        if self.options.log_config is not None:  # that file says what becomes of it
            logger.removeHandler(messages)

    # -- picking up ---------------------------------------------------------------------------

    def _pick_up(self) -> None:
        # Those adopted mostly begin in this same turn of the loop, so that there is room again
        # before the inbox is looked at: only if there is not, looking at it ends.
        if self.has_room:
            self.receive_connections()
        else:
            self._update_reading()

    def _update_reading(self) -> None:
        """Look at the inbox only while there is room (it would stay readable, and spin)."""
        if self.has_room and not self._reading:
            self._reading = True
            self._loop.add_reader(self.inbox, self._pick_up)
        elif not self.has_room and self._reading:
            self._reading = False
            self._loop.remove_reader(self.inbox)

    def adopt(
        self, fd: int, address: channel.Address, prefix: bytes, moves: int, asks: bool
    ) -> None:
        family = channel.socket_family(address)
        protocol = 0 if family == socket.AF_UNIX else socket.IPPROTO_TCP
        sock = socket.socket(family, socket.SOCK_STREAM, protocol, fd)
        sock.setblocking(False)
        self._start_task(self._begin(sock, address, prefix, moves, asks))

    async def _begin(
        self, sock: socket.socket, address: channel.Address, prefix: bytes, moves: int, asks: bool
    ) -> None:
        self.open += 1
        begins = self._beginning()
        adopted = False
        try:
            refusal = 0
            if self.handlers or self.options.sync:
                begins()
                refusal = await self._prepare(sock, address, prefix, moves)
            if refusal:
                await self._refuse(sock, refusal)
            else:
                if not prefix and not base.peek(sock, 1):
                    begins()  # it is its client who is waited for
                await self._loop.connect_accepted_socket(
                    lambda: self._protocol(address, prefix, begins, moves if asks else None), sock
                )
                adopted = True
        except OSError as error:
            log.debug("%s: the connection failed: %s", address, error)
        finally:
            if not adopted:
                begins()
                sock.close()
                self.closed()

    def _beginning(self) -> Callable[[], None]:
        """What is called when a connection begins; what it is called for later is not news."""
        counts = True

        def begins() -> None:
            nonlocal counts
            if counts:
                counts = False
                self.not_begun -= 1
                self._update_reading()

        return begins

    def _protocol(
        self,
        address: channel.Address,
        prefix: bytes,
        begins: Callable[[], None],
        asked_after: int | None,
    ) -> asyncio.Protocol:
        """Args: asked_after: so many moves, if already the first request is to be looked at."""
        protocol: asyncio.Protocol = self._protocol_class(
            self,
            address,
            prefix,
            begins,
            config=self._config,
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
        )
        if asked_after is not None:
            protocol.asks_first(asked_after)  # type: ignore[attr-defined]
        return protocol

    def hand_back(
        self, transport: Any, address: channel.Address, prefix: bytes, moves: int, *, unheld: bool
    ) -> None:
        """Give a connection to the master, with what was read of its next request."""
        self._leaving.append((transport, address, prefix, moves, unheld))
        if len(self._leaving) == 1:
            self._send_back()

    def _send_more_back(self) -> None:
        self._loop.remove_writer(self.control)
        self._send_back()

    def _send_back(self) -> None:
        """Send those that are leaving, in order; go on when there is room for the next."""
        while self._leaving:
            transport, address, prefix, moves, unheld = self._leaving[0]
            if not transport.is_closing():  # the client may have left meanwhile
                fd = transport.get_extra_info("socket").fileno()
                try:
                    channel.send_connection(
                        self.control,
                        channel.HAND_BACK,
                        fd,
                        address,
                        prefix,
                        moves=moves,
                        unheld=unheld,
                    )
                except BlockingIOError:
                    self._loop.add_writer(self.control, self._send_more_back)
                    return
                except OSError as error:
                    if error.errno not in channel.PASSING:
                        raise
                    self._loop.call_later(_RETRY, self._send_back)
                    return
                self.counters["handed_back"] += 1
                self.counters["unheld"] += unheld
                transport.abort()  # which is close(2) and no shutdown: it lives on elsewhere
            self._leaving.popleft()

    def closed(self) -> None:
        """A connection has ended."""
        self.recount()
        self.open -= 1
        if not self._reading:
            self._update_reading()

    # -- events and sync ----------------------------------------------------------------------

    async def _prepare(
        self, sock: socket.socket, address: channel.Address, prefix: bytes, moves: int
    ) -> int:
        """The handlers' turn, and with ``sync`` the wait for the event; 0, or a status."""
        shown = self.introduce(address, prefix + base.peek(sock, self.options.max_head_size), moves)
        event = self.options.sync
        outcome: asyncio.Future[int] = self._loop.create_future()

        def release() -> None:
            # What takes long belongs into a thread here, so it may be emitted from there.
            self._loop.call_soon_threadsafe(_decide, outcome, 0)

        if event is not None:
            shown.hold(event, release)
        try:
            for handler in tuple(self.handlers):
                pending = handler(shown)
                if inspect.isawaitable(pending):
                    await pending
        except Exception:
            self.handler_failed(shown)
            return 500
        if event is None or shown.released:
            return 0
        fd = sock.fileno()
        self._held[fd] = outcome
        self._departures.register(fd, select.EPOLLRDHUP)
        try:
            async with asyncio.timeout(self.options.sync_timeout):
                return await outcome
        except TimeoutError:
            self.counters["sync_timeouts"] += 1
            return 503
        finally:
            shown.hold(event, None)  # too late
            self._departures.unregister(fd)
            del self._held[fd]

    def _see_departures(self) -> None:
        """Notice clients that leave while the app has not released them: their first bytes are
        there and are not read, so only this closing can be waited for."""
        for fd, _ in self._departures.poll(0):
            outcome = self._held[fd]
            if not outcome.done():
                self.counters["left_unreleased"] += 1
                outcome.set_result(503)

    async def _refuse(self, sock: socket.socket, status: int) -> None:
        """Answer, and read what the client still sends for a moment (RFC 9112, 9.6)."""
        await self._loop.sock_sendall(sock, base.REFUSALS[status])
        sock.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(1.0):
                while await self._loop.sock_recv(sock, 65536):
                    pass
        except TimeoutError:
            pass

    # -- ending -------------------------------------------------------------------------------

    def close_after_answers(self) -> None:
        # Once a second uvicorn makes its default headers anew, from these.
        self._config.encoded_headers.append(CLOSE)
        self._server.server_state.default_headers.append(CLOSE)

    def finish(self) -> None:
        self._update_reading()
        self._server.should_exit = True

    def end_session(self, session: Any) -> None:
        pending = close(session)
        if pending is not None:  # of an asynchronous server
            self._start_task(_awaited(pending))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        self._loop.call_later(seconds, call)

    def quit(self) -> None:
        # What is cut off now is cancelled by us, and that is no error of the app's.
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        self._server.force_exit = True
        self._server.should_exit = True


async def _awaited(pending: Awaitable[object]) -> None:
    try:
        await pending
    except Exception:  # one session's trouble must not keep the others
        log.debug("closing a session failed", exc_info=True)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _decide(outcome: asyncio.Future[int], status: int) -> None:
    if not outcome.done():
        outcome.set_result(status)


def _watched(kind: Any) -> Any:
    """uvicorn's protocol, told what was read before; with limits for a head, which it lacks."""

    class Protocol(kind):  # type: ignore[misc]
        app: Any
        headers: Any
        _heads_are_whole = False  # when they are given to the parser

        def __init__(
            self,
            adapter: AsgiAdapter,
            address: channel.Address,
            prefix: bytes,
            begins: Callable[[], None],
            **arguments: Any,
        ) -> None:
            super().__init__(**arguments)
            self._adapter = adapter
            self._address = address
            self._prefix = prefix
            self._begins = begins
            self._called, self.app = self.app, self._call
            self._begun = False
            self._refused = False
            self._head_size = 0
            self._deadline: asyncio.TimerHandle | None = None

        def _call(self, scope: Any, receive: Any, send: Any) -> Any:
            """The app, when it is called for the first request."""
            self._begins()
            self.app = self._called
            return self.app(scope, receive, send)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if not (self._prefix and self._heads_are_whole):
                self._await_head()
            if self._prefix:
                # At once: on uvloop the socket's own data would overtake it later.
                self.data_received(self._prefix)

        def connection_lost(self, error: Exception | None) -> None:
            self._head_is_over()
            super().connection_lost(error)
            self._begins()
            self._adapter.closed()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return  # read and forgotten
            if not self._begun:
                self._begun = True
                if other := base.another_protocol(data):
                    self._adapter.notice(*other)
            super().data_received(data)
            conn = getattr(self, "conn", None)
            if conn is not None:  # h11 has no callbacks, but a state
                if "IDLE" not in str(conn.their_state):
                    self._head_is_over()
                elif conn.trailing_data[0] and self._deadline is None:
                    self._await_head()
            if self._deadline is not None:
                self._head_size += len(data)
                if self._head_size > self._adapter.options.max_head_size:
                    self._refuse_head(431)
            if self.cycle is None:
                self._begins()  # there is no request yet, or none for this protocol

        def eof_received(self) -> None:
            """The client has closed its side, which closes the connection; in the middle of a head
            it is told so."""
            if self._head_has_begun():
                self._refuse_head(400)

        def _head_has_begun(self) -> bool:
            return self._deadline is not None and self._head_size > 0

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._deadline is None and not self._heads_are_whole:
                self._await_head()

        def on_headers_complete(self) -> None:
            self._head_is_over()
            super().on_headers_complete()
            # httptools reports trailers as it does headers, and the app has that list already: an
            # address in a trailer is nothing that we routed by (RFC 9110, 6.5.1).
            self.headers = list(self.headers)

        def _await_head(self) -> None:
            self._head_size = 0
            seconds = self._adapter.options.head_timeout
            self._deadline = self.loop.call_later(seconds, self._refuse_head, 408)

        def _head_is_over(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _refuse_head(self, status: int) -> None:
            self._head_is_over()
            if self._refused or self.transport.is_closing():
                return
            # A pipelined head may be late while its predecessor is still being answered.
            if self.cycle is not None and not self.cycle.response_complete:
                self.transport.close()
            else:
                self._refuse(status)

        def send_400_response(self, msg: str) -> None:
            """What uvicorn says about rubbish: in the middle of another answer, if need be."""
            cycle = self.cycle
            if cycle is None or cycle.response_complete:
                self._refuse(400)
            elif cycle.response_started or not cycle.more_body:
                self.transport.close()
            else:  # a body, which the app is waiting for
                self._refuse(400)
                cycle.disconnected = True
                cycle.message_event.set()

        def _refuse(self, status: int) -> None:
            self._head_is_over()
            self.transport.write(self._adapter.refusals[status])
            self.linger()

        def linger(self) -> None:
            """Close, but let the client read its answer: to close while it still sends would reset
            the connection, and the answer with it (RFC 9112, 9.6)."""
            self._unset_keepalive_if_required()
            self._refused = True
            self.transport.write_eof()
            self.transport.resume_reading()
            self.loop.call_later(_LINGER, self.transport.close)

    return Protocol


def _counted(kind: Any, adapter: AsgiAdapter) -> Any:
    """uvicorn's protocol for websockets, which takes the place of the other in mid-connection."""

    class Protocol(kind):  # type: ignore[misc]
        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            adapter.closed()

    return Protocol


class _Lingering:
    """A connection's transport, for an answer that comes before the request's end: closed behind
    it, but not before the client could read it."""

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._transport = cycle.transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if self._cycle.more_body and not self._transport.is_closing():
            self._transport.get_protocol().linger()
        else:
            self._transport.close()


def _framed(app: Any) -> Any:
    """The app, where its answers could be misread by the next client of the same connection, or not
    be read at all.

    uvicorn writes the body of a 204 or 304 if it was given with its length (RFC 9110, 15.3.5 and
    15.4.5: there is none), leaves it open whether a client that waits for 100 will still send the
    body that nobody asked for, and closes at once behind an answer, even while a body comes.
    """

    def framed(scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] != "http":
            return app(scope, receive, send)
        bodiless = False

        def checked(message: Any) -> Any:
            nonlocal bodiless
            if message["type"] == "http.response.start":
                cycle = send.__self__
                if cycle.more_body:
                    cycle.transport = _Lingering(cycle)
                if cycle.waiting_for_100_continue:
                    cycle.default_headers = [*cycle.default_headers, CLOSE]
                if bodiless := message["status"] in (204, 304):
                    headers = [
                        (name, value)
                        for name, value in message.get("headers", ())
                        if name.lower() not in (b"content-length", b"transfer-encoding")
                    ]
                    message = {**message, "headers": headers}
            elif bodiless and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            return send(message)

        return app(scope, receive, checked)

    return framed


def _logged(app: Any, access_log: AccessLog) -> Any:
    """The app, with a line for each of its answers."""

    async def logged(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        begun, status, size = time.monotonic(), 500, 0
        headers = list[tuple[str, str]]()

        async def watched(message: Any) -> None:
            nonlocal status, size, headers
            kind = message["type"]
            if kind in ("http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                headers = _as_text(message.get("headers", ()))
            elif kind == "http.response.body":
                size += len(message.get("body", b""))
            elif kind == "websocket.close" and status == 500:
                status = 403
            await send(message)

        try:
            await app(scope, receive, watched)
        finally:
            query = scope["query_string"].decode("latin-1")
            access_log.write(
                client=scope["client"][0] if scope["client"] else "",
                method=scope.get("method", "GET"),
                target=scope["raw_path"].decode("latin-1") + ("?" + query if query else ""),
                protocol=f"HTTP/{scope['http_version']}",
                status=status,
                size=size,
                seconds=time.monotonic() - begun,
                request=dict(_as_text(scope["headers"])),
                response=headers,
                environ=scope,
            )

    return logged


def _as_text(headers: Any) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def as_asgi(app: Any) -> Any:
    """The ASGI callable in what a factory returned."""
    socketio = sys.modules.get("socketio")
    if socketio is not None and isinstance(app, socketio.AsyncServer):
        return socketio.ASGIApp(app)
    return app
