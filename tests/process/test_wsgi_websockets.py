"""WebSockets of WSGI apps, by the libraries that there are for them, in each worker class."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import websocket

from tests.harness import KINDS, Running, wait_until

from .clients import Client, head
from .test_asgi_websocket import CLOSE, KEY, TEXT, close, frame

APP = "tests.wsgi_websockets:app"
WAYS = {
    "eventlet": {},
    "gevent": {"WITHOUT_GEVENT_WEBSOCKET": "1"},
    "gevent-websocket": {},
    "threads": {},
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serve(way: str, *options: str) -> Running:
    kind = KINDS[way.partition("-")[0]]
    return kind.serve(APP, num=1, env=WAYS[way], options=options)


@pytest.fixture(scope="module")
def server(way: str) -> Iterator[Running]:
    with serve(way) as running:
        running.get("/hello")
        yield running


@pytest.fixture(autouse=True)
def silent(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is logged, whatever the apps and the clients do."""
    if "server" not in request.fixturenames:
        yield
        return
    running = request.getfixturevalue("server")
    mark = len(running.log())
    yield
    assert running.get("/hello").status == 200
    wait_until(lambda: running.get("/stats").json()["open"] == 1, what="no connection is left")
    lines = running.log()[mark:].splitlines()
    assert [line for line in lines if not line.startswith("Invalid session")] == []  # (engineio's)


def only(*ways: str) -> Any:
    """A test for these ways alone."""
    return pytest.mark.parametrize("way", ways, indirect=True, scope="module")


def notes(running: Running) -> list[str]:
    found = running.get("/notes").json()
    assert isinstance(found, list)
    return found


def handshake(path: str, *lines: str, key: str = KEY, version: str = "13") -> bytes:
    fields = ("Connection: keep-alive, Upgrade", "Upgrade: WebSocket")
    fields += (f"Sec-WebSocket-Key: {key}", f"Sec-WebSocket-Version: {version}")
    return head(*fields, *lines, target=path)


class Socket(Client):
    """A WebSocket, frame by frame."""

    def __init__(self, running: Running, path: str, *lines: str, behind: bytes = b"") -> None:
        super().__init__(running.port, handshake(path, *lines) + behind)
        self.head = b""
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += self.read(1)
        assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def say(self, text: str) -> None:
        self.send(frame(TEXT, text.encode()))

    def hear(self) -> tuple[int, bytes]:
        """Opcode and data of the next frame."""
        first, size = self.read(2)
        if size == 126:
            size = int.from_bytes(self.read(2))
        elif size == 127:
            size = int.from_bytes(self.read(8))
        return first & 15, self.read(size)

    def text(self) -> str:
        opcode, data = self.hear()
        assert opcode == TEXT
        return data.decode()

    def leave(self) -> None:
        """The closing handshake; behind it there is nothing."""
        self.send(close(1000))
        self.ends()

    def ends(self) -> None:
        """The server closes it, and behind its frame there is nothing."""
        opcode, data = self.hear()
        assert opcode == CLOSE
        assert data[:2] in (b"", (1000).to_bytes(2))  # (gevent-websocket gives no code)
        assert self.rest() == b""


ENGINE = "?EIO=4&transport=websocket"
SOCKETIO = ["/plain.io/", "/flask.io/"]


def connect(running: Running, path: str) -> Socket:
    """A client of Socket.IO, over a WebSocket from its first request on."""
    ws = Socket(running, path + ENGINE)
    assert ws.text().startswith("0{")
    ws.say("40")
    assert ws.text().startswith('40{"sid"')
    return ws


def ask(ws: Socket, data: str) -> None:
    """An event, and its answer."""
    ws.say("42" + "7" + json.dumps(["echo", data]))
    while (said := ws.text()) in ("2", "6"):  # a ping, or nothing
        ws.say("3")
    assert said == "437" + json.dumps([data], separators=(",", ":"))


# -- every library -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOCKETIO)
def test_socketio_over_a_websocket(server: Running, path: str) -> None:
    with connect(server, path) as ws:
        for data in ("a", "b" * 200, "c" * 200_000):
            ask(ws, data)
        ws.leave()


@pytest.mark.parametrize("path", SOCKETIO)
def test_socketio_upgrades_from_polling(server: Running, path: str) -> None:
    polling = path + "?EIO=4&transport=polling"
    sid = json.loads(server.get(polling).body[1:])["sid"]
    assert server.get(f"{polling}&sid={sid}", method="POST", body=b"40").body == b"OK"
    assert server.get(f"{polling}&sid={sid}").body.startswith(b"40{")
    with Socket(server, f"{path}{ENGINE}&sid={sid}") as ws:
        ws.say("2probe")
        assert ws.text() == "3probe"
        assert server.get(f"{polling}&sid={sid}").body == b"6"
        ws.say("5")
        ask(ws, "upgraded")
        ws.leave()


@pytest.mark.parametrize("path", SOCKETIO)
def test_a_driver_that_gets_the_socket_may_still_answer_400(server: Running, path: str) -> None:
    with Client(server.port, handshake(f"{path}{ENGINE}&sid=unknown")) as client:
        assert client.answer().status == 400
        assert client.rest() == b""


@pytest.mark.parametrize("path", [*SOCKETIO, "/sock"])
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"key": "short"}, 400),
        ({"key": "AAAAAAAAAAAAAAAAAAAAAAA="}, 400),
        ({"key": "\xe9" * 24}, 400),
        ({"version": "12"}, 426),
        ({"version": "130"}, 426),
    ],
)
@only("gevent", "gevent-websocket", "threads")
def test_a_wrong_handshake_is_refused_without_a_word_in_the_log(
    server: Running, path: str, options: dict[str, str], status: int
) -> None:
    with Client(server.port, handshake(path + ENGINE, **options)) as client:
        answer = client.answer()
        assert answer.status == status
        assert answer.headers["Sec-WebSocket-Version"] == "13"


def test_flask_sock(server: Running) -> None:
    with Socket(server, "/sock") as ws:
        for text in ("a", "b" * 200, "c" * 200_000):
            ws.say(text)
            assert ws.text() == text
        ws.leave()
    for _ in range(20):  # simple-websocket waits in a thread of its own, while the app ends
        with Socket(server, "/sock") as ws:
            ws.say("leave")
            ws.ends()


def test_a_client_library_agrees(server: Running) -> None:
    url = f"ws://127.0.0.1:{server.port}/sock"
    talk = websocket.create_connection(url, timeout=20)
    talk.send("hello")
    assert talk.recv() == "hello"
    talk.close()


def test_many_websockets_and_requests_at_the_same_time(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Socket(server, "/sock")) for _ in range(20)]
        for number, ws in enumerate(clients):
            ws.say(str(number))
        assert server.get("/hello").body == b"hello"
        assert [ws.text() for ws in clients] == [str(number) for number in range(20)]
        for ws in clients:
            ws.leave()


# -- the end of a websocket --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sock", "/plain.io/" + ENGINE, "/flask.io/" + ENGINE])
def test_behind_the_close_frame_of_a_client_there_is_nothing(server: Running, path: str) -> None:
    with Socket(server, path) as ws:
        if path != "/sock":
            assert ws.text().startswith("0{")
        ws.leave()


@pytest.mark.parametrize("path", ["/sock", "/plain.io/" + ENGINE])
@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
def test_a_client_may_leave_without_a_word(server: Running, path: str, leave: str) -> None:
    before = len(notes(server))
    ws = Socket(server, path)
    if path != "/sock":
        assert ws.text().startswith("0{")
        ws.say("40")
        assert ws.text().startswith("40")
    getattr(ws, leave)()
    wait_until(lambda: len(notes(server)) == before + 1, what="the app has noticed")
    ws.close()


@pytest.mark.parametrize("behind", [b"0123456789", b"01234", b""])
@pytest.mark.parametrize(
    "end",
    [
        *("", "raise", "exit", "answer", "twice", "generate", "close"),
        *("recv_into", "makefile"),
    ],
)
def test_once_the_app_has_the_socket_nothing_of_ours_is_written(
    server: Running, end: str, behind: bytes
) -> None:
    rest = b"0123456789"[len(behind) :]
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: test\r\nConnection: Upgrade\r\n\r\n"
    upgrade = head("Connection: Upgrade", "Upgrade: test", target=f"/raw?{end}")
    with Client(server.port, upgrade + behind) as client:
        assert client.read(len(switch)) == switch
        client.send(rest)
        assert client.rest() == b"got 0123456789"


def test_bytes_read_ahead_can_be_looked_at_first(server: Running) -> None:
    upgrade = head("Connection: Upgrade", "Upgrade: test", target="/raw?peek")
    with Client(server.port, upgrade + b"0123456789") as client:
        assert client.rest().endswith(b"got 00012345678")


def test_an_app_may_go_on_with_a_socket_behind_the_request(server: Running) -> None:
    upgrade = head("Connection: Upgrade", "Upgrade: test", target="/raw?keep")
    with Client(server.port, upgrade + b"0123456789") as client:
        client.read(len(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: test\r\n") + 23)
        assert client.read(14) == b"got 0123456789"
        wait_until(lambda: server.get("/stats").json()["open"] == 1)  # the request is over
        client.send(b"more")
        assert client.read(9) == b"kept more"


def test_frames_right_behind_the_handshake_are_not_lost(server: Running) -> None:
    behind = frame(TEXT, b"first") + frame(TEXT, b"second") + frame(TEXT, b"third")[:4]
    with Socket(server, "/sock", behind=behind) as ws:
        assert [ws.text(), ws.text()] == ["first", "second"]
        ws.send(frame(TEXT, b"third")[4:])
        assert ws.text() == "third"
        ws.leave()


# -- who does not take it ----------------------------------------------------------------------


def test_a_handshake_that_the_app_answers_otherwise_is_answered_and_closed(
    server: Running,
) -> None:
    with Client(server.port, handshake("/refuses") + b"whatever") as client:
        answer = client.answer()
        assert (answer.status, answer.body) == (418, b"no")
        assert answer.headers["Connection"] == "close"
        assert client.rest() == b""
    with Client(server.port, handshake("/notes")) as client:
        assert client.answer().status == 200
        assert client.rest() == b""


def test_an_open_websocket_survives_what_others_do(server: Running) -> None:
    with Socket(server, "/sock") as ws:
        for _ in range(10):
            with Client(server.port, handshake("/refuses")) as client:
                assert client.answer().status == 418
            with Socket(server, "/sock") as other:
                other.reset()
        ws.say("still here")
        assert ws.text() == "still here"
        ws.leave()


def test_no_descriptor_is_left_of_a_websocket(server: Running) -> None:
    def opened() -> int:
        return len(os.listdir(f"/proc/{server.worker_pids()[0]}/fd"))

    def talk() -> None:
        for path in ("/sock", "/plain.io/" + ENGINE):
            with Socket(server, path) as ws:
                ws.reset()
            with Socket(server, path) as ws:
                if path != "/sock":
                    ws.text()
                ws.leave()

    talk()
    wait_until(lambda: server.get("/stats").json()["open"] == 1)
    before = opened()
    for _ in range(5):
        talk()
    wait_until(lambda: opened() <= before, what="no descriptor is left")


# -- wsgi.websocket ----------------------------------------------------------------------------


@only("gevent-websocket")
def test_wsgi_websocket_is_there_for_a_handshake(server: Running) -> None:
    behind = frame(TEXT, b"behind")
    with Socket(server, "/gevent", behind=behind) as ws:
        assert b"\r\nSec-WebSocket-Accept: " in ws.head
        assert ws.text() == "behind"
        for text in ("a", "b" * 200, "c" * 200_000):
            ws.say(text)
            assert ws.text() == text
        ws.leave()
    wait_until(lambda: "wsgi.websocket ends" in notes(server))


@only("gevent-websocket")
@pytest.mark.parametrize("word", ["leave", "raise"])
def test_the_end_of_the_app_is_the_end_of_wsgi_websocket(server: Running, word: str) -> None:
    with Socket(server, "/gevent") as ws:
        ws.say(word)
        ws.ends()


@only("gevent-websocket")
def test_an_app_that_does_nothing_with_its_websocket_has_accepted_it(server: Running) -> None:
    with Socket(server, "/at-once") as ws:
        ws.ends()


@only("gevent-websocket")
def test_the_clients_of_wsgi_websocket_know_each_other(server: Running) -> None:
    with Socket(server, "/gevent") as one, Socket(server, "/gevent") as two:
        for ws in (one, two):
            ws.say("here")
            assert ws.text() == "here"
        two.say("everybody")
        assert [ws.text() for ws in (one, two)] == ["2 are here"] * 2
        one.leave()
        two.leave()


@only("gevent-websocket")
@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
def test_a_client_of_wsgi_websocket_may_leave_without_a_word(server: Running, leave: str) -> None:
    with Socket(server, "/gevent") as ws:
        ws.say("here")
        assert ws.text() == "here"
        getattr(ws, leave)()


@only("gevent-websocket")
@pytest.mark.parametrize(
    "asked",
    [
        handshake("/gevent").replace(b"GET", b"PUT"),
        handshake("/gevent").replace(b"HTTP/1.1", b"HTTP/1.0"),
        handshake("/gevent").replace(b"keep-alive, Upgrade", b"keep-alive"),
        handshake("/gevent").replace(b"WebSocket\r", b"h2c\r"),
        head(target="/gevent"),
    ],
)
def test_without_a_handshake_there_is_no_wsgi_websocket(server: Running, asked: bytes) -> None:
    with Client(server.port, asked) as client:
        answer = client.answer()
        assert (answer.status, answer.body) == (400, b"no websocket")


@only("gevent-websocket")
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("Sec-WebSocket-Protocol: other, echo.test", "echo.test"),
        ("Sec-WebSocket-Protocol: other", None),
        ("X-None: 1", None),
    ],
)
def test_a_resource_of_gevent_websocket_has_its_subprotocol(
    server: Running, offered: str, chosen: str | None
) -> None:
    with Socket(server, "/resource", offered) as ws:
        said = b"\r\nSec-WebSocket-Protocol: echo.test\r\n" in ws.head
        assert said == (chosen is not None)
        assert ws.text() == "open"
        ws.say("hello")
        assert ws.text() == "hello"
        ws.leave()


@only("eventlet", "gevent", "threads")
def test_elsewhere_there_is_no_wsgi_websocket(server: Running) -> None:
    with Client(server.port, handshake("/gevent")) as client:
        assert client.answer().body == b"no websocket"


# -- the end of the server ---------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_server_is_the_end_of_its_websockets(way: str, sig: int) -> None:
    with serve(way, "--graceful-timeout", "20") as running:
        paths = ["/sock", "/plain.io/" + ENGINE]
        paths += ["/gevent"] * (way == "gevent-websocket")
        clients = [Socket(running, path, behind=frame(TEXT, b"2")) for path in paths]
        for ws in clients:
            ws.text()
        mark = len(running.log())
        running.send_signal(sig)
        for ws in clients:
            ws.rest()  # its end is seen
            ws.close()
        assert running.wait() == 0
        assert "Traceback" not in running.log()[mark:]
        assert "killed" not in running.log()[mark:]


# -- marks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marking(way: str) -> Iterator[Running]:
    with serve(way, "--session", "affinity") as running:
        yield running


@pytest.mark.parametrize("path", ["/sock", "/plain.io/" + ENGINE, "/flask.io/" + ENGINE])
def test_a_client_without_a_mark_gets_it_with_the_101(marking: Running, path: str) -> None:
    with Socket(marking, path) as ws:
        (mark,) = re.findall(rb"\r\nSet-Cookie: (sticky_worker=[^;]+); Path=/;", ws.head)
        assert len(re.findall(rb"\r\nSec-WebSocket-Accept: ", ws.head)) == 1
        if path == "/sock":
            ws.say("heard")
            assert ws.text() == "heard"
        else:
            assert ws.text().startswith("0{")
    with Socket(marking, path, f"Cookie: {mark.decode()}") as ws:
        assert b"Set-Cookie" not in ws.head


@pytest.mark.parametrize("end", ["", "send", "recv_into", "makefile", "keep", "close"])
def test_a_101_of_any_protocol_is_marked(marking: Running, end: str) -> None:
    upgrade = head("Connection: Upgrade", "Upgrade: test", target=f"/raw?{end}")
    with Client(marking.port, upgrade + b"0123456789") as client:
        if end == "keep":
            client.sock.shutdown(socket.SHUT_WR)
        answer, _, rest = client.rest().partition(b"\r\n\r\n")
        *lines, mark = answer.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
        assert lines[1:] == [b"Upgrade: test", b"Connection: Upgrade"]
        assert mark.startswith(b"Set-Cookie: sticky_worker=")
        assert rest == b"got 0123456789"
