"""A connection as the master knows it that holds it for longer than a moment."""

from __future__ import annotations

import socket

from .. import channel

# The type below ``socket.socket``. Making one costs a third, and what the other adds (enums,
# reference counts of its files) nobody here looks at.
Socket = socket.SocketType


class Connection:
    """One connection that the master holds for longer than a moment."""

    __slots__ = ("address", "kind", "moves", "prefix", "since", "sock", "unheld")

    def __init__(
        self, sock: Socket, address: channel.Address, prefix: bytes = b"", moves: int = 0
    ) -> None:
        self.sock = sock
        self.address = address
        self.prefix = prefix
        self.moves = moves
        self.unheld = False
        self.since = 0  # when it was decided where it goes, as a message carries it
        self.kind = channel.CONNECTION  # or REST
