"""asyncio: ASGI apps, FastAPI, socketio.AsyncServer, on uvicorn.

The server is uvicorn's own with nothing to listen on: each connection is given to its event loop
as if it had just been accepted. Its parsers, its lifespan and its websockets are kept as they are.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from typing import Any

import uvicorn

from .. import channel
from ..accesslog import AccessLog
from ..errors import WorkerError
from . import base

log = logging.getLogger("sticky.worker")

_CLOSE = (b"connection", b"close")


class _Messages(logging.Handler):
    """What uvicorn says while it starts: the reason, if it does not."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
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
            timeout_keep_alive=round(options.keep_alive),
            h11_max_incomplete_event_size=options.max_head_size,
        )
        with asyncio.Runner(loop_factory=self._config.get_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = False
        self._config.load()
        self._server = server = uvicorn.Server(self._config)
        server.lifespan = self._config.lifespan_class(self._config)
        await self._start()
        self._loop.add_signal_handler(signal.SIGTERM, self.end)
        self._loop.add_reader(self.control, self.receive_control)
        self._update_reading()
        self.look_around()
        self.tell(channel.READY)
        await server.main_loop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.options.graceful_timeout)
        await server.shutdown(sockets=[])

    async def _start(self) -> None:
        """uvicorn's start, with the app's lifespan; its reason is ours if that fails."""
        messages, logger = _Messages(), logging.getLogger("uvicorn.error")
        logger.addHandler(messages)
        try:
            await self._server.startup(sockets=[])
        except SystemExit:
            reason = "\n".join(messages.texts) or "the app's lifespan failed"
            raise WorkerError("\n" + reason.rstrip(), 3) from None
        finally:
            logger.removeHandler(messages)

    # -- picking up ---------------------------------------------------------------------------

    def _pick_up(self) -> None:
        self.receive_connections()
        self._update_reading()

    def _update_reading(self) -> None:
        """Look at the inbox only while there is room (it would stay readable, and spin)."""
        if self.has_room and not self._reading:
            self._reading = True
            self._loop.add_reader(self.inbox, self._pick_up)
        elif not self.has_room and self._reading:
            self._reading = False
            self._loop.remove_reader(self.inbox)

    def adopt(self, fd: int, address: channel.Address, prefix: bytes, came: str) -> None:
        family = channel.socket_family(address)
        protocol = 0 if family == socket.AF_UNIX else socket.IPPROTO_TCP
        sock = socket.socket(family, socket.SOCK_STREAM, protocol, fd)
        sock.setblocking(False)
        task = self._loop.create_task(self._begin(sock, address, prefix))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, sock: socket.socket, address: channel.Address, prefix: bytes) -> None:
        self.not_begun -= 1
        self.open += 1
        self._update_reading()
        adopted = False
        try:
            refusal = 0
            if self.handlers or self.options.sync:
                refusal = await self._prepare(sock, address, prefix)
            if refusal:
                await self._refuse(sock, refusal)
            else:
                await self._loop.connect_accepted_socket(lambda: self._protocol(prefix), sock)
                adopted = True
        except OSError as error:
            log.debug("%s: the connection failed: %s", address, error)
        finally:
            if not adopted:
                sock.close()
                self._closed()

    def _protocol(self, prefix: bytes) -> asyncio.Protocol:
        """uvicorn's protocol, told what was read before and asked when it ends."""
        adapter, kind = self, self._config.http_protocol_class

        class Protocol(kind):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                if prefix:
                    # At once: on uvloop the socket's own data would overtake it later.
                    self.data_received(prefix)

            def connection_lost(self, error: Exception | None) -> None:
                super().connection_lost(error)
                adapter._closed()

        protocol: asyncio.Protocol = Protocol(
            config=self._config,
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
        )
        return protocol

    def _closed(self) -> None:
        self.open -= 1
        self._update_reading()

    # -- events and sync ----------------------------------------------------------------------

    async def _prepare(self, sock: socket.socket, address: channel.Address, prefix: bytes) -> int:
        """The handlers' turn, and with ``sync`` the wait for the event; 0, or a status."""
        shown = self.introduce(
            address, prefix + base.peek(sock, self.options.max_head_size), "accepted"
        )
        event = self.options.sync
        outcome: asyncio.Future[int] = self._loop.create_future()

        def decide(status: int) -> None:
            if not outcome.done():
                outcome.set_result(status)

        if event is not None:
            shown.hold(event, lambda: decide(0))
        if not self.call_handlers(shown):
            return 500
        if event is None or outcome.done():
            return 0
        try:
            async with asyncio.timeout(self.options.sync_timeout):
                return await outcome
        except TimeoutError:
            self.counters["sync_timeouts"] += 1
            return 503
        finally:
            shown.hold(event, lambda: None)  # too late

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
        self._config.encoded_headers.append(_CLOSE)
        self._server.server_state.default_headers.append(_CLOSE)

    def finish(self) -> None:
        self._update_reading()
        engineio = sys.modules.get("engineio")
        if engineio is not None:
            for server in base.instances(engineio.AsyncServer):
                for session in list(server.sockets.values()):
                    task = self._loop.create_task(session.close(wait=False))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        self._server.should_exit = True

    def quit(self) -> None:
        self._server.force_exit = True
        self._server.should_exit = True


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
