"""The routing core in nanoseconds: compiled against the reference, httptools and h11.

    pytest bench/test_core.py --benchmark-group-by=group --benchmark-sort=name

Absolute times belong to the machine; the ratios within a group do not. httptools and h11 do more
than routing (they parse the whole head) and less (they choose no slot): they are here because a
dispatcher without a scan of its own would have to call one of them.
"""

import random
import re

import h11
import httptools
import pytest

from sticky import _core, _pycore
from sticky.rules import MISSING

TWINS = {"compiled": _core, "reference": _pycore}
SEED = bytes(range(8))
PEER = "192.0.2.1"
N = 4
SIZES = [300, 1024, 8192]

REQUEST_LINE = "GET /socket.io/?EIO=4&transport=polling&t=P7kQ2Zx HTTP/1.1"
OURS = "X-Forwarded-For: 203.0.113.7, 10.0.0.1"
LINES = """\
Host: chat.example.com
Connection: keep-alive
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/142.0.0.0
Accept: */*
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-GB,en;q=0.9,de;q=0.8
Referer: https://chat.example.com/rooms/42
Origin: https://chat.example.com
Cache-Control: no-cache
Pragma: no-cache
sec-ch-ua: "Chromium";v="142", "Google Chrome";v="142", "Not_A Brand";v="99"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Linux"
Sec-Fetch-Dest: empty
Sec-Fetch-Mode: cors
Sec-Fetch-Site: same-origin
DNT: 1
X-Requested-With: XMLHttpRequest
X-Real-IP: 198.51.100.23
X-Forwarded-Proto: https
X-Forwarded-Host: chat.example.com
X-Forwarded-Port: 443
X-Request-ID: 7f2c1d9e-3f0b-4a6e-9b53-58a1c54e9d11
traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
""".splitlines()


def head(size: int, where: str) -> bytes:
    """A browser's request behind a proxy, of exactly this size. Cookies fill what lines do not."""
    draw = random.Random(1)
    left = size - len(REQUEST_LINE) - len(OURS) - 6
    others = []
    for line in LINES:
        if left < len(line) + 32:
            break
        others.append(line)
        left -= len(line) + 2
    while left:
        room = left if left < 1500 else 1000
        cookies = "; ".join(
            f"c{number}=" + "".join(draw.choices("0123456789abcdef%", k=32)) for number in range(40)
        )
        others.append(("Cookie: " + cookies)[: room - 2])
        left -= room
    lines = {
        "first": [OURS, *others],
        "last": [*others, OURS],
        "absent": [*others, OURS.replace("For", "Foo")],
    }[where]
    made = "\r\n".join([REQUEST_LINE, *lines, "", ""]).encode()
    assert len(made) == size
    return made


def measure(benchmark, function, *arguments, iterations=5000):
    return benchmark.pedantic(
        function, args=arguments, rounds=50, iterations=iterations, warmup_rounds=2
    )


@pytest.mark.parametrize("where", ["first", "last", "absent"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("twin", TWINS)
def test_route(benchmark, twin, size, where):
    benchmark.group = f"route, {size} B, header {where}"
    benchmark.extra_info.update(size=size, n=N, header=where)
    data = head(size, where)
    expected = MISSING
    if where != "absent":
        address = bytes([7, 113, 0, 203])  # hashed as one big-endian word
        expected = _pycore.pick(_pycore.siphash(SEED, address), N)
    router = TWINS[twin].Router(N, SEED, proxy=True)
    iterations = 5000 if twin == "compiled" else 500
    assert measure(benchmark, router.route, data, size, PEER, iterations=iterations) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("twin", TWINS)
def test_scan(benchmark, twin, size):
    """With one slot the reference does not hash: what is left is the scan and the address."""
    benchmark.group = f"scan (n=1), {size} B, header last"
    benchmark.extra_info.update(size=size, n=1, header="last")
    router = TWINS[twin].Router(1, SEED, proxy=True)
    iterations = 5000 if twin == "compiled" else 500
    assert (
        measure(benchmark, router.route, head(size, "last"), size, PEER, iterations=iterations) == 0
    )


class OnePass:
    """The least a pure form can do: one ``re`` pass to the header, nothing checked or chosen.

    It finds the header's text and stops. Not a router: the yardstick for the scan.
    """

    header = re.compile(rb"\n(?:x-forwarded-for:[ \t]*([^\r\n]*)|\r?\n)", re.IGNORECASE)

    def __call__(self, data: bytes) -> bytes:
        return self.header.search(data)[1]


def with_httptools(data: bytes) -> bytes:
    class Fields:
        value = b""

        def on_header(self, name: bytes, value: bytes) -> None:
            if name.lower() == b"x-forwarded-for":
                self.value = value

    fields = Fields()
    httptools.HttpRequestParser(fields).feed_data(data)
    return fields.value


def with_h11(data: bytes) -> bytes:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    for name, value in connection.next_event().headers:
        if name == b"x-forwarded-for":
            return value
    return b""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parser", ["one re pass", "httptools", "h11"])
def test_others(benchmark, parser, size):
    benchmark.group = f"route, {size} B, header last"
    benchmark.extra_info.update(size=size, header="last")
    data = head(size, "last")
    function = {"one re pass": OnePass(), "httptools": with_httptools, "h11": with_h11}[parser]
    iterations = 500 if parser == "one re pass" else 50
    assert measure(benchmark, function, data, iterations=iterations) == b"203.0.113.7, 10.0.0.1"


@pytest.mark.parametrize("twin", TWINS)
def test_route_by_the_peer(benchmark, twin):
    benchmark.group = "route by the peer"
    benchmark.extra_info.update(n=N)
    router = TWINS[twin].Router(N, SEED, proxy=False)
    expected = _pycore.pick(_pycore.siphash(SEED, bytes([1, 2, 0, 192])), N)
    iterations = 5000 if twin == "compiled" else 500
    assert measure(benchmark, router.route, b"", 0, PEER, iterations=iterations) == expected


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("twin", TWINS)
def test_pick(benchmark, twin, n):
    benchmark.group = f"pick, n={n}"
    benchmark.extra_info.update(n=n)
    expected = _pycore.pick(0x12345678, n)
    iterations = 5000 if twin == "compiled" else 100
    assert measure(benchmark, TWINS[twin].pick, 0x12345678, n, iterations=iterations) == expected


# --- whole heads and bodies ----------------------------------------------------------------------


def attributes(head) -> tuple:
    """What a server asks a head for."""
    return (
        *(head.method, head.target, head.minor, head.length, head.keep_alive),
        *(head.expects, head.upgrade, head.host),
    )


def parsed(twin, data: bytes) -> tuple:
    return attributes(twin.parse(data, 0, 65536))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("twin", TWINS)
def test_parse(benchmark, twin, size):
    benchmark.group = f"parse, {size} B"
    benchmark.extra_info.update(size=size)
    data = head(size, "last")
    iterations = 5000 if twin == "compiled" else 100
    found = measure(benchmark, parsed, TWINS[twin], data, iterations=iterations)
    assert found[-1] == b"chat.example.com"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_parse_of_others(benchmark, parser, size):
    benchmark.group = f"parse, {size} B"
    benchmark.extra_info.update(size=size)
    function = {"httptools": with_httptools, "h11": with_h11}[parser]
    data = head(size, "last")
    assert measure(benchmark, function, data, iterations=50) == b"203.0.113.7, 10.0.0.1"


def environ(head) -> dict[str, str]:
    into: dict[str, str] = {}
    head.environ(into)
    return into


@pytest.mark.parametrize("what", ["fields", "environ"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("twin", TWINS)
def test_what_an_app_is_given(benchmark, twin, size, what):
    benchmark.group = f"{what}, {size} B"
    data = head(size, "last")
    found = TWINS[twin].parse(data, 0, 65536)
    benchmark.extra_info.update(size=size, what=what, fields=len(found.fields()))
    function = found.fields if what == "fields" else lambda: environ(found)
    iterations = 5000 if twin == "compiled" else 500
    made = measure(benchmark, function, iterations=iterations)
    assert (made[-1][1] if what == "fields" else made["HTTP_X_FORWARDED_FOR"]) in (
        *(b"203.0.113.7, 10.0.0.1", "203.0.113.7, 10.0.0.1"),
    )


CHUNKED = {
    "one chunk of 16 KB": b"4000\r\n" + b"x" * 16384 + b"\r\n0\r\n\r\n",
    "1024 chunks of 16 B": b"10\r\nxxxxxxxxxxxxxxxx\r\n" * 1024 + b"0\r\n\r\n",
}


def with_h11_chunks(data: bytes) -> int:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.next_event()
    connection.receive_data(data)
    size = 0
    while isinstance(event := connection.next_event(), h11.Data):
        size += len(event.data)
    return size


def with_httptools_chunks(data: bytes) -> int:
    class Body:
        size = 0

        def on_body(self, payload: bytes) -> None:
            self.size += len(payload)

    body = Body()
    parser = httptools.HttpRequestParser(body)
    parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.feed_data(data)
    return body.size


@pytest.mark.parametrize("body", CHUNKED)
@pytest.mark.parametrize("parser", [*TWINS, "httptools", "h11"])
def test_chunks(benchmark, parser, body):
    benchmark.group = f"chunks, {body}"
    benchmark.extra_info.update(body=body)
    data = CHUNKED[body]
    if parser in TWINS:
        chunks = TWINS[parser].Chunks

        def function(data: bytes) -> int:
            return len(chunks().feed(data, 0, len(data))[1])

    else:
        function = {"httptools": with_httptools_chunks, "h11": with_h11_chunks}[parser]
    assert measure(benchmark, function, data, iterations=5) == 16384
