"""Self-diagnosis: what is probably misconfigured is one clear line in the log, once."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sticky.master.diagnosis import ENOUGH
from tests.harness import Kind, Running, request, serve

from .clients import XFF, Client, head

TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(190)
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)


def warnings(running: Running) -> list[str]:
    """Stopped first: then the log is complete."""
    assert running.stop() == 0
    return [
        line.partition("[WARNING] ")[2] for line in running.log().splitlines() if "WARNING" in line
    ]


def ask(running: Running, count: int, *lines: str, local: str = "") -> None:
    for number in range(count):
        with Client(running.port, local=local) as client:
            client.send(head("Connection: close", *(line.format(number) for line in lines)))
            assert client.answer().status == 200


def test_one_address_in_direct_mode_is_probably_a_proxys(kind: Kind) -> None:
    with kind.serve("whoami", num=2) as running:
        ask(running, 2 * ENOUGH + 10)
        (line,) = warnings(running)
    assert f"{ENOUGH} of the first {ENOUGH} connections came from one address, 127.0.0.1" in line
    assert "you seem to be behind a proxy; use --proxy" in line


def test_several_addresses_in_direct_mode_are_fine(kind: Kind) -> None:
    with kind.serve("whoami", num=2) as running:
        for number in range(ENOUGH + 10):
            ask(running, 1, local=f"127.0.0.{number % 20 + 1}")
        assert warnings(running) == []


def test_one_key_behind_a_proxy_is_probably_the_wrong_header(kind: Kind) -> None:
    with kind.serve("whoami", num=2, proxy=True) as running:
        ask(running, 2 * ENOUGH, f"{XFF}: 10.0.0.1", "X-Real-IP: 192.0.2.{}")
        (line,) = warnings(running)
    assert "have the same client, 10.0.0.1, in 'x-forwarded-for'" in line
    assert "--proxy-header; these headers are there too: x-real-ip" in line


def test_a_header_that_only_some_requests_have(kind: Kind) -> None:
    with kind.serve("whoami", num=2, proxy=True, options=["--ignore-missing-header"]) as running:
        for _ in range(ENOUGH // 10 + 5):
            ask(running, 3)
            ask(running, 7, f"{XFF}: 192.0.2.{{}}")
        (line,) = warnings(running)
    assert "requests had no usable 'x-forwarded-for' header and were routed by their TCP" in line


def test_a_header_that_is_missing(kind: Kind) -> None:
    with kind.serve("whoami", num=2, proxy=True) as running:
        for _ in range(5):
            assert running.get().status == 400
        (line,) = warnings(running)
    assert "a request has no usable 'x-forwarded-for' header and was answered 400" in line
    assert "--ignore-missing-header" in line


@pytest.mark.parametrize("proxy", [True, False], ids=["proxy", "direct"])
def test_clients_that_speak_tls_or_http2(kind: Kind, proxy: bool) -> None:
    with kind.serve("whoami", num=2, proxy=proxy) as running:
        for hello in (TLS_HELLO, HTTP2, TLS_HELLO, HTTP2):
            with Client(running.port, hello) as client:
                client.rest()
        # Still served are those who speak HTTP.
        assert running.get("/", {XFF: "10.0.0.1"}).status == 200
        lines = warnings(running)
    assert len(lines) == 2, lines
    assert "a client speaks TLS to this port, which expects plain HTTP" in lines[0]
    assert "a client speaks HTTP/2 to this port" in lines[1]


@pytest.mark.parametrize(
    ("app", "num", "says"),
    [
        ("tests.apps:socketio_server", 2, "sticky.cluster.Manager()"),
        ("tests.apps:socketio_app", 3, "sticky.cluster.Manager()"),
        ("tests.asgi_apps:socketio_app", 2, "sticky.cluster.AsyncManager()"),
        ("tests.apps:socketio_cluster", 2, None),
        ("tests.apps:socketio_server", 1, None),
        ("tests.asgi_apps:socketio_server", 1, None),
        ("tests.apps:whoami", 2, None),
        ("tests.asgi_apps:whoami", 2, None),
    ],
)
def test_a_socketio_app_on_several_workers_without_a_client_manager(
    app: str, num: int, says: str | None
) -> None:
    with serve(app, num=num) as running:
        lines = warnings(running)
    if says is None:
        assert lines == []
    else:
        (line,) = lines
        assert "a Socket.IO app on several workers without a client manager" in line
        assert says in line


@pytest.mark.parametrize("limit", [300, 1000])
def test_a_limit_of_open_files_that_is_too_low(kind: Kind, limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1000:
        pytest.skip(f"the hard limit here is {hard} already")
    words = ["-m", "sticky", kind.app("whoami"), "-b", "127.0.0.1:0", "-w", "2"]
    words += ["--max-connections", "500"]
    shell = ["/bin/sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', sys.executable, *words]
    with Running(shell, num=2, env=kind.env) as running:
        assert running.get().status == 200
        lines = warnings(running)
    assert len(lines) == (limit == 300)
    if lines:
        assert "may have 300 files open here, too few for max_connections=500" in lines[0]
        assert "ulimit" in lines[0]


def test_sync_that_nobody_will_release(kind: Kind) -> None:
    with kind.serve("whoami", num=2, options=["--sync", "loaded"]) as running:
        (line,) = warnings(running)
    assert "option 'sync' is 'loaded', but the app has registered no handler" in line


def test_nothing_is_said_about_what_is_right(kind: Kind, tmp_path: Path) -> None:
    """Twenty clients behind a proxy, a lot of requests: no line above info."""
    with kind.serve("whoami", num=2, proxy=True) as running:
        ask_as(running, [f"203.0.113.{number}" for number in range(20)], ENOUGH // 20 + 2)
        assert warnings(running) == []


def ask_as(running: Running, clients: Sequence[str], times: int) -> None:
    for address in clients * times:
        assert request(running.port, "/", {XFF: address}).status == 200
