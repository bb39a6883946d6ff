"""What is counted, in memory that all processes of a server share: each writes its own row and
may read all of them, at any time and without a message.

    row 0        the master's counters; in its last cells how often a process has come or gone, the
                 number of slots, how often that has changed, and the number of rows that may be in
                 use
    row 1 ...    one for each process: slot + 1 (0 while it does not serve), pid, 1 while the
                 process that it has replaced is still there, its beats, counters; in its last cell
                 what mail it wants from other processes (mail.py)

There are more rows than a machine can have processes. The memory is sparse: a page of it is there
only once one of its rows was written.
"""

from __future__ import annotations

import errno
import heapq
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
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
    "passed_on",  # resting connections of a process that ends, given to its successor
    "rest_closed",  # closed instead: nobody could take them
    "returned",  # taken back from an inbox that no process read any more
    "shed",  # refused because more than max_queued waited: the newest of the longest queue
)
WORKER = (
    "open",  # connections, now
    "not_begun",  # of these: picked up and not yet given to the app
    "resting",  # of these: at a boundary, waiting for their next request
    "adopted",  # connections
    "lost",  # came without their descriptor: this process had none free
    "sessions",  # that the app holds, as far as it can be known
    "requests",  # served
    "looked",  # further requests looked at
    "handed_back",  # connections whose next request belongs to another worker
    "passed_on",  # resting connections given to the successor
    "unheld",  # of those handed back: their session may be held by the process before
    "refused_heads",  # answered by this process: 400, 431, 501, 505
    "head_timeouts",
    "keep_alive_ended",  # resting connections closed after keep_alive
    "body_timeouts",
    "write_timeouts",
    "client_left",  # answers that could not be finished because their client had left
    "app_errors",  # requests answered 500 because the app raised
    "handler_errors",
    "sync_timeouts",
    "left_unreleased",  # their client closed before the app had released them
    "threads",  # now
    "thread_starved",  # times that no thread could be started
    "marks_forgotten",  # ids of ours that were held, and made room
    "mail_sent",  # messages for other workers, each counted once for each of them
    "mail_received",
    "mail_dropped",  # messages that another worker, or a subscriber here, was too slow for
)
# The same as numbers: ``row.cells[OPEN] += 1`` takes half as long as ``row["open"] += 1``.
(
    OPEN,
    NOT_BEGUN,
    RESTING,
    ADOPTED,
    LOST,
    SESSIONS,
    REQUESTS,
    LOOKED,
    HANDED_BACK,
    PASSED_ON,
    UNHELD,
    REFUSED_HEADS,
    HEAD_TIMEOUTS,
    KEEP_ALIVE_ENDED,
    BODY_TIMEOUTS,
    WRITE_TIMEOUTS,
    CLIENT_LEFT,
    APP_ERRORS,
    HANDLER_ERRORS,
    SYNC_TIMEOUTS,
    LEFT_UNRELEASED,
    THREADS,
    THREAD_STARVED,
    MARKS_FORGOTTEN,
    MAIL_SENT,
    MAIL_RECEIVED,
    MAIL_DROPPED,
) = range(27)

_CELLS = 32  # in a row, of 8 bytes
_ROW = _CELLS * 8
_BEFORE = 4  # cells of a process's row that are no counters
_BEATS = 3  # one of these
_USED = _CELLS - 1  # in the master's row: how many rows may be in use
_TOPOLOGY = _CELLS - 3  # and the two cells of the topology
_PRESENCE = _CELLS - 4  # and how often a process has come or gone
_WANTED = _CELLS - 1  # in a process's row: its mail
_ROWS = 1 << 16
_FIRSTS = 1 << 17  # bytes behind the rows, for core.Firsts
_SIZE = _ROWS * _ROW + _FIRSTS


def layout() -> dict[str, Any]:
    """Where what is, for a process that has the memory from another one."""
    names = {"master": list(MASTER), "worker": list(WORKER)}
    return {"cells": _CELLS, "before": _BEFORE, "rows": _ROWS, "firsts": _FIRSTS, **names}


def fits(other: Mapping[str, Any]) -> bool:
    """Whether a process with this layout finds what it means in ours: there may be more."""
    ours = layout()
    return ours.keys() == other.keys() and all(
        value[: len(other[name])] == other[name]
        if isinstance(value, list)
        else value == other[name]
        for name, value in ours.items()
    )


class Row(MutableMapping[str, int]):
    """Counters by name.

    Attributes:
        cells: the same by number.
    """

    __slots__ = ("_at", "cells")

    def __init__(self, at: Mapping[str, int], cells: memoryview) -> None:
        self._at = at
        self.cells = cells

    def __getitem__(self, name: str) -> int:
        return self.cells[self._at[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self.cells[self._at[name]] = value

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
        fd: the memory, from another process's board; None makes a new one. It stays open, to be
            given to others, until ``close``.

    Attributes:
        master: the master's counters.
        topology: two cells.
        presence: one cell: how often a process has come or gone.
        wanted: by row: what mail a process wants, as mail.py has it; 0: none, or it has ended.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("sticky-counters", os.MFD_CLOEXEC)
            os.ftruncate(fd, _SIZE)
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._cells = memoryview(self._memory)[: _ROWS * _ROW].cast("Q")
        self.firsts = memoryview(self._memory)[_ROWS * _ROW :]
        self.master = Row(_OF_MASTER, self._cells[:_PRESENCE])
        self.topology = self._cells[_TOPOLOGY:_USED]
        self.presence = self._cells[_PRESENCE:_TOPOLOGY]
        self.wanted = self._cells[_WANTED::_CELLS]
        # The master's: those taken back, and the first of those that were never given.
        self._free: list[int] = []
        self._fresh = 1

    def process(self, row: int) -> Row:
        """The counters of the process that was given this row; 0: it was given none."""
        if not row:
            return private()
        start = row * _CELLS
        return Row(_OF_WORKER, self._cells[start + _BEFORE : start + _WANTED])

    def pid(self, row: int) -> int:
        """The process id of who has this row, or had it last; 0 before it has served."""
        return self._cells[row * _CELLS + 1]

    def has_others(self, row: int) -> bool:
        """Whether another process of the same slot is there: the one that this one has replaced, or
        is about to, or that has replaced it. True, too, where there is no row to tell it."""
        start = row * _CELLS
        return not row or not self._cells[start] or bool(self._cells[start + 2])

    def is_replaced(self, row: int) -> bool:
        """Whether this process has served its slot and another one serves it now."""
        start = row * _CELLS
        return bool(row and self._cells[start + 1] and not self._cells[start])

    def beat(self, row: int) -> None:
        """The process that was given this row is there, and its loop turns."""
        if row:
            self._cells[row * _CELLS + _BEATS] += 1

    def beats(self, row: int) -> int:
        """How often it has said so."""
        return self._cells[row * _CELLS + _BEATS]

    def stats(self) -> dict[str, Any]:
        """All that was counted: the master's by name, the workers' under "workers", by slot."""
        workers = {
            slot: {"pid": self._cells[row * _CELLS + 1], **self.process(row)}
            for slot, row in sorted(self._shown())
        }
        return {**self.master, "workers": workers}

    def load(self, row: int) -> int:
        """What a process has to do: sessions, and what will be some. 0 where no row says it."""
        start = row * _CELLS + _BEFORE
        return self._cells[start + SESSIONS] + self._cells[start + NOT_BEGUN] if row else 0

    def loads(self) -> Iterator[tuple[int, int]]:
        """The same of each process that serves, with its slot."""
        # Column by column: asked for often, and a list of rows takes long.
        cells = self._cells[_CELLS : self._cells[_USED] * _CELLS]
        slots = cells[::_CELLS].tolist()
        sessions = cells[_BEFORE + SESSIONS :: _CELLS].tolist()
        not_begun = cells[_BEFORE + NOT_BEGUN :: _CELLS].tolist()
        for slot, one, other in zip(slots, sessions, not_begun, strict=True):
            if slot:
                yield slot - 1, one + other

    def _shown(self) -> Iterator[tuple[int, int]]:
        slots = self._cells[_CELLS : self._cells[_USED] * _CELLS : _CELLS].tolist()
        for row, slot in enumerate(slots, 1):
            if slot:
                yield slot - 1, row

    # -- the master's side --------------------------------------------------------------------

    def came_or_went(self) -> int:
        """A process is there, or gone; how often that has been by now."""
        self.presence[0] += 1
        return self.presence[0]

    def give(self) -> int:
        """A row for a new process, all zeros.

        Raises:
            OSError: there are as many processes as rows, which no machine has the memory for.
        """
        if self._free:
            row = heapq.heappop(self._free)
        elif self._fresh < _ROWS:
            row = self._fresh
            self._fresh += 1
            self._cells[_USED] = self._fresh
        else:
            raise OSError(errno.ENOSPC, "the counters have no row left")
        self._cells[row * _CELLS : (row + 1) * _CELLS] = memoryview(bytes(_ROW)).cast("Q")
        return row

    def show(self, row: int, slot: int, pid: int) -> None:
        """This process serves the slot from now on, instead of whichever did."""
        before = [other for shown, other in self._shown() if shown == slot and other != row]
        self._cells[row * _CELLS + 1] = pid
        self._cells[row * _CELLS] = slot + 1
        for other in before:  # afterwards: whoever reads just now finds one or the other
            self._cells[other * _CELLS] = 0

    def hide(self, row: int) -> None:
        """This process serves no slot any more, and no other one has it yet."""
        self._cells[row * _CELLS] = 0

    def previous(self, row: int, there: bool) -> None:
        """The process that this one has replaced is still there, or is not any more."""
        self._cells[row * _CELLS + 2] = there

    def restore(self, rows: Iterable[int]) -> None:
        """In a new master: these rows are given, of those that were ever in use."""
        self._fresh = max(1, self._cells[_USED])
        self._free = sorted(set(range(1, self._fresh)) - set(rows))

    def take_back(self, row: int) -> None:
        """The process has ended."""
        self._cells[row * _CELLS] = 0
        self._cells[row * _CELLS + _WANTED] = 0
        heapq.heappush(self._free, row)

    def close(self) -> None:
        """Close ``fd``. The memory stays."""
        os.close(self.fd)
