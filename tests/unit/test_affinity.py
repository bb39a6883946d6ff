"""Marks and affixes on the answers of an app, and what it is given of a request."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from sticky import Options
from sticky.core import parse
from sticky.firsts import FirstRequests
from sticky.rules import AFFIX, MARK
from sticky.topology import Topology
from sticky.worker.affinity import Affinity
from sticky.worker.held import Held

SLOT, NUM = 2, 4
PEER = "192.0.2.1"


def make(**options: object) -> SimpleNamespace:
    settings = Options.make({"num": NUM, "seed": bytes(8), "session": "affinity", **options})
    topology = Topology(settings)
    clock = SimpleNamespace(now=50.0)
    firsts = FirstRequests(topology, memoryview(bytearray(1024)), lambda: clock.now)
    held = Held(settings.session_hold, lambda: clock.now)
    router = topology.router
    affinity = Affinity(settings, router, SLOT, firsts, held)
    return SimpleNamespace(
        affinity=affinity, clock=clock, held=held, router=router, topology=topology
    )


def tagged(it: SimpleNamespace, slot: int = SLOT, number: int = 0) -> bytes:
    id = it.router.mint(slot, (number << 64).to_bytes(15, "big"))
    return id + it.router.tag(id)


def request(it: SimpleNamespace, *lines: bytes, target: bytes = b"/", peer: str = PEER):
    """The marking of a request, and the fields that the app is given."""
    data = b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: a", *lines, b"", b""])
    head = parse(data, 0, 9999)
    marking = it.affinity.begin(head, data, peer)
    return marking, dict(head.fields())


def answer(marking, *fields, status: int = 200):
    """The fields that are sent, and the mark among them."""
    sent = list(marking.answer(status, list(fields)))
    cookies = [value for name, value in sent if name in (b"Set-Cookie",)]
    mark = cookies[-1].partition(b";")[0].partition(b"=")[2] if cookies else None
    return sent, mark


# -- marks ----------------------------------------------------------------------------------------


def test_who_has_no_mark_is_given_one_that_leads_here():
    it = make()
    marking, _ = request(it)
    sent, mark = answer(marking, (b"content-type", b"text/plain"))
    assert sent == [
        (b"content-type", b"text/plain"),
        (b"Cache-Control", b"private"),
        (b"Set-Cookie", b"sticky_worker=" + mark + b"; Path=/; HttpOnly; SameSite=Lax"),
    ]
    id = it.router.tagged_id(mark, MARK)
    assert it.router.owner(id) == SLOT
    assert it.held.holds(id)
    again, fields = request(it, b"Cookie: a=b; sticky_worker=" + mark)
    assert fields[b"cookie"] == b"a=b"
    assert answer(again, (b"content-type", b"text/plain")) == (
        [(b"content-type", b"text/plain")],
        None,
    )


@pytest.mark.parametrize(
    ("status", "fields", "marked", "private"),
    [
        (200, {}, True, True),
        (404, {}, True, True),
        (500, {}, True, True),
        (204, {}, True, True),
        (302, {"location": "/"}, True, True),
        (304, {}, False, False),
        (304, {"cache-control": "private"}, False, False),
        (101, {}, True, False),
        (101, {"cache-control": "public, max-age=3"}, True, False),
        (101, {"etag": '"a"'}, True, False),
        (200, {"cache-control": "no-store"}, True, False),
        (200, {"Cache-Control": "no-cache"}, True, False),
        (200, {"cache-control": "max-age=0, Private"}, True, False),
        (200, {"cache-control": "public, max-age=60"}, False, False),
        (200, {"cache-control": "max-age=60"}, False, False),
        (200, {"cache-control": 'private="x-a"'}, False, False),
        (200, {"cache-control": "unprivate"}, False, False),
        (200, {"cache-control": ""}, False, False),
        (200, {"expires": "0"}, False, False),
        (200, {"ETag": '"a"'}, False, False),
        (200, {"last-modified": "Thu, 01 Jan 1970 00:00:00 GMT"}, False, False),
        (200, {"etag": '"a"', "cache-control": "no-cache"}, True, False),
        (200, {"set-cookie": "a=b"}, True, True),
    ],
)
@pytest.mark.parametrize("kind", [str, bytes])
def test_it_is_set_where_no_cache_gives_it_to_others(status, fields, marked, private, kind):
    marking, _ = request(make())
    given = [
        (name, value) if kind is str else (name.encode(), value.encode())
        for name, value in fields.items()
    ]
    sent, mark = answer(marking, *given, status=status)
    assert sent[: len(given)] == given
    assert bool(mark) == marked
    assert ((b"Cache-Control", b"private") in sent) == private


def test_several_lines_of_cache_control_are_one(monkeypatch):
    marking, _ = request(make())
    _, mark = answer(marking, ("cache-control", "max-age=0"), ("cache-control", "private"))
    assert mark


def test_name_and_attributes_are_options():
    it = make(affinity_cookie="w", affinity_attributes="None; Secure; Partitioned")
    sent, mark = answer(request(it)[0])
    behind = b"; Path=/; HttpOnly; SameSite=None; Secure; Partitioned"
    assert sent[-1] == (b"Set-Cookie", b"w=" + mark + behind)


@pytest.mark.parametrize("value", ["sticky_worker=mine", b"sticky_worker =; Max-Age=0"])
def test_a_cookie_of_that_name_by_the_app_is_one_error_line_and_ours_is_not_set(caplog, value):
    it = make()
    with caplog.at_level(logging.ERROR, "sticky.worker"):
        for _ in range(3):
            sent, mark = answer(request(it)[0], ("Set-Cookie", value))
            assert sent == [("Set-Cookie", value)]
            assert mark is None
    assert len(caplog.records) == 1
    assert "'sticky_worker'" in caplog.text
    assert "--affinity-cookie" in caplog.text


def test_first_requests_of_one_browser_get_the_same_mark_for_two_seconds():
    it = make()

    def asked(agent: bytes = b"a", peer: str = PEER):
        return answer(request(it, b"User-Agent: " + agent, peer=peer)[0])[1]

    first = asked()
    it.clock.now += 1.9
    assert asked() == first
    assert len({first, asked(b"b"), asked(peer="192.0.2.2")}) == 3
    it.clock.now += 0.2
    assert asked() != first


def test_a_process_whose_slot_is_none_any_more_marks_nobody():
    it = make()
    it.topology.change(SLOT)
    sent, mark = answer(request(it)[0])
    assert (sent, mark) == ([], None)


def test_a_wrong_mark_is_none_and_not_for_the_app():
    it = make()
    wrong = tagged(it)[:-1] + b"!"
    for text, seen in ((tagged(it)[:-2] + b"AA", None), (wrong, b"sticky_worker=" + wrong)):
        marking, fields = request(it, b"Cookie: sticky_worker=" + text)
        assert fields.get(b"cookie") == seen
        assert answer(marking)[1] is not None


# -- what is held ---------------------------------------------------------------------------------


def test_a_mark_is_held_while_its_request_lasts_and_ten_seconds_longer():
    it = make()
    mark = tagged(it)
    marking, _ = request(it, b"Cookie: sticky_worker=" + mark)
    it.clock.now += 1000
    assert it.held.holds(mark[:20])
    marking.end()
    marking.end()
    it.clock.now += 9
    assert it.held.holds(mark[:20])
    it.clock.now += 2
    assert not it.held.holds(mark[:20])


def test_only_the_id_that_decides_is_held():
    it = make(session=["query:sid", "header:x-id", "affinity"], affix=True)
    mark, affix = tagged(it, number=1), tagged(it, number=2)
    lines = [b"Cookie: sticky_worker=" + mark, b"X-Id: " + affix + b".theirs"]
    request(it, *lines, target=b"/?sid=a")
    assert [it.held.holds(id[:20]) for id in (mark, affix)] == [False, False]
    request(it, *lines)
    assert [it.held.holds(id[:20]) for id in (mark, affix)] == [False, True]
    request(it, lines[0])
    assert it.held.holds(mark[:20])


# -- affixes --------------------------------------------------------------------------------------

IN_HEADER = {"session": "header:mcp-session-id", "affix": True}


@pytest.mark.parametrize("kind", [str, bytes])
def test_an_id_of_the_app_s_gets_one_of_ours_before_it(kind):
    it = make(**IN_HEADER)
    marking, _ = request(it)
    name, value = "Mcp-Session-Id", "theirs"
    given = (name, value) if kind is str else (name.encode(), value.encode())
    ((_, sent),) = marking.answer(200, [given])
    id = it.router.tagged_id(sent, AFFIX)
    assert sent == id + it.router.tag(id) + b".theirs"
    assert it.router.owner(id) == SLOT
    assert it.held.holds(id)
    again, fields = request(it, b"Mcp-Session-Id: " + sent)
    assert fields[b"mcp-session-id"] == b"theirs"
    ((_, same),) = again.answer(200, [given])
    assert same == sent, "the request's own prefix"


def test_what_has_one_already_and_what_is_empty_stays_as_it_is():
    it = make(**IN_HEADER)
    for value in (tagged(it, 1) + b".theirs", b"", b"  "):
        marking, _ = request(it)
        assert list(marking.answer(200, [(b"mcp-session-id", value)])) == [
            (b"mcp-session-id", value)
        ]


def test_a_wrong_prefix_is_the_app_s_own_text():
    it = make(**IN_HEADER)
    value = tagged(it)[:-1] + b"_.theirs"
    marking, fields = request(it, b"Mcp-Session-Id: " + value)
    assert fields[b"mcp-session-id"] == value
    assert marking.ids == (b"",)
    ((_, sent),) = marking.answer(200, [(b"mcp-session-id", value)])
    assert sent.endswith(b"." + value)


@pytest.mark.parametrize(
    ("cookie", "changed"),
    [
        ("app=abc; HttpOnly", True),
        ("app=abc; Path=/; httponly; Secure", True),
        ('app="abc"; HttpOnly', True),
        ("app=abc", False),
        ("app=abc; Path=/HttpOnly", False),
        ("app=; HttpOnly; Max-Age=0", False),
        ('app=""; HttpOnly', False),
        ("other=abc; HttpOnly", False),
    ],
)
def test_of_cookies_only_those_that_scripts_cannot_read(cookie, changed):
    it = make(session="cookie:app", affix=True)
    marking, _ = request(it)
    ((_, sent),) = marking.answer(200, [("Set-Cookie", cookie)])
    if not changed:
        assert sent == cookie
        return
    before, _, behind = cookie.encode().partition(b"abc")
    assert sent.startswith(before)
    assert sent.endswith(b".abc" + behind)
    value = sent[len(before) : len(sent) - len(behind)]
    _, fields = request(it, b"Cookie: x=y; app=" + value)
    assert fields[b"cookie"] == b"x=y; app=abc"


def test_a_process_whose_slot_is_none_any_more_affixes_nothing():
    it = make(**IN_HEADER)
    it.topology.change(SLOT)
    marking, _ = request(it)
    assert list(marking.answer(200, [("mcp-session-id", "a")])) == [("mcp-session-id", b"a")]
