"""What a worker waits for: one epoll for all its descriptors, and their deadlines.

The epoll is itself a descriptor, so any event loop can wait for it (eventlet's and gevent's hubs,
asyncio, uvloop, or a plain poll): whenever it is readable, and at ``due``, ``turn`` is to be called
from that loop. A connection that lives for one request never gets in here at all.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from .kernel import EPOLLIN, allocate_lock, close, epoll

log = logging.getLogger("sticky.worker")

_STEP = 0.05
"""Seconds: how exactly deadlines are kept."""
_MOST = 64
"""Descriptors in one turn, before everything else in this process gets its turn again."""
_GONE = (errno.ENOENT, errno.EBADF)


class Member(Protocol):
    """What is registered here, or has a deadline.

    Attributes:
        due: when it is late, on the monotonic clock; infinity while it waits for nothing.
        slice: where ``Deadlines`` keeps it; to be 0 at first and left alone.
    """

    due: float
    slice: int

    def ready(self, events: int) -> None:
        """Its descriptor is ready."""

    def late(self, now: float) -> None:
        """Its deadline has passed."""


class Watcher:
    """A member that only has something called when its descriptor is ready."""

    __slots__ = ("due", "ready", "slice")

    def __init__(self, ready: Callable[[int], None]) -> None:
        self.ready = ready
        self.due = math.inf
        self.slice = 0

    def late(self, now: float) -> None:
        """It has no deadline."""


class Deadlines:
    """Who is late, and when the next may be.

    Every request sets deadlines and hardly any passes, so setting one later costs no more than an
    attribute: members lie in slices of time, and when one's slice comes up that is not late yet, it
    is laid into the slice where its deadline is now.
    """

    def __init__(self, on_earlier: Callable[[], object] = lambda: None) -> None:
        """``on_earlier``: called when ``due`` has come closer."""
        self._on_earlier = on_earlier
        self._slices: dict[int, set[Member]] = {}
        self._order: list[int] = []
        self._lock = allocate_lock()  # worker threads set deadlines, too

    def keep(self, member: Member, due: float) -> None:
        """This member is late from ``due`` on."""
        member.due = due
        at = int(due / _STEP) + 1
        if not member.slice or at < member.slice:
            with self._lock:
                self._lay(member, at)
                earlier = self._order[0] == at and len(self._slices[at]) == 1
            if earlier:
                self._on_earlier()

    def _lay(self, member: Member, at: int) -> None:
        member.slice = at
        there = self._slices.get(at)
        if there is None:
            there = self._slices[at] = set()
            heapq.heappush(self._order, at)
        there.add(member)

    def forget(self, member: Member) -> None:
        """This member is at its end: keep no reference to it."""
        member.due = math.inf
        if member.slice:
            with self._lock:
                there = self._slices.get(member.slice)
                if there is not None:
                    there.discard(member)
            member.slice = 0

    @property
    def due(self) -> float:
        """When somebody may be late, at the earliest."""
        return self._order[0] * _STEP if self._order else math.inf

    def late(self, now: float) -> list[Member]:
        """Those whose deadline has passed; they have none any more."""
        found: list[Member] = []
        while self._order and self._order[0] * _STEP <= now:
            with self._lock:
                at = heapq.heappop(self._order)
                for member in self._slices.pop(at):
                    if member.slice != at:
                        continue  # it has been laid into an earlier one since
                    member.slice = 0
                    if member.due <= now:
                        member.due = math.inf
                        found.append(member)
                    elif member.due < math.inf:
                        self._lay(member, int(member.due / _STEP) + 1)
        return found


class Hub:
    """Descriptors, deadlines, and calls from other threads.

    Attributes:
        due: when ``turn`` is to be called although nothing is ready, on the monotonic clock.
        over: nothing is waited for any more; whoever runs the event loop is to return.
        on_stop: called when that begins.
        on_earlier: called when ``due`` has come closer, in the thread that made it so; for loops
            that set a timer of their own to it.
    """

    def __init__(self) -> None:
        self._epoll = epoll()
        self._members: dict[int, Member] = {}
        self._deadlines = Deadlines(self._earlier)
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timed = 0
        self._calls: deque[Callable[[], object]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, EPOLLIN)
        self.keep = self._deadlines.keep
        self.forget = self._deadlines.forget
        self.over = False
        self.on_stop: Callable[[], object] | None = None
        self.on_earlier: Callable[[], object] | None = None

    def fileno(self) -> int:
        """The epoll's descriptor: readable when ``turn`` has something to do."""
        return self._epoll.fileno()

    def register(self, fd: int, member: Member, events: int = EPOLLIN) -> None:
        """Have ``member.ready`` called when the descriptor is ready."""
        self._members[fd] = member
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of it from now on."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget it. To be called before it is closed or given away: the file may live on in
        another process, and would keep its registration here."""
        if self._members.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError as error:
                if error.errno not in _GONE:  # the app may have closed it
                    raise

    def call(self, call: Callable[[], object]) -> None:
        """Have this called in the next turn; from any thread."""
        self._calls.append(call)
        self.wake()

    def wake(self) -> None:
        """Have ``turn`` return, or called; from any thread."""
        os.eventfd_write(self._wake, 1)

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have this called in so many seconds; from the loop's own thread."""
        self._timed += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timed, call))
        if self._timers[0][1] == self._timed:
            self._earlier()

    def _earlier(self) -> None:
        if self.on_earlier is not None:
            self.on_earlier()

    @property
    def due(self) -> float:
        due = self._deadlines.due
        return min(due, self._timers[0][0]) if self._timers else due

    def turn(self, seconds: float = 0.0) -> None:
        """Do what there is to do; wait for it at most so long."""
        if self.over:
            return
        members = self._members
        for fd, events in self._epoll.poll(seconds, _MOST):
            member = members.get(fd)
            try:
                if member is not None:
                    member.ready(events)
                elif fd == self._wake:
                    self._called()
            except Exception:  # one connection's trouble must not end the others'
                log.exception("an error in the worker's loop")
            if self.over:  # or this is a child, which the app has forked meanwhile
                return
        now = time.monotonic()
        if self.due <= now:
            self._ring(now)

    def ring(self) -> None:
        """``due`` has come, and nothing is known to be ready: a timer costs no look at that."""
        now = time.monotonic()
        if self._deadlines.due <= now:
            self.turn()  # who has sent something is not late
        elif not self.over:
            self._ring(now)

    def _ring(self, now: float) -> None:
        for member in self._deadlines.late(now):
            self._try(partial(member.late, now))
        while self._timers and self._timers[0][0] <= now:
            self._try(heapq.heappop(self._timers)[2])

    def _called(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for _ in range(len(self._calls)):
            self._try(self._calls.popleft())

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            log.exception("an error in the worker's loop")

    def stop(self) -> None:
        """Have the event loop return."""
        self.over = True
        if self.on_stop is not None:
            self.on_stop()

    def close_after_fork(self) -> None:
        """In a child of the app's: this belongs to the parent, and the child serves nobody."""
        self.over = True
        self._members.clear()
        for end in (self._epoll.close, lambda: close(self._wake)):
            with contextlib.suppress(OSError):
                end()
