"""WebSockets of ASGI apps: RFC 6455 by the vectors of the Autobahn suite, and what uvicorn does.

The suite itself runs on Python 2 only; its cases are here as frames, by their numbers.
https://github.com/crossbario/autobahn-testsuite
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.harness import serve

from .both_servers import TIMEOUT, Server, both, chunks_in

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = base64.b64encode(b"0123456789abcdef").decode()


class Frame(NamedTuple):
    opcode: int
    data: bytes
    fin: bool = True
    rsv: int = 0


def handshake(case: str, *lines: str) -> bytes:
    head = (
        *(f"GET /case/{case} HTTP/1.1", "Host: test", "Connection: Upgrade", "Upgrade: websocket"),
        *("Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", *lines, "", ""),
    )
    return "\r\n".join(head).encode("latin-1")


def frame(
    opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True
) -> bytes:
    """As a client sends it."""
    size = len(data)
    if size < 126:
        length = bytes([masked << 7 | size])
    elif size < 65536:
        length = bytes([masked << 7 | 126]) + size.to_bytes(2)
    else:
        length = bytes([masked << 7 | 127]) + size.to_bytes(8)
    mask = b"\x11\x22\x33\x44" if masked else b""
    if masked:
        data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    return bytes([fin << 7 | rsv << 4 | opcode]) + length + mask + data


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, (code.to_bytes(2) if code is not None else b"") + reason)


class Client:
    """A connection that is a WebSocket, or was to become one."""

    def __init__(self, server: Server, asked: bytes, *behind: bytes) -> None:
        self.sock = server.connect()
        self.sock.settimeout(TIMEOUT)
        self.sock.sendall(asked + b"".join(behind))
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(65536)
            assert data, self.buffer
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        self.status = int(line.split(" ")[1])
        pairs = (field.partition(": ") for field in fields)
        self.fields = [(name.lower(), value) for name, _, value in pairs]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def more(self) -> bool:
        with contextlib.suppress(ConnectionResetError):
            data = self.sock.recv(1 << 20)
            self.buffer += data
            return bool(data)
        return False

    def frame(self) -> Frame | None:
        """The next one; None at the end."""
        while True:
            found, size = _first(self.buffer)
            if found:
                self.buffer = self.buffer[size:]
                return found
            if not self.more():
                assert not self.buffer
                return None

    def frames(self) -> list[Frame]:
        """All until the end."""
        found = []
        while (it := self.frame()) is not None:
            found.append(it)
        return found

    def rest(self) -> bytes:
        while self.more():
            pass
        return self.buffer


def _first(buffer: bytes) -> tuple[Frame | None, int]:
    if len(buffer) < 2:
        return None, 0
    assert not buffer[1] & 0x80, "a server masks nothing"
    size, start = buffer[1], 2
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(buffer[2:start])
    if len(buffer) < start + size:
        return None, 0
    data = buffer[start : start + size]
    return Frame(buffer[0] & 15, data, bool(buffer[0] & 128), buffer[0] >> 4 & 7), start + size


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with both() as pair:
        yield pair


# -- Autobahn: what is sent, and what comes back ---------------------------------------------------

Case = tuple[list[bytes], list[Frame], int | None]
"""Frames of the client, what is to be echoed, and the code of the server's closing frame."""

CASES: dict[str, Case] = {}


def good(name: str, sent: list[bytes], *echoed: Frame) -> None:
    CASES[name] = ([*sent, close()], list(echoed), 1000)


def bad(name: str, sent: list[bytes], *echoed: Frame, code: int = 1002) -> None:
    CASES[name] = (sent, list(echoed), code)


def text(data: bytes) -> Frame:
    return Frame(TEXT, data)


for number, size in enumerate((0, 125, 126, 127, 128, 65535, 65536), 1):
    good(f"1.1.{number}", [frame(TEXT, b"*" * size)], text(b"*" * size))
    good(f"1.2.{number}", [frame(BINARY, b"\xfe" * size)], Frame(BINARY, b"\xfe" * size))

good("2.1", [frame(PING)], Frame(PONG, b""))
good("2.2", [frame(PING, b"Hello")], Frame(PONG, b"Hello"))
good("2.3", [frame(PING, bytes(range(125)))], Frame(PONG, bytes(range(125))))
bad("2.5", [frame(PING, b"\xfe" * 126)])
good("2.7", [frame(PONG)])
good("2.8", [frame(PONG, b"unsolicited")])
good("2.9", [frame(PONG, b"a"), frame(PING, b"b")], Frame(PONG, b"b"))
good(
    "2.10",
    [frame(PING, b"%d" % number) for number in range(10)],
    *(Frame(PONG, b"%d" % number) for number in range(10)),
)

for number in range(1, 8):
    bad(f"3.{number}", [frame(TEXT, b"Hello", rsv=number)])
bad("3.8 behind a good one", [frame(TEXT, b"one"), frame(TEXT, b"two", rsv=4)], text(b"one"))
for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    bad(f"4 opcode {opcode}", [frame(opcode, b"x")])

bad("5.1", [frame(PING, b"a", fin=False), frame(CONT, b"b")])
bad("5.2", [frame(PONG, b"a", fin=False), frame(CONT, b"b")])
good("5.3", [frame(TEXT, b"one", fin=False), frame(CONT, b"two")], text(b"onetwo"))
good(
    "5.6",
    [frame(TEXT, b"one", fin=False), frame(PING, b"ping"), frame(CONT, b"two")],
    Frame(PONG, b"ping"),
    text(b"onetwo"),
)
bad("5.9", [frame(CONT, b"one"), frame(TEXT, b"two")])
bad("5.10", [frame(CONT, b"one", fin=False)])
bad(
    "5.15",
    [frame(TEXT, b"1", fin=False), frame(CONT, b"2"), frame(CONT, b"3", fin=False)],
    text(b"12"),
)
bad("5.18", [frame(TEXT, b"one", fin=False), frame(TEXT, b"two")])
good(
    "5.19 in a hundred",
    [frame(BINARY, b"0", fin=False), *[frame(CONT, b"", fin=False)] * 98, frame(CONT, b"1")],
    Frame(BINARY, b"01"),
)

KOSME = "κόσμε".encode()
good(
    "6.2.1",
    [frame(TEXT, b"Hello-\xc2\xb5@\xc3\x9f\xc3\xb6")],
    text(b"Hello-\xc2\xb5@\xc3\x9f\xc3\xb6"),
)
good(
    "6.2.3 by the byte",
    [
        frame(TEXT, KOSME[:1], fin=False),
        *(frame(CONT, KOSME[at : at + 1], fin=False) for at in range(1, len(KOSME))),
        frame(CONT),
    ],
    text(KOSME),
)
for number, data in enumerate(
    (
        *(KOSME + b"\xed\xa0\x80edited", b"\xf8\x88\x80\x80\x80", b"\xf4\x90\x80\x80"),
        *(b"\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xbf\xbf", b"\xce", b"\xfe", b"\xff"),
    )
):
    bad(f"6.3.{number}", [frame(TEXT, data)], code=1007)
bad("6.4 in fragments", [frame(TEXT, KOSME, fin=False), frame(CONT, b"\xf4\x90")], code=1007)

CASES["7.1.1"] = ([frame(TEXT, b"Hello"), close()], [text(b"Hello")], 1000)
CASES["7.1.2 twice"] = ([close(), close()], [], 1000)
CASES["7.1.3 ping behind"] = ([close(), frame(PING, b"x")], [], 1000)
CASES["7.1.4 text behind"] = ([close(), frame(TEXT, b"x")], [], 1000)
bad("7.1.5 in a message", [frame(TEXT, b"x", fin=False), close()])
CASES["7.3.1 empty"] = ([close(None)], [], None)
bad("7.3.2 one byte", [frame(CLOSE, b"a")])
CASES["7.3.4 reason"] = ([close(1000, b"Hello")], [], 1000)
CASES["7.3.5 long reason"] = ([close(1000, b"*" * 123)], [], 1000)
bad("7.3.6 too long", [close(1000, b"*" * 124)])
bad("7.5.1 reason not UTF-8", [close(1000, KOSME + b"\xed\xa0\x80")], code=1007)
for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
    CASES[f"7.7 {code}"] = ([close(code)], [], code)
for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000):
    bad(f"7.9 {code}", [close(code)])
for size in (1 << 16, 1 << 20):
    good(f"9 {size} bytes", [frame(BINARY, b"\xfe" * size)], Frame(BINARY, b"\xfe" * size))
bad("not masked", [frame(TEXT, b"Hello", masked=False)])


def code_of(closing: Frame) -> int | None:
    assert closing.opcode == CLOSE
    return int.from_bytes(closing.data[:2]) if closing.data else None


@pytest.mark.parametrize("name", CASES)
def test_autobahn(name: str, servers: tuple[Server, Server]) -> None:
    sent, echoed, code = CASES[name]
    for server in servers:
        with Client(server, handshake("ws_echo")) as client:
            assert client.status == 101
            # A closing frame, good or bad, overtakes what the app has not answered yet.
            early = sent[: len(sent) - bool(echoed)]
            client.sock.sendall(b"".join(early))
            found = [client.frame() for _ in echoed]
            client.sock.sendall(b"".join(sent[len(early) :]))
            closing = client.frames()
        if server is servers[0]:
            assert found == echoed
            assert [code_of(it) for it in closing] == [code]
        server.records("ws_echo")


@pytest.mark.parametrize("step", [1, 2, 7])
def test_frames_that_come_in_small_pieces(step: int, servers: tuple[Server, Server]) -> None:
    data = frame(TEXT, b"Hello") + frame(PING, b"x") + frame(BINARY, b"y" * 300)
    with Client(servers[0], handshake("ws_echo")) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), step):
            client.sock.sendall(data[at : at + step])
        found = [client.frame() for _ in range(3)]
        client.sock.sendall(close())
        assert [code_of(it) for it in client.frames()] == [1000]
    servers[0].records("ws_echo")
    assert sorted(it.opcode for it in found if it is not None) == [TEXT, BINARY, PONG]


def test_frames_behind_the_handshake_are_not_lost(servers: tuple[Server, Server]) -> None:
    with Client(servers[0], handshake("ws_echo"), frame(TEXT, b"at once")) as client:
        assert client.frame() == text(b"at once")
    servers[0].records("ws_echo")


def test_messages_are_compressed_where_the_client_offers_it(
    servers: tuple[Server, Server],
) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    data = b"all work and no play " * 50
    packer = zlib.compressobj(wbits=-12)
    packed = (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
    for server in servers:
        with Client(server, handshake("ws_echo", offer)) as client:
            assert "permessage-deflate" in dict(client.fields)["sec-websocket-extensions"]
            client.sock.sendall(frame(TEXT, packed, rsv=4))
            answer = client.frame()
            assert answer is not None
            assert (answer.opcode, answer.rsv) == (TEXT, 4)
            assert zlib.decompressobj(wbits=-12).decompress(answer.data + b"\0\0\xff\xff") == data
            client.sock.sendall(close())
            client.frames()
        server.records("ws_echo")


# -- as uvicorn does it ----------------------------------------------------------------------------

# name: (lines of the handshake, frames, case)
ALIKE: dict[str, tuple[str, list[str], list[bytes]]] = {
    "echo": ("ws_echo", [], [frame(TEXT, b"a"), frame(BINARY, b"b"), close(1001, b"bye")]),
    "fields": ("ws_fields", ["Sec-WebSocket-Protocol: soap, chat", "Cookie: a=b"], [close()]),
    "denies": ("ws_denies", [], []),
    "closes": ("ws_closes", [], [close(4001, b"enough")]),
    "raises first": ("ws_raises_first", [], []),
    "returns first": ("ws_returns_first", [], []),
    "after the end": ("ws_sends_after_the_end", [], [close()]),
    "no code": ("ws_echo", [], [close(None)]),
    "bad frame": ("ws_echo", [], [frame(3)]),
}
OURS_TO_SAY = ("date", "server", "content-length", "transfer-encoding")


def outcome(server: Server, name: str) -> Any:
    case, lines, frames = ALIKE[name]
    with Client(server, handshake(case, *lines)) as client:
        client.sock.sendall(b"".join(frames))
        rest: Any = client.frames() if client.status == 101 else client.rest()
    records = server.records(case)
    for kind, what in records:
        if kind == "scope":
            assert what["server"] == ["127.0.0.1", server.port]
            del what["server"], what["client"]
        elif kind == "received" and what["type"] == "websocket.disconnect":
            what.setdefault("reason", "")
    if dict(client.fields).get("transfer-encoding") == "chunked":
        rest, _ = chunks_in(rest)
    kept = sorted(it for it in client.fields if it[0] not in OURS_TO_SAY)
    return client.status, kept, rest, records


@pytest.mark.parametrize("name", ALIKE)
def test_the_app_and_the_client_are_told_what_uvicorn_tells_them(
    name: str, servers: tuple[Server, Server]
) -> None:
    ours, theirs = (outcome(server, name) for server in servers)
    assert ours == theirs


def test_a_refused_handshake_is_403(servers: tuple[Server, Server]) -> None:
    for server in servers:
        with Client(server, handshake("ws_refuses")) as client:
            assert (client.status, client.rest()) == (403, b"")
        assert server.records("ws_refuses")[-2][1]["code"] == 1006


@pytest.mark.parametrize(("case", "code"), [("ws_raises", 1011), ("ws_returns", 1000)])
def test_an_app_that_ends_without_a_word_has_a_closing_frame(
    case: str, code: int, servers: tuple[Server, Server]
) -> None:
    """(uvicorn closes without one, which clients see as 1006.)"""
    with Client(servers[0], handshake(case)) as client:
        client.sock.sendall(close(code))
        assert [code_of(it) for it in client.frames()] == [code]
    servers[0].records(case)


def test_a_client_that_vanishes_is_1006(servers: tuple[Server, Server]) -> None:
    """(With uvicorn 1005, which would be a closing frame without a code: RFC 6455, 7.1.5.)"""
    with Client(servers[0], handshake("ws_echo")):
        pass
    assert servers[0].records("ws_echo")[-2][1]["code"] == 1006


@pytest.mark.parametrize(
    ("line", "instead", "status"),
    [
        (f"Sec-WebSocket-Key: {KEY}", "X: y", 400),
        (f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Key: short", 400),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8", 400),
        ("Sec-WebSocket-Version: 13", "X: y", 400),
    ],
)
def test_a_bad_handshake_is_refused(
    line: str, instead: str, status: int, servers: tuple[Server, Server]
) -> None:
    for server in servers:
        asked = handshake("ws_echo").replace(line.encode(), instead.encode())
        with Client(server, asked) as client:
            assert client.status == status


def test_a_long_cookie_is_no_reason_to_refuse_a_handshake(
    servers: tuple[Server, Server],
) -> None:
    with Client(servers[0], handshake("ws_echo", "Cookie: a=" + "x" * 9000)) as client:
        assert client.status == 101
        client.sock.sendall(close())
        client.frames()
    servers[0].records("ws_echo")


# -- limits ----------------------------------------------------------------------------------------


@pytest.fixture
def strict() -> Iterator[Server]:
    options = ["--ws-max-size", "1000", "--ws-ping-interval", "0.2", "--ws-ping-timeout", "0.2"]
    with serve("tests.asgi_cases:app", num=1, options=options) as running:
        yield Server("ours", running.port)


def test_a_message_that_is_too_long_is_1009(strict: Server) -> None:
    for frames in (
        [frame(TEXT, b"x" * 1001)],
        [frame(TEXT, b"x" * 600, fin=False), frame(CONT, b"x" * 600)],
    ):
        with Client(strict, handshake("ws_echo")) as client:
            client.sock.sendall(b"".join(frames))
            assert [code_of(it) for it in client.frames() if it.opcode != PING] == [1009]
        strict.records("ws_echo")


def test_a_client_that_answers_no_ping_is_closed(strict: Server) -> None:
    with Client(strict, handshake("ws_echo")) as client:
        ping, closing = client.frames()
        assert (ping.opcode, len(ping.data)) == (PING, 4)
        assert code_of(closing) == 1011
    assert strict.records("ws_echo")[-2][1]["code"] == 1011


def test_a_client_that_answers_pings_stays(strict: Server) -> None:
    with Client(strict, handshake("ws_echo")) as client:
        for _ in range(4):
            ping = client.frame()
            assert ping is not None
            assert ping.opcode == PING
            client.sock.sendall(frame(PONG, ping.data))
        client.sock.sendall(close())
        assert code_of(client.frames()[-1]) == 1000


def test_what_the_app_does_not_receive_is_not_read(servers: tuple[Server, Server]) -> None:
    """An echo whose client reads nothing: the app waits for it, and the client for the app."""
    with Client(servers[0], handshake("ws_echo")) as client:
        message, sent = frame(BINARY, os.urandom(60000)), 0
        left = memoryview(b"")
        client.sock.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                left = left or memoryview(message)
                count = client.sock.send(left)
                left, sent = left[count:], sent + count
        assert sent < 64 << 20, "all of it is in the server's memory"
    servers[0].records("ws_echo")
