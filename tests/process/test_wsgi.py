"""WSGI to the letter (PEP 3333), and HTTP around it, in each worker class that serves it."""

from __future__ import annotations

import bz2
import gzip
import http.client
import json
import lzma
import os
import socket
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness import KINDS, Answer, Kind, Running, wait_until
from tests.wsgi_cases import FILE

from .clients import Client, head

APP = "tests.wsgi_cases:app"


@pytest.fixture(scope="module", params=["eventlet", "gevent", "threads"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "file").write_bytes(FILE)
        (path / "file.huge").touch()
        os.truncate(path / "file.huge", 1 << 30)
        (path / "file.gz").write_bytes(gzip.compress(FILE))
        (path / "file.bz2").write_bytes(bz2.compress(FILE))
        (path / "file.xz").write_bytes(lzma.compress(FILE))
        yield path


def serve(kind: Kind, folder: Path, *options: str) -> Running:
    env = {"WSGI_CASES_FILE": str(folder / "file"), "TMPDIR": str(folder)}
    return kind.serve(APP, num=1, env=env, options=options)


@pytest.fixture(scope="module")
def server(kind: Kind, folder: Path) -> Iterator[Running]:
    with serve(kind, folder) as running:
        yield running
        # Of all that is done here, nothing is an error of ours.
        assert "an error outside the app" not in running.log()
        assert "an error in the worker's loop" not in running.log()


@pytest.fixture(scope="module")
def strict(kind: Kind, folder: Path) -> Iterator[Running]:
    """Below a path, on a unix socket too, with no patience and no faith."""
    options = ["--root-path", "/app", "--body-timeout", "0.3", "--write-timeout", "0.3"]
    options += ["--forwarded-allow-ips", ""]
    with serve(kind, folder, *options) as running:
        yield running


def get(running: Running, path: str, *lines: str, **options: Any) -> Answer:
    """The answer to one request, whose connection is read to its end: nothing is behind it."""
    with Client(running.port, request(path, *lines, **options)) as client:
        response = http.client.HTTPResponse(client.sock, method=options.get("method", "GET"))
        response.begin()
        answer = Answer(response.status, response.headers, response.read())
        assert client.rest() == b""
        return answer


def request(
    path: str, *lines: str, method: str = "GET", body: bytes | None = None, close: bool = True
) -> bytes:
    if body is not None:
        lines = (*lines, f"Content-Length: {len(body)}")
    if close:
        lines = (*lines, "Connection: close")
    return head(*lines, target=path, method=method) + (body or b"")


def notes(running: Running, key: str) -> list[Any]:
    found = running.get(f"/notes?of={key}").json()
    assert isinstance(found, list)
    return found


def wait_for_note(running: Running, key: str, note: Any) -> list[Any]:
    """Everything noted under that key, as soon as this is among it."""
    return wait_until(lambda: note in (found := notes(running, key)) and found)


def environ(running: Running, path: str = "/case/environ", *lines: str, **options: Any) -> Any:
    return get(running, path, *lines, **options).json()


def chunks(*blocks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in blocks) + b"0\r\n\r\n"


CHUNKED = "Transfer-Encoding: chunked"


# -- the shape of an answer --------------------------------------------------------------------

ANSWERS = {
    "hello": (200, b"hello"),
    "two_blocks": (200, b"hello"),
    "writes": (200, b"hello there"),
    "generator": (200, b"hello"),
    "iterator": (200, b"hello"),
    "nothing": (200, b""),
    "late_start": (202, b"late"),
    "later_start": (202, b"late"),
    "exc_info_before": (503, b"sorry"),
}


@pytest.mark.parametrize("where", ["case", "valid"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_the_app_says(server: Running, where: str, name: str) -> None:
    if (where, name) == ("valid", "later_start"):
        pytest.skip("the validator is stricter than PEP 3333 here")
    mark = len(server.log())
    answer = get(server, f"/{where}/{name}")
    assert (answer.status, answer.body) == ANSWERS[name]
    if name == "exc_info_before":
        assert answer.headers["X-Second"] == "2"
        assert answer.headers["X-First"] is None
    assert "Traceback" not in server.log()[mark:]


@pytest.mark.parametrize("where", ["case", "valid"])
@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "later_start"])
def test_the_answer_to_head_is_that_to_get_without_its_body(
    server: Running, where: str, name: str
) -> None:
    answer = get(server, f"/{where}/{name}", method="HEAD")
    assert (answer.status, answer.body) == (ANSWERS[name][0], b"")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_client_of_http_1_0_gets_the_whole_answer_too(server: Running, name: str) -> None:
    raw = f"GET /case/{name} HTTP/1.0\r\n\r\n".encode()
    with Client(server.port, raw) as client:
        answer = client.answer()
        assert (answer.status, answer.body) == ANSWERS[name]
        assert client.rest() == b""
        assert "transfer-encoding" not in answer.headers


def test_a_length_is_found_out_where_all_of_the_body_is_there(server: Running) -> None:
    assert get(server, "/case/hello").headers["Content-Length"] == "5"
    assert get(server, "/case/two_blocks").headers["Content-Length"] == "5"
    assert get(server, "/case/nothing").headers["Content-Length"] == "0"
    assert get(server, "/case/generator").headers["Transfer-Encoding"] == "chunked"
    head_of_it = get(server, "/case/hello", method="HEAD").headers
    assert "Transfer-Encoding" not in head_of_it


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_204_and_304_have_no_body_whatever_the_app_gives(
    server: Running, status: str, method: str
) -> None:
    path = f"/case/status?of={urllib.parse.quote(status)}"
    two = request(path, method=method, close=False) + request("/case/hello")
    with Client(server.port, two) as client:
        raw = client.rest()
    first, _, rest = raw.partition(b"\r\n\r\n")
    assert first.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert b"transfer-encoding" not in first.lower()
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")  # nothing is between the two
    assert rest.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(
    "name", ["never", "never_empty", "twice", "returns_none", "text", "raises"]
)
def test_what_is_no_answer_costs_its_request_a_500_and_a_traceback(
    server: Running, name: str
) -> None:
    mark = len(server.log())
    two = request(f"/case/{name}", close=False) + request("/case/hello")
    with Client(server.port, two) as client:
        answers = http_answers(client.rest())
    assert [answer[0] for answer in answers] == [500, 200]  # and the connection stays
    server.wait_for(rf"GET /case/{name}: the app failed\nTraceback", after=mark)


def http_answers(raw: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each, as the lengths say."""
    found = []
    while raw:
        first, _, raw = raw.partition(b"\r\n\r\n")
        status = int(first[9:12])
        fields = dict(line.lower().split(b": ", 1) for line in first.split(b"\r\n")[1:])
        size = int(fields[b"content-length"])
        found.append((status, raw[:size]))
        raw = raw[size:]
    return found


def test_exc_info_behind_the_head_is_raised_and_cuts_the_answer(server: Running) -> None:
    with Client(server.port, request("/case/exc_info_after", close=False)) as client:
        raw = client.rest()  # the connection ends: nothing else says that something is missing
    assert b"5\r\nbegun\r\n" in raw
    assert b"0\r\n\r\n" not in raw
    assert b"503" not in raw
    assert notes(server, "exc_info_after") == ["the first error"]


@pytest.mark.parametrize("name", ["exits", "interrupts"])
def test_an_exit_in_a_view_is_a_500_and_the_worker_lives(server: Running, name: str) -> None:
    before = server.worker_pids()
    with Client(server.port, request(f"/case/gated?gate={name}-")) as other:  # notices nothing
        other.read(5)
        assert get(server, f"/case/{name}").status == 500
        for number in (1, 2):
            server.get(f"/open?gate={name}-{number}")
        assert other.rest().endswith(b"end;\r\n0\r\n\r\n")
    assert server.worker_pids() == before


def test_an_exit_in_the_iteration_cuts_the_answer_and_the_worker_lives(server: Running) -> None:
    before = server.worker_pids()
    with Client(server.port, request("/case/exits_later")) as client:
        assert not client.rest().endswith(b"0\r\n\r\n")
    assert get(server, "/case/hello").status == 200
    assert server.worker_pids() == before


def test_wsgi_errors_is_the_log(server: Running) -> None:
    mark = len(server.log())
    assert get(server, "/valid/errors").status == 200
    server.wait_for("^written to wsgi.errors\nand lines$", after=mark)


# -- close() -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("get", {}),
        ("head", {"method": "HEAD"}),
        ("raises-first", {"query": "&raise=0"}),
        ("raises-later", {"query": "&raise=2"}),
        ("too-long", {"query": "&length=7"}),
        ("too-short", {"query": "&length=70"}),
        ("exact", {"query": "&length=20"}),
        ("bad-close", {}),
        ("head-bad-close", {"method": "HEAD"}),
    ],
)
def test_close_is_called_exactly_once(server: Running, what: str, options: dict[str, str]) -> None:
    path = f"/case/closes?key={what}" + options.get("query", "")
    with Client(server.port, request(path, method=options.get("method", "GET"))) as client:
        client.rest()
    assert wait_for_note(server, what, "closed") == ["closed"]


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_close_is_called_once_when_the_client_leaves_in_mid_stream(
    server: Running, leave: str, size: int
) -> None:
    key = f"{leave}-{size}"
    mark = len(server.log())
    client = Client(server.port, request(f"/case/endless?key={key}&size={size}"))
    client.read(500)
    getattr(client, leave)()
    assert wait_for_note(server, key, "closed") == ["closed"]
    assert "Traceback" not in server.log()[mark:]


def test_close_is_called_where_the_client_has_left_before_the_answer(server: Running) -> None:
    key = "left-before"
    path = f"/case/reads_late?gate={key}"
    client = Client(server.port, request(path, "Content-Length: 5"))
    wait_for_note(server, key, "waits")
    client.reset()
    mark = len(server.log())
    server.get(f"/open?gate={key}")
    wait_until(lambda: server.get("/stats").json()["open"] == 1)
    assert get(server, "/case/hello").status == 200
    assert "an error outside" not in server.log()[mark:]


# -- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["", "&length=1"])
@pytest.mark.parametrize("where", ["case", "valid"])
def test_each_block_goes_out_at_once(server: Running, where: str, length: str) -> None:
    gate = f"gate-{where}-{len(length)}-"
    with Client(server.port, request(f"/{where}/gated?gate={gate}{length}")) as client:
        got = b""
        for number, block in ((1, b"one;"), (2, b"two;"), (3, b"end;")):
            while block not in got:
                more = client.sock.recv(65536)
                assert more
                got += more
            assert got.count(b";") == number
            server.get(f"/open?gate={gate}{number}")
        client.rest()


def test_two_clients_are_served_while_a_third_waits_for_its_block(server: Running) -> None:
    with Client(server.port, request("/case/gated?gate=both-")) as client:
        client.read(5)
        for _ in range(2):
            assert get(server, "/case/hello").status == 200
        for number in (1, 2):
            server.get(f"/open?gate=both-{number}")
        assert client.rest().endswith(b"0\r\n\r\n")


def test_a_body_in_one_block_of_many_megabytes_arrives(server: Running) -> None:
    answer = get(server, "/case/big?key=big")
    assert len(answer.body) == 30_000_000
    assert wait_for_note(server, "big", "closed") == ["closed"]


# -- lengths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["", "&iter=1"])
def test_a_body_longer_than_its_length_is_cut_there_and_said(server: Running, way: str) -> None:
    mark = len(server.log())
    two = request(f"/case/lengths?length=12&blocks=3{way}", close=False) + request("/case/hello")
    with Client(server.port, two) as client:
        raw = client.rest()
    assert raw.endswith(b"\r\n\r\n123451234512")
    server.wait_for("the answer is longer than its Content-Length", after=mark)
    assert "Traceback" not in server.log()[mark:]


@pytest.mark.parametrize("way", ["", "&iter=1"])
def test_a_body_shorter_than_its_length_ends_the_connection_and_is_said(
    server: Running, way: str
) -> None:
    mark = len(server.log())
    two = request(f"/case/lengths?length=12&blocks=2{way}", close=False) + request("/case/hello")
    with Client(server.port, two) as client:
        raw = client.rest()
    assert b"Content-Length: 12\r\n" in raw
    assert raw.endswith(b"\r\n\r\n1234512345")
    server.wait_for("the answer is shorter than its Content-Length, by 2 bytes", after=mark)
    assert "Traceback" not in server.log()[mark:]


# -- fields ------------------------------------------------------------------------------------


def post_fields(server: Running, fields: Sequence[Sequence[str]], **what: Any) -> Answer:
    body = json.dumps({"fields": fields, **what}).encode()
    return get(server, "/case/fields", method="POST", body=body)


BAD: dict[str, dict[str, Any]] = {
    "CR in a value": {"fields": [["X-A", "a\rb"]]},
    "LF in a value": {"fields": [["X-A", "a\nb"]]},
    "CRLF in a value": {"fields": [["X-A", "a\r\nSet-Cookie: b"]]},
    "NUL in a value": {"fields": [["X-A", "a\0b"]]},
    "a value that is not latin-1": {"fields": [["X-A", "\u20ac"]]},
    "a space in a name": {"fields": [["X A", "a"]]},
    "a colon in a name": {"fields": [["X:A", "a"]]},
    "CRLF in a name": {"fields": [["X\r\nA", "a"]]},
    "no name": {"fields": [["", "a"]]},
    "a name that is not ASCII": {"fields": [["X-\xe4", "a"]]},
    "CRLF in the status": {"fields": [], "status": "200 OK\r\nX-A: b"},
    "NUL in the status": {"fields": [], "status": "200 O\0K"},
    "a status of two digits": {"fields": [], "status": "20 OK"},
    "a status of four digits": {"fields": [], "status": "2000 OK"},
    "a status of letters": {"fields": [], "status": "abc OK"},
    "no status": {"fields": [], "status": ""},
    "a status of 100": {"fields": [], "status": "100 Continue"},
    "a status of 101": {"fields": [], "status": "101 Switching Protocols"},
    "two lengths": {"fields": [["Content-Length", "5"], ["content-length", "6"]]},
    "a length that is none": {"fields": [["Content-Length", "+5"]]},
}


@pytest.mark.parametrize("what", BAD)
def test_a_status_or_field_that_cannot_be_sent_is_a_500_and_one_line(
    server: Running, what: str
) -> None:
    mark = len(server.log())
    answer = post_fields(server, **BAD[what])
    assert answer.status == 500
    assert answer.headers["Set-Cookie"] is None
    assert answer.headers["X-A"] is None
    server.wait_for("POST b?'/case/fields': .*", after=mark)
    said = server.log()[mark:].strip().splitlines()
    assert len(said) == 1, said


def test_hop_by_hop_fields_of_the_app_are_dropped(server: Running) -> None:
    hop = ["Transfer-Encoding", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade"]
    answer = post_fields(server, [[name, "chunked"] for name in hop] + [["X-Kept", "1"]])
    assert answer.status == 200
    assert answer.headers["X-Kept"] == "1"
    assert answer.body == b"hello"
    for name in hop:
        assert answer.headers[name] is None


def test_connection_close_of_the_app_is_kept_to(server: Running) -> None:
    body = json.dumps({"fields": [["Connection", "close"]]}).encode()
    path = request("/case/fields", method="POST", body=body, close=False)
    with Client(server.port, path) as client:
        answer = client.answer()
        assert answer.headers.get_all("Connection") == ["close"]
        assert client.rest() == b""


def test_the_reason_and_fields_of_the_app_are_sent_as_they_are(server: Running) -> None:
    fields = [["X-One", "a"], ["x-one", "b"], ["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]]
    answer = post_fields(server, [*fields, ["X-Latin", "\xe4"]], status="299 Quite so")
    assert answer.status == 299
    assert answer.headers.get_all("X-One") == ["a", "b"]
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert answer.headers["X-Latin"] == "\xe4"
    assert answer.headers.get_all("Server") is None
    assert len(answer.headers.get_all("Date", [])) == 1


def test_a_date_of_the_app_is_the_only_one(server: Running) -> None:
    answer = post_fields(server, [["Date", "Thu, 01 Jan 1970 00:00:00 GMT"]])
    assert answer.headers.get_all("Date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["case", "valid"])
@pytest.mark.parametrize(
    "name",
    [
        *("real", "raw", "random", "offset", "begun", "end", "bytes"),
        *("gzip", "bz2", "xz", "temporary", "spooled", "pipe"),
    ],
)
def test_a_file_is_sent_from_where_it_stands_to_its_end(
    server: Running, name: str, where: str
) -> None:
    mark = len(server.log())
    answer = get(server, f"/{where}/file?kind={name}")
    expected = {
        "offset": FILE[8000:],
        "begun": FILE[16:],
        "end": b"",
        "pipe": b"through a pipe",
    }
    assert answer.status == 200
    assert answer.body == expected.get(name, FILE)
    assert "Traceback" not in server.log()[mark:]


@pytest.mark.parametrize("name", ["real", "bytes"])
def test_of_a_file_so_much_is_sent_as_was_said(server: Running, name: str) -> None:
    path = f"/case/file?kind={name}&length=100"
    with Client(server.port, request(path, close=False)) as client:
        answer = client.answer()
        assert answer.body == FILE[:100]


def test_a_file_that_is_sent_by_the_system_has_a_length_and_the_connection_stays(
    server: Running,
) -> None:
    with Client(server.port) as client:
        for _ in range(3):
            client.send(request("/case/file?kind=real&key=file-closed", close=False))
            answer = client.answer()
            assert answer.headers["Content-Length"] == str(len(FILE))
            assert answer.body == FILE
    assert wait_for_note(server, "file-closed", "closed") == ["closed"] * 3


def test_a_file_that_is_shorter_than_was_said_ends_the_connection(server: Running) -> None:
    path = f"/case/file?kind=real&length={len(FILE) + 1}"
    mark = len(server.log())
    with Client(server.port, request(path, close=False)) as client:
        assert client.rest().endswith(FILE)
    server.wait_for("the answer is shorter than its Content-Length, by 1 bytes", after=mark)


@pytest.mark.parametrize("name", ["real", "bytes"])
def test_head_of_a_file_has_its_length_and_no_body(server: Running, name: str) -> None:
    answer = get(server, f"/case/file?kind={name}&length={len(FILE)}", method="HEAD")
    assert answer.headers["Content-Length"] == str(len(FILE))
    assert answer.body == b""


def test_a_file_without_a_descriptor_is_read_in_blocks_and_closed_once(server: Running) -> None:
    assert get(server, "/case/file?kind=noted&key=noted").body == FILE
    blocks = wait_for_note(server, "noted", "closed")
    assert blocks == [8192] * (len(FILE) // 8192) + [len(FILE) % 8192, 0, "closed"]


def test_a_text_file_is_no_body(server: Running) -> None:
    assert get(server, "/case/file?kind=text").status == 500


def test_a_client_that_leaves_in_mid_file_has_it_closed(server: Running) -> None:
    client = Client(server.port, request("/case/file?kind=real&key=left-file"))
    client.read(100)
    client.reset()
    assert wait_for_note(server, "left-file", "closed") == ["closed"]


# -- the body of a request ---------------------------------------------------------------------

BODY = b"first line\nsecond\n\nlast, without end"
LINES = ["first line\n", "second\n", "\n", "last, without end"]
WHOLE = BODY.decode()
READS: dict[str, list[Any]] = {
    "read": [WHOLE],
    "read-none": [WHOLE],
    "read-minus": [WHOLE],
    "read,read,readline": [WHOLE, "", ""],
    "read-5,read-6,read-0,read": ["first", " line\n", "", WHOLE[11:]],
    "read-1000,read-1": [WHOLE, ""],
    "readline,readline,readline,readline,readline": [*LINES, ""],
    "readline-none,readline-minus,read": [*LINES[:2], WHOLE[18:]],
    "readline-5,readline-100,readline-0,readline-7,readline": [
        *("first", " line\n", "", "second\n", "\n"),
    ],
    "readlines": [LINES],
    "readlines-none": [LINES],
    "readlines-0": [LINES],
    "readlines-11,readlines-12,readlines": [LINES[:1], LINES[1:4], []],
    "iterate": [LINES],
    "read-3,iterate": ["fir", ["st line\n", *LINES[1:]]],
    "readline,iterate,read": [LINES[0], LINES[1:], ""],
}


@pytest.mark.parametrize("framing", ["length", "chunks", "single bytes", "small chunks"])
@pytest.mark.parametrize("calls", READS)
def test_a_body_is_read_as_the_app_likes_however_it_comes(
    server: Running, calls: str, framing: str
) -> None:
    path = f"/case/reads?do={calls}"
    if framing in ("length", "single bytes"):
        sent = request(path, method="POST", body=BODY)
    elif framing == "chunks":
        sent = request(path, CHUNKED, method="POST") + chunks(BODY)
    else:
        blocks = (BODY[at : at + 4] for at in range(0, len(BODY), 4))
        sent = request(path, CHUNKED, method="POST") + chunks(*blocks)
    with Client(server.port) as client:
        if framing == "single bytes":
            at = sent.index(b"\r\n\r\n") + 4
            client.send(sent[:at])
            for byte in sent[at:]:
                client.send(bytes((byte,)))
        else:
            client.send(sent)
        answer = client.answer()
    assert answer.json() == READS[calls], answer


def test_a_chunked_body_cut_everywhere_is_the_same(server: Running) -> None:
    framed = b"5;x=y\r\nfirst\r\n01\r\n\n\r\n0\r\nTrailer: x\r\n\r\n"
    sent = request("/case/reads?do=readline,read", CHUNKED, method="POST", close=False)
    with Client(server.port) as client:
        for at in range(len(framed)):
            client.send(sent + framed[:at])
            client.send(framed[at:])
            assert client.answer().json() == ["first\n", ""]
        for byte in sent + framed:
            client.send(bytes((byte,)))
        assert client.answer().json() == ["first\n", ""]


def test_without_a_body_there_is_nothing_to_read(server: Running) -> None:
    path = "/case/reads?do=read,readline,readlines,iterate,read-5"
    assert get(server, path).json() == ["", "", [], [], ""]
    assert get(server, path, method="POST", body=b"").json() == ["", "", [], [], ""]
    sent = request(path, CHUNKED, method="POST") + chunks()
    with Client(server.port, sent) as client:
        assert client.answer().json() == ["", "", [], [], ""]


def test_reading_ends_with_the_body_and_not_with_what_is_behind_it(server: Running) -> None:
    two = request("/case/reads?do=read", method="POST", body=b"one", close=False)
    two += request("/case/reads?do=read-100,read-1", CHUNKED, method="POST", close=False)
    two += chunks(b"tw", b"o") + request("/case/hello")
    with Client(server.port, two) as client:
        found = http_answers(client.rest())
    assert found == [(200, b'["one"]'), (200, b'["two", ""]'), (200, b"hello")]


def test_a_body_the_app_leaves_unread_does_not_become_the_next_request(server: Running) -> None:
    inner = request("/case/environ")
    two = request("/case/unread", method="POST", body=inner, close=False)
    two += request("/case/unread", CHUNKED, method="POST", close=False) + chunks(inner, inner)
    two += request("/case/hello")
    with Client(server.port, two) as client:
        found = http_answers(client.rest())
    assert found == [(200, b"unread"), (200, b"unread"), (200, b"hello")]


EXPECT = "Expect: 100-continue"


def test_100_is_sent_at_the_first_read_and_only_then(server: Running) -> None:
    sent = request("/case/reads_late?gate=expect", EXPECT, "Content-Length: 5", method="PUT")
    with Client(server.port, sent) as client:
        wait_for_note(server, "expect", "waits")
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.sock.settimeout(30)
        server.get("/open?gate=expect")
        assert client.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"hel")
        client.send(b"lo")
        assert client.answer().body == b"hello"
        assert client.rest() == b""


def test_no_100_is_sent_where_nothing_is_read_and_the_connection_ends(server: Running) -> None:
    sent = request("/case/unread", EXPECT, "Content-Length: 5", method="PUT", close=False)
    with Client(server.port, sent) as client:
        answer = client.answer()
        assert (answer.status, answer.body) == (200, b"unread")
        assert answer.headers["Connection"] == "close"
        assert client.rest() == b""


def test_no_100_is_sent_to_a_client_that_does_not_wait_for_it(server: Running) -> None:
    with Client(server.port, request("/case/reads?do=read", EXPECT, method="PUT", body=b"x")) as c:
        assert c.rest().startswith(b"HTTP/1.1 200")
    old = b"PUT /case/reads?do=read HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    with Client(server.port, old + b"x") as client:
        assert client.rest().startswith(b"HTTP/1.1 200")


def test_a_body_that_ends_too_early_is_400_whatever_the_app_makes_of_it(server: Running) -> None:
    with Client(
        server.port, request("/case/catches?key=short", "Content-Length: 9", method="POST") + b"abc"
    ) as client:
        client.half_close()
        answer = client.answer()
        assert answer.status == 400
        assert client.rest() == b""
    assert notes(server, "short") == ["the body ended too early"]


@pytest.mark.parametrize("path", ["/case/catches?key=malformed", "/case/reads?do=read"])
def test_a_malformed_chunk_is_400_and_the_end(server: Running, path: str) -> None:
    mark = len(server.log())
    sent = request(path, CHUNKED, method="POST", close=False) + b"5\r\nhello\r\n+5\r\n"
    with Client(server.port, sent + request("/case/hello")) as client:
        raw = client.rest()
    assert raw.startswith(b"HTTP/1.1 400 ")
    assert raw.count(b"HTTP/1.1") == 1
    assert "Traceback" not in server.log()[mark:]  # it is the client's fault, and a log is not his


def test_a_client_that_closes_its_sending_side_is_answered(server: Running) -> None:
    with Client(server.port, request("/case/gated?gate=half-", close=False)) as client:
        client.half_close()
        client.read(10)
        for number in (1, 2):
            server.get(f"/open?gate=half-{number}")
        assert client.rest().endswith(b"end;\r\n0\r\n\r\n")


# -- environ -----------------------------------------------------------------------------------


def test_the_environ_is_what_pep_3333_asks_for(server: Running, kind: Kind) -> None:
    body = b"a=1"
    answer = get(
        server,
        "/valid/environ?a=%20b&c",
        "Content-Type: application/x-www-form-urlencoded",
        "X-Test: some",
        "Accept: a",
        "Accept: b",
        method="POST",
        body=body,
    ).json()
    assert {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/valid/environ",
        "QUERY_STRING": "a=%20b&c",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": "3",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_URI": "/valid/environ?a=%20b&c",
        "RAW_URI": "/valid/environ?a=%20b&c",
        "HTTP_HOST": "test",
        "HTTP_X_TEST": "some",
        "HTTP_ACCEPT": "a,b",
        "wsgi.version": [1, 0],
        "wsgi.url_scheme": "http",
        "wsgi.multithread": kind.name == "threads",
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }.items() <= answer.items()
    assert int(answer["REMOTE_PORT"])
    assert answer["SERVER_SOFTWARE"].startswith("sticky/")
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & answer.keys()


def test_the_environ_of_one_request_is_not_that_of_another(server: Running) -> None:
    with Client(server.port) as client:
        client.send(request("/case/environ", "X-Mine: 1", close=False))
        assert client.answer().json()["HTTP_X_MINE"] == "1"
        client.send(request("/case/environ", "X-Other: 1"))
        assert "HTTP_X_MINE" not in client.answer().json()


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/valid/environ?a?b", "/valid/environ", "a?b"),
        ("/valid/envir%6Fn", "/valid/environ", ""),
        ("http://other.test:99/valid/environ?q", "/valid/environ", "q"),
        ("HTTP://other.test/valid/environ", "/valid/environ", ""),
        ("/any/%2F%C3%A9%zz%FF//x/../y;p?q=%2F", "/any//\xc3\xa9%zz\xff//x/../y;p", "q=%2F"),
    ],
)
def test_path_and_query_are_those_of_the_target(
    server: Running, target: str, path: str, query: str
) -> None:
    told = environ(server, target)
    assert (told["PATH_INFO"], told["QUERY_STRING"]) == (path, query)
    assert told["REQUEST_URI"] == target
    host = "other.test:99" if ":99" in target else "other.test" if "other" in target else "test"
    assert told["HTTP_HOST"] == host


def test_several_cookie_lines_are_one(server: Running) -> None:
    told = environ(server, "/valid/environ", "Cookie: a=1", "X-A: b", "Cookie: b=2")
    assert told["HTTP_COOKIE"] == "a=1; b=2"


def test_names_with_an_underscore_are_dropped(server: Running) -> None:
    told = environ(server, "/valid/environ", "X_Secret: forged", "X-Secret: real", "A_B: c")
    assert told["HTTP_X_SECRET"] == "real"
    assert "HTTP_A_B" not in told
    assert "forged" not in str(told)


def test_a_trusted_proxy_is_believed(server: Running) -> None:
    lines = ("X-Forwarded-For: 203.0.113.9, 127.0.0.1", "X-Forwarded-Proto: https")
    told = environ(server, "/valid/environ", *lines)
    assert told["REMOTE_ADDR"] == "203.0.113.9"
    assert "REMOTE_PORT" not in told
    assert told["wsgi.url_scheme"] == "https"


@pytest.mark.parametrize(
    "lines",
    [
        ("X-Forwarded-Proto: gopher",),
        ("X-Forwarded-For: unknown",),
        ("X-Forwarded-For: ", "X-Forwarded-Proto: "),
    ],
)
def test_of_a_trusted_proxy_only_sense_is_believed(server: Running, lines: tuple[str, ...]) -> None:
    told = environ(server, "/valid/environ", *lines)
    assert told["REMOTE_ADDR"] == "127.0.0.1"
    assert told["wsgi.url_scheme"] == "http"


def test_nobody_is_believed_where_that_is_off(strict: Running) -> None:
    lines = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
    told = environ(strict, "/app/valid/environ", *lines)
    assert told["REMOTE_ADDR"] == "127.0.0.1"
    assert told["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize(
    ("target", "script", "path"),
    [
        ("/app/valid/environ", "/app", "/valid/environ"),
        ("/valid/environ", "/app", "/valid/environ"),  # the proxy has taken it away
        ("http://test/app/valid/environ", "/app", "/valid/environ"),
        ("/app", "/app", ""),
        ("/app?q", "/app", ""),
        ("/app/", "/app", "/"),
        ("/any/apple", "/app", "/any/apple"),
    ],
)
def test_the_root_path_is_the_script_name(
    strict: Running, target: str, script: str, path: str
) -> None:
    told = environ(strict, target)
    assert (told["SCRIPT_NAME"], told["PATH_INFO"]) == (script, path)


def test_on_a_unix_socket_the_request_says_where_it_went(kind: Kind, folder: Path) -> None:
    path = folder / f"socket-{kind.name}"
    binds = ("-b", f"unix:{path}", "--proxy", "--ignore-missing-header")
    with serve(kind, folder, *binds):

        def ask(host: str, *lines: str) -> Any:
            sent = [f"GET /valid/environ HTTP/1.1\r\nHost: {host}", *lines, "Connection: close"]
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(str(path))
                sock.sendall(("\r\n".join(sent) + "\r\n\r\n").encode())
                response = http.client.HTTPResponse(sock)
                response.begin()
                assert response.status == 200
                told = json.loads(response.read())
                return told["SERVER_NAME"], told["SERVER_PORT"], told["REMOTE_ADDR"]

        assert ask("shop.test:8080") == ("shop.test", "8080", "127.0.0.1")
        assert ask("shop.test") == ("shop.test", "80", "127.0.0.1")
        assert ask("[::1]:81") == ("[::1]", "81", "127.0.0.1")
        assert ask("[::1]") == ("[::1]", "80", "127.0.0.1")
        assert ask("") == ("localhost", "80", "127.0.0.1")
        lines = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
        assert ask("shop.test", *lines) == ("shop.test", "443", "203.0.113.9")


# -- clients that are too slow -----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/app/case/reads?do=read", "/app/case/catches?key=slow"])
@pytest.mark.parametrize("part", [b"", b"hel"])
def test_a_body_that_does_not_come_is_408(strict: Running, path: str, part: bytes) -> None:
    mark = len(strict.log())
    before = strict.get("/stats").json()["body_timeouts"]
    sent = request(path, "Content-Length: 5", method="POST", close=False) + part
    with Client(strict.port, sent) as client:
        answer = client.answer()
        assert answer.status == 408
        assert answer.headers["Connection"] == "close"
        assert client.rest() == b""
    assert strict.get("/stats").json()["body_timeouts"] == before + 1
    assert "Traceback" not in strict.log()[mark:]


@pytest.mark.parametrize("path", ["big?key=unread-{}", "file?kind=huge&key=unread-{}"])
def test_a_client_that_reads_nothing_is_given_up(strict: Running, path: str) -> None:
    mark = len(strict.log())
    key = path.partition("?")[0]
    before = strict.get("/stats").json()["write_timeouts"]
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", strict.port))
        sock.sendall(request("/app/case/" + path.format(key)))
        assert wait_for_note(strict, f"unread-{key}", "closed") == ["closed"]
        wait_until(lambda: strict.get("/stats").json()["write_timeouts"] == before + 1)
    assert "Traceback" not in strict.log()[mark:]


# -- frameworks, behind the validator ----------------------------------------------------------


def test_flask_reads_a_chunked_body(server: Running) -> None:
    sent = request("/flask/echo?q=1", CHUNKED, "Cookie: a=b", method="POST")
    with Client(server.port, sent + chunks(b"hel", b"lo")) as client:
        told = client.answer().json()
    assert told == {
        "data": "hello",
        "args": {"q": "1"},
        "url": "http://test/flask/echo?q=1",
        "cookies": {"a": "b"},
    }


def test_flask_reads_a_form_with_a_file(server: Running) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        + b"x" * 700_000
        + b"\r\n--b--\r\n"
    )
    kind = "Content-Type: multipart/form-data; boundary=b"
    told = get(server, "/flask/form", kind, method="POST", body=body).json()
    assert told == {"name": "f", "size": 700_000, "a": "1"}


def test_flask_streams_and_sends_files(server: Running) -> None:
    assert get(server, "/flask/stream").body == b"01234"
    assert get(server, "/flask/file").body == FILE
    part = get(server, "/flask/file", "Range: bytes=100-199")
    assert (part.status, part.body) == (206, FILE[100:200])
    whole = get(server, "/flask/file")
    again = get(server, "/flask/file", f"If-None-Match: {whole.headers['ETag']}")
    assert (again.status, again.body) == (304, b"")
    assert get(server, "/flask/file", method="HEAD").headers["Content-Length"] == str(len(FILE))


def test_flask_says_what_went_wrong(server: Running) -> None:
    assert get(server, "/flask/raise").status == 500
    assert get(server, "/flask/nowhere").status == 404
    assert get(server, "/flask/form").status == 405


def test_flask_is_told_of_a_client_that_is_no_longer_there(server: Running) -> None:
    sent = request("/flask/echo", "Content-Length: 9", method="POST") + b"abc"
    mark = len(server.log())
    with Client(server.port, sent) as client:
        client.half_close()
        assert client.answer().status == 400
    get(server, "/flask/echo", method="POST", body=b"")  # what would be said is said by now
    assert "Traceback" not in server.log()[mark:]


def test_django_reads_streams_and_sends_files(server: Running) -> None:
    told = get(server, "/django/echo?a", method="POST", body=b"hello").json()
    assert told == {"data": "hello", "url": "http://test/django/echo?a"}
    assert get(server, "/django/stream").body == b"01234"
    assert get(server, "/django/file").body == FILE
    assert get(server, "/django/nowhere").status == 404


def test_nothing_was_said_that_the_validator_or_the_collector_would_say(server: Running) -> None:
    assert "garbage collected without being closed" not in server.log()
    assert "ResourceWarning" not in server.log()


def test_no_descriptor_is_left_of_all_that(server: Running) -> None:
    def opened() -> int:
        return len(os.listdir(f"/proc/{server.worker_pids()[0]}/fd"))

    wait_until(lambda: server.get("/stats").json()["open"] == 1)
    before = opened()
    for _ in range(5):
        get(server, "/case/file?kind=real")
        get(server, "/flask/file")
        with Client(server.port, request("/case/endless?key=fds")) as client:
            client.read(10)
    wait_until(lambda: notes(server, "fds").count("closed") == 5)
    wait_until(lambda: opened() <= before)
