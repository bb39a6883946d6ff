"""Apps for ``bench.events``: workers that emit to one another.

BENCH_BUS says over what (a ``redis://`` address, or "sticky"), BENCH_MODE is python-socketio's
async_mode, BENCH_SHARED a file with counters that all of them write: in row i, those of worker i.

In each worker there is a client, who is in no room, so that every event goes all the way to where
python-socketio looks for the members of a room, and an event there counts. Over HTTP:

    /emit?n&size&workers
                    emit so many events, as fast as all others handle them (at most WINDOW ahead)
    /trips?n&to     tell that worker something, n times, each when it has answered: microseconds
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import time
from typing import Any
from urllib.parse import parse_qsl

WINDOW = 8000
ROW = 4  # cells of 8 bytes: events handled, trips


def counters() -> memoryview:
    with open(os.environ["BENCH_SHARED"], "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


class Counts:
    """Before a manager's class: it counts when the members of a room are asked for."""

    worker: int
    cells: memoryview

    def get_participants(self, namespace: str, room: Any) -> Any:
        if room == "count":
            self.cells[self.worker * ROW] += 1
        return super().get_participants(namespace, room)  # type: ignore[misc]


class Answers:
    """Before a server's class: being told to disconnect "ping" it tells all to disconnect "pong".

    Of what managers tell each other this is the least: nothing is encoded for any client.
    """

    manager: Any
    pong: Any = None
    asks = False

    def answers(self, sid: str) -> bool:
        kind, _, to = sid.partition(" ")
        if kind == "pong" and self.asks:
            self.pong()
        return kind == "ping" and int(to) == self.manager.worker

    def disconnect(self, sid: str, namespace: str | None = None, **_: Any) -> None:
        if self.answers(sid):
            self.manager.disconnect("pong", "/")


class AsyncAnswers(Answers):
    """The same for asyncio."""

    async def disconnect(self, sid: str, namespace: str | None = None, **_: Any) -> None:
        if self.answers(sid):
            await self.manager.disconnect("pong", "/")


def setup(asynchronous: bool) -> tuple[Any, Any]:
    """The server and its manager."""
    import socketio

    import sticky

    url = os.environ["BENCH_BUS"]
    if url != "sticky":
        kind = socketio.AsyncRedisManager if asynchronous else socketio.RedisManager
        arguments: tuple[Any, ...] = (url,)
    else:
        from sticky import cluster

        kind = cluster.AsyncManager if asynchronous else cluster.Manager
        arguments = ()
    worker = sticky.current_worker()
    assert worker is not None
    manager = type("Counting", (Counts, kind), {"worker": worker.id, "cells": counters()})
    if asynchronous:
        server = type("Answering", (AsyncAnswers, socketio.AsyncServer), {})
    else:
        server = type("Answering", (Answers, socketio.Server), {})
    made = manager(*arguments)
    return server(async_mode=os.environ["BENCH_MODE"], client_manager=made), made


def handled(cells: memoryview, own: int, workers: int) -> int:
    """Events that the slowest of the others has handled."""
    return min(cells[i * ROW] for i in range(workers) if i != own)


def emitting() -> Any:
    """A WSGI app."""
    server, manager = setup(False)
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            begun = True
            manager.initialize()
            manager.connect("nobody", "/")

    def emit(n: int, size: int, workers: int) -> dict[str, Any]:
        cells, own = manager.cells, manager.worker
        data = {"text": "x" * size, "number": 1}
        before = handled(cells, own, workers)
        began = time.perf_counter()
        for number in range(n):
            server.emit("news", data, room="count")
            if number % 100 == 99:
                server.sleep(0)
                while before + number - handled(cells, own, workers) > WINDOW:
                    server.sleep(0.0005)
        while handled(cells, own, workers) < before + n:
            server.sleep(0.0005)
            if time.perf_counter() > began + 60:
                break
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "handled": handled(cells, own, workers) - before}

    def trips(n: int, to: int) -> dict[str, Any]:
        bell = server.eio.create_event()
        server.pong, server.asks = bell.set, True
        took = []
        for _ in range(n):
            bell.clear()
            began = time.perf_counter()
            manager.disconnect(f"ping {to}", "/")
            if not bell.wait(5):
                break
            took.append(time.perf_counter() - began)
        server.asks = False
        return {"us": sorted(took)[len(took) // 2] * 1e6, "trips": len(took)}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begin()
        query = {k: int(v) for k, v in parse_qsl(environ["QUERY_STRING"])}
        path = environ["PATH_INFO"]
        found: Any = {"worker": manager.worker}
        if path == "/emit":
            found |= emit(**query)
        elif path == "/trips":
            found |= trips(**query)
        body = json.dumps(found).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return app


def emitting_async() -> Any:
    """An ASGI app."""
    server, manager = setup(True)
    begun = False

    async def begin() -> None:
        nonlocal begun
        if not begun:
            begun = True
            manager.initialize()
            await manager.connect("nobody", "/")

    async def emit(n: int, size: int, workers: int) -> dict[str, Any]:
        cells, own = manager.cells, manager.worker
        data = {"text": "x" * size, "number": 1}
        before = handled(cells, own, workers)
        began = time.perf_counter()
        for number in range(n):
            await server.emit("news", data, room="count")
            if number % 100 == 99:
                await asyncio.sleep(0)
                while before + number - handled(cells, own, workers) > WINDOW:
                    await asyncio.sleep(0.0005)
        while handled(cells, own, workers) < before + n:
            await asyncio.sleep(0.0005)
            if time.perf_counter() > began + 60:
                break
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "handled": handled(cells, own, workers) - before}

    async def trips(n: int, to: int) -> dict[str, Any]:
        bell = asyncio.Event()
        server.pong, server.asks = bell.set, True
        took = []
        for _ in range(n):
            bell.clear()
            began = time.perf_counter()
            await manager.disconnect(f"ping {to}", "/")
            await bell.wait()
            took.append(time.perf_counter() - began)
        server.asks = False
        return {"us": sorted(took)[len(took) // 2] * 1e6, "trips": len(took)}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await begin()
        query = {k: int(v) for k, v in parse_qsl(scope["query_string"].decode())}
        found: Any = {"worker": manager.worker}
        if scope["path"] == "/emit":
            found |= await emit(**query)
        elif scope["path"] == "/trips":
            found |= await trips(**query)
        body = json.dumps(found).encode()
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})

    return app
