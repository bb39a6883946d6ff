"""One app for WSGI and for ASGI, by path; what each does is said once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import sticky

_calls = [0]
"""Requests that have reached the app, but for those that ask for this number."""


class Leaving(BaseException):
    """Neither an Exception nor one of the interpreter's own."""


RAISED = {"Exception": LookupError, "SystemExit": SystemExit, "BaseException": Leaving}


def _stats() -> dict[str, int]:
    worker = sticky.current_worker()
    assert worker is not None
    return worker.stats()


def _answer(path: str, query: str, seen: dict[str, Any]) -> tuple[int, list[list[str]], bytes]:
    """Status, fields, body.

    Raises:
        BaseException: the one that is asked for.
    """
    asked = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if path == "/calls":
        return 200, [], str(_calls[0]).encode()
    _calls[0] += 1
    if path == "/stats":
        return 200, [], json.dumps(_stats()).encode()
    if path == "/raise":
        raise RAISED[asked["what"]]("as it was asked to")
    if path == "/say":
        fields = [[asked["name"], asked["value"]]] if "name" in asked else []
        return int(asked.get("status", "200")), fields, asked.get("body", "said").encode()
    if path == "/large":
        return 200, [["Content-Length", asked["size"]]], b"x" * int(asked["size"])
    return 200, [], json.dumps(seen).encode()


# -- WSGI ------------------------------------------------------------------------------------------

_gates: dict[str, threading.Event] = {}


def wsgi() -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if path == "/blocks":
            start_response("200 OK", [])
            return _blocks(_gates.setdefault(query, threading.Event()))
        if path == "/open":
            _gates.setdefault(query, threading.Event()).set()
        seen = {
            "method": environ["REQUEST_METHOD"],
            "path": path,
            "query": query,
            "version": environ["SERVER_PROTOCOL"],
            "scheme": environ["wsgi.url_scheme"],
            "client": environ["REMOTE_ADDR"],
            "fields": {
                name.removeprefix("HTTP_").replace("_", "-").lower(): value
                for name, value in environ.items()
                if name.startswith("HTTP_") or name in ("CONTENT_LENGTH", "CONTENT_TYPE")
            },
            "body": "",
        }
        if path != "/unread":
            seen["body"] = environ["wsgi.input"].read().decode("latin-1")
        status, fields, body = _answer(path, query, seen)
        start_response(f"{status} Whatever", [tuple(field) for field in fields])
        return [body]

    return app


def _blocks(gate: threading.Event) -> Iterable[bytes]:
    yield b"first"
    gate.wait(60)
    yield b"second"


# -- ASGI ------------------------------------------------------------------------------------------

_async_gates: dict[str, asyncio.Event] = {}


def asgi() -> Callable[..., Awaitable[None]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        path, query = scope["path"], scope["query_string"].decode("latin-1")
        if path == "/blocks":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await asyncio.wait_for(_async_gates.setdefault(query, asyncio.Event()).wait(), 60)
            await send({"type": "http.response.body", "body": b"second"})
            return
        if path == "/open":
            _async_gates.setdefault(query, asyncio.Event()).set()
        fields: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = raw.decode("latin-1")
            separator = "; " if name == "cookie" else ", "
            before = fields[name] + separator if name in fields else ""
            fields[name] = before + value.decode("latin-1")
        seen = {
            "method": scope["method"],
            "path": path,
            "query": query,
            "version": f"HTTP/{scope['http_version']}",
            "scheme": scope["scheme"],
            "client": scope["client"][0] if scope["client"] else "",
            "fields": fields,
            "body": "",
        }
        if path != "/unread":
            seen["body"] = (await _read(receive)).decode("latin-1")
        status, said, body = _answer(path, query, seen)
        headers = [tuple(part.encode("latin-1") for part in field) for field in said]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def _read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client has left")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
