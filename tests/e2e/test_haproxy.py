"""Behind a real HAProxy that shares its connections between clients as much as it can."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Start, requires
from tests.e2e.shared_kit import NUM, SEED, Clients
from tests.e2e.test_clients import CLIENTS, ECHOES, addresses, check, recorded
from tests.e2e.test_nginx import free_port, is_up
from tests.harness import Kind, wait_until

CONF = """
global
    maxconn 2000
    nbthread 1
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
    # Never again what was sent already: a request that fails is to be seen.
    retries 0
frontend in
    bind 127.0.0.1:{port}
    default_backend app
backend app
    http-reuse {reuse}
    {keepalive}
    server app 127.0.0.1:{upstream} pool-max-conn {pool}
"""


@contextmanager
def haproxy(
    folder: Path,
    upstream: int,
    *,
    reuse: str = "always",
    keepalive: str = "option http-keep-alive",
    pool: int = 4,
) -> Iterator[int]:
    """An HAProxy in front of the port ``upstream``; yields its own port."""
    program = requires("haproxy")
    port = free_port()
    conf, log = folder / "haproxy.cfg", folder / "haproxy.log"
    conf.write_text(
        CONF.format(port=port, upstream=upstream, reuse=reuse, keepalive=keepalive, pool=pool)
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-db", "-f", str(conf)], stdout=output, stderr=output, cwd=folder
        )
    try:
        wait_until(lambda: process.poll() is not None or is_up(port), what="haproxy listens")
        assert process.poll() is None, log.read_text()
        yield port
    except BaseException as error:
        error.add_note(log.read_text()[-5000:])
        raise
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("count", [20, 200])
def test_behind_haproxy_every_request_is_answered_by_its_own_worker(
    tmp_path: Path, kind: Kind, count: int
) -> None:
    requires("haproxy")
    options = ["--seed", SEED]
    with (
        kind.serve("shared_lab", num=NUM, proxy=True, options=options) as running,
        haproxy(tmp_path, running.port) as port,
    ):
        requests = int(os.environ.get("STICKY_REQUESTS", "5000"))
        clients = Clients(port, addresses(count), requests)
        assert (clients.wrong, clients.failed, clients.served) == ([], [], requests)
        assert "Traceback" not in running.log()


def test_without_looking_many_are_answered_by_another_worker(kind: Kind, tmp_path: Path) -> None:
    """The negative control: the test above can fail."""
    requires("haproxy")
    with (
        kind.serve("shared_lab_blind", num=NUM, proxy=True, options=["--seed", SEED]) as running,
        haproxy(tmp_path, running.port) as port,
    ):
        clients = Clients(port, addresses(20), 1000)
        assert len(clients.wrong) > 100


@pytest.mark.parametrize("mode", ["polling", "upgrade"])
def test_a_hundred_clients_of_four_workers_share_connections(
    kind: Kind, tmp_path: Path, script: Start, mode: str
) -> None:
    requires("haproxy")
    server, record = recorded(kind, tmp_path, num=NUM)
    with server as running, haproxy(tmp_path, running.port) as port:
        clients = script(
            "clients.js",
            url=f"http://127.0.0.1:{port}",
            addresses=addresses(CLIENTS),
            mode=mode,
            echoes=ECHOES,
        )
        check(clients.answer(), record, mode, NUM)
        clients.end()


def test_without_looking_the_same_clients_fail(kind: Kind, tmp_path: Path, script: Start) -> None:
    """The negative control for the test above."""
    requires("haproxy")
    env = {"REQUEST_RECORD": str(tmp_path / "requests")}
    with (
        kind.serve("socketio_app_blind", num=NUM, proxy=True, env=env) as running,
        haproxy(tmp_path, running.port) as port,
    ):
        clients = script(
            "clients.js",
            url=f"http://127.0.0.1:{port}",
            addresses=addresses(20),
            mode="polling",
            echoes=ECHOES,
        )
        assert [answer for answer in clients.answer() if "error" in answer]
