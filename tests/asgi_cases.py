"""One ASGI app that does something else for each path, and keeps what it was told.

Served by our server and by uvicorn: ``GET /records/NAME`` has what the app saw in the case of that
name since it was asked last.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_records: dict[str, list[Any]] = {}
_ended: dict[str, asyncio.Event] = {}


def start(status: int = 200, *fields: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(fields)}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


LENGTH_5 = (b"content-length", b"5")


async def read(receive: Receive) -> bytes:
    data, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return data
        data += message["body"]
        more = message["more_body"]
    return data


# -- HTTP ------------------------------------------------------------------------------------------


async def hello(receive: Receive, send: Send) -> None:
    await send(start(200, (b"content-type", b"text/plain")))
    await send(body(b"hello"))


async def echo(receive: Receive, send: Send) -> None:
    data = await read(receive)
    await send(start())
    await send(body(data))


async def pieces(receive: Receive, send: Send) -> None:
    await send(start())
    for piece in (b"one", b"", b"two", b"three"):
        await send(body(piece, more=True))
    await send(body())


async def slowly(receive: Receive, send: Send) -> None:
    """The head leaves before there is a body."""
    await send(start())
    await asyncio.sleep(0.01)
    await send(body(b"late"))


async def with_length(receive: Receive, send: Send) -> None:
    await send(start(200, LENGTH_5))
    await send(body(b"12", more=True))
    await send(body(b"345"))


async def no_content(receive: Receive, send: Send) -> None:
    await send(start(204))
    await send(body())


async def not_modified(receive: Receive, send: Send) -> None:
    await send(start(304, (b"etag", b'"a"')))
    await send(body())


async def early(receive: Receive, send: Send) -> None:
    """An answer before the body has been read."""
    await hello(receive, send)


async def twice_read(receive: Receive, send: Send) -> None:
    await read(receive)
    await hello(receive, send)
    await receive()
    await receive()


async def closes(receive: Receive, send: Send) -> None:
    await send(start(200, (b"connection", b"close"), LENGTH_5))
    await send(body(b"hello"))


async def other_status(receive: Receive, send: Send) -> None:
    await send(start(299, (b"x-a", b"1"), (b"x-a", b"2")))
    await send(body(b"x"))


async def raises(receive: Receive, send: Send) -> None:
    raise LookupError("no database")


async def exits(receive: Receive, send: Send) -> None:
    raise SystemExit(3)


async def raises_later(receive: Receive, send: Send) -> None:
    await send(start(200, LENGTH_5))
    await send(body(b"12", more=True))
    raise LookupError("no database")


async def says_nothing(receive: Receive, send: Send) -> None:
    pass


async def says_too_little(receive: Receive, send: Send) -> None:
    await send(start(200, LENGTH_5))
    await send(body(b"12"))


async def says_too_much(receive: Receive, send: Send) -> None:
    await send(start(200, LENGTH_5))
    await send(body(b"12345", more=True))
    await send(body(b"6"))


async def says_body_first(receive: Receive, send: Send) -> None:
    await send(body(b"12"))


async def starts_twice(receive: Receive, send: Send) -> None:
    await send(start())
    await send(start())


async def goes_on(receive: Receive, send: Send) -> None:
    await hello(receive, send)
    with contextlib.suppress(RuntimeError):
        await send(body(b"more"))


async def waits_for_the_end(receive: Receive, send: Send) -> None:
    await read(receive)
    await receive()
    await hello(receive, send)


async def bad_field(receive: Receive, send: Send) -> None:
    await send(start(200, (b"x-a", b"1\r\nx-b: 2")))
    await send(body(b"x"))


_client: contextvars.ContextVar[str] = contextvars.ContextVar("client", default="nobody")


async def context(receive: Receive, send: Send) -> None:
    """Whom this request's context belongs to, which it then is itself."""
    before = _client.get()
    _client.set("somebody")
    await send(start(200, (b"content-length", b"%d" % len(before))))
    await send(body(before.encode()))


# -- WebSocket -------------------------------------------------------------------------------------


def accept(subprotocol: str | None = None, *fields: tuple[bytes, bytes]) -> Message:
    return {"type": "websocket.accept", "subprotocol": subprotocol, "headers": list(fields)}


async def ws_echo(receive: Receive, send: Send) -> None:
    await receive()
    await send(accept())
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({**message, "type": "websocket.send"})


async def ws_fields(receive: Receive, send: Send) -> None:
    await receive()
    await send(accept("chat", (b"x-mark", b"7"), (b"set-cookie", b"a=b")))
    await receive()


async def ws_refuses(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close"})
    await receive()


async def ws_denies(receive: Receive, send: Send) -> None:
    await receive()
    fields = [(b"content-type", b"text/plain"), (b"x-why", b"because")]
    await send({"type": "websocket.http.response.start", "status": 402, "headers": fields})
    await send({"type": "websocket.http.response.body", "body": b"pay ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"first"})
    await receive()


async def ws_closes(receive: Receive, send: Send) -> None:
    await receive()
    await send(accept())
    await send({"type": "websocket.send", "text": "bye"})
    await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
    await receive()


async def ws_raises_first(receive: Receive, send: Send) -> None:
    raise LookupError("no database")


async def ws_raises(receive: Receive, send: Send) -> None:
    await receive()
    await send(accept())
    raise LookupError("no database")


async def ws_returns_first(receive: Receive, send: Send) -> None:
    await receive()


async def ws_returns(receive: Receive, send: Send) -> None:
    await receive()
    await send(accept())


async def ws_sends_after_the_end(receive: Receive, send: Send) -> None:
    await receive()
    await send(accept())
    while (await receive())["type"] != "websocket.disconnect":
        pass
    await send({"type": "websocket.send", "text": "hello?"})


# -- the app ---------------------------------------------------------------------------------------


def _plain(thing: Any) -> Any:
    """As JSON has it."""
    if isinstance(thing, bytes | bytearray):
        return "bytes:" + thing.decode("latin-1")
    if isinstance(thing, dict):
        return {key: _plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_plain(value) for value in thing]
    return thing


def _is_body(record: Any) -> bool:
    return bool(record[0] == "received" and record[1]["type"] == "http.request")


def _note(records: list[Any], kind: str, what: Any) -> None:
    """Parts of a body are one, however they came."""
    record = [kind, _plain(what)]
    if _is_body(record) and records and _is_body(records[-1]):
        before = records.pop()[1]
        record[1]["body"] = before["body"] + record[1]["body"].removeprefix("bytes:")
    records.append(record)


async def _run(name: str, scope: Scope, receive: Receive, send: Send) -> None:
    records = _records.setdefault(name, [])
    ended = _ended.setdefault(name, asyncio.Event())
    _note(records, "scope", scope)

    async def noted_receive() -> Message:
        message = await receive()
        _note(records, "received", message)
        return message

    async def noted_send(message: Message) -> None:
        try:
            await send(message)
        except BaseException as error:
            _note(records, "send failed", type(error).__name__)
            raise

    try:
        await globals()[name](noted_receive, noted_send)
    except BaseException as error:
        _note(records, "ended with", type(error).__name__)
        raise
    else:
        _note(records, "ended with", None)
    finally:
        ended.set()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": message["type"] + ".complete"})
        return
    _, kind, name = scope["path"].split("/")[:3]
    if kind == "case":
        await _run(name, scope, receive, send)
        return
    async with asyncio.timeout(20):
        await _ended.setdefault(name, asyncio.Event()).wait()
    _ended[name].clear()
    data = json.dumps(_records.pop(name)).encode()
    await send(start(200, (b"content-length", b"%d" % len(data))))
    await send(body(data))
