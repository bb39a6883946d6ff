"""One module for each kind of server a worker can run; ``base`` says what they have in common."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ..errors import WorkerError

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


KINDS = {"eventlet": "wsgi", "asgi": "asgi"}
"""Which kind of app each worker class serves."""

EXTRAS = {"asgi": "asgi"}
"""The extra of the package that a worker class needs; without an entry it comes with it."""


def load(worker_class: str) -> type[Adapter]:
    """The adapter of this name; only its own framework is imported.

    Raises:
        WorkerError: that framework is not installed.
    """
    try:
        match worker_class:
            case "eventlet":
                from .eventlet import EventletAdapter

                return EventletAdapter
            case "asgi":
                from .asgi import AsgiAdapter

                return AsgiAdapter
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(worker_class)
        what = f"socketio-sticky[{extra}]" if extra else error.name
        raise WorkerError(
            f"the worker class {worker_class!r} needs {error.name!r}, which is not installed: "
            f"pip install '{what}'"
        ) from None
    raise ValueError(worker_class)
