"""The examples for Flask-SocketIO and FastAPI, as they are, with clients of Python."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import socketio

from tests.harness import ROOT, Running, serve

WORKERS = 2
TRANSPORTS = {
    "polling": ["polling"],
    "websocket": ["websocket"],
    "upgrade": ["polling", "websocket"],
}


@pytest.fixture(scope="module", params=["threading", "gevent"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    if request.param == "gevent":
        pytest.importorskip("gevent")
    script = str(ROOT / "examples" / "flask" / f"app_{request.param}.py")
    env = {"PYTHONPATH": str(ROOT)}
    with serve(script, script=True, num=WORKERS, options=["0"], env=env) as started:
        yield started
        assert "Traceback" not in started.log()


class Tab:
    """A client; ``worker`` is the one that has greeted it."""

    def __init__(self, running: Running, transports: list[str]) -> None:
        self.client = socketio.SimpleClient(reconnection_delay=0.1, reconnection_delay_max=1)
        self.client.connect(running.url, transports=transports, wait_timeout=20)
        self.worker = self.next("hello")["worker"]

    def say(self, text: str) -> None:
        self.client.emit("say", text)

    def next(self, name: str) -> Any:
        """What comes with the next event, which has this name."""
        found, *data = self.client.receive(timeout=20)
        assert found == name, (found, data)
        return data[0]


@contextlib.contextmanager
def tabs(running: Running, transports: list[str], count: int) -> Iterator[list[Tab]]:
    opened: list[Tab] = []
    try:
        for _ in range(count):
            opened.append(Tab(running, transports))
        yield opened
    finally:
        for tab in opened:
            tab.client.disconnect()


def check_that_all_hear_all(opened: list[Tab]) -> None:
    for number, speaker in enumerate(opened):
        speaker.say(f"hello {number}")
        for tab in opened:
            assert tab.next("said") == {"worker": speaker.worker, "text": f"hello {number}"}


@pytest.mark.parametrize("transports", TRANSPORTS.values(), ids=TRANSPORTS)
def test_what_one_tab_says_all_hear_on_whichever_worker(
    running: Running, transports: list[str]
) -> None:
    with tabs(running, transports, 4) as opened:
        assert {tab.client.transport for tab in opened} == {transports[-1]}
        assert {tab.worker for tab in opened} == set(range(WORKERS))
        check_that_all_hear_all(opened)


def test_the_tabs_of_a_killed_worker_come_back_and_hear_all_again(running: Running) -> None:
    with tabs(running, TRANSPORTS["websocket"], 4) as opened:
        pid = running.kill_worker(0, signal.SIGKILL)
        for tab in opened:
            if tab.worker == 0:
                tab.worker = tab.next("hello")["worker"]
        running.wait_for_successor(0, pid)
        check_that_all_hear_all(opened)


def test_the_page_and_its_script_are_there(running: Running) -> None:
    assert b"socket.io.min.js" in running.get("/").body
    assert running.get("/static/socket.io.min.js").status == 200
    assert running.get("/slow").json()["worker"] in range(WORKERS)


def test_the_chat_with_fastapi_reaches_the_websockets_of_every_worker() -> None:
    pytest.importorskip("fastapi")
    connect = pytest.importorskip("websockets.sync.client").connect
    script = str(ROOT / "examples" / "fastapi" / "app.py")
    env = {"PYTHONPATH": str(ROOT)}
    with (
        serve(script, script=True, num=3, options=["0"], env=env) as running,
        contextlib.ExitStack() as opened,
    ):
        assert b"WebSocket" in running.get("/").body
        port, tabs = running.port, []
        for number in range(9):
            sock = socket.create_connection(("127.0.0.1", port))
            url = f"ws://client{number}.localhost:{port}/chat"
            tabs.append(opened.enter_context(connect(url, sock=sock, open_timeout=20)))
        workers = set()
        for number, tab in enumerate(tabs):
            tab.send(f"hello {number}")
            for other in tabs:
                said = json.loads(other.recv(timeout=20))
                assert said["text"] == f"hello {number}"
                workers.add(said["worker"])
        assert len(workers) > 1
        assert "Traceback" not in running.log()
