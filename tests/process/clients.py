"""Clients for the process tests: one that sends and leaves as it likes, twenty that behave."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Self

import sticky
from tests.harness import Answer, Running, request, wait_until

SEED = "0123456789abcdef"
XFF = "X-Forwarded-For"


def head(*lines: str, target: str = "/", method: str = "GET") -> bytes:
    """A request head with these header lines."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: test", *lines, "", ""]).encode()


def slot_of(address: str, num: int) -> int:
    """The slot of a client whom the header names, as the contract has it and not the head."""
    slot = sticky.explain(head(), address, num=num, seed=SEED).slot
    assert slot is not None
    return slot


def addresses_of(slot: int, num: int, count: int) -> list[str]:
    """``count`` client addresses that belong to ``slot``."""
    everyone = (f"198.51.{high}.{low}" for high in range(256) for low in range(1, 255))
    return [next(a for a in everyone if slot_of(a, num) == slot) for _ in range(count)]


class _Fed(io.BytesIO):
    """What http.client wants of a socket."""

    def makefile(self, *_: object) -> Self:
        return self


def parse(data: bytes) -> Answer:
    """The one response in ``data``."""
    response = http.client.HTTPResponse(_Fed(data))  # type: ignore[arg-type]
    response.begin()
    return Answer(response.status, response.headers, response.read())


class Client:
    """One TCP connection that does as it is told. ``local``: the address it comes from."""

    def __init__(
        self, port: int, data: bytes = b"", *, local: str = "", timeout: float = 30.0
    ) -> None:
        source = (local, 0) if local else None
        self.sock = socket.create_connection(("127.0.0.1", port), timeout, source)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if data:
            self.send(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more, f"closed after {data!r}"
            data += more
        return data

    def rest(self) -> bytes:
        """All bytes until the server closes."""
        data = b""
        while more := self.sock.recv(65536):
            data += more
        return data

    def answer(self) -> Answer:
        """The response, read until it is complete (the connection stays open)."""
        response = http.client.HTTPResponse(self.sock)
        response.begin()
        return Answer(response.status, response.headers, response.read())

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Leave with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Crowd:
    """Clients who behave: each asks again and again, on a new connection, and notes what went
    wrong. ``server`` serves whoami; with ``proxy`` they have distinct X-Forwarded-For."""

    def __init__(self, server: Running, count: int = 20, *, proxy: bool = True) -> None:
        self.server = server
        self.proxy = proxy
        self.failures: list[str] = []
        self.answers = [0] * count
        self._may_run = threading.Event()
        self._end = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"client-{number}")
            for number in range(count)
        ]

    def _run(self, number: int) -> None:
        address = f"10.0.{number}.1"
        headers = {XFF: address} if self.proxy else {}
        slot = slot_of(address if self.proxy else "127.0.0.1", self.server.num)
        port = self.server.port
        while not self._end.is_set():
            self._may_run.wait()
            with self._lock:
                self._busy += 1
            if not self._may_run.is_set() or self._end.is_set():
                with self._lock:
                    self._busy -= 1
                continue
            try:
                answer = request(port, f"/{number}", headers)
                served = answer.status, answer.json()["worker"], answer.json()["path"]
                if served != (200, slot, f"/{number}"):
                    self.failures.append(f"client {number}: {served}")
            except Exception as error:
                self.failures.append(f"client {number}: {error!r}")
            finally:
                with self._lock:
                    self._busy -= 1
            self.answers[number] += 1
            self._end.wait(0.1)  # a pace at which two cores have time for the others

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._may_run.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Every one of them is served meanwhile, again and again, and without a failure. Before and
        after it they have no connection."""
        before = list(self.answers)
        self._may_run.set()
        try:
            yield
            wait_until(
                lambda: all(now > then + 1 for now, then in zip(self.answers, before, strict=True)),
                what="every well-behaved client was answered",
            )
        finally:
            self._may_run.clear()
            wait_until(lambda: not self._busy, what="all answers are there")
        assert not self.failures, self.failures[:5]
