"""The compiled core against the reference, against itself, and against other people's parsers."""

import ipaddress
import os
import random
import re

import h11
import httptools
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sticky import _pycore
from sticky.rules import MALFORMED, MISSING, NEED_MORE

from .core_kit import (
    COMPILED,
    PEER,
    TWINS,
    Case,
    address,
    ask,
    build,
    cases,
    examples,
    fuzz,
    load,
    mutated,
    names,
    near_name,
    randoms,
    request,
    router,
    run_suite_over,
    squeeze,
)

over_both_twins = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)


def assert_same(case: Case) -> None:
    assert case.answer(COMPILED) == case.answer(_pycore), case


def test_twenty_thousand_heads_get_the_same_answer():
    for case in fuzz(1, 20_000):
        assert_same(case)


@examples(3000)
@given(cases)
def test_heads_of_near_misses_get_the_same_answer(case):
    assert_same(case)


@examples(1000)
@given(data=st.binary(max_size=300), peer=st.text(max_size=8), cut=st.integers(0, 300))
def test_any_bytes_get_the_same_answer(data, peer, cut):
    assume(not any(0xD800 <= ord(letter) < 0xE000 for letter in peer))
    for head in (data, b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n"):
        assert_same(Case(head, min(cut, len(head)), peer, {"header": b"x"}))
        assert_same(Case(head, len(head), peer, {"header": b"x", "proxy": False}))


@examples(1000)
@given(randoms)
def test_texts_that_are_nearly_addresses_get_the_same_answer(draw):
    text = mutated(draw, address(draw))
    for hops in (0, 1):
        for header, value in ((b"x", text), (b"forwarded", b"for=" + text)):
            head = request(header + b": " + value)
            assert_same(Case(head, len(head), PEER, {"header": header, "hops": hops}))


@over_both_twins
def test_addresses_are_what_the_standard_library_says_they_are(twin):
    draw = random.Random(1)
    for _ in range(4000):
        text = mutated(draw, address(draw))
        if text.strip(b"0123456789abcdefABCDEF:.") or (b"." in text and text.count(b":") == 1):
            continue  # zones, brackets, quotes and ports are not the standard library's business
        try:
            expected = ipaddress.ip_address(text.decode())
        except ValueError:
            expected = text.decode()
        else:
            number = int(expected)
            if expected.version == 6 and number >> 32 in (0xFFFF, 0x64FF9B << 64):
                expected = ipaddress.IPv4Address(number & 0xFFFFFFFF)
        found = ask(twin, request(b"X: " + text), header=b"x", ipv6_prefix=128)[1]
        assert found.decode() == str(expected)


@over_both_twins
@examples(200)
@given(case=cases)
def test_every_beginning_of_a_head_has_its_answer_or_needs_more(twin, case):
    asked = router(twin, **case.rules)
    final = asked.explain(case.data, len(case.data), case.peer)
    decided = False
    for length in range(len(case.data) + 1):
        answer = asked.explain(case.data, length, case.peer)
        if answer[0] == NEED_MORE:
            assert not decided
        else:
            decided = True
            assert answer == final


@over_both_twins
@examples(300)
@given(case=cases, behind=st.binary(max_size=80))
def test_what_lies_behind_the_length_changes_nothing(twin, case, behind):
    asked = router(twin, **case.rules)
    expected = asked.explain(case.data[: case.length], case.length, case.peer)
    for data in (case.data, case.data[: case.length] + behind):
        assert asked.explain(data, case.length, case.peer) == expected
        assert asked.explain(bytearray(data), case.length, case.peer) == expected


@over_both_twins
@pytest.mark.parametrize("size", range(120))
def test_each_thing_is_seen_at_each_distance(twin, size):
    """Blocks of 64 bytes and what is left of them: everything at every place in them."""
    for before, after in ((size, 0), (0, size), (130, size), (size, 130)):
        lines = [b"A: " + b"a" * before, b"X-Forwarded-For: 203.0.113.7", b"B: " + b"b" * after]
        head = request(*lines)
        assert ask(twin, head)[1] == b"203.0.113.7"
        assert ask(twin, head[:-1])[0] == NEED_MORE
        for line in (b"A:", b"X-F", b"B:"):
            assert ask(twin, head.replace(b"\r\n" + line, b"\n" + line))[0] == MALFORMED
        assert ask(twin, head.replace(b"B:", b" B:"))[0] == MALFORMED
        for bad in (b"\0", b"\r", b"\n"):
            assert ask(twin, head.replace(b"B:", b"B" + bad))[0] == MALFORMED
            assert ask(twin, head.replace(b"A:", b"A" + bad))[0] == MALFORMED
        assert ask(twin, head.replace(b"For:", b"For\t:"))[0] == MALFORMED
        assert ask(twin, head.replace(b"For:", b"Foo:"))[0] == MISSING


# --- foils ---------------------------------------------------------------------------------------


def h11_fields(head):
    """(names, values) as h11 reads them, or None where it refuses the head."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return (
        [(name, value) for name, value in event.headers] if isinstance(event, h11.Request) else None
    )


class _Fields:
    def __init__(self):
        self.found = []
        self.complete = False

    def on_header(self, name, value):
        self.found.append((name.lower(), value))

    def on_headers_complete(self):
        self.complete = True


def httptools_fields(head):
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(head)
    except httptools.HttpParserError:
        return None
    return fields.found if fields.complete else None


def plain_head(name, draw):
    """A head that a strict parser may accept, with opaque values: the key is the value."""
    targets = [b"GET / HTTP/1.1", b"GET /?" + name.replace(b"#", b"") + b":v HTTP/1.1"]
    lines = [draw.choice(targets), b"Host: a"]
    for _ in range(draw.randrange(5)):
        value = draw.choice([b"w", b"a-b c", b"", b"0" * 70])
        if draw.random() < 0.02:
            value += b"\r\n more"
        if draw.random() < 0.2:
            value += b"\r\n" + name + draw.choice([b": w", b":", b" : w", b"w"])
        lines.append(near_name(draw, name) + draw.choice([b":", b": ", b": \t"]) + value)
    return draw.choice([b"\r\n"] * 9 + [b"\n"]).join([*lines, b"", b""])


@pytest.mark.parametrize("fields_of", [h11_fields, httptools_fields])
@examples(1500)
@given(name=names, draw=randoms)
def test_other_parsers_agree_which_header_a_request_carries(fields_of, name, draw):
    assume(name.lower() not in (b"forwarded", b"host"))
    head = plain_head(name, draw)
    fields = fields_of(head)
    if fields is None:
        return  # where they refuse a head there is nothing to agree on
    values = [squeeze(value) for found, value in fields if found == name.lower()]
    slot, key, why = ask(COMPILED, head, header=name)
    if re.search(rb"(?<!\r)\n|\r\n[ \t]", head):
        assert slot == MALFORMED
        return  # they take a bare LF and a folded line
    assert slot not in (MALFORMED, NEED_MORE), why
    expected = b", ".join(value for value in values if value)
    assert squeeze(key) == expected
    assert (slot == MISSING) == (not expected)


# --- the portable form ---------------------------------------------------------------------------


@pytest.mark.timeout(300)  # it compiles, and then runs tests of its own
@pytest.mark.skipif("STICKY_CORE_UNDER_TEST" in os.environ, reason="this is that other build")
def test_the_portable_form_passes_the_same_suite(tmp_path):
    module = build(tmp_path, flags=("-DSTICKY_PORTABLE",))
    assert not load(module).SSE2
    done = run_suite_over(module, "tests/unit/test_core.py", __file__)
    assert done.returncode == 0, done.stdout
