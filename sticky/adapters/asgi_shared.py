"""Connections that a proxy shares between clients, on uvicorn.

uvicorn's parsers read ahead, so what they are given must end where a request ends: the bytes are
kept here, fed one request at a time, and the head of each further request is looked at before the
parser sees it. Where a request ends is the parser's own word: it says what length a body has, and
whether a chunked one is over (which can be only at an empty line, so it is asked there).
"""

from __future__ import annotations

import re
from typing import Any

from ..verdicts import NEED_MORE

CLOSE = (b"connection", b"close")

_HEAD = re.compile(rb"[\r\n]*[^\r\n].*?\n\r?\n", re.DOTALL)
_CHUNKED = -1
_ENOUGH = 65536
"""Bytes of further requests that are kept while one is being answered; then reading pauses."""
_RETRY = 0.01


def shared(kind: Any) -> Any:
    """The protocol class, with a look at each further request. (See ``AsgiAdapter`` for what its
    instances have: ``_adapter``, ``_address``, and the limits for a head.)"""

    class Protocol(kind):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._buffer = bytearray()
            self._left: int | None = None  # of the current request's body; None: between requests
            self._tail = b""  # of a chunked body: what may be the beginning of an empty line
            self._first = True
            self._moving = False
            self._full = False

        def data_received(self, data: bytes) -> None:
            self._buffer += data
            self._advance()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._buffer:
                # Not from here: the parser is in the middle of ending this request.
                self.loop.call_soon(self._advance)
            if self._full:
                self._full = False
                self.transport.resume_reading()

        def connection_lost(self, error: Exception | None) -> None:
            self._buffer.clear()
            super().connection_lost(error)

        def _advance(self) -> None:
            """Feed what belongs to the current request; look at the next when it is its turn."""
            while self._buffer and not self._moving and not self.transport.is_closing():
                if self._left is not None:
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
            slot = adapter.route(buffer, len(buffer), peer)
            if not self._first:
                adapter.counters["looked"] += 1
            if slot == NEED_MORE:
                if len(buffer) >= adapter.options.max_head_size:
                    self._refuse_head(431)
                elif self._deadline is None:
                    self._await_head()  # once: a client that dribbles does not extend it
                return False
            self._head_is_over()
            if slot < 0:
                self._refuse_head(400)
                return False
            if slot != adapter.slot and not self._first:
                self._moving = True
                self._move()
                return False
            self._first = False
            found = _HEAD.match(buffer)
            assert found is not None  # the router has seen its end
            head = found[0]
            del buffer[: found.end()]
            super().data_received(head)
            if self.transport.get_protocol() is not self:  # a websocket, from here on
                self.transport.get_protocol().data_received(bytes(buffer))
                buffer.clear()
                return False
            if self.transport.is_closing() or self.cycle is None:
                return False
            if b"pgrade" in head and _field(self.cycle, b"upgrade") is not None:
                # It was refused, so whatever the client sends next may be no HTTP.
                self.cycle.default_headers = [*self.cycle.default_headers, CLOSE]
            self._left = self._body_length() if self.cycle.more_body else None
            return True

        def _body_length(self) -> int | None:
            length = _field(self.cycle, b"content-length")
            if length is not None:
                return int(length)
            self._tail = b""
            return _CHUNKED

        def _feed_body(self) -> None:
            buffer, left = self._buffer, self._left
            assert left is not None
            if left == _CHUNKED:
                seen = len(self._tail)
                found = (self._tail + buffer).find(b"\r\n\r\n")
                size = len(buffer) if found < 0 else found + 4 - seen
            else:
                size = min(left, len(buffer))
            piece = bytes(memoryview(buffer)[:size])
            del buffer[:size]
            super().data_received(piece)
            if left == _CHUNKED:
                self._tail = (self._tail + piece)[-3:]
                if self.cycle is None or not self.cycle.more_body:
                    self._left = None
            else:
                self._left = left - size or None

        def _move(self) -> None:
            """Hand the connection back, once all that was answered on it has left this process."""
            transport = self.transport
            if transport.is_closing():
                return
            transport.pause_reading()
            if transport.get_write_buffer_size():
                self.loop.call_later(_RETRY, self._move)
                return
            self._unset_keepalive_if_required()
            self._adapter.hand_back(transport, self._address, bytes(self._buffer))

    return Protocol


def _field(cycle: Any, wanted: bytes) -> bytes | None:
    """The value of a header field of the current request."""
    return next((value for name, value in cycle.scope["headers"] if name == wanted), None)
