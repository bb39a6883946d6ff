"""Apps of the frameworks that people use, each with the same few pages and a WebSocket."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

# Each is made when it is asked for: nobody has all of them in one process.


def _hello() -> str:
    return f"hello from {os.getpid()}"


async def _ticks() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"data: %d\n\n" % number
        await asyncio.sleep(0)


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles
    from starlette.websockets import WebSocket

    done: list[str] = []
    folder = Path(tempfile.gettempdir()) / f"sticky-static-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / "large.bin").write_bytes(bytes(range(256)) * 4096)

    async def hello(request: Request) -> Response:
        return PlainTextResponse(_hello())

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    async def ticks(request: Request) -> Response:
        return StreamingResponse(_ticks(), media_type="text/event-stream")

    async def later(request: Request) -> Response:
        async def work() -> None:
            await asyncio.sleep(0.05)
            done.append("later")

        return PlainTextResponse("soon", background=BackgroundTask(work))

    async def what(request: Request) -> Response:
        return PlainTextResponse(",".join(done))

    async def exits(request: Request) -> Response:
        sys.exit(3)

    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    async def through(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-through"] = "yes"
        return response

    return Starlette(
        routes=[
            *(Route("/", hello), Route("/echo", echo, methods=["POST"]), Route("/ticks", ticks)),
            *(Route("/later", later), Route("/what", what), Route("/exits", exits)),
            *(WebSocketRoute("/ws", chat), Mount("/static", StaticFiles(directory=folder))),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=through)],
    )


def fastapi() -> Any:
    from fastapi import FastAPI, Request, UploadFile, WebSocket
    from fastapi.responses import PlainTextResponse, StreamingResponse

    # What annotations name is looked up among the globals.
    globals().update(Request=Request, UploadFile=UploadFile, WebSocket=WebSocket)
    app = FastAPI()

    @app.get("/", response_class=PlainTextResponse)
    async def hello() -> str:
        return _hello()

    @app.post("/echo")
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    @app.post("/upload")
    async def upload(file: UploadFile) -> int:
        return len(await file.read())

    @app.get("/ticks")
    async def ticks() -> StreamingResponse:
        return StreamingResponse(_ticks(), media_type="text/event-stream")

    @app.websocket("/ws")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return app


def quart() -> Any:
    from quart import Quart, request, websocket

    app = Quart(__name__)

    @app.get("/")
    async def hello() -> str:
        return _hello()

    @app.post("/echo")
    async def echo() -> bytes:
        data: bytes = await request.get_data()
        return data

    @app.get("/ticks")
    async def ticks() -> Any:
        return _ticks(), {"content-type": "text/event-stream"}

    @app.websocket("/ws")
    async def chat() -> None:
        while True:
            await websocket.send(await websocket.receive())

    return app


def django() -> Any:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
    from django.urls import path

    async def hello(request: HttpRequest) -> HttpResponse:
        return HttpResponse(_hello())

    def echo(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.body)

    async def ticks(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(_ticks(), content_type="text/event-stream")

    settings.configure(
        ROOT_URLCONF=(path("", hello), path("echo", echo), path("ticks", ticks)),
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="x",
        MIDDLEWARE=[],
    )
    return get_asgi_application()


def socketio() -> Any:
    from socketio import ASGIApp, AsyncServer

    server = AsyncServer(async_mode="asgi")

    @server.event
    async def shout(sid: str, text: str) -> str:
        return text.upper()

    return ASGIApp(server, other_asgi_app=starlette())


def engineio() -> Any:
    from engineio import ASGIApp, AsyncServer

    server = AsyncServer(async_mode="asgi")

    @server.on("message")
    async def message(sid: str, data: str) -> None:
        await server.send(sid, data.upper())

    return ASGIApp(server, other_asgi_app=starlette())


def nicegui() -> Any:
    """A page of NiceGUI, mounted in FastAPI."""
    import nicegui
    from fastapi import FastAPI
    from nicegui import ui

    app = FastAPI()

    @ui.page("/")
    def page() -> None:
        ui.label("hello from " + str(os.getpid()))

    @app.get("/stop")
    def stop() -> str:
        nicegui.app.shutdown()
        return "it stops"

    ui.run_with(app)
    return app
