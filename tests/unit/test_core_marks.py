"""Several sources of session ids, marks, and affixes. Over both twins."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import pytest

from sticky import _pycore
from sticky.rules import ANYWHERE, MALFORMED, MARK_SIZE

from .core_kit import COMPILED, PEER, ROOT, SEED, TWINS, ask, fuzz_sources, mark, router, said_of

MCP = b"header:mcp-session-id"
MARKS = b"mark:sticky_worker"


@pytest.fixture(params=TWINS)
def twin(request):
    return TWINS[request.param]


def get(target: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: a", *lines, b"", b""])


def of_mark(text: bytes) -> bytes:
    return text[:20]


# -- the tag --------------------------------------------------------------------------------------


def test_siphash_2_4_is_that_of_its_authors(twin):
    """The first and the 16th of the test vectors that come with the reference code."""
    key = bytes(range(16))
    assert twin.siphash_2_4(key, b"").to_bytes(8, "little").hex() == "310e0edd47db6f72"
    assert twin.siphash_2_4(key, bytes(range(15))).to_bytes(8, "little").hex() == "e545be4961ca29a1"
    with pytest.raises(ValueError, match="16 bytes"):
        twin.siphash_2_4(key[1:], b"")


def test_a_tag_is_64_bits_that_depend_on_the_seed_and_on_every_byte(twin):
    asked = router(twin, session=MARKS)
    minted = asked.mint(3, bytes(15))
    tag = asked.tag(minted)
    assert len(minted + tag) == MARK_SIZE
    others = {asked.tag(minted[:at] + b"." + minted[at + 1 :]) for at in range(20)}
    assert len(others | {tag}) == 21
    assert router(twin, session=MARKS, seed=b"\1" * 8).tag(minted) != tag


def test_random_bytes_are_the_same_for_the_same_text_alone(twin):
    asked = router(twin)
    drawn = [asked.random(b"%d" % number) for number in range(200)]
    assert drawn == [asked.random(b"%d" % number) for number in range(200)]
    assert len(set(drawn)) == 200
    assert {len(one) for one in drawn} == {15}
    assert router(twin, seed=b"\1" * 8).random(b"0") != drawn[0]


# -- marks ----------------------------------------------------------------------------------------


def test_a_mark_leads_to_its_slot_and_its_id_is_the_key(twin):
    asked = router(twin, session=MARKS)
    for slot in range(7):
        text = mark(asked, slot)
        head = get(b"/", b"Cookie: a=b; sticky_worker=" + text + b"; c=d")
        found = ask(twin, head, session=MARKS)
        assert found == (slot, of_mark(text), "session id in the cookie 'sticky_worker'")
        assert asked.find(head, len(head)) == (0, of_mark(text))


@pytest.mark.parametrize("at", range(MARK_SIZE))
def test_what_has_not_the_right_tag_is_no_mark(twin, at):
    asked = router(twin, session=MARKS)
    text = mark(asked)
    for new in (b"", b"A", b"B", b"AA"):
        other = text[:at] + new + text[at + 1 :]
        if other != text:
            head = get(b"/", b"Cookie: sticky_worker=" + other, b"X-Forwarded-For: 192.0.2.7")
            assert ask(twin, head, session=MARKS)[1] == b"192.0.2.7"
            assert ask(twin, head, session=MARKS, anywhere=True)[0] == ANYWHERE


def test_the_first_true_mark_counts(twin):
    asked = router(twin, session=MARKS)
    one, two = mark(asked, 1), mark(asked, 2)
    for cookies in (
        [b"sticky_worker=A; sticky_worker=" + one + b"; sticky_worker=" + two],
        [b"sticky_worker=" + one[:-1], b"sticky_worker=" + one, b"sticky_worker=" + two],
        [b'sticky_worker=""; sticky_worker="' + one + b'"'],
    ):
        head = get(b"/", *(b"Cookie: " + value for value in cookies))
        assert ask(twin, head, session=MARKS, proxy=False)[:2] == (1, of_mark(one))


def test_the_app_sees_no_mark_whoever_has_made_it(twin):
    asked = router(twin, session=MARKS)
    text = mark(asked, 1)
    other = router(twin, session=MARKS, seed=b"\1" * 8)
    for cookie, left, found in (
        (b"sticky_worker=" + text, None, of_mark(text)),
        (b"a=b; sticky_worker=" + text, b"a=b", of_mark(text)),
        (b"sticky_worker=" + text + b"; a=b", b"a=b", of_mark(text)),
        (b'a=b ;sticky_worker="' + text + b'";c=d', b"a=b ;c=d", of_mark(text)),
        (b"sticky_worker=" + mark(other) + b"; a=b", b"a=b", b""),
        (b"sticky_worker=mine; a=b", b"sticky_worker=mine; a=b", b""),
        (b"my_sticky_worker=" + text, b"my_sticky_worker=" + text, b""),
        (b"a=b;;c", b"a=b;;c", b""),
    ):
        head = twin.parse(get(b"/", b"X: y", b"Cookie: " + cookie, b"Z: 1"), 0, 9999)
        assert asked.strip(head) == (found,)
        expected = [(b"host", b"a"), (b"x", b"y"), (b"cookie", left), (b"z", b"1")]
        assert head.fields() == [field for field in expected if field[1] is not None]
        environ: dict[str, str] = {}
        head.environ(environ)
        assert environ.get("HTTP_COOKIE") == (left and left.decode())


def test_of_several_lines_of_cookies_each_is_stripped(twin):
    asked = router(twin, session=MARKS)
    lines = [b"Cookie: a=b", b"Cookie: sticky_worker=" + mark(asked), b"Cookie: c=d"]
    head = twin.parse(get(b"/", *lines), 0, 9999)
    assert asked.strip(head)[0]
    assert dict(head.fields())[b"cookie"] == b"a=b; c=d"


# -- affixes --------------------------------------------------------------------------------------


def test_an_affix_is_the_id_and_what_is_behind_it_the_app_s(twin):
    asked = router(twin, session=MCP, affix=True)
    text = mark(asked, 4)
    head = get(b"/", b"Mcp-Session-Id: " + text + b".theirs.too")
    assert ask(twin, head, session=MCP, affix=True)[:2] == (4, of_mark(text))
    parsed = twin.parse(head, 0, 9999)
    assert asked.strip(parsed) == (of_mark(text),)
    assert dict(parsed.fields())[b"mcp-session-id"] == b"theirs.too"


@pytest.mark.parametrize("behind", [b"", b".", b"x", b"-theirs"])
def test_without_a_dot_and_something_it_is_none(twin, behind):
    asked = router(twin, session=MCP, affix=True)
    value = mark(asked, 4) + behind
    head = get(b"/", b"Mcp-Session-Id: " + value)
    assert ask(twin, head, session=MCP, affix=True, proxy=False)[1] == PEER.encode()
    parsed = twin.parse(head, 0, 9999)
    assert asked.strip(parsed) == (b"",)
    assert dict(parsed.fields())[b"mcp-session-id"] == value


def test_a_wrong_tag_passes_unchanged_and_counts_as_no_id(twin):
    asked = router(twin, session=MCP, affix=True)
    other = router(twin, session=MCP, affix=True, seed=b"\1" * 8)
    value = mark(other) + b".theirs"
    head = get(b"/", b"Mcp-Session-Id: " + value)
    assert asked.find(head, len(head)) == (-1, b"")
    parsed = twin.parse(head, 0, 9999)
    assert asked.strip(parsed) == (b"",)
    assert dict(parsed.fields())[b"mcp-session-id"] == value


def test_affixes_of_cookies(twin):
    session = (b"cookie:app", MARKS)
    asked = router(twin, session=session, affix=True)
    one, two = mark(asked, 1), mark(asked, 2)
    cookie = b"x=y; app=" + one + b".abc; sticky_worker=" + two
    head = get(b"/", b"Cookie: " + cookie)
    assert ask(twin, head, session=session, affix=True)[:2] == (1, of_mark(one))
    parsed = twin.parse(head, 0, 9999)
    assert asked.strip(parsed) == (of_mark(one), of_mark(two))
    assert dict(parsed.fields())[b"cookie"] == b"x=y; app=abc"


def test_plain_ids_are_left_where_they_are(twin):
    asked = router(twin, session=(b"query:sid", b"cookie:app", MCP))
    lines = [b"Cookie: app=" + mark(asked), b"Mcp-Session-Id: " + mark(asked) + b".a"]
    head = twin.parse(get(b"/?sid=a", *lines), 0, 9999)
    before = head.fields()
    assert asked.strip(head) == (b"", b"", b"")
    assert head.fields() == before


# -- in the path ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "target", "expected"),
    [
        (b"path:/session/{id}/", b"/session/abc/upload", b"abc"),
        (b"path:/session/{id}/", b"/session/abc/?x=y", b"abc"),
        (b"path:/session/{id}/", b"http://host/session/abc/", b"abc"),
        (b"path:/session/{id}/", b"HTTPS://host:1/session/abc/", b"abc"),
        (b"path:/session/{id}/", b"/session/a%62c%2f/", b"abc/"),
        (b"path:/session/{id}/", b"/session/a+b/", b"a+b"),
        (b"path:/session/{id}/", b"/session/abc", None),
        (b"path:/session/{id}/", b"/session//", None),
        (b"path:/session/{id}/", b"/session/?/", None),
        (b"path:/session/{id}/", b"/x/session/abc/", None),
        (b"path:/session/{id}/", b"/sessions/abc/", None),
        (b"path:/session/{id}/", b"/?/session/abc/", None),
        (b"path:/session/{id}/", b"http://host?/session/abc/", None),
        (b"path:/session/{id}/", b"ftp://host/session/abc/", None),
        (b"path:/session/{id}", b"/session/abc", b"abc"),
        (b"path:/session/{id}", b"/session/abc/x", b"abc"),
        (b"path:/a/{id}/b", b"/a/abc/b", b"abc"),
        (b"path:/a/{id}/b", b"/a/abc/c/b", None),
        (b"path:/{id}", b"*", None),
    ],
)
def test_an_id_in_the_path(twin, session, target, expected):
    _, key, why = ask(twin, get(target), session=session, proxy=False)
    assert key == (expected or PEER.encode())
    if expected:
        assert why == f"session id in the path {session[5:].decode()!r}"


# -- several sources ------------------------------------------------------------------------------


def test_the_first_source_with_an_id_decides(twin):
    session = (b"query:sid", MCP, b"cookie:sid", b"path:/s/{id}/")
    head = get(b"/s/path/?sid=query", b"Cookie: sid=cookie", b"Mcp-Session-Id: header")
    for at, (key, gone) in enumerate(
        [
            (b"query", b"?sid=query"),
            (b"header", b"Mcp-Session-Id: header\r\n"),
            (b"cookie", b"Cookie: sid=cookie\r\n"),
            (b"path", b"/s/path"),
        ]
    ):
        assert ask(twin, head, session=session)[1] == key
        assert router(twin, session=session).find(head, len(head)) == (at, key)
        backwards = router(twin, session=session[::-1]).find(head, len(head))
        assert backwards == (0, b"path")
        head = head.replace(gone, b"")
    assert ask(twin, head, session=session, proxy=False)[1] == PEER.encode()
    why = ask(twin, head, session=session, anywhere=True)[2]
    assert why == (
        "no session id in the query parameter 'sid' or the header 'mcp-session-id' or the cookie "
        "'sid' or the path '/s/{id}/'"
    )


@pytest.mark.parametrize("size", range(0, 130, 3))
def test_each_of_four_headers_is_seen_at_each_distance(twin, size):
    names = (b"Abc", b"Bcd-E", b"Cookie", b"X-Id")
    session = (b"header:abc", b"header:bcd-e", b"cookie:c", b"header:x-id")
    asked = router(twin, session=session)
    for at, name in enumerate(names):
        value = b": c=found" if name == b"Cookie" else b": found"
        head = get(b"/", b"Z: " + b"z" * size, name + value, b"Y: " + b"y" * (130 - size))
        assert asked.find(head, len(head)) == (at, b"found")


def test_the_one_that_is_malformed_is_named(twin):
    session = (b"query:sid", b"header:a-b", b"cookie:c", b"header:x-id")
    for name in (b"A-B", b"Cookie", b"X-Id"):
        refused = ask(twin, get(b"/", name + b" : 1"), session=session)
        assert refused[0] == MALFORMED
        assert f"'{name.decode().lower()}'" in refused[2]


@pytest.mark.parametrize(
    ("session", "message"),
    [
        ((b"query:a", b"query:b", b"query:c", b"query:d", b"query:e"), "4 places"),
        ((b"query:a", b"cookie:b", b"query:a"), "twice"),
        ((b"cookie:a", b"mark:a"), "twice"),
        (b"path:/session/", "query:NAME"),
        (b"path:session/{id}/", "query:NAME"),
        (b"path:/a{id}/", "query:NAME"),
        (b"path:/{id}a/", "query:NAME"),
        (b"path:/{id}/{id}/", "query:NAME"),
        (b"path:/{id}?", "query:NAME"),
        (b"mark:", "query:NAME"),
        (b"mark:a;b", "query:NAME"),
    ],
)
def test_sources_that_cannot_be(twin, session, message):
    with pytest.raises(ValueError, match=message):
        router(twin, session=session)


# -- who has no id yet ----------------------------------------------------------------------------


def test_clients_without_an_id_differ_by_address_and_agent(twin):
    rules = {"session": MARKS, "anywhere": True}
    asked = router(twin, **rules)
    line = b"X-Forwarded-For: 203.0.113.7"

    def who(*lines: bytes, peer: str = PEER) -> int:
        head = get(b"/", *lines)
        return asked.who(head, len(head), peer)

    same = who(line, b"User-Agent: a")
    assert same == who(b"user-agent:a ", line, peer="10.0.0.1")
    assert same == who(line, b"User-Agent: a", b"User-Agent: b", b"Cookie: a=b")
    others = [
        who(line, b"User-Agent: b"),
        who(line, b"User-Agent: "),
        who(b"X-Forwarded-For: 203.0.113.8", b"User-Agent: a"),
        who(b"User-Agent: a"),
        who(b"User-Agent: a", peer="10.0.0.1"),
        router(twin, seed=b"\1" * 8, **rules).who(get(b"/", line, b"User-Agent: a"), 61, PEER),
    ]
    assert len({same, *others}) == 7
    assert who(line) == who(line, b"User-Agent:")
    assert who(b"User-Agent: a") == who(b"X-Forwarded-For: unknown", b"User-Agent: a")


# -- the twins ------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_five_thousand_heads_with_ids_get_the_same_answers():
    kinds = set()
    for case in fuzz_sources(1, 5_000):
        theirs = said_of(_pycore, case)
        assert said_of(COMPILED, case) == theirs, case
        kinds.add((theirs[0][2][:24], theirs[2][0], len(theirs) > 3 and any(theirs[4])))
    assert len(kinds) > 20, "they must not all be alike"


@pytest.mark.timeout(300)
def test_what_was_stripped_is_what_has_decided(twin):
    for case in fuzz_sources(2, 2000):
        asked = twin.Router(case.rules.pop("n"), SEED, **case.rules)
        head = twin.parse(case.data, 0, 9999)
        if isinstance(head, int):
            continue
        at, key = asked.find(case.data, len(case.data))
        found = asked.strip(head)
        first = next((index for index, one in enumerate(found) if one), None)
        if at >= 0 and found[at]:
            assert found[at] == key
        elif at >= 0:
            assert first is None or first > at
        else:
            assert first is None


def test_the_seed_of_this_file_is_not_the_only_one(twin):
    draw = random.Random(3)
    for _ in range(20):
        asked = router(twin, seed=draw.randbytes(8), session=MARKS)
        head = get(b"/", b"Cookie: sticky_worker=" + mark(asked, 5))
        assert asked.route(head, len(head), PEER) == 5


# -- what processes agree about -------------------------------------------------------------------


def firsts(twin, size: int = 32):
    return twin.Firsts(memoryview(bytearray(size)))


def test_the_first_choice_holds_for_two_seconds_and_is_not_prolonged(twin):
    agreed = firsts(twin)
    assert agreed.agree(1 << 40, 5000, -1) == (-1, 0)
    assert agreed.agree(1 << 40, 5000, 3) == (3, 5000)
    for now in (5000, 6000, 6999):
        assert agreed.agree(1 << 40, now, -1) == (3, 5000)
        assert agreed.agree(1 << 40, now, 1) == (3, 5000)
    assert agreed.agree(1 << 40, 7000, -1) == (-1, 0)
    assert agreed.agree(1 << 40, 7000, 1) == (1, 7000)
    assert agreed.agree(1 << 40, 6998, 2) == (1, 7000), "by a clock that was read before"


def test_clients_do_not_meet(twin):
    agreed = firsts(twin, 1024)
    for who in range(32):
        assert agreed.agree(who << 28 | who, 100, who) == (who, 100)
    for who in range(32):
        assert agreed.agree(who << 28 | who, 200, 0) == (who, 100)


def test_the_oldest_of_four_makes_room(twin):
    agreed = firsts(twin)
    for who in range(1, 6):
        agreed.agree(who << 28, 100 + who, who)
    assert agreed.agree(1 << 28, 110, -1) == (-1, 0)
    assert [agreed.agree(who << 28, 110, -1)[0] for who in range(2, 6)] == [2, 3, 4, 5]


def test_the_clock_may_turn_over(twin):
    agreed = firsts(twin)
    assert agreed.agree(1 << 30, (1 << 18) - 1, 2) == (2, (1 << 18) - 1)
    assert agreed.agree(1 << 30, (1 << 18) + 1998, 1) == (2, (1 << 18) - 1)
    assert agreed.agree(1 << 30, (1 << 18) + 1999, 1) == (1, 1999)


@pytest.mark.parametrize("size", [0, 8, 31, 33, 96])
def test_memory_that_does_not_do(twin, size):
    with pytest.raises(ValueError, match="32 bytes"):
        firsts(twin, size)


def test_both_twins_agree_in_the_same_memory():
    memory = bytearray(256)
    c, py = COMPILED.Firsts(memoryview(memory)), _pycore.Firsts(memoryview(memory))
    draw = random.Random(4)
    now = 0
    for _ in range(3000):
        now += draw.randrange(300)
        who = draw.randrange(12) << 28 | draw.randrange(8)
        writer, reader = draw.sample([c, py], 2)
        found = writer.agree(who, now, draw.choice([-1, 0, 1023]))
        assert reader.agree(who, now, -1) == found


CHOOSER = """
import mmap, os, sys
from tests.unit.core_kit import COMPILED
path, side, sides, rounds = sys.argv[1], *map(int, sys.argv[2:])
with open(path, "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
table, ready = memoryview(memory)[:1024], memoryview(memory)[1024:1048].cast("Q")
said = memoryview(memory)[4096:].cast("Q")
agreed = COMPILED.Firsts(table)
for turn in range(rounds):
    ready[side] = turn + 1
    while min(ready) < turn + 1:  # all begin together
        os.sched_yield()
    said[turn * sides + side] = agreed.agree(turn + 1 << 28 | turn % 32, turn * 3000, side)[0]
"""


@pytest.mark.timeout(120)
def test_processes_that_choose_at_once_choose_the_same(tmp_path):
    """Threads of the compiled twin could not meet; processes do."""
    rounds, sides = 500, 3
    path = tmp_path / "memory"
    path.write_bytes(bytes(4096 + 8 * rounds * sides))
    command = [sys.executable, "-c", CHOOSER, str(path)]
    children = [
        subprocess.Popen([*command, str(side), str(sides), str(rounds)], cwd=ROOT)
        for side in range(sides)
    ]
    assert [child.wait(100) for child in children] == [0] * sides
    said = struct.unpack(f"{rounds * sides}Q", path.read_bytes()[4096:])
    answers = [said[turn * sides : (turn + 1) * sides] for turn in range(rounds)]
    assert all(len(set(answer)) == 1 for answer in answers)
