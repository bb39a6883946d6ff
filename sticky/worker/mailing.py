"""Where a worker reads its mail (``sticky.mail``): in the turns of its own hub, of one more, or of
asyncio's loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..mail import Mail
from ..mailbox import Waiter
from .hub import Hub, Watcher
from .kernel import EPOLLIN, EPOLLOUT, allocate_lock

if TYPE_CHECKING:
    import asyncio

_ASLEEP = 3600.0
"""Seconds after which a hub of its own looks up while nothing happens."""


class HubWaiter:
    """A hub, as ``sticky.mail`` wants it."""

    asynchronous = here = False

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.unwatch = hub.unregister
        self.call = self.soon = hub.call
        self.later = hub.later

    def watch(self, fd: int, call: Callable[[int], None], *, writing: bool = False) -> None:
        """Have this called whenever the descriptor is ready."""
        self.hub.register(fd, Watcher(call), EPOLLOUT if writing else EPOLLIN)


_GATHER = 0.001
"""Seconds for which a thread lets messages gather: it would be woken for each, and each time take
the interpreter away from the thread that sends them."""


class ThreadWaiter(HubWaiter):
    """A hub that is turned by a thread of its own, from when it is needed to the process's end."""

    def __init__(self) -> None:
        super().__init__(Hub())
        self._lock = allocate_lock()
        self._lives = False
        self.call = self._call
        self.soon = self._soon

    def watch(self, fd: int, call: Callable[[int], None], *, writing: bool = False) -> None:
        super().watch(fd, call, writing=writing)
        self._start()

    def _call(self, call: Callable[[], object]) -> None:
        self.hub.call(call)
        self._start()

    def _soon(self, call: Callable[[], object]) -> None:
        self._call(lambda: self.hub.later(_GATHER, call))

    def _start(self) -> None:
        if self._lives:
            return
        with self._lock:
            starts, self._lives = not self._lives, True
        if starts:
            threading.Thread(target=self._live, name="sticky-mail", daemon=True).start()

    def _live(self) -> None:
        hub = self.hub
        while not hub.over:
            hub.turn(min(max(0.0, hub.due - time.monotonic()), _ASLEEP))

    def after_fork(self) -> None:
        """In a child of the app's: the thread is the parent's."""
        self.hub.close_after_fork()


class AsyncioWaiter:
    """asyncio's loop itself, which saves each message a turn of the hub; make it in its thread."""

    asynchronous = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()

    @property
    def here(self) -> bool:
        """The calling thread is in it."""
        return self._thread == threading.get_ident()

    def watch(self, fd: int, call: Callable[[int], None], *, writing: bool = False) -> None:
        """Have this called whenever the descriptor is ready."""
        if writing:
            self._loop.add_writer(fd, call, fd)
        else:
            self._loop.add_reader(fd, call, fd)

    def unwatch(self, fd: int) -> None:
        """Do not call it any more."""
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)

    def call(self, call: Callable[[], object]) -> None:
        """Have this called in the loop's next turn; from any thread."""
        if self._thread == threading.get_ident():
            self._loop.call_soon(call)
        else:
            self._loop.call_soon_threadsafe(call)

    soon = call

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have this called in so many seconds."""
        self._loop.call_later(seconds, call)


def attend(mail: Mail, hub: Hub, waiter: Waiter) -> None:
    """Have mail read from now on.

    Args:
        hub: the worker's own, where it is heard who comes and goes.
        waiter: where mail is read.
    """
    mail.attend(waiter, HubWaiter(hub))
