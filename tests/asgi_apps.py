"""The apps of ``tests.apps`` once more, for ASGI: with the same names and the same answers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

# Factories that fail do so whatever they were to make.
from tests import apps
from tests.apps import broken as broken
from tests.apps import dies as dies
from tests.apps import never_ready as never_ready
from tests.apps import no_app as no_app
from tests.apps import process as process
from tests.apps import worker_id

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Left(Exception):
    """The client has left before its request was complete."""


def _header(scope: Scope, name: bytes) -> str | None:
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ",".join(values) if values else None


def _identity(scope: Scope) -> dict[str, Any]:
    return {
        "worker": worker_id(),
        "pid": os.getpid(),
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "remote_addr": scope["client"][0] if scope["client"] else "",
        "xff": _header(scope, b"x-forwarded-for"),
    }


def _seconds(scope: Scope) -> float:
    return float(parse_qs(scope["query_string"].decode()).get("seconds", ["0"])[0])


async def _send(
    send: Send, pieces: Iterator[bytes] | list[bytes], headers: dict[str, str], status: int = 200
) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, body: bytes, kind: str = "application/json") -> None:
    length = str(len(body))
    headers = {"Content-Type": kind, "Content-Length": length, "X-Worker": str(worker_id())}
    await _send(send, [body], headers)


async def _read(receive: Receive, size: int = -1) -> bytes:
    """The body, or so many bytes of it."""
    body, more = b"", True
    while more and (size < 0 or len(body) < size):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        body += message["body"]
        more = message["more_body"]
    return body if size < 0 else body[:size]


def _http(action: App) -> App:
    """An app that takes part in the lifespan, and has this for requests."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with contextlib.suppress(Left):
                await action(scope, receive, send)
        elif scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": message["type"] + ".complete"})
        else:
            await receive()
            await send({"type": "websocket.close"})

    return app


def whoami() -> App:
    return _http(_whoami)


def slow() -> App:
    return _http(_slow)


def stuck() -> App:
    return _http(_stuck)


def echo() -> App:
    return _http(_body)


def says(what: Callable[[], object]) -> App:
    async def say(scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(send, apps.as_bytes(what()))

    return _http(say)


def lab() -> App:
    async def act(scope: Scope, receive: Receive, send: Send) -> None:
        await _LAB.get(scope["path"], _whoami)(scope, receive, send)

    return _http(act)


def lab_without_gc() -> App:
    gc.disable()
    return lab()


def crashes_later() -> App:
    apps.crashes_later()
    return lab()


# -- websockets and Socket.IO ----------------------------------------------------------------------


async def _twice(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


def _with_websocket(other: App) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["path"] == "/ws":
            await _twice(receive, send)
        else:
            await other(scope, receive, send)

    return app


def websocket_echo() -> App:
    return _with_websocket(lab())


def socketio_server() -> Any:
    import socketio

    sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")

    def about(sid: str) -> dict[str, Any]:
        return {"worker": worker_id(), "pid": os.getpid(), "transport": sio.transport(sid)}

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await sio.emit("welcome", about(sid), to=sid)

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        # python-engineio's AsyncServer lets the long poll of a client that has closed its session
        # wait for ping_interval + ping_timeout; its Server ends it, in this way.
        session = sio.eio.sockets.get(sio.manager.eio_sid_from_sid(sid, "/"))
        if session is not None:
            session.queue.put_nowait(None)

    @sio.event
    async def echo(sid: str, data: Any) -> dict[str, Any]:
        answer = {**about(sid), "data": data}
        await sio.emit("echo", answer, to=sid)
        return answer

    @sio.event
    async def shout(sid: str, data: Any) -> None:
        await sio.emit("shout", {**about(sid), "data": data})

    return sio


def socketio_app() -> App:
    import socketio

    app = socketio.ASGIApp(socketio_server(), whoami())
    record = apps.recorder()

    async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            query, address = scope["query_string"].decode(), _header(scope, b"x-forwarded-for")
            record(scope["path"], query, address)
        await app(scope, receive, send)

    return recorded


def tab() -> App:
    import socketio

    app: App = socketio.ASGIApp(socketio_server(), static_files=apps.TAB)
    return app


def keeper() -> App:
    kept = apps.Keeper()

    async def act(scope: Scope, receive: Receive, send: Send) -> None:
        status, body = kept.answer(
            scope["path"],
            scope["query_string"].decode(),
            _header(scope, b"x-id"),
            _header(scope, b"cookie"),
        )
        await _send(send, [body], {"Content-Length": str(len(body))}, status)

    return _http(act)


def socketio_app_blind() -> App:
    apps.blind()
    return socketio_app()


# -- connections that clients share ----------------------------------------------------------------


def shared_lab() -> App:
    async def act(scope: Scope, receive: Receive, send: Send) -> None:
        path, query = scope["path"], scope["query_string"].decode()
        size, body = apps.to_read(path, query), None
        if size is not None:
            body = await _read(receive, size)
        address = _header(scope, b"x-forwarded-for") or ""
        answer = apps.shared_answer(scope["method"], path, query, address, body)
        if path == "/slow":
            await asyncio.sleep(_seconds(scope))
        status, headers, pieces = answer
        await _send(send, pieces, dict(headers), status)

    return _with_websocket(_http(act))


def shared_lab_disagreeing() -> App:
    apps.disagree()
    return shared_lab()


def shared_lab_shifted() -> App:
    apps.shift()
    return shared_lab()


def shared_lab_blind() -> App:
    apps.blind()
    return shared_lab()


# -- the paths of the lab --------------------------------------------------------------------------


async def _whoami(scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(send, json.dumps(_identity(scope)).encode())


async def _slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(_seconds(scope))
    await _whoami(scope, receive, send)


async def _stuck(scope: Scope, receive: Receive, send: Send) -> None:
    apps.stand_still(_seconds(scope))
    await _whoami(scope, receive, send)


async def _spin(scope: Scope, receive: Receive, send: Send) -> None:
    apps.compute(_seconds(scope))
    await _whoami(scope, receive, send)


async def _raise(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the app is to blame")


async def _blob(scope: Scope, receive: Receive, send: Send) -> None:
    size = int(parse_qs(scope["query_string"].decode())["size"][0])
    await _send(send, apps.blob(size), {"Content-Length": str(size)})


async def _forever(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 8192, "more_body": True})
        await asyncio.sleep(0.05)


async def _body(scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(send, await _read(receive), "application/octet-stream")


async def _process(scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(send, json.dumps(process()).encode())


async def _undelayed(scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(send, json.dumps(apps.undelayed()).encode())


_LAB: dict[str, App] = {
    "/slow": _slow,
    "/stuck": _stuck,
    "/spin": _spin,
    "/raise": _raise,
    "/blob": _blob,
    "/forever": _forever,
    "/body": _body,
    "/process": _process,
    "/undelayed": _undelayed,
}


# -- only here -------------------------------------------------------------------------------------


def with_lifespan() -> App:
    """JSON: what has been heard of the lifespan. Its end is printed."""
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                what = (await receive())["type"]
                heard.append(what)
                print(f"worker {worker_id()}: {what}", flush=True)
                await send({"type": what + ".complete"})
        else:
            await asyncio.sleep(_seconds(scope))
            await _answer(send, json.dumps(heard).encode())

    return app


def lifespan_fails() -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the cache is not there"})

    return app
