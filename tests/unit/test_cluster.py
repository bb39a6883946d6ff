"""The client managers across workers, which are all in this process, and in patched processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import socketio

from sticky import cluster, events
from sticky.cluster import Place, UnansweredError
from sticky.errors import StickyError
from sticky.mail import Mail
from sticky.mailbox import EVENTS
from tests.harness import ROOT, wait_until

from .mail_kit import Office, raw


class Noting:
    """Before a server's class: it writes down what it would have sent to whom."""

    manager: Any
    manager_initialized: bool

    def begin(self) -> None:
        """What python-socketio does at the first connection."""
        if not self.manager_initialized:
            self.manager_initialized = True
            self.manager.initialize()


def content(packet: Any) -> Any:
    text = packet.data
    return json.loads(text[text.index("[") :]) if isinstance(text, str) else text


class Worker(Noting, socketio.Server):
    def __init__(self, mail: Mail) -> None:
        self.sent: list[tuple[str, Any]] = []
        manager = cluster.Manager(mail=mail)
        super().__init__(async_mode="threading", client_manager=manager)

    def client(self, name: str) -> str:
        """One more client, as python-socketio has it; its session id."""
        self.begin()
        return self.manager.connect(name, "/")

    def _send_packet(self, eio_sid: str, packet: Any) -> None:
        self.sent.append((eio_sid, packet.data))

    def _send_eio_packet(self, eio_sid: str, packet: Any) -> None:
        self.sent.append((eio_sid, content(packet)))


class AsyncWorker(Noting, socketio.AsyncServer):
    def __init__(self, mail: Mail) -> None:
        self.sent: list[tuple[str, Any]] = []
        manager = cluster.AsyncManager(mail=mail)
        super().__init__(async_mode="asgi", client_manager=manager)

    async def client(self, name: str) -> str:
        self.begin()
        return await self.manager.connect(name, "/")

    async def _send_packet(self, eio_sid: str, packet: Any) -> None:
        self.sent.append((eio_sid, packet.data))

    async def _send_eio_packet(self, eio_sid: str, packet: Any) -> None:
        self.sent.append((eio_sid, content(packet)))


class Bus(Office):
    """Workers with a server each."""

    def __init__(self) -> None:
        super().__init__()
        self.servers: list[Any] = []

    def worker(self, slot: int, client: str | None = None, **options: Any) -> Worker:
        """One more; with ``client`` it has one."""
        worker = Worker(mail := self.join(slot, attend=False, **options))
        self.attend(mail)
        self.servers.append(worker)
        if client:
            worker.client(client)
        return worker

    def workers(self, num: int) -> list[Worker]:
        """So many, with a client each: "client0", "client1", ..."""
        return [self.worker(slot, f"client{slot}") for slot in range(num)]

    def close(self) -> None:
        for server in self.servers:
            server.manager.close()
            if hasattr(server.manager, "thread") and isinstance(
                server.manager.thread, threading.Thread
            ):
                server.manager.thread.join(10)
        super().close()


@pytest.fixture
def bus():
    made = Bus()
    yield made
    made.close()


def test_an_emit_reaches_the_clients_of_every_worker(bus: Bus) -> None:
    workers = bus.workers(3)
    workers[1].emit("news", {"a": 1})
    for slot, worker in enumerate(workers):
        wait_until(lambda worker=worker: worker.sent)
        assert worker.sent == [(f"client{slot}", ["news", {"a": 1}])]


def test_a_room_reaches_only_its_members_wherever_they_are(bus: Bus) -> None:
    here, there = bus.worker(0, "outside"), bus.worker(1)
    member = there.client("member")
    here.enter_room(member, "room")  # asked of the worker that does not hold the client
    wait_until(lambda: "room" in there.manager.rooms["/"])
    here.emit("news", 1, room="room")
    wait_until(lambda: there.sent)
    assert there.sent == [("member", ["news", 1])]
    assert here.sent == []
    here.leave_room(member, "room")
    wait_until(lambda: "room" not in there.manager.rooms["/"])
    here.enter_room(member, "room")
    wait_until(lambda: "room" in there.manager.rooms["/"])
    here.close_room("room")
    wait_until(lambda: "room" not in there.manager.rooms["/"])


def test_one_who_is_to_be_skipped_is_skipped_wherever_he_is(bus: Bus) -> None:
    here, there = bus.workers(2)
    skipped = there.client("skipped")
    here.emit("news", 1, skip_sid=skipped)
    here.emit("end")
    wait_until(lambda: len(there.sent) == 3)
    assert there.sent[0] == ("client1", ["news", 1])
    assert ("skipped", ["news", 1]) not in there.sent


@pytest.mark.parametrize("size", [0, 50_000, 60_000, 5_000_000])
def test_a_message_of_any_size_arrives_whole(bus: Bus, size: int) -> None:
    here, there = bus.workers(2)
    here.emit("news", "x" * size)
    here.emit("news", "after")
    wait_until(lambda: len(there.sent) == 2)
    assert there.sent == [("client1", ["news", "x" * size]), ("client1", ["news", "after"])]


def test_binary_data_survives_the_way(bus: Bus) -> None:
    here, there = bus.workers(2)
    here.emit("news", b"\x00\xff")
    wait_until(lambda: len(there.sent) == 2)  # the event, then its attachment
    assert there.sent[1] == ("client1", b"\x00\xff")


def test_a_callback_is_answered_once_to_the_worker_that_asked_and_to_no_other(bus: Bus) -> None:
    asking, holding = bus.worker(0, "nobody"), bus.worker(1)
    third = bus.join(2, attend=False)
    third.subscribe(EVENTS, lambda payload, sender: None)
    client = holding.client("client")
    answers: list[Any] = []
    asking.emit("question", 1, to=client, callback=lambda *args: answers.append(args))
    wait_until(lambda: holding.sent)
    assert len(raw(third)) == 1  # the question
    holding.manager.trigger_callback(client, 1, ["answer"])
    wait_until(lambda: answers)
    holding.manager.trigger_callback(client, 1, ["again"])
    asking.emit("end")
    wait_until(lambda: len(holding.sent) == 2)
    assert answers == [("answer",)]
    assert b"callback" not in b"".join(raw(third))


def test_a_client_is_disconnected_by_another_worker(bus: Bus) -> None:
    here, there = bus.worker(0, "nobody"), bus.worker(1)
    client = there.client("client")
    ended = []
    there.on("disconnect", lambda sid, reason: ended.append(sid))
    here.disconnect(client)
    wait_until(lambda: ended and not there.manager.is_connected(client, "/"))
    assert ended == [client]


def test_a_worker_without_clients_is_sent_nothing(bus: Bus) -> None:
    here, there = bus.worker(0, "client"), bus.worker(1)
    here.emit("news", "old")
    assert bus.board.process(here.manager._mail.sender.row)["mail_sent"] == 0
    there.client("late")
    here.emit("news", "new")
    wait_until(lambda: there.sent)
    assert there.sent == [("late", ["news", "new"])]


def test_both_processes_of_a_slot_hear(bus: Bus) -> None:
    here, before, successor = (
        bus.worker(0, "a"),
        bus.worker(1, "b"),
        bus.worker(1, "c"),
    )
    here.emit("news", 1)
    for worker, client in ((before, "b"), (successor, "c")):
        wait_until(lambda worker=worker: worker.sent)
        assert worker.sent == [(client, ["news", 1])]


def test_a_worker_that_does_not_read_holds_nobody(bus: Bus) -> None:
    stopped = bus.join(2, attend=False)
    stopped.subscribe(EVENTS, lambda payload, sender: None)
    here, there = bus.worker(0, "client", limit=100_000), bus.worker(1, "client")
    for number in range(3000):
        here.emit("news", [number, "x" * 1000])
        if number % 50 == 49:
            wait_until(lambda number=number: len(there.sent) > number, interval=0.001)
    assert [data[1][0] for _, data in there.sent] == list(range(3000))
    assert here.manager.dropped.keys() == {2}


def test_what_is_no_event_is_passed_over(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    here, there = bus.workers(2)
    for payload in (b"\xff{", b"[1]", b'"text"', b'{"method": "no such"}'):
        here.manager._mail.post(EVENTS, payload)
    here.emit("news", 1)
    wait_until(lambda: there.sent)
    assert caplog.text.count("cannot be read") == 3


def test_outside_a_worker_the_manager_says_what_to_do() -> None:
    for manager in (cluster.Manager, cluster.AsyncManager):
        with pytest.raises(StickyError, match=r"sticky\.listen"):
            manager()


def test_a_second_manager_in_one_worker_is_refused(bus: Bus) -> None:
    worker = bus.worker(0)
    with pytest.raises(StickyError, match=r"one sticky\.cluster\.Manager per worker"):
        Worker(worker.manager._mail)


MESSAGES = (
    {
        "method": "emit",
        "event": "news",
        "data": [{"a": [1, None]}],
        "binary": False,
        "namespace": "/",
        "room": None,
        "skip_sid": ["a", "b"],
        "callback": None,
    },
    {
        "method": "emit",
        "event": "news",
        "data": [1],
        "binary": False,
        "namespace": "/x",
        "room": "r",
        "skip_sid": None,
        "callback": ["r", "/x", 7],
        "host_id": "1.abc",
    },
    {"method": "close_room", "room": "r", "namespace": "/", "host_id": "1.abc"},
)


@pytest.mark.parametrize("message", MESSAGES)
def test_what_managers_say_survives_the_way(message: dict[str, Any]) -> None:
    found = events.unpack(events.pack(message, json), json)
    assert {**found, "callback": found.get("callback")} == {
        **message,
        "callback": message.get("callback"),
    }


# -- questions ------------------------------------------------------------------------------------


def test_participants_are_counted_over_all_workers(bus: Bus) -> None:
    workers = [*bus.workers(3), bus.worker(3)]
    workers[1].enter_room(workers[1].client("more"), "room")
    workers[2].enter_room(workers[2].client("more"), "room")
    for worker in workers:
        assert worker.manager.participants("room") == 2
        assert worker.manager.participants() == 5
        assert worker.manager.participants("no such room") == 0
        assert worker.manager.participants(namespace="/other") == 0


def test_who_is_connected_is_known_with_the_worker_that_has_it(bus: Bus) -> None:
    workers = [bus.worker(slot) for slot in range(3)]
    sids = [worker.client("client") for worker in workers]
    pids = [bus.board.pid(worker.manager._mail.sender.row) for worker in workers]
    assert pids == [0, 0, 0]  # none of them serves
    found = workers[1].manager.connected()
    pid = workers[0].manager._mail.sender.pid
    assert found == {sid: Place(slot, pid) for slot, sid in enumerate(sids)}


def test_server_side_events_reach_the_other_workers_and_bring_replies(bus: Bus) -> None:
    workers = [bus.worker(slot) for slot in range(3)]
    heard: list[Any] = []
    for slot, worker in enumerate(workers):

        @worker.manager.on_server_event("sum")
        def add(data: list[int], slot: int = slot) -> list[int]:
            heard.append(slot)
            return [slot, sum(data)]

    replies = workers[0].manager.server_side_emit("sum", [1, 2, 3], timeout=10)
    assert {place.worker: reply for place, reply in replies.items()} == {1: [1, 6], 2: [2, 6]}
    assert sorted(heard) == [1, 2]
    assert workers[0].manager.server_side_emit("sum", [1]) == {}
    wait_until(lambda: sorted(heard) == [1, 1, 2, 2])


def test_who_cannot_answer_is_named_with_the_reason(bus: Bus) -> None:
    workers = [bus.worker(slot) for slot in range(4)]

    def fail(data: Any) -> None:
        raise ValueError("no")

    workers[1].manager.on_server_event("ask", fail)
    workers[2].manager.on_server_event("ask", lambda data: object())  # which JSON cannot carry
    with pytest.raises(UnansweredError) as caught:
        workers[0].manager.server_side_emit("ask", timeout=10)
    failed = {place.worker: why for place, why in caught.value.failed.items()}
    assert failed.keys() == {1, 2, 3}
    assert failed[1] == "ValueError('no')"
    assert "not JSON serializable" in failed[2]
    assert "on_server_event" in failed[3]
    assert caught.value.missing == []


def test_who_does_not_answer_in_time_is_named_and_the_others_say_what_they_know(bus: Bus) -> None:
    here, _, stopped = bus.workers(3)
    hub, _ = bus._hubs[id(stopped.manager._mail)]
    hold = threading.Event()
    hub.call(lambda: hold.wait(20))
    try:
        with pytest.raises(UnansweredError, match=r"worker 2 \(pid \d+\) has not") as caught:
            here.manager.participants(timeout=0.3)
    finally:
        hold.set()
    assert [place.worker for place in caught.value.missing] == [2]
    assert {place.worker: n for place, n in caught.value.answers.items()} == {1: 1}
    assert here.manager.participants() == 3


def test_who_ends_is_not_waited_for(bus: Bus) -> None:
    here, there = bus.workers(2)
    asked = []

    @there.manager.on_server_event("never")
    def never(data: Any) -> None:
        asked.append(data)
        leaves.wait(20)

    leaves, found = threading.Event(), []

    def ask() -> None:
        try:
            here.manager.server_side_emit("never", 1, timeout=60)
        except UnansweredError as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: asked)
    bus.servers.remove(there)
    there.manager.close()
    bus.leave(there.manager._mail)
    thread.join(20)
    leaves.set()
    assert [place.worker for place in found[0].missing] == [1]


# -- asyncio --------------------------------------------------------------------------------------


def in_asyncio(bus: Bus, num: int, body: Callable[[list[AsyncWorker]], Any]) -> None:
    async def main() -> None:
        workers = []
        for slot in range(num):
            mail = bus.join(slot, attend=False)
            workers.append(AsyncWorker(mail))
            bus.attend_in_asyncio(mail)
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(30):
                await body(workers)
        finally:
            for worker in workers:
                worker.manager.close()
                bus.leave(worker.manager._mail)
            await asyncio.sleep(0)

    asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_in_asyncio_each_operation_reaches_the_other_workers(bus: Bus) -> None:
    async def body(workers: list[AsyncWorker]) -> None:
        here, there, third = workers
        sids = [await worker.client(f"client{i}") for i, worker in enumerate(workers)]
        await here.emit("news", {"a": 1}, skip_sid=sids[2])
        await until(lambda: there.sent)
        assert there.sent == [("client1", ["news", {"a": 1}])]
        assert third.sent == []
        await here.enter_room(sids[1], "room")
        await until(lambda: "room" in there.manager.rooms["/"])
        await third.emit("binary", b"\x00\xff", room="room")
        await until(lambda: len(there.sent) == 3)
        assert there.sent[2] == ("client1", b"\x00\xff")
        answers: list[Any] = []
        await here.emit("question", to=sids[1], callback=lambda *args: answers.append(args))
        await until(lambda: len(there.sent) == 4)
        await there.manager.trigger_callback(sids[1], 1, ["answer"])
        await there.manager.trigger_callback(sids[1], 1, ["again"])
        await until(lambda: answers)
        assert answers == [("answer",)]
        await here.leave_room(sids[1], "room")
        await until(lambda: "room" not in there.manager.rooms["/"])
        await here.enter_room(sids[1], "room")
        await until(lambda: "room" in there.manager.rooms["/"])
        await here.close_room("room")
        await until(lambda: "room" not in there.manager.rooms["/"])
        await here.disconnect(sids[1])
        await until(lambda: not there.manager.is_connected(sids[1], "/"))

    in_asyncio(bus, 3, body)


def test_in_asyncio_the_order_is_kept(bus: Bus) -> None:
    async def body(workers: list[AsyncWorker]) -> None:
        here, there = workers
        await here.client("one")
        await there.client("other")
        for number in range(3000):
            await here.emit("news", number)
            if number % 500 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(there.sent) == 3000)
        assert [data[1] for _, data in there.sent] == list(range(3000))

    in_asyncio(bus, 2, body)


def test_in_asyncio_questions_are_answered(bus: Bus) -> None:
    async def body(workers: list[AsyncWorker]) -> None:
        sids = [await worker.client("client") for worker in workers]
        for worker in workers:
            await worker.enter_room(sids[workers.index(worker)], "room")

            @worker.manager.on_server_event("twice")
            async def twice(data: int) -> int:
                await asyncio.sleep(0)
                return 2 * data

        manager = workers[0].manager
        assert await manager.participants("room") == 3
        assert (await manager.connected()).keys() == set(sids)
        replies = await manager.server_side_emit("twice", 21, timeout=10)
        assert sorted(replies.values()) == [42, 42]
        with pytest.raises(UnansweredError, match="on_server_event"):
            await manager.server_side_emit("no such", timeout=10)
        assert await manager.server_side_emit("twice", 1) == {}

    in_asyncio(bus, 3, body)


# -- patched processes ----------------------------------------------------------------------------

PATCHED = """
import warnings
warnings.simplefilter("ignore")
import sticky.worker.kernel
{patch}
import time
import socketio
from sticky.cluster import Manager
from sticky.worker.hub import Hub
from sticky.worker.mailing import HubWaiter
from tests.unit.mail_kit import Office

office, servers, deadline = Office(), [], time.monotonic() + 40

def turn(hub):
    while True:
        hub.turn()
        {mode}.sleep(0.001)

for slot in range(3):
    mail = office.join(slot, attend=False, limit=50_000 if slot == 0 else 1 << 23)
    server = socketio.Server(async_mode="{mode}", client_manager=Manager(mail=mail))
    server.manager.initialize()
    server.manager.connect("client", "/")
    servers.append(server)
    hub = Hub()
    mail.attend(HubWaiter(hub))
    if slot < 2:  # nobody reads the mail of worker 2
        {mode}.spawn(turn, hub)
got = []
servers[1]._send_eio_packet = lambda sid, packet: got.append(packet.data)
servers[0]._send_eio_packet = lambda sid, packet: None
ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.005)
{mode}.spawn(tick)
for number in range(3000):
    servers[0].emit("news", [number, "x" * (200_000 if number % 500 == 0 else 500)])
    if number % 50 == 0:
        {mode}.sleep(0.002)
while len(got) < 3000:
    assert time.monotonic() < deadline, len(got)
    {mode}.sleep(0.01)
assert servers[0].manager.dropped.keys() == {{2}}, servers[0].manager.dropped
quiet = len(ticks)
while len(ticks) < quiet + 10:  # the hub goes on while the readers wait for mail
    assert time.monotonic() < deadline
    {mode}.sleep(0.01)
print("READY")
"""


PATCHES = {
    "eventlet": "import eventlet; eventlet.monkey_patch()",
    "gevent": "import gevent.monkey; gevent.monkey.patch_all(); import gevent",
}


@pytest.mark.parametrize("mode", PATCHES)
def test_in_a_patched_process_reading_and_writing_are_cooperative(mode: str) -> None:
    pytest.importorskip(mode)
    program = PATCHED.format(mode=mode, patch=PATCHES[mode])
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "READY\n"), ended.stderr
