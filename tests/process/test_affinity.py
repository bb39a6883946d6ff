"""Marks and WebSockets: set on a 101, held while one is open, and told to come again at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.harness import KINDS, Running, wait_until

from .session_kit import replace

APP = "tests.contract.affinity_apps:asgi"


def serve(*options: str, num: int = 2) -> Running:
    words = ["--session", "affinity", *options]
    return KINDS["asgi"].serve(APP, num=num, options=words)


@contextlib.contextmanager
def opened(running: Running, cookie: str = "") -> Iterator[tuple[ClientConnection, str, str]]:
    """A WebSocket, the process that serves it, and the cookie that came with the 101."""
    headers = {"Cookie": cookie} if cookie else {}
    with connect(f"ws://127.0.0.1:{running.port}/", additional_headers=headers) as client:
        assert client.response is not None
        assert "Cache-Control" not in client.response.headers
        pid = client.recv(10)
        cookie = client.response.headers.get("Set-Cookie", "").partition(";")[0]
        yield client, str(pid), cookie


def test_a_mark_is_set_on_a_101_and_not_twice() -> None:
    with serve(num=4) as running, opened(running) as (_, pid, mark):
        assert mark.startswith("sticky_worker=")
        with opened(running, mark) as (_, same, nothing):
            assert (same, nothing) == (pid, "")
        assert running.get("/", {"Cookie": mark}).json()["pid"] == int(pid)


def test_at_its_session_timeout_a_websocket_is_closed_with_1012_and_comes_to_the_successor() -> (
    None
):
    options = ("--session-timeout", "2", "--session-hold", "0", "--graceful-timeout", "20")
    with serve(*options, num=1) as running:
        with opened(running) as (client, pid, mark):
            replace(running)
            assert running.get("/", {"Cookie": mark}).json()["pid"] == int(pid)
            client.send("still here")
            assert client.recv(10) == "still here"
            with pytest.raises(ConnectionClosed):
                client.recv(30)
            assert client.close_code == 1012
        with opened(running, mark) as (_, successor, nothing):
            assert successor != pid
            assert nothing == ""
        wait_until(lambda: len(running.processes()) == 2, what="the process before has ended")


def test_a_second_reload_ends_the_time_of_the_first_process() -> None:
    with (
        serve("--session-timeout", "600", num=1) as running,
        opened(running) as (first, pid, mark),
    ):
        replace(running)
        assert running.get("/", {"Cookie": mark}).json()["pid"] == int(pid)
        with opened(running) as (second, other, _):
            assert other != pid
            replace(running)
            with pytest.raises(ConnectionClosed):
                first.recv(30)
            assert first.close_code == 1012
            second.send("still here")
            assert second.recv(10) == "still here"
