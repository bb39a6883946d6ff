"""Connections that are answered by the master, and closed."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, MutableMapping

from ..answers import refusals
from ..options import Options
from .agenda import Connection as Handle
from .held import Connection, Socket
from .waiting import Waiting

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
# As a number: what is done with the enums of the socket module takes longer than the system call.
# The end of the stream follows, and goes in the same segment.
_LAST = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | socket.MSG_MORE)


class Refusing:
    """The end of a connection that is served by nobody.

    Args:
        options: the settings.
        waiting: where connections are.
        register, unregister: the loop's, to be told of events on a descriptor.
        counters: where to count.
    """

    def __init__(
        self,
        options: Options,
        waiting: Waiting,
        *,
        register: Callable[[int, int, Callable[[int], object]], None],
        unregister: Callable[[int], None],
        counters: MutableMapping[str, int],
    ) -> None:
        self._answers = refusals(options)
        self._waiting = waiting
        self._register = register
        self._unregister = unregister
        self._buffer = bytearray(options.max_head_size)
        self.counters = counters

    def refuse(self, handle: Handle, status: int) -> None:
        """Answer, and wait a little for the client to have read it (RFC 9112, 9.6). Who has asked
        nothing is told nothing: it would be taken for the answer to the next thing that is asked.
        """
        assert isinstance(handle, Connection)
        sock = handle.sock
        if sock.fileno() < 0:
            return  # it had to make room before it could be answered
        self._unregister(sock.fileno())
        if not handle.prefix and self._is_silent(sock):
            self._waiting.closed(handle)
            return
        self.counters["refused"] += 1
        try:
            sock.send(self._answers[status], _LAST)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._waiting.left(handle)
            return
        if self._linger(handle):  # what lies here already need not be an event first
            self.watch(handle)

    def watch(self, connection: Connection) -> None:
        """Be told what a refused client still does."""
        self._register(
            connection.sock.fileno(),
            select.EPOLLIN,
            lambda _: self._linger(connection),
        )

    def _is_silent(self, sock: Socket) -> bool:
        """Whether not a byte has come."""
        try:
            return not sock.recv_into(self._buffer, 1, _PEEK)
        except OSError:
            return True

    def _linger(self, connection: Connection) -> bool:
        """Read and forget what a refused client still sends; whether there may be more."""
        try:
            if connection.sock.recv_into(self._buffer, len(self._buffer), socket.MSG_DONTWAIT):
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        self._waiting.left(connection)
        return False

    def drop(self, handle: Handle) -> None:
        """Close."""
        assert isinstance(handle, Connection)
        self._unregister(handle.sock.fileno())
        handle.sock.close()
