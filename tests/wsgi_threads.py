"""Apps that show in which thread they are served. Who is to wait does so for a file in $FOLDER."""

from __future__ import annotations

import contextvars
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
_local = threading.local()


def _folder() -> Path:
    return Path(os.environ["FOLDER"])


def wait_for(name: str) -> None:
    """Wait until somebody has made a file of this name; that somebody waits is a file, too."""
    (_folder() / f"waits-{name}-{uuid.uuid4().hex}").touch()
    while not (_folder() / name).exists():
        time.sleep(0.01)


def _thread() -> Any:
    import _socket
    import socket

    thread = threading.current_thread()
    return {
        "name": thread.name,
        "daemon": thread.daemon,
        "main": thread is threading.main_thread(),
        "patched": {"eventlet", "gevent"} & sys.modules.keys() != set(),
        "real": socket.socket.__mro__[1] is _socket.socket and socket.socket.__module__ == "socket",
    }


def _context() -> str:
    """What the request before has left."""
    before = _seen.get()
    _seen.set("what another request has set")
    return before


def _stats() -> Any:
    import sticky

    worker = sticky.current_worker()
    return worker.stats() if worker else {}


def app() -> App:
    say: dict[str, Callable[[], Any]] = {
        "/thread": _thread,
        "/context": _context,
        "/stats": _stats,
        "/pid": os.getpid,
    }

    def serve(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/wait/"):
            wait_for(path.removeprefix("/wait/"))
        said = json.dumps(say.get(path, _thread)()).encode()
        start_response("200 OK", [("Content-Length", str(len(said)))])
        return [said]

    return serve


def starved() -> App:
    """As app, where the system grants $GRANTED threads, until there is a file "granted"."""
    left = [int(os.environ["GRANTED"])]
    start = threading.Thread.start

    def refusing(self: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0 and not (_folder() / "granted").exists():
            raise RuntimeError("can't start new thread")
        start(self)

    threading.Thread.start = refusing  # type: ignore[method-assign]
    return app()


def async_views() -> Any:
    """A view that answers only while three others are in hand."""
    import asyncio

    import flask

    flask_app = flask.Flask(__name__)
    together = threading.Barrier(4, timeout=30)

    @flask_app.get("/")
    async def view() -> str:
        await asyncio.to_thread(together.wait)
        return threading.current_thread().name

    return flask_app
