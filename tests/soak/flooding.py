"""Many connections from a process of their own, so that whoever measures is not slowed by them.

    python -m tests.soak.flooding KIND PORT COUNT ADDRESS...

The addresses are the clients', in turn. Standard input: a line to begin, a line to end. Standard
output: a line of JSON when everything stands, and one at the end, with what was counted.
"""

from __future__ import annotations

import itertools
import json
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

SOURCES = 200
"""Loopback addresses to connect from: each has ports of its own."""
STEP = 200
"""Connections that are made before the others get a turn."""
DRIBBLE_EVERY = 1.0
"""Seconds between two bytes of a connection."""

HEAD = "{method} {target} HTTP/1.1\r\nHost: flood\r\nX-Forwarded-For: {address}\r\n{more}\r\n"
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"


def head(
    address: str, target: str = "/short?token=flood", method: str = "GET", more: str = ""
) -> bytes:
    return HEAD.format(method=method, target=target, address=address, more=more).encode()


class Flood:
    """Connections to one port, which do what is in ``kinds``."""

    def __init__(self, port: int, count: int, addresses: list[str]) -> None:
        self.port = port
        self.count = count
        self.socks: dict[int, socket.socket] = {}
        self.sent: dict[int, int] = {}
        self.counted = {"connected": 0, "answered": 0, "refused": 0, "closed": 0}
        self._numbers = itertools.count()
        self.addresses = itertools.cycle(addresses)
        self.poll = select.epoll()

    def connect(self, data: bytes) -> None:
        """One more, which sends this."""
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{2 + next(self._numbers) % SOURCES}", 0))
        sock.connect(("127.0.0.1", self.port))
        sock.setblocking(False)
        sock.send(data)
        self.socks[sock.fileno()] = sock
        self.counted["connected"] += 1
        self.poll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)

    def read(self, timeout: float) -> None:
        """Take in what has come for up to so long."""
        by = time.monotonic() + timeout
        while True:
            for fd, _ in self.poll.poll(max(0.0, by - time.monotonic())):
                self._read(fd)
            if time.monotonic() >= by:
                return

    def _read(self, fd: int) -> None:
        sock = self.socks[fd]
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        self.counted["answered"] += data[9:12] in (b"200", b"101")
        self.counted["refused"] += data[9:12] in (b"503", b"408")
        if not data:
            self.counted["closed"] += 1
            self.poll.unregister(sock)
            self.sent.pop(fd, None)
            sock.close()
            del self.socks[fd]

    def fill(self, make: Callable[[str], bytes], over: Callable[[], bool]) -> None:
        """As many as there are to be, a few at a time. With a server that refuses them as fast as
        they come there are never so many."""
        while len(self.socks) < self.count and not over():
            for _ in range(min(STEP, self.count - len(self.socks))):
                self.connect(make(next(self.addresses)))
            self.read(0.005)

    def fill_answered(self, make: Callable[[str], bytes]) -> None:
        """The same, as fast as they are answered: all of them are to stand, and none be refused."""
        by = time.monotonic() + 120
        while (answered := self.counted["answered"]) < self.count:
            under_way = len(self.socks) - answered
            for _ in range(min(STEP - under_way, self.count - len(self.socks))):
                self.connect(make(next(self.addresses)))
            self.read(0.005)
            if time.monotonic() > by:
                raise TimeoutError(f"not all are answered: {self.counted}")

    def reset(self) -> None:
        """All of them, at once."""
        for sock in self.socks.values():
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        self.socks.clear()


def _idle(flood: Flood, over: Callable[[], bool]) -> None:
    """Answered once, and then at rest."""
    flood.fill_answered(head)
    _stand(flood, over)


def _stand(flood: Flood, over: Callable[[], bool]) -> None:
    say(flood)
    while not over():
        flood.read(0.05)


def _dribble(flood: Flood, over: Callable[[], bool], data: bytes = b"", first: int = 1) -> None:
    """A byte now and then, of a head that never ends; who is refused comes again."""
    data = data or head("192.0.2.1", more="X-Long: " + "x" * 2000)
    flood.fill(lambda address: data[:first], over)
    say(flood)
    while not over():
        began = time.monotonic()
        flood.fill(lambda address: data[:first], over)
        # Evenly over the second.
        for number, (fd, sock) in enumerate(list(flood.socks.items())):
            at = flood.sent[fd] = flood.sent.get(fd, first) + 1
            with suppress(OSError):
                sock.send(data[at : at + 1])
            if number % STEP == 0:
                flood.read(0.001)
                if over():
                    return
        flood.read(max(0.0, DRIBBLE_EVERY - (time.monotonic() - began)))


def _bodies(flood: Flood, over: Callable[[], bool]) -> None:
    """The same with bodies, of one client."""
    data = head("{}", "/upload?token=flood", "POST", "Content-Length: 100000\r\n")
    address = next(flood.addresses).encode()
    data = data.replace(b"{}", address)
    _dribble(flood, over, data + bytes(100_000), len(data))


def _websockets(flood: Flood, over: Callable[[], bool]) -> None:
    """They stand, and then all of them are reset at once."""
    flood.fill_answered(lambda address: head(address, WEBSOCKET, more=UPGRADE))
    _stand(flood, over)


def _one_client(flood: Flood, over: Callable[[], bool]) -> None:
    """More and more of it, as fast as it is let."""
    address = next(flood.addresses)
    say(flood)
    while not over():
        flood.fill(lambda _: head(address), over)
        flood.read(0.05)


KINDS = {
    "idle": _idle,
    "dribble": _dribble,
    "bodies": _bodies,
    "websockets": _websockets,
    "client": _one_client,
}


def say(flood: Flood) -> None:
    print(json.dumps(flood.counted), flush=True)


def main() -> None:
    kind, port, count, *addresses = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flood = Flood(int(port), int(count), addresses)
    sys.stdin.readline()

    def over() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    KINDS[kind](flood, over)
    flood.reset()
    say(flood)


if __name__ == "__main__":
    main()
