"""HTTP for ASGI apps: ours and uvicorn tell the app the same, and the client.

Each intended difference is in ``DIFFERENT``, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from .both_servers import Server, both, chunks_in

POST = b"Content-Length: 5\r\n\r\nhello"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
CLOSE = b"Connection: close\r\n"


def ask(case: str, rest: bytes = b"\r\n", *, method: str = "GET", close: bool = True) -> bytes:
    line = f"{method} /case/{case} HTTP/1.1\r\nHost: test\r\n".encode()
    return line + (CLOSE if close else b"") + rest


# name of the test: (case, bytes to send)
CASES: dict[str, tuple[str, tuple[bytes, ...]]] = {
    **{
        name: (name, (ask(name),))
        for name in (
            *("hello", "pieces", "slowly", "with_length", "no_content", "not_modified"),
            *("twice_read", "closes", "other_status", "raises", "exits", "raises_later"),
            *("says_nothing", "says_too_little", "says_too_much", "says_body_first"),
            *("starts_twice", "goes_on", "bad_field"),
        )
    },
    **{
        f"head of {name}": (name, (ask(name, method="HEAD"),))
        for name in ("hello", "pieces", "with_length", "no_content", "raises")
    },
    "body": ("echo", (ask("echo", POST, method="POST"),)),
    "body in chunks": ("echo", (ask("echo", CHUNKS, method="POST"),)),
    "body of nothing": ("echo", (ask("echo", b"Content-Length: 0\r\n\r\n", method="POST"),)),
    "100 first": (
        "echo",
        (
            ask("echo", b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", method="PUT"),
            b"hello",
        ),
    ),
    "100 never": (
        "early",
        (ask("early", b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", method="PUT"),),
    ),
    "unread body": ("early", (ask("early", POST, method="POST"),)),
    "query": ("hello", (ask("hello").replace(b" HTTP", b"?a=%20b&c HTTP"),)),
    "escapes": ("hello", (ask("hello").replace(b" HTTP", b"/%C3%A9%2F%zz/%FF HTTP"),)),
    "dots": ("hello", (ask("hello").replace(b" HTTP", b"/../a//b HTTP"),)),
    "absolute": ("hello", (ask("hello").replace(b" /case", b" http://test/case"),)),
    "fields": (
        "hello",
        (ask("hello", b"X-One: a\r\nx-ONE:  b \t\r\nX-Empty:\r\nX-Latin: \xe9\r\n\r\n"),),
    ),
    "cookies": ("hello", (ask("hello", b"Cookie: a=1\r\nX: y\r\nCookie: b=2\r\n\r\n"),)),
    "1.0": ("hello", (b"GET /case/hello HTTP/1.0\r\n\r\n",)),
    "1.0 in pieces": ("pieces", (b"GET /case/pieces HTTP/1.0\r\n\r\n",)),
    "other method": ("hello", (ask("hello", method="PROPFIND"),)),
    "other upgrade": (
        "echo",
        (
            ask(
                "echo",
                b"Upgrade: h2c\r\nContent-Length: 5\r\nConnection: upgrade\r\n\r\nhello",
                method="POST",
            ),
        ),
    ),
    "forwarded": (
        "hello",
        (ask("hello", b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\r\n"),),
    ),
    "two at once": (
        "echo",
        (ask("echo", POST, method="POST", close=False) + ask("echo", POST, method="POST"),),
    ),
}

DIFFERENT = {
    "fields": "uvicorn leaves the white space behind a value (RFC 9110, 5.5: it is no part of it)",
    "cookies": "several Cookie fields are one, as RFC 9113 (8.2.3) has it for apps",
    "says_too_much": "the app gets a ValueError instead of a RuntimeError",
    "starts_twice": "uvicorn has sent the head of the first by then; ours answers 500",
    "bad_field": "uvicorn closes without an answer; ours answers 500",
    "other upgrade": "uvicorn loses the body of a request that offers another protocol",
    "says_too_little": "uvicorn sends what there is; ours sees it in time and answers 500",
}
"""Where ours and uvicorn differ, and why. Besides: a body that is there at once has its length,
where uvicorn sends it in chunks; and no ``Server`` is named."""


class Message(NamedTuple):
    """An answer, however it was framed."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes


_OURS_TO_SAY = {"date", "server", "content-length", "transfer-encoding"}


def answers_in(data: bytes) -> list[Message]:
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        fields = [(name.lower(), value) for name, _, value in (it.partition(": ") for it in lines)]
        known = dict(fields)
        status = int(line.split(" ")[1])
        if known.get("transfer-encoding") == "chunked":
            body, data = chunks_in(data)
        else:
            size = int(known.get("content-length", len(data))) if status >= 200 else 0
            body, data = data[:size], data[size:]
        kept = sorted(field for field in fields if field[0] not in _OURS_TO_SAY)
        found.append(Message(status, kept, body))
    return found


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with both() as pair:
        yield pair


def outcome(server: Server, case: str, parts: tuple[bytes, ...]) -> tuple[list[Message], list[Any]]:
    """What the client gets, and what the app."""
    answer = server.say(*parts)
    records = server.records(case)
    for kind, what in records:
        if kind == "scope":
            assert what["server"] == ["127.0.0.1", server.port]
            del what["server"]
            if what["client"][1]:
                what["client"][1] = "its port"
    return answers_in(answer), records


@pytest.mark.parametrize("name", CASES)
def test_the_app_and_the_client_are_told_what_uvicorn_tells_them(
    name: str, servers: tuple[Server, Server]
) -> None:
    case, parts = CASES[name]
    ours, theirs = (outcome(server, case, parts) for server in servers)
    if name in DIFFERENT:
        assert ours != theirs, f"they agree now: {DIFFERENT[name]}"
    else:
        assert ours == theirs


def test_a_body_that_is_there_at_once_has_its_length(servers: tuple[Server, Server]) -> None:
    for path in ("hello", "echo"):
        assert b"\r\nContent-Length: " in servers[0].say(ask(path))
    for path in ("pieces", "slowly"):
        assert b"\r\nTransfer-Encoding: chunked\r\n" in servers[0].say(ask(path))


def test_what_an_old_client_gets_in_pieces_ends_with_the_connection(
    servers: tuple[Server, Server],
) -> None:
    answer = servers[0].say(b"GET /case/pieces HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nonetwothree")
    assert b"chunked" not in answer


@pytest.mark.parametrize("case", ["raises", "exits", "says_nothing", "bad_field"])
def test_a_failure_costs_its_request_and_not_the_connection(
    case: str, servers: tuple[Server, Server]
) -> None:
    first, second = answers_in(servers[0].say(ask(case, close=False), ask("hello")))
    assert (first.status, second.status, second.body) == (500, 200, b"hello")


def test_a_client_that_closes_its_side_is_answered(servers: tuple[Server, Server]) -> None:
    (answer,) = answers_in(servers[0].say(ask("slowly", close=False), shut=True))
    assert (answer.status, answer.body) == (200, b"late")


def test_that_it_closes_is_said_to_an_app_that_waits_for_it(
    servers: tuple[Server, Server],
) -> None:
    asked = ask("waits_for_the_end", POST, method="POST", close=False)
    (answer,) = answers_in(servers[0].say(asked, shut=True))
    assert (answer.status, answer.body) == (200, b"hello")
    kinds = [what["type"] for kind, what in servers[0].records("waits_for_the_end")[1:-1]]
    assert kinds == ["http.request", "http.disconnect"]


def test_a_client_that_leaves_in_mid_body_is_a_disconnect(servers: tuple[Server, Server]) -> None:
    for server in servers:
        with server.connect() as sock:
            sock.sendall(ask("echo", POST, method="POST")[:-2])
        received = [what for kind, what in server.records("echo") if kind == "received"]
        assert received[-1]["type"] == "http.disconnect"


def test_a_malformed_chunk_is_400_and_the_end(servers: tuple[Server, Server]) -> None:
    asked = ask("echo", CHUNKS.replace(b"2;x", b"0x2;x"), method="POST", close=False)
    (answer,) = answers_in(servers[0].say(asked))
    assert answer.status == 400
    assert servers[0].records("echo")[-2][1]["type"] == "http.disconnect"


def test_a_large_body_comes_and_goes_whole(servers: tuple[Server, Server]) -> None:
    data = bytes(range(256)) * 4096 * 8
    asked = ask("echo", b"Content-Length: %d\r\n\r\n" % len(data), method="POST")
    sender, answer = servers[0].connect(), b""
    with sender:
        sender.sendall(asked + data)
        while block := sender.recv(1 << 20):
            answer += block
    assert answers_in(answer)[0].body == data


def test_a_hundred_requests_at_once_are_answered_in_order(servers: tuple[Server, Server]) -> None:
    asked = ask("echo", POST, method="POST", close=False) * 99 + ask("hello")
    found = answers_in(servers[0].say(asked))
    assert [answer.body for answer in found] == [b"hello"] * 100


def test_a_request_has_nothing_of_the_context_of_the_one_before(
    servers: tuple[Server, Server],
) -> None:
    asked = ask("context", close=False) * 2 + ask("context")
    assert [it.body for it in answers_in(servers[0].say(asked))] == [b"nobody"] * 3
