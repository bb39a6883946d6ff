"""Connections that a proxy shares between clients, on uvicorn.

uvicorn's parsers read ahead, so what they are given must end where a request ends: the bytes are
kept here, fed one request at a time, and the head of each further request is looked at before the
parser sees it. Where a request ends is the parser's own word: it says what length a body has, and
whether a chunked one is over (which can be only at an empty line, so it is asked there). A body
goes to the parser even when its request has been answered already, unread.
"""

from __future__ import annotations

from typing import Any

from ..rules import NEED_MORE
from .base import UNHELD

CLOSE = (b"connection", b"close")

_CHUNKED = -1
_ENOUGH = 65536
"""Bytes of further requests that are kept while one is being answered; then reading pauses."""
_RETRY = 0.01


def shared(kind: Any) -> Any:
    """The protocol class, with a look at each further request. (See ``AsgiAdapter`` for what its
    instances have: ``_adapter``, ``_address``, ``_begins``, and the limits for a head.)"""

    class Protocol(kind):  # type: ignore[misc]
        timeout_keep_alive_task: Any
        _heads_are_whole = True

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._buffer = bytearray()
            self._left: int | None = None  # of the current request's body; None: between requests
            self._tail = b""  # of a chunked body: what may be the beginning of an empty line
            self._complete = False  # the current request, as httptools says
            self._first = True
            self._asks = False
            self._moves = 0  # for this request
            self._moving = False
            self._unheld = False
            self._full = False

        def asks_first(self, moves: int) -> None:
            """Have already the first request looked at, for which the connection moved so often."""
            self._asks, self._moves = True, moves

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                self._buffer += data
                self._advance()
                if self.cycle is None:
                    self._begins()

        def eof_received(self) -> None:
            self._advance()  # the turn of what is there may have come just now
            super().eof_received()

        def _head_has_begun(self) -> bool:
            return self._deadline is not None and bool(self._buffer)

        def on_message_complete(self) -> None:
            self._complete = True
            super().on_message_complete()

        def _is_complete(self) -> bool:
            """Whether the parser has seen the end of the current request."""
            conn = getattr(self, "conn", None)
            return self._complete if conn is None else str(conn.their_state) != "SEND_BODY"

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._buffer:
                # Not from here: the parser is in the middle of ending this request.
                self.loop.call_soon(self._advance)
            if self._full and not self.transport.is_closing():
                self._full = False
                self.transport.resume_reading()

        def connection_lost(self, error: Exception | None) -> None:
            self._buffer.clear()
            super().connection_lost(error)

        def _advance(self) -> None:
            """Feed what belongs to the current request; look at the next when it is its turn."""
            while self._buffer and not self._moving and not self.transport.is_closing():
                if self._refused:
                    self._buffer.clear()
                elif self._left is not None:
                    self._feed_body()
                elif self.cycle is not None and not self.cycle.response_complete:
                    if len(self._buffer) > _ENOUGH and not self._full:
                        self._full = True
                        self.transport.pause_reading()
                    return
                elif not self._feed_head():
                    return

        def _feed_head(self) -> bool:
            """Whether the next request's head was fed: it was all there, and ours to serve."""
            adapter, buffer = self._adapter, self._buffer
            peer = self._address[0] if self._address else ""
            look = adapter.look_first if self._first else adapter.look
            slot = look(buffer, len(buffer), peer)
            if slot == NEED_MORE:
                self._unset_keepalive_if_required()  # it is not idle any more
                if len(buffer) >= adapter.options.max_head_size:
                    self._refuse_head(431)
                elif self._deadline is None:
                    self._await_head()  # once: a client that dribbles does not extend it
                return False
            self._head_is_over()
            looks = not self._first or self._asks
            if looks:
                adapter.counters["looked"] += 1
            if slot < 0:
                self._refuse_head(400)
                return False
            if slot != adapter.slot and looks:
                self._moving, self._unheld = True, slot == UNHELD
                self._move()
                return False
            self._first, self._moves = False, 0
            blank = len(buffer) - len(buffer.lstrip(b"\r\n")) if buffer[0] in b"\r\n" else 0
            end = _end(buffer, blank)
            assert end  # the router has seen it
            head = bytes(memoryview(buffer)[:end])
            del buffer[:end]
            before, self._complete = self.cycle, False
            super().data_received(head)
            if self.transport.get_protocol() is not self:  # a websocket, from here on
                self.transport.get_protocol().data_received(bytes(buffer))
                buffer.clear()
                return False
            if self.transport.is_closing() or self._refused:
                return False
            if self.cycle is before:  # the parser takes this head to be longer than we do
                self._refuse_head(400)
                return False
            cycle = self.cycle
            upgrade = b"upgrade" in head.lower() and _field(cycle, b"upgrade") is not None
            if upgrade or cycle.scope["method"] == "CONNECT":
                # It was refused, so whatever the client sends next may be no HTTP.
                cycle.default_headers = [*cycle.default_headers, CLOSE]
            self._left = None if self._is_complete() else self._body_length()
            return True

        def _body_length(self) -> int:
            self._tail = b""
            length = _field(self.cycle, b"content-length")
            # With both the parser goes by the chunks (RFC 9112, 6.3), if it takes them at all.
            if length is None or _field(self.cycle, b"transfer-encoding") is not None:
                return _CHUNKED
            return int(length)

        def _feed_body(self) -> None:
            buffer, left = self._buffer, self._left
            assert left is not None
            if left == _CHUNKED:
                seen = len(self._tail)
                end = _end(self._tail + buffer)
                size = end - seen if end else len(buffer)
            else:
                size = min(left, len(buffer))
            piece = bytes(memoryview(buffer)[:size])
            del buffer[:size]
            answered, idle = self.cycle.response_complete, self.timeout_keep_alive_task
            if answered:  # nobody waits for the rest of it, so its time is limited
                self.timeout_keep_alive_task = None
            super().data_received(piece)
            if answered:
                self.timeout_keep_alive_task = idle
            if left == _CHUNKED:
                last = (self._tail + piece)[-2:]
                self._tail = last if last == b"\n\r" else last[1:] if last[1:] == b"\n" else b""
            else:
                self._left = left - size
            if self._is_complete():
                self._left = None
                if answered:
                    self._unset_keepalive_if_required()
                    self.timeout_keep_alive_task = self.loop.call_later(
                        self.timeout_keep_alive, self.timeout_keep_alive_handler
                    )
            elif self._left == 0 and not self._refused and not self.transport.is_closing():
                self._refuse_head(400)  # the parser takes this body to be longer than we do

        def _move(self) -> None:
            """Hand the connection back, once all that was answered on it has left this process."""
            transport = self.transport
            if transport.is_closing():
                return
            transport.pause_reading()
            self._unset_keepalive_if_required()
            if transport.get_write_buffer_size():
                self.loop.call_later(_RETRY, self._move)
                return
            prefix = bytes(self._buffer)
            self._adapter.hand_back(
                transport, self._address, prefix, self._moves, unheld=self._unheld
            )

    return Protocol


def _end(data: bytes | bytearray, start: int = 0) -> int:
    """Where the first empty line after ``start`` ends, the lines ending with CRLF or LF; 0: there
    is none. (h11 takes a bare LF in trailers too.)"""
    crlf = data.find(b"\n\r\n", start)
    lf = data.find(b"\n\n", start, crlf if crlf >= 0 else len(data))
    return lf + 2 if lf >= 0 else crlf + 3 if crlf >= 0 else 0


def _field(cycle: Any, wanted: bytes) -> bytes | None:
    """The value of a header field of the current request."""
    return next((value for name, value in cycle.scope["headers"] if name == wanted), None)
