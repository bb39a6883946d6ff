"""Apps that write down, in the file $RECORD, what of them runs when their worker ends; and what can
be told to start slowly.

For WSGI ``app``, for ASGI ``asgi``: / answers the pid; /stream never ends, nor does /wait, which
answers nothing; both say "finally" and their path. /hang computes, in ``stands_still_here``.
/thread starts a thread, no daemon, that never ends. /stuck does not come back from where it waits,
in a thread if there are any. /late raises what Engine.IO's servers raise when a session ends in the
middle of a request. ``app_with_sessions`` and
``asgi_with_sessions`` are the same behind a Socket.IO server, whose handler of "disconnect" takes a
moment until it says so.
"""

from __future__ import annotations

import atexit
import os
import resource
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def record(what: str) -> None:
    with Path(os.environ["RECORD"]).open("a") as file:
        file.write(what + "\n")


def stands_still_here() -> None:
    record("hangs")
    while True:
        pass


def sleep_on() -> None:
    while True:
        time.sleep(0.05)


def has_ended() -> bool:
    return "disconnect" in Path(os.environ["RECORD"]).read_text()


def _others(path: str) -> bytes:
    if path == "/hang":
        stands_still_here()
    if path == "/thread":
        threading.Thread(target=sleep_on).start()
    return str(os.getpid()).encode()


def _limit() -> None:
    """To $FILES descriptors."""
    if files := os.environ.get("FILES"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))


def _gate() -> None:
    """Wait while there is the file $GATE."""
    while (gate := os.environ.get("GATE")) and Path(gate).exists():
        time.sleep(0.01)


def app() -> Callable[..., Iterable[bytes]]:
    atexit.register(record, "atexit")
    _limit()
    _gate()

    def stream() -> Iterator[bytes]:
        try:
            while True:
                yield b"more"
                time.sleep(0.05)
        finally:
            record("finally /stream")

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/wait":
            try:
                record("waits")
                environ["wsgi.input"].read(1)
            finally:
                record("finally /wait")
        if path == "/stuck":
            record("waits")
            time.sleep(120)
        if path == "/late":
            record("waits")
            while not has_ended():
                time.sleep(0.01)
            raise KeyError("Session is disconnected")
        body: Iterable[bytes] = stream() if path == "/stream" else [_others(path)]
        start_response("200 OK", [])
        return body

    return serve


def asgi() -> Callable[..., Any]:
    import asyncio

    atexit.register(record, "atexit")
    _limit()
    _gate()

    async def stream() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"more"
                await asyncio.sleep(0.05)
        finally:
            record("finally /stream")

    async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            record("lifespan")
            await send({"type": "lifespan.shutdown.complete"})
            return
        path = scope["path"]
        if path == "/wait":
            try:
                record("waits")
                await asyncio.Event().wait()
            finally:
                record("finally /wait")
        if path == "/stuck":
            record("waits")
            await asyncio.to_thread(time.sleep, 120)
        if path == "/late":
            record("waits")
            while not has_ended():
                await asyncio.sleep(0.01)
            raise KeyError("Session is disconnected")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if path == "/stream":
            async for piece in stream():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": _others(path)})

    return serve


def app_with_sessions() -> Any:
    import socketio

    import sticky

    worker = sticky.current_worker()
    assert worker is not None
    mode = worker.options.worker_class
    sio = socketio.Server(async_mode="threading" if mode == "threads" else mode)

    @sio.event
    def disconnect(sid: str, reason: str) -> None:
        sio.sleep(0.1)
        record("disconnect")

    return socketio.WSGIApp(sio, app())


def asgi_with_sessions() -> Any:
    import socketio

    sio = socketio.AsyncServer(async_mode="asgi")

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        await sio.sleep(0.1)
        record("disconnect")

    return socketio.ASGIApp(sio, asgi())
