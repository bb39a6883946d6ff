"""What an ASGI app and its clients may cost: time limits, and how a worker ends."""

from __future__ import annotations

import signal
import socket

from tests.harness import serve

from .clients import Client, head

PUT = head("Content-Length: 10", method="PUT")


def test_a_client_that_stops_in_mid_body_is_408() -> None:
    options = ["--body-timeout", "0.2"]
    with serve("tests.asgi_limits:app", num=1, options=options) as running:
        with Client(running.port, PUT + b"12345") as client:
            assert client.answer().status == 408
        running.wait_for(r"the app received .*http.request.*12345.*http.disconnect")
        assert running.stop() == 0
        assert "Traceback" not in running.log()


def test_a_client_that_reads_nothing_is_closed() -> None:
    options = ["--write-timeout", "0.3"]
    with serve("tests.asgi_limits:app", num=1, options=options) as running:
        with Client(running.port, head(target="/endless")):
            # The app learns it: what it sends is ignored from then on, and ``receive`` says so.
            running.wait_for("the endless answer has ended")
        assert running.stop() == 0


def test_what_is_in_hand_when_the_server_ends_at_once_is_cancelled() -> None:
    with serve("tests.asgi_limits:app", num=1) as running:
        with Client(running.port, head(target="/forever")) as client:
            running.wait_for("the long request has begun")
            running.send_signal(signal.SIGINT)
            assert client.answer().status == 503
        assert running.wait() == 0
        log = running.log()
        assert log.index("the long request was cancelled") < log.index("the lifespan has ended")
        assert "Traceback" not in log


def test_a_thread_of_the_apps_can_release_a_connection() -> None:
    options = ["--sync", "go"]
    synced = serve("tests.asgi_limits:synced", num=1, options=options)
    with synced as running, Client(running.port, head()) as client:
        assert client.answer().status == 200


def test_loggers_of_other_servers_come_out_where_ours_do() -> None:
    with serve("tests.asgi_limits:app", num=1) as running:
        with Client(running.port, head(target="/log")) as client:
            assert client.answer().status == 200
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error"):
            running.wait_for(rf"worker 0\] \[WARNING\] said by {name}$")


def test_both_event_loops() -> None:
    for loop, module in (("asyncio", "asyncio.unix_events"), ("uvloop", "uvloop")):
        with serve("tests.asgi_limits:app", num=1, options=["--loop", loop]) as running:
            assert running.get("/loop").body.decode() == module


def test_the_app_is_told_where_it_is() -> None:
    options = ["--root-path", "/app", "--forwarded-allow-ips", "10.0.0.0/8"]
    with serve("tests.asgi_limits:app", num=1, options=options) as running:
        headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
        scope = running.get("/scope/a%20b", headers).json()
        assert scope["root_path"] == "/app"
        assert scope["path"] == "/app/scope/a b"
        assert scope["raw_path"] == "/app/scope/a%20b"
        assert (scope["scheme"], scope["client"][0]) == ("http", "127.0.0.1"), "nobody trusts us"


def test_a_unix_socket(tmp_path: object) -> None:
    path = f"{tmp_path}/s"
    options = ["--bind", f"unix:{path}", "--proxy"]
    with serve("tests.asgi_limits:app", num=1, options=options):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(path)
            sock.sendall(head("X-Forwarded-For: 203.0.113.9", "Connection: close", target="/scope"))
            answer = b""
            while data := sock.recv(65536):
                answer += data
        assert b'"server": ["%b", null]' % path.encode() in answer
        assert b'"client": ["203.0.113.9", 0]' in answer
