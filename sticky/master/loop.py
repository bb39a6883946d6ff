"""What the master waits for: one epoll, and who is to be told."""

from __future__ import annotations

import select
from collections.abc import Callable

Handler = Callable[[int], object]
"""Called with the events that have happened, as ``select.epoll`` numbers them."""


class Loop:
    """Descriptors and their handlers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def register(self, fd: int, events: int, handler: Handler) -> None:
        """Have this called when one of the events happens; instead of what was, if there was."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        """Forget a descriptor, before it is closed; nothing where it is not known."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, seconds: float, settle: Callable[[], object]) -> None:
        """Wait for at most so long, and call the handlers of what has happened.

        Args:
            settle: called between two handlers: the next one is to meet what the one before has
                led to.
        """
        handlers = self._handlers
        events = self._epoll.poll(seconds)
        if len(events) == 1:
            fd, what = events[0]
            if handler := handlers.get(fd):
                handler(what)
            return
        # Handlers close descriptors, and new ones take the same numbers in this turn.
        for fd, due, what in [(fd, handlers.get(fd), what) for fd, what in events]:
            if due is not None and handlers.get(fd) is due:
                due(what)
                settle()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._epoll.close()
