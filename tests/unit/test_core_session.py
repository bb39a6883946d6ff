"""Session ids: where they are found, where they lead, how they are minted. Over both twins."""

from __future__ import annotations

import base64
import os
import random
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky.rules import ANYWHERE, MALFORMED, MISSING, NEED_MORE

from .core_kit import PEER, SEED, TWINS, ask, examples, router

ID = b"lv_VI97HAXpY6yYWAAAC"
SID = b"query:sid"


@pytest.fixture(params=TWINS)
def twin(request):
    return TWINS[request.param]


def get(target: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: a", *lines, b"", b""])


def found(twin, head: bytes, session: bytes, **rules):
    """The session id in a head, or None."""
    slot, key, why = ask(twin, head, session=session, **{"proxy": False, **rules})
    if not why.startswith("session id"):
        assert why == "peer address"
        return None
    assert slot == twin.pick(twin.siphash(SEED, key), 7)
    return key


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/socket.io/?EIO=4&transport=polling&sid=" + ID, ID),
        (b"/socket.io/?sid=" + ID + b"&EIO=4&transport=polling", ID),
        (b"/?a&b=&sid=" + ID, ID),
        (b"http://host/?sid=" + ID, ID),
        (b"/?%73id=" + ID, ID),
        (b"/?s%69D=x&sid=" + ID, ID),
        (b"/?sid=%6Cv_VI97HAXpY6yYWAAA%43", ID),
        (b"/?sid=a+b%2Bc", b"a b+c"),
        (b"/?sid=%zz%4", b"%zz%4"),
        (b"/?sid=a=b", b"a=b"),
        (b"/?sid=one&sid=two", b"one"),
        (b"/?sid=&sid=two", b"two"),
        (b"/?sid&sid=two", b"two"),
        (b"/?x=1?sid=2&sid=3", b"3"),
        (b"/?xsid=1", None),
        (b"/?sidx=1", None),
        (b"/?SID=1", None),
        (b"/?si=1", None),
        (b"/?sid%3D1", None),
        (b"/?sid=", None),
        (b"/?a;sid=1", None),
        (b"/sid=1", None),
        (b"/&sid=1", None),
        (b"/%3fsid=1", None),
        (b"/", None),
    ],
)
def test_the_parameter_of_a_request_target(twin, target, expected):
    assert found(twin, get(target), SID) == expected
    # What a Python server reads, it reads with these.
    query = target.partition(b"?")[2].decode()
    first = urllib.parse.parse_qs(query).get("sid", [None])[0]
    assert first == (expected and expected.decode())


@pytest.mark.parametrize(
    "line",
    [
        b"Referer: http://a/?sid=1",
        b"Cookie: sid=1",
        b"sid: 1",
        b"?sid=1",
        b"X: GET /?sid=1 HTTP/1.1",
    ],
)
def test_the_parameter_is_looked_for_in_the_target_alone(twin, line):
    assert found(twin, get(b"/", line), SID) is None
    assert found(twin, get(b"/") + b"GET /?sid=1 HTTP/1.1\r\n\r\n", SID) is None
    assert found(twin, b"GET / HTTP/1.1?sid=1\r\n\r\n", SID) is None
    assert found(twin, b"G?sid=1 / HTTP/1.1\r\n\r\n", SID) is None
    assert found(twin, b"\r\n\r\n" + get(b"/?sid=1"), SID) == b"1"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"Mcp-Session-Id: abc"], b"abc"),
        ([b"MCP-SESSION-ID:abc \t"], b"abc"),
        ([b"Mcp-Session-Id:", b"Mcp-Session-Id: abc", b"Mcp-Session-Id: d"], b"abc"),
        ([b"Mcp-Session-Id: a \tb"], b"a \tb"),
        ([b"Mcp-Session-Idx: abc", b"X: Mcp-Session-Id: abc"], None),
        ([b"Mcp-Session-Id: "], None),
        ([], None),
    ],
)
def test_the_value_of_a_header(twin, lines, expected):
    assert found(twin, get(b"/", *lines), b"header:Mcp-Session-Id") == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"Cookie: sid=abc"], b"abc"),
        ([b"cookie: a=b; sid=abc; c=d"], b"abc"),
        ([b'Cookie: sid = "a b" ;c'], b"a b"),
        ([b"Cookie: sid=a%41=b"], b"a%41=b"),
        ([b"Cookie: sid=; sid=two; sid=three"], b"two"),
        ([b"Cookie: a=b", b"Cookie: sid=abc"], b"abc"),
        ([b"Cookie: a=b;\tsid=abc"], b"abc"),
        ([b"Cookie: SID=abc; xsid=abc; sidx=abc; sid"], None),
        ([b"Set-Cookie: sid=abc", b"Cookies: sid=abc"], None),
    ],
)
def test_the_value_of_a_cookie(twin, lines, expected):
    assert found(twin, get(b"/", *lines), b"cookie:sid") == expected


@pytest.mark.parametrize("count", [1, 15, 16, 17, 18, 40])
def test_it_is_found_in_the_last_of_many_lines(twin, count):
    for line, session in ((b"Cookie: a=b", b"cookie:sid"), (b"X-Id:", b"header:x-id")):
        last = b"Cookie: sid=abc" if b"Cookie" in line else b"X-Id: abc"
        lines = [line, b"X-Forwarded-For: 192.0.2.1"] * (count - 1) + [last, b"B: b"]
        assert found(twin, get(b"/", *lines), session, proxy=True) == b"abc"
        assert found(twin, get(b"/", *lines, last + b"d"), session, proxy=True) == b"abc"


def test_it_comes_before_the_address_and_nothing_of_the_address_is_needed(twin):
    rules = {"session": SID, "proxy": True}
    line = b"X-Forwarded-For: 203.0.113.7"
    slot, key, why = ask(twin, get(b"/?sid=" + ID, line), **rules)
    assert (key, why) == (ID, "session id in the query parameter 'sid'")
    assert ask(twin, get(b"/?sid=" + ID), **rules)[0] == slot
    assert ask(twin, get(b"/?sid=" + ID, b"X-Forwarded-For: 192.0.2.1"), **rules)[0] == slot
    assert ask(twin, get(b"/", line), **rules)[1] == b"203.0.113.7"
    assert ask(twin, get(b"/"), **rules)[0] == MISSING
    assert ask(twin, get(b"/"), ignore_missing_header=True, **rules)[1] == PEER.encode()


def test_a_head_has_to_be_complete_and_well_formed(twin):
    head = get(b"/?sid=" + ID)
    for length in range(len(head)):
        assert ask(twin, head[:length], session=SID, proxy=False)[0] == NEED_MORE
    assert ask(twin, head.replace(b"Host", b"\0"), session=SID, proxy=False)[0] == MALFORMED
    # A routing header that is none of ours is not looked at.
    line = b"X-Forwarded-For : 1.2.3.4"
    assert found(twin, get(b"/?sid=1", line), SID) == b"1"
    assert ask(twin, get(b"/?sid=1", line), session=SID)[0] == MALFORMED
    for session, name in ((b"header:x-id", b"X-Id"), (b"cookie:x", b"Cookie")):
        for after in (b" : x=1", b"\t: x=1", b""):
            refused = ask(twin, get(b"/", name + after), session=session, proxy=False)
            assert refused[0] == MALFORMED
            assert name.lower().decode() in refused[2]


def test_without_an_id_any_slot_may_do(twin):
    rules = {"session": SID, "anywhere": True}
    for proxy in (False, True):
        assert ask(twin, get(b"/"), proxy=proxy, **rules)[0] == ANYWHERE
        assert ask(twin, get(b"/")[:-1], proxy=proxy, **rules)[0] == NEED_MORE
        assert ask(twin, get(b"/", b"\0"), proxy=proxy, **rules)[0] == MALFORMED
        assert ask(twin, get(b"/?sid=" + ID), proxy=proxy, **rules)[1] == ID


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"session": b"sid"}, "query:NAME"),
        ({"session": b"query:"}, "query:NAME"),
        ({"session": b"query:a b"}, "query:NAME"),
        ({"session": b"header:a b"}, "query:NAME"),
        ({"session": b"cookie:a;b"}, "query:NAME"),
        ({"session": b"body:a"}, "query:NAME"),
        ({"session": b"header:X-Forwarded-For"}, "two headers"),
        ({"session": b"cookie:a", "header": b"cookie"}, "two headers"),
        ({"anywhere": True}, "needs a session"),
    ],
)
def test_rules_that_cannot_be(twin, rules, message):
    with pytest.raises(ValueError, match=message):
        router(twin, **rules)


# -- minting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1024])
def test_a_minted_id_leads_to_its_slot(twin, n):
    asked = router(twin, n=n, session=SID, proxy=False)
    for slot in {0, n // 2, n - 1}:
        raw = random.Random(slot).randbytes(15)
        minted = asked.mint(slot, raw)
        assert base64.urlsafe_b64decode(minted)[:12] == raw[:12]
        assert asked.owner(minted) == slot
        head = get(b"/?sid=" + minted)
        assert asked.route(head, len(head), PEER) == slot


@examples(50)
@given(raw=st.binary(min_size=15, max_size=15), slot=st.integers(0, 6))
def test_both_twins_mint_the_same(raw, slot):
    assert len({router(twin).mint(slot, raw) for twin in TWINS.values()}) == 1


def test_the_last_bytes_are_counted_up_around_their_end(twin):
    for slot in range(7):
        assert router(twin).owner(router(twin).mint(slot, b"\xff" * 15)) == slot


def test_another_seed_leads_elsewhere(twin):
    ids = [router(twin, n=4).mint(0, os.urandom(15)) for _ in range(400)]
    slots = [router(twin, n=4, seed=b"\1" * 8).owner(one) for one in ids]
    assert all(50 < slots.count(slot) < 150 for slot in range(4))


def test_what_cannot_be_minted(twin):
    with pytest.raises(ValueError, match="slot must be 0 to 6"):
        router(twin).mint(7, bytes(15))
    with pytest.raises(ValueError, match="slot must be 0 to 6"):
        router(twin).mint(-1, bytes(15))
    with pytest.raises(ValueError, match="15 bytes"):
        router(twin).mint(0, bytes(14))


def test_a_tab_ends_the_target_also_before_its_query(twin):
    head = b"GET  /a=\tb?sid=one HTTP/1.1\r\n\r\n"
    assert router(twin, proxy=False, session=b"query:sid").find(head, len(head)) == (-1, b"")
