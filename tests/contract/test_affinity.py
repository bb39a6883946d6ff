"""Clients that a worker marks itself stay with it: from any address, on connections that many
share, and with the process before while that is being replaced."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness import Kind, Running, wait_until
from tests.process.clients import XFF
from tests.process.session_kit import replace

NUM = 4
APPS = "tests.contract.affinity_apps"


class Browser:
    """Keeps its cookies. Its requests go over connections that all browsers share, if there are
    some, and come from another address each time."""

    def __init__(
        self, port: int, shared: list[http.client.HTTPConnection] | None = None, agent: str = "a"
    ) -> None:
        self.port = port
        self.shared = shared
        self.agent = agent
        self.cookie = ""
        self._random = random.Random(agent)

    def _connection(self) -> http.client.HTTPConnection:
        if self.shared:
            return self._random.choice(self.shared)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def headers(self, address: str = "") -> dict[str, str]:
        address = address or ".".join(str(self._random.randrange(1, 255)) for _ in range(4))
        cookie = {"Cookie": self.cookie} if self.cookie else {}
        return {XFF: address, "User-Agent": self.agent, **cookie}

    def open(
        self, path: str = "/", address: str = "", **more: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._connection()
        fields = {name.replace("_", "-"): value for name, value in more.items()}
        connection.request("GET", path, headers=self.headers(address) | fields)
        response = connection.getresponse()
        for value in response.headers.get_all("Set-Cookie") or ():
            if value.startswith("sticky_worker="):
                self.cookie = value.partition(";")[0]
        return connection, response

    def ask(self, path: str = "/", address: str = "", **more: str) -> dict[str, Any]:
        connection, response = self.open(path, address, **more)
        assert response.status == 200, response.status
        said: dict[str, Any] = json.loads(response.read())
        if not self.shared:
            connection.close()
        return said


@pytest.fixture(scope="module", params=["direct", "proxy"])
def running(kind: Kind, request: pytest.FixtureRequest) -> Iterator[Running]:
    options = ["--session", "affinity", "--balance", "least"]
    proxy = request.param == "proxy"
    app = f"{APPS}:{kind.interface}"
    with kind.serve(app, num=NUM, proxy=proxy, options=options) as running:
        yield running
        assert "Traceback" not in running.log()


def test_a_hundred_browsers_stay_with_their_workers_on_shared_connections(
    running: Running,
) -> None:
    shared = [http.client.HTTPConnection("127.0.0.1", running.port, timeout=60) for _ in range(4)]
    browsers = [Browser(running.port, shared, f"agent {number}") for number in range(100)]
    first = {browser: browser.ask()["pid"] for browser in browsers}
    assert len(set(first.values())) == NUM, "least: none is left out"
    for _ in range(3):
        for browser in browsers:
            said = browser.ask()
            assert said["pid"] == first[browser]
            assert said["cookie"] is None
    for connection in shared:
        connection.close()


def test_what_a_browser_asks_for_at_once_before_it_is_marked_reaches_one_worker(
    running: Running,
) -> None:
    for number in range(10):
        tabs = [Browser(running.port, agent=f"at once {number}") for _ in range(6)]
        said: list[dict[str, Any]] = []
        barrier = threading.Barrier(len(tabs))

        def visit(tab: Browser, said: list[Any] = said, barrier: Any = barrier) -> None:
            barrier.wait(30)
            said.append(tab.ask(address="192.0.2.7"))

        threads = [threading.Thread(target=visit, args=(tab,)) for tab in tabs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({one["pid"] for one in said}) == 1
        assert len({tab.cookie for tab in tabs}) == 1


def test_the_same_on_connections_that_are_kept(running: Running) -> None:
    """No two of them are with the same worker."""
    kept: dict[int, http.client.HTTPConnection] = {}
    while len(kept) < NUM:
        browser = Browser(running.port, agent=f"kept {random.random()}")
        connection, response = browser.open()
        pid = int(response.read().split(b'"pid": ')[1].split(b",")[0])
        if kept.setdefault(pid, connection) is not connection:
            connection.close()
    for number in range(5):
        tabs = [Browser(running.port, [one], f"tab {number}") for one in kept.values()]
        pids = {tab.ask(address="192.0.2.8")["pid"] for tab in tabs}
        assert len(pids) == 1
        assert len({tab.cookie for tab in tabs}) == 1
    for one in kept.values():
        one.close()


def test_a_made_up_mark_leads_nowhere(running: Running) -> None:
    browser = Browser(running.port, agent="made up")
    pid = browser.ask()["pid"]
    name, _, mark = browser.cookie.partition("=")
    for at in (0, 19, 20, 30):
        wrong = f"{name}={mark[:at]}{'A' if mark[at] != 'A' else 'B'}{mark[at + 1 :]}"
        browser.cookie = wrong
        assert browser.ask(address="192.0.2.9")["cookie"] is None
        assert browser.cookie != wrong, "it is marked anew"
    browser.cookie = f"{name}={mark}"
    assert browser.ask()["pid"] == pid


def test_by_address_who_has_no_mark_is_where_it_would_be_without(kind: Kind) -> None:
    options = ["--session", "affinity"]
    with kind.serve(f"{APPS}:{kind.interface}", num=NUM, proxy=True, options=options) as running:
        for number in range(1, 30):
            address = f"192.0.2.{number}"
            without = Browser(running.port).ask(address=address)["pid"]
            browser = Browser(running.port)
            assert browser.ask(address=address)["pid"] == without
            assert {browser.ask()["pid"] for _ in range(5)} == {without}


def test_neither_the_app_nor_the_access_log_sees_a_mark(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    options = ["--session", "affinity", "--access-logfile", str(path)]
    options += ["--access-logformat", "%({cookie}i)s|%({set-cookie}o)s|%({cache-control}o)s"]
    with kind.serve(f"{APPS}:{kind.interface}", options=options) as running:
        browser = Browser(running.port)
        browser.ask()
        mark = browser.cookie
        browser.cookie = f"a=b; {mark}; c=d"
        assert browser.ask()["cookie"] == "a=b; c=d"
        browser.cookie = mark
        assert browser.ask("/?Set-Cookie=x%3Dy")["cookie"] is None
    assert sorted(path.read_text().splitlines()) == ["-|-|-", "-|x=y|-", "a=b; c=d|-|-"]


def test_a_reload_leaves_a_browser_with_a_stream_where_it_is(kind: Kind) -> None:
    options = ["--session", "affinity", "--session-hold", "0"]
    with kind.serve(f"{APPS}:{kind.interface}", num=2, options=options) as running:
        stays, goes = Browser(running.port, agent="stays"), Browser(running.port, agent="goes")
        before = goes.ask()["pid"]
        connection, stream = stays.open("/stream?a")
        assert int(stream.readline()) == before
        replace(running)
        assert stays.ask()["pid"] == before, "its page, opened anew"
        after = goes.ask()["pid"]
        assert after != before
        assert Browser(running.port, agent="new").ask()["pid"] == after
        assert stays.ask("/end?a")["pid"] == before
        assert stream.read() == b"over\n"
        connection.close()
        wait_until(lambda: not psutil.pid_exists(before), what="it has nothing left to keep")
        assert stays.ask()["pid"] == after
        assert "Traceback" not in running.log()


def test_a_replaced_process_ends_at_its_session_timeout(kind: Kind) -> None:
    options = ["--session", "affinity", "--session-timeout", "2", "--graceful-timeout", "1"]
    with kind.serve(f"{APPS}:{kind.interface}", num=1, options=options) as running:
        browser = Browser(running.port)
        connection, stream = browser.open("/stream?a")
        before = int(stream.readline())
        replace(running)
        assert browser.ask()["pid"] == before
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.read()
        connection.close()
        assert browser.ask()["pid"] != before


def test_ids_of_the_app_lead_back_without_its_help(kind: Kind) -> None:
    options = ["--session", "header:mcp-session-id", "--affix", "--balance", "round-robin"]
    with kind.serve(f"{APPS}:{kind.interface}", num=NUM, options=options) as running:
        sessions = {}
        for _ in range(20):  # all from one address, with one User-Agent: each has its turn
            connection, response = Browser(running.port).open("/mcp")
            pid = int(response.read().split(b'"pid": ')[1].split(b",")[0])
            sessions[response.headers["Mcp-Session-Id"]] = pid
            connection.close()
        assert len(set(sessions.values())) == NUM
        shared = [http.client.HTTPConnection("127.0.0.1", running.port) for _ in range(3)]
        asks = Browser(running.port, shared)
        for _ in range(3):
            for id, pid in sessions.items():
                said = asks.ask("/mcp", mcp_session_id=id)
                assert said["pid"] == pid
                assert said["session"] == id.partition(".")[2]
        for one in shared:
            one.close()


def test_a_reload_leaves_whoever_was_there_a_moment_ago_where_it_is(kind: Kind) -> None:
    """A page that was opened, and whose WebSocket comes only when its scripts are there."""
    options = ["--session", "affinity", "--session-hold", "60", "--session-timeout", "61"]
    with kind.serve(f"{APPS}:{kind.interface}", num=2, options=options) as running:
        browser = Browser(running.port)
        before = browser.ask()["pid"]
        replace(running)
        assert {browser.ask()["pid"] for _ in range(5)} == {before}
        other = Browser(running.port, agent="new")
        assert other.ask()["pid"] != before
        replace(running)  # two processes a slot at most: what the first held is the last one's
        after = browser.ask()["pid"]
        assert after not in (before, other.ask()["pid"])
