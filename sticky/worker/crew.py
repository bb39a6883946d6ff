"""Threads of which one at a time has the loop.

Where requests take next to no time whoever has the loop serves them itself, because to wake another
thread for each costs more than they do. The main thread watches: if the one that has the loop stays
in the app, another one gets it. While many requests take longer, whoever has the loop gives it away
before it serves.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .hub import Hub

log = logging.getLogger("sticky.worker")

_IDLE = 30.0
"""Seconds after which a thread that has nothing to do ends."""
_TICK = 0.002
"""Seconds that the loop may be in the hands of somebody who is in the app."""
_SHORT = 0.001
"""Seconds of a request that is worth no other thread."""
_MANY = 0.25
"""Part of the requests that take longer, from which on the loop is given away before each. (On a
busy machine some do that wait for nothing but the processor.)"""
_LATEST = 8
"""Requests that this is found out from, roughly."""
_ASLEEP = 1.0
"""Seconds after which the main thread looks up while nothing happens."""


class Crew:
    """The threads. They are daemons, so that one that never returns does not keep the process from
    ending (ThreadPoolExecutor joins its threads at exit).

    Args:
        hub: whose turns are to be taken.
        most: threads there may be, beside the main one, which is never in the app.
        starved: called when the system grants no thread, with what it says.
        freed: called when a thread has nothing to do.
    """

    def __init__(
        self,
        hub: Hub,
        most: int,
        starved: Callable[[RuntimeError], object],
        freed: Callable[[], object],
    ) -> None:
        self._hub = hub
        self._most = most
        self._starved = starved
        self._freed = freed
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._posts: queue.SimpleQueue[None] = queue.SimpleQueue()  # to threads that are free
        self._lock = threading.Lock()
        self._main = threading.get_ident()
        self._leader = self._main  # who has the loop; 0: a thread is on the way to take it
        self._in_app = False  # whoever has the loop is in the app: it may be taken away
        self._entered = 0.0
        self._slow = 0.0  # part of the latest requests
        self.alive = 0
        self._free = self._started = 0
        self._bell = threading.Semaphore(0)
        self._asleep = False

    def run(self) -> None:
        """The main thread's part, until the hub is over."""
        hub = self._hub
        hub.on_stop = self._bell.release
        hub.on_earlier = lambda: None if self._leads() else hub.wake()
        while not hub.over:
            if not self._leads():
                self._watch()
            elif not self._ready or not self._give_away():
                self._turn()

    def put(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """Have this called by a thread that is not the main one."""
        self._ready.append((call, arguments))

    @property
    def has_loop(self) -> bool:
        """Whether the calling thread has the loop, and nobody can take it away."""
        return self._leads() and not self._in_app

    @property
    def can_take(self) -> bool:
        """Whether there is a thread for one thing more, or can be."""
        return self._leader != self._main or self._free > 0 or self._add()

    def enter(self) -> None:
        """The calling thread is going to be in the app."""
        with self._lock:
            if not self._leads():
                return  # whoever does may be in the app, too
            self._entered = time.monotonic()
            self._in_app = True
            rings, self._asleep = self._asleep, False
        if rings:
            self._bell.release()

    def leave(self) -> bool:
        """It has come back; whether it has the loop."""
        with self._lock:
            leads = self._leads()
            if leads:
                self._in_app = False
        return leads

    def forget(self) -> None:
        """In a child of the app's: the threads are the parent's, and the work too."""
        self._ready.clear()

    # -- who has the loop ---------------------------------------------------------------------

    def _leads(self) -> bool:
        return self._leader == threading.get_ident()

    def _turn(self) -> None:
        self._hub.turn(min(max(0.0, self._hub.due - time.monotonic()), 3600.0))

    def _watch(self) -> None:
        """In the main thread: see that the loop does not stay with somebody who is in the app."""
        entered = self._entered
        time.sleep(_TICK)
        with self._lock:
            stays = self._in_app and self._entered == entered
            if stays:
                self._in_app, self._leader = False, self._main
            # While requests come, one look a tick is cheaper than to be woken by each.
            self._asleep = not stays and self._entered == entered
        if stays:
            self._give_away()
        elif self._asleep:
            self._bell.acquire(timeout=_ASLEEP)

    def _give_away(self) -> bool:
        """Let a thread that is free, or a new one, have the loop; False: there is none."""
        with self._lock:
            found = self._free > 0
            if found:
                self._free -= 1
                self._leader = 0
        if found:
            self._posts.put(None)
        return found or self._add(leads=True)

    def _give_to_main(self) -> None:
        """All threads are in the app: the main thread, which never is, has the loop."""
        with self._lock:
            self._leader = self._main
        self._bell.release()

    # -- threads ------------------------------------------------------------------------------

    def _add(self, *, leads: bool = False) -> bool:
        """Start one more thread, if there may be one more and the system grants it."""
        with self._lock:
            if self.alive >= self._most:
                return False
            self.alive += 1
            self._started += 1
            name, before = f"sticky-{self._started}", self._leader
            if leads:
                self._leader = 0
        try:
            threading.Thread(target=self._live, name=name, daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self.alive -= 1
                self._leader = self._leader or before
            self._starved(error)
            return False
        return True

    def _live(self) -> None:
        """A thread's life."""
        me = threading.get_ident()
        while not self._hub.over:
            with self._lock:
                self._leader = self._leader or me
                leads = self._leader == me
                work = self._ready.popleft() if self._ready else None
            if work is None:
                if leads:
                    self._turn()
                elif not self._rest():
                    break
                continue
            if leads and self._slow > _MANY and not self._give_away():
                self._give_to_main()
            self._do(*work)
            del work  # a thread that is free keeps nothing of its last request

    def _do(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        began = time.monotonic()
        self.enter()
        try:
            call(*arguments)
        except BaseException:
            log.exception("an error outside the app")
        self.leave()
        self._slow += ((time.monotonic() - began > _SHORT) - self._slow) / _LATEST

    def _rest(self) -> bool:
        """Wait to be given the loop; False: it has been too long."""
        with self._lock:
            self._free += 1
        self._freed()
        while True:
            try:
                self._posts.get(timeout=_IDLE)
                return True
            except queue.Empty:
                with self._lock:
                    if self._free:
                        self._free -= 1
                        self.alive -= 1
                        return False
