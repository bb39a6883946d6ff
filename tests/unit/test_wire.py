"""The transport of ASGI connections, over socket pairs: what is read, kept and waited for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sticky import board
from sticky.answers import refusals
from sticky.core import Head
from sticky.options import Options
from sticky.worker.boundary import CLOSED, RESTING, SERVING
from sticky.worker.http1 import date_line
from sticky.worker.hub import Hub
from sticky.worker.wire import HIGH, LOW, AsgiWire

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
LARGE = b"x" * (4 << 20)


class Exchange:
    """What is served: it takes note of what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.told.append(name)


class Service(SimpleNamespace):
    """As much of a service as a wire needs."""

    def __init__(self) -> None:
        options = Options.make()
        super().__init__(
            options=options,
            max_head_size=65536,
            looks=False,
            sync=SimpleNamespace(wanted=False),
            closing=False,
            keeps=True,
            refusals=refusals(options),
            hub=Hub(),
            loop=asyncio.new_event_loop(),
            cells=[0] * 32,
            link=SimpleNamespace(paused=False),
            draining=SimpleNamespace(passes_on=False, finishing=False),
            heads=[],
            gone=[],
        )

    def count(self, cell: int, by: int = 1) -> None:
        self.cells[cell] += by

    def start(self, wire: AsgiWire, head: Head) -> Exchange:
        self.heads.append(head)
        return Exchange()

    def closed(self, wire: AsgiWire) -> None:
        self.gone.append(wire)

    def turn(self) -> None:
        self.hub.turn(0.0)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.hub.close_after_fork()
    service.loop.close()


@pytest.fixture
def pair(service: Service) -> Iterator[tuple[AsgiWire, socket.socket]]:
    """A wire, and its client."""
    ours, client = socket.socketpair()
    ours.setblocking(False)
    client.settimeout(10)
    wire: Any = AsgiWire(service, ours.detach(), "")  # type: ignore[arg-type]
    yield wire, client
    wire.close()
    client.close()


def told(wire: AsgiWire) -> list[str]:
    exchange: Any = wire.exchange
    told: list[str] = exchange.told
    return told


def answer(wire: AsgiWire, body: bytes = b"ok") -> None:
    wire.write(wire.http.answer(200, [], date_line(1), size=len(body)) + wire.http.data(body))
    wire.complete()


def read_all(client: socket.socket, service: Service, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += client.recv(1 << 20)
        service.turn()
    return data


def test_a_connection_of_one_request_is_never_registered(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    client.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    wire.begin(b"")
    assert wire.state == SERVING
    answer(wire)
    assert (wire.state, wire.registered) == (CLOSED, False)
    assert client.recv(1000).endswith(b"ok")
    assert service.gone == [wire]


def test_a_kept_one_is_registered_once_and_served_again(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(REQUEST)
    for count in (1, 2, 3):
        assert len(service.heads) == count
        answer(wire)
        assert (wire.state, wire.registered) == (RESTING, True)
        client.sendall(REQUEST)
        service.turn()


def test_it_counts_until_the_app_has_its_first_request(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, _ = pair
    wire.begin(REQUEST * 2)
    assert service.cells[board.NOT_BEGUN] == 1
    wire.begun()
    assert service.cells[board.NOT_BEGUN] == 0
    answer(wire)
    assert service.cells[board.NOT_BEGUN] == 0


def test_what_nobody_waits_for_is_not_read(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(REQUEST)
    wire.watch_quietly()
    client.sendall(REQUEST)
    service.turn()
    assert wire.http.unread == b""
    answer(wire)
    assert len(service.heads) == 2


def test_a_body_is_read_when_it_is_asked_for(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(POST)
    assert wire.body() == b""
    assert wire.registered
    client.sendall(b"he")
    service.turn()
    assert told(wire) == ["arrived"]
    assert wire.body() == b"he"
    client.sendall(b"llo" + REQUEST)
    service.turn()
    assert wire.body() == b"llo"
    assert wire.http.body_is_over
    assert wire.http.unread == REQUEST


def test_a_client_that_leaves_in_mid_body_is_lost(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(POST + b"he")
    assert wire.body() == b"he"
    exchange: Any = wire.exchange
    client.close()
    assert wire.body() == b""
    assert wire.state == CLOSED
    assert exchange.told == ["gone"]
    assert service.cells[board.CLIENT_LEFT] == 1


def test_a_client_that_closes_its_side_is_announced(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(REQUEST)
    wire.watch_quietly()
    client.shutdown(socket.SHUT_WR)
    service.turn()
    assert wire.ended
    assert told(wire) == ["arrived"]
    answer(wire)
    assert client.recv(1000).endswith(b"ok")
    service.turn()
    assert wire.state == CLOSED


def test_what_the_client_does_not_take_is_kept_and_the_app_waits(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(REQUEST)
    wire.write(LARGE)
    assert wire.full
    assert wire.out is not None
    assert len(wire.out) > HIGH
    waits = service.loop.create_task(wire.drain())
    received = 0
    while not waits.done():
        assert wire.out is not None
        received += len(client.recv(1 << 20))
        service.turn()
        service.loop.run_until_complete(asyncio.sleep(0))
    assert wire.out is None or len(wire.out) <= LOW
    assert read_all(client, service, len(LARGE) - received) is not None
    assert wire.out is None
    assert not wire.full


def test_a_waiting_app_goes_on_when_its_client_is_lost(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(REQUEST)
    wire.write(LARGE)
    waits = service.loop.create_task(wire.drain())
    client.close()
    service.turn()
    service.loop.run_until_complete(waits)
    assert wire.state == CLOSED


def test_the_next_request_begins_when_the_answer_has_left(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(REQUEST * 2)
    answer(wire, LARGE)
    assert len(service.heads) == 1
    assert read_all(client, service, len(LARGE)).startswith(b"HTTP/1.1 200")
    while len(service.heads) == 1:
        client.recv(1 << 20)
        service.turn()
    assert wire.state == SERVING


def test_it_is_closed_when_the_answer_has_left(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(b"GET / HTTP/1.0\r\n\r\n")
    answer(wire, LARGE)
    assert wire.state == SERVING
    data = b""
    while block := client.recv(1 << 20):
        data += block
        service.turn()
    assert data.endswith(LARGE)
    assert wire.state == CLOSED


def test_a_client_that_takes_nothing_has_its_time(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    wire.begin(REQUEST)
    before = time.monotonic()
    answer(wire, LARGE)
    limit = service.options.write_timeout
    assert before + limit <= wire.due <= time.monotonic() + limit
    wire.late(wire.due - 1)
    assert wire.state == SERVING
    due = wire.due
    client.recv(1 << 20)
    service.turn()
    assert wire.due > due, "there is progress"
    wire.late(wire.due)
    assert wire.state == CLOSED
    assert service.cells[board.WRITE_TIMEOUTS] == 1


def test_a_body_that_does_not_come_is_overdue_and_the_answer_is_not(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, _ = pair
    wire.begin(POST)
    wire.write(LARGE)
    first = wire.due
    wire.read_by(first - 1)
    assert wire.due == first - 1
    wire.late(first - 1)
    assert told(wire) == ["overdue"]
    assert wire.due == first


def test_a_socket_that_is_no_http_any_more_is_read_by_the_loop(
    service: Service, pair: tuple[AsgiWire, socket.socket]
) -> None:
    wire, client = pair
    heard: list[bytes] = []
    wire.begin(REQUEST + b"ahead")
    assert wire.upgrade() == b"ahead"
    wire.read_with(lambda: heard.append(wire.sock.recv(100)))
    assert not wire.registered
    client.sendall(b"frame")
    while not heard:
        service.loop.run_until_complete(asyncio.sleep(0))
    wire.write(LARGE)
    received = 0
    while received < len(LARGE):
        with contextlib.suppress(BlockingIOError):
            received += len(client.recv(1 << 20, socket.MSG_DONTWAIT))
        service.loop.run_until_complete(asyncio.sleep(0))
    assert wire.out is None
    wire.end()
    assert wire.state == CLOSED
