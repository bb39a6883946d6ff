"""HTTP/1.1 on one connection, between its boundaries.

Bytes go in and requests come out; answers go in and bytes come out.

No I/O and no clock: whoever owns the socket reads, writes, and watches the time. The rules:

* A boundary is where one request has ended, with its body, and its answer too. What was read behind
  it stays in ``buffer``. Only there a connection can rest, move, or pass to another process.
* What is a request, and where it ends, says the core (RFC 9112), the same that routes by its head.
* How an answer is framed is decided here and not by the app: an answer to HEAD, a 204 and a 304
  have no body (RFC 9110, 6.4.1); a length that the app gives is kept to; else the length is given
  where the whole body is there, and where it is not the body is sent in chunks, or ends with the
  connection for an HTTP/1.0 client (RFC 9112, 6.3). Never more bytes than the length said.
* A connection stays open if its client wants that and both sides know where the answer ends. It
  does not after a refused upgrade (what the client sends next may be no HTTP), nor where the client
  was to wait for 100 and never got it (whether it sends the body nobody can know).
* A body that the app has left unread is read on and dropped, so that the next request can be found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

from ..core import Chunks, Head, end_of_head, parse
from ..rules import CHUNKED, refusal, status

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REASON: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_SWITCHING: Final = b"HTTP/1.1 101 "
_FIELD: Final = re.compile(rb"([^:\s]+):[ \t]*(.*?)[ \t]*", re.DOTALL)
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_MOST_NAMES: Final = 1000

# What a field of an answer is to us.
_PLAIN, _LENGTH, _CONNECTION, _DATE, _HOP = range(5)
_MEANING: Final = {
    b"content-length": _LENGTH,
    b"connection": _CONNECTION,
    b"date": _DATE,
    # RFC 9110, 7.6.1: they are between us and the client, and not the app's to send.
    b"transfer-encoding": _HOP,
    b"keep-alive": _HOP,
    b"proxy-connection": _HOP,
    b"te": _HOP,
    b"trailer": _HOP,
    b"upgrade": _HOP,
}

# How the body of an answer is framed.
NO_BODY, LENGTH, IN_CHUNKS, UNTIL_CLOSE = range(4)

_names: dict[bytes | str, tuple[bytes, int]] = {}


class Refused(Exception):  # noqa: N818 - nothing of ours is wrong
    """What the client has sent is not to be served: ``status`` says how to answer, ``why`` is for
    people."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class BadAnswer(ValueError):  # noqa: N818
    """What the app answers cannot be sent; the message says what is wrong with it."""


def _learn(name: bytes | str) -> tuple[bytes, int]:
    """A field's name as it is sent, with its colon, and its meaning."""
    try:
        raw = name.encode("latin-1") if isinstance(name, str) else bytes(name)
    except (UnicodeEncodeError, TypeError):
        raise BadAnswer(f"the name of a field of the answer is {name!r}") from None
    if not _TOKEN.fullmatch(raw):
        raise BadAnswer(f"the name of a field of the answer is {name!r}: it must be a token")
    known = raw + b": ", _MEANING.get(raw.lower(), _PLAIN)
    if len(_names) < _MOST_NAMES:
        _names[name] = known
    return known


def reason_of(status: int) -> bytes:
    """The phrase that belongs to a status."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def _status_line(status: int, reason: bytes) -> bytes:
    if not 200 <= status <= 999 or not _REASON.fullmatch(reason):
        raise BadAnswer(f"the status of the answer is {status!r} {reason!r}")
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def status_line(text: str) -> tuple[int, bytes]:
    """The status in "200 OK" (PEP 3333), and its line.

    Raises:
        BadAnswer: it is none.
    """
    known = _statuses.get(text)
    if known is None:
        code, _, reason = text.partition(" ")
        if len(code) != 3 or not code.isdecimal() or not code.isascii():
            raise BadAnswer(f"the status of the answer is {text!r}")
        try:
            known = int(code), _status_line(int(code), reason.encode("latin-1"))
        except UnicodeEncodeError:
            raise BadAnswer(f"the status of the answer is {text!r}") from None
        if len(_statuses) < _MOST_NAMES:
            _statuses[text] = known
    return known


_statuses: dict[str, tuple[int, bytes]] = {}
_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
    if status >= 200
}


_date = -1, b""


def date_line(now: float) -> bytes:
    """The line that says when an answer was made (RFC 9110, 6.6.1).

    Args:
        now: seconds since the epoch.
    """
    global _date
    second = int(now)
    if _date[0] != second:
        _date = second, b"Date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")
    return _date[1]


def switch(fields: Iterable[tuple[bytes, bytes]], date: bytes) -> bytes:
    """The head of a 101 that takes the connection to WebSocket (RFC 6455, 4.2.2).

    Args:
        fields: beside those that every such answer has: Sec-WebSocket-Accept, and what the app
            adds. What is ours to say is left out.
        date: the line of that name.

    Raises:
        BadAnswer: a name or a value cannot be sent.
    """
    lines = [b"HTTP/1.1 101 Switching Protocols\r\n", date]
    lines.append(b"Upgrade: websocket\r\nConnection: Upgrade\r\n")
    for name, value in fields:
        sent, meaning = _names.get(name) or _learn(name)
        if re.search(rb"[\r\n\0]", value):
            raise BadAnswer(f"a field of the answer has CR, LF or NUL in it: {name!r}: {value!r}")
        if not meaning:
            lines.append(b"%b%b\r\n" % (sent, value))
    lines.append(b"\r\n")
    return b"".join(lines)


def retell(
    data: Any, change: Callable[[list[tuple[bytes, bytes]]], Iterable[tuple[Any, Any]]]
) -> Any:
    """The 101 that an app writes itself, with other fields.

    Args:
        data: what it writes first, anything that is like bytes.
        change: called with the fields of the answer; returns those that are sent.

    Returns:
        What is sent: the same object if it does not begin with the whole head of a 101.
    """
    if bytes(memoryview(data).cast("B")[: len(_SWITCHING)]) != _SWITCHING:
        return data
    head, end, rest = bytes(data).partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    found = [_FIELD.fullmatch(line) for line in lines]
    if not end or None in found:
        return data
    fields = [(field[1], field[2]) for field in found if field]
    sent = list(change(fields))
    if sent == fields:
        return data
    return b"\r\n".join([first, *(b"%b: %b" % field for field in sent)]) + end + rest


class Http1:
    """One connection's HTTP.

    Attributes:
        head: of the request in hand; None at a boundary.
        stays: whether the connection may stay open behind the answer in hand. Anybody may set it to
            False before the answer begins.
        framing: of the answer in hand, once it has begun.
    """

    __slots__ = (
        "_chunks",
        "_limit",
        "_read",
        "_seen",
        "buffer",
        "continued",
        "framing",
        "head",
        "left",
        "left_to_send",
        "stays",
    )

    def __init__(self, limit: int) -> None:
        """``limit``: bytes that a head may have."""
        self.buffer: bytes | bytearray = b""
        self._read = 0  # so much of the buffer belongs to what is over
        self._seen = 0  # so much of it holds no end of a head
        self._limit = limit
        self.head: Head | None = None
        self.left = 0  # of the request's body; CHUNKED: as its decoder says
        self._chunks: Chunks | None = None
        self.continued = False
        self.framing = NO_BODY
        self.left_to_send = 0
        self.stays = True

    # -- the request --------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """The client has sent this."""
        if self._read == len(self.buffer):
            self.buffer, self._read = data, 0
            return
        if type(self.buffer) is bytes or self._read:
            self.buffer = bytearray(memoryview(self.buffer)[self._read :])
            self._read = 0
        self.buffer += data

    def next_head(self) -> Head | None:
        """The next request, if its head is all there; the connection is at a boundary. It begins
        with ``begin``; until then nothing is consumed.

        Raises:
            Refused: it is malformed, or its head too long.
        """
        buffer = self.buffer
        if not buffer:
            return None
        if self._seen and len(buffer) < self._limit and not end_of_head(buffer, 0, self._seen):
            self._seen = len(buffer)
            return None
        head = parse(buffer, 0, self._limit)
        if isinstance(head, Head):
            return head
        if head:
            raise Refused(status(head), refusal(head))
        self._seen = len(buffer)
        return None

    def begin(self, head: Head) -> None:
        """Serve this request."""
        self.head = head
        self._read = head.end
        self.left = head.length
        self._chunks = Chunks() if head.length == CHUNKED else None
        self.continued = False
        self.stays = head.keep_alive
        self.framing = NO_BODY
        self.left_to_send = 0

    @property
    def body_is_over(self) -> bool:
        """Whether the request's body has been taken to its end."""
        chunks = self._chunks
        return not self.left if chunks is None else chunks.over

    @property
    def wants_continue(self) -> bool:
        """Whether the client waits for ``CONTINUE`` before it sends its body (RFC 9110, 10.1.1).
        One that has begun to send it does not."""
        head = self.head
        return (
            head is not None
            and head.expects
            and not self.continued
            and not self.body_is_over
            and self._read == len(self.buffer)
        )

    def body(self) -> bytes:
        """What is there of the body; b"": nothing (see ``body_is_over``).

        Raises:
            Refused: it is malformed; the connection is of no use any more.
        """
        buffer, start = self.buffer, self._read
        size = len(buffer) - start
        if not size:
            return b""
        if self._chunks is not None:
            if self._chunks.over:
                return b""
            self.continued = True
            try:
                self._read, data = self._chunks.feed(buffer, start, len(buffer))
            except ValueError as error:
                self.stays = False
                raise Refused(400, str(error)) from None
            return data
        size = min(size, self.left)
        self.left -= size
        self.continued = True  # by itself
        self._read = start + size
        if size == len(buffer) and type(buffer) is bytes:
            return buffer
        return bytes(memoryview(buffer)[start : start + size])

    def end(self) -> None:
        """Request and answer are over: the connection is at a boundary again."""
        self.head = self._chunks = None
        self._seen = 0
        if self._read == len(self.buffer):
            self.buffer = b""
        elif self._read:
            self.buffer = bytes(memoryview(self.buffer)[self._read :])
        self._read = 0

    @property
    def ahead(self) -> bool:
        """Whether something has been read that belongs to no request yet."""
        return self._read < len(self.buffer)

    @property
    def unread(self) -> bytes:
        """What has been read from the client and belongs to no request yet, or to nobody here."""
        return bytes(memoryview(self.buffer)[self._read :])

    # -- the answer ---------------------------------------------------------------------------

    def answer(
        self,
        status: int,
        fields: Iterable[tuple[Any, Any]],
        date: bytes,
        *,
        size: int | None = None,
        line: bytes | None = None,
    ) -> bytes:
        """The head of the answer.

        Args:
            status: 200 to 599.
            fields: names and values, as bytes or as text (latin-1).
            date: the line of that name, to be sent unless the app gives one.
            size: of the whole body, where that is known by now.
            line: the status line (see ``status_line``); without one the usual.

        Raises:
            BadAnswer: a status, a name or a value cannot be sent, or two lengths are given.
        """
        head = self.head
        assert head is not None
        names = _names
        lines = [line or _LINES.get(status) or _status_line(status, reason_of(status))]
        length: int | None = None
        dated = False
        for name, value in fields:
            sent, meaning = names.get(name) or _learn(name)
            if isinstance(value, str):
                try:
                    value = value.encode("latin-1")
                except UnicodeEncodeError:
                    raise BadAnswer(f"the value of {name!r} is {value!r}: not latin-1") from None
            if meaning:
                if meaning == _LENGTH:
                    if not _DIGITS.fullmatch(value) or length not in (None, int(value)):
                        raise BadAnswer(f"the Content-Length of the answer is {value!r}")
                    length = int(value)
                    continue
                if meaning == _CONNECTION:
                    if b"close" in value.lower():
                        self.stays = False
                    continue
                if meaning == _HOP:
                    continue
                dated = True
            lines.append(b"%b%b\r\n" % (sent, value))
        count = len(lines)
        self._frame(status, length, size, lines)
        if not dated:
            lines.append(date)
        block = b"".join(lines)
        if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines) or 0 in block:
            bad = next(
                line
                for line in lines[:count]
                if re.search(rb"[\r\n\0]", line.removesuffix(b"\r\n"))
            )
            raise BadAnswer(f"a field of the answer has CR, LF or NUL in it: {bad[:200]!r}")
        return block + b"\r\n"

    def _frame(self, status: int, length: int | None, size: int | None, lines: list[bytes]) -> None:
        """Decide how the body is framed and whether the connection stays, and say so."""
        head = self.head
        assert head is not None
        if head.upgrade or (head.expects and not self.continued and not self.body_is_over):
            self.stays = False
        if status in (204, 304) or head.method == "HEAD":
            self.framing = NO_BODY
            if length is not None and status != 204:
                lines.append(b"Content-Length: %d\r\n" % length)
        elif length is not None or size is not None:
            self.framing = LENGTH
            self.left_to_send = size if length is None else length  # type: ignore[assignment]
            lines.append(b"Content-Length: %d\r\n" % self.left_to_send)
        elif head.minor:
            self.framing = IN_CHUNKS
            lines.append(b"Transfer-Encoding: chunked\r\n")
        else:
            self.framing = UNTIL_CLOSE
            self.stays = False
        if not self.stays:
            lines.append(b"Connection: close\r\n")
        elif not head.minor:
            lines.append(b"Connection: keep-alive\r\n")

    def data(self, block: bytes) -> bytes:
        """What to send for a block of the body.

        Raises:
            BadAnswer: it is longer than the length that was given. What fits may be sent; the
                connection does not stay.
        """
        framing = self.framing
        if framing == LENGTH:
            left = self.left_to_send - len(block)
            if left < 0:
                self.stays = False
                raise BadAnswer(
                    f"the answer is longer than its Content-Length, by {-left} bytes so far"
                )
            self.left_to_send = left
            return block
        if framing == IN_CHUNKS:
            return b"%x\r\n%b\r\n" % (len(block), block) if block else b""
        return block if framing == UNTIL_CLOSE else b""

    def last(self) -> bytes:
        """What to send behind the last block.

        Raises:
            BadAnswer: the body is shorter than the length that was given: nothing can be sent for
                it, and the connection does not stay.
        """
        if self.framing == LENGTH and self.left_to_send:
            self.stays = False
            raise BadAnswer(
                f"the answer is shorter than its Content-Length, by {self.left_to_send} bytes"
            )
        return LAST_CHUNK if self.framing == IN_CHUNKS else b""
