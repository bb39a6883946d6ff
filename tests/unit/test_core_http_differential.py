"""``parse`` and ``Chunks``: compiled against the reference, against the routing scan, against other
people's parsers, and cut at every offset."""

import os
import random
import urllib.parse

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sticky import _pycore, rules

from .core_kit import (
    COMPILED,
    PEER,
    SEED,
    TWINS,
    build,
    case,
    examples,
    fuzz,
    load,
    names,
    near_name,
    randoms,
    run_suite_over,
)
from .http_kit import LIMIT, disagreement, head, request, said, spoiled

over_both_twins = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)


def assert_same(data, start=0, limit=LIMIT):
    assert said(COMPILED, data, start, limit) == said(_pycore, data, start, limit), data


def any_head(draw):
    """A head of near misses, sometimes with an error more."""
    return spoiled(draw, head(draw), draw.choice([0, 0, 0, 1, 2]))


def test_thirty_thousand_heads_get_the_same_answer():
    draw = random.Random(1)
    accepted = 0
    for _ in range(30_000):
        data = any_head(draw)
        assert_same(data)
        accepted += isinstance(COMPILED.parse(data, 0, LIMIT), COMPILED.Head)
    assert accepted > 5000


def test_heads_made_for_the_routing_scan_get_the_same_answer():
    for made in fuzz(2, 10_000):
        assert_same(made.data)


@examples(1500)
@given(draw=randoms, before=st.binary(max_size=4), behind=st.binary(max_size=9))
def test_where_a_head_stands_and_in_what_makes_no_difference(draw, before, behind):
    data = any_head(draw)
    start = len(before)
    found = said(COMPILED, data)
    expected = (found[0] + start, *found[1:]) if isinstance(found, tuple) else found
    for twin in TWINS.values():
        assert said(twin, before + data, start) == expected
        assert said(twin, bytearray(before + data), start) == expected
        if expected:
            assert said(twin, before + data + behind, start) == expected


@over_both_twins
@examples(200)
@given(draw=randoms)
def test_every_beginning_of_a_head_has_its_answer_or_is_not_complete(twin, draw):
    data = any_head(draw)
    final = said(twin, data)
    decided = False
    for size in range(len(data) + 1):
        found = said(twin, data[:size])
        assert found == (final if found else 0)
        assert found or not decided
        decided = bool(found)


@examples(500)
@given(draw=randoms, limit=st.integers(0, 300))
def test_the_limit_cuts_a_head_for_both_twins_alike(draw, limit):
    data = any_head(draw)
    assert_same(data, 0, limit)
    found = said(COMPILED, data, 0, limit)
    if found not in (rules.TOO_LARGE, 0):
        assert found == said(COMPILED, data[:limit])


@over_both_twins
@examples(300)
@given(draw=randoms, sizes=st.lists(st.integers(1, 40), min_size=1))
def test_a_head_that_dribbles_is_complete_where_end_of_head_says_so(twin, draw, sizes):
    data = any_head(draw)
    found = said(twin, data)
    at = seen = 0
    while at < len(data) and not (end := twin.end_of_head(data[:at], 0, seen)):
        if at == seen or isinstance(found, tuple):
            assert not isinstance(twin.parse(data[:at], 0, LIMIT), twin.Head)
        seen, at = at, min(len(data), at + sizes[at % len(sizes)])
    end = twin.end_of_head(data[:at], 0, seen)
    assert end == twin.end_of_head(data[:at], 0, 0)
    if isinstance(found, tuple):
        assert end == found[0]
    elif end:
        assert twin.parse(data[:at], 0, LIMIT)  # it is refused, and not waited for


@examples(1500)
@given(data=st.binary(max_size=200), seen=st.integers(0, 200))
def test_any_bytes_get_the_same_answer(data, seen):
    start = b"POST / HTTP/1.1\r\nHost: a\r\n"
    for whole in (data, start + data + b"\r\n\r\n", start + b"A:" + data + b"\r\n\r\n"):
        assert_same(whole)
        for at in (0, min(3, len(whole))):
            ends = {twin.end_of_head(whole, at, min(seen, len(whole))) for twin in TWINS.values()}
            assert len(ends) == 1


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection"])
@examples(500)
@given(value=st.text('0159abchunked, ;="\\\t[]:.%-@/', max_size=24))
def test_any_value_of_a_field_that_matters_gets_the_same_answer(name, value):
    lines = [b"POST / HTTP/1.1", name + b": " + value.encode(), b"", b""]
    for host in ([], [b"Host: a"]):
        assert_same(b"\r\n".join([lines[0], *host, *lines[1:]]))


@examples(500)
@given(value=st.text("ahtps:/?[]@.%20*", max_size=24))
def test_any_target_gets_the_same_answer(value):
    for method in (b"GET", b"CONNECT", b"OPTIONS"):
        for target in (value.encode(), b"http://" + value.encode()):
            assert_same(method + b" " + target + b" HTTP/1.0\r\n\r\n")


# --- what is routed by is what is served ---------------------------------------------------------


def served(found):
    """The head again, of nothing but what the app is given."""
    lines = [name + b": " + value for name, value in found.fields()]
    return b"\r\n".join([b"GET " + found.target + b" HTTP/1.1", *lines, b"", b""])


def carrying(draw, name):
    """A head that carries a header several times, or nearly so, and says more beside it."""
    lines = []
    for _ in range(draw.randrange(1, 6)):
        value = draw.choice(
            [b"203.0.113.7", b"", b"a b", b"unknown, ::1", b'"', b"sid=x; a=b", b"\t1,2 "]
        )
        found = draw.choice([name, near_name(draw, name), b"Cookie", b"X-Id", b"A"])
        lines.append(found + draw.choice([b":", b": ", b":\t"]) + value)
    target = draw.choice(
        [b"/", b"/?sid=a&sid=b", b"/?x=1&%73id=%41+b", b"http://h/?sid=c", b"/?sid=&sid=d"]
    )
    lines.insert(draw.randrange(len(lines) + 1), b"Host: a")
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", *lines, b"", b""])


RULES = [
    *({}, {"hops": 1}, {"hops": 2}),
    *({"session": b"query:sid"}, {"session": b"cookie:sid"}, {"session": b"header:x-id"}),
]


@over_both_twins
@pytest.mark.parametrize("more", RULES, ids=str)
@examples(400)
@given(name=names, draw=randoms)
def test_a_request_goes_by_what_its_app_is_given_and_by_nothing_else(twin, more, name, draw):
    assume(name.lower() not in (b"cookie", b"x-id"))
    data = carrying(draw, name) if draw.random() < 0.7 else any_head(draw)
    found = twin.parse(data, 0, LIMIT)
    if isinstance(found, int):
        return  # the app is not given anything
    asked = twin.Router(7, SEED, proxy=True, header=name, **more)
    again = served(found)
    assert asked.explain(data, len(data), PEER) == asked.explain(again, len(again), PEER)


@over_both_twins
@examples(400)
@given(name=names, draw=randoms)
def test_the_key_is_the_list_of_values_that_the_app_is_given(twin, name, draw):
    assume(name.lower() not in (b"forwarded", b"host", b"cookie", b"x-id"))
    data = carrying(draw, name).replace(b"203.0.113.7", b"y").replace(b"::1", b"z")
    found = twin.parse(data, 0, LIMIT)
    assume(not isinstance(found, int))
    fields = found.fields()
    values = [value for field, value in fields if field == name.lower() and value]
    key = twin.Router(7, SEED, proxy=True, header=name).explain(data, len(data), PEER)[1]
    if key:
        assert key == b", ".join(values)
    else:
        assert all(value.lower().strip(b", \t") in (b"", b"unknown") for value in values)

    ids = [value for field, value in fields if field == b"x-id" and value]
    assert session_of(twin, data, b"header:x-id") == (ids[0] if ids else b"")
    query = urllib.parse.parse_qsl(found.target.partition(b"?")[2])
    ids = [value for field, value in query if field == b"sid" and value]
    assert session_of(twin, data, b"query:sid") == (ids[0] if ids else b"")
    cookies = dict(fields).get(b"cookie", b"").split(b";")
    ids = [pair.strip(b" \t")[4:] for pair in cookies if pair.strip(b" \t").startswith(b"sid=")]
    assert session_of(twin, data, b"cookie:sid") == (ids[0] if ids else b"")


def session_of(twin, data, session):
    return twin.Router(7, SEED, proxy=False, session=session).find(data, len(data))[1]


@over_both_twins
@examples(500)
@given(draw=randoms, name=names)
def test_what_the_routing_scan_refuses_no_worker_serves(twin, draw, name):
    made = case(name, draw)
    for data in (made.data, any_head(draw)):
        asked = twin.Router(7, SEED, proxy=True, header=name)
        verdict = asked.route(data, len(data), PEER)
        found = twin.parse(data, 0, LIMIT)
        if verdict == rules.MALFORMED:
            assert isinstance(found, int)
            assert found > 0
        if isinstance(found, twin.Head):
            assert verdict not in (rules.MALFORMED, rules.NEED_MORE)
            assert asked.explain(data, found.end, PEER) == asked.explain(data, len(data), PEER)


# --- foils ---------------------------------------------------------------------------------------


@examples(3000)
@given(draw=randoms)
def test_other_parsers_read_what_we_accept_as_we_do(draw):
    assert not disagreement(COMPILED, request(draw))


# --- the portable form ---------------------------------------------------------------------------


@pytest.mark.timeout(300)  # it compiles, and then runs tests of its own
@pytest.mark.skipif("STICKY_CORE_UNDER_TEST" in os.environ, reason="this is that other build")
def test_the_portable_form_passes_the_same_suite(tmp_path):
    module = build(tmp_path, flags=("-DSTICKY_PORTABLE",))
    assert not load(module).SSE2
    files = [f"tests/unit/test_core_{name}.py" for name in ("http", "chunks", "http_differential")]
    done = run_suite_over(module, *files)
    assert done.returncode == 0, done.stdout
