"""The master's own listeners: whatever a client does, it costs one connection for a while."""

from __future__ import annotations

import socket

import pytest

from sticky.master.desk import CLIENTS, LONGEST, PATIENCE, Desk

from .desk_kit import Loop

LARGE = b"x" * 5_000_000


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def desk(loop):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    desk = Desk(listener, answer, loop.clock, b"too long")
    desk.open(loop.register, loop.unregister)
    desk.address = listener.getsockname()
    yield desk
    desk.close()
    assert not loop.handlers


def answer(asked, sock):
    if not asked.endswith(b"\n"):
        return None
    return {b"large\n": LARGE, b"nothing\n": b""}.get(asked, asked.upper())


def connect(desk):
    return socket.create_connection(desk.address, timeout=10)


def ended(sock):
    sock.setblocking(False)
    try:
        return sock.recv(100) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_question_is_answered_and_the_connection_closed(loop, desk):
    with connect(desk) as client:
        assert loop.exchange(client, b"hello\n") == b"HELLO\n"
    loop.settle()
    assert len(loop.handlers) == 1  # the listener


def test_a_question_may_come_byte_by_byte(loop, desk):
    with connect(desk) as client:
        for byte in b"hello":
            client.sendall(bytes([byte]))
            loop.settle()
        assert loop.exchange(client, b"\n") == b"HELLO\n"


def test_what_is_not_to_be_answered_is_closed(loop, desk):
    with connect(desk) as client:
        assert loop.exchange(client, b"nothing\n") == b""


def test_a_question_that_is_too_long_is_said_so(loop, desk):
    with connect(desk) as client:
        assert loop.exchange(client, b"x" * (LONGEST + 100)) == b"too long"


def test_what_comes_behind_a_question_does_not_reset_the_answer(loop, desk):
    with connect(desk) as client:
        client.sendall(b"hello\n")
        loop.settle()
        assert loop.exchange(client, b"and more, " * 1000) == b"HELLO\n"


def test_a_long_answer_waits_for_its_reader_and_nobody_waits_for_that(loop, desk):
    with connect(desk) as slow, connect(desk) as other:
        slow.sendall(b"large\n")
        loop.settle()
        assert loop.exchange(other, b"hello\n") == b"HELLO\n"
        assert loop.exchange(slow, b"") == LARGE


@pytest.mark.parametrize("said", [b"", b"hel", b"large\n", b"hello\n"])
def test_who_takes_too_long_is_closed(loop, desk, said):
    """Silent, in mid-question, not reading the answer, not closing behind it."""
    with connect(desk) as client:
        client.sendall(said)
        loop.settle()
        loop.now += PATIENCE - 0.1
        desk.tick(loop.now)
        assert len(loop.handlers) == 2
        loop.now += 0.1
        desk.tick(loop.now)
        assert len(loop.handlers) == 1


def test_when_there_are_too_many_the_oldest_makes_room(loop, desk):
    silent = [connect(desk) for _ in range(CLIENTS + 3)]
    loop.settle()
    assert len(loop.handlers) == CLIENTS + 1
    assert [ended(client) for client in silent] == [True] * 3 + [False] * CLIENTS
    with connect(desk) as client:
        assert loop.exchange(client, b"hello\n") == b"HELLO\n"
    for client in silent:
        client.close()


def test_a_client_that_leaves_is_forgotten(loop, desk):
    for said in (b"", b"hel", b"large\n"):
        with connect(desk) as client:
            client.sendall(said)
            loop.settle()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        loop.settle()
        assert len(loop.handlers) == 1


def test_without_a_descriptor_it_does_not_spin_and_goes_on_later(loop):
    class Starved:
        """A listener that cannot accept for a while."""

        starved = True

        def __init__(self, sock):
            self.sock = sock
            self.fileno, self.close = sock.fileno, sock.close

        def accept(self):
            if self.starved:
                raise OSError(24, "Too many open files")
            return self.sock.accept()

    real = socket.create_server(("127.0.0.1", 0))
    real.setblocking(False)
    listener = Starved(real)
    desk = Desk(listener, answer, loop.clock)
    desk.open(loop.register, loop.unregister)
    with socket.create_connection(real.getsockname()) as client:
        loop.settle()
        desk.tick(loop.now)
        loop.settle()
        listener.starved = False
        desk.tick(loop.now)
        assert loop.exchange(client, b"hello\n") == b"HELLO\n"
    desk.close()
