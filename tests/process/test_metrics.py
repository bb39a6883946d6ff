"""``--metrics`` of a real server: what Prometheus reads there, while somebody else is rude."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.harness import Running, request, serve, wait_until

from .test_options import assert_one_line, run

APP = "tests.apps:lab"
OPTIONS = ("-k", "threads", "--no-ctl", "--metrics")


def port_of(running: Running) -> int:
    return int(running.wait_for(r"Metrics at: http://127\.0\.0\.1:(\d+)/metrics")[1])


def scrape(port: int) -> dict[str, int]:
    answer = request(port, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}


def requests(found: dict[str, int]) -> int:
    return sum(found[f'sticky_worker_requests_total{{slot="{slot}"}}'] for slot in range(2))


def test_the_counters_of_all_processes_are_there() -> None:
    with serve(APP, num=2, options=(*OPTIONS, "0")) as running:
        port = port_of(running)
        assert port != running.port
        assert requests(scrape(port)) == 0
        for _ in range(5):
            running.get()
        wait_until(lambda: requests(scrape(port)) == 5)
        found = scrape(port)
        assert (found["sticky_workers"], found["sticky_accepted_total"]) == (2, 5)
        before = running.kill_worker(0, signal.SIGKILL)
        running.wait_for_successor(0, before)
        assert scrape(port)["sticky_restarts_total"] == 1
        text = request(port, "/metrics").body.decode()
        assert "127.0.0.1" not in text
        assert set(re.findall(r"\{(\w+)=", text)) == {"slot"}
        assert request(port, "/").status == 404
        assert running.get("/metrics").status != 500  # of the app, as before
        assert running.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        request(port, "/metrics")


def test_who_is_rude_there_stops_nobody() -> None:
    with serve(APP, num=2, options=(*OPTIONS, "0")) as running:
        port = port_of(running)
        files = psutil.Process(running.master_pid).num_fds()
        rude = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(40)]
        for number, sock in enumerate(rude):
            sock.sendall(b"GET /metrics HTTP/1.1\r\n"[: number % 23])
        assert scrape(port)["sticky_workers"] == 2
        assert running.get().status == 200
        for sock in rude:  # each has its end, by the newer ones or after a few seconds
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(10) == b""
            sock.close()
        process = psutil.Process(running.master_pid)
        wait_until(lambda: process.num_fds() <= files, what="all are closed")


def test_it_can_be_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with serve(APP, num=1, options=(*OPTIONS, f"unix:{path}")) as running:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"sticky_workers 1\n" in b"".join(iter(lambda: sock.recv(65536), b""))
        assert running.stop() == 0
    assert not path.exists()


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("-m", "sticky", APP, "-b", "127.0.0.1:0", "--metrics", str(port))
    assert ended.returncode == 1
    assert_one_line(ended.stderr, f"cannot serve the metrics on 127.0.0.1:{port}: Address already")
