"""Room for the descriptors of what comes: a reserve of them, and who goes when it is short."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from ..reserve import Reserve
from .waiting import Waiting


class Room:
    """The reserve.

    Args:
        waiting: where connections are.
        counters: of the master.
        spacious: so many connections find room without it.
        tell: called with a subject and a text for the log.
        perform: has done what was decided.

    Attributes:
        keep, empty: have it complete, if there are as many; have it all given away.
    """

    def __init__(
        self,
        waiting: Waiting,
        counters: Mapping[str, int],
        spacious: int,
        tell: Callable[[str, str], object],
        perform: Callable[[], object],
    ) -> None:
        self._reserve = Reserve(os.close)
        self._waiting = waiting
        self._counters = counters
        self._spacious = spacious
        self._tell = tell
        self._perform = perform
        self.keep, self.empty = self._reserve.keep, self._reserve.give

    def give(self) -> None:
        """Make room for what comes, where there may be no other. Nothing but messages may take
        that: see ``settle``."""
        # The limit may be another one by now, and others may have used up what the system has.
        if self._waiting.held >= self._spacious or self._counters["starved"]:
            self._reserve.give()

    def make(self) -> None:
        """Have the reserve complete again. If what was handed back has to stay here and takes the
        room, somebody else goes, or it goes itself."""
        while not self._reserve.keep() and self._waiting.crowded(time.monotonic()):
            self._tell(
                "crowded",
                "no file descriptor is left to hold a connection that moves between workers: "
                "raise the limit (ulimit -n) or lower max_queued",
            )
            self._perform()

    def settle(self) -> None:
        """Have the reserve complete, then do what was decided."""
        self.make()
        self._perform()
