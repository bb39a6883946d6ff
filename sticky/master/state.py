"""What a master leaves to the one that takes its place in the same process (``upgrade``).

    {"format": 2, "path": [...], ...}\\n      one line of JSON
    ...                                      pieces: bytes that were read from connections

It lies in a memfd. Descriptors are in it as their numbers: they stay open over execve(2). The
objects whose state it is write and read their part of it themselves (``pack``, ``restore``).

The rules for whoever changes a part: a field that is new has a value without which it was written;
one that is gone, or means something else, is a new ``FORMAT``, which the code before does not know.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any, BinaryIO

from ..errors import StickyError

FORMAT = 2

Socket = socket.SocketType


class Packing:
    """What is being packed: the descriptors that must stay open, and the pieces.

    Attributes:
        fds: the descriptors.
    """

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._pieces: list[bytes] = []

    def fd(self, number: int) -> int:
        """This descriptor is needed; the same number."""
        self.fds.append(number)
        return number

    def piece(self, data: bytes) -> int:
        """These bytes are needed. Where they are follows from the order, and this length."""
        if data:
            self._pieces.append(data)
        return len(data)

    def write(self, content: Mapping[str, Any]) -> int:
        """All of it in a new memfd, whose descriptor is the caller's.

        Raises:
            OSError: there is no room for it, or no descriptor.
        """
        memfd = os.memfd_create("sticky-state", os.MFD_CLOEXEC)
        try:
            with open(memfd, "wb", closefd=False) as file:
                file.write(json.dumps({"format": FORMAT, **content}).encode() + b"\n")
                file.writelines(self._pieces)
        except BaseException:
            os.close(memfd)
            raise
        return memfd


class Packed:
    """The same, to take out what is there.

    Args:
        content: the line.
        rest: the file, to be read from behind it.

    Raises:
        StickyError: it is of a format that this code does not know.
    """

    def __init__(self, content: dict[str, Any], rest: BinaryIO) -> None:
        found = content.get("format")
        if found != FORMAT:
            raise StickyError(f"the state is of format {found!r}, and this code reads {FORMAT}")
        self.content = content
        self._rest = rest

    def piece(self, length: int) -> bytes:
        """The next piece.

        Raises:
            StickyError: there is not so much.
        """
        data = self._rest.read(length) if length else b""
        if len(data) != length:
            raise StickyError(f"of {length} bytes of a connection {len(data)} are there")
        return data

    def close(self) -> None:
        """Everything was taken: its memory, of which there may be much, is not needed any more.

        Raises:
            StickyError: there are pieces left.
        """
        left = len(self._rest.read(1))
        self._rest.close()
        self.content.clear()
        if left:
            raise StickyError("there are more bytes of connections than connections")

    def descriptor(self, number: int) -> int:
        """A descriptor that was packed, not inheritable any more."""
        os.set_inheritable(number, False)
        return number

    def socket(self, number: int) -> socket.socket:
        """The socket that it is, non-blocking."""
        sock = socket.socket(fileno=self.descriptor(number))
        sock.setblocking(False)
        return sock

    def connection(self, number: int, family: int) -> Socket:
        """The client's connection that it is; see ``Socket`` in dispatcher.py."""
        return Socket(family, socket.SOCK_STREAM, 0, self.descriptor(number))

    def pidfd(self, pid: int) -> int:
        """A new one, of a child. One that has ended meanwhile is there still: nobody but us
        collects it."""
        return os.pidfd_open(pid)


class Unopened(socket.socket):
    """Stands for a descriptor that this process does not have."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number

    def setblocking(self, flag: bool) -> None:
        """Nothing is read."""

    def getsockname(self) -> Any:
        return None

    def close(self) -> None:
        """There is nothing to close."""


class Copy(Packed):
    """For a process that tries whether it can read all of this: it has none of the descriptors."""

    def descriptor(self, number: int) -> int:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise StickyError(f"{number!r} is no descriptor")
        return number

    def socket(self, number: int) -> socket.socket:
        return Unopened(self.descriptor(number))

    def connection(self, number: int, family: int) -> Socket:
        return Unopened(self.descriptor(number))

    def pidfd(self, pid: int) -> int:
        return -1
