"""The client manager across workers, over a bus in one process, and in patched processes."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import socketio

from sticky import cluster
from sticky.errors import StickyError
from tests.harness import ROOT, wait_until


class Manager(cluster.Manager):
    handled = 0

    def _handle_emit(self, message: Any) -> None:
        super()._handle_emit(message)
        self.handled += 1


class Worker(socketio.Server):
    """A server that writes down what it would have sent to whom."""

    def __init__(self, manager: Manager, client: str | None = None) -> None:
        self.sent: list[tuple[str, Any]] = []
        if client:
            manager.server = socketio.Server(async_mode="threading")  # only draws the session id
            manager.connect(client, "/")
        super().__init__(async_mode="threading", client_manager=manager)

    def _send_packet(self, eio_sid: str, packet: Any) -> None:
        self.sent.append((eio_sid, packet.data))

    def _send_eio_packet(self, eio_sid: str, packet: Any) -> None:
        text = packet.data
        data = json.loads(text[text.index("[") :]) if isinstance(text, str) else text
        self.sent.append((eio_sid, data))


class Bus:
    def __init__(self, size: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(size)]
        self.reading = [pair[0] for pair in pairs]
        self.writing = [pair[1] for pair in pairs]
        self.managers: list[Manager] = []

    def manager(self, own: int, **options: Any) -> Manager:
        siblings = [sock.fileno() for sock in self.writing]
        made = Manager(own=own, mailbox=self.reading[own].fileno(), siblings=siblings, **options)
        self.managers.append(made)
        return made

    def worker(self, own: int, client: str | None = None, **options: Any) -> Worker:
        """A worker; with ``client`` it has one before it reads its mail."""
        return Worker(self.manager(own, **options), client)

    def close(self) -> None:
        for sock in self.reading + self.writing:
            sock.shutdown(socket.SHUT_RDWR)  # also ends who waits for it in a thread
            sock.close()
        for manager in self.managers:
            if hasattr(manager, "thread"):
                manager.thread.join(10)
                assert not manager.thread.is_alive()
        wait_until(lambda: not [t for t in threading.enumerate() if "flush" in t.name], 10)
        for manager in self.managers:
            manager.close()


@pytest.fixture
def make_bus() -> Iterator[Callable[[int], Bus]]:
    made: list[Bus] = []

    def make(size: int) -> Bus:
        made.append(Bus(size))
        return made[-1]

    before = len(os.listdir("/proc/self/fd"))
    yield make
    for bus in made:
        bus.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_emit_reaches_the_clients_of_every_worker(make_bus: Callable[[int], Bus]) -> None:
    bus = make_bus(3)
    workers = [bus.worker(slot) for slot in range(3)]
    for slot, worker in enumerate(workers):
        worker.manager.connect(f"client{slot}", "/")
    workers[1].emit("news", {"a": 1})
    for slot, worker in enumerate(workers):
        wait_until(lambda worker=worker: worker.sent)
        assert worker.sent == [(f"client{slot}", ["news", {"a": 1}])]


def test_a_room_reaches_only_its_members_wherever_they_are(make_bus: Callable[[int], Bus]) -> None:
    bus = make_bus(2)
    here, there = bus.worker(0), bus.worker(1)
    here.manager.connect("outside", "/")
    member = there.manager.connect("member", "/")
    here.enter_room(member, "room")  # asked of the worker that does not hold the client
    wait_until(lambda: "room" in there.manager.rooms["/"])
    here.emit("news", 1, room="room")
    wait_until(lambda: there.sent)
    assert there.sent == [("member", ["news", 1])]
    assert here.sent == []


@pytest.mark.parametrize("size", [0, 50_000, 60_000, 200_000, 5_000_000])
def test_a_message_of_any_size_arrives_whole(make_bus: Callable[[int], Bus], size: int) -> None:
    bus = make_bus(2)
    here, there = bus.worker(0), bus.worker(1, "client")
    here.emit("news", "x" * size)
    here.emit("news", "after")
    wait_until(lambda: len(there.sent) == 2)
    assert there.sent == [("client", ["news", "x" * size]), ("client", ["news", "after"])]


def test_a_message_longer_than_the_buffer_of_the_bus_arrives(
    make_bus: Callable[[int], Bus],
) -> None:
    bus = make_bus(2)
    bus.writing[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    here, there = bus.worker(0), bus.worker(1, "client")
    for _ in range(50):
        here.emit("news", "x" * 20_000)
    wait_until(lambda: len(there.sent) == 50)
    assert here.manager.dropped == {}


def test_binary_data_survives_the_way(make_bus: Callable[[int], Bus]) -> None:
    bus = make_bus(2)
    here, there = bus.worker(0), bus.worker(1, "client")
    here.emit("news", b"\x00\xff")
    wait_until(lambda: len(there.sent) == 2)  # the event, then its attachment
    assert there.sent[1] == ("client", b"\x00\xff")


def test_a_callback_is_answered_to_the_worker_that_asked_and_to_no_other(
    make_bus: Callable[[int], Bus],
) -> None:
    bus = make_bus(3)
    asking, holding = bus.worker(0), bus.worker(1)  # nobody reads the mail of worker 2
    client = holding.manager.connect("client", "/")
    answers: list[Any] = []
    asking.emit("question", 1, to=client, callback=lambda *args: answers.append(args))
    wait_until(lambda: holding.sent)
    assert len(bus.reading[2].recv(100_000)) > 0  # the question
    holding.manager.trigger_callback(client, 1, ["answer"])
    wait_until(lambda: answers)
    assert answers == [("answer",)]
    with pytest.raises(BlockingIOError):
        bus.reading[2].recv(1, socket.MSG_DONTWAIT)


def test_a_sibling_that_does_not_read_costs_a_bounded_queue_and_holds_nobody(
    make_bus: Callable[[int], Bus], caplog: pytest.LogCaptureFixture
) -> None:
    bus = make_bus(3)
    here, there = bus.worker(0, queue_limit=100_000), bus.worker(1, "client")
    with caplog.at_level(logging.WARNING, "sticky.cluster"):
        for number in range(2000):
            here.emit("news", [number, "x" * 1000])
            wait_until(lambda number=number: len(there.sent) > number, interval=0.0001)
    stuck = here.manager._siblings[2]
    assert 0 < stuck.queued <= 100_000
    dropped = here.manager.dropped
    assert dropped.keys() == {2}
    assert 1000 < dropped[2] < 2000
    assert len([record for record in caplog.records if "worker 2" in record.message]) == 1

    # What was kept is the oldest, and it is delivered in order once the slot reads again.
    late = bus.worker(2, "late")
    wait_until(lambda: not stuck.queue)
    wait_until(lambda: len(late.sent) == 2000 - dropped[2])
    assert [data[1][0] for _, data in late.sent] == list(range(2000 - dropped[2]))


def test_a_message_too_large_for_the_queue_is_kept_if_the_queue_is_empty(
    make_bus: Callable[[int], Bus],
) -> None:
    bus = make_bus(2)
    here = bus.worker(0, queue_limit=10)
    for _ in range(1000):
        here.emit("news", "x" * 1000)
    sibling = here.manager._siblings[1]
    assert len(sibling.queue) == 1
    assert sibling.dropped > 0


def test_mail_is_read_before_there_is_a_client_who_would_be_told_old_news(
    make_bus: Callable[[int], Bus],
) -> None:
    bus = make_bus(2)
    here, there = bus.worker(0, queue_limit=10), bus.worker(1)
    for number in range(3000):
        here.emit("news", number)
        wait_until(lambda: not here.manager._siblings[1].queue, interval=0.0001)
    assert here.manager.dropped == {}
    wait_until(lambda: there.manager.handled == 3000)
    there._handle_eio_connect("client", {})  # what python-socketio does at a first connection
    there.manager.connect("client", "/")
    here.emit("news", "new")
    wait_until(lambda: ("client", ["news", "new"]) in there.sent)
    assert there.sent == [("client", ["news", "new"])]


def test_messages_for_a_process_that_has_ended_wait_for_its_successor(
    make_bus: Callable[[int], Bus],
) -> None:
    bus = make_bus(2)
    here = bus.worker(0)
    here.emit("news", 1)
    successor = bus.worker(1)
    successor.manager.connect("client", "/")
    here.emit("news", 2)
    wait_until(lambda: ("client", ["news", 2]) in successor.sent)


def test_what_is_no_json_is_passed_over(make_bus: Callable[[int], Bus]) -> None:
    bus = make_bus(2)
    here, there = bus.worker(0), bus.worker(1, "client")
    bus.writing[1].send(b"\xff{")
    here.emit("news", 1)
    wait_until(lambda: there.sent)


def test_no_fd_is_left_open_by_large_messages(make_bus: Callable[[int], Bus]) -> None:
    bus = make_bus(2)
    here, there = bus.worker(0), bus.worker(1, "client")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        here.emit("news", "x" * 100_000)
    wait_until(lambda: len(there.sent) == 20)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_outside_a_worker_the_manager_says_what_to_do() -> None:
    with pytest.raises(StickyError, match=r"sticky\.listen"):
        cluster.Manager()


def test_a_second_manager_in_one_worker_is_refused(make_bus: Callable[[int], Bus]) -> None:
    bus = make_bus(2)
    bus.worker(0)
    with pytest.raises(StickyError, match=r"one sticky\.cluster\.Manager per worker"):
        bus.worker(0)


PATCHED = """
import warnings
warnings.simplefilter("ignore")
{patch}
import select, socket, time
import socketio
from sticky.cluster import Manager

pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
mailboxes = [reading.fileno() for reading, _ in pairs]
siblings = [writing.fileno() for _, writing in pairs]
servers = []
for own in range(2):  # nobody reads the mail of worker 2
    manager = Manager(own=own, mailbox=mailboxes[own], siblings=siblings, queue_limit=50_000)
    servers.append(socketio.Server(async_mode="{mode}", client_manager=manager))
got = []
servers[1].manager.connect("client", "/")
servers[1]._send_eio_packet = lambda sid, packet: got.append(packet.data)

ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.005)
{mode}.spawn(tick)

deadline = time.monotonic() + 40
for number in range(3000):
    servers[0].emit("news", [number, "x" * (200_000 if number % 500 == 0 else 500)])
    if number % 50 == 0:
        {mode}.sleep(0.001)  # gevent waits for nothing at sleep(0)
while len(got) < 3000:
    assert time.monotonic() < deadline, len(got)
    {mode}.sleep(0.01)
assert servers[0].manager.dropped.keys() == {{2}}
quiet = len(ticks)
while len(ticks) < quiet + 10:  # the hub goes on while the readers wait for mail
    assert time.monotonic() < deadline
    {mode}.sleep(0.01)
print("READY")
"""


PATCHES = {
    "eventlet": "import eventlet; eventlet.monkey_patch()",
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
}


@pytest.mark.parametrize("mode", PATCHES)
def test_in_a_patched_process_reading_and_writing_are_cooperative(mode: str) -> None:
    pytest.importorskip(mode)
    program = PATCHED.format(mode=mode, patch=PATCHES[mode])
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "READY\n"), ended.stderr
