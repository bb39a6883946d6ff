"""What kind of thing is this: a factory, a WSGI app, an ASGI app, a Socket.IO server?

Nobody should have to say. Known classes are compared only with modules that are loaded already (an
object of a class has loaded its module); for the rest the shape of the call decides: ASGI apps are
coroutine functions or take three arguments, WSGI apps take two, factories take none.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from ..errors import WorkerError

FACTORY, WSGI, ASGI = "factory", "wsgi", "asgi"

_KNOWN = (
    ("flask_socketio", "SocketIO", WSGI),
    ("flask", "Flask", WSGI),
    ("socketio", "AsyncServer", ASGI),
    ("socketio", "Server", WSGI),
    ("socketio", "ASGIApp", ASGI),
    ("socketio", "WSGIApp", WSGI),
    ("engineio", "ASGIApp", ASGI),
    ("engineio", "WSGIApp", WSGI),
    ("starlette.applications", "Starlette", ASGI),
    ("django.core.handlers.asgi", "ASGIHandler", ASGI),
    ("django.core.handlers.wsgi", "WSGIHandler", WSGI),
    ("quart", "Quart", ASGI),
    ("litestar", "Litestar", ASGI),
    ("falcon.asgi", "App", ASGI),
    ("falcon", "App", WSGI),
    ("bottle", "Bottle", WSGI),
)


def kind_of(thing: Any) -> str | None:
    """``FACTORY``, ``WSGI`` or ``ASGI``; None when it is none of these."""
    for module, name, kind in _KNOWN:
        known = getattr(sys.modules.get(module), name, None)
        if isinstance(known, type) and isinstance(thing, known):
            return kind
    if not callable(thing):
        return None
    if inspect.isclass(thing):
        return FACTORY if _required(thing) in (0, None) else _by_count(_required(thing))
    called = _innermost(thing)
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(
        getattr(called, "__call__", None)  # noqa: B004 - what it is matters, not whether it is
    ):
        return ASGI if _required(thing) != 0 else FACTORY
    return _by_count(_required(thing))


def _by_count(required: int | None) -> str | None:
    return {0: FACTORY, None: WSGI, 2: WSGI, 3: ASGI}.get(required)


def _innermost(thing: Any) -> Any:
    """What is called in the end, behind partials and decorators that keep a reference."""
    for _ in range(100):  # an object that has every attribute has this one for ever
        if isinstance(thing, functools.partial):
            thing = thing.func
        elif hasattr(thing, "__wrapped__"):
            thing = thing.__wrapped__
        else:
            break
    return thing


def _required(thing: Callable[..., Any]) -> int | None:
    """How many positional arguments a call needs; None when that cannot be known (*args)."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    if not required and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return required


def make_app(thing: Any, interface: str = "auto") -> tuple[Any, str]:
    """The app, made if a factory was given, and its kind (``WSGI`` or ``ASGI``).

    Args:
        thing: a factory or an app.
        interface: the option of that name.

    Raises:
        WorkerError: there is no app in it.
        Exception: whatever the factory raises.
    """
    if interface in (WSGI, ASGI):
        kind = kind_of(thing)
        return (thing() if kind == FACTORY else thing), interface
    kind = kind_of(thing)
    if interface == FACTORY or kind == FACTORY:
        if not callable(thing):
            raise WorkerError(f"{thing!r} is not a factory: it cannot be called", 4)
        app = thing()
        if inspect.iscoroutine(app):
            app.close()
            raise WorkerError(
                f"{thing!r} is a coroutine function, and a factory cannot be one: "
                "do what is asynchronous in the app's startup (lifespan)",
                4,
            )
        kind = kind_of(app)
    else:
        app = thing
    if kind not in (WSGI, ASGI):
        raise WorkerError(
            f"{'the factory returned' if app is not thing else 'the app is'} {app!r}, which cannot "
            "be served: it must be a WSGI or ASGI app, a Flask app, a Flask-SocketIO object, "
            "a socketio.Server or AsyncServer (if it is one of these in disguise: interface='wsgi' "
            "or 'asgi')",
            4,
        )
    return app, kind
