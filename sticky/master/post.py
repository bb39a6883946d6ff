"""Who can be sent mail: every process knows the mailbox of every other one (``sticky.mail``).

The master makes a mailbox for each process it starts, gives the end that is read to that process
and keeps the other one, to hand it to those who come later. Who comes and goes is said to each on a
pair of its own (``news``), which a process reads before it sends, whatever else it does meanwhile;
the counter in the board that tells it to look is raised behind that.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from .. import channel
from ..board import Board
from .state import Packed, Packing

BUFFER = 1 << 18
"""Of a mailbox (SO_SNDBUF), in bytes: what a process that stands still costs at most."""
_AT_START = 200
"""Mailboxes that go along with what a process is started with; the others it is told of behind that
(SCM_MAX_FD is 253)."""


class Box:
    """What the master has of one process."""

    def __init__(
        self, slot: int, mailbox: socket.socket, news: socket.socket, born: int = 0
    ) -> None:
        self.slot = slot
        self.born = born  # the epoch: rows are used again, this is not
        self.mailbox = mailbox
        self.news = news
        # Who has come or gone, for which there was no room: kind, epoch, row, slot.
        self.unsaid: list[tuple[int, int, int, int]] = []

    def close(self) -> None:
        """Close it."""
        self.mailbox.close()
        self.news.close()


class Ends:
    """What a new process is given.

    Attributes:
        mailbox, news: its ends.
        spec: what it is told of the others.
        fds: their mailboxes, in the same order.
    """

    def __init__(
        self,
        mailbox: socket.socket,
        news: socket.socket,
        spec: Mapping[str, Any],
        fds: Sequence[int],
    ) -> None:
        self.mailbox = mailbox
        self.news = news
        self.spec = spec
        self.fds = fds

    def close(self) -> None:
        """They are with the process."""
        self.mailbox.close()
        self.news.close()


class Post:
    """The mailboxes of all processes.

    Args:
        board: where it is said that somebody has come or gone.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self.boxes: dict[int, Box] = {}  # by row

    def open(self, row: int, slot: int) -> Ends:
        """A mailbox for a process that is about to start; from now on the others know it.

        Raises:
            OSError: there is no descriptor for it.
        """
        mailbox, mailbox_end = channel.pair(BUFFER)
        try:
            news, news_end = channel.pair()
        except OSError:
            mailbox.close()
            mailbox_end.close()
            raise
        at_start = list(self.boxes.items())[:_AT_START]
        later = list(self.boxes.items())[_AT_START:]
        box = Box(slot, mailbox, news)
        epoch = self._tell_all(channel.CAME, row, slot, box)
        box.born = epoch
        told = epoch - bool(later)  # else it would not look for the rest of them
        spec = {"siblings": [[other, its.slot] for other, its in at_start], "epoch": told}
        self.boxes[row] = box
        for other, its in later:
            box.unsaid.append((channel.CAME, epoch, other, its.slot))
        self._catch_up(box)
        return Ends(mailbox_end, news_end, spec, [its.mailbox.fileno() for _, its in at_start])

    def close(self, row: int) -> None:
        """The process has ended, or was never started."""
        box = self.boxes.pop(row, None)
        if box is not None:
            box.close()
            self._tell_all(channel.WENT, row, box.slot)

    def _tell_all(self, kind: int, row: int, slot: int, about: Box | None = None) -> int:
        epoch = self._board.presence[0] + 1
        for box in self.boxes.values():
            if box.unsaid or not self._tell(box, kind, epoch, row, slot, about):
                box.unsaid.append((kind, epoch, row, slot))
        return self._board.came_or_went()  # behind the news: who sees it finds them

    def _tell(
        self, box: Box, kind: int, epoch: int, row: int, slot: int, about: Box | None
    ) -> bool:
        """False: there is no room."""
        fds = (about.mailbox.fileno(),) if about is not None else ()
        payload = channel.pack_presence(epoch, row, slot)
        try:
            channel.send(box.news, channel.pack_header(kind), payload, *fds)
        except BlockingIOError:
            return False
        except OSError as error:
            return error.errno not in channel.PASSING  # it is dead
        return True

    def catch_up(self) -> None:
        """Tell those for whom there was no room; to be called about once in a second."""
        for box in self.boxes.values():
            if box.unsaid:
                self._catch_up(box)

    def _catch_up(self, box: Box) -> None:
        while box.unsaid:
            kind, epoch, row, slot = box.unsaid[0]
            about = self.boxes.get(row) if kind == channel.CAME else None
            if kind == channel.CAME and about is None:
                kind = channel.WENT  # meanwhile
            if not self._tell(box, kind, epoch, row, slot, about):
                return
            del box.unsaid[0]

    def mailboxes(self) -> tuple[dict[str, Any], list[int]]:
        """For a process that is none of them: of each its row, its slot, and a number that only it
        has; and the descriptors, in the same order, behind that of the board."""
        workers = [[row, box.slot, box.born] for row, box in self.boxes.items()]
        fds = [self._board.fd, *(box.mailbox.fileno() for box in self.boxes.values())]
        return {"epoch": self._board.presence[0], "workers": workers}, fds

    def pack(self, packing: Packing) -> list[Any]:
        """What ``restore`` needs."""
        return [
            [
                *(row, box.slot, box.born, box.unsaid),
                *(packing.fd(box.mailbox.fileno()), packing.fd(box.news.fileno())),
            ]
            for row, box in self.boxes.items()
        ]

    def restore(self, known: Sequence[Any], packed: Packed) -> None:
        """Those of a master before."""
        for row, slot, born, unsaid, mailbox, news in known:
            ends = packed.socket(mailbox), packed.socket(news)
            box = self.boxes[row] = Box(slot, *ends, born)
            box.unsaid = [tuple(entry) for entry in unsaid]

    def close_all(self) -> None:
        """Close everything; nobody is told."""
        for box in self.boxes.values():
            box.close()
        self.boxes.clear()
