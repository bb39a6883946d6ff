"""Apps that prepare something for each client first: handlers of "connection", with ``sync``.

What a handler does is said in the header X-Do of the first request. Each app answers with what
happened to the connection's client, in order; as /<number> like tests.apps:whoami.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import sticky
from tests.apps import Environ, StartResponse, whoami

EVENT = "loaded"

_happened: dict[str, list[str]] = {}


def _note(client: str, what: str) -> None:
    _happened.setdefault(client, []).append(what)


def _is_open(client: str) -> bool:
    """Whether the test has opened the gate for this client."""
    return Path(os.environ["GATES"], client).exists()


def _told(connection: Any) -> tuple[str, str]:
    found = re.search(rb"^X-Do: (\w+)", connection.head, re.MULTILINE)
    client = connection.key.decode()
    _note(client, connection.came)
    return client, found[1].decode() if found else ""


def _answer(client: str, path: str) -> bytes:
    worker = sticky.current_worker()
    assert worker is not None
    if path == "/stats":
        return json.dumps({"worker": worker.id, **worker.stats()}).encode()
    if path.startswith("/of/"):
        return json.dumps(_happened.get(path.removeprefix("/of/"), [])).encode()
    _note(client, "app")
    return json.dumps(_happened[client]).encode()


# -- WSGI ------------------------------------------------------------------------------------------


def _on_connection(connection: Any) -> None:
    client, what = _told(connection)

    def load() -> None:
        while not _is_open(client):
            time.sleep(0.02)
        _note(client, "loaded")

    def load_and_release() -> None:
        load()
        _note(client, f"released {connection.emit(EVENT)}")

    if what == "load":
        load_and_release()
    elif what == "later":
        threading.Thread(target=load_and_release).start()
    elif what == "fail":
        raise LookupError("nothing is known about this client")
    elif what == "other":
        _note(client, f"released {connection.emit('another_event')}")
    elif what != "nothing":
        connection.emit(EVENT)
        assert not connection.emit(EVENT)  # once


def wsgi() -> Any:
    worker = sticky.current_worker()
    assert worker is not None
    worker.on("connection", _on_connection)
    other = whoami()

    def app(environ: Environ, start_response: StartResponse) -> Any:
        path = environ["PATH_INFO"]
        if path[1:].isdecimal():
            return other(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [_answer(environ.get("HTTP_X_FORWARDED_FOR", ""), path)]

    return app


# -- asyncio ---------------------------------------------------------------------------------------


async def _on_connection_async(connection: Any) -> None:
    client, what = _told(connection)

    async def load() -> None:
        while not _is_open(client):
            await asyncio.sleep(0.02)
        _note(client, "loaded")

    def release() -> None:
        _note(client, f"released {connection.emit(EVENT)}")

    if what == "load":
        await load()
        release()
    elif what == "later":

        async def later() -> None:
            await load()
            await asyncio.to_thread(release)

        connection.task = asyncio.get_running_loop().create_task(later())
    elif what == "fail":
        raise LookupError("nothing is known about this client")
    elif what == "other":
        _note(client, f"released {connection.emit('another_event')}")
    elif what != "nothing":
        connection.emit(EVENT)
        assert not connection.emit(EVENT)


def asgi() -> Any:
    worker = sticky.current_worker()
    assert worker is not None
    worker.on("connection", _on_connection_async)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        path = scope["path"]
        if path[1:].isdecimal():
            body = json.dumps({"worker": worker.id, "path": path}).encode()
        else:
            body = _answer(dict(scope["headers"]).get(b"x-forwarded-for", b"").decode(), path)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
