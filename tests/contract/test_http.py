"""What the contract says about HTTP, row by row, where no other test of this folder does.

Whose a request is, pipelining, HTTP/1.0, Expect, answers without a body and upgrades are in
test_shared; what comes slowly or never in test_bad_input.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.harness import Kind, Running, wait_until
from tests.process.clients import Client, head, parse
from tests.process.shared_kit import Line, Reply

BODY_TIMEOUT = WRITE_TIMEOUT = 2.0
OPTIONS = ["--body-timeout", str(BODY_TIMEOUT), "--write-timeout", str(WRITE_TIMEOUT)]


@pytest.fixture(scope="module")
def running(kind: Kind) -> Iterator[Running]:
    """One worker, not behind a proxy."""
    with kind.serve(f"tests.contract.apps:{kind.interface}", num=1, options=OPTIONS) as running:
        yield running


@pytest.fixture
def line(running: Running) -> Iterator[Line]:
    with Line(running.port) as line:
        yield line


def seen(reply: Reply) -> dict[str, Any]:
    """What the app says that it has seen."""
    assert reply.status == 200, reply
    found: dict[str, Any] = json.loads(reply.body)
    return found


def calls(running: Running) -> int:
    return int(running.get("/calls").body)


def stats(running: Running) -> dict[str, int]:
    found: dict[str, int] = running.get("/stats").json()
    return found


# -- what is accepted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("/a/b?c=d&e", "/a/b", "c=d&e", "test"),
        ("/", "/", "", "test"),
        ("/a%20b%2Fc%C3%A9", "/a b/c\xc3\xa9", "", "test"),
        ("//a//../b", "//a//../b", "", "test"),
        ("/?a?b=%20", "/", "a?b=%20", "test"),
        ("http://other:81/a?b", "/a", "b", "other:81"),
        ("HTTPS://other", "/", "", "other"),
        ("http://other?b", "/", "b", "other"),
    ],
)
def test_a_target_is_what_rfc_9112_says(
    line: Line, kind: Kind, target: str, path: str, query: str, host: str
) -> None:
    line.send(head(target=target))
    found = seen(line.reply())
    if kind.interface == "asgi":  # which has text where WSGI has bytes
        path = path.encode("latin-1").decode()
    assert (found["path"], found["query"], found["fields"]["host"]) == (path, query, host)


def test_options_of_everything_is_answered(line: Line) -> None:
    line.send(head(method="OPTIONS", target="*"))
    assert seen(line.reply())["method"] == "OPTIONS"


def test_several_cookie_lines_are_one(line: Line) -> None:
    line.send(head("Cookie: a=b", "X: y", "cookie: c=d; e=f"))
    assert seen(line.reply())["fields"]["cookie"] == "a=b; c=d; e=f"


def test_several_lines_of_a_name_are_a_list(line: Line) -> None:
    line.send(head("X-Many: a", "X-Other: y", "x-many:b ,c"))
    assert seen(line.reply())["fields"]["x-many"].replace(" ", "").replace(",", "") == "abc"


def test_extensions_and_trailers_of_chunks_are_dropped(line: Line) -> None:
    chunks = b'5;a=b;c="d"\r\nhello\r\n1 ;e\r\n!\r\n0;f\r\nX-Trailer: g\r\nHost: evil\r\n\r\n'
    for size in (b"5;a=b", b'5;a="b"'):
        body = size + b"\r\nhello\r\n0;f\r\nX-Trailer: g\r\nHost: evil\r\n\r\n"
        line.send(head("Transfer-Encoding: chunked", method="POST") + body)
        found = seen(line.reply())
        assert found["body"] == "hello"
        assert found["fields"]["host"] == "test"
        assert "x-trailer" not in found["fields"]
    line.send(head("Transfer-Encoding: chunked", method="POST") + chunks)  # refused or not:
    assert line.reply().status in (200, 400)  # a space before the semicolon is bad white space


@pytest.mark.parametrize(
    ("version", "understood"), [("1.0", "1.0"), ("1.1", "1.1"), ("1.2", "1.1")]
)
def test_a_version_of_http_1_is_understood(line: Line, version: str, understood: str) -> None:
    """RFC 9110, 2.5: of a later one as much as we know."""
    line.send(head().replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    assert seen(line.reply())["version"] == f"HTTP/{understood}"


def test_an_offer_of_another_protocol_keeps_its_body(line: Line) -> None:
    """RFC 9110, 7.8: whoever does not take it goes on as if it had not been there."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA")
    line.send(head(*offer, "Content-Length: 5", method="POST") + b"hello")
    assert seen(line.reply())["body"] == "hello"


def test_names_that_would_meet_in_an_environ_are_dropped(line: Line, kind: Kind) -> None:
    line.send(head("X_Real: evil", "X-Real: good", "Content_Length: 7"))
    found = seen(line.reply())["fields"]
    assert found["x-real"] == "good"
    if kind.interface == "asgi":  # where they do not meet
        assert (found.pop("x_real"), found.pop("content_length")) == ("evil", "7")
    assert "evil" not in str(found)
    assert "7" not in found.values()


# -- what is refused -------------------------------------------------------------------------------

POST = {"method": "POST", "target": "/unread"}
CHUNKED = "Transfer-Encoding: chunked"
REFUSED: dict[str, tuple[bytes, int]] = {
    "a bare CR": (head("X: a\rb"), 400),
    "NUL": (head("X: a\0b"), 400),
    "a bare LF": (head("X: a\nY: b"), 400),
    "a bare LF at the end": (b"GET / HTTP/1.1\r\nHost: test\r\n\n", 400),
    "a folded line": (head("X: a", " b"), 400),
    "a folded line with a tab": (head("X: a", "\tb"), 400),
    "white space before a colon": (head("X : a"), 400),
    "white space in a name": (head("X Y: a"), 400),
    "no name": (head(": a"), 400),
    "no colon": (head("X"), 400),
    "no Host": (b"GET / HTTP/1.1\r\nX: a\r\n\r\n", 400),
    "two Host lines": (head("Host: test"), 400),
    "a Host that is none": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "a Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "two lengths": (head("Content-Length: 5", "Content-Length: 6", **POST), 400),
    "two equal lengths": (head("Content-Length: 5", "Content-Length: 5", **POST), 400),
    "a list of lengths": (head("Content-Length: 5, 5", **POST), 400),
    "a length with a sign": (head("Content-Length: +5", **POST), 400),
    "a negative length": (head("Content-Length: -5", **POST), 400),
    "a length of 19 digits": (head("Content-Length: " + "1" * 19, **POST), 400),
    "an empty length": (head("Content-Length: ", **POST), 400),
    "a length and chunks": (head("Content-Length: 5", CHUNKED, **POST), 400),
    "chunks in HTTP/1.0": (head(CHUNKED, **POST).replace(b"P/1.1", b"P/1.0"), 400),
    "chunked twice": (head(CHUNKED, CHUNKED, **POST), 400),
    "chunked, chunked": (head("Transfer-Encoding: chunked, chunked", **POST), 400),
    "not chunked at last": (head("Transfer-Encoding: chunked, gzip", **POST), 400),
    "no coding": (head("Transfer-Encoding:", **POST), 400),
    "another coding": (head("Transfer-Encoding: gzip, chunked", **POST), 501),
    "a target with a space": (head(target="/a b"), 400),
    "a target with a fragment": (head(target="/#a"), 400),
    "a target with a control character": (head(target="/\x7f"), 400),
    "HTTP/2.0": (head().replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "CONNECT": (head(method="CONNECT", target="test:80"), 501),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_does_not_reach_the_app(running: Running, data: bytes, status: int) -> None:
    before = calls(running)
    with Client(running.port, data + head(target="/never")) as client:
        answer = parse(client.rest())
    assert (answer.status, answer.headers["Connection"]) == (status, "close")
    assert calls(running) == before


CHUNKS = [b"5 \r\nhello", b" 5\r\nhello", b"+5\r\nhello", b"0x5\r\nhello", b"5\nhello\r\n", b"\r\n"]
CHUNKS += [b"-1\r\nhello", b"5\r\nhelloXX", b"5\r\nhello\n0\r\n\r\n", b"g\r\n", b"1" * 20 + b"\r\n"]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("path", ["/read", "/unread"])
def test_what_is_no_chunk_ends_the_connection(running: Running, path: str, chunks: bytes) -> None:
    with Client(running.port, head(CHUNKED, method="POST", target=path)) as client:
        client.send(chunks + head(target="/never"))
        answers = client.rest()
    if path == "/read":
        answer = parse(answers)
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
    assert b"/never" not in answers


# -- answers ---------------------------------------------------------------------------------------


def said(target: str, line: Line) -> Reply:
    line.send(head(target=target))
    return line.reply()


def test_there_is_a_date_and_no_server(line: Line) -> None:
    headers = said("/say", line).headers
    assert headers["date"].endswith(" GMT")
    assert "server" not in headers
    assert said("/say?name=Date&value=today", line).headers["date"] == "today"


@pytest.mark.parametrize(
    "query",
    [
        "name=X&value=a%0D%0ASet-Cookie:b",
        "name=X&value=a%0Ab",
        "name=X&value=a%0Db",
        "name=X&value=a%00b",
        "name=X%20Y&value=a",
        "name=X:&value=a",
        "name=&value=a",
        "name=X%0D%0AY&value=a",
        "name=Content-Length&value=%2B5",
        "name=Content-Length&value=x",
    ],
)
def test_a_field_that_cannot_be_sent_is_500_and_one_line(
    running: Running, line: Line, query: str
) -> None:
    mark = len(running.log())
    assert said("/say?" + query, line).status == 500
    running.wait_for(r"/say\?", after=mark)
    assert "Traceback" not in running.log()[mark:]
    assert running.get("/say").status == 200


@pytest.mark.parametrize(
    "name", ["Transfer-Encoding", "Keep-Alive", "Upgrade", "Proxy-Connection", "TE", "Trailer"]
)
def test_what_is_between_us_and_the_client_is_not_the_apps_to_say(line: Line, name: str) -> None:
    reply = said(f"/say?name={name}&value=evil", line)
    assert (reply.status, reply.body) == (200, b"said")
    assert "evil" not in reply.headers.values()
    assert said("/say", line).status == 200


@pytest.mark.parametrize(("length", "what"), [(3, "longer"), (9, "shorter")])
def test_an_answer_has_its_length_or_ends_the_connection(
    running: Running, kind: Kind, length: int, what: str
) -> None:
    """Never a byte that could be taken for another answer's. Where none has gone out it is 500."""
    mark = len(running.log())
    target = f"/say?name=Content-Length&value={length}"
    with Client(running.port, head(target=target) + head(target="/never")) as client:
        answer = client.rest()
    fields, _, body = answer.partition(b"\r\n\r\n")
    if kind.interface == "asgi":
        assert fields.startswith(b"HTTP/1.1 500 ")
    else:
        assert b"Content-Length: %d\r\n" % length in fields + b"\r\n"
        assert body == b"said"[:length]
    assert b"HTTP/1.1" not in body
    running.wait_for(f"{what} than its Content-Length", after=mark)


def test_each_block_goes_out_at_once(running: Running, line: Line) -> None:
    gate = quote(str(time.monotonic()))
    line.send(head(target=f"/blocks?{gate}"))
    while b"first" not in line._read:
        line._more()
    assert running.get(f"/open?{gate}").status == 200
    assert line.reply().body == b"firstsecond"


@pytest.mark.parametrize("what", ["Exception", "SystemExit", "BaseException"])
def test_whatever_an_app_raises_costs_that_request_a_500(
    running: Running, line: Line, what: str
) -> None:
    before, pids = stats(running)["app_errors"], running.worker_pids()
    assert said(f"/raise?what={what}", line).status == 500
    assert said("/say", line).body == b"said"  # on the same connection, too
    assert stats(running)["app_errors"] == before + 1
    assert running.worker_pids() == pids


# -- time ------------------------------------------------------------------------------------------


def test_a_body_that_does_not_come_is_408_and_counted(running: Running) -> None:
    before = stats(running)["body_timeouts"]
    with Client(running.port, head("Content-Length: 5", method="POST") + b"he") as client:
        answer = parse(client.rest())
    assert (answer.status, answer.headers["Connection"]) == (408, "close")
    assert stats(running)["body_timeouts"] == before + 1


def test_a_body_may_take_longer_than_that_if_it_goes_on(running: Running) -> None:
    lines = "Content-Length: 8"
    with Client(running.port, head(lines, "Connection: close", method="POST")) as client:
        for _ in range(8):
            time.sleep(BODY_TIMEOUT / 6)  # each pause is shorter, and all of them longer
            client.send(b"x")
        assert json.loads(parse(client.rest()).body)["body"] == "xxxxxxxx"


def test_a_client_that_takes_nothing_is_given_up_and_counted(running: Running) -> None:
    before = stats(running)["write_timeouts"]
    with Line(running.port, buffer=4096) as line:
        line.send(head(target="/large?size=30000000"))
        while b"x" not in line._read:
            line._more()
        wait_until(lambda: stats(running)["write_timeouts"] == before + 1)


# -- who the client is -----------------------------------------------------------------------------


def test_a_trusted_proxy_says_who_the_client_is_and_how_it_came(line: Line) -> None:
    line.send(head("X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"))
    found = seen(line.reply())
    assert (found["client"], found["scheme"]) == ("203.0.113.7", "https")
    line.send(head())
    found = seen(line.reply())
    assert (found["client"], found["scheme"]) == ("127.0.0.1", "http")


def test_whoever_is_not_trusted_says_nothing_about_it(kind: Kind) -> None:
    target = f"tests.contract.apps:{kind.interface}"
    with (
        kind.serve(target, num=1, options=["--forwarded-allow-ips", "192.0.2.1"]) as running,
        Line(running.port) as line,
    ):
        line.send(head("X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"))
        found = seen(line.reply())
    assert (found["client"], found["scheme"]) == ("127.0.0.1", "http")
    assert found["fields"]["x-forwarded-for"] == "203.0.113.7"  # as it was sent
