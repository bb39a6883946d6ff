"""What is counted, in memory that all processes of a server share: each writes its own row and
may read all of them, at any time and without a message.

    row 0        the master's counters
    row 1 ...    one for each process: slot + 1 (0 while it does not serve), pid, 1 while the
                 process that it has replaced is still there, counters
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

MASTER = (
    "accepted",  # connections
    "refused",  # answered by the master: 400, 408, 431, 503
    "head_timeouts",
    "heads_evicted",  # refused because more than max_pending_heads were awaited
    "queued",  # waited in the master because an inbox was full
    "queue_timeouts",
    "left",  # their client closed while the master held them
    "crowded_out",  # closed to make room for connections that move, for want of descriptors
    "starved",  # times that a connection could not be accepted for want of descriptors
    "moved",  # handed back by one worker and on to another
    "bytes_carried",  # of further requests, with connections that moved
    "moved_too_often",  # refused at max_moves
    "restarts",  # processes started in place of one that had ended
)
WORKER = (
    "open",  # connections, now
    "not_begun",  # of these: picked up and not yet given to the app
    "adopted",  # connections
    "lost",  # came without their descriptor: this process had none free
    "sessions",  # that the app holds, as far as it can be known
    "looked",  # further requests looked at
    "handed_back",  # connections whose next request belongs to another worker
    "unheld",  # of these: their session may be held by the process before
    "handler_errors",
    "sync_timeouts",
    "left_unreleased",  # their client closed before the app had released them
)
_CELLS = 32  # in a row, of 8 bytes
_ROW = _CELLS * 8
_BEFORE = 3  # cells of a process's row that are no counters
_SESSIONS, _NOT_BEGUN = (_BEFORE + WORKER.index(name) for name in ("sessions", "not_begun"))
_PROCESSES = 4  # rows for each slot: of one that serves, and of several that are being replaced


class Row(MutableMapping[str, int]):
    """Counters by name."""

    def __init__(self, at: Mapping[str, int], cells: memoryview) -> None:
        self._at = at
        self._cells = cells

    def __getitem__(self, name: str) -> int:
        return self._cells[self._at[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._cells[self._at[name]] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError("counters stay")

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def _places(names: tuple[str, ...]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}


_OF_MASTER, _OF_WORKER = _places(MASTER), _places(WORKER)


def private(names: tuple[str, ...] = WORKER) -> Row:
    """Counters that no other process sees."""
    return Row(_places(names), memoryview(bytearray(_ROW)).cast("Q"))


class Board:
    """All the rows of a server.

    Args:
        num: the number of slots.
        fd: the memory, from another process's board; None makes a new one. It stays open, to be
            given to others, until ``close``.
    """

    def __init__(self, num: int, fd: int | None = None) -> None:
        self._rows = 1 + _PROCESSES * num
        if fd is None:
            fd = os.memfd_create("sticky-counters", os.MFD_CLOEXEC)
            os.ftruncate(fd, self._rows * _ROW)
        self.fd = fd
        self._memory = mmap.mmap(fd, self._rows * _ROW)
        self._cells = memoryview(self._memory).cast("Q")
        self.master = Row(_OF_MASTER, self._cells[:_CELLS])
        self._free = list(range(self._rows - 1, 0, -1))

    def process(self, row: int) -> Row:
        """The counters of the process that was given this row; 0: it was given none."""
        if not row:
            return private()
        start = row * _CELLS
        return Row(_OF_WORKER, self._cells[start + _BEFORE : start + _CELLS])

    def has_others(self, row: int) -> bool:
        """Whether another process of the same slot is there: the one that this one has replaced, or
        is about to, or that has replaced it. True, too, where there is no row to tell it."""
        start = row * _CELLS
        return not row or not self._cells[start] or bool(self._cells[start + 2])

    def is_replaced(self, row: int) -> bool:
        """Whether this process has served its slot and another one serves it now."""
        start = row * _CELLS
        return bool(row and self._cells[start + 1] and not self._cells[start])

    def stats(self) -> dict[str, Any]:
        """All that was counted: the master's by name, the workers' under "workers", by slot."""
        workers = {
            slot: {"pid": self._cells[row * _CELLS + 1], **self.process(row)}
            for slot, row in sorted(self._shown())
        }
        return {**self.master, "workers": workers}

    def load(self, row: int) -> int:
        """What a process has to do: sessions, and what will be some. 0 where no row says it."""
        start = row * _CELLS
        return self._cells[start + _SESSIONS] + self._cells[start + _NOT_BEGUN] if row else 0

    def loads(self) -> Iterator[tuple[int, int]]:
        """The same of each process that serves, with its slot."""
        cells = self._cells  # column by column: asked for often, and a list of rows takes long
        slots = cells[_CELLS::_CELLS].tolist()
        sessions = cells[_CELLS + _SESSIONS :: _CELLS].tolist()
        not_begun = cells[_CELLS + _NOT_BEGUN :: _CELLS].tolist()
        for slot, one, other in zip(slots, sessions, not_begun, strict=True):
            if slot:
                yield slot - 1, one + other

    def _shown(self) -> Iterator[tuple[int, int]]:
        for row in range(1, self._rows):
            if slot := self._cells[row * _CELLS]:
                yield slot - 1, row

    # -- the master's side --------------------------------------------------------------------

    def give(self) -> int:
        """A row for a new process, all zeros; 0 when there is none left."""
        if not self._free:
            return 0
        row = self._free.pop()
        self._cells[row * _CELLS : (row + 1) * _CELLS] = memoryview(bytes(_ROW)).cast("Q")
        return row

    def show(self, row: int, slot: int, pid: int) -> None:
        """This process serves the slot from now on, instead of whichever did."""
        for other in range(1, self._rows):
            if self._cells[other * _CELLS] == slot + 1:
                self._cells[other * _CELLS] = 0
        if row:
            self._cells[row * _CELLS + 1] = pid
            self._cells[row * _CELLS] = slot + 1

    def previous(self, row: int, there: bool) -> None:
        """The process that this one has replaced is still there, or is not any more."""
        if row:
            self._cells[row * _CELLS + 2] = there

    def take_back(self, row: int) -> None:
        """The process has ended."""
        if row:
            self._cells[row * _CELLS] = 0
            self._free.append(row)

    def close(self) -> None:
        """Close ``fd``. The memory stays."""
        os.close(self.fd)
