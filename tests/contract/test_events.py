"""What workers tell each other: Socket.IO events, questions, sticky.bus; and another process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import socketio

from tests.harness import ROOT, Kind, Running, stop_process, wait_until
from tests.process.clients import XFF

WORKERS = 3


class Client:
    """A client of some worker: what it does, and what it was told.

    It is asyncio's, in a loop of its own: python-engineio's other one handles each packet in a
    thread of its own, and so not in their order.

    Attributes:
        worker, pid: who serves it.
        got: events, with their data, in the order in which they came.
    """

    def __init__(self, running: Running, address: str) -> None:
        self.got: list[tuple[str, Any]] = []
        self.sio = socketio.AsyncClient(reconnection=False, handle_sigint=False)
        self.sio.on("*", lambda event, data=None: self.got.append((event, data)))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        @self.sio.on("question")
        def question(data: Any) -> str:
            self.got.append(("question", data))
            return f"answer of {self.sio.get_sid()}"

        self._wait(
            self.sio.connect(
                f"http://127.0.0.1:{running.port}", transports=["websocket"], headers={XFF: address}
            )
        )
        self.sid = self.sio.get_sid()
        self.worker, self.pid = self("where")

    def __call__(self, event: str, *arguments: Any) -> Any:
        """Have its worker do something; what it says."""
        return self._wait(self.sio.call(event, arguments or None, timeout=60))

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(90)

    def events(self, name: str) -> list[Any]:
        return [data for event, data in self.got if event == name]

    def hears(self, name: str, data: Any) -> None:
        wait_until(lambda: data in self.events(name), what=f"{self.worker} hears {name} {data}")

    def close(self) -> None:
        self._wait(self.sio.disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


def one_for_each(running: Running, opened: ExitStack, num: int = WORKERS) -> list[Client]:
    """A client of each worker, in order."""
    found: dict[int, Client] = {}
    for number in range(1, 250):
        client = Client(running, f"198.51.100.{number}")
        if client.worker in found:
            client.close()
        else:
            found[client.worker] = client
            opened.callback(client.close)
        if len(found) == num:
            return [found[worker] for worker in sorted(found)]
    raise AssertionError(f"only of workers {sorted(found)}")


def app_of(kind: Kind) -> str:
    return "tests.events_apps:events" + ("_async" if kind.interface == "asgi" else "")


@pytest.fixture(scope="module")
def running(kind: Kind) -> Iterator[Running]:
    with kind.serve(app_of(kind), num=WORKERS, proxy=True) as running:
        yield running


@pytest.fixture
def clients(running: Running) -> Iterator[list[Client]]:
    with ExitStack() as opened:
        yield one_for_each(running, opened)


def emit(client: Client, event: str, data: Any = 1, **options: Any) -> None:
    client("emit", {"event": event, "data": data, **options})


def end(clients: list[Client], by: Client) -> None:
    """Whatever was emitted by this one's worker before has come."""
    token = uuid.uuid4().hex
    emit(by, "end", token)
    for client in clients:
        client.hears("end", token)


def test_each_operation_reaches_the_clients_of_the_other_workers(clients: list[Client]) -> None:
    first, second, third = clients
    emit(first, "all", {"a": [1, None, "ä"]})
    emit(first, "binary", b"\x00\xff")
    emit(first, "one", to=third.sid)
    emit(first, "others", skip_sid=second.sid)
    emit(first, "few", skip_sid=[first.sid, second.sid])
    end(clients, first)
    assert [client.events("all") for client in clients] == [[{"a": [1, None, "ä"]}]] * 3
    assert [client.events("binary") for client in clients] == [[b"\x00\xff"]] * 3
    assert [len(client.events("one")) for client in clients] == [0, 0, 1]
    assert [len(client.events("others")) for client in clients] == [1, 0, 1]
    assert [len(client.events("few")) for client in clients] == [0, 0, 1]

    first("enter", second.sid, "room")
    first("enter", third.sid, "room")
    wait_until(lambda: first("participants", "room", 20) == 2)
    emit(first, "room", room="room")
    end(clients, first)
    assert [len(client.events("room")) for client in clients] == [0, 1, 1]
    first("leave", second.sid, "room")
    wait_until(lambda: first("participants", "room", 20) == 1)
    emit(first, "left", room="room")
    end(clients, first)
    assert [len(client.events("left")) for client in clients] == [0, 0, 1]
    second("close", "room")
    wait_until(lambda: first("participants", "room", 20) == 0)


def test_an_answer_comes_once_to_the_worker_that_has_asked(clients: list[Client]) -> None:
    first, second, third = clients
    first("ask", third.sid)
    answer = [f"answer of {third.sid}"]
    wait_until(lambda: answer in first("answered"))
    end(clients, first)
    assert first("answered").count(answer) == 1
    assert answer not in second("answered")
    assert answer not in third("answered")


def test_another_worker_disconnects_a_client(running: Running) -> None:
    with ExitStack() as opened:
        first, second, third = one_for_each(running, opened)
        first("end", third.sid)
        wait_until(lambda: not third.sio.connected)
        assert third.sid not in first("connected")
        assert second.sio.connected


def test_questions_are_answered_by_all_workers(clients: list[Client]) -> None:
    first, second, _ = clients
    for client in clients:
        client("enter", client.sid, "questions")
    assert [client("participants", "questions", 20) for client in clients] == [3, 3, 3]
    found = second("connected")
    assert [found[client.sid] for client in clients] == [[c.worker, c.pid] for c in clients]
    expected = [[client.worker, client.pid, 42] for client in clients if client is not first]
    assert sorted(first("twice", 21)) == expected


def test_what_is_published_reaches_the_subscribers_of_every_worker(clients: list[Client]) -> None:
    for client in clients:
        client("publish", f"of {client.sid}")
    for client in clients:
        expected = [[c.worker, c.pid, f"of {c.sid}"] for c in clients]
        wait_until(
            lambda client=client, wanted=expected: all(
                entry in client("published") for entry in wanted
            )
        )
        found = client("published")
        assert all(found.count(entry) == 1 for entry in expected)


EMITTER = """
import sys
import sticky
with sticky.emitter(eval(sys.argv[1])) as events:
    events.emit("outside", {"a": 1}, room=sys.argv[2])
    events.emit("binary", b"\\x00", to=sys.argv[3])
    events.leave_room(sys.argv[3], "/", sys.argv[2])
    events.emit("again", 1, room=sys.argv[2])
    events.enter_room(sys.argv[3], "/", "other")
    events.close_room(sys.argv[2])
    events.disconnect(sys.argv[4])
assert not {"eventlet", "gevent"} & sys.modules.keys()
"""


def test_another_process_emits_to_the_clients_of_a_running_server(running: Running) -> None:
    with ExitStack() as opened:
        first, second, third = clients = one_for_each(running, opened)
        for client in clients:
            client("enter", client.sid, "emitter")
        for server in (running.master_pid, f"127.0.0.1:{running.port}"):
            program = [sys.executable, "-c", EMITTER, repr(server), "emitter", first.sid, third.sid]
            subprocess.run(program, cwd=ROOT, check=True, timeout=60)
            for client in clients[:2]:
                client.hears("outside", {"a": 1})
            first.hears("binary", b"\x00")
            second.hears("again", 1)
            wait_until(lambda: second("participants", "emitter", 20) == 0)
            assert second("participants", "other", 20) == 1
            wait_until(lambda: not third.sio.connected)
            assert first.events("again") == []
            for client in clients[:2]:
                client.got.clear()
                client("enter", client.sid, "emitter")


# -- workers that stand still, come and go --------------------------------------------------------


def test_a_worker_that_stands_still_holds_nobody_and_is_named(kind: Kind) -> None:
    with kind.serve(app_of(kind), num=WORKERS, proxy=True) as running, ExitStack() as opened:
        first, second, third = one_for_each(running, opened)
        for client in (first, second, third):
            client("enter", client.sid, "room")
        stop_process(third.pid)
        try:
            first("many", 3000, 100, "room")
            wait_until(lambda: len(second.events("count")) == 3000)
            found = first("participants", "room", 1.0)
            assert found == {"missing": [[third.worker, third.pid]], "answers": [1]}
        finally:
            os.kill(third.pid, signal.SIGCONT)
        wait_until(lambda: len(third.events("count")) == 3000)  # what was kept for it
        assert [n for n, _ in third.events("count")] == list(range(3000))
        assert first("participants", "room", 20) == 3


def test_both_processes_of_a_slot_hear_while_it_is_reloaded(kind: Kind) -> None:
    stays = ["--session", "sid", "--drain-spread", "60"]
    with (
        kind.serve(app_of(kind), num=2, proxy=True, options=stays) as running,
        ExitStack() as opened,
    ):
        before = one_for_each(running, opened, 2)
        mark = len(running.log())
        running.send_signal(signal.SIGHUP)
        for slot in range(2):
            running.wait_for(rf"worker {slot} ready", 60, after=mark)
        after = one_for_each(running, opened, 2)
        assert {client.pid for client in before}.isdisjoint(client.pid for client in after)
        for speaker in (before[0], after[1]):
            emit(speaker, "both", speaker.sid)
            for client in [*before, *after]:
                client.hears("both", speaker.sid)
        assert after[0]("participants", None, 20) == 4
        assert before[1].sid in after[0]("connected")


def test_a_worker_that_is_new_is_part_of_it_and_one_that_is_gone_is_not(kind: Kind) -> None:
    with kind.serve(app_of(kind), num=2, proxy=True) as running, ExitStack() as opened:
        first, second = one_for_each(running, opened, 2)
        running.send_signal(signal.SIGTTIN)
        running.wait_for("There are 3 workers now", 60)
        third = one_for_each(running, opened, 3)[2]
        emit(first, "new", 3)
        third.hears("new", 3)
        emit(third, "by the new one", 3)
        first.hears("by the new one", 3)
        killed = running.kill_worker(second.worker)
        running.wait_for_successor(second.worker, killed)
        clients = one_for_each(running, opened, 3)
        emit(first, "again", 4)
        for client in clients:
            client.hears("again", 4)
        assert first("participants", None, 20) >= 4
