"""The clients: a closed loop over raw sockets in a process of its own, which is not counted.

A *line* is one connection, or one after another, on which some clients ask in turn, one request at
a time. Lines are prepared once and stay; so a measured round opens no connection but where that is
what is measured.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Self

import sticky

from .rigs import ROOT, SEED

NEW, DIRECT, KEPT, ECHO, IDLE_WEBSOCKET = "new", "direct", "kept", "echo", "idle websocket"
"""What a line does: a connection for each request; the same from an address of its own; one
connection for all; Socket.IO messages over a websocket; nothing, over a websocket."""

_HEAD = "GET / HTTP/1.1\r\nHost: example.org\r\nX-Forwarded-For: {}\r\n{}\r\n"
_UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "X-Forwarded-For: {}\r\n\r\n"
)
_SOCKET_IO = "/socket.io/?EIO=4&transport=websocket"
_MESSAGE = b'42["echo","a message of a few words, as chats have them"]'


# -- who asks -------------------------------------------------------------------------------------


def clients_by_slot(workers: int, each: int) -> list[list[str]]:
    """For each slot so many addresses of clients that belong there."""
    found: list[list[str]] = [[] for _ in range(workers)]
    number = 0
    while any(len(addresses) < each for addresses in found):
        number += 1
        address = f"203.0.{number // 250}.{number % 250 + 1}"
        head = f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
        slot = sticky.explain(head, "127.0.0.1", num=workers, seed=SEED, proxy=True).slot
        assert slot is not None
        if len(found[slot]) < each:
            found[slot].append(address)
    return found


def own(connections: int, workers: int) -> list[list[str]]:
    """Lines with one client each."""
    by_slot = clients_by_slot(workers, connections)
    return [[by_slot[i % workers][i]] for i in range(connections)]


def moving(connections: int, workers: int) -> list[list[str]]:
    """Lines with two clients of different workers, who ask in turn."""
    by_slot = clients_by_slot(workers, connections)
    return [[by_slot[i % workers][i], by_slot[(i + 1) % workers][i]] for i in range(connections)]


class Clients:
    """The process that asks, seen from here."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.clients"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _order(self, *order: Any) -> None:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer != "done\n":
            raise RuntimeError(answer or "the clients' process has ended")

    def prepare(
        self,
        name: str,
        ports: Sequence[int],
        lines: Sequence[Sequence[str]],
        how: str = KEPT,
        *,
        sticky: bool = True,
    ) -> None:
        """Open lines to a server, under a name.

        Args:
            ports: which the lines take in turn.
            lines: for each its clients.
            sticky: make sure that every client is answered by one worker, and two on one line by
                two.
        """
        self._order("prepare", name, ports, lines, how, sticky)

    def ask(self, name: str, requests: int, at_once: int = 0) -> None:
        """Ask so often in total.

        Args:
            at_once: on so many lines at a time, each time on any that is free; 0: on all, each
                asking again as soon as it has its answer.
        """
        self._order("ask", name, requests, at_once)

    def forget(self, name: str) -> None:
        """Close these lines."""
        self._order("forget", name)


# -- in the process that asks ---------------------------------------------------------------------


class Line:
    """A line: its heads to send, and what has come of the answer."""

    def __init__(self, port: int, clients: Sequence[str], number: int) -> None:
        self.clients = clients
        self.asked = 0
        self.answer = b""
        self.sock: socket.socket | None = None
        self._address = ("127.0.0.1", port)
        self._number = number
        self._heads = self.heads()

    def heads(self) -> list[bytes]:
        return [_HEAD.format(client, self.connection()).encode() for client in self.clients]

    def connection(self) -> str:
        return ""

    def source(self) -> str:
        return "127.0.0.1"

    def open(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.settimeout(30)
        sock.bind((self.source(), 0))
        sock.connect(self._address)
        self.sock = sock
        return sock

    def ask(self) -> None:
        self.answer = b""
        self.asked += 1
        self.sock.send(self._heads[self.asked % len(self._heads)])

    def hear(self) -> bool:
        """Read; whether the answer is complete."""
        data = self.sock.recv(65536)
        self.answer += data
        head, end, body = self.answer.partition(b"\r\n\r\n")
        if data and (not end or len(body) < 2):
            return False
        if not head.startswith(b"HTTP/1.1 200 ") or len(body) != 2:
            raise RuntimeError(f"{self.clients} were answered {self.answer[:300]!r}")
        self.answer = body
        return True

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class ShortLine(Line):
    """A connection for each request."""

    def connection(self) -> str:
        return "Connection: close\r\n"


class DirectLine(ShortLine):
    """The same from an address of its own, by which a server without a proxy routes."""

    def source(self) -> str:
        return f"127.0.1.{1 + self._number}"


class EchoLine(Line):
    """Socket.IO over a websocket; an answer is a message."""

    def heads(self) -> list[bytes]:
        return [_masked(_MESSAGE)]

    def open(self) -> socket.socket:
        sock = super().open()
        sock.sendall(_UPGRADE.format(_SOCKET_IO, self.clients[0]).encode())
        self._expect(b"}")  # the 101, and Engine.IO's open packet
        sock.sendall(_masked(b"40"))
        self._expect(b"40{")
        return sock

    def _expect(self, what: bytes) -> None:
        answer = b""
        while what not in answer:
            if not (data := self.sock.recv(65536)):
                raise RuntimeError(f"an answer was {answer!r}")
            answer += data

    def hear(self) -> bool:
        data = self.sock.recv(65536)
        self.answer += data
        if data and len(self.answer) < 2 + len(_MESSAGE):
            return False
        if self.answer[2:] != _MESSAGE:
            raise RuntimeError(f"an answer was {self.answer!r}")
        return True


class IdleLine(Line):
    """A websocket on which nothing is said."""

    def open(self) -> socket.socket:
        sock = super().open()
        sock.sendall(_UPGRADE.format("/", self.clients[0]).encode())
        answer = sock.recv(4096)
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise RuntimeError(f"an answer was {answer!r}")
        return sock


def _masked(data: bytes) -> bytes:
    """A frame with one text message, masked with zeros."""
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data


KINDS = {NEW: ShortLine, DIRECT: DirectLine, KEPT: Line, ECHO: EchoLine, IDLE_WEBSOCKET: IdleLine}


class Lines:
    """Lines to one server."""

    def __init__(
        self, ports: Sequence[int], clients: Sequence[Sequence[str]], how: str, sticky: bool
    ) -> None:
        self._lines = [
            KINDS[how](ports[number % len(ports)], them, number)
            for number, them in enumerate(clients)
        ]
        self._how, self._sticky = how, sticky
        self._known: dict[str, bytes] = {}
        self._chance = random.Random(1)
        self._epoll = select.epoll()
        self._by_fd: dict[int, Line] = {}
        if how not in (NEW, DIRECT):
            for line in self._lines:
                self._open(line)
        if how == KEPT:
            self.ask(sum(len(line.clients) for line in self._lines))

    def _open(self, line: Line) -> None:
        fd = line.open().fileno()
        self._by_fd[fd] = line
        self._epoll.register(fd, select.EPOLLIN)

    def ask(self, requests: int, at_once: int = 0) -> None:
        free = self._lines[:]
        self._chance.shuffle(free)
        begun = [free.pop() for _ in range(min(requests, at_once or len(free)))]
        left, busy = requests - len(begun), len(begun)
        short = self._how in (NEW, DIRECT)
        for line in begun:
            if short:
                self._open(line)
            line.ask()
        while busy:
            for fd, _ in self._epoll.poll():
                line = self._by_fd[fd]
                if not line.hear():
                    continue
                if self._sticky and self._how != ECHO:
                    self._check(line)
                if short:
                    del self._by_fd[fd]
                    line.close()
                if left:
                    left -= 1
                    if free:
                        chosen = self._chance.randrange(len(free))
                        line, free[chosen] = free[chosen], line
                    if short:
                        self._open(line)
                    line.ask()
                else:
                    busy -= 1

    def _check(self, line: Line) -> None:
        client = line.clients[line.asked % len(line.clients)]
        if self._known.setdefault(client, line.answer) != line.answer:
            raise RuntimeError(f"{client} was answered by {line.answer!r}: {self._known}")

    def close(self) -> None:
        if self._sticky and len(self._lines[0].clients) > 1:
            for line in self._lines:
                assert len({self._known[client] for client in line.clients}) == len(line.clients)
        for line in self._lines:
            line.close()
        self._epoll.close()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of its input ends it
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    prepared: dict[str, Lines] = {}
    for order in sys.stdin:
        what, name, *rest = json.loads(order)
        try:
            if what == "prepare":
                prepared[name] = Lines(*rest)
            elif what == "ask":
                prepared[name].ask(*rest)
            else:
                prepared.pop(name).close()
        except (OSError, RuntimeError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    main()
