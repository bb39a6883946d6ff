"""From options to a slot, and the reason in words."""

import ast
import inspect

import pytest

from sticky import _pycore, core, routing, rules
from sticky.errors import OptionError
from sticky.options import Options
from sticky.routing import Explanation, explain, is_by_peer, make_router

from .core_kit import request

HEAD = request(b"Host: a", b"X-Forwarded-For: 203.0.113.7, 10.0.0.1")
PROXIED = {"num": 5, "proxy": True, "seed": b"12345678"}


def test_explain_says_where_a_request_goes_and_why():
    told = explain(HEAD, "192.0.2.1", PROXIED)
    assert told.key == b"203.0.113.7"
    assert told.why == "leftmost address of 'x-forwarded-for'"
    assert told.slot in range(5)
    assert told.status is None


def test_explain_says_what_a_server_with_the_same_options_does():
    router = make_router(Options.make(PROXIED))
    for last in range(256):
        head = HEAD.replace(b"203.0.113.7", b"203.0.113.%d" % last)
        assert explain(head, "192.0.2.1", PROXIED).slot == router.route(
            head, len(head), "192.0.2.1"
        )


def test_explain_takes_options_in_every_form():
    told = explain(HEAD, "192.0.2.1", PROXIED)
    assert told == explain(HEAD, "192.0.2.1", Options.make(PROXIED))
    assert told == explain(HEAD, "192.0.2.1", **PROXIED)
    assert told == explain(HEAD, "192.0.2.1", {**PROXIED, "num": 1}, num=5)
    assert told == explain(bytearray(HEAD), "192.0.2.1", PROXIED)


def test_explain_takes_the_peer_as_the_socket_module_gives_it():
    for peer in ("2001:db8::1", ("2001:db8::1", 4711, 0, 0)):
        assert explain(b"", peer, num=5).key == b"2001:db8::/64"
    assert explain(b"", "", num=5).slot in range(5)


def test_every_routing_option_reaches_the_router():
    def told(head=HEAD, peer="192.0.2.1", **changes):
        return explain(head, peer, {**PROXIED, **changes})

    assert told(hops=1).key == b"10.0.0.1"
    assert told(ipv4_prefix=24).key == b"203.0.113.0/24"
    assert told(header="Host").key == b"a"
    assert told(proxy=False, peer="2001:db8:1:2::3", ipv6_prefix=48).key == b"2001:db8:1::/48"
    assert told(header="x-other").status == 400
    assert told(header="x-other", ignore_missing_header=True).key == b"192.0.2.1"
    assert {told(num=1).slot, told(num=1, hops=1).slot} == {0}
    assert len({told(num=200, seed=bytes([i] * 8)).slot for i in range(20)}) > 10


def test_a_refused_request_has_a_status_and_no_slot():
    missing = explain(request(b"Host: a"), "192.0.2.1", PROXIED)
    assert missing == Explanation(b"", "'x-forwarded-for' is missing", None, 400)
    assert explain(b"GET /\0", "192.0.2.1", PROXIED).status == 400


def test_an_incomplete_request_has_neither():
    told = explain(HEAD[:-1], "192.0.2.1", PROXIED)
    assert told == Explanation(b"", "the head is not complete", None, None)


def test_without_a_seed_explain_repeats_itself_and_servers_differ():
    assert explain(b"", "192.0.2.1", num=200) == explain(b"", "192.0.2.1", num=200)
    options = Options.make(num=200)
    assert len({make_router(options).route(b"", 0, "192.0.2.1") for _ in range(20)}) > 5


def test_a_bad_option_is_named():
    with pytest.raises(OptionError, match="'ipv4_prefix'"):
        explain(HEAD, "192.0.2.1", ipv4_prefix=40)


def test_what_is_not_bytes_is_refused():
    with pytest.raises(TypeError):
        explain("GET / HTTP/1.1", "192.0.2.1")


@pytest.mark.parametrize("module", [routing, core, rules, _pycore])
def test_routing_does_no_io_and_reads_no_clock(module):
    tree = ast.parse(inspect.getsource(module))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not imported & {"socket", "time", "datetime", "select", "selectors", "io", "asyncio"}
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "os"
    }
    assert called <= {"urandom"}


@pytest.mark.parametrize(
    ("options", "line", "by_peer"),
    [
        ({"proxy": False}, b"X-Forwarded-For: 203.0.113.7", True),
        ({}, b"X-Forwarded-For: 203.0.113.7", False),
        ({}, b"X-Forwarded-For: peer address", False),
        ({"header": "peer"}, b"Peer: peer address, x", False),
        ({"ignore_missing_header": True}, b"X-Forwarded-For:", True),
        ({"ignore_missing_header": True}, b"A: b", True),
        ({"ignore_missing_header": True}, b"X-Forwarded-For: 203.0.113.7", False),
        ({"session": "query:sid"}, b"A: b", False),
    ],
)
def test_a_reason_says_whether_it_was_the_peer(options, line, by_peer):
    head = request(b"Host: a", line)
    told = explain(head, "192.0.2.1", PROXIED | options)
    assert is_by_peer(told.why) == by_peer
