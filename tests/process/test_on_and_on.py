"""What has to go on while a server is reloaded, its logs are rotated, or a client is tiresome."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import KINDS, Kind, wait_until

from .clients import XFF, Client, head


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def test_requests_on_idle_connections_across_a_reload_are_all_answered(kind: Kind) -> None:
    with kind.serve("echo", num=2, proxy=True) as running:
        before = running.worker_pids()
        clients = [Client(running.port) for _ in range(40)]

        def ask() -> None:
            """What a proxy would not repeat, on each of them."""
            for number, client in enumerate(clients):
                lines = (f"{XFF}: 192.0.2.{number}", "Content-Length: 2")
                client.send(head(*lines, method="POST") + b"ab")
                answer = client.answer()
                assert (answer.status, answer.body) == (200, b"ab")

        ask()
        running.send_signal(signal.SIGHUP)
        rounds = 0
        while set(running.worker_pids().values()) & set(before.values()) or rounds < 3:
            ask()
            rounds += 1
        for pid in before.values():
            running.wait_for(rf"worker \d \(pid {pid}\) ended")
        ask()
        for client in clients:
            client.close()


def test_a_log_file_that_was_renamed_is_opened_anew_on_usr1(kind: Kind, tmp_path: Path) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    options = ("--access-logfile", str(log))
    with kind.serve("whoami", num=2, proxy=True, options=options) as running:

        def ask(path: str) -> None:
            for number in range(10):  # of both workers
                assert running.get(path, {XFF: f"192.0.2.{number}"}).status == 200

        ask("/before")
        wait_until(lambda: log.read_text().count("/before") == 10)
        os.rename(log, old)
        os.kill(running.master_pid, signal.SIGUSR1)

        def renewed() -> bool:
            """A whole round has gone into the new file."""
            seen = old.read_text().count("/during")
            ask("/during")
            return log.exists() and old.read_text().count("/during") == seen

        wait_until(renewed)
        ask("/after")
        wait_until(lambda: log.read_text().count("/after") == 10)
        assert "/after" not in old.read_text()


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"0\r\n"])
def test_a_chunk_of_many_empty_lines_costs_no_more_than_others(kind: Kind, line: bytes) -> None:
    """By the square of them, it would take hours; each worker would be killed meanwhile."""
    body = line * (3_000_000 // len(line))
    with kind.serve("echo", num=2, proxy=True, options=("--timeout", "10")) as running:
        before = running.worker_pids()
        lines = (f"{XFF}: 192.0.2.1", "Transfer-Encoding: chunked")
        with Client(running.port, timeout=60) as client:
            for _ in range(2):
                sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
                client.send(head(*lines, method="POST") + sent)
                answer = client.answer()
                assert (answer.status, answer.body) == (200, body)
        assert running.worker_pids() == before
