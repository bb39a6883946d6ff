"""A loop as the master's, without a master: for what answers people beside the app."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

Handler = Callable[[int], object]


class Loop:
    """epoll and its handlers; nothing happens between the turns that a test asks for.

    Attributes:
        now: the time that it tells.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.epoll = select.epoll()
        self.handlers: dict[int, Handler] = {}

    def clock(self) -> float:
        return self.now

    def register(self, fd: int, events: int, handler: Handler) -> None:
        (self.epoll.modify if fd in self.handlers else self.epoll.register)(fd, events)
        self.handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def turn(self) -> int:
        """Do what there is to do now; how many events that was."""
        events = self.epoll.poll(0)
        for fd, what in events:
            if handler := self.handlers.get(fd):
                handler(what)
        return len(events)

    def settle(self, most: int = 1000) -> None:
        """Until nothing is left to do."""
        for _ in range(most):
            if not self.turn():
                return
        raise AssertionError("it spins")

    def exchange(self, client: socket.socket, data: bytes) -> bytes:
        """What a client is answered that sends this, and reads to the end."""
        client.setblocking(False)
        client.sendall(data)
        got = b""
        for _ in range(10_000):
            self.turn()
            try:
                piece = client.recv(65536)
            except BlockingIOError:
                continue
            if not piece:
                return got
            got += piece
        raise AssertionError(f"no end after {got!r}")

    def close(self) -> None:
        self.epoll.close()
