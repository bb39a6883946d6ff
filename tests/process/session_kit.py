"""Clients of Socket.IO that speak the protocol by hand, over connections that they share."""

from __future__ import annotations

import http.client
import json
import random
import signal

from tests.harness import Answer, Running

from .clients import XFF

POLLING = "/socket.io/?EIO=4&transport=polling"


class Shared:
    """A few connections, each used for whatever request comes next, from whatever address."""

    def __init__(self, port: int, count: int = 4, *, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._connections = [
            http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(count)
        ]

    def ask(
        self, target: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> Answer:
        connection = self._random.choice(self._connections)
        address = ".".join(str(self._random.randrange(1, 255)) for _ in range(4))
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, {XFF: address, **lines})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def open_session(shared: Shared) -> str:
    """A session of Engine.IO, and of Socket.IO in it."""
    answer = shared.ask(POLLING)
    assert answer.status == 200, answer
    sid: str = json.loads(answer.body[1:])["sid"]
    return sid


def of(sid: str) -> str:
    return f"{POLLING}&sid={sid}"


def connect(shared: Shared, sid: str) -> int:
    """Join the default namespace; the worker that says welcome."""
    assert shared.ask(of(sid), "POST", "40").status == 200
    said = b""
    while b"welcome" not in said:
        answer = shared.ask(of(sid))
        assert answer.status == 200, answer
        said += answer.body
    return int(said.split(b'"worker":')[1].split(b",")[0])


def replace(running: Running) -> dict[int, int]:
    """Reload; the pids of those that were replaced."""
    old = dict(running.worker_pids())
    running.send_signal(signal.SIGHUP)
    for slot, pid in old.items():
        running.wait_for_successor(slot, pid)
    return old
