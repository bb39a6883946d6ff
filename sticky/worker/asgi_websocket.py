"""A WebSocket of an ASGI app (ASGI 3, WebSocket format 2.4; RFC 6455, RFC 7692).

Handshake and frames are those of the package ``websockets``, which does no I/O. It sees none of our
bytes before its own first frame: what it accepts is the request as our parser has read it.

What an app does not receive is not read either: a client that sends more than a little ahead has to
wait. Pings and closings are seen while there is room.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from websockets.datastructures import Headers
from websockets.exceptions import InvalidState
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol

from ..core import Head
from .asgi_http import BEGUN, COMPLETE, NOTHING, SENT, Exchange, Message
from .asgi_scope import websocket_scope_of
from .boundary import _DONTWAIT as DONTWAIT
from .boundary import READ_SIZE
from .http1 import date_line, switch
from .wire import HIGH, LOW

if TYPE_CHECKING:
    from .asgi import AsgiService
    from .wire import AsgiWire

log = logging.getLogger("sticky.worker")

# It would format each frame at the level DEBUG, and says at INFO that a connection has ended.
_frames_log = logging.getLogger("sticky.worker.frames")
_frames_log.setLevel(logging.ERROR)

_CONT, _TEXT, _BINARY = Opcode.CONT, Opcode.TEXT, Opcode.BINARY
_CLOSE, _PONG = Opcode.CLOSE, Opcode.PONG

_OF_HANDSHAKE = (b"connection", b"upgrade", b"origin")
_OURS = (b"sec-websocket-accept", b"sec-websocket-extensions")
_ABNORMAL, _INVALID, _FAILED, _RESTART = 1006, 1007, 1011, 1012
CLOSE_TIMEOUT = 10.0
"""Seconds for a client to answer our closing frame."""
_OVERHEAD = 128
"""What a message that waits for the app counts beside its bytes."""

# As uvicorn has it: windows of 4 KB, which are enough for what is said on a WebSocket.
_DEFLATE = ServerPerMessageDeflateFactory(
    server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
)


class ClientDisconnected(OSError):  # noqa: N818 - as ASGI and uvicorn call it
    """The app sends something to a client that has left: what ASGI wants raised then."""


class WebSocket(Exchange):
    """A WebSocket, from its handshake to its end.

    Attributes:
        due, slice: it has a deadline of its own (``hub``): for pings, and for the last frame.
    """

    __slots__ = (
        "_behind",
        "_closing",
        "_code",
        "_connected",
        "_data",
        "_open",
        "_paused",
        "_ping",
        "_pinged",
        "_queue",
        "_queued",
        "_reason",
        "_response",
        "_said",
        "_text",
        "due",
        "protocol",
        "slice",
    )

    def __init__(self, service: AsgiService, wire: AsgiWire, head: Head) -> None:
        super().__init__(service, wire, head)
        self.scope = websocket_scope_of(service, wire, head)
        self.protocol = ServerProtocol(
            state=State.OPEN,
            extensions=[_DEFLATE],
            max_size=service.options.ws_max_size,
            logger=_frames_log,
        )
        self._response = self.protocol.accept(self._handshake())
        self._connected = False  # the app has been told of it
        self._open = False
        self._closing = False  # we have said that it ends
        self._said: int | None = None  # and with which code
        self._code: int | None = None  # with which it has ended
        self._reason = ""
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._paused = False
        self._data: list[bytes] = []  # of a message in fragments
        self._text = False
        self._ping: bytes | None = None
        self._pinged = 0.0
        self.due = math.inf
        self.slice = 0

    def _handshake(self) -> Handshake:
        """The request as the package reads it. (Its own parser refuses long cookies.)"""
        fields = [
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in self.scope["headers"]
            if name in _OF_HANDSHAKE or name.startswith(b"sec-websocket-")
        ]
        return Handshake(self.head.target.decode("latin-1"), Headers(fields))

    async def run(self) -> None:
        if self._response.status_code == 101:
            await super().run()
            return
        self.wire.begun()
        self.service.ended(self)
        self._deny(
            self._response.status_code,
            [
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in self._response.headers.raw_items()
            ],
            bytes(self._response.body or b""),
        )

    # -- what the app receives ----------------------------------------------------------------

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        queue = self._queue
        while not queue:
            if self._code is not None or self.left or self._closing:
                return self._disconnect()
            if not self._open:
                if self.wire.ended or self.stage != NOTHING:
                    return self._disconnect()
                self.wire.watch_quietly()
            await self.wait()
        message = queue.popleft()
        self._queued -= len(message.get("text") or message.get("bytes") or b"") + _OVERHEAD
        if self._paused:
            self.relieved()
        return message

    def relieved(self) -> None:
        """There may be room for more: read on, if that was waited for."""
        if self._paused and self._queued <= LOW and not self.wire.full:
            self._paused = False
            if not self.left and self._code is None:
                self.wire.read_with(self._read)

    def _disconnect(self) -> Message:
        code = self._said if self._closing else self._code
        if code is None:
            code = _ABNORMAL
        return {"type": "websocket.disconnect", "code": code, "reason": self._reason}

    # -- what it sends ------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        wire = self.wire
        if wire.full and not self.left:
            await wire.drain()
        kind = message["type"]
        if self._open:
            self._send_frame(kind, message)
        elif self.left or wire.ended:
            raise ClientDisconnected("the client has left")
        elif self.stage == NOTHING:
            self._send_first(kind, message)
        elif self.stage == COMPLETE:
            raise RuntimeError(f"Unexpected {kind!r}: the handshake is over.")
        elif kind == "websocket.http.response.body":
            self.send_body(message)
        else:
            raise RuntimeError(f"Expected 'websocket.http.response.body', but got {kind!r}.")

    def _send_frame(self, kind: str, message: Message) -> None:
        if self.left:
            raise ClientDisconnected("the client has left")
        if kind == "websocket.send":
            protocol = self.protocol
            data = message.get("bytes")
            try:
                if data is not None:
                    protocol.send_binary(data)
                else:
                    protocol.send_text(message["text"].encode())
            except InvalidState:
                raise self._over() from None
            self._flush()
        elif kind == "websocket.close":
            if self._closing:
                raise self._over()
            self._close(message.get("code", 1000), message.get("reason") or "")
        else:
            raise RuntimeError(f"Expected 'websocket.send' or 'websocket.close', but got {kind!r}.")

    def _over(self) -> Exception:
        if self._closing:
            return RuntimeError("Unexpected message: 'websocket.close' has been sent.")
        return ClientDisconnected("the client has left")

    def _send_first(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._deny(403, [], b"")
        elif kind == "websocket.http.response.start":
            self.begin_answer(message)
        else:
            raise RuntimeError(
                "Expected 'websocket.accept', 'websocket.close' or "
                f"'websocket.http.response.start', but got {kind!r}."
            )

    # -- the handshake ------------------------------------------------------------------------

    def _accept(self, message: Message) -> None:
        fields = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in self._response.headers.raw_items()
            if name != "Date"
        ]
        own = list(message.get("headers") or ())
        fields += [(name, value) for name, value in own if name.lower() not in _OURS]
        subprotocol = message.get("subprotocol")
        if subprotocol:
            fields.append((b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1")))
        marking = self.marking
        sent = fields if marking is None else marking.answer(101, fields)
        block = switch(sent, date_line(time.time()))
        self.status, self.fields, self.stage = 101, own, SENT
        self._open = True
        wire = self.wire
        behind = wire.upgrade()
        wire.write(block)
        if self.left:
            raise ClientDisconnected("the client has left")
        wire.read_with(self._read)
        self._schedule_ping(time.monotonic())
        if behind:
            self._received(behind)
        if self.service.draining.finishing:
            self.restart()

    def _deny(self, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer the handshake with something else than 101."""
        self.status, self.fields, self.stage = status, fields, BEGUN
        self.send_body({"body": body})

    def settle(self) -> None:
        if not self._open:
            super().settle()

    # -- what the client sends ----------------------------------------------------------------

    def arrived(self) -> None:
        """Something has arrived during the handshake; later the event loop calls ``_read``."""
        if self.wire.ended and self._waiters:
            self.wake()

    def _read(self) -> None:
        try:
            data = self.wire.sock.recv(READ_SIZE, DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(_ABNORMAL)
            self.wire.lost(error)
            return
        self._received(data)

    def _received(self, data: bytes) -> None:
        """Args: data: b"" at the end."""
        protocol = self.protocol
        if data:
            protocol.receive_data(data)
        else:
            self.wire.ended = True
            protocol.receive_eof()
        for frame in protocol.events_received():
            if self._code is None:
                self._got(frame)  # type: ignore[arg-type]  # handshakes are none of its business
        self._flush()
        if protocol.parser_exc is not None or not data:
            sent = protocol.close_sent
            broken = data and sent is not None and self._code is None and not self._closing
            if broken and sent is not None:
                self._end(sent.code, sent.reason)
            else:
                self._end(_ABNORMAL, "")
        elif (self._queued > HIGH or self.wire.full) and not self._paused and not self.left:
            self._paused = True
            self.wire.read_with(None)
        if self._waiters and (self._queue or self._code is not None):
            self.wake()

    def _got(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is _TEXT or opcode is _BINARY:
            if frame.fin:
                self._message(opcode is _TEXT, frame.data)
            else:
                self._text = opcode is _TEXT
                self._data = [bytes(frame.data)]
        elif opcode is _CONT:
            self._data.append(bytes(frame.data))
            if frame.fin:
                data, self._data = b"".join(self._data), []
                self._message(self._text, data)
        elif opcode is _PONG:
            if self._ping is not None and frame.data == self._ping:
                self._ping = None
                self._schedule_ping(self._pinged)
        elif opcode is _CLOSE:
            received = self.protocol.close_rcvd
            assert received is not None
            self._flush()
            self._end(received.code, received.reason)

    def _message(self, text: bool, data: Any) -> None:
        if self._closing:
            return  # the app has said that it wants no more
        if text:
            try:
                message = {"type": "websocket.receive", "text": str(data, "utf-8")}
            except UnicodeDecodeError as error:
                self.protocol.fail(_INVALID, f"{error.reason} at position {error.start}")
                self._flush()
                self._end(_INVALID, "")
                return
        else:
            message = {"type": "websocket.receive", "bytes": data}
        self._queue.append(message)
        self._queued += len(message.get("text") or data) + _OVERHEAD

    def _flush(self) -> None:
        """Send what the protocol has to say."""
        writes = self.protocol.data_to_send()
        if writes:
            data = writes[0] if len(writes) == 1 else b"".join(writes)
            if data and not self.left:
                self.wire.write(data)

    # -- time ---------------------------------------------------------------------------------

    def _schedule_ping(self, since: float) -> None:
        interval = self.service.options.ws_ping_interval
        if interval and not self._closing:
            self.service.hub.keep(self, since + interval)

    def ready(self, events: int) -> None:
        """It has no descriptor of its own."""

    def late(self, now: float) -> None:
        """A ping is due, or its answer is late, or that to our closing frame."""
        if self.left or self._code is not None:
            return
        if self._closing:
            self._end(_ABNORMAL, "")
        elif self._ping is None:
            self._send_ping(now)
        elif self._paused:
            self.service.hub.keep(self, now + self.service.options.ws_ping_timeout)
        else:
            self.protocol.fail(_FAILED, "keepalive ping timeout")
            self._flush()
            self._end(_FAILED, "keepalive ping timeout")
            self.wake()

    def _send_ping(self, now: float) -> None:
        options = self.service.options
        ping, self._pinged = os.urandom(4), now
        self.protocol.send_ping(ping)
        if options.ws_ping_timeout:
            self._ping = ping
            self.service.hub.keep(self, now + options.ws_ping_timeout)
        else:
            self._schedule_ping(now)
        self._flush()

    # -- how it ends --------------------------------------------------------------------------

    def _close(self, code: int, reason: str) -> None:
        """Say that it ends, and wait for the client's answer to that."""
        self.protocol.send_close(code, reason)
        self._closing, self._said, self._reason = True, code, reason
        self._queue.clear()
        self._queued = 0
        if self._paused:
            self._paused = False
            self.wire.read_with(self._read)
        self.service.hub.keep(self, time.monotonic() + CLOSE_TIMEOUT)
        self._flush()

    def restart(self) -> None:
        """This process ends: have the client come back to another."""
        if self.left or self._code is not None:
            return
        if not self._closing:
            self.protocol.send_close(_RESTART)
            self._flush()
        self._end(_RESTART, "")
        self.wake()

    def _end(self, code: int, reason: str) -> None:
        """Close the connection behind what has been sent."""
        self._ended(code, reason)
        if not self.left:
            self.left = True
            self.wire.exchange = None
            # A client that does not end it too may be sending: it is to read our last frame.
            self.wire.pending = self.protocol.close_rcvd is None and not self.wire.ended
            self.wire.end()

    def _ended(self, code: int, reason: str = "") -> None:
        if self._code is None:
            self._code, self._reason = code, reason
        self.stage = COMPLETE
        self.service.hub.forget(self)

    def gone(self) -> None:
        self._ended(_ABNORMAL)
        super().gone()

    def finish(self) -> None:
        """The handshake has been answered, and not with 101."""
        self._ended(_ABNORMAL)
        super().finish()

    def returned(self, result: object) -> None:
        if self._open:
            if not self.left and self._code is None and not self._closing:
                self._close(1000, "")
        elif self.stage != COMPLETE and not self.left:
            self.service.app_misbehaved(self.head, "the app returned without a handshake")
            self._refuse()

    def failed(self, error: BaseException) -> None:
        if not isinstance(error, ClientDisconnected):
            self.complain(error)
        if self._open:
            if not self.left and self._code is None and not self._closing:
                self._close(_FAILED, "")
        elif self.stage != COMPLETE and not self.left:
            self._refuse()

    def _refuse(self) -> None:
        if self.stage == SENT:
            self.break_off()
        else:
            self.answer_instead()
