"""Sessions that follow their id, with real proxies, clients and a browser."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.e2e.conftest import Start, requires
from tests.e2e.proxies import PROXIES
from tests.harness import Kind
from tests.process.session_kit import Shared, connect, of, open_session

NUM = 4
SESSIONS = 200
THREADS = 10
OPTIONS = ["--session", "sid"]


def talk(port: int, count: int, number: int, problems: list[str]) -> None:
    """Some sessions, and two echoes in each, every request from another address."""
    shared = Shared(port, 3, seed=number)
    try:
        workers = {
            sid: connect(shared, sid) for sid in (open_session(shared) for _ in range(count))
        }
        for turn in range(2):
            for sid, worker in workers.items():
                answer = shared.ask(of(sid), "POST", f'42{turn}["echo",1]')
                if (answer.status, answer.body) != (200, b"OK"):
                    problems.append(f"{sid}: {answer.status} {answer.body[:100]!r}")
                    continue
                answer = shared.ask(of(sid))
                if answer.status != 200 or b'"worker":%d,' % worker not in answer.body:
                    problems.append(f"{sid} of {worker}: {answer.status} {answer.body[:100]!r}")
    except Exception as error:
        problems.append(repr(error))
    finally:
        shared.close()


@pytest.mark.parametrize("balance", ["address", "least"])
@pytest.mark.parametrize("proxy", PROXIES)
def test_two_hundred_sessions_over_connections_that_a_proxy_shares(
    kind: Kind, tmp_path: Path, proxy: str, balance: str
) -> None:
    requires(proxy)
    options = [*OPTIONS, "--balance", balance]
    with (
        kind.serve("socketio_app", num=NUM, proxy=True, options=options) as running,
        PROXIES[proxy](tmp_path, running.port) as port,
    ):
        problems: list[str] = []
        threads = [
            threading.Thread(target=talk, args=(port, SESSIONS // THREADS, number, problems))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert not any(thread.is_alive() for thread in threads)
        assert problems == []
        assert "Traceback" not in running.log()


def test_without_session_the_same_clients_fail(kind: Kind, tmp_path: Path) -> None:
    """The negative control: they change their addresses."""
    requires("nginx")
    with (
        kind.serve("socketio_app", num=NUM, proxy=True) as running,
        PROXIES["nginx"](tmp_path, running.port) as port,
    ):
        problems: list[str] = []
        talk(port, 5, 0, problems)
        assert problems


@pytest.mark.parametrize("mode", ["polling", "upgrade"])
def test_clients_of_a_killed_worker_come_back_by_themselves(
    kind: Kind, script: Start, mode: str
) -> None:
    options = [*OPTIONS, "--balance", "round-robin"]
    with kind.serve("socketio_app", num=2, options=options) as running:
        clients = script("reconnect.js", url=running.url, count=20, mode=mode)
        before = clients.answer()
        assert {worker for _, worker in before} == {0, 1}
        lost = {sid for sid, worker in before if worker == 0}
        running.wait_for_successor(0, running.kill_worker(0))
        assert clients.process.stdin is not None
        clients.process.stdin.write(json.dumps(sorted(lost)) + "\n")
        clients.process.stdin.flush()
        after = clients.answer()
        for (sid, worker), (now, _) in zip(before, after, strict=True):
            assert (now == sid) == (worker == 1)
        clients.end()


def test_the_tabs_of_a_browser_have_workers_of_their_own(kind: Kind, script: Start) -> None:
    chromium = requires("chromium")
    options = [*OPTIONS, "--balance", "round-robin"]
    with kind.serve("tab", num=2, options=options) as running:
        tabs = script("tabs.js", port=running.port, chromium=chromium, count=4)
        answer = tabs.answer()
        tabs.end()
        assert answer["failed"] == []
        assert [tab["disconnects"] for tab in answer["seen"]] == ["0"] * 4
        assert {tab["workers"] for tab in answer["seen"]} == {"0", "1"}  # one each, and both
        assert "Traceback" not in running.log()
