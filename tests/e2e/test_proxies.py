"""Behind real proxies that share their connections between clients as much as they can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Start, requires
from tests.e2e.proxies import PROXIES
from tests.e2e.shared_kit import NUM, SEED, Clients
from tests.e2e.test_clients import CLIENTS, ECHOES, addresses, check, recorded
from tests.harness import Kind

pytestmark = pytest.mark.parametrize("proxy", PROXIES)


@pytest.mark.parametrize("count", [20, 200])
def test_every_request_is_answered_by_its_own_worker(
    kind: Kind, tmp_path: Path, proxy: str, count: int
) -> None:
    requires(proxy)
    options = ["--seed", SEED]
    with (
        kind.serve("shared_lab", num=NUM, proxy=True, options=options) as running,
        PROXIES[proxy](tmp_path, running.port) as port,
    ):
        requests = int(os.environ.get("STICKY_REQUESTS", "5000"))
        clients = Clients(port, addresses(count), requests)
        assert (clients.wrong, clients.failed, clients.served) == ([], [], requests)
        assert "Traceback" not in running.log()


def test_without_looking_many_are_answered_by_another_worker(
    kind: Kind, tmp_path: Path, proxy: str
) -> None:
    """The negative control: the test above can fail."""
    requires(proxy)
    with (
        kind.serve("shared_lab_blind", num=NUM, proxy=True, options=["--seed", SEED]) as running,
        PROXIES[proxy](tmp_path, running.port) as port,
    ):
        clients = Clients(port, addresses(20), 1000)
        # How many depends on how often the proxy uses a connection again, and so on the machine.
        assert len(clients.wrong) > 20


@pytest.mark.parametrize("mode", ["polling", "upgrade"])
def test_a_hundred_clients_of_four_workers_share_connections(
    kind: Kind, tmp_path: Path, script: Start, proxy: str, mode: str
) -> None:
    requires(proxy)
    server, record = recorded(kind, tmp_path, num=NUM)
    with server as running, PROXIES[proxy](tmp_path, running.port) as port:
        clients = script(
            "clients.js",
            url=f"http://127.0.0.1:{port}",
            addresses=addresses(CLIENTS),
            mode=mode,
            echoes=ECHOES,
        )
        check(clients.answer(), record, mode, NUM)
        clients.end()


def test_without_looking_the_same_clients_fail(
    kind: Kind, tmp_path: Path, script: Start, proxy: str
) -> None:
    """The negative control for the test above."""
    requires(proxy)
    env = {"REQUEST_RECORD": str(tmp_path / "requests")}
    with (
        kind.serve("socketio_app_blind", num=NUM, proxy=True, env=env) as running,
        PROXIES[proxy](tmp_path, running.port) as port,
    ):
        clients = script(
            "clients.js",
            url=f"http://127.0.0.1:{port}",
            addresses=addresses(20),
            mode="polling",
            echoes=ECHOES,
        )
        assert [answer for answer in clients.answer() if "error" in answer]
