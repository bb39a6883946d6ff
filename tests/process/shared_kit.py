"""One connection that carries the requests of many clients, as a reverse proxy would use it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tests.harness import Kind, Running

from .clients import SEED, XFF, addresses_of, slot_of

NUM = 3

A, B, C = (addresses_of(slot, NUM, 1)[0] for slot in range(NUM))
"""Three clients, each of another worker: A of worker 0, B of 1, C of 2."""
CLIENTS = (A, B, C)


def ask(
    client: str,
    target: str = "/",
    *lines: str,
    method: str = "GET",
    body: bytes | None = None,
    chunks: Sequence[bytes] | None = None,
    trailers: Sequence[str] = (),
    version: str = "1.1",
) -> bytes:
    """One request of a client, with a body of known length or in chunks."""
    head = [f"{method} {target} HTTP/{version}", "Host: test", f"{XFF}: {client}", *lines]
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    if chunks is not None:
        head.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        body += b"0\r\n" + "".join(line + "\r\n" for line in trailers).encode() + b"\r\n"
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


@dataclass
class Reply:
    """One response, as the bytes of the connection say it, and nothing that follows it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: list[int] = field(default_factory=list)

    @property
    def worker(self) -> int:
        return int(self.headers["x-worker"])

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """A connection, and a reader that takes exactly one response at a time.

    Args:
        port: the server's.
        buffer: the size of the system's receive buffer; small: the server has to wait for us.
    """

    def __init__(self, port: int, *, timeout: float = 30.0, buffer: int = 0) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(timeout)
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.sock.connect(("127.0.0.1", port))
        except OSError:
            self.sock.close()
            raise
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        """Each part in a segment of its own."""
        for part in parts:
            self.sock.sendall(part)

    def _more(self) -> None:
        data = self.sock.recv(1 << 18)
        if not data:
            raise EOFError(f"closed after {self._read[:300]!r}")
        self._read += data

    def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            self._more()
        taken, self._read = self._read[:size], self._read[size:]
        return taken

    def _take_line(self) -> bytes:
        while b"\n" not in self._read:
            self._more()
        return self._take(self._read.index(b"\n") + 1)

    def reply(self, method: str = "GET") -> Reply:
        """The next response.

        Raises:
            EOFError: the server has closed the connection.
            OSError: it was reset, or nothing came in time.
        """
        interim = []
        while True:
            version, status = self._take_line().split(b" ", 2)[:2]
            assert version in (b"HTTP/1.1", b"HTTP/1.0"), version
            headers = {}
            while line := self._take_line().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if not status.startswith(b"1") or status == b"101":
                break
            interim.append(int(status))
        code = int(status)
        if method == "HEAD" or code in (101, 204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._take_line(), 16):
                body += self._take(size)
                assert self._take(2) == b"\r\n"
            assert self._take(2) == b"\r\n"
        elif "content-length" in headers:
            body = self._take(int(headers["content-length"]))
        else:
            with contextlib.suppress(EOFError):
                while True:
                    self._more()
            body, self._read = self._read, b""
        return Reply(code, headers, body, interim)

    def is_over(self) -> bool:
        """Wait for the end of the connection: nothing more may come before it."""
        try:
            self._more()
        except (EOFError, ConnectionResetError):
            return not self._read
        return False

    def reset(self) -> None:
        """Leave with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def check(reply: Reply, client: str, path: str | None = None, body: str | None = None) -> Reply:
    """The answer to a request that this client sent, from its own worker."""
    assert reply.status == 200, reply
    seen = reply.json()
    assert (reply.worker, seen["worker"], seen["client"]) == (*[slot_of(client, NUM)] * 2, client)
    if path is not None:
        assert seen["path"] == path
    assert seen["body"] == body
    return reply


def totals(running: Running) -> dict[str, int]:
    """What the workers have counted, added up."""
    sums: dict[str, int] = {}
    for client in CLIENTS:
        for name, value in running.get("/stats", {XFF: client}).json().items():
            sums[name] = sums.get(name, 0) + value
    return sums


@contextlib.contextmanager
def shared_server(kind: Kind, *options: str, num: int = NUM) -> Iterator[Running]:
    """A server of this kind, of which every worker has served before."""
    options = ("--seed", SEED, *options)
    with kind.serve("shared_lab", num=num, proxy=True, options=options) as running:
        for client in CLIENTS:
            assert running.get("/", {XFF: client}).status == 200
        yield running
