"""The app under test, for WSGI and for ASGI: each answer says which process gave it, and to what.

What a process has begun is written to the file $SOAK_RECORD before anything else happens, one short
line each: that survives a kill -9, so that the oracle knows afterwards what was in hand.

    P boot slot pid     a process has started
    B token boot when   it has begun this request, at this time (monotonic)
    V event boot        it has handled this event of a Socket.IO client
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

BOOT = secrets.token_hex(6)
"""Of this process: a pid alone may come again."""
SLOT = int(os.environ.get("STICKY_WORKER_ID", "-1"))
BLOCK = 16384
PING = {"ping_interval": int(os.environ.get("SOAK_PING", "5")), "ping_timeout": 10}
"""Seconds: a client that has lost its server without being told is to notice it in this run."""

# For a process that hangs, see Server.dump; its signal means nothing else in a worker.
if SLOT >= 0:
    faulthandler.register(signal.SIGUSR2, all_threads=True)

_record = os.open(
    os.environ.get("SOAK_RECORD", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
)


def record(*words: object) -> None:
    """Append a line: less than a page is atomic, so the workers share the file."""
    os.write(_record, (" ".join(map(str, words)) + "\n").encode())


def _begin() -> None:
    """In a worker, before it has an app."""
    from .plants import plant

    record("P", BOOT, SLOT, os.getpid())
    plant()


def about() -> dict[str, Any]:
    return {"slot": SLOT, "pid": os.getpid(), "boot": BOOT}


class Asked:
    """A request, as both interfaces see it."""

    def __init__(self, method: str, path: str, query: str) -> None:
        self.method = method
        self.path = path
        self.values = {name: values[0] for name, values in parse_qs(query).items()}
        self.token = self.values.get("token", "-")
        self.seconds = float(self.values.get("seconds", "0"))
        record("B", self.token, BOOT, time.monotonic())

    def said(self, body: Digest) -> bytes:
        return json.dumps(
            {
                **about(),
                "token": self.token,
                "method": self.method,
                "size": body.size,
                "digest": body.hash.hexdigest(),
            }
        ).encode()

    def lines(self) -> Iterator[bytes]:
        """A stream: each block says whose it is."""
        blocks = int(self.values.get("blocks", "1"))
        for number in range(blocks):
            said = {**about(), "token": self.token, "number": number, "of": blocks}
            yield json.dumps(said).encode() + b"\n"

    def blob(self) -> Iterator[bytes]:
        """As many bytes as are asked for, which nobody else's answer has."""
        left = int(self.values.get("size", "0"))
        while left > 0:
            yield blob(self.token, min(left, BLOCK))
            left -= BLOCK


class Digest:
    """A body, of which only this is kept."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes) -> None:
        self.hash.update(data)
        self.size += len(data)


def blob(token: str, size: int) -> bytes:
    """A block of the answer to this token."""
    return (hashlib.sha256(token.encode()).hexdigest().encode() * (size // 64 + 1))[:size]


def fields(*more: tuple[str, str]) -> list[tuple[str, str]]:
    return [("X-Slot", str(SLOT)), ("X-Pid", str(os.getpid())), ("X-Boot", BOOT), *more]


# -- WSGI ------------------------------------------------------------------------------------------

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def wsgi() -> WsgiApp:
    """Socket.IO, and by path: /poll, /stream and /blob; any other answers at once."""
    import socketio

    import sticky

    _begin()
    worker = sticky.current_worker()
    chosen = worker.options.worker_class if worker else ""
    mode = {"gevent": "gevent", "threads": "threading"}.get(chosen, "eventlet")
    sio = socketio.Server(async_mode=mode, cors_allowed_origins="*", **PING)

    @sio.event
    def connect(sid: str, environ: Environ) -> None:
        sio.emit("welcome", about(), to=sid)

    @sio.event
    def echo(sid: str, data: dict[str, Any]) -> dict[str, Any]:
        record("V", data["event"], BOOT)
        return {**about(), **data}

    return socketio.WSGIApp(sio, _wsgi)  # type: ignore[no-any-return]


def _wsgi(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    asked = Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
    if asked.path == "/stream":
        start_response("200 OK", fields())
        return _paced(asked)
    if asked.path == "/blob":
        start_response("200 OK", fields(("Content-Length", asked.values["size"])))
        return asked.blob()
    body = Digest()
    while data := environ["wsgi.input"].read(BLOCK):
        body.add(data)
    if asked.path == "/poll":
        time.sleep(asked.seconds)
    said = asked.said(body)
    start_response("200 OK", fields(("Content-Length", str(len(said)))))
    return [said]


def _paced(asked: Asked) -> Iterator[bytes]:
    for line in asked.lines():
        yield line
        time.sleep(asked.seconds)


# -- ASGI ------------------------------------------------------------------------------------------

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def asgi() -> AsgiApp:
    """The same."""
    import socketio

    _begin()
    sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*", **PING)

    @sio.event
    async def connect(sid: str, environ: Environ) -> None:
        await sio.emit("welcome", about(), to=sid)

    @sio.event
    async def echo(sid: str, data: dict[str, Any]) -> dict[str, Any]:
        record("V", data["event"], BOOT)
        return {**about(), **data}

    return socketio.ASGIApp(sio, _asgi)  # type: ignore[no-any-return]


async def _asgi(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    asked = Asked(scope["method"], scope["path"], scope["query_string"].decode())
    if asked.path in ("/stream", "/blob"):
        stream = asked.path == "/stream"
        length = [] if stream else [("Content-Length", asked.values["size"])]
        blocks = asked.lines() if stream else asked.blob()
        await _send(send, fields(*length), _slowly(blocks, asked.seconds if stream else 0))
        return
    body, more = Digest(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body.add(message.get("body", b""))
        more = message.get("more_body", False)
    if asked.path == "/poll":
        await asyncio.sleep(asked.seconds)
    said = asked.said(body)
    await _send(send, fields(("Content-Length", str(len(said)))), _slowly(iter([said]), 0))


async def _slowly(blocks: Iterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block
        if seconds:
            await asyncio.sleep(seconds)


async def _send(send: Send, headers: list[tuple[str, str]], blocks: AsyncIterator[bytes]) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    async for block in blocks:
        await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
