"""A listener of the master's own, beside those of the app: a few clients, each with one short
question, which is answered at once.

What a client does with its connection (nothing, byte by byte, never read the answer) costs the
server this connection and nothing more: the number of clients, the bytes of a question and the time
of all of it are bounded, nothing waits, and when there are too many the oldest makes room.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable

Handler = Callable[[int], object]
Register = Callable[[int, int, Handler], None]
Unregister = Callable[[int], None]
Answer = Callable[[bytes, socket.socket], bytes | None]

CLIENTS = 16
"""At one time."""
LONGEST = 8192
"""Bytes of a question."""
PATIENCE = 5.0
"""Seconds for everything, from accept to close."""
_AT_ONCE = 8
_PIECE = 4096


class _Client:
    """One connection: it asks, is answered, and is read until it closes, so that what it has sent
    too much does not reset the answer on its way."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self.sock = sock
        self.until = until
        self.asked = bytearray()
        self.answer: memoryview | None = None


class Desk:
    """A listener and its clients.

    Args:
        listener: it is non-blocking, and is closed with this.
        answer: says what to answer to the bytes that have come; None: that is not all yet. An
            empty answer closes.
        clock: the monotonic time, in seconds.
        overlong: the answer to a question that is too long.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Answer,
        clock: Callable[[], float],
        overlong: bytes = b"",
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._clock = clock
        self._overlong = overlong
        self._clients: dict[int, _Client] = {}
        self._register: Register | None = None
        self._unregister: Unregister | None = None
        self._paused = False

    def fileno(self) -> int:
        """The listener's."""
        return self._listener.fileno()

    def open(self, register: Register, unregister: Unregister) -> None:
        """Begin to accept: in the loop that these belong to."""
        self._register, self._unregister = register, unregister
        register(self._listener.fileno(), select.EPOLLIN, self._accept)

    def tick(self, now: float) -> None:
        """Close what has taken too long; to be called about once in a second."""
        for client in [client for client in self._clients.values() if client.until <= now]:
            self._drop(client)
        if self._paused and self._register is not None:
            self._paused = False
            self._register(self._listener.fileno(), select.EPOLLIN, self._accept)

    def close(self) -> None:
        """Close everything."""
        for client in list(self._clients.values()):
            self._drop(client)
        if self._unregister is not None and self._listener.fileno() >= 0:
            self._unregister(self._listener.fileno())
        self._listener.close()

    def _accept(self, _: int) -> None:
        assert self._register is not None
        assert self._unregister is not None
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:  # of descriptors or memory: later, or this would be all we do
                self._paused = True
                self._unregister(self._listener.fileno())
                return
            sock.setblocking(False)
            if len(self._clients) >= CLIENTS:
                self._drop(next(iter(self._clients.values())))
            client = _Client(sock, self._clock() + PATIENCE)
            self._clients[sock.fileno()] = client
            self._watch(client, select.EPOLLIN)
            self._go_on(client)

    def _watch(self, client: _Client, events: int) -> None:
        assert self._register is not None
        self._register(client.sock.fileno(), events, lambda _: self._go_on(client))

    def _go_on(self, client: _Client) -> None:
        try:
            if client.answer is None:
                self._read(client)
            elif client.answer:
                self._write(client)
            elif not client.sock.recv(_PIECE):
                self._drop(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _read(self, client: _Client) -> None:
        piece = client.sock.recv(_PIECE)
        if not piece:
            self._drop(client)
            return
        client.asked += piece
        answer = self._answer(bytes(client.asked[:LONGEST]), client.sock)
        if answer is None and len(client.asked) >= LONGEST:
            answer = self._overlong
        if answer is None:
            return
        if not answer:
            self._drop(client)
            return
        client.answer = memoryview(answer)
        self._write(client)

    def _write(self, client: _Client) -> None:
        assert client.answer is not None
        with contextlib.suppress(BlockingIOError):
            client.answer = client.answer[client.sock.send(client.answer, socket.MSG_NOSIGNAL) :]
        if client.answer:
            self._watch(client, select.EPOLLOUT)
        else:
            self._watch(client, select.EPOLLIN)
            client.sock.shutdown(socket.SHUT_WR)

    def _drop(self, client: _Client) -> None:
        fd = client.sock.fileno()
        if self._clients.get(fd) is client:
            del self._clients[fd]
            assert self._unregister is not None
            self._unregister(fd)
        client.sock.close()
