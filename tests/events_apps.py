"""Apps whose workers tell each other things, once for every worker class.

``events`` and ``events_async``: a Socket.IO server that does what its clients ask for, one
operation each. ``stream`` and ``stream_async``: every worker publishes numbers without a pause, and
writes down what it has published and what it has heard, in files of $FOLDER that the end of a
process does not shorten.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<II")  # the publishing process, its number
MODES = {"eventlet": "eventlet", "gevent": "gevent", "threads": "threading"}


def _driven(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def _serve(sio: Any, it: Callable[[Any], Any], run: Callable[..., Any]) -> None:
    """The events of a client, each of which is answered.

    Args:
        it: makes what the server returns something to be awaited.
        run: makes a coroutine function a handler.
    """
    from sticky import bus, current_worker
    from sticky.cluster import UnansweredError

    worker = current_worker()
    assert worker is not None
    me = [worker.id, worker.pid]
    answers: list[Any] = []
    heard: list[Any] = []
    bus.subscribe("news", lambda message: heard.append([*message[2:], message.data.decode()]))

    async def where(sid: str) -> Any:
        return me

    async def emit(sid: str, options: dict[str, Any]) -> None:
        await it(sio.emit(options.pop("event"), options.pop("data"), **options))

    async def many(sid: str, number: int, size: int, room: str) -> None:
        for count in range(number):
            await it(sio.emit("count", [count, "x" * size], room=room))

    async def ask(sid: str, other: str) -> None:
        def answered(*values: Any) -> None:
            answers.append(values)

        await it(sio.emit("question", 1, to=other, callback=answered))

    async def answered(sid: str) -> Any:
        return answers

    async def enter(sid: str, other: str, room: str) -> None:
        await it(sio.enter_room(other, room))

    async def leave(sid: str, other: str, room: str) -> None:
        await it(sio.leave_room(other, room))

    async def close(sid: str, room: str) -> None:
        await it(sio.close_room(room))

    async def end(sid: str, other: str) -> None:
        await it(sio.disconnect(other))

    async def participants(sid: str, room: str | None, timeout: float) -> Any:
        try:
            return await it(sio.manager.participants(room, timeout=timeout))
        except UnansweredError as error:
            return {"missing": error.missing, "answers": list(error.answers.values())}

    async def connected(sid: str) -> Any:
        return await it(sio.manager.connected())

    async def twice(sid: str, number: int) -> Any:
        found = await it(sio.manager.server_side_emit("twice", number, timeout=20))
        return [[*place, reply] for place, reply in found.items()]

    async def publish(sid: str, text: str) -> None:
        bus.publish("news", text.encode())

    async def published(sid: str) -> Any:
        return heard

    handlers = (where, emit, many, ask, answered, enter, leave, close, end, participants)
    for handler in (*handlers, connected, twice, publish, published):
        sio.on(handler.__name__, run(handler))
    sio.manager.on_server_event("twice", lambda number: 2 * number)


def events() -> Any:
    import socketio

    from sticky.cluster import Manager

    mode = MODES[os.environ["STICKY_WORKER_CLASS"]]
    sio = socketio.Server(async_mode=mode, cors_allowed_origins="*", client_manager=Manager())

    async def it(value: Any) -> Any:
        return value

    _serve(sio, it, lambda handler: lambda *arguments: _driven(handler(*arguments)))
    return sio


def events_async() -> Any:
    import socketio

    from sticky.cluster import AsyncManager

    sio = socketio.AsyncServer(
        async_mode="asgi", cors_allowed_origins="*", client_manager=AsyncManager()
    )
    _serve(sio, lambda value: value, lambda handler: handler)
    return sio


# -- a stream that does not end -------------------------------------------------------------------

BURST, PAUSE = 20, 0.01


class _Stream:
    def __init__(self) -> None:
        from sticky import bus

        folder = Path(os.environ["FOLDER"])
        self.bus, self.pid, self.number = bus, os.getpid(), 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.heard = os.open(folder / f"{self.pid}.heard", flags, 0o600)
        self.sent = os.open(folder / f"{self.pid}.sent", os.O_WRONLY | os.O_CREAT, 0o600)
        bus.subscribe("stream", self.hear)

    def hear(self, message: Any) -> None:
        os.write(self.heard, message.data)

    def burst(self) -> None:
        for _ in range(BURST):
            self.bus.publish("stream", RECORD.pack(self.pid, self.number))
            self.number += 1
            os.pwrite(self.sent, self.number.to_bytes(8, "little"), 0)


def stream() -> Any:
    made, over = _Stream(), threading.Event()

    def publish() -> None:
        while not over.is_set():
            made.burst()
            time.sleep(PAUSE)

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()

    @atexit.register
    def end() -> None:
        over.set()
        publisher.join()
        made.burst()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    return app


def stream_async() -> Any:
    made = _Stream()

    async def publish() -> None:
        while True:
            made.burst()
            await asyncio.sleep(PAUSE)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            task = asyncio.create_task(publish())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            task.cancel()
            made.burst()
            await send({"type": "lifespan.shutdown.complete"})

    return app
