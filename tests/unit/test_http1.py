"""One connection's HTTP, from bytes to requests and from answers to bytes: no socket, no clock."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky import rules
from sticky.answers import refusals
from sticky.options import Options
from sticky.worker import http1
from sticky.worker.http1 import (
    IN_CHUNKS,
    LENGTH,
    NO_BODY,
    UNTIL_CLOSE,
    BadAnswer,
    Http1,
    Refused,
    date_line,
    retell,
    status_line,
    switch,
)

from .core_kit import TWINS, examples

LIMIT = 4096
DATE = b"Date: Thu, 26 Nov 2026 12:00:00 GMT\r\n"


@pytest.fixture(params=TWINS, autouse=True)
def twin(request: pytest.FixtureRequest):
    """Everything here holds over each twin of the core."""
    core = TWINS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse", "Chunks", "Head", "end_of_head"):
            patch.setattr(http1, name, getattr(core, name))
        yield core


def request(
    *lines: str, method: str = "GET", target: str = "/", minor: int = 1, body: bytes = b""
) -> bytes:
    head = [f"{method} {target} HTTP/1.{minor}", "Host: test", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def chunked(*chunks: bytes, trailers: str = "") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return body + b"0\r\n" + trailers.encode() + b"\r\n"


def begun(data: bytes, limit: int = LIMIT) -> Http1:
    """A connection whose first request is in hand."""
    http = Http1(limit)
    http.receive(data)
    head = http.next_head()
    assert head is not None
    http.begin(head)
    return http


def body_of(http: Http1) -> bytes:
    """What is there of the body."""
    return b"".join(iter(http.body, b""))


# -- how an answer is framed -----------------------------------------------------------------------

CLOSE, KEEP = b"Connection: close", b"Connection: keep-alive"
GIVEN = [("Content-Length", "5")]
HALF = request("Expect: 100-continue", "Content-Length: 5", method="POST")
UPGRADE = ("Connection: Upgrade", "Upgrade: x")

FRAMED = {
    # request, status, fields, size: framing, the lines that say so, whether the connection stays
    "its whole body is there": (request(), 200, [], 5, LENGTH, [b"Content-Length: 5"], True),
    "nothing is there": (request(), 200, [], 0, LENGTH, [b"Content-Length: 0"], True),
    "the app knows its length": (request(), 200, GIVEN, None, LENGTH, [b"Content-Length: 5"], True),
    "the app's length counts": (request(), 200, GIVEN, 3, LENGTH, [b"Content-Length: 5"], True),
    "nobody knows its length": (
        *(request(), 200, [], None),
        *(IN_CHUNKS, [b"Transfer-Encoding: chunked"], True),
    ),
    "HEAD": (request(method="HEAD"), 200, [], None, NO_BODY, [], True),
    "HEAD with a length": (
        *(request(method="HEAD"), 200, GIVEN, None),
        *(NO_BODY, [b"Content-Length: 5"], True),
    ),
    "204": (request(), 204, [], 0, NO_BODY, [], True),
    "204 with a length": (request(), 204, GIVEN, 5, NO_BODY, [], True),
    "304": (request(), 304, [], None, NO_BODY, [], True),
    "304 with a length": (request(), 304, GIVEN, None, NO_BODY, [b"Content-Length: 5"], True),
    "HTTP/1.0": (request(minor=0), 200, GIVEN, None, LENGTH, [b"Content-Length: 5", CLOSE], False),
    "HTTP/1.0 that is kept": (
        *(request("Connection: keep-alive", minor=0), 200, GIVEN, None),
        *(LENGTH, [b"Content-Length: 5", KEEP], True),
    ),
    "HTTP/1.0 that would be kept, and nobody knows its length": (
        *(request("Connection: keep-alive", minor=0), 200, [], None),
        *(UNTIL_CLOSE, [CLOSE], False),
    ),
    "HTTP/1.0, nobody knows its length": (
        *(request(minor=0), 200, [], None),
        *(UNTIL_CLOSE, [CLOSE], False),
    ),
    "HTTP/1.0, 204, kept": (
        *(request("Connection: keep-alive", minor=0), 204, [], 0),
        *(NO_BODY, [KEEP], True),
    ),
    "the client closes": (
        *(request("Connection: close"), 200, [], 5),
        *(LENGTH, [b"Content-Length: 5", CLOSE], False),
    ),
    "the app closes": (
        *(request(), 200, [("connection", "Close")], 5),
        *(LENGTH, [b"Content-Length: 5", CLOSE], False),
    ),
    "the app keeps what it may not": (
        *(request("Connection: close"), 200, [("Connection", "keep-alive")], 5),
        *(LENGTH, [b"Content-Length: 5", CLOSE], False),
    ),
    "an upgrade is refused": (
        *(request(*UPGRADE), 200, [], 5),
        *(LENGTH, [b"Content-Length: 5", CLOSE], False),
    ),
    "an upgrade that is not named is ignored": (
        *(request("Upgrade: x"), 200, [], 5),
        *(LENGTH, [b"Content-Length: 5"], True),
    ),
    "a body that waits for 100 is not wanted": (
        *(HALF, 200, [], 5),
        *(LENGTH, [b"Content-Length: 5", CLOSE], False),
    ),
    "the app frames it": (
        *(request(), 200, [("Transfer-Encoding", "chunked"), ("Keep-Alive", "timeout=5")], 5),
        *(LENGTH, [b"Content-Length: 5"], True),
    ),
}


@pytest.mark.parametrize("case", FRAMED.values(), ids=FRAMED)
def test_an_answer_is_framed_as_its_request_and_its_app_allow(case) -> None:
    asked, status, fields, size, framing, said, stays = case
    http = begun(asked)
    lines = http.answer(status, fields, DATE, size=size).split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % status)
    assert (http.framing, http.stays) == (framing, stays)
    assert sorted(lines[1:-2]) == sorted([*said, DATE.strip()])
    assert lines[-2:] == [b"", b""]


def test_who_was_told_to_continue_or_did_so_by_itself_may_stay() -> None:
    http = begun(HALF)
    assert http.wants_continue
    http.continued = True  # as who sends it says
    assert not http.wants_continue
    http.answer(200, [], DATE, size=0)
    assert http.stays

    http = begun(HALF + b"he")
    assert not http.wants_continue
    assert body_of(http) == b"he"
    http.answer(200, [], DATE, size=0)
    assert http.stays


@pytest.mark.parametrize("minor", [0, 1])
def test_continue_is_for_those_who_can_wait_for_it(minor: int) -> None:
    asked = request("Expect: 100-continue", "Content-Length: 5", method="POST", minor=minor)
    assert begun(asked).wants_continue == bool(minor)  # RFC 9110, 10.1.1
    assert not begun(request("Expect: 100-continue", "Content-Length: 0")).wants_continue


@pytest.mark.parametrize("kind", [str, bytes])
def test_fields_go_out_as_they_are(kind) -> None:
    fields = [("X-One", "a b"), ("x-one", "\xe9"), ("Set-Cookie", "a=b; c"), ("X-Empty", "")]
    if kind is bytes:
        fields = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    http = begun(request())
    said = http.answer(200, fields, DATE, size=0)
    assert said.split(b"\r\n")[1:5] == [
        b"X-One: a b",
        b"x-one: \xe9",
        b"Set-Cookie: a=b; c",
        b"X-Empty: ",
    ]


def test_there_is_one_date_and_the_apps_comes_first() -> None:
    said = begun(request()).answer(200, [("date", "today")], DATE, size=0)
    assert b"date: today\r\n" in said
    assert said.lower().count(b"date:") == 1


def test_a_reason_of_the_apps_own_is_sent() -> None:
    assert (
        begun(request())
        .answer(299, [], DATE, size=0, line=status_line("299 So so")[1])
        .startswith(b"HTTP/1.1 299 So so\r\n")
    )
    assert begun(request()).answer(299, [], DATE, size=0).startswith(b"HTTP/1.1 299 \r\n")


BAD = {
    "CR in a value": (200, [("X", "a\rb")]),
    "LF in a value": (200, [("X", "a\nb")]),
    "CRLF that would be a line": (200, [("X", "a\r\nSet-Cookie: b=c")]),
    "CRLF that would be the body": (200, [("X", "a\r\n\r\n<html>")]),
    "NUL in a value": (200, [("X", "a\0b")]),
    "CR in the middle of lines that count right": (200, [("X", "a\r"), ("Y", "\nb")]),
    "no latin-1": (200, [("X", "€")]),
    "a space in a name": (200, [("X Y", "a")]),
    "a colon in a name": (200, [("X:", "a")]),
    "a line end in a name": (200, [("X\r\nY", "a")]),
    "no name": (200, [("", "a")]),
    "a name that is no latin-1": (200, [("€", "a")]),
    "a name that is no text": (200, [(None, "a")]),
    "two lengths": (200, [("Content-Length", "5"), ("Content-Length", "6")]),
    "a negative length": (200, [("Content-Length", "-5")]),
    "a length with a sign": (200, [("Content-Length", "+5")]),
    "a length in words": (200, [("Content-Length", "five")]),
    "a length that is too long": (200, [("Content-Length", "1" * 19)]),
    "no length": (200, [("Content-Length", "")]),
    "a status that is interim": (150, []),
    "a status of two digits": (99, []),
    "a status of four digits": (1000, []),
}


@pytest.mark.parametrize(("status", "fields"), BAD.values(), ids=BAD)
def test_what_cannot_be_sent_is_an_error_of_the_apps(status: int, fields) -> None:
    with pytest.raises(BadAnswer):
        begun(request()).answer(status, fields, DATE, size=0)


@pytest.mark.parametrize("reason", ["a\r\nX: b", "a\nb", "a\0", "\u20ac"])
def test_a_reason_is_no_place_for_a_line_end(reason: str) -> None:
    with pytest.raises(BadAnswer):
        status_line(f"200 {reason}")


@given(
    name=st.text(st.sampled_from("aX-:\r\n\0 é€"), max_size=5),
    value=st.text(st.sampled_from("a b:\r\n\0é€"), max_size=6),
)
@examples(300)
def test_whatever_the_app_says_makes_one_line_or_an_error(name: str, value: str) -> None:
    http = begun(request())
    try:
        said = http.answer(200, [(name, value)], DATE, size=0)
    except BadAnswer:
        return
    lines = said.split(b"\r\n")
    assert len(lines) == 6
    assert f"{name}: {value}".encode("latin-1") in lines


# -- the body of an answer -------------------------------------------------------------------------


def test_never_more_than_the_length_said() -> None:
    http = begun(request())
    http.answer(200, GIVEN, DATE)
    assert http.data(b"he") == b"he"
    with pytest.raises(BadAnswer, match="by 2 bytes"):
        http.data(b"lloXX")
    assert http.left_to_send == 3  # which may be sent of it
    assert not http.stays


def test_who_says_less_than_the_length_loses_the_connection() -> None:
    http = begun(request())
    http.answer(200, GIVEN, DATE)
    http.data(b"hell")
    with pytest.raises(BadAnswer, match="by 1 byte"):
        http.last()
    assert not http.stays


def test_a_body_in_chunks_ends_where_it_ends_and_not_at_an_empty_block() -> None:
    http = begun(request())
    http.answer(200, [], DATE)
    blocks = [b"hello", b"", b"x" * 300]
    sent = b"".join(http.data(block) for block in blocks) + http.last()
    assert sent == b"5\r\nhello\r\n12c\r\n" + b"x" * 300 + b"\r\n0\r\n\r\n"
    assert http.stays


@pytest.mark.parametrize("asked", [request(method="HEAD"), request()])
def test_where_there_is_no_body_none_is_sent(asked: bytes) -> None:
    http = begun(asked)
    http.answer(200 if asked.startswith(b"HEAD") else 304, [], DATE)
    assert http.data(b"hello") == http.last() == b""
    assert http.stays


def test_a_body_that_ends_with_the_connection_goes_out_as_it_is() -> None:
    http = begun(request(minor=0))
    http.answer(200, [], DATE)
    assert http.data(b"hello") + http.last() == b"hello"


# -- heads -----------------------------------------------------------------------------------------


def test_a_head_that_is_not_all_there_is_waited_for() -> None:
    whole = request("X: y")
    for cut in range(len(whole)):
        http = Http1(LIMIT)
        http.receive(whole[:cut])
        assert http.next_head() is None
        http.receive(whole[cut:])
        head = http.next_head()
        assert head is not None
        assert head.end == len(whole)
        assert http.unread == whole  # nothing is consumed yet: it may be another's


@pytest.mark.parametrize("size", [1, 7, LIMIT])
def test_a_head_may_be_as_long_as_the_limit_and_no_longer(size: int) -> None:
    for longer, status in (0, None), (1, 431):
        empty = len(request("X: "))
        whole = request("X: " + "a" * (LIMIT - empty + longer))
        assert len(whole) == LIMIT + longer
        assert judged(whole, size) == status


def judged(data: bytes, step: int) -> int | None:
    """The status with which this is refused, in pieces of this size; None: it is a request."""
    http, head = Http1(LIMIT), None
    try:
        for start in range(0, len(data), step):
            http.receive(data[start : start + step])
            head = http.next_head()
    except Refused as refused:
        return refused.status if refused.why else -1
    return None if head is not None else 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (request("X : y"), 400),
        (request("Content-Length: 5", "Content-Length: 5"), 400),
        (request("Transfer-Encoding: gzip, chunked"), 501),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET /" + b"a" * LIMIT, 431),
    ],
)
def test_what_is_no_request_is_refused_with_its_status(data: bytes, status: int) -> None:
    for step in 1, 5, len(data):
        assert judged(data, step) == status


def test_a_long_head_in_single_bytes_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its end is looked for, from where it was not found the last time."""
    parsed, looked, parse, look = [], [], http1.parse, http1.end_of_head
    monkeypatch.setattr(http1, "parse", lambda *a: parsed.append(1) or parse(*a))
    monkeypatch.setattr(
        http1, "end_of_head", lambda *a: looked.append(len(a[0]) - a[2]) or look(*a)
    )
    http, whole, head = Http1(65536), request("X: " + "a" * 20_000), None
    for byte in whole:
        http.receive(bytes([byte]))
        head = http.next_head()
    assert head is not None
    assert len(parsed) == 2  # at the first byte, and at the last
    assert sum(looked) <= len(whole)


# -- bodies of requests ----------------------------------------------------------------------------

BODY = b"0\r\n\r\nGET /never HTTP/1.1\r\n\r\n"
FRAMINGS = {
    "a length": request(f"Content-Length: {len(BODY)}", method="POST", body=BODY),
    "one chunk": request("Transfer-Encoding: chunked", method="POST", body=chunked(BODY)),
    "chunks": request(
        "Transfer-Encoding: chunked", method="POST", body=chunked(*(bytes([b]) for b in BODY))
    ),
    "trailers": request(
        "Transfer-Encoding: chunked", method="POST", body=chunked(BODY, trailers="X: y\r\n")
    ),
}
NEXT = request(target="/next")


@pytest.mark.parametrize("whole", FRAMINGS.values(), ids=FRAMINGS)
def test_a_body_cut_at_every_offset_is_the_same_and_so_is_what_follows(whole: bytes) -> None:
    for cut in range(len(whole) + len(NEXT) + 1):
        data, http, body, targets = whole + NEXT, Http1(LIMIT), b"", []
        for piece in (data[:cut], data[cut:]):
            if not piece:
                continue
            http.receive(piece)
            while True:
                if http.head is None:
                    if (head := http.next_head()) is None:
                        break
                    http.begin(head)
                    targets.append(head.target)
                body += body_of(http)
                if not http.body_is_over:
                    break
                http.end()
        assert (body, targets, http.unread) == (BODY, [b"/", b"/next"], b""), cut


@pytest.mark.parametrize("framing", ["a length", "chunks"])
def test_what_is_behind_a_body_is_not_read_with_it(framing: str) -> None:
    http = begun(FRAMINGS[framing] + NEXT)
    assert body_of(http) == BODY
    assert http.body_is_over
    assert http.ahead
    assert http.unread == NEXT
    http.end()
    assert bytes(http.buffer) == NEXT
    assert http.head is None


@pytest.mark.parametrize("body", [b"5 \r\nhello", b"+5\r\nhello", b"0x5\r\n", b"5\nhello", b"\r\n"])
def test_chunks_that_are_none_end_the_connection(body: bytes) -> None:
    http = begun(request("Transfer-Encoding: chunked", method="POST", body=body))
    with pytest.raises(Refused) as caught:
        body_of(http)
    assert caught.value.status == 400
    assert not http.stays


def test_a_request_without_a_body_is_over_at_once() -> None:
    for asked in (request(), request("Content-Length: 0"), request(method="POST")):
        http = begun(asked + NEXT)
        assert http.body_is_over
        assert http.body() == b""
        assert http.unread == NEXT


# -- many ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 50, 1 << 20])
def test_pipelined_requests_come_out_in_order(step: int) -> None:
    chance = random.Random(step)
    whole, expected = b"", []
    for number in range(100):
        body = chance.randbytes(chance.choice([0, 1, 40]))
        framing = chance.choice(["Content-Length", "Transfer-Encoding"])
        if framing == "Content-Length":
            lines, sent = [f"Content-Length: {len(body)}"], body
        else:
            lines, sent = ["Transfer-Encoding: chunked"], chunked(*([body] if body else []))
        whole += request(*lines, method="PUT", target=f"/{number}", body=sent)
        expected.append((b"/%d" % number, body))
    http, found, body = Http1(LIMIT), [], b""
    for start in range(0, len(whole), step):
        http.receive(whole[start : start + step])
        while True:
            if http.head is None:
                head = http.next_head()
                if head is None:
                    break
                http.begin(head)
            body += body_of(http)
            if not http.body_is_over:
                break
            found.append((http.head.target, body))
            http.end()
            body = b""
    assert found == expected


def test_tiny_pieces_of_a_body_cost_a_step_each(monkeypatch: pytest.MonkeyPatch, twin) -> None:
    """As many calls of the decoder as there are pieces and chunks, not their product."""
    calls = itertools.count()

    class Counting:
        def __init__(self) -> None:
            self.chunks = twin.Chunks()

        def feed(self, *arguments):
            next(calls)
            return self.chunks.feed(*arguments)

        @property
        def over(self) -> bool:
            return self.chunks.over

    monkeypatch.setattr(http1, "Chunks", Counting)
    body = chunked(*([b"x"] * 3000))
    http = begun(request("Transfer-Encoding: chunked", method="POST"))
    got = b""
    for byte in body:
        http.receive(bytes([byte]))
        got += body_of(http)
        assert len(http.buffer) <= 2  # what is over is not carried along
    assert got == b"x" * 3000
    assert http.body_is_over
    assert next(calls) <= 2 * len(body) + 2 * 3000


# -- the rest --------------------------------------------------------------------------------------


def test_the_date_changes_with_the_second() -> None:
    assert date_line(7.9) == date_line(7.0) == b"Date: Thu, 01 Jan 1970 00:00:07 GMT\r\n"
    assert date_line(8.0) == b"Date: Thu, 01 Jan 1970 00:00:08 GMT\r\n"


def test_a_switch_says_what_is_ours_to_say_once() -> None:
    said = switch(
        [(b"Sec-WebSocket-Accept", b"x"), (b"Upgrade", b"y"), (b"connection", b"z")], DATE
    )
    assert said.lower().count(b"upgrade: ") == said.lower().count(b"connection: ") == 1
    assert said.endswith(b"Sec-WebSocket-Accept: x\r\n\r\n")
    with pytest.raises(BadAnswer):
        switch([(b"X", b"a\r\nb")], DATE)


def test_every_refusal_has_a_status_and_a_text() -> None:
    answers = refusals(Options())
    for reason in rules._REFUSALS:
        assert rules.status(reason) in answers
        assert rules.refusal(reason)


def more(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*fields, (b"X", b"more")]


def test_the_switch_of_an_app_gets_other_fields() -> None:
    said = retell(b"HTTP/1.1 101 Go\r\nUpgrade:a \r\nEmpty:\r\n\r\nbehind\r\n\r\n", more)
    assert said == b"HTTP/1.1 101 Go\r\nUpgrade: a\r\nEmpty: \r\nX: more\r\n\r\nbehind\r\n\r\n"
    assert retell(memoryview(b"HTTP/1.1 101 \r\n\r\n"), more) == b"HTTP/1.1 101 \r\nX: more\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"HTTP/1.1 10", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 101 Go\r\n\r\n"),
        *(b"HTTP/1.1 101 Go\r\nUpgrade: a\r\n", b"HTTP/1.1 101 Go\r\nno field\r\n\r\n"),
        *(b"HTTP/1.1 101 Go\r\nA: b\r\n folded: c\r\n\r\n", bytearray(b"\x81\x01a")),
    ],
)
def test_what_is_no_switch_is_sent_as_it_is(data: bytes) -> None:
    assert retell(data, more) is data


def test_the_switch_of_an_app_is_sent_as_it_is_where_nothing_changes() -> None:
    said = b"HTTP/1.1 101 Go\r\nUpgrade:  a\r\n\r\n"
    assert retell(said, lambda fields: fields) is said
