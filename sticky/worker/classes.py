"""Worker classes: what each needs before user code, which fits an app, and how it is loaded."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import WorkerError
from .interface import ASGI, WSGI, make_app

if TYPE_CHECKING:
    from ..options import Options
    from .service import Service

_CANNOT_LOAD = 4

KINDS = {"eventlet": WSGI, "gevent": WSGI, "threads": WSGI, "asgi": ASGI}
"""Which kind of app each worker class serves."""

PATCHED = ("eventlet", "gevent")
"""Worker classes that replace parts of the standard library before user code is imported."""

_MODES = {"eventlet": "eventlet", "gevent": "gevent", "threads": "threading", "asgi": "asgi"}
"""The async_mode of an Engine.IO server that each class can run."""

_DRIVERS = {
    "eventlet": "engineio.async_drivers.eventlet",
    "gevent": "engineio.async_drivers.gevent",
    "gevent_uwsgi": "engineio.async_drivers.gevent_uwsgi",
}

_EXTRAS = {"asgi": "asgi", "gevent": "gevent"}
"""The extra of the package that a worker class needs; without an entry it comes with it."""

_AN = {WSGI: "a WSGI", ASGI: "an ASGI"}


class WrongWorkerClassError(WorkerError):
    """The app is of a kind that another worker class serves; ``right`` is its name."""

    def __init__(self, message: str, right: str) -> None:
        super().__init__(message, _CANNOT_LOAD)
        self.right = right


# -- before user code -----------------------------------------------------------------------------


class _Refuse(importlib.abc.MetaPathFinder):
    """Makes modules unimportable, and remembers which were asked for."""

    def __init__(self, *refused: str) -> None:
        self._refused = refused
        self.asked: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in self._refused:
            self.asked.append(name)
            raise ModuleNotFoundError(f"{name} is not for this worker class", name=name)
        return None


_hidden = _Refuse()


def prepare(worker_class: str) -> None:
    """Make this process ready for user code of this worker class.

    To be called before anything of the user's is imported: a lock or a socket made before the
    patching would stay a blocking one. An Engine.IO server without an ``async_mode`` takes the
    first driver that it can import, and eventlet is always there: in the other classes the drivers
    that do not fit are not.
    """
    from . import kernel  # noqa: F401 - before it is gone

    # It announces its retirement to developers; our users chose sticky, not eventlet.
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    if worker_class == "eventlet":
        _patch_eventlet()
    elif worker_class == "gevent":
        try:
            from gevent import monkey
        except ModuleNotFoundError:
            return  # ``load`` says what is missing, to those who can log it
        monkey.patch_all()
    if worker_class in ("gevent", "threads"):
        fitting = _MODES[worker_class]
        _hide(*(driver for mode, driver in _DRIVERS.items() if mode != fitting))
    elif not _is_installed("gevent"):
        _hide(_DRIVERS["gevent"])  # Engine.IO would not say what is missing


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of somebody's finder
        return False


def _hide(*drivers: str) -> None:
    global _hidden
    _hidden = _Refuse(*drivers)
    sys.meta_path.insert(0, _hidden)


def _patch_eventlet() -> None:
    """eventlet brings dnspython, which asks for the packages in the user's environment that it
    could use (HTTP clients, TLS) and imports them, before the patching: it is told of none."""

    def version(distribution_name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(distribution_name)

    known, importlib.metadata.version = importlib.metadata.version, version
    try:
        import eventlet

        eventlet.monkey_patch()
    finally:
        importlib.metadata.version = known


# -- which one ------------------------------------------------------------------------------------


def find(factory: Callable[[], Any] | Any, options: Options) -> tuple[Any, str]:
    """The app, and the worker class that serves it, which is the one in the options unless that is
    "auto".

    Raises:
        WrongWorkerClassError: a process of another class is needed, started anew.
        WorkerError: there is no app, or it cannot be served as the options want it.
        Exception: whatever the factory raises.
    """
    wanted = options.worker_class
    try:
        app, kind = make_app(factory, options.interface)
    except ValueError as error:
        if not _hidden.asked:
            raise
        mode = next(m for m, driver in _DRIVERS.items() if driver == _hidden.asked[-1])
        if wanted == "auto":
            raise _missing(mode, mode) from error
        raise _misfit(wanted, mode) from error
    if wanted == "auto":
        right = choose(app, kind)
        if right in PATCHED:
            raise WrongWorkerClassError(f"this app needs the worker class {right!r}", right)
        return app, right
    if KINDS[wanted] != kind:
        right = choose(app, kind)
        raise WrongWorkerClassError(
            f"this is {_AN[kind]} app, which the worker class {wanted!r} cannot "
            f"serve: use {right!r} (-k {right})",
            right,
        )
    if kind == WSGI:
        for mode in _modes():
            if mode != _MODES[wanted]:
                raise _misfit(wanted, mode)
    return app, wanted


def _misfit(worker_class: str, mode: str) -> WrongWorkerClassError:
    right = next((name for name, its in _MODES.items() if its == mode), "gevent")
    return WrongWorkerClassError(
        f"the worker class is {worker_class!r}, and there is a Socket.IO or Engine.IO server with "
        f"async_mode={mode!r}, which needs {right!r}: use -k {right}, or "
        f"async_mode={_MODES[worker_class]!r}",
        right,
    )


def choose(app: Any, kind: str) -> str:
    """The worker class for this app, which was made in this process."""
    if kind == ASGI:
        return "asgi"
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("socket"):
        return "gevent"
    for mode in _modes():
        for name, its in _MODES.items():
            if its == mode:
                return name
        return "gevent"  # gevent_uwsgi
    if _has_async_views(app):
        return "threads"
    return "eventlet"


def _modes() -> Iterator[str]:
    """The async_mode of each Engine.IO server for WSGI in this process."""
    engineio = sys.modules.get("engineio")
    if engineio is not None:
        from .sessions import instances

        for server in instances(engineio.Server):
            yield server.async_mode


def _has_async_views(app: Any) -> bool:
    """Whether this is a Flask app (or a Flask-SocketIO object) with a coroutine among its views:
    Flask gives each of those an event loop of its own, of which eventlet can run one at a time."""
    flask = sys.modules.get("flask")
    if flask is None:
        return False
    flask_app = app if isinstance(app, flask.Flask) else getattr(app, "wsgi_app", None)
    views = getattr(flask_app, "view_functions", {}) if flask_app is not None else {}
    return any(inspect.iscoroutinefunction(inspect.unwrap(view)) for view in views.values())


# -- loading --------------------------------------------------------------------------------------


def load(worker_class: str) -> Callable[..., Service]:
    """What makes a service of this class; only its own framework is imported.

    Raises:
        WorkerError: that framework is not installed.
    """
    try:
        if worker_class == "asgi":
            from .asgi import AsgiService

            return AsgiService
        from .wsgi import WsgiService

        match worker_class:
            case "eventlet":
                from .loops.eventlet import EventletLoop as Loop
            case "gevent":
                from .loops.gevent import GeventLoop as Loop  # type: ignore[assignment]
            case _:
                from .loops.threads import ThreadsLoop as Loop  # type: ignore[assignment]
        return functools.partial(WsgiService, Loop)
    except ModuleNotFoundError as error:
        raise _missing(worker_class, error.name) from None


def _missing(worker_class: str, module: str | None) -> WorkerError:
    extra = _EXTRAS.get(worker_class)
    what = f"socketio-sticky[{extra}]" if extra else module
    return WorkerError(
        f"the worker class {worker_class!r} needs {module!r}, which is not installed: "
        f"pip install '{what}'"
    )
