"""What only ASGI has: the lifespan, uvicorn's own messages, FastAPI, and finding out that it is it.

All else that a server of the worker class asgi does is tested where it is tested of all kinds.
"""

from __future__ import annotations

import signal

import pytest
import websocket

from tests.harness import Kind, serve

from .clients import SEED, XFF, Client, addresses_of, head
from .shared_kit import A, B, Line, ask, check, shared_server
from .test_options import run


def test_the_worker_class_is_found_out_by_the_first_worker_alone() -> None:
    with serve("tests.asgi_apps:lab", num=2) as running:
        assert running.get().status == 200
        log = running.log()
    assert log.count("This app is served by the worker class 'asgi'") == 1
    assert log.index("worker class") < log.index("worker 0 ready") < log.index("worker 1 ready")
    assert "Traceback" not in log


# -- the lifespan ----------------------------------------------------------------------------------


def test_the_lifespan_begins_before_the_first_request_and_ends_after_the_last() -> None:
    app, options = "tests.asgi_apps:with_lifespan", ["--seed", SEED]
    with serve(app, num=2, proxy=True, options=options) as running:
        first, second = (addresses_of(slot, 2, 1)[0] for slot in (0, 1))
        slow = head(f"{XFF}: {first}", target="/?seconds=1")
        with Client(running.port, slow) as client:
            for address in (first, second):
                assert running.get("/", {XFF: address}).json() == ["lifespan.startup"]
            running.send_signal(signal.SIGTERM)
            assert client.answer().json() == ["lifespan.startup"]
        assert running.wait() == 0
        for worker in (0, 1):
            assert running.log().count(f"worker {worker}: lifespan.shutdown") == 1
        assert "Traceback" not in running.log()


@pytest.mark.parametrize("worker_class", ["asgi", "auto"])
def test_a_lifespan_that_fails_ends_the_server_and_is_explained_once(worker_class: str) -> None:
    target = "tests.asgi_apps:lifespan_fails"
    ended = run("-m", "sticky", target, "-w", "2", "-b", "127.0.0.1:0", "-k", worker_class)
    assert ended.returncode == 3
    assert ended.stderr.count("the cache is not there") == 1
    assert ended.stderr.count("could not start") == 1
    assert "/sticky/" not in ended.stderr


# -- uvicorn ---------------------------------------------------------------------------------------


def test_what_uvicorn_says_about_rubbish_is_not_logged() -> None:
    with serve("tests.asgi_apps:lab", num=1) as running:
        with Client(running.port, b"GET / HTTP/1.1\r\nno field\r\n\r\n") as client:
            assert client.answer().status == 400
        assert running.stop() == 0
        assert "Invalid HTTP request" not in running.log()


def test_a_graceful_stop_says_to_websockets_that_the_server_restarts() -> None:
    with serve("tests.asgi_apps:websocket_echo", num=1) as running:
        ws = websocket.create_connection(f"ws://127.0.0.1:{running.port}/ws", timeout=20)
        running.send_signal(signal.SIGTERM)
        opcode, data = ws.recv_data()
        assert (opcode, data[:2]) == (websocket.ABNF.OPCODE_CLOSE, (1012).to_bytes(2))
        ws.shutdown()
        assert running.wait() == 0


@pytest.mark.parametrize("kind", ["asgi"], indirect=True)
def test_a_body_that_nobody_waits_for_has_as_long_as_an_idle_connection(kind: Kind) -> None:
    """(eventlet waits for a body that the app has not read for as long as it takes.)"""
    with shared_server(kind, "--keep-alive", "1") as running, Line(running.port) as line:
        line.send(ask(A), ask(B, "/unread", "Content-Length: 100", method="POST"), b"begun")
        check(line.reply(), A)
        check(line.reply(), B)
        assert line.is_over()


# -- FastAPI ---------------------------------------------------------------------------------------


def test_fastapi_serves_coroutines_threads_and_websockets() -> None:
    with serve("tests.process.asgi_objects:fastapi_app", num=1, proxy=True) as running:
        first = running.get("/", {XFF: "203.0.113.4"})
        assert first.status == 200
        assert running.get("/in-a-thread", {XFF: "203.0.113.4"}).body == first.body
        ws = websocket.create_connection(
            f"ws://127.0.0.1:{running.port}/ws", timeout=20, header=[f"{XFF}: 203.0.113.4"]
        )
        ws.send("hello")
        assert ws.recv() == "hello"
        ws.close()
