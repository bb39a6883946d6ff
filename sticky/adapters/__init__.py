"""One module for each kind of server a worker can run; ``base`` says what they have in common."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Adapter


def patch(worker_class: str) -> None:
    """Replace the standard library's blocking parts, where this kind of server needs it.

    To be called before anything of the user's is imported: a lock or a socket made earlier would
    stay a blocking one.
    """
    if worker_class == "eventlet":
        with warnings.catch_warnings():
            # It announces its retirement to developers; our users chose sticky, not eventlet.
            warnings.simplefilter("ignore")
            import eventlet

            eventlet.monkey_patch()


def load(worker_class: str) -> type[Adapter]:
    """The adapter of this name; only its own framework is imported."""
    match worker_class:
        case "eventlet":
            from .eventlet import EventletAdapter

            return EventletAdapter
    raise ValueError(worker_class)
