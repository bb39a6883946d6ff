"""The counters as Prometheus reads them: its format to the letter, and nothing of clients."""

from __future__ import annotations

import os
import re
import socket
import stat

import pytest

from sticky.board import MASTER, WORKER, Board
from sticky.errors import StickyError
from sticky.master import metrics
from sticky.master.metrics import GAUGES, HELP, HELP_WORKER, Metrics, exposition

from .desk_kit import Loop

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})(?:\{{slot="(\d+)"\}})? (\d+)')


def parse(text):
    """(name, slot) -> value, and name -> type. Whatever is not to the letter is an error."""
    assert text.endswith("\n")
    types, values, current = {}, {}, ""
    for line in text[:-1].split("\n"):
        if found := re.fullmatch(rf"# HELP ({NAME}) \S[^\\]*", line):
            current = found[1]
            assert current not in types, f"{current} comes twice"
        elif found := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line):
            assert found[1] == current, "the type stands below the help"
            types[current] = found[2]
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == current, "all of a family stand together"
            assert (found[1], found[2]) not in values
            values[found[1], found[2]] = int(found[3])
    return types, values


@pytest.fixture
def board():
    board = Board()
    board.master["accepted"] = 12
    for slot in range(2):
        row = board.give()
        board.show(row, slot, 100 + slot)
        board.process(row)["requests"] = 2**60 + slot
        board.process(row)["open"] = slot
    yield board
    board.close()


def test_it_is_the_format_to_the_letter(board):
    types, values = parse(exposition(board.stats()))
    assert values["sticky_workers", None] == 2
    assert values["sticky_accepted_total", None] == 12
    assert values["sticky_worker_requests_total", "1"] == 2**60 + 1
    assert values["sticky_worker_open", "1"] == 1
    assert types["sticky_worker_open"] == "gauge"
    assert types["sticky_worker_requests_total"] == "counter"
    assert all(kind == "counter" for name, kind in types.items() if name.endswith("_total"))
    assert len(values) == 1 + len(MASTER) + 2 * len(WORKER)


def test_without_a_worker_there_is_nothing_of_one_and_it_is_the_format_still():
    board = Board()
    _, values = parse(exposition(board.stats()))
    assert values["sticky_workers", None] == 0
    board.close()


def test_prometheus_own_parser_reads_the_same(board):
    parser = pytest.importorskip("prometheus_client.parser")
    text = exposition(board.stats())
    types, values = parse(text)
    families = list(parser.text_string_to_metric_families(text))
    read = {
        (sample.name, sample.labels.get("slot")): sample.value
        for family in families
        for sample in family.samples
    }
    assert read == values
    for family in families:
        full = family.name + ("_total" if family.type == "counter" else "")
        assert types[full] == family.type
        assert set(family.samples[0].labels) <= {"slot"}


def test_every_counter_has_a_text_and_every_gauge_is_one_that_is_counted():
    assert HELP.keys() == set(MASTER)
    assert HELP_WORKER.keys() == set(WORKER)
    assert set(GAUGES) <= set(WORKER)


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def server(loop, board):
    server = Metrics("127.0.0.1:0", board.stats, loop.clock)
    server.open(loop.register, loop.unregister)
    yield server
    server.close()


def ask(loop, address, data):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.connect(address)
        return loop.exchange(client, data)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics HTTP/1.0\n\n",
    ],
)
def test_one_request_is_answered_and_the_connection_closed(loop, server, head):
    answer = ask(loop, server.address, head)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert b"\r\nConnection: close" in head
    _, values = parse(body.decode())
    assert values["sticky_accepted_total", None] == 12


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /metrics/ HTTP/1.1\r\n\r\n",
        b"GET /metricsx HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"HEAD /metrics HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
    ],
)
def test_nothing_else_is_there(loop, server, head):
    answer = ask(loop, server.address, head)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"sticky" not in answer


def test_a_head_without_end_is_431(loop, server):
    answer = ask(loop, server.address, b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 2000)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_it_can_be_a_unix_socket_whose_file_goes_with_it(loop, board, tmp_path):
    path = tmp_path / "metrics"
    first = Metrics(f"unix:{path}", board.stats, loop.clock)
    with pytest.raises(StickyError, match="another program listens"):
        Metrics(f"unix:{path}", board.stats, loop.clock)
    first.open(loop.register, loop.unregister)
    assert ask(loop, str(path), b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    first.close()
    assert not path.exists()


def test_a_port_that_is_taken_is_said_so(loop, board):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StickyError, match=f"metrics on 127.0.0.1:{port}: Address already"):
            Metrics(f"127.0.0.1:{port}", board.stats, loop.clock)
    with pytest.raises(StickyError, match=r"metrics on no-such-host.invalid:1: "):
        Metrics("no-such-host.invalid:1", board.stats, loop.clock)


def test_nothing_is_said_that_is_not_counted():
    assert metrics.CONTENT_TYPE.endswith("charset=utf-8")
    assert not re.search(r"addr|seed|pid", exposition(Board().stats()))
