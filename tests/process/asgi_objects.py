"""ASGI apps as objects, and factories that return them."""

from __future__ import annotations

from typing import Any

import fastapi
import socketio

from tests.apps import worker_id
from tests.asgi_apps import Receive, Scope, Send, says

_ANSWER = says(lambda: {"worker": worker_id()})


async def asgi_function(scope: Scope, receive: Receive, send: Send) -> None:
    await _ANSWER(scope, receive, send)


class _Application:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _ANSWER(scope, receive, send)


asgi_object = _Application()

fastapi_app = fastapi.FastAPI()


@fastapi_app.get("/")
async def whoami() -> dict[str, int]:
    return {"worker": worker_id()}


@fastapi_app.get("/in-a-thread")
def whoami_in_a_thread() -> dict[str, int]:
    return {"worker": worker_id()}


@fastapi_app.websocket("/ws")
async def echo(websocket: fastapi.WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


socketio_server = socketio.AsyncServer(async_mode="asgi")
socketio_asgi = socketio.ASGIApp(socketio_server, asgi_function)


def make_socketio_server() -> Any:
    return socketio_server


def make_fastapi_app() -> Any:
    return fastapi_app
