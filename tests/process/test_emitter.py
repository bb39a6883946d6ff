"""``sticky.emitter`` where its server ends, is started anew, is another user's, or cannot be found;
and events where there is no file to meet at."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import sticky
from sticky import private
from sticky.errors import StickyError
from sticky.outside import Emitter
from tests.contract.test_events import Client, app_of, emit, one_for_each
from tests.harness import KINDS, Running

from .test_identity import NOBODY, python_for_nobody, root

KIND = KINDS["asgi"]


def serve(*options: str, num: int = 2) -> Running:
    return KIND.serve(app_of(KIND), num=num, proxy=True, options=options)


def test_it_goes_on_with_a_server_that_was_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "private" / "ctl"
    with serve("--ctl", str(path)) as running:
        events = sticky.emitter(path)
        for number in range(2):
            with ExitStack() as opened:
                clients = one_for_each(running, opened, 2)
                events.emit("outside", number)
                for client in clients:
                    client.hears("outside", number)
            mark = len(running.log())
            running.send_signal(signal.SIGHUP)  # and with workers that are all new
            for slot in range(2):
                running.wait_for(rf"worker {slot} \(pid \d+\) ended", 60, after=mark)
    with pytest.raises(StickyError, match="no server answers"):
        emit_many(events)
    with serve("--ctl", str(path)) as running, ExitStack() as opened:
        client = Client(running, "198.51.100.1")
        opened.callback(client.close)
        events.emit("again", 3)
        client.hears("again", 3)
    events.close()
    with pytest.raises(StickyError, match="closed"):
        events.emit("news", 1)


def emit_many(events: Emitter) -> None:
    """It looks for the server once in a second, if nobody has been there to hear."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        events.emit("lost", 1)


def test_without_a_socket_workers_have_events_and_an_emitter_says_what_is_missing() -> None:
    with serve("--no-ctl") as running, ExitStack() as opened:
        first, second = one_for_each(running, opened, 2)
        emit(first, "news", 1)
        second.hears("news", 1)
        for server in (running.master_pid, f"127.0.0.1:{running.port}"):
            with pytest.raises(StickyError, match=r"no server.*--ctl PATH"):
                sticky.emitter(server)


def test_a_path_at_which_nobody_listens_is_named(tmp_path: Path) -> None:
    with pytest.raises(StickyError, match="no server answers at"):
        sticky.emitter(tmp_path / "nothing")


@root
def test_a_server_that_has_become_another_user_has_events_and_root_may_emit(
    tmp_path: Path,
) -> None:
    python, path = python_for_nobody()
    words = [python, "-m", "sticky", app_of(KIND), "-b", "127.0.0.1:0", "-w", "2", "--proxy"]
    words += ["-k", "asgi", "--user", "nobody"]
    env = {"PYTHONPATH": path, "XDG_RUNTIME_DIR": "/run/user/0"}
    with Running(words, num=2, env=env, cwd="/") as running, ExitStack() as opened:
        first, second = one_for_each(running, opened, 2)
        emit(first, "news", 1)
        second.hears("news", 1)
        place = private.default({}, NOBODY.pw_uid)
        with sticky.emitter(private.socket_of(place, running.master_pid)) as events:
            events.emit("outside", 2)
            first.hears("outside", 2)
            second.hears("outside", 2)


def test_an_upgrade_in_place_changes_nothing() -> None:
    with (
        serve("--session", "sid", "--drain-spread", "60") as running,
        ExitStack() as opened,
    ):
        first, second = one_for_each(running, opened, 2)
        with sticky.emitter(running.master_pid) as events:
            events.emit("before", 1)
            second.hears("before", 1)
            mark = len(running.log())
            running.send_signal(signal.SIGUSR2)
            running.wait_for("Upgraded in place", 60)
            emit(first, "from the old process", 2)
            second.hears("from the old process", 2)
            for slot in range(2):
                running.wait_for(rf"worker {slot} ready", 60, after=mark)
            third, fourth = one_for_each(running, opened, 2)
            assert {first.pid, second.pid}.isdisjoint((third.pid, fourth.pid))
            emit(second, "from the old to the new", 5)
            fourth.hears("from the old to the new", 5)
            emit(third, "from a new one", 3)
            fourth.hears("from a new one", 3)
            events.emit("after", 4)
            third.hears("after", 4)
