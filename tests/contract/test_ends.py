"""How a worker ends: what it is told, by whom, and what of the app's still runs then."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sticky import channel
from tests.harness import Kind, wait_until
from tests.process.clients import SEED, XFF, Client, addresses_of, head
from tests.process.lone import Lone

MASTERS = {
    *(signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTTIN, signal.SIGTTOU),
}
POLLING = "/socket.io/?EIO=4&transport=polling"
POST = head("Content-Length: 5", target="/wait", method="POST")


class Recorded:
    """What the app has written down."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "record"
        self.file.touch()

    def lines(self) -> list[str]:
        return self.file.read_text().split("\n")[:-1]

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.lines(), what=f"the app has recorded {line!r}")


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


@pytest.fixture
def worker(kind: Kind, tmp_path: Path, recorded: Recorded) -> Iterator[Lone]:
    with start(kind, tmp_path, recorded) as lone:
        yield lone


def start(
    kind: Kind,
    folder: Path,
    recorded: Recorded,
    *,
    suffix: str = "",
    options: Mapping[str, Any] = {},
    **more: str,
) -> Lone:
    app = {"wsgi": "app", "asgi": "asgi"}[kind.interface] + suffix
    env = {"RECORD": str(recorded.file), **more}
    return Lone(kind, f"tests.ending_apps:{app}", folder, env=env, **options)


OF_TWO = {"num": 2, "proxy": True, "seed": SEED}
OURS, ANOTHERS = (f"{XFF}: {addresses_of(slot, 2, 1)[0]}" for slot in (0, 1))


@contextlib.contextmanager
def crowded(worker: Lone) -> Iterator[None]:
    """It has more to hand back than its channel takes, which nobody empties."""
    with contextlib.ExitStack() as clients:
        for _ in range(150):
            client = clients.enter_context(worker.client(head(OURS)))
            client.answer()
            client.send(head(ANOTHERS, f"X-Filler: {'x' * 1500}"))
        yield


def last_of_the_app(kind: Kind) -> list[str]:
    return ["lifespan", "atexit"] if kind.name == "asgi" else ["atexit"]


# -- it asks to be replaced --------------------------------------------------------------------


def test_a_worker_that_is_told_to_end_asks_to_be_replaced_and_goes_on(
    kind: Kind, worker: Lone, recorded: Recorded
) -> None:
    with worker.client(head()) as kept, worker.client(head(target="/stream")) as stream:
        assert kept.answer().body == str(worker.pid).encode()
        stream.read(20)
        os.kill(worker.pid, signal.SIGTERM)
        worker.expect(channel.LEAVING)
        for _ in range(3):
            os.kill(worker.pid, signal.SIGTERM)  # once is enough
            kept.send(head())
            assert kept.answer().headers["Connection"] != "close"
            with worker.client(head()) as new:
                assert new.answer().status == 200
        stream.read(20)
        assert channel.LEAVING not in worker.said()
        worker.say(channel.END)
        stream.read(20)
        worker.say(channel.QUIT)
        assert worker.ended() == 0
    assert recorded.lines() == ["finally /stream", *last_of_the_app(kind)]


def test_a_worker_asks_to_be_replaced_as_soon_as_its_master_can_be_told(
    kind: Kind, tmp_path: Path, recorded: Recorded
) -> None:
    with start(kind, tmp_path, recorded, options=OF_TWO) as worker, crowded(worker):
        os.kill(worker.pid, signal.SIGTERM)
        with worker.client(head(OURS)) as client:
            client.answer()
        worker.expect(channel.LEAVING)


def test_a_worker_beats_however_much_lies_in_its_channel(
    kind: Kind, tmp_path: Path, recorded: Recorded
) -> None:
    with start(kind, tmp_path, recorded, options={**OF_TWO, "timeout": 2.0}) as worker:
        with crowded(worker):
            before = worker.beats()
            wait_until(lambda: worker.beats() >= before + 5, what="it beats")
        os.kill(worker.pid, signal.SIGSTOP)
        before = worker.beats()
        time.sleep(0.5)  # more than two beats: the time itself is the condition
        assert worker.beats() == before


def test_signals_to_the_group_are_the_masters_business(worker: Lone) -> None:
    with worker.client(head(target="/stream")) as stream:
        for number in sorted(MASTERS):
            os.kill(worker.pid, number)
            with worker.client(head()) as client:
                assert client.answer().status == 200
            stream.read(20)
    assert set(worker.said()) <= {channel.NOTICE}


def test_what_a_worker_is_not_to_hear_of_was_not_ignored_for_it(worker: Lone) -> None:
    """What is ignored stays so behind an exec."""
    assert ignored(worker.pid) & MASTERS == set()


def test_a_hangup_that_was_ignored_before_the_start_stays_ignored(
    kind: Kind, tmp_path: Path, recorded: Recorded
) -> None:
    """As nohup has it: what the app starts is to outlive the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with start(kind, tmp_path, recorded) as worker:
            assert ignored(worker.pid) & MASTERS == {signal.SIGHUP}
    finally:
        signal.signal(signal.SIGHUP, before)


def ignored(pid: int) -> set[int]:
    """The signals that a process ignores (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigIgn:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask & 1 << (number - 1)}


# -- everybody has a turn ----------------------------------------------------------------------


@pytest.mark.parametrize("told", ["END and QUIT", "QUIT"])
def test_what_a_worker_has_in_hand_is_cancelled_and_the_apps_code_for_its_end_runs(
    kind: Kind, worker: Lone, recorded: Recorded, told: str
) -> None:
    with (
        worker.client(head(target="/stream?secret\\")) as stream,
        worker.client(POST) as waiting,
        worker.client(head()) as idle,
    ):
        stream.read(20)
        recorded.wait_for("waits")
        assert idle.answer().status == 200
        if "END" in told:
            worker.say(channel.END)
            worker.expect(channel.REST)  # the idle one, for its successor
            assert idle.rest() == b""
            stream.read(20)
        worker.say(channel.QUIT)
        assert worker.ended() == 0
        ends(waiting)
        ends(stream)
    lines = recorded.lines()
    last = last_of_the_app(kind)
    assert lines[-len(last) :] == last
    assert sorted(lines[: -len(last)]) == ["finally /stream", "finally /wait", "waits"]
    log = worker.log()
    assert "Traceback" not in log
    said = re.findall(r"2 requests were cancelled: (.*)", log)
    assert len(said) == 1
    assert re.search(r"GET /stream\?secret\\\\ \(\d+ s\)", said[0])
    assert re.search(r"POST /wait \(\d+ s\)", said[0])


def ends(client: Client) -> None:
    with contextlib.suppress(ConnectionError):
        client.rest()


def test_many_requests_that_are_cancelled_are_one_short_line(worker: Lone) -> None:
    with contextlib.ExitStack() as opened:
        for number in range(15):
            target = f"/stream?{number}" + "x" * 5000
            stream = opened.enter_context(worker.client(head(target=target)))
            stream.read(20)
        worker.say(channel.QUIT)
        assert worker.ended() == 0
    lines = [line for line in worker.log().split("\n") if "cancelled" in line]
    assert len(lines) == 1
    assert "15 requests were cancelled: GET /stream?0x" in lines[0]
    assert lines[0].endswith(", and 5 more")
    assert len(lines[0]) < 2000


def test_a_request_of_which_nothing_was_answered_is_told_to_come_again(
    kind: Kind, worker: Lone, recorded: Recorded
) -> None:
    with worker.client(POST) as waiting:
        recorded.wait_for("waits")
        worker.say(channel.QUIT)
        if kind.name == "threads":  # a thread can only be told by its socket
            assert waiting.rest() == b""
        else:
            answer = waiting.answer()
            assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert worker.ended() == 0


def test_a_thread_of_the_apps_that_never_ends_does_not_keep_the_worker(
    kind: Kind, worker: Lone, recorded: Recorded
) -> None:
    with worker.client(head(target="/thread")) as client:
        assert client.answer().status == 200
        worker.say(channel.QUIT)
        assert worker.ended() == 0
    assert recorded.lines() == last_of_the_app(kind)
    assert "Traceback" not in worker.log()


def test_a_request_that_cannot_be_cancelled_does_not_keep_the_worker(
    kind: Kind, worker: Lone, recorded: Recorded
) -> None:
    with worker.client(head(target="/stuck")) as stuck:
        recorded.wait_for("waits")
        worker.say(channel.QUIT)
        assert worker.ended() == 0
        ends(stuck)
    assert recorded.lines() == ["waits", *last_of_the_app(kind)]
    assert "1 request was cancelled: GET /stuck" in worker.log()
    assert "Traceback" not in worker.log()


# -- it has sessions ---------------------------------------------------------------------------


@pytest.fixture
def sociable(kind: Kind, tmp_path: Path, recorded: Recorded) -> Iterator[Lone]:
    """A worker with a Socket.IO server."""
    with start(kind, tmp_path, recorded, suffix="_with_sessions") as lone:
        yield lone


def open_session(worker: Lone) -> str:
    """The target of the requests of a new session, of which no request is under way."""
    with worker.client(head(target=POLLING)) as client:
        target = f"{POLLING}&sid={json.loads(client.answer().body[1:])['sid']}"
    with worker.client(head("Content-Length: 2", target=target, method="POST") + b"40") as client:
        assert client.answer().status == 200
    with worker.client(head(target=target)) as client:
        assert client.answer().body.startswith(b"40{")
    return target


def test_a_session_ends_with_its_worker_and_its_requests_are_answered_400(
    sociable: Lone, recorded: Recorded
) -> None:
    target = open_session(sociable)
    post = head("Content-Length: 1", target=target, method="POST") + b"3"
    with (
        sociable.client(post[:10]) as late,
        sociable.client(head(target=target)) as poll,
        sociable.client(head(target="/stream")) as stream,
    ):
        stream.read(20)  # so the worker has those before it, too
        sociable.say(channel.CLOSING)
        sociable.say(channel.END)
        answer = poll.answer()
        assert b"1" not in (answer.status, answer.body)  # which is a CLOSE packet, and final
        recorded.wait_for("disconnect")
        late.send(post[10:])
        assert late.answer().status == 400
        sociable.say(channel.QUIT)
        assert sociable.ended() == 0
    assert recorded.lines().count("disconnect") == 1
    assert "Traceback" not in sociable.log()


def test_a_request_in_the_middle_of_which_its_session_ends_is_answered_400(
    sociable: Lone, recorded: Recorded
) -> None:
    """With threads Engine.IO's server may have found the session a moment ago."""
    sid = open_session(sociable).partition("sid=")[2]
    with sociable.client(head(target=f"/late?sid={sid}")) as late:
        recorded.wait_for("waits")
        sociable.say(channel.CLOSING)
        sociable.say(channel.END)
        assert late.answer().status == 400
        assert sociable.ended() == 0
    assert "Traceback" not in sociable.log()


@pytest.mark.parametrize("order", [channel.END, channel.QUIT])
def test_a_worker_ends_when_the_apps_disconnect_handlers_have_ended(
    sociable: Lone, recorded: Recorded, order: int
) -> None:
    for _ in range(3):
        open_session(sociable)
    sociable.say(order)
    assert sociable.ended() == 0
    lines = recorded.lines()
    assert lines.count("disconnect") == 3
    assert lines[-1] == "atexit"
    assert "Traceback" not in sociable.log()


# -- it has no descriptors ---------------------------------------------------------------------


def test_a_worker_without_descriptors_leaves_connections_where_they_are(
    kind: Kind, tmp_path: Path, recorded: Recorded
) -> None:
    with (
        start(kind, tmp_path, recorded, FILES="64") as worker,
        contextlib.ExitStack() as opened,
    ):
        clients = [opened.enter_context(worker.client(head())) for _ in range(100)]

        def starves() -> bool:  # those that are answered stay
            worker.place()
            return channel.NOTICE in worker.said()

        wait_until(starves, what="the worker has no descriptor free")
        while clients:
            answered = select.select([client.sock for client in clients], [], [], 20)[0]
            assert answered, f"{len(clients)} wait; log:\n{worker.log()}"
            for client in [client for client in clients if client.sock in answered]:
                assert client.answer().status == 200
                client.close()
                clients.remove(client)
            worker.place()
        assert "lost" not in worker.log()
        assert "Traceback" not in worker.log()


# -- it hangs ----------------------------------------------------------------------------------


def test_a_worker_that_hangs_says_where_when_it_is_ended(worker: Lone, recorded: Recorded) -> None:
    with worker.client(head(target="/hang")) as client:
        recorded.wait_for("hangs")
        os.kill(worker.pid, signal.SIGABRT)
        assert worker.ended() == -signal.SIGABRT
        ends(client)
    assert re.search(r'File ".*ending_apps\.py", line \d+ in stands_still_here', worker.log())
