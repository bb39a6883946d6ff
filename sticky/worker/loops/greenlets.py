"""Greenlets that are used again: what eventlet's and gevent's loops start things in.

A new greenlet maps a stack of its own for Python's frames, and unmaps it at its end: two system
calls and a page fault for each request. One that has nothing to do switches back to the hub instead
of ending, and is given the next thing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import greenlet

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

    def start(self, call: Callable[..., object], *arguments: Any) -> None:
        """Run this beside everything else. To be called in the hub's greenlet."""
        free = self._free
        one = free.pop() if free else greenlet.greenlet(self._live, self._hub)
        one.switch(call, arguments)

    def _live(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """One greenlet's life."""
        me = greenlet.getcurrent()
        while True:
            try:
                call(*arguments)
            except BaseException:  # it would end the hub
                log.exception("an error outside the app")
            del call, arguments  # one that is free keeps nothing of its last request
            if len(self._free) >= _MOST:
                return
            self._free.append(me)
            call, arguments = self._hub.switch()
