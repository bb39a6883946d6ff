"""What the cases ask of the server's app, for WSGI and ASGI: ``tests.http_probe.apps:wsgi``.

``POST /`` answers with the body it was sent, ``/echo`` with the header fields of the request (a
line each), ``/cookie`` with the cookies (a line each), and everything else with ``OK``, whatever
the method. Nothing is refused here: what is refused, the server has refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

_HEADERS = [("Content-Type", "text/plain")]


def _cookies(line: str) -> bytes:
    pairs = (pair.strip() for pair in line.split(";"))
    return "".join(f"{pair}\n" for pair in pairs if pair.find("=") > 0).encode("latin-1")


def wsgi() -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"]
        body = b"OK"
        if path == "/cookie":
            body = _cookies(environ.get("HTTP_COOKIE", ""))
        elif path == "/echo":
            body = _fields(environ)
        elif environ["REQUEST_METHOD"] == "POST":
            body = environ["wsgi.input"].read()
        start_response("200 OK", _HEADERS)
        return [body]

    return app


def _fields(environ: dict[str, Any]) -> bytes:
    """As they can be known from an environ: the names' case and punctuation are lost."""
    found = [
        (name.removeprefix("HTTP_"), value)
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    ]
    lines = (f"{name.replace('_', '-').title()}: {value}\n" for name, value in found if value)
    return "".join(lines).encode("latin-1")


Message = MutableMapping[str, Any]


def asgi() -> Callable[..., Awaitable[None]]:
    async def app(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            body = await _answer(scope, receive)
            headers = [(name.encode(), value.encode()) for name, value in _HEADERS]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return app


async def _answer(scope: Message, receive: Callable[[], Awaitable[Message]]) -> bytes:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if scope["path"] == "/cookie":
        return _cookies("; ".join(v.decode("latin-1") for k, v in headers if k == b"cookie"))
    if scope["path"] == "/echo":
        return b"".join(b"%s: %s\n" % field for field in headers)
    if scope["method"] != "POST":
        return b"OK"
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
