"""Requests for the tests of ``parse`` and ``Chunks``: what a twin says of them, near misses."""

import random
import re
from types import ModuleType
from typing import Any

import h11
import httptools

from .core_kit import TOKEN, rare

LIMIT = 65536
ATTRIBUTES = (
    *("end", "method", "target", "minor", "length"),
    *("keep_alive", "expects", "upgrade", "websocket", "host"),
)


def said(twin: ModuleType, data: bytes | bytearray, start: int = 0, limit: int = LIMIT) -> Any:
    """Everything that a twin says of a head: a number, or what its Head holds."""
    head = twin.parse(data, start, limit)
    if isinstance(head, int):
        return head
    environ: dict[str, str] = {}
    head.environ(environ)
    return *(getattr(head, name) for name in ATTRIBUTES), head.fields(), environ


def fed(twin: ModuleType, body: bytes, size: int = 1 << 30) -> tuple[int, bytes, bool] | str:
    """(how far, payload, over) of a chunked body in pieces of this size, or what is wrong."""
    chunks, at, payload = twin.Chunks(), 0, []
    while at < len(body) and not chunks.over:
        try:
            at, piece = chunks.feed(body, at, min(len(body), at + size))
        except twin.ChunkError as error:
            return str(error)
        payload.append(piece)
    return at, b"".join(payload), chunks.over


# --- near misses ---------------------------------------------------------------------------------

METHODS = [b"GET", b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"get"]
METHODS += [b"M-SEARCH", b"PRI", b"!", b"A" * 64]
TARGETS = [b"/", b"/a?b=c", b"/socket.io/?EIO=4&sid=a", b"//", b"*", b"http://a", b"HTTPS://a:1/b"]
TARGETS += [b"a:80", b"[::1]:443", b"http://[::1]/?", b"/\xff\x80", b"/'\"<>[]{}|^`\\"]
TARGETS += [
    b"http://u@a/",
    b"http://",
    b"http:///a",
    b"ftp://a/",
    b"/#",
    b"a",
    b"a:",
    b"http://a?b",
]
HOSTS = [
    b"a",
    b"a",
    b"a.b:80",
    b"",
    b"[::1]:",
    b"127.0.0.1",
    b"a_b%20",
    b"[::g]",
    b"a:65536",
    b"a b",
]
HOSTS += [b"a,b", b"u@a", b"a/", b":80", b"a:0080", b"[v1.a]", b"\xe4", b"[::1", b"a:8a", b"xn--a"]
LENGTHS = [
    b"0",
    b"5",
    b"5",
    b"007",
    b"9" * 18,
    b"9" * 19,
    b"",
    b"-1",
    b"+1",
    b"5, 5",
    b"5 5",
    b"0x5",
]
CODINGS = [b"chunked"] * 4 + [
    b"Chunked",
    b"gzip, chunked",
    b"chunked, gzip",
    b"identity",
    b"",
    b",",
]
CODINGS += [
    b"chunked, chunked",
    b"chunked;a=b",
    b'"chunked"',
    b"xchunked",
    b"chunked x",
    b", chunked",
]
CODINGS += [b'a;b="c,d" ; e = f, chunked', b'a;b=", chunked', b"a;b, chunked", b"a;b=c"]
OPTIONS = [
    b"close",
    b"keep-alive",
    b"Upgrade",
    b"Keep-Alive, Upgrade",
    b"a,,close",
    b"closed",
    b"x",
]
PROTOCOLS = [b"websocket", b"WebSocket", b"h2c, websocket", b"h2c", b"", b"websockets", b"TLS/1.0"]
OTHERS = [
    b"Accept",
    b"Cookie",
    b"cookie",
    b"X-Forwarded-For",
    b"Content-Type",
    b"a",
    b"x_y",
    b"x-y",
]
OTHERS += [b"User-Agent", b"Sec-WebSocket-Key", b"X-A", b"x-a", b"Content_Length", b"Hosts", b"hos"]
VALUES = [b"a", b"", b"*/*", b"a=b; c=d", b"\xe4\xff", b"a\tb", b"192.0.2.1, unknown", b"a" * 70]


def mixed_case(draw: random.Random, name: bytes) -> bytes:
    return draw.choice([name, name, name.title(), name.upper(), bytes(map(flip, name))])


def flip(letter: int) -> int:
    return letter ^ 0x20 if letter & 0x40 and letter & 0x1F and letter in TOKEN else letter


def field(draw: random.Random, name: bytes, value: bytes) -> bytes:
    colon = rare(draw, b":", b" :", b"", b"\t:", b": \0", b"::")
    space = draw.choice([b"", b" ", b" ", b"\t ", b"  "])
    end = draw.choice([b"\r\n"] * 60 + [b"\n", b"\r", b"\r\n ", b"\r\r\n"])
    return mixed_case(draw, name) + colon + space + value + draw.choice([b"", b"", b" \t"]) + end


def head(draw: random.Random) -> bytes:
    """A request head; perhaps half of them are in order."""
    method = draw.choice(METHODS) if draw.random() < 0.3 else b"GET"
    target = draw.choice(TARGETS) if draw.random() < 0.3 else b"/a?b=c"
    version = rare(draw, draw.choice([b"HTTP/1.1"] * 4 + [b"HTTP/1.0"]), b"HTTP/2.0", b"HTTP/1.9")
    version = rare(draw, version, b"http/1.1", b"HTTP/1", b"HTTP/0.9", b"HTTP/1.10", b"")
    lines = [(b"host", draw.choice(HOSTS) if draw.random() < 0.2 else b"a")]
    for chance, name, values in (
        (0.3, b"content-length", LENGTHS),
        (0.25, b"transfer-encoding", CODINGS),
        (0.3, b"connection", OPTIONS),
        (0.2, b"upgrade", PROTOCOLS),
        (0.1, b"expect", [b"100-continue", b"100-Continue", b"200-ok", b"a, 100-continue"]),
        (0.05, b"host", HOSTS),
    ):
        while draw.random() < chance:
            lines.append((name, values[0] if draw.random() < 0.7 else draw.choice(values)))
    for _ in range(draw.randrange(5)):
        lines.append((draw.choice(OTHERS), draw.choice(VALUES)))
    draw.shuffle(lines)
    made = rare(draw, b"", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ")
    made += rare(draw, b" ", b"  ", b"\t", b"").join([method, target, version])
    made += rare(draw, b"\r\n", b"\n", b" \r\n", b"\r", b"\r\n ")
    made += b"".join(field(draw, *line) for line in lines)
    return made + rare(draw, b"\r\n", b"\n", b"\r\r\n", b"")


def spoiled(draw: random.Random, data: bytes, count: int = 1) -> bytes:
    """With some bytes taken out, put in or changed."""
    changed = bytearray(data)
    for _ in range(count):
        at = draw.randrange(len(changed) + 1)
        new = draw.choice(
            [b"", b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b"\x7f", b"\x0b"]
        )
        if draw.random() < 0.3:
            new = bytes([draw.randrange(256)])
        changed[at : at + draw.randrange(3)] = new
    return bytes(changed)


EXTENSIONS = [b"", b"", b"", b";a", b" ; a = b", b';a="b;\\"c"', b";a=b;c", b"\t;\ta", b';a=""']
EXTENSIONS += [
    b" ",
    b";",
    b";a=",
    b';a="b',
    b'; a="b"c',
    b";a b",
    b";a\x80",
    b';a="\x80\t"',
    b";=a",
]
TRAILERS = [
    b"",
    b"",
    b"A: b\r\n",
    b"A:\r\nB:\t\xff \r\n",
    b"A : b\r\n",
    b" A: b\r\n",
    b"A\r\n",
    b":\r\n",
]


def body(draw: random.Random) -> bytes:
    """A chunked body; most of them are in order, and something may follow."""
    made = []
    for _ in range(draw.randrange(4)):
        payload = bytes(draw.choices(b"ab\r\n0;", k=draw.choice([1, 2, 5, 17, 300])))
        size = draw.choice([b"%x", b"%X", b"%04x"]) % len(payload)
        extension = draw.choice(EXTENSIONS[:9]) if draw.random() < 0.9 else draw.choice(EXTENSIONS)
        made += [size, extension, b"\r\n", payload, b"\r\n"]
    made += [draw.choice([b"0", b"0", b"000"]), draw.choice(EXTENSIONS[:9]), b"\r\n"]
    made += [draw.choice(TRAILERS[:4]) if draw.random() < 0.9 else draw.choice(TRAILERS), b"\r\n"]
    return b"".join(made) + draw.choice([b"", b"GET / HTTP/1.1\r\n"])


def request(draw: random.Random) -> bytes:
    """A head, and a body as its framing says, if it is in order."""
    made = head(draw)
    if draw.random() < 0.15:
        made = spoiled(draw, made, draw.choice([1, 1, 2]))
    lower = made.lower()
    if b"transfer-encoding" in lower:
        return made + body(draw)
    return made + b"hello" * (b"content-length" in lower)


# --- other people's parsers ----------------------------------------------------------------------

Reading = tuple[str, bytes, int, list[tuple[bytes, bytes]], bytes]
"""Method, target, minor version, fields with Cookie joined, body."""


def ours(twin: ModuleType, data: bytes) -> tuple[int, Reading] | None:
    """(where the first request ends, what it is), or None where it is refused or not complete."""
    found = twin.parse(data, 0, LIMIT)
    if isinstance(found, int):
        return None
    end, payload = found.end, b""
    if found.length >= 0:
        end += found.length
        payload = data[found.end : end]
    else:
        chunks = twin.Chunks()
        try:
            end, payload = chunks.feed(data, end, len(data))
        except twin.ChunkError:
            return None
        if not chunks.over:
            return None
    if end > len(data):
        return None
    return end, (found.method, found.target, found.minor, found.fields(), payload)


def joined(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Several Cookie fields as one, in the place of the first."""
    cookies = [value for name, value in fields if name == b"cookie"]
    made = []
    for name, value in fields:
        if name != b"cookie":
            made.append((name, value))
        elif cookies:
            made.append((name, b"; ".join(cookies)))
            cookies = []
    return made


def with_h11(data: bytes) -> tuple[int, Reading] | str:
    """The same as h11 reads it, or why it does not."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    try:
        event = connection.next_event()
        if not isinstance(event, h11.Request):
            return "not complete"
        payload = b""
        while not isinstance(part := connection.next_event(), h11.EndOfMessage):
            if not isinstance(part, h11.Data):
                return "not complete"
            payload += part.data
    except h11.RemoteProtocolError as error:
        return str(error)
    version = min(int(event.http_version[-1:]), 1)
    end = len(data) - len(connection.trailing_data[0])
    fields = joined([(name, value) for name, value in event.headers])
    return end, (event.method.decode(), event.target, version, fields, payload)


class _Events:
    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.payload = b""
        self.ends = 0
        self.in_trailers = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_trailers:
            self.fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_trailers = True

    def on_body(self, payload: bytes) -> None:
        self.payload += payload

    def on_message_complete(self) -> None:
        self.ends += 1


def with_httptools(data: bytes) -> Reading | str:
    """The request that data is, whole and alone, as httptools reads it, or why it does not."""
    events = _Events()
    parser = httptools.HttpRequestParser(events)
    try:
        parser.feed_data(data[:-1])
        if events.ends:
            return "ends early"
        parser.feed_data(data[-1:])
    except httptools.HttpParserUpgrade:
        return "upgrade"
    except httptools.HttpParserError as error:
        return str(error)
    if events.ends != 1:
        return "does not end"
    version = int(parser.get_http_version()[-1:])
    method = parser.get_method().decode()
    return method, events.target, version, joined(events.fields), events.payload


# What they refuse and we do not: the beginning of their complaint, and what of a request has to be
# so that it means this.
_HIGH_TARGET = rb"(?:\r\n)*\S+ \S*[\x80-\xff]\S* HTTP"
H11_REFUSES = {
    "illegal request line": _HIGH_TARGET,
    "no request line received": rb"\r\n",  # an empty line before a request
    "illegal chunk header": rb"(?s:.)*\r\n[0-9A-Fa-f]+[ \t]+;",  # BWS
}
HTTPTOOLS_REFUSES = {
    "Invalid method": rb"(?:\r\n)*(?!(?:GET|POST|PUT|HEAD|OPTIONS|CONNECT|DELETE) )",
    "Expected space after method": rb"(?:\r\n)*(?!(?:GET|POST|PUT|HEAD|OPTIONS|CONNECT|DELETE) )",
    "Expected HTTP/2 Connection Preface": rb"(?:\r\n)*PRI ",
    "Invalid HTTP version": rb"(?:\r\n)*\S+ \S+ HTTP/1[.][2-9]",
    "Invalid char in url": _HIGH_TARGET,
    "Request has invalid `Transfer-Encoding`": rb"(?is:.*\ntransfer-encoding:[ \t]*chunked[ \t])",
    "Invalid character in chunk size": rb"(?s:.)*\r\n[0-9A-Fa-f]+[ \t]+;",
    "upgrade": rb"(?:\r\n)*CONNECT |(?is:.*\nupgrade:)",  # it leaves the body to others
}


def intended(complaint: str, data: bytes, refuses: dict[str, bytes]) -> bool:
    """Whether it is one of these differences that makes the other parser refuse the request."""
    return any(
        complaint.startswith(begin) and re.match(pattern, data)
        for begin, pattern in refuses.items()
    )


def disagreement(twin: ModuleType, data: bytes) -> str:
    """What another parser reads differently of a request that we accept, or an empty text."""
    found = ours(twin, data)
    if not found:
        return ""
    end, reading = found
    theirs = with_h11(data)
    if isinstance(theirs, str):
        if not intended(theirs, data, H11_REFUSES):
            return f"h11 refuses it: {theirs}"
    elif lowered(theirs[1]) != lowered(reading) or theirs[0] != end:
        return f"h11 reads {theirs}, not {found}"
    other = with_httptools(data[:end])
    if isinstance(other, str):
        if not intended(other, data, HTTPTOOLS_REFUSES):
            return f"httptools refuses it: {other}"
    elif other != reading:
        return f"httptools reads {other}, not {found}"
    return ""


def lowered(reading: Reading) -> Reading:
    """h11 gives the value of Transfer-Encoding in lower case."""
    method, target, minor, fields, payload = reading
    fields = [(name, v.lower() if name == b"transfer-encoding" else v) for name, v in fields]
    return method, target, minor, fields, payload
