"""The same as reconnect.js, with python-socketio's own clients: half of them Client, which has
threads, and half AsyncClient."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import Any

import socketio

CONFIG = json.loads(sys.argv[1])
TRANSPORTS = {
    "polling": ["polling"],
    "websocket": ["websocket"],
    "upgrade": ["polling", "websocket"],
}[CONFIG["mode"]]
DEADLINE = 60
OPTIONS = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.5, "randomization_factor": 0.2}

news = threading.Condition()
clients: list[One] = []


class One:
    """A client: its session, and the worker that has it, as an echo says."""

    def __init__(self) -> None:
        self.sid: str | None = None
        self.worker: int | None = None

    def heard(self, answer: dict[str, Any]) -> None:
        with news:
            self.sid, self.worker = answer["data"], answer["worker"]
            news.notify_all()


def with_threads() -> One:
    one = One()
    sio = socketio.Client(handle_sigint=False, **OPTIONS)

    @sio.event
    def connect() -> None:
        sio.emit("echo", sio.eio.sid, callback=one.heard)

    sio.connect(CONFIG["url"], transports=TRANSPORTS, wait_timeout=DEADLINE)
    return one


async def asynchronous() -> One:
    one = One()
    sio = socketio.AsyncClient(handle_sigint=False, **OPTIONS)

    @sio.event
    async def connect() -> None:
        await sio.emit("echo", sio.eio.sid, callback=one.heard)

    await sio.connect(CONFIG["url"], transports=TRANSPORTS, wait_timeout=DEADLINE)
    return one


def say(lost: set[str]) -> None:
    """When none of them has one of the lost sessions, and everyone has got an echo."""

    def there() -> bool:
        return all(one.sid and one.sid not in lost for one in clients)

    with news:
        if not news.wait_for(there, DEADLINE):
            sys.exit(f"never: {[one.sid for one in clients]} without {lost}")
        print(json.dumps([[one.sid, one.worker] for one in clients]), flush=True)


loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
for number in range(CONFIG["count"]):
    if number % 2:
        clients.append(with_threads())
    else:
        clients.append(asyncio.run_coroutine_threadsafe(asynchronous(), loop).result(DEADLINE))
say(set())
for line in sys.stdin:
    say(set(json.loads(line)))
    break
sys.stdout.flush()
# Those with threads would wait for the end of their polls.
os._exit(0)
