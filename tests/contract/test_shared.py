"""A connection that carries the requests of many clients: each is answered by its own worker.

The connections here are what a reverse proxy keeps open to its upstream, byte by byte. Everything
is tried on each kind of server that a worker can run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import resource
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import Kind, Running, wait_until
from tests.process.clients import SEED, XFF, slot_of
from tests.process.shared_kit import (
    CLIENTS,
    NUM,
    A,
    B,
    C,
    Line,
    Reply,
    ask,
    check,
    shared_server,
    totals,
)

HEAD_TIMEOUT, KEEP_ALIVE, MAX_HEAD = 1.0, 1.5, 4096


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Running]:
    """Three workers, with all defaults."""
    with shared_server(kind) as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def impatient(kind: Kind) -> Iterator[Running]:
    """Three workers, with short deadlines."""
    options = ["--head-timeout", str(HEAD_TIMEOUT), "--keep-alive", str(KEEP_ALIVE)]
    with shared_server(kind, *options, "--max-head-size", str(MAX_HEAD)) as running:
        yield running
        assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def alone(kind: Kind) -> Iterator[Running]:
    """One worker, which has no reason to look at anything."""
    with shared_server(kind, num=1) as running:
        yield running


@pytest.fixture
def line(shared: Running) -> Iterator[Line]:
    with Line(shared.port) as line:
        yield line


def by_turns(count: int) -> list[str]:
    return [CLIENTS[number % NUM] for number in range(count)]


# -- whose request it is --------------------------------------------------------------------------


def test_each_request_is_answered_by_the_worker_of_its_client(line: Line) -> None:
    for number, client in enumerate([*by_turns(30), A, A, A, B, B, C]):
        line.send(ask(client, f"/{number}"))
        check(line.reply(), client, f"/{number}")


def test_a_hundred_pipelined_requests_are_answered_in_order(line: Line) -> None:
    clients = random.Random(4).choices(CLIENTS, k=100)
    line.send(b"".join(ask(client, f"/{number}") for number, client in enumerate(clients)))
    for number, client in enumerate(clients):
        check(line.reply(), client, f"/{number}")


def test_an_own_request_is_looked_at_and_not_moved(shared: Running) -> None:
    before = totals(shared)
    with Line(shared.port) as line:
        for _ in range(10):
            line.send(ask(A))
            check(line.reply(), A)
        line.send(ask(B))
        check(line.reply(), B)
    after = totals(shared)
    assert after["looked"] - before["looked"] == 10
    assert after["handed_back"] - before["handed_back"] == 1


def test_a_burst_of_300_kb_arrives_whole(shared: Running) -> None:
    clients = by_turns(60)
    bodies = [bytes([65 + number % 26]) * 5000 for number in range(60)]
    burst = b"".join(
        ask(client, "/body", method="POST", body=body)
        for client, body in zip(clients, bodies, strict=True)
    )
    assert len(burst) > 300_000
    with Line(shared.port) as line:
        sender = threading.Thread(target=line.send, args=(burst,))
        sender.start()
        for client, body in zip(clients, bodies, strict=True):
            check(line.reply(), client, "/body", body.decode())
        sender.join(20)


def test_a_long_answer_is_read_to_its_end_before_the_next_client_is_served(
    shared: Running,
) -> None:
    with Line(shared.port, buffer=4096) as line:
        line.send(ask(A, "/blob?size=3000000"), ask(B), ask(C, "/blob?size=3000000&streamed=1"))
        line.send(ask(A))
        reply = line.reply()
        assert (reply.status, reply.worker, reply.body) == (200, 0, b"x" * 3_000_000)
        check(line.reply(), B)
        reply = line.reply()
        assert (reply.status, reply.worker, reply.body) == (200, 2, b"x" * 3_000_000)
        check(line.reply(), A)


# -- what these tests would notice ----------------------------------------------------------------


def two_clients_share(running: Running) -> None:
    """What the tests of this file are about, in one line."""
    with Line(running.port) as line:
        line.send(ask(A, "/body", method="POST", body=b"one") + ask(B, "/2"), ask(C, "/3"))
        replies = [
            check(line.reply(), A, "/body", "one"),
            check(line.reply(), B, "/2"),
            check(line.reply(), C, "/3"),
        ]
    assert [reply.json()["method"] for reply in replies] == ["POST", "GET", "GET"]


@pytest.mark.parametrize("app", ["shared_lab_blind", "shared_lab_shifted"])
def test_it_would_be_noticed_if_workers_did_not_look_or_a_boundary_were_one_byte_off(
    kind: Kind, app: str
) -> None:
    with kind.serve(app, num=NUM, proxy=True, options=["--seed", SEED]) as running:
        check_alone(running)
        with pytest.raises((AssertionError, EOFError, OSError)):
            two_clients_share(running)


def check_alone(running: Running) -> None:
    """Where nothing is shared such workers do well."""
    for client in CLIENTS:
        with Line(running.port) as line:
            line.send(ask(client, "/1"))
            check(line.reply(), client, "/1")


def test_two_clients_share_a_connection(shared: Running) -> None:
    check_alone(shared)
    two_clients_share(shared)


# -- segments -------------------------------------------------------------------------------------


def test_a_request_cut_at_every_offset_is_the_same(shared: Running) -> None:
    first = ask(A, "/body", method="POST", chunks=[b"1\r\n\r\n2"], trailers=["X-T: 1"])
    whole = first + ask(B, "/body", method="PUT", body=b"three")
    with Line(shared.port) as line, Line(shared.port) as other:
        for cut in range(1, len(whole)):
            line.send(whole[:cut])
            # The worker that reads the first part has been busy since.
            client = A if cut <= len(first) else B
            other.send(ask(client))
            check(other.reply(), client)
            line.send(whole[cut:])
            check(line.reply(), A, "/body", "1\r\n\r\n2")
            check(line.reply(), B, "/body", "three")


def test_requests_come_byte_by_byte(line: Line) -> None:
    whole = ask(A) + ask(B, "/body", method="POST", chunks=[b"\r\n\r\n"]) + ask(C)
    line.send(*(bytes([byte]) for byte in whole))
    check(line.reply(), A)
    check(line.reply(), B, "/body", "\r\n\r\n")
    check(line.reply(), C)


@pytest.mark.parametrize("size", [10, 1000, 5000])
def test_heads_of_20_kb_come_in_pieces(line: Line, size: int) -> None:
    filler = [f"X-Filler-{number}: {'x' * 1000}" for number in range(20)]
    for client in by_turns(7):
        data = ask(client, "/", *filler)
        assert len(data) > 20_000
        line.send(*(data[start : start + size] for start in range(0, len(data), size)))
        check(line.reply(), client)


# -- bodies ---------------------------------------------------------------------------------------

LOOKALIKE = ask(C, "/never") + b"0\r\n\r\n" + ask(C, "/nor-this")
"""What is in a body is no request, however much it looks like one."""
BODIES = {
    "of a known length": {"body": LOOKALIKE},
    "empty": {"body": b""},
    "in chunks": {"chunks": [LOOKALIKE]},
    "in many chunks": {"chunks": [bytes([byte]) for byte in LOOKALIKE]},
    "in chunks with trailers": {"chunks": [LOOKALIKE, b"\r\n"], "trailers": ["A: 1", "B: 2"]},
    "in no chunk": {"chunks": [], "trailers": [f"{XFF}: {C}"]},
    "large": {"body": LOOKALIKE * 1000},
    "large, in chunks": {"chunks": [LOOKALIKE * 10] * 100},
}


def text_of(framing: dict[str, object]) -> str:
    body = framing["body"] if "body" in framing else b"".join(framing["chunks"])  # type: ignore[call-overload]
    assert isinstance(body, bytes)
    return body.decode()


@pytest.mark.parametrize("framing", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("path", ["/body", "/part?read=5", "/unread"])
def test_what_follows_a_body_is_the_next_request_whether_the_app_reads_it_or_not(
    line: Line, path: str, framing: dict[str, object]
) -> None:
    text = text_of(framing)
    seen = {"/body": text, "/part?read=5": text[:5], "/unread": None}[path]
    data = ask(A, path, method="POST", **framing)  # type: ignore[arg-type]
    cut = len(data) // 2
    # At once, one after the other, in pieces, and with the next client's request attached.
    line.send(data + ask(B, "/next") + data[:cut], data[cut:] + ask(B, "/next"))
    for _ in range(2):
        check(line.reply(), A, path.partition("?")[0], seen)
        check(line.reply(), B, "/next")
    line.send(data)
    check(line.reply(), A, path.partition("?")[0], seen)
    line.send(ask(C, "/next"))
    check(line.reply(), C, "/next")


@pytest.mark.parametrize("framing", ["body", "chunks"])
def test_a_body_may_still_come_when_its_request_is_answered(line: Line, framing: str) -> None:
    body = {"body": LOOKALIKE} if framing == "body" else {"chunks": [LOOKALIKE]}
    data = ask(A, "/unread", method="POST", **body)  # type: ignore[arg-type]
    end = data.index(b"\r\n\r\n") + 4
    line.send(data[:end])
    check(line.reply(), A, "/unread")
    for start in range(end, len(data), 20):
        line.send(data[start : start + 20])
    line.send(ask(B, "/next") + ask(A, "/next"))
    check(line.reply(), B, "/next")
    check(line.reply(), A, "/next")


def test_100_continue_is_said_by_the_worker_that_reads_the_body(line: Line) -> None:
    for client in by_turns(6):
        data = ask(client, "/body", "Expect: 100-continue", method="PUT", body=b"later")
        line.send(data[:-5])
        while b"\r\n\r\n" not in line._read:
            line._more()
        line.send(data[-5:])
        reply = line.reply()
        assert reply.interim == [100]
        check(reply, client, "/body", "later")


def test_a_body_that_waits_for_100_and_is_not_wanted_ends_the_connection(line: Line) -> None:
    """Whether it will be sent all the same nobody can know."""
    line.send(ask(A))
    check(line.reply(), A)
    data = ask(B, "/unread", "Expect: 100-continue", method="PUT", body=LOOKALIKE)
    line.send(data[: -len(LOOKALIKE)] + ask(C, "/next"))
    reply = check(line.reply(), B, "/unread")
    assert reply.closes
    assert line.is_over()


# -- answers without a body -----------------------------------------------------------------------


@pytest.mark.parametrize("length", ["", "?length=1", "?streamed=1"])
def test_the_body_that_an_app_gives_for_head_is_not_sent(line: Line, length: str) -> None:
    for client in by_turns(6):
        line.send(ask(client, "/" + length, method="HEAD"))
        reply = line.reply("HEAD")
        assert (reply.status, reply.worker) == (200, slot_of(client, NUM))
        if reply.closes:  # it was too late to take the body away
            assert line.is_over()
            return
    line.send(ask(A))
    check(line.reply(), A)


@pytest.mark.parametrize("body", ["nothing=1", "", "length=1", "streamed=1", "nothing=1&length=1"])
@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_gets_none(line: Line, status: int, body: str) -> None:
    for client in by_turns(6):
        line.send(ask(client, f"/?status={status}&{body}"))
        reply = line.reply()
        assert (reply.status, reply.worker) == (status, slot_of(client, NUM))
        if reply.closes:
            assert line.is_over()
            return
    line.send(ask(A))
    check(line.reply(), A)


# -- how connections end --------------------------------------------------------------------------


@pytest.mark.parametrize("client", CLIENTS)
def test_after_connection_close_nothing_is_answered(line: Line, client: str) -> None:
    line.send(ask(A) + ask(client, "/bye", "Connection: close") + ask(B) + ask(C))
    check(line.reply(), A)
    assert check(line.reply(), client, "/bye").closes
    assert line.is_over()


def test_a_connection_of_http_1_0_is_kept_only_if_the_answer_says_so(line: Line) -> None:
    for client in by_turns(6):
        line.send(ask(client, "/?length=1", "Connection: keep-alive", version="1.0"))
        reply = check(line.reply(), client)
        if reply.headers.get("connection", "").lower() != "keep-alive":
            assert line.is_over()
            return
    line.send(ask(B, "/?length=1", version="1.0"))
    assert check(line.reply(), B).closes
    assert line.is_over()


@pytest.mark.parametrize(
    "lines",
    [
        ("UPGRADE: x", "Connection: Upgrade"),
        ("uPGRADE: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA"),
    ],
)
@pytest.mark.parametrize("client", [A, B])
def test_a_refused_upgrade_ends_the_connection(
    line: Line, client: str, lines: tuple[str, ...]
) -> None:
    """Or what its client sends in the other protocol would be taken for somebody's request."""
    line.send(ask(A))
    check(line.reply(), A)
    line.send(ask(client, "/", *lines) + ask(C, "/never"))
    assert check(line.reply(), client).closes
    assert line.is_over()


def test_an_upgrade_that_the_connection_field_does_not_name_is_ignored(line: Line) -> None:
    """RFC 9110, 7.8: it may have been meant for whoever was in between."""
    line.send(ask(A, "/", "Upgrade: x") + ask(B) + ask(A, "/", "Connection: close"))
    for client in (A, B, A):
        check(line.reply(), client)
    assert line.is_over()


@pytest.mark.parametrize(
    "target", ["example.com:443?status=405", "/path?status=405", "http://example.com/?status=405"]
)
def test_after_connect_nothing_is_answered(line: Line, target: str) -> None:
    """It would be a tunnel, or it is refused."""
    line.send(ask(A))
    check(line.reply(), A)
    line.send(ask(B, target, method="CONNECT") + ask(A, "/never") + ask(B, "/never"))
    reply = line.reply("CONNECT")
    assert reply.status == 400 or (reply.worker == 1 and b"/never" not in reply.body)
    assert reply.closes
    assert line.is_over()


def test_what_is_sent_over_a_websocket_is_never_looked_at(shared: Running) -> None:
    """Even if it is, byte by byte, another client's request."""
    key = ("Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==", "Sec-WebSocket-Version: 13")
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", *key)
    # No mask: what is sent is what is on the wire. (A mask of zeros.)
    text = b"\n\n" + ask(C, "/never")[:100]
    frame = b"\x81" + bytes([0x80 | len(text)]) + bytes(4) + text
    with Line(shared.port) as line:
        line.send(ask(A))
        check(line.reply(), A)
        before = totals(shared)
        line.send(ask(B, "/ws", *upgrade))
        assert line.reply().status == 101
        for _ in range(3):
            line.send(frame[:20], frame[20:])
            header, length = line._take(2)
            assert (header, line._take(length)) == (0x81, text)
        after = totals(shared)
    assert after["looked"] - before["looked"] == 1
    assert after["handed_back"] - before["handed_back"] == 1


def test_keep_alive_0_closes_after_every_answer_and_moves_nothing(kind: Kind) -> None:
    with shared_server(kind, "--keep-alive", "0") as running:
        for client in by_turns(6):
            with Line(running.port) as line:
                line.send(ask(client) + ask(B))
                assert check(line.reply(), client).closes
                assert line.is_over()
        assert totals(running)["looked"] == totals(running)["handed_back"] == 0


# -- what is refused ------------------------------------------------------------------------------


def refusal_of(running: Running, data: bytes) -> Reply:
    """What this is answered as the first bytes of a connection."""
    with Line(running.port) as line:
        line.send(data)
        reply = line.reply()
        assert line.is_over()
        return reply


REFUSED = {
    "without the header": b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
    "with an empty header": b"GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: \r\n\r\n",
    "with nothing but unknown": b"GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: unknown\r\n\r\n",
    "with white space before the colon": b"GET / HTTP/1.1\r\nHost: t\r\n"
    b"X-Forwarded-For : 1.2.3.4\r\n\r\n",
    "with NUL": b"GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: 1.2.3.4\r\nX: \0\r\n\r\n",
    "with a bare CR": b"GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: 1.2.3.4\r\nX: a\rb\r\n\r\n",
    "in another protocol": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_a_further_request_is_refused_as_a_first_one_is(shared: Running, data: bytes) -> None:
    expected = refusal_of(shared, data)
    assert expected.status == 400
    assert expected.closes
    with Line(shared.port) as line:
        line.send(ask(A))
        check(line.reply(), A)
        line.send(data)
        assert line.reply() == expected
        assert line.is_over()
    with Line(shared.port) as line:  # in the same segment, with more behind it
        line.send(ask(A) + ask(B) + data + ask(C))
        check(line.reply(), A)
        check(line.reply(), B)
        assert line.reply() == expected
        assert line.is_over()


def test_http_2_is_refused_wherever_it_begins(shared: Running) -> None:
    assert refusal_of(shared, PREFACE).status in (400, 505)
    with Line(shared.port) as line:
        line.send(ask(A) + PREFACE)
        check(line.reply(), A)
        reply = line.reply()
        assert reply.status in (400, 505)
        assert reply.closes
        assert line.is_over()


def test_a_further_head_that_is_too_long_is_refused(impatient: Running) -> None:
    endless = b"GET / HTTP/1.1\r\nX: " + b"x" * 3 * MAX_HEAD
    expected = refusal_of(impatient, endless)
    assert expected.status == 431
    for parts in ([endless], [endless[:1000], endless[1000:5000], endless[5000:]]):
        with Line(impatient.port) as line:
            line.send(ask(A) + ask(B))
            check(line.reply(), A)
            check(line.reply(), B)
            line.send(*parts)
            assert line.reply().status == 431
            assert line.is_over()


def test_the_time_for_a_further_head_is_not_extended_by_its_bytes(impatient: Running) -> None:
    for clients in (A,), (A, B):
        with Line(impatient.port) as line:
            for client in clients:
                line.send(ask(client))
                check(line.reply(), client)
            start = time.monotonic()
            replies: list[Reply] = []
            reader = threading.Thread(target=lambda: replies.append(line.reply()))  # noqa: B023
            reader.start()
            line.send(b"GET / HTTP/1.1\r\nX: ")
            while not replies and time.monotonic() - start < 20:
                line.send(b"x")  # a byte each time is what is tested
                reader.join(0.2)
            reader.join(20)
            assert time.monotonic() - start > HEAD_TIMEOUT * 0.9
            assert [reply.status for reply in replies] == [408]


def test_an_idle_connection_is_closed_when_its_time_is_over_moved_or_not(
    impatient: Running,
) -> None:
    for clients in (A,), (A, B), (A, B, A, C):
        with Line(impatient.port) as line:
            for client in clients:
                line.send(ask(client))
                check(line.reply(), client)
            start = time.monotonic()
            assert line.is_over()  # without a word
            assert time.monotonic() - start > KEEP_ALIVE * 0.6


def test_an_idle_connection_is_kept_while_its_time_is_not_over(impatient: Running) -> None:
    pauses = [0.0]
    while True:
        with Line(impatient.port) as line:
            try:
                for client in by_turns(5):
                    line.send(ask(client))
                    check(line.reply(), client)
                    answered = time.monotonic()
                    time.sleep(KEEP_ALIVE * 0.3)  # being idle is what is tested
                    pauses.append(time.monotonic() - answered)
            except (EOFError, OSError):
                if max(pauses) < KEEP_ALIVE * 0.9:  # else we were too slow ourselves
                    raise
                pauses = [0.0]
            else:
                return


def test_a_request_may_take_longer_than_an_idle_connection(impatient: Running) -> None:
    with Line(impatient.port) as line:
        line.send(ask(A) + ask(B, f"/slow?seconds={KEEP_ALIVE * 1.5}") + ask(C))
        check(line.reply(), A)
        check(line.reply(), B)
        check(line.reply(), C)


def test_a_body_that_nobody_waits_for_has_as_long_as_an_idle_connection(
    impatient: Running,
) -> None:
    with Line(impatient.port) as line:
        line.send(ask(A), ask(B, "/unread", "Content-Length: 100", method="POST"), b"begun")
        check(line.reply(), A)
        check(line.reply(), B)
        assert line.is_over()


def test_a_connection_that_comes_back_too_often_is_refused_and_counted(shared: Running) -> None:
    for moves, status in (7, 200), (8, 503):
        answer = shared.get(f"/forge?moves={moves}&client={C}", {XFF: B}).json()
        assert answer.startswith(f"HTTP/1.1 {status} "), answer
        assert "connection: close" in answer.lower()
        assert ("Retry-After" in answer) == (status == 503)
    shared.wait_for("moved too often")


def test_workers_that_disagree_with_the_master_end_with_503(kind: Kind) -> None:
    """Which they never should: a connection must not go back and forth for ever."""
    with kind.serve("shared_lab_disagreeing", num=NUM, proxy=True) as running:
        answer = running.get("/", {XFF: A})
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert answer.headers["Retry-After"]
        stats = running.stats()
        assert (stats["moved"], stats["moved_too_often"]) == (9, 1)


# -- what servers disagree about ------------------------------------------------------------------

XA = f"Host: t\r\nX-Forwarded-For: {A}\r\n".encode()
HELLO = b"hello" + ask(B, "/after-5") + ask(C, "/more")
STRANGE = {
    "bare LF": b"POST /body HTTP/1.1\n" + XA[:-2] + b"\nContent-Length: 5\n\n" + HELLO,
    "bare LF ends the head": b"GET /bare HTTP/1.1\r\n" + XA + b"\n" + ask(B, "/next"),
    "a folded line": b"GET /fold HTTP/1.1\r\n" + XA + b"X: a\r\n b\r\n\r\n" + ask(B, "/next"),
    "a folded length": b"POST /body HTTP/1.1\r\n" + XA + b"Content-Length:\r\n 5\r\n\r\n" + HELLO,
    "a space before a colon": b"GET /s HTTP/1.1\r\n" + XA + b"Name : x\r\n\r\n" + ask(B, "/next"),
    "a space after a length's name": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Content-Length : 5\r\n\r\n"
    + HELLO,
    "HTTP/0.9": b"GET /old\r\n" + XA + b"\r\n" + ask(B, "/next"),
    "no version": b"GET /old \r\n" + XA + b"\r\n" + ask(B, "/next"),
    "an empty line first": b"\r\n" + ask(A, "/crlf") + b"\r\n\n" + ask(B, "/next"),
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + XA + b"\r\n" + ask(B, "/next"),
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + XA + b"\r\n" + ask(B, "/next"),
    "an unknown method": ask(A, "/method", method="BREW") + ask(B, "/next"),
    "a lower-case method": ask(A, "/method", method="get") + ask(B, "/next"),
    "a line without a colon": b"GET /n HTTP/1.1\r\n" + XA + b"nothing\r\n\r\n" + ask(B, "/next"),
    "no host": b"GET /nohost HTTP/1.1\r\n" + XA.partition(b"\r\n")[2] + b"\r\n" + ask(B, "/next"),
    **{
        f"Content-Length {value}": b"POST /body HTTP/1.1\r\n"
        + XA
        + b"Content-Length: %b\r\n\r\n" % value.encode("latin-1")
        + HELLO
        for value in ("+5", "-5", "05", "0x5", "5 ", " 5", "5, 5", "5_0", "", "\xb2", "5;", "5\t")
    },
    **{
        f"{name} lengths": b"POST /body HTTP/1.1\r\n"
        + XA
        + b"".join(b"Content-Length: %d\r\n" % value for value in values)
        + b"\r\n"
        + HELLO
        for name, values in {"two differing": (5, 20), "two equal": (5, 5), "more": (20, 5)}.items()
    },
    **{
        f"Transfer-Encoding {value}": b"POST /body HTTP/1.1\r\n"
        + XA
        + b"Transfer-Encoding: %b\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % value.encode()
        + ask(B, "/next")
        for value in (
            "Chunked",
            "gzip, chunked",
            "chunked, gzip",
            "identity",
            "chunked, chunked",
            "xchunked",
            "",
            "chunked ",
        )
    },
    "a length and chunks": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n1e\r\n"
    + ask(B, "/in")[:30]
    + b"\r\n0\r\n\r\n"
    + ask(B, "/next"),
    "chunks and a length": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Transfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    + ask(B, "/next")
    + ask(C, "/third"),
    "chunks in HTTP/1.0": ask(A, "/body", "Connection: keep-alive", version="1.0", chunks=[b"x"])
    + ask(B, "/next"),
    **{
        f"a chunk of {size!r}": b"POST /body HTTP/1.1\r\n"
        + XA
        + b"Transfer-Encoding: chunked\r\n\r\n%b\r\nhello\r\n0\r\n\r\n" % size
        + ask(B, "/next")
        for size in (b"0x5", b"+5", b"5 ", b" 5", b"05", b"5;a=b", b"5_", b"", b"-5", b"5\t", b"5g")
    },
    "a chunk without its line end": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"
    + ask(B, "/next"),
    "chunks with bare LF": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n"
    + ask(B, "/next"),
    "trailers with bare LF": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\n\n"
    + ask(B, "/next"),
    "a last chunk with bare LF": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\n"
    + ask(B, "/next"),
    "broken trailers": b"POST /body HTTP/1.1\r\n"
    + XA
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n: :\x01\r\n\r\n"
    + ask(B, "/next"),
}


def conversation(running: Running, data: bytes) -> list[tuple[int, object, object]]:
    """All that is answered to this: status, and what the app has seen."""
    found: list[tuple[int, object, object]] = []
    with Line(running.port) as line:
        line.send(data)
        try:
            while True:
                reply = line.reply()
                seen = {"path": None, "body": None}
                if "x-worker" in reply.headers:
                    seen = reply.json()
                    assert reply.worker == (slot_of(str(seen["client"]), running.num)), reply
                found.append((reply.status, seen["path"], seen["body"]))
        except (EOFError, ConnectionResetError):
            return found


@pytest.mark.parametrize("path", ["/body", "/unread"])
@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
def test_the_next_request_begins_where_the_server_thinks_or_is_refused(
    shared: Running, alone: Running, data: bytes, path: str
) -> None:
    """The oracle is the same server alone, which reads the same bytes on its own."""
    data = data.replace(b"/body", path.encode())
    end = ask(A, "/end", "Connection: close")
    expected = conversation(alone, data + end)
    for before in (A, B):  # as it comes from the client, and after a move
        found = conversation(shared, ask(before, "/first") + data + end)
        assert found[0] == (200, "/first", None)
        if found[1:] != expected:
            *served, last = found[1:]
            assert last[0] in (400, 408, 501), (found, expected)
            assert served == expected[: len(served)], (found, expected)


# -- clients that leave ---------------------------------------------------------------------------


def settled_fds(running: Running) -> dict[int, int]:
    """What all processes have open when nobody is connected."""
    seen: list[dict[int, int]] = []

    def settled() -> bool:
        seen.append(running.fds())
        return len(seen) > 3 and all(fds == seen[-1] for fds in seen[-4:])

    wait_until(settled, what="nothing is opened or closed any more", interval=0.1)
    return seen[-1]


def assert_fds(running: Running, before: dict[int, int]) -> None:
    try:
        wait_until(lambda: running.fds() == before, 20)
    except TimeoutError:
        assert running.fds() == before


def test_nothing_is_left_open_after_a_thousand_moves(shared: Running) -> None:
    before, moves = settled_fds(shared), totals(shared)["handed_back"]
    for _ in range(5):
        with Line(shared.port) as line:
            clients = by_turns(201)
            for start in range(0, 201, 20):
                line.send(b"".join(ask(client) for client in clients[start : start + 20]))
                for client in clients[start : start + 20]:
                    check(line.reply(), client)
    assert totals(shared)["handed_back"] - moves == 1000
    assert_fds(shared, before)


def test_connections_move_though_the_master_has_no_descriptor_left(kind: str) -> None:
    with shared_server(kind) as running, contextlib.ExitStack() as lines:
        line = lines.enter_context(Line(running.port))
        line.send(ask(A))
        check(line.reply(), A)
        master = running.master_pid
        highest = max(int(fd) for fd in os.listdir(f"/proc/{master}/fd"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(master, resource.RLIMIT_NOFILE, (highest + 8, hard))
        for _ in range(40):  # whose heads are awaited
            lines.enter_context(Line(running.port)).send(b"GET")
        running.wait_for("no file descriptor")
        for number, client in enumerate(by_turns(30)):
            body = bytes(random.Random(number).choices(b"abc", k=5000 * (number % 2)))
            target = f"/body?{number}"
            line.send(ask(client, target, method="POST", body=body))
            reply = line.reply()
            assert (reply.status, reply.worker) == (200, slot_of(client, NUM))
        assert "cut off" not in running.log()


def test_what_a_worker_without_a_free_descriptor_hands_back_waits_for_one(kind: str) -> None:
    with shared_server(kind) as running, Line(running.port) as large, Line(running.port) as small:
        for line in (large, small):
            line.send(ask(A))
            check(line.reply(), A)
        pid = running.worker_pids()[slot_of(A, NUM)]
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
        free = next(fd for fd in range(len(used) + 1) if fd not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))
        large.send(ask(B, "/body", method="POST", body=b"x" * 5000))  # which goes in a memfd
        assert not select.select([large.sock], [], [], 0.3)[0]  # closed, it would be readable
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert large.reply().worker == slot_of(B, NUM)
        small.send(ask(C))
        check(small.reply(), C)


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
def test_a_client_that_vanishes_in_mid_move_leaves_nothing_behind(
    shared: Running, how: str
) -> None:
    before = settled_fds(shared)
    rng = random.Random(how)
    for number in range(150):
        line = Line(shared.port)
        data = b"".join(
            ask(client, "/body", method="POST", body=b"x" * rng.choice((0, 10, 30_000)))
            for client in by_turns(6)
        )
        sent = rng.randrange(len(data))
        line.send(data[:sent])
        if number % 3 and sent > 31_000:  # somewhere in the middle, not always at the beginning
            with contextlib.suppress(EOFError, ConnectionResetError):
                line.reply()
        if how == "reset":
            line.reset()
        else:
            if how == "half closed":
                line.sock.shutdown(1)
            line.sock.close()
    with Line(shared.port) as line:
        line.send(b"".join(ask(client) for client in by_turns(9)))
        for client in by_turns(9):
            check(line.reply(), client)
    assert_fds(shared, before)


# -- workers that end -----------------------------------------------------------------------------


class Sharers:
    """A few connections, over each of which a thread sends requests of random clients.

    ``served`` counts the answers, ``cut`` the requests whose connection ended without an answer.
    Anything else is in ``wrong``.
    """

    def __init__(self, running: Running, count: int = 6) -> None:
        self.running = running
        self.port = running.port
        self.served = self.cut = 0
        self.wrong: list[str] = []
        self.may_end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]

    def __enter__(self) -> Sharers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_end.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self.wrong, self.wrong[:5]

    def wait(self, count: int) -> None:
        """Until so many more are served."""
        aim = self.served + count
        wait_until(lambda: self.served >= aim or self.wrong, what=f"{count} more are served")

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.may_end.is_set():
            try:
                line = Line(self.port)
            except ConnectionRefusedError:
                return  # the server has stopped
            with line:
                for number in itertools.count():
                    if self.may_end.is_set() or not self._one(line, rng, number):
                        break

    def _one(self, line: Line, rng: random.Random, number: int) -> bool:
        client, body = rng.choice(CLIENTS), b"x" * rng.choice((0, 100, 10_000))
        try:
            line.send(ask(client, f"/{number}", method="POST", body=body))
            reply = line.reply()
        except (EOFError, OSError) as error:
            with self._lock:
                if line._read or isinstance(error, TimeoutError):
                    self.wrong.append(f"{client}: {error!r} after {line._read[:200]!r}")
                self.cut += 1
            return False
        with self._lock:
            if reply.status == 503:
                self.cut += 1
            elif (reply.status, reply.headers.get("x-worker")) != (200, str(slot_of(client, NUM))):
                self.wrong.append(f"{client}: {reply}")
            elif (seen := reply.json())["path"] != f"/{number}" or seen["client"] != client:
                self.wrong.append(f"{client}: {seen}")
            else:
                self.served += 1
        return not reply.closes


def test_a_killed_worker_loses_what_it_had_and_nothing_else(kind: Kind) -> None:
    """Six connections, each with one request at a time: no more than that can be lost at once."""
    with shared_server(kind, "--queue-timeout", "60") as running:
        with Sharers(running) as sharers:
            for kill in range(3):
                sharers.wait(200)
                cut = sharers.cut
                slot = kill % NUM
                running.wait_for_successor(slot, running.kill_worker(slot))
                sharers.wait(100)
                assert sharers.cut - cut <= 6
        assert sharers.served > 900
        assert not re.search("Traceback", running.log())


def test_a_graceful_stop_finishes_what_is_under_way(kind: Kind) -> None:
    with shared_server(kind) as running, Sharers(running) as sharers:
        sharers.wait(300)
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        # Each was answered, or its connection was closed before it was begun.
        assert sharers.cut <= 12
        assert "did not end" not in running.log()


def test_a_reload_goes_on_serving_shared_connections(kind: Kind) -> None:
    with shared_server(kind) as running, Sharers(running) as sharers:
        sharers.wait(100)
        before = running.worker_pids()
        running.send_signal(signal.SIGHUP)
        for slot, pid in before.items():
            running.wait_for_successor(slot, pid)
        sharers.wait(200)


# -- everything at once ---------------------------------------------------------------------------

requests = st.builds(
    dict,
    client=st.sampled_from(CLIENTS),
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]),
    target=st.sampled_from(
        [
            "/",
            "/body",
            "/part?read=3",
            "/unread",
            "/?length=1",
            "/?status=204",
            "/?status=304&length=1",
            "/?status=404&nothing=1",
            "/blob?size=70000",
            "/blob?size=20000&streamed=1",
        ]
    ),
    body=st.one_of(
        st.none(),
        st.sampled_from([b"", b"\r\n\r\n", b"0\r\n\r\n", LOOKALIKE, b"x" * 70_000]),
        st.binary(max_size=40),
    ),
    chunked=st.booleans(),
    trailers=st.sampled_from([(), ("X-T: 1",), (f"{XFF}: {C}",)]),
)


def wire(it: dict[str, object]) -> bytes:
    body, cut = it["body"], 7
    framing: dict[str, object] = {"body": body}
    if it["chunked"] and isinstance(body, bytes):
        chunks = [body[start : start + cut] for start in range(0, min(len(body), 70), cut)]
        framing = {"chunks": chunks, "trailers": it["trailers"]}
    client, target, method = str(it["client"]), str(it["target"]), str(it["method"])
    return ask(client, target, method=method, **framing)  # type: ignore[arg-type]


def essence(reply: Reply) -> tuple[object, ...]:
    fields = {n: v for n, v in reply.headers.items() if n not in ("date", "connection")}
    return reply.status, fields, reply.body


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), sequence=st.lists(requests, min_size=1, max_size=8))
def test_any_sequence_of_requests_is_answered_as_each_of_them_would_be_alone(
    shared: Running, data: st.DataObject, sequence: list[dict[str, object]]
) -> None:
    whole = [wire(it) for it in sequence]
    expected = []
    for it, sent in zip(sequence, whole, strict=True):
        with Line(shared.port) as line:
            line.send(sent)
            expected.append(line.reply(str(it["method"])))
            assert int(expected[-1].headers["x-worker"]) == slot_of(str(it["client"]), NUM)
    depth = data.draw(st.integers(1, len(sequence)), label="pipelining depth")
    step = data.draw(st.sampled_from([1_000_000, 4096, 97, 31]), label="segment size")
    line, at, replies = Line(shared.port), 0, []
    try:
        while at < len(sequence):
            pipelined = b"".join(whole[at : at + depth])
            size = max(step, len(pipelined) // 300)
            segments = [pipelined[i : i + size] for i in range(0, len(pipelined), size)]
            sender = threading.Thread(target=line.send, args=segments)
            sender.start()
            closed = False
            for it in sequence[at : at + depth]:
                replies.append(line.reply(str(it["method"])))
                closed = replies[-1].closes
                at += 1
                if closed:  # for which there are reasons; what comes after it is not answered
                    break
            if closed:
                assert line.is_over()
                line.sock.close()
            sender.join(20)
            if closed:
                line = Line(shared.port)
    finally:
        line.sock.close()
    assert [essence(reply) for reply in replies] == [essence(reply) for reply in expected]
