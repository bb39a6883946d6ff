"""Faults, planted in the app or in the server's worker: what the oracle has to find.

$SOAK_PLANT names one; ``python -m tests.soak.prove`` runs each for some seconds.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from tests import apps as suite

_RARE = 20
"""One of so many."""
_numbers = itertools.count(1)


def _blind() -> None:
    """A worker that looks at no further request of a connection."""
    suite.blind()


def _shift() -> None:
    """One whose boundaries are one byte off."""
    suite.shift()


def _cross() -> None:
    """Now and then an answer has the token of another."""
    from . import apps

    def said(self: apps.Asked, body: apps.Digest) -> bytes:
        if next(_numbers) % _RARE == 0:
            self.token = "another"
        return right(self, body)

    right = apps.Asked.said
    apps.Asked.said = said  # type: ignore[method-assign]


def _again() -> None:
    """Now and then an event is handled twice, or a request begun twice."""
    from . import apps

    def record(*words: object) -> None:
        right(*words)
        if next(_numbers) % _RARE == 0:
            right(*words)

    right = apps.record
    apps.record = record  # type: ignore[assignment]


def _fail() -> None:
    """Now and then an app fails."""
    from . import apps

    def said(self: apps.Asked, body: apps.Digest) -> bytes:
        if next(_numbers) % _RARE == 0:
            raise RuntimeError("as planted")
        return right(self, body)

    right = apps.Asked.said
    apps.Asked.said = said  # type: ignore[method-assign]


def _die() -> None:
    """A process ends by itself, with all it has in hand."""

    def end() -> None:
        time.sleep(6)
        os._exit(1)

    if suite.worker_id() == 1:
        threading.Thread(target=end, daemon=True).start()


def _forget() -> None:
    """A process that never ends when it is replaced."""
    import signal

    from sticky.worker import draining

    def finish(self: Any) -> None:
        signal.pause()

    draining.Draining._finish = finish  # type: ignore[method-assign]


PLANTS: dict[str, tuple[Callable[[], None], set[str]]] = {
    "blind": (_blind, {"wrong worker"}),
    "shift": (_shift, {"crossed answer"}),
    "cross": (_cross, {"crossed answer"}),
    "again": (_again, {"begun twice", "handled twice"}),
    "fail": (_fail, {"status"}),
    "die": (_die, {"lost by a living process", "session ended without cause"}),
    "forget": (_forget, {"a worker hangs"}),
}
"""Each with the violations of which at least one has to be found."""


def plant() -> None:
    """In a worker: what is asked for."""
    if name := os.environ.get("SOAK_PLANT"):
        PLANTS[name][0]()
