"""Socket.IO's clients come back by themselves, whatever the server's reason is to end a session."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Script, Start, requires
from tests.harness import KINDS, Kind, Running

MODES = ["polling", "websocket", "upgrade"]
COUNT = 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def serve(kind: Kind, port: int, *options: str) -> Running:
    command = [sys.executable, "-m", "sticky", kind.app("socketio_server"), "-w", "1", *options]
    return Running([*command, "-b", f"127.0.0.1:{port}"], num=1, env=kind.env)


class Clients:
    """One script with some clients, of one transport."""

    def __init__(self, start: Callable[..., Script], program: str, port: int, mode: str) -> None:
        url = f"http://127.0.0.1:{port}"
        self.script = start(program, url=url, count=COUNT, mode=mode)

    def connected(self) -> set[str]:
        """Their sessions, when all of them are connected."""
        return {sid for sid, _ in self.script.answer()}

    def back(self, lost: set[str]) -> set[str]:
        """Their sessions, when all of them have others."""
        self.tell(lost)
        return self.connected()

    def tell(self, what: Any) -> None:
        assert self.script.process.stdin is not None
        self.script.process.stdin.write(json.dumps(sorted(what)) + "\n")
        self.script.process.stdin.flush()


@pytest.mark.parametrize("kind", KINDS, indirect=True)
@pytest.mark.parametrize("how", ["reload", "reload by session", "restart"])
@pytest.mark.parametrize("program", ["reconnect.py", "reconnect.js"])
def test_clients_of_a_server_that_reloads_or_is_started_anew_come_back_by_themselves(
    kind: Kind, script: Start, program: str, how: str
) -> None:
    if program.endswith(".js"):
        requires("node")
    port = free_port()
    options = ("--session", "sid", "--drain-spread", "1") if how == "reload by session" else ()
    with serve(kind, port, *options) as running:
        groups = [Clients(script, program, port, mode) for mode in MODES]
        before = [clients.connected() for clients in groups]
        if how != "restart":
            pid = running.worker_pids()[0]
            running.send_signal(signal.SIGHUP)
            running.wait_for_successor(0, pid)
            come_back(groups, before)
        else:
            assert running.stop() == 0
        assert "Traceback" not in running.log()
    if how == "restart":
        with serve(kind, port):
            come_back(groups, before)


def come_back(groups: list[Clients], before: list[set[str]]) -> None:
    for clients, lost in zip(groups, before, strict=True):
        now = clients.back(lost)
        assert len(now) == COUNT
        assert not now & lost
        clients.script.end()
