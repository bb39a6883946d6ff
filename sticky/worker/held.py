"""Which tagged ids a process holds, without a word from its app: those of requests that it has in
hand, WebSockets and streams among them, and for some seconds behind the last of them.

No I/O; the clock is given.
"""

from __future__ import annotations

import time
from _thread import allocate_lock  # never monkey-patched: what it guards never waits
from collections.abc import Callable

MOST = 100_000


class Held:
    """The ids of one process.

    Args:
        seconds: for which an id is held behind its last request.
        clock: the monotonic time, in seconds.
        most: ids; the oldest of those that have no request in hand make room.

    Attributes:
        crowded_out: how many have.
    """

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic, most: int = MOST
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._most = most
        self._open: dict[bytes, int] = {}  # and how many requests it has in hand
        self._recent: dict[bytes, float] = {}  # and until when, the first to go first
        self._lock = allocate_lock()
        self.crowded_out = 0

    def begin(self, id: bytes) -> None:
        """A request with this id is in hand."""
        with self._lock:
            self._recent.pop(id, None)
            self._open[id] = self._open.get(id, 0) + 1
            if len(self._open) + len(self._recent) > self._most:
                self._make_room()

    def end(self, id: bytes) -> None:
        """It is not any more."""
        with self._lock:
            left = self._open.pop(id) - 1
            if left:
                self._open[id] = left
            else:
                self._recent[id] = self._clock() + self._seconds

    def holds(self, id: bytes) -> bool:
        """Whether the app may have something for this id."""
        return id in self._open or self._recent.get(id, 0.0) > self._clock()

    def __len__(self) -> int:
        """How many are held."""
        with self._lock:
            self._forget()
            return len(self._open) + len(self._recent)

    def _forget(self) -> None:
        """Those whose time is over."""
        now, recent = self._clock(), self._recent
        while recent and recent[first := next(iter(recent))] <= now:
            del recent[first]

    def _make_room(self) -> None:
        self._forget()
        while self._recent and len(self._open) + len(self._recent) > self._most:
            del self._recent[next(iter(self._recent))]
            self.crowded_out += 1
