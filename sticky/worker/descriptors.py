"""Room for the descriptor of a connection, before it is taken out of the inbox.

A process that has no descriptor free when it receives one loses it: the kernel closes the
connection and says only that something was cut off. Most processes are never near their limit, so
nothing is done about it before half of the numbers have been seen in use; from then on two
descriptors are kept in reserve, and are let go only for the moment of receiving.
"""

from __future__ import annotations

import resource

from ..reserve import Reserve
from .kernel import close


class Margin:
    """Keeps a reserve where this process may be near its limit.

    Args:
        limit: of this process; found out, if it is not said.

    Attributes:
        watched: this process may be near its limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
        self._half = limit // 2 if limit > 0 else 1 << 30  # RLIM_INFINITY is -1
        self._reserve = Reserve(close)
        self.watched = False

    def seen(self, fd: int) -> None:
        """This number has been given out. The system gives out the lowest that is free."""
        if fd >= self._half:
            self.watched = True

    def take(self) -> bool:
        """Make room for one message, if there is any: to be called just before it is received, and
        ``put_back`` behind it. (Another thread may be faster; hardly ever, and that is counted.)"""
        complete = self._reserve.keep()
        if complete:
            self._reserve.give()
        return complete

    def put_back(self) -> bool:
        """Keep descriptors in reserve again, as far as there are; whether that are enough."""
        return self._reserve.keep()

    def let_go(self) -> None:
        """Nothing is received any more."""
        self._reserve.give()
