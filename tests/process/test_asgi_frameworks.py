"""The frameworks that people use, on our ASGI server."""

from __future__ import annotations

from collections.abc import Iterator

import engineio
import pytest
import requests
import socketio
import websocket

from tests.harness import Running, serve

FRAMEWORKS = ("starlette", "fastapi", "quart", "django", "socketio", "engineio")


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def running(framework: str) -> Iterator[Running]:
    with serve(f"tests.asgi_frameworks:{framework}", num=1) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log()


def url(running: Running, path: str = "/") -> str:
    return f"http://127.0.0.1:{running.port}{path}"


def test_it_answers(running: Running) -> None:
    with requests.Session() as session:
        for _ in range(3):
            assert session.get(url(running), timeout=20).text.startswith("hello from ")


@pytest.mark.parametrize("size", [0, 1, 70000, 3_000_000])
def test_it_has_the_body(size: int, running: Running, framework: str) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    if size > 2_500_000 and framework == "django":
        pytest.skip("more than Django takes by default")
    assert requests.post(url(running, "/echo"), data=data, timeout=20).content == data
    chunks = iter([data[: size // 2], data[size // 2 :]]) if size > 1 else iter([data or b"0"])
    answer = requests.post(url(running, "/echo"), data=chunks, timeout=20)
    assert answer.content == (data or b"0")


def test_it_streams(running: Running) -> None:
    answer = requests.get(url(running, "/ticks"), timeout=20)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_it_speaks_over_a_websocket(running: Running, framework: str) -> None:
    if framework == "django":
        pytest.skip("Django has none")
    ws = websocket.create_connection(f"ws://127.0.0.1:{running.port}/ws", timeout=20)
    for text in ("hello", "x" * 100_000):
        ws.send(text)
        assert ws.recv() == text
    ws.close()


@pytest.fixture(scope="module")
def starlette() -> Iterator[Running]:
    with serve("tests.asgi_frameworks:starlette", num=1) as server:
        yield server


def test_a_background_task_goes_on_behind_the_answer(starlette: Running) -> None:
    with requests.Session() as session:
        assert session.get(url(starlette, "/later"), timeout=20).text == "soon"
        while session.get(url(starlette, "/what"), timeout=20).text != "later":
            pass


def test_an_exit_in_a_task_of_a_middleware_costs_its_request(starlette: Running) -> None:
    before = requests.get(url(starlette), timeout=20)
    assert before.headers["x-through"] == "yes"
    assert requests.get(url(starlette, "/exits"), timeout=20).status_code == 500
    assert requests.get(url(starlette), timeout=20).text == before.text, "by the same process"


def test_files_are_sent_whole_and_in_part(starlette: Running) -> None:
    data = bytes(range(256)) * 4096
    assert requests.get(url(starlette, "/static/large.bin"), timeout=20).content == data
    part = requests.get(
        url(starlette, "/static/large.bin"), headers={"Range": "bytes=10-19"}, timeout=20
    )
    assert (part.status_code, part.content) == (206, data[10:20])
    head = requests.head(url(starlette, "/static/large.bin"), timeout=20)
    assert head.headers["content-length"] == str(len(data))


def test_nicegui_shows_its_page_and_is_connected() -> None:
    with serve("tests.asgi_frameworks:nicegui", num=1) as running:
        page = requests.get(url(running), timeout=20)
        assert page.status_code == 200
        assert f"hello from {running.worker_pids()[0]}" in page.text
        path = "_nicegui_ws/socket.io"
        opened = requests.get(url(running, f"/{path}/?EIO=4&transport=polling"), timeout=20)
        assert opened.text.startswith('0{"sid"')
        ws = websocket.create_connection(
            f"ws://127.0.0.1:{running.port}/{path}/?EIO=4&transport=websocket", timeout=20
        )
        assert str(ws.recv()).startswith('0{"sid"')
        ws.close()
        assert running.stop() == 0
        assert "Traceback" not in running.log()


def test_nicegui_stops_the_server_when_its_app_says_so() -> None:
    with serve("tests.asgi_frameworks:nicegui", num=2) as running:
        assert requests.get(url(running, "/stop"), timeout=20).json() == "it stops"
        assert running.wait() == 0
        assert running.log().count("the app has asked for the end of the server") == 1
        assert "Traceback" not in running.log()


# (With polling alone the clients wait for their last long poll, on any server.)
@pytest.mark.parametrize("transports", [["websocket"], None])
def test_socketio_clients(transports: list[str] | None) -> None:
    with serve("tests.asgi_frameworks:socketio", num=1) as running:
        client = socketio.Client()
        client.connect(url(running), transports=transports, wait_timeout=20)
        assert client.call("shout", "hello", timeout=20) == "HELLO"
        client.disconnect()
        client.wait()


# (With polling alone the clients wait for their last long poll, on any server.)
@pytest.mark.parametrize("transports", [["websocket"], None])
def test_engineio_clients(transports: list[str] | None) -> None:
    with serve("tests.asgi_frameworks:engineio", num=1) as running:
        client = engineio.Client()
        heard: list[str] = []

        @client.on("message")
        def message(data: str) -> None:
            heard.append(data)
            client.disconnect(abort=False)

        client.connect(url(running), transports=transports)
        client.send("hello")
        client.wait()
        assert heard == ["HELLO"]
