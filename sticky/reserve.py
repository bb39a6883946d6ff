"""Descriptors kept free for what a message brings, by being open: where there is no room for it,
the kernel drops it, and a connection with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

_NEEDED = 2
"""That one message may bring: a connection, and the memfd with what was read of it."""


class Reserve:
    """None are kept before the first ``keep``.

    Args:
        close: closes a descriptor.
    """

    def __init__(self, close: Callable[[int], object]) -> None:
        self._close = close
        self._kept: list[int] = []

    def keep(self) -> bool:
        """Take what is missing; whether the reserve is complete."""
        with contextlib.suppress(OSError):
            while len(self._kept) < _NEEDED:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        return len(self._kept) == _NEEDED

    def give(self) -> None:
        """Make it room for what comes."""
        while self._kept:
            self._close(self._kept.pop())
