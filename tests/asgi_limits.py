"""An ASGI app with pages that take long, and one whose connections have to be released."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import sticky

from .asgi_cases import Message, Receive, Scope, Send, body, start


def _say(text: str) -> None:
    print(text, flush=True)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": message["type"] + ".complete"})
        _say("the lifespan has ended")
        return
    page = scope["path"].removeprefix("/app").split("/")[1]
    await _PAGES.get(page, _echo)(scope, receive, send)


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    if messages[-1]["type"] == "http.disconnect":
        _say(f"the app received {messages}")
    await _text(send, "")


async def _text(send: Send, text: str) -> None:
    await send(start(200, (b"content-length", b"%d" % len(text.encode()))))
    await send(body(text.encode()))


async def _endless(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    gone = asyncio.create_task(receive())
    await send(start())
    while not gone.done():
        await send(body(b"x" * 65536, more=True))
        await asyncio.sleep(0)
    _say("the endless answer has ended")


async def _forever(scope: Scope, receive: Receive, send: Send) -> None:
    _say("the long request has begun")
    try:
        await asyncio.Event().wait()
    finally:
        _say("the long request was cancelled")


async def _log(scope: Scope, receive: Receive, send: Send) -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error"):
        logging.getLogger(name).warning("said by %s", name)
    await _text(send, "")


async def _loop(scope: Scope, receive: Receive, send: Send) -> None:
    await _text(send, type(asyncio.get_running_loop()).__module__)


async def _scope(scope: Scope, receive: Receive, send: Send) -> None:
    shown = {**scope, "raw_path": scope["raw_path"].decode(), "headers": None, "query_string": ""}
    await _text(send, json.dumps(shown))


_PAGES: dict[str, Any] = {
    "endless": _endless,
    "forever": _forever,
    "log": _log,
    "loop": _loop,
    "scope": _scope,
}


def synced() -> Any:
    worker = sticky.current_worker()
    assert worker is not None

    async def connected(connection: Any) -> None:
        await asyncio.sleep(0)
        threading.Thread(target=connection.emit, args=("go",)).start()

    worker.on("connection", connected)
    return app
