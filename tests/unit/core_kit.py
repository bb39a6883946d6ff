"""What the tests of the routing core share: the twins, builds of the C, and heads to feed them.

``STICKY_CORE_UNDER_TEST`` names another build of the compiled twin (the portable form, or one that
was broken on purpose); the same tests then run over that one.
"""

import importlib.util
import ipaddress
import os
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st

from sticky import _pycore

ROOT = Path(__file__).resolve().parents[2]
SEED = bytes(range(8))
PEER = "192.0.2.99"

if "STICKY_CORE_UNDER_TEST" in os.environ:
    # Another build is compared once, in the same way each time, and nobody reads the example.
    settings.register_profile(
        "another build", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.load_profile("another build")


def examples(count: int) -> settings:
    """So many examples; a third of them where it is another build that is compared."""
    if "STICKY_CORE_UNDER_TEST" in os.environ:
        count //= 3
    return settings(max_examples=count, deadline=None)


def load(path: Path) -> ModuleType:
    """A build of ``_core`` that lies somewhere else."""
    spec = importlib.util.spec_from_file_location("_core", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiled() -> ModuleType:
    if "STICKY_CORE_UNDER_TEST" in os.environ:
        return load(Path(os.environ["STICKY_CORE_UNDER_TEST"]))
    from sticky import _core

    return _core


COMPILED = _compiled()
TWINS = {"c": COMPILED, "py": _pycore}
if "STICKY_CORE_UNDER_TEST" in os.environ:
    del TWINS["py"]  # it has been tested already


def build(folder: Path, *, replace: tuple[str, str] | None = None, flags: tuple[str, ...] = ()):
    """Compile ``_core.pyx``, with one place of it changed, in a folder. Returns the module."""
    source = (ROOT / "sticky" / "_core.pyx").read_text()
    if replace:
        assert source.count(replace[0]) == 1, f"{replace[0]!r} is not one place of _core.pyx"
        source = source.replace(*replace)
    (folder / "_core.pyx").write_text(source)
    target = folder / ("_core" + sysconfig.get_config_var("EXT_SUFFIX"))
    compiler = [*sysconfig.get_config_var("CC").split(), "-shared", "-fPIC", "-O1", "-w"]
    include = "-I" + sysconfig.get_path("include")
    for command in (
        [sys.executable, "-m", "cython", "-3", "_core.pyx", "-o", "_core.c"],
        [*compiler, *flags, include, "_core.c", "-o", target],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return target


def run_suite_over(module: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """The named test files over another build of the compiled twin."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | {"STICKY_CORE_UNDER_TEST": str(module)},
        capture_output=True,
        text=True,
        timeout=280,
    )


def router(twin: ModuleType, **rules: Any):
    return twin.Router(
        rules.pop("n", 7), rules.pop("seed", SEED), proxy=rules.pop("proxy", True), **rules
    )


def ask(twin: ModuleType, head: bytes, peer: str = PEER, **rules: Any) -> tuple[int, bytes, str]:
    """``explain`` of a new Router, after a look whether ``route`` says the same."""
    asked = router(twin, **rules)
    answer = asked.explain(head, len(head), peer)
    assert asked.route(head, len(head), peer) == answer[0]
    assert asked.route(bytearray(head), len(head), peer) == answer[0]
    return answer


def request(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET /socket.io/?EIO=4 HTTP/1.1", *lines, b"", b""])


@dataclass
class Case:
    """One question for both twins."""

    data: bytes
    length: int
    peer: str = PEER
    rules: dict[str, Any] = field(default_factory=dict)

    def answer(self, twin: ModuleType) -> tuple[int, bytes, str]:
        asked = router(twin, **self.rules)
        answer = asked.explain(self.data, self.length, self.peer)
        assert asked.route(self.data, self.length, self.peer) == answer[0]
        return answer


# --- heads of near misses ------------------------------------------------------------------------
# Hypothesis draws the name and a seed, and the rest follows from the seed: a draw of its own for
# every byte of a head would make one example as slow as a hundred of these.

TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

names = st.one_of(
    st.sampled_from([b"x-forwarded-for", b"forwarded", b"cf-connecting-ip", b"x", b"x-real-ip"]),
    st.lists(st.sampled_from(TOKEN), min_size=1, max_size=24).map(bytes),
)
randoms = st.integers(0, 2**32 - 1).map(random.Random)

ATOMS = rb"""|unknown|UnKnown|_hidden|"|"a, b"|"a, 1.1.1.1"|\|\"|"\"|"\1.2.3.4"|for="a;b"|;
|for=unknown|for|a  b|""|for="\|for=1.2.3.4;proto=http|for="\1.2.3.4"|01.2.3.4|1.2.3.4:99999
|1.2.3.4:999999|256.1.1.1|::|1:2:3:4:5:6:7::|1:2:3:4::5:6:7:8|::2:3:4:5:6:7:8|1::2::3|%|[]
|FEBF:1::4|64:ff9b::1:1.2.3.4|64:ff9b:1::1.2.3.4|::1:ffff:1.2.3.4|::1:0:ffff:1.2.3.4
|1::2:3:4:5:6:7:1.2.3.4|1:2:3:4:5:6:7:1.2.3.4|1:2:3:4:5:6::1.2.3.4"""
ATOMS = ATOMS.replace(b"\n", b"").split(b"|")
LONG = [b"::1%" + b"z" * length for length in (123, 124, 125)]
LONG += [b'"' + text + b'"' for text in LONG] + [b"x" * 128, b"x" * 129]


def near_name(draw: random.Random, name: bytes) -> bytes:
    """The name as another client would write it, or nearly the name."""
    how = draw.randrange(8)
    if how == 0:
        return name
    if how <= 3:
        return bytes(c ^ 0x20 if chr(c).isalpha() and draw.random() < 0.5 else c for c in name)
    at = draw.randrange(len(name) + 1)
    if how == 4:
        return name[:at] + bytes(c ^ 0x20 for c in name[at : at + 1]) + name[at + 1 :]
    if how == 5:
        return name[:at] + name[at + 1 :]
    return name[:at] + bytes([draw.choice(TOKEN + b": \t")]) + name[at + (how == 6) :]


def rare(draw: random.Random, usual: bytes, *others: bytes) -> bytes:
    """Now and then one of the others: a head with it is refused, and says nothing more."""
    return draw.choice(others) if draw.random() < 0.05 else usual


def address(draw: random.Random) -> bytes:
    """An address in one of its forms."""
    if draw.random() < 0.5:
        text = str(ipaddress.IPv4Address(draw.getrandbits(32)))
        forms = ["{}", "{}", "{}:80", '"{}:65535"', "::ffff:{}", "64:ff9b::{}", "[{}]", "1::{}"]
    else:
        bits = draw.getrandbits(128) & draw.choice([-1, 0xFFFF << 64 | 0xFF, 0xFFFF << 112 | 1])
        ip = ipaddress.IPv6Address(bits | draw.choice([0, 0, 0xFE80 << 112]))
        text = draw.choice([str(ip), ip.exploded, str(ip).upper()])
        forms = ["{}", "[{}]", "[{}]:443", '"[{}]:1"', "{}%eth0", "[{}%1]"]
    return draw.choice(forms).format(text).encode()


def mutated(draw: random.Random, text: bytes) -> bytes:
    """The text with a byte or two taken out, put in or changed."""
    changed = bytearray(text)
    for _ in range(draw.choice([0, 1, 1, 2])):
        at = draw.randrange(len(changed) + 1)
        new = bytes([draw.choice(b'0123456789abcdefF:.[]%",;= \\\tx\x0b')])
        new = draw.choice([b"", rare(draw, new, b"\n", b"\r", b"\0")])
        changed[at : at + draw.randrange(2)] = new
    return bytes(changed)


def value(draw: random.Random) -> bytes:
    """A list of addresses, near misses and worse."""
    parts = []
    for _ in range(draw.randrange(5)):
        kind = draw.randrange(8)
        if kind < 2:
            part = draw.choice([b"", b"", b"for=", b"By=x;FOR="]) + address(draw)
        elif kind < 4:
            part = draw.choice([b"", b"", b"for="]) + mutated(draw, address(draw))
        elif kind == 4:
            part = rare(draw, draw.choice([b" ", b"\t "]), b"\r\n ", b"\r\n\t")
        else:
            part = draw.choice(LONG) if draw.random() < 0.05 else draw.choice(ATOMS)
        parts += [part, draw.choice([b",", b", ", b",,", b" ", b";", b""])]
    return b"".join(parts)


def escaped(draw: random.Random, text: bytes) -> bytes:
    """The text with some of its bytes percent-encoded, in either case of letters."""
    return b"".join(
        draw.choice((b"%%%02x", b"%%%02X")) % c if draw.random() < 0.2 else bytes([c]) for c in text
    )


IDS = rb"""|abc|a|A-b_9|%|%4|%4g|%41|+|a+b|=|a=b|"a"|"|""|a b|?|/|#|;|,| |%00|%ff|%26|a;b|x01"""
IDS = IDS.split(b"|")


def target(draw: random.Random, name: bytes) -> bytes:
    """A request line with parameters of nearly this name."""
    pairs = []
    for _ in range(draw.randrange(5)):
        found = draw.choice([name, name, near_name(draw, name), name + b"x", b"x" + name, b"EIO"])
        pairs.append(escaped(draw, found) + draw.choice([b"=", b"=", b"=", b"", b"%3d"]))
        pairs.append(escaped(draw, draw.choice(IDS)))
        pairs.append(draw.choice([b"&", b"&", b"&", b"&&", b";", b"?", b""]))
    query = draw.choice([b"?", b"?", b"?", b"", b"??", b"%3f"]) + b"".join(pairs)
    before = draw.choice(
        [b"GET /", b"GET /socket.io/", b"GET  /", b" GET\t/", b"GET", b"", b"G?a=b /"]
    )
    return (
        before + query + draw.choice([b" HTTP/1.1", b"", b" ", b" ?sid=a HTTP/1.1", b"\x0b?sid=a"])
    )


def cookies(draw: random.Random, name: bytes) -> bytes:
    """The value of a cookie header."""
    pairs = []
    for _ in range(draw.randrange(5)):
        found = draw.choice([name, name, near_name(draw, name), name + b"x", b"x" + name, b""])
        space = draw.choice([b"", b"", b"", b" ", b"\t", b"\t "])
        pairs += [space, found, space, draw.choice([b"=", b"=", b"=", b"", b"=="])]
        pairs += [space, draw.choice(IDS), space, draw.choice([b";", b"; ", b",", b""])]
    return b"".join(pairs)


def case(name: bytes, draw: random.Random) -> Case:
    """A head full of near misses, sometimes cut, sometimes with something behind it."""
    place = draw.choice([b"", b"query", b"header", b"cookie"])
    of_session = draw.choice([b"sid", b"s", b"mcp-session-id", b"x-forwarded-fox", b"forwarde"])
    if (place, of_session) == (b"header", name.lower()) or name.lower() == b"cookie":
        place = b""
    newline = [b"\r\n"] * draw.choice([1] * 9 + [20]) + [
        rare(draw, b"\r\n", b"\n", b"\r\n ", b"\r")
    ]
    head = rare(draw, draw.choice([b"", b"", b"\r\n", b"\r\n\r\n"]), b"\n\r\n", b" ")
    first = [b"GET / HTTP/1.1", b"GET /" + b"a" * draw.randrange(90), name + b": 1.2.3.4"]
    if place == b"query":
        first += [target(draw, of_session) for _ in range(4)]
    head += draw.choice(first) + draw.choice(newline)
    for _ in range(draw.randrange(6)):
        kind = draw.randrange(6)
        if place == b"header" and draw.random() < 0.3:
            head += near_name(draw, of_session) + draw.choice([b":", b": ", b": ", b" :", b""])
            head += draw.choice(IDS) + draw.choice([b"", b"", b" \t", b" b"])
        elif place == b"cookie" and draw.random() < 0.3:
            head += near_name(draw, b"cookie") + draw.choice([b":", b": ", b": ", b" :", b""])
            head += cookies(draw, of_session)
        elif kind == 0:
            head += b"Cookie: " + b"c" * draw.randrange(200)
        elif kind == 1:
            head += b"Referer: http://a/?" + name + b": 1.2.3.4"
        else:
            head += near_name(draw, name) + draw.choice([b":"] * 4 + [b": "] * 6 + [b" :", b""])
            head += value(draw)
        head += draw.choice(newline)
    head += draw.choice(newline)
    if draw.random() < 0.25:
        head = mutated(draw, head)
    data = head + draw.choice([b"", b"", b"\0\r", name + b": 9.9.9.9\r\n\r\n", b"b" * 100])
    length = draw.randrange(len(data) + 1) if draw.random() < 0.2 else len(data)
    if draw.random() < 0.1:
        length = data.find(draw.choice([b"\0", b"\r", b"\n", b":"]), draw.randrange(len(data))) + 1
    session = place and place + b":" + of_session
    peer = draw.choice(["10.0.0.1", "", "::1", "fe80::1%lo", "sock", "::ffff:10.0.0.1"])
    return Case(
        data,
        length,
        peer,
        {
            "header": name,
            "n": draw.randrange(1, 9),
            "proxy": draw.random() < 0.8 or not session,
            "session": session,
            "anywhere": bool(session) and draw.random() < 0.3,
            "hops": draw.choice([0, 0, 1, 2, 3]),
            "ignore_missing_header": draw.random() < 0.5,
            "ipv4_prefix": draw.choice([32, 24, draw.randrange(33)]),
            "ipv6_prefix": draw.choice([64, 128, draw.randrange(129)]),
        },
    )


cases = st.builds(case, names, randoms)


def fuzz(seed: int, count: int) -> Iterator[Case]:
    """Many quick cases, the same ones each time."""
    draw = random.Random(seed)
    for _ in range(count):
        yield case(draw.choice([b"x-forwarded-for", b"X-Forwarded-For", b"forwarded", b"x"]), draw)


def squeeze(value: bytes) -> bytes:
    """Without regard to how much white space there is."""
    return b" ".join(re.split(rb"[ \t]+", value.strip(b" \t")))


# --- several sources, and tagged ids -------------------------------------------------------------

SOURCES = (b"query:sid", b"query:s", b"header:x-id", b"header:mcp-session-id", b"header:xi")
SOURCES += (b"cookie:sid", b"cookie:app", b"mark:sticky_worker", b"mark:m")
SOURCES += (b"path:/session/{id}/", b"path:/s/{id}", b"path:/{id}/x", b"path:/{id}")


def mark(router: Any, slot: int = 0, number: int = 0) -> bytes:
    """A tagged id that leads to a slot."""
    minted = router.mint(slot, number.to_bytes(15, "big"))
    return minted + router.tag(minted)


def near_mark(draw: random.Random, router: Any) -> bytes:
    """A tagged id, what is nearly one, or something else."""
    text = mark(router, draw.randrange(router.n), draw.randrange(9))
    how = draw.randrange(10)
    if how < 4:
        text += draw.choice([b"", b"", b".", b".a", b".abc", b".a.b", b"."]) + draw.choice(IDS)
    elif how == 4:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice([b"", b"A", b".", b"AA"]) + text[at + 1 :]
    elif how == 5:
        text = text[: draw.randrange(len(text))]
    elif how == 6:
        text = draw.choice(IDS)
    return b'"' + text + b'"' if draw.random() < 0.15 else text


def sourced(draw: random.Random) -> Case:
    """A head with ids, true ones and others, in several places."""
    session = tuple(draw.sample(SOURCES, draw.randrange(1, 5)))
    affix = draw.random() < 0.5
    asked = _pycore.Router(draw.randrange(1, 9), SEED, proxy=False, session=session, affix=affix)
    path = draw.choice([b"/", b"/session/", b"/s/", b"/s", b"//", b"/%73/"])
    path += draw.choice([escaped(draw, near_mark(draw, asked)), *IDS])
    path += draw.choice([b"", b"", b"/", b"/x", b"/y/z"])
    path = draw.choice([b"", b"", b"", b"http://a", b"HTTPS://a:1", b"ftp://a", b"http:"]) + path
    pairs = [
        draw.choice([b"sid", b"s", b"x"]) + b"=" + escaped(draw, near_mark(draw, asked))
        for _ in range(draw.randrange(3))
    ]
    lines = [
        b"GET " + path + (b"?" if pairs else b"") + b"&".join(pairs) + b" HTTP/1.1",
        b"Host: a",
    ]
    for _ in range(draw.randrange(7)):
        name = draw.choice([b"X-Id", b"x-id", b"Mcp-Session-Id", b"XI", b"X-Forwarded-For"])
        text = draw.choice([b"", b" ", b"\t"]) + near_mark(draw, asked) + draw.choice([b"", b" "])
        if name == b"X-Forwarded-For":
            text = draw.choice([b"192.0.2.%d" % draw.randrange(9), b"", b"unknown", b"a"])
        kind = draw.randrange(6)
        if kind < 3:
            name = b"Cookie"
            text = b" " + draw.choice([b"; ", b";", b" ; "]).join(
                draw.choice([b"sid", b"app", b"sticky_worker", b"m", b"a", b" sid ", b""])
                + draw.choice([b"=", b"=", b"=", b"", b" = "])
                + near_mark(draw, asked)
                for _ in range(draw.randrange(5))
            )
        elif kind == 3:
            name = draw.choice([b"User-Agent", b"USER-AGENT", b"User-Agents", b"user-agent "])
        lines.append(name + draw.choice([b":"] * 20 + [b" :", b""]) + text)
    data = b"\r\n".join([*lines, b"", b""])
    if draw.random() < 0.1:
        data = mutated(draw, data)
    length = draw.randrange(len(data) + 1) if draw.random() < 0.1 else len(data)
    return Case(
        data,
        length,
        draw.choice(["10.0.0.1", "", "::1", "10.0.0.2"]),
        {
            "n": asked.n,
            "session": session,
            "affix": affix,
            "proxy": draw.random() < 0.5,
            "anywhere": draw.random() < 0.3,
            "ignore_missing_header": draw.random() < 0.5,
        },
    )


def said_of(twin: ModuleType, case: Case) -> list[Any]:
    """Everything that a twin says about a head with ids in it."""
    asked = router(twin, **case.rules)
    found: list[Any] = [
        asked.explain(case.data, case.length, case.peer),
        asked.route(case.data, case.length, case.peer),
        asked.find(case.data, case.length),
    ]
    head = twin.parse(case.data, 0, 9999)
    if not isinstance(head, int):
        environ: dict[str, str] = {}
        found += [asked.who(case.data, head.end, case.peer), asked.strip(head)]
        found += [head.fields(), head.environ(environ), environ]
    return found


def fuzz_sources(seed: int, count: int) -> Iterator[Case]:
    """Many of them, the same ones each time."""
    draw = random.Random(seed)
    for _ in range(count):
        yield sourced(draw)
