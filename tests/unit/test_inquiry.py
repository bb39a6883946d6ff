"""What ``sticky ctl why`` answers: as the server's own router, and without its seed."""

from __future__ import annotations

import pytest

from sticky.errors import StickyError
from sticky.inquiry import why
from sticky.options import Options
from sticky.routing import explain, make_router

SEED = bytes(range(8))


def options(**more):
    return Options(num=4, seed=SEED, **more)


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1"])
@pytest.mark.parametrize(
    "more", [{}, {"proxy": True}, {"proxy": True, "header": "forwarded"}], ids=str
)
def test_an_address_goes_where_its_client_goes(address, more):
    made = options(**more)
    found = why(address, made, 4)
    assert found["slot"] == explain(b"GET / HTTP/1.1\r\n\r\n", address, options()).slot
    assert found["n"] == 4
    assert found["key"]


@pytest.mark.parametrize(
    ("session", "head"),
    [
        ("sid", b"GET /?EIO=4&sid=abc HTTP/1.1\r\n\r\n"),
        ("query:s", b"GET /x?s=abc HTTP/1.1\r\n\r\n"),
        ("header:mcp-session-id", b"GET / HTTP/1.1\r\nMcp-Session-Id: abc\r\n\r\n"),
        ("cookie:s", b"GET / HTTP/1.1\r\nCookie: a=b; s=abc\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("proxy", [False, True])
def test_a_session_goes_where_its_requests_go(session, head, proxy):
    made = options(session=session, proxy=proxy)
    found = why("abc", made, 4)
    assert (found["slot"], found["key"]) == (explain(head, "10.0.0.1", made).slot, "abc")
    assert "session" in found["why"] or "id" in found["why"]


def test_it_goes_by_the_slots_that_there_are_now():
    slots = {n: {why(f"10.0.0.{i}", options(), n)["slot"] for i in range(60)} for n in (2, 7)}
    assert slots == {2: {0, 1}, 7: set(range(7))}
    router = make_router(Options(num=7, seed=SEED))
    assert why("10.0.0.1", options(), 7)["slot"] == router.route(b"", 0, "10.0.0.1")


def test_who_may_go_anywhere_is_said_so():
    found = why("10.0.0.1", options(session="sid", balance="least"), 4)
    assert found["slot"] is None
    assert "balance is 'least'" in found["why"]


def test_what_is_neither_is_said_so():
    with pytest.raises(StickyError, match=r"'abc' is no address.*routes by nothing else"):
        why("abc", options(), 4)
    for text in ("a b", "a\r\nb", "\x00", "ä", "x" * 1001, ""):
        with pytest.raises(StickyError, match="printable ASCII"):
            why(text, options(session="cookie:s"), 4)


def test_the_seed_is_nowhere():
    text = repr(why("10.0.0.1", options(), 4))
    assert SEED.hex() not in text
    assert repr(SEED) not in text
