"""The worker class asgi: uvicorn serves what the master hands over."""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
import requests
import socketio
import websocket

from tests.harness import Running, serve, wait_until

from .clients import SEED, XFF, Client, addresses_of, head, slot_of
from .test_options import run

LAB = "tests.process.asgi_apps:lab"


@pytest.fixture(scope="module")
def proxied() -> Iterator[Running]:
    """On two workers behind a proxy."""
    with serve(LAB, proxy=True, options=["--seed", SEED]) as running:
        yield running


@pytest.fixture(scope="module")
def direct() -> Iterator[Running]:
    """On one worker without a proxy, with short deadlines."""
    options = ["--head-timeout", "1", "--max-head-size", "2048", "--keep-alive", "1"]
    with serve(LAB, num=1, options=options) as running:
        yield running


def test_the_worker_class_is_found_out_by_the_first_worker_alone(proxied: Running) -> None:
    log = proxied.log()
    assert log.count("This app needs the worker class 'asgi'") == 1
    assert log.index("worker class") < log.index("worker 0 ready") < log.index("worker 1 ready")
    assert "Traceback" not in log


def test_every_client_reaches_its_own_worker(proxied: Running) -> None:
    for number in range(20):
        address = f"203.0.113.{number}"
        answer = proxied.get("/", {XFF: address})
        assert (answer.status, answer.json()["worker"]) == (200, slot_of(address, 2))


def test_the_app_sees_the_request_as_it_was_sent(proxied: Running) -> None:
    seen = proxied.get("/", {XFF: "203.0.113.1, 10.0.0.1"}).json()
    assert ["x-forwarded-for", "203.0.113.1, 10.0.0.1"] in seen["headers"]
    assert seen["client"][0] == "127.0.0.1"


def test_a_large_body_makes_it_there_and_back(proxied: Running) -> None:
    body = bytes(range(256)) * 4096
    answer = proxied.get("/body", {XFF: "203.0.113.1"}, method="POST", body=body)
    assert answer.body == body


def test_requests_follow_each_other_on_one_connection(proxied: Running) -> None:
    with Client(proxied.port) as client:
        for number in range(5):
            client.send(head(f"{XFF}: 203.0.113.9", target=f"/{number}"))
            assert client.answer().json()["path"] == f"/{number}"


def test_the_lifespan_of_the_app_begins_before_the_first_request(proxied: Running) -> None:
    assert proxied.get("/", {XFF: "203.0.113.9"}).json()["started"] == ["startup"]


def test_an_error_of_the_app_is_500_and_its_traceback_is_logged_once(proxied: Running) -> None:
    mark = len(proxied.log())
    assert proxied.get("/raise", {XFF: "203.0.113.9"}).status == 500
    proxied.wait_for(r"worker \d\] \[ERROR\] Exception in ASGI application", after=mark)
    proxied.wait_for("RuntimeError: the app is to blame", after=mark)
    assert proxied.log().count("RuntimeError: the app is to blame") == 1


def test_rubbish_is_answered_400_and_not_logged(direct: Running) -> None:
    with Client(direct.port, b"GET / HTTP/1.1\r\nno field\r\n\r\n") as client:
        assert client.answer().status == 400
    assert "Invalid HTTP request" not in direct.log()


def test_a_websocket_says_everything_twice(proxied: Running) -> None:
    url = f"ws://127.0.0.1:{proxied.port}/ws"
    ws = websocket.create_connection(url, timeout=20, header=[f"{XFF}: 203.0.113.4"])
    for text in ("one", "two"):
        ws.send(text)
        assert ws.recv() == text
    ws.close()


def test_connections_that_ended_do_not_count_any_more(direct: Running) -> None:
    """Websockets included, where the server puts one protocol in the place of another."""
    fds = direct.fds()
    for _ in range(5):
        ws = websocket.create_connection(f"ws://127.0.0.1:{direct.port}/ws", timeout=20)
        ws.send("hello")
        assert ws.recv() == "hello"
        ws.close()
        assert direct.get().status == 200
    wait_until(lambda: direct.fds() == fds, what="all descriptors are closed")


def test_more_websockets_than_one_worker_may_hold_one_after_another() -> None:
    with serve(LAB, num=1, options=["--max-connections", "2"]) as running:
        for _ in range(4):
            ws = websocket.create_connection(f"ws://127.0.0.1:{running.port}/ws", timeout=20)
            ws.send("hello")
            assert ws.recv() == "hello"
            ws.close()


def test_a_silent_client_is_not_waited_for_for_ever(direct: Running) -> None:
    with Client(direct.port) as client:
        assert client.answer().status == 408
        assert client.rest() == b""


@pytest.mark.parametrize("before", [b"", head(f"{XFF}: 10.0.0.1")], ids=["first", "second"])
def test_a_head_that_dribbles_is_answered_408(direct: Running, before: bytes) -> None:
    with Client(direct.port) as client:
        if before:
            client.send(before)
            assert client.answer().status == 200
        ended = threading.Event()

        def dribble() -> None:
            try:
                for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
                    client.send(bytes([byte]))
                    if ended.wait(0.05):
                        return
            except OSError:
                pass

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            assert client.answer().status == 408
        finally:
            ended.set()
            thread.join()


def test_a_head_that_is_too_long_is_answered_431(direct: Running) -> None:
    with Client(direct.port, b"GET / HTTP/1.1\r\nX: " + b"x" * 4000) as client:
        assert client.answer().status == 431


def test_a_body_may_take_longer_than_a_head(direct: Running) -> None:
    with Client(direct.port, head("Content-Length: 4", target="/body", method="POST")) as client:
        for byte in b"abcd":
            client.sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            client.sock.settimeout(20)
            client.send(bytes([byte]))
        assert client.answer().body == b"abcd"


def test_an_idle_connection_is_closed_after_keep_alive(direct: Running) -> None:
    with Client(direct.port, head()) as client:
        assert client.answer().status == 200
        assert client.rest() == b""


def test_fastapi_serves_coroutines_threads_and_websockets() -> None:
    with serve("tests.process.asgi_apps:fastapi_app", num=1, proxy=True) as running:
        first = running.get("/", {XFF: "203.0.113.4"})
        assert first.status == 200
        assert running.get("/in-a-thread", {XFF: "203.0.113.4"}).body == first.body
        ws = websocket.create_connection(
            f"ws://127.0.0.1:{running.port}/ws", timeout=20, header=[f"{XFF}: 203.0.113.4"]
        )
        ws.send("hello")
        assert ws.recv() == "hello"
        ws.close()


@pytest.mark.parametrize(
    ("app", "transport"), [("socketio_asgi", "polling"), ("socketio_server", "websocket")]
)
def test_an_async_socketio_server_is_served(app: str, transport: str) -> None:
    with serve(f"tests.process.asgi_apps:{app}", num=1, proxy=True) as running:
        address = "203.0.113.6"
        session = requests.Session()
        session.headers[XFF] = address
        client = socketio.Client(reconnection=False, handle_sigint=False, http_session=session)
        client.connect(running.url, headers={XFF: address}, transports=[transport], wait_timeout=30)
        try:
            answer = client.call("echo", "hello", timeout=20)
        finally:
            client.disconnect()
        assert (answer["data"], answer["transport"]) == ("hello", transport)


# -- the end ---------------------------------------------------------------------------------------


def test_a_graceful_stop_finishes_what_is_in_hand_then_the_lifespan() -> None:
    with serve(LAB, num=2, proxy=True) as running:
        slow = head(f"{XFF}: 10.0.0.1", target="/slow?seconds=1")
        with Client(running.port, slow) as client, Client(running.port) as idle:
            idle.send(head(f"{XFF}: 10.0.0.2"))
            assert idle.answer().status == 200
            running.send_signal(signal.SIGTERM)
            answer = client.answer()
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
            assert idle.rest() == b""
        assert running.wait() == 0
        for worker in (0, 1):
            assert running.log().count(f"lifespan of worker {worker} is over") == 1
        assert "Traceback" not in running.log()


def test_a_quick_stop_waits_for_nobody() -> None:
    with serve(LAB, num=1) as running, Client(running.port, head(target="/slow?seconds=100")):
        ws = websocket.create_connection(f"ws://127.0.0.1:{running.port}/ws", timeout=20)
        assert running.stop(signal.SIGINT, timeout=20) == 0
        ws.shutdown()


def test_a_graceful_stop_closes_websockets() -> None:
    with serve(LAB, num=1) as running:
        ws = websocket.create_connection(f"ws://127.0.0.1:{running.port}/ws", timeout=20)
        running.send_signal(signal.SIGTERM)
        opcode, data = ws.recv_data()
        assert (opcode, data[:2]) == (websocket.ABNF.OPCODE_CLOSE, (1012).to_bytes(2))
        ws.shutdown()
        assert running.wait() == 0


def test_a_worker_that_is_told_to_end_or_killed_has_a_successor_in_its_slot() -> None:
    with serve(LAB, num=2, proxy=True, options=["--seed", SEED]) as running:
        for sig in (signal.SIGTERM, signal.SIGKILL):
            pid = running.kill_worker(1, sig)
            running.wait_for_successor(1, pid)
            address = addresses_of(1, 2, 1)[0]
            assert running.get("/", {XFF: address}).json()["worker"] == 1


@pytest.mark.parametrize(
    ("app", "worker_class", "status", "says"),
    [
        ("broken", "asgi", 3, "RuntimeError: the database is not there"),
        ("lifespan_fails", "auto", 3, "the cache is not there"),
        ("nothing", "asgi", 4, "has no attribute 'nothing'"),
    ],
)
def test_an_app_that_cannot_start_ends_the_server_and_is_explained_once(
    app: str, worker_class: str, status: int, says: str
) -> None:
    target = f"tests.process.asgi_apps:{app}"
    ended = run("-m", "sticky", target, "-w", "2", "-b", "127.0.0.1:0", "-k", worker_class)
    assert ended.returncode == status
    assert ended.stderr.count(says) == 1
    assert len(re.findall("could not start", ended.stderr)) == 1
    assert "/sticky/" not in ended.stderr  # the traceback is the app's alone


def test_a_client_that_resets_at_once_does_no_harm(direct: Running) -> None:
    for _ in range(20):
        Client(direct.port, head()).reset()
    assert direct.get().status == 200
    assert "Traceback" not in direct.log()


def test_ipv6_clients_are_served_too() -> None:
    with serve(LAB, num=1, options=["-b", "[::]:0"]) as running:
        port = int(re.findall(r"http://\[::\]:(\d+)", running.log())[0])
        for family, host in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")):
            with socket.socket(family) as sock:
                sock.settimeout(20)
                sock.connect((host, port))
                sock.sendall(head())
                assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")
