"""An app that says which process has answered, and what it was given; for WSGI and for ASGI."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

_made = [0]


def _answer(path: str, query: str, given: dict[str, str]) -> tuple[list[tuple[str, str]], bytes]:
    """Fields and body."""
    fields = parse_qsl(query)
    session = given.get("mcp-session-id")
    if path == "/mcp" and session is None:
        _made[0] += 1
        session = f"app-{os.getpid()}-{_made[0]}"
    if path == "/mcp":
        fields.append(("Mcp-Session-Id", str(session)))
    said = {
        "pid": os.getpid(),
        "worker": int(os.environ["STICKY_WORKER_ID"]),
        "cookie": given.get("cookie"),
        "session": session,
    }
    return fields, json.dumps(said).encode()


# -- WSGI ------------------------------------------------------------------------------------------

_gates: dict[str, threading.Event] = {}


def wsgi() -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if path == "/stream":
            start_response("200 OK", [("Cache-Control", "no-cache")])
            return _blocks(_gates.setdefault(query, threading.Event()))
        if path == "/end":
            _gates.setdefault(query, threading.Event()).set()
            query = ""
        given = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        fields, body = _answer(path, query, given)
        start_response("200 OK", fields)
        return [body]

    return app


def _blocks(gate: threading.Event) -> Iterable[bytes]:
    yield b"%d\n" % os.getpid()
    gate.wait(60)
    yield b"over\n"


# -- ASGI ------------------------------------------------------------------------------------------

_events: dict[str, asyncio.Event] = {}


def asgi() -> Callable[..., Awaitable[None]]:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await _talk(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        path, query = scope["path"], scope["query_string"].decode()
        if path == "/stream":
            await _stream(_events.setdefault(query, asyncio.Event()), send)
            return
        if path == "/end":
            _events.setdefault(query, asyncio.Event()).set()
            query = ""
        given = {name.decode(): value.decode() for name, value in scope["headers"]}
        fields, body = _answer(path, query, given)
        headers = [(name.encode(), value.encode()) for name, value in fields]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def _stream(gate: asyncio.Event, send: Any) -> None:
    headers = [(b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    begun = b"%d\n" % os.getpid()
    await send({"type": "http.response.body", "body": begun, "more_body": True})
    await asyncio.wait_for(gate.wait(), 60)
    await send({"type": "http.response.body", "body": b"over\n"})


async def _talk(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": str(os.getpid())})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def secret() -> Callable[..., Iterable[bytes]]:
    """Says a secret, and whether it can be read anywhere else."""
    import sticky

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        found = sticky.secret(environ["QUERY_STRING"]).hex()
        place = sticky.current_worker()
        with open("/proc/self/environ") as environment, open("/proc/self/cmdline") as command:
            told = environment.read() + command.read() + repr(os.environ)
        start_response("200 OK", [])
        said = {
            "secret": found,
            "pid": os.getpid(),
            "told": found in told,
            "id": place and place.id,
        }
        return [json.dumps(said).encode()]

    return app
