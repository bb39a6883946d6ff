"""What eventlet's and gevent's loops have in common: greenlets that are used again, and a timer.

A new greenlet maps a stack of its own for Python's frames, and unmaps it at its end: two system
calls and a page fault for each request. One that has nothing to do switches back to the hub instead
of ending, and is given the next thing.
"""

from __future__ import annotations

import abc
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import greenlet

from ..hub import Hub

log = logging.getLogger("sticky.worker")

_MOST = 64
"""Greenlets that are kept for later."""


class Greenlets:
    """Starts things from the hub's greenlet; each runs at once, until it waits for something.

    Args:
        hub: the greenlet of the event loop.
    """

    def __init__(self, hub: greenlet.greenlet) -> None:
        self._hub = hub
        self._free: list[greenlet.greenlet] = []
        self._all: set[greenlet.greenlet] = set()
        self._most = _MOST

    def start(self, call: Callable[..., object], *arguments: Any) -> None:
        """Run this beside everything else. To be called in the hub's greenlet."""
        free = self._free
        if free:
            one = free.pop()
        else:
            one = greenlet.greenlet(self._live, self._hub)
            self._all.add(one)
        one.switch(call, arguments)

    def cancel(self) -> None:
        """Have all that runs end as if it had been killed: ``finally`` is gone through, and may
        still wait. To be called in the hub's greenlet."""
        self._most = 0  # they may be in somebody's list of who is to be switched to: once is enough
        for one in self._all.difference(self._free):
            one.throw(greenlet.GreenletExit)

    def _live(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """One greenlet's life."""
        me = greenlet.getcurrent()
        while True:
            try:
                call(*arguments)
            except greenlet.GreenletExit:
                log.debug("%r was cancelled", call)
            except BaseException:  # it would end the hub
                log.exception("an error outside the app")
            del call, arguments  # one that is free keeps nothing of its last request
            if len(self._free) >= self._most:
                self._all.discard(me)
                return
            self._free.append(me)
            call, arguments = self._hub.switch()


class GreenLoop(abc.ABC):
    """All in one thread, in the hub of a library that switches between greenlets.

    Args:
        hub: whose turns are to be taken.
        mother: the greenlet of the library's own hub.
    """

    threads = False
    multithread = False
    here = True
    can_start = True
    cancelled: tuple[type[BaseException], ...] = (greenlet.GreenletExit,)

    def __init__(self, hub: Hub, mother: greenlet.greenlet) -> None:
        self._hub = hub
        self._due = math.inf
        self._timer: Any = None
        greenlets = Greenlets(mother)
        self.start = greenlets.start
        self._greenlets = greenlets

    def cancel(self) -> None:
        """Throw into every greenlet of ours."""
        self._greenlets.cancel()

    @abc.abstractmethod
    def _set_timer(self, seconds: float) -> Any:
        """A timer that calls ``_ring``, once."""

    @abc.abstractmethod
    def _end_timer(self, timer: Any) -> None:
        """It is not needed any more."""

    def _arm(self) -> None:
        """Come back when something is due."""
        due = self._hub.due
        if due < self._due:
            if self._timer is not None:
                self._end_timer(self._timer)
            self._due = due
            self._timer = self._set_timer(max(0.0, due - time.monotonic()))

    def _ring(self) -> None:
        timer, self._timer, self._due = self._timer, None, math.inf
        self._end_timer(timer)
        self._hub.ring()
        self._arm()

    def enter(self) -> None:
        """All of this is one thread."""

    def leave(self) -> bool:
        """All of this is one thread."""
        return True
