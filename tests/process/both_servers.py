"""The same bytes to our server and to uvicorn, with the app of ``tests.asgi_cases``."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.harness import ROOT, serve

from .clients import parse

TIMEOUT = 20.0


@dataclass
class Server:
    """One of the two.

    Attributes:
        name: "ours" or "uvicorn".
    """

    name: str
    port: int

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT)

    def say(self, *parts: bytes, shut: bool = False) -> bytes:
        """What it answers to these bytes until it closes the connection.

        Args:
            parts: each is sent when something has come back for the one before.
            shut: close our side behind the last.
        """
        answer = b""
        with self.connect() as sock:
            for number, part in enumerate(parts):
                sock.sendall(part)
                if number + 1 < len(parts):
                    answer += sock.recv(65536)
            if shut:
                sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while data := sock.recv(65536):
                    answer += data
        return answer

    def records(self, case: str) -> list[Any]:
        """What the app saw, once it has ended."""
        ask = b"GET /records/%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % case.encode()
        found: list[Any] = parse(self.say(ask)).json()
        return found


def _ours() -> Iterator[Server]:
    with serve("tests.asgi_cases:app", num=1) as running:
        yield Server("ours", running.port)


def _uvicorn() -> Iterator[Server]:
    command = [sys.executable, "-m", "uvicorn", "tests.asgi_cases:app", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--ws", "websockets-sansio", "--http", "httptools", "--no-access-log"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        # It logs each failure of the app: somebody has to read that.
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        yield Server("uvicorn", int(found[1]))
        process.terminate()
        process.wait(TIMEOUT)
        reader.join()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def chunks_in(data: bytes) -> tuple[bytes, bytes]:
    """The body, and what is behind it."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
        if not int(size, 16):
            break
    return body, data


@contextlib.contextmanager
def both() -> Iterator[tuple[Server, Server]]:
    """Our server and uvicorn."""
    ours, theirs = contextlib.contextmanager(_ours), contextlib.contextmanager(_uvicorn)
    with ours() as first, theirs() as second:
        yield first, second
