"""Connections that live longer than one request, and what is left of those that have ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil
import pytest
import websocket

import sticky
from tests.harness import ROOT, Kind, Running, wait_until
from tests.process.clients import SEED, XFF, Client, addresses_of, head
from tests.process.shared_kit import NUM, A, B, Line, ask

OPTIONS = ("--seed", SEED, "--keep-alive", "1.5", "--head-timeout", "1.5")


@pytest.fixture(scope="module")
def running(kind: Kind) -> Iterator[Running]:
    """Two workers, in which no garbage is ever collected."""
    with kind.serve("lab_without_gc", num=2, proxy=True, options=OPTIONS) as running:
        for slot in (0, 1):
            for address in addresses_of(slot, 2, 3):
                assert running.get("/", {XFF: address}).status == 200
        yield running


ADDRESS = addresses_of(1, 2, 1)[0]


def open_fds(running: Running) -> int:
    return psutil.Process(running.worker_pids()[1]).num_fds()


def baseline(running: Running) -> int:
    """What it has open when nobody is connected."""
    seen: list[int] = []

    def settled() -> bool:
        seen.append(open_fds(running))
        return seen[-4:] == seen[-1:] * 4

    wait_until(settled, what="nothing is opened or closed any more", interval=0.1)
    return seen[-1]


def assert_it_ends_as_it_began(running: Running, before: int) -> None:
    try:
        wait_until(lambda: open_fds(running) == before, 10)
    except TimeoutError:
        assert open_fds(running) == before


def test_two_hundred_resets_in_mid_answer_leave_no_descriptor_behind(running: Running) -> None:
    before = baseline(running)
    for _ in range(200):
        client = Client(running.port, head(f"{XFF}: {ADDRESS}", target="/blob?size=20000000"))
        client.read(1000)
        client.reset()
    assert_it_ends_as_it_began(running, before)
    assert "Traceback" not in running.log()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"X-Nothing",
        b"Content-Length: x\r\n\r\n",
        b"Content-Length: 10000\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        b"Connection: close\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n",
        b"\r\n\0\0\0",
    ],
)
def test_connections_that_fail_leave_no_descriptor_behind(running: Running, data: bytes) -> None:
    before = baseline(running)
    begin = f"POST /body HTTP/1.1\r\nHost: test\r\n{XFF}: {ADDRESS}\r\n".encode()
    for number in range(40):
        client = Client(running.port, begin + data)
        client.reset() if number % 2 else client.close()
    assert running.get("/", {XFF: ADDRESS}).status == 200
    assert_it_ends_as_it_began(running, before)
    assert "Traceback" not in running.log()


def test_connections_that_end_well_leave_no_descriptor_behind(running: Running) -> None:
    before = baseline(running)
    for number in range(200):
        close = ("Connection: close",) if number % 2 else ()
        with Client(running.port, head(f"{XFF}: {ADDRESS}", *close)) as client:
            assert client.answer().status == 200
    assert_it_ends_as_it_began(running, before)


def test_a_connection_takes_one_request_after_another(running: Running) -> None:
    with Client(running.port) as client:
        seen = set()
        for number in range(20):
            body = b"x" * number
            lines = (f"{XFF}: {ADDRESS}", f"Content-Length: {number}")
            client.send(head(*lines, target=f"/{number}", method="POST") + body)
            answer = client.answer()
            assert (answer.status, answer.json()["path"]) == (200, f"/{number}")
            seen.add(answer.json()["pid"])
        assert seen == {running.worker_pids()[1]}


def test_requests_may_be_sent_before_the_answers_are_read(running: Running) -> None:
    asked = b"".join(head(f"{XFF}: {ADDRESS}", target=f"/{number}") for number in range(10))
    last = head(f"{XFF}: {ADDRESS}", "Connection: close", target="/last")
    with Client(running.port, asked + last) as client:
        answers = client.rest()
    assert answers.count(b"HTTP/1.1 200 OK") == 11
    assert answers.index(b'"/0"') < answers.index(b'"/9"') < answers.index(b'"/last"')


def test_an_old_client_gets_a_closed_connection(running: Running) -> None:
    asked = head(f"{XFF}: {ADDRESS}").replace(b"HTTP/1.1", b"HTTP/1.0")
    with Client(running.port, asked) as client:
        assert b'"worker": 1' in client.rest()


def test_an_idle_connection_is_closed_when_its_time_is_over(running: Running) -> None:
    before = baseline(running)
    with Client(running.port, head(f"{XFF}: {ADDRESS}")) as client:
        assert client.answer().status == 200
        started = time.monotonic()
        assert client.rest() == b""  # without a word: it would be taken for an answer
        assert time.monotonic() - started > 1.0
    assert_it_ends_as_it_began(running, before)


def test_a_request_may_take_longer_than_an_idle_connection(running: Running) -> None:
    asked = head(f"{XFF}: {ADDRESS}", target="/slow?seconds=3")
    with Client(running.port, asked) as client:
        assert client.answer().status == 200


def test_a_large_body_makes_it_there_and_back(running: Running) -> None:
    body = bytes(range(256)) * 4096
    answer = running.get("/body", {XFF: ADDRESS}, method="POST", body=body)
    assert answer.body == body


def test_a_body_may_pause_longer_than_an_idle_connection_or_a_head(running: Running) -> None:
    lines = (f"{XFF}: {ADDRESS}", "Content-Length: 6")
    with Client(running.port, head(*lines, target="/body", method="POST") + b"abc") as client:
        time.sleep(2)  # the pause is what is tested
        client.send(b"def")
        assert client.answer().body == b"abcdef"


def test_an_answer_can_be_read_while_the_body_it_ignores_is_still_being_sent(
    running: Running,
) -> None:
    """A large body that the app ignores, on a connection that is to be closed."""
    before = baseline(running)
    for framing in ("Content-Length: 3000000", "Transfer-Encoding: chunked"):
        lines = (f"{XFF}: {ADDRESS}", framing, "Connection: close")
        with Client(running.port, head(*lines, method="POST")) as client:
            client.send(b"2dc6c0\r\n" * ("chunked" in framing) + b"x" * 3_000_000)
            assert client.answer().status == 200
    assert_it_ends_as_it_began(running, before)


@pytest.fixture(scope="module")
def talking(kind: Kind) -> Iterator[Running]:
    with kind.serve("websocket_echo", num=2, proxy=True, options=OPTIONS) as running:
        running.get("/", {XFF: ADDRESS})
        yield running


def websocket_to(running: Running) -> websocket.WebSocket:
    return websocket.create_connection(
        f"ws://127.0.0.1:{running.port}/ws", header={XFF: ADDRESS}, timeout=20
    )


def test_a_websocket_talks_for_longer_than_an_idle_connection_and_closes(talking: Running) -> None:
    before = baseline(talking)
    ws = websocket_to(talking)
    for text in ("one", "x" * 100_000):
        ws.send(text)
        assert ws.recv() == text
    time.sleep(2)  # longer than keep-alive: being silent is what is tested
    ws.send("three")
    assert ws.recv() == "three"
    ws.close()
    assert_it_ends_as_it_began(talking, before)


@pytest.mark.parametrize("how", ["closed", "reset", "closed with a message unread"])
def test_a_websocket_whose_client_is_gone_leaves_no_descriptor_behind(
    talking: Running, how: str
) -> None:
    before = baseline(talking)
    for _ in range(20):
        ws = websocket_to(talking)
        ws.send("x")
        if how != "closed with a message unread":
            assert ws.recv() == "x"
        if how == "reset":
            client = Client.__new__(Client)
            client.sock = ws.sock
            client.reset()
        else:
            ws.sock.close()
    assert_it_ends_as_it_began(talking, before)
    assert "Traceback" not in talking.log()


def test_websockets_that_have_ended_do_not_count_any_more(kind: Kind) -> None:
    with kind.serve("websocket_echo", num=1, options=["--max-connections", "2"]) as running:
        for _ in range(4):
            ws = websocket.create_connection(f"ws://127.0.0.1:{running.port}/ws", timeout=20)
            ws.send("hello")
            assert ws.recv() == "hello"
            ws.close()


def test_a_refused_upgrade_is_answered_and_ends_the_connection(
    talking: Running, kind: Kind
) -> None:
    """A WSGI app gives it an ordinary answer; an ASGI app lets the server refuse it."""
    lines = [f"{XFF}: {ADDRESS}", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw=="]
    with Client(talking.port, head(*lines, target="/no-websocket")) as client:
        assert client.answer().status == {"wsgi": 200, "asgi": 403}[kind.interface]
        assert client.rest() == b""


def test_what_was_counted_is_said_when_the_master_is_asked(kind: Kind) -> None:
    with kind.serve("whoami", num=2, proxy=True) as running:
        for number in range(5):
            assert running.get("/", {XFF: f"192.0.2.{number}"}).status == 200
        stats = running.stats()
    assert stats["accepted"] == 5
    assert stats["refused"] == 0
    assert set(stats["workers"]) == {"0", "1"}


def test_every_process_of_a_server_can_say_what_was_counted() -> None:
    options = {"port": 0, "num": NUM, "proxy": True, "seed": SEED, "app_dir": ROOT}
    with sticky.Server("tests.apps:shared_lab", options) as server:
        port = server.addresses[0][1]
        assert sticky.stats()["accepted"] == 0
        with Line(port) as line:
            for client in (A, B, A, A):
                line.send(ask(client))
                assert line.reply().status == 200
            line.send(ask(A, "/all-stats"))
            seen = line.reply().json()
            for stats in (seen, server.stats(), sticky.stats()):
                workers = {int(slot): counted for slot, counted in stats["workers"].items()}
                assert (stats["accepted"], stats["moved"], stats["refused"]) == (1, 2, 0)
                assert [workers[slot]["looked"] for slot in (0, 1)] == [3, 1]
                assert [workers[slot]["handed_back"] for slot in (0, 1)] == [1, 1]
                assert [workers[slot]["open"] for slot in (0, 1)] == [1, 0]
    assert server.stats() == sticky.stats()  # what it had counted when it ended
    assert sticky.stats()["workers"] == {}


def test_connections_at_rest_are_counted(kind: Kind) -> None:
    with kind.serve("shared_lab", num=1) as running, contextlib.ExitStack() as clients:

        def resting() -> int:
            found: int = running.get("/stats").json()["resting"]
            return found

        lines = [clients.enter_context(Client(running.port)) for _ in range(5)]
        for line in lines:
            line.send(head())
            line.answer()
        wait_until(lambda: resting() == 5)
        lines.pop().sock.close()
        wait_until(lambda: resting() == 4)
        lines[0].send(head())
        lines[0].answer()
        wait_until(lambda: resting() == 4)


def test_what_is_sent_in_pieces_does_not_wait_for_the_piece_before(kind: Kind) -> None:
    """The worker's end of a connection has TCP_NODELAY, which it has from the listener."""
    with kind.serve("lab", num=1) as running, Client(running.port, head()) as client:
        client.answer()
        found = running.get("/undelayed").json()
        assert len(found) == 2
        assert all(found)
