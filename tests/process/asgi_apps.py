"""ASGI apps for tests; each says which worker served."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any
from urllib.parse import parse_qs

import fastapi

from tests.apps import worker_id

STARTED: list[str] = []


async def lab(scope: Any, receive: Any, send: Any) -> None:
    """/: who serves; /slow?seconds=; /body: as it came; /ws: an echo; /raise: the app fails."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _echo(receive, send)
    else:
        await _answer(scope, receive, send)


def make() -> Any:
    return lab


async def _lifespan(receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    STARTED.append("startup")
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    print(f"lifespan of worker {worker_id()} is over", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def _echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["path"] == "/raise":
        raise RuntimeError("the app is to blame")
    if scope["path"] == "/slow":
        await asyncio.sleep(float(parse_qs(scope["query_string"].decode())["seconds"][0]))
    text = body
    if scope["path"] != "/body":
        text = json.dumps(
            {
                "worker": worker_id(),
                "pid": os.getpid(),
                "path": scope["path"],
                "client": scope["client"],
                "started": STARTED,
                "headers": [(k.decode(), v.decode()) for k, v in scope["headers"]],
            }
        ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def fastapi_app() -> Any:

    app = fastapi.FastAPI()

    @app.get("/")
    async def whoami() -> dict[str, int]:
        return {"worker": worker_id()}

    @app.get("/in-a-thread")
    def thread() -> dict[str, int]:
        return {"worker": worker_id()}

    @app.websocket("/ws")
    async def echo(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return app


def socketio_asgi() -> Any:
    """A socketio.ASGIApp: the event echo is answered, with an ack."""
    import socketio

    return socketio.ASGIApp(socketio_server())


def socketio_server() -> Any:
    import socketio

    sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")

    @sio.event
    async def echo(sid: str, data: Any) -> dict[str, Any]:
        return {"worker": worker_id(), "data": data, "transport": sio.transport(sid)}

    return sio


def lifespan_fails() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the cache is not there"})

    return app


def broken() -> Any:
    raise RuntimeError("the database is not there")
