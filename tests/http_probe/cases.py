"""Raw requests, and what a server of HTTP/1.1 may make of them.

The vectors (ids, bytes, expectations, which of them are scored) are those of Http11Probe,
https://github.com/MDA2AV/Http11Probe (MIT), as of its 215 tests of spring 2026: 161 are scored,
54 only tell what a server does. They are written down anew here, and the expectations follow RFC
9110, 9112, 6265 and 6455 as that suite reads them. What the server has to offer is in ``apps``.

A server behind ``--proxy`` wants a header that says who the client is. Each step therefore has a
place for one more header line, at which it does not change what the step is about: behind the
request line; behind the Host line where what follows the request line is the point of the case
(white space, a bare CR or LF as the line's end). Requests hidden in a body get none: their length
counts. What is no request, or has no place for a header, is sent as it is: the empty request,
garbage, white space, HTTP/0.9 and the preface of HTTP/2.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .judging import (
    ACCEPTED,
    ACCEPTED_OR_CLOSED,
    ANY,
    FAIL,
    NOT_SWITCHED,
    OK,
    ONLY_400,
    PASS,
    REFUSED,
    UNCOMMON,
    UNFINISHED,
    WARN,
    Conditional,
    Expect,
    Hidden,
    Judge,
    Reply,
    Sequel,
    by_status,
    closes,
    contains,
    echoes,
    if_ok,
    lacks,
    not_taken_for,
    refused_with,
    with_header,
)

HOST = "localhost:8080"

_CATEGORIES = {
    "COMP": "compliance",
    "RFC9110": "compliance",
    "RFC9112": "compliance",
    "SMUG": "smuggling",
    "MAL": "malformed input",
    "NORM": "normalization",
    "COOK": "cookies",
    "CAP": "capabilities",
}


@dataclass(frozen=True)
class Step:
    """What is sent at once. One more header line may go between ``before`` and ``after``; without
    ``after`` there is no place for one."""

    before: bytes
    after: bytes | None = None

    def wire(self, extra: bytes = b"") -> bytes:
        """The bytes to send, with these header lines (each with its CRLF)."""
        return self.before if self.after is None else self.before + extra + self.after


@dataclass(frozen=True)
class Case:
    """One vector.

    Attributes:
        id: as the public suite has it.
        rfc: the section that decides; empty where none does.
        steps: sent one after another on one connection, each when the answer of the one before is
            there and the connection is still open. One may depend on the first answer.
        judge: the verdict, of as many replies as steps were sent.
        scored: whether it counts.
    """

    id: str
    rfc: str
    steps: tuple[Step | Callable[[Reply], Step], ...]
    judge: Judge
    scored: bool = True

    @property
    def category(self) -> str:
        return _CATEGORIES[self.id.partition("-")[0]]


CASES: list[Case] = []


def case(
    id: str, rfc: str, steps: Step | Sequence[Step | Callable[[Reply], Step]], judge: Judge
) -> None:
    CASES.append(Case(id, rfc, (steps,) if isinstance(steps, Step) else tuple(steps), judge))


def unscored(
    id: str, rfc: str, steps: Step | Sequence[Step | Callable[[Reply], Step]], judge: Judge
) -> None:
    steps = (steps,) if isinstance(steps, Step) else tuple(steps)
    CASES.append(Case(id, rfc, steps, judge, scored=False))


# -- how requests are put together ---------------------------------------------------------------


def raw(before: str, after: str | None = None) -> Step:
    """As it stands here; a header may go between the two."""
    return Step(before.encode("latin-1"), None if after is None else after.encode("latin-1"))


def ask(line: str, *fields: str, body: str = "", host: str | None = HOST) -> Step:
    """A request with this request line, a Host line, these fields and this body."""
    lines = [] if host is None else [f"Host: {host}"]
    return raw(f"{line}\r\n", "".join(f"{each}\r\n" for each in [*lines, *fields]) + "\r\n" + body)


def get(*fields: str, target: str = "/", host: str | None = HOST) -> Step:
    return ask(f"GET {target} HTTP/1.1", *fields, host=host)


def post(*fields: str, body: str = "", target: str = "/") -> Step:
    return ask(f"POST {target} HTTP/1.1", *fields, body=body)


def length(value: str, body: str = "hello") -> Step:
    """A body whose Content-Length line ends like this."""
    return post(f"Content-Length:{value}", body=body)


def coded(value: str, body: str = "hello") -> Step:
    """Five bytes of Content-Length behind a Transfer-Encoding line that ends like this."""
    return post(f"Transfer-Encoding:{value}", "Content-Length: 5", body=body)


def chunked(body: str) -> Step:
    """A body with this framing."""
    return post("Transfer-Encoding: chunked", body=body)


def chunk(size_line: str, data: str = "hello\r\n") -> Step:
    """One chunk behind this size line, and then the end."""
    return chunked(f"{size_line}{data}0\r\n\r\n")


GET = get()
HIDDEN = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"


def hiding(*fields: str, hidden: str = HIDDEN, before: str = "0\r\n\r\n") -> Step:
    """A body in which a request begins where some would say that the body has ended. ``{n}`` in a
    field is the length of the whole."""
    body = before + hidden
    return post(*(field.format(n=len(body)) for field in fields), body=body)


# -- compliance ----------------------------------------------------------------------------------

_VERSION = "RFC 9112 2.3"
_LINES = "RFC 9112 2.2"
_REQUEST_LINE = "RFC 9112 3"
_HOST = "RFC 9112 3.2"
_FIELDS = "RFC 9112 5"
_CHUNKS = "RFC 9112 7.1"
_LENGTH = "RFC 9110 8.6"
_CODING = "RFC 9112 6.1"
_BODY = "RFC 9112 6.2"
_UPGRADE = "RFC 9110 7.8"

case("COMP-BASELINE", "", GET, ACCEPTED)
case(
    "RFC9112-2.2-BARE-LF-REQUEST-LINE",
    _LINES,
    raw(f"GET / HTTP/1.1\nHost: {HOST}\r\n", "\r\n"),
    UNCOMMON,
)
case(
    "RFC9112-2.2-BARE-LF-HEADER",
    _LINES,
    raw("GET / HTTP/1.1\r\n", f"Host: {HOST}\nX-Test: value\r\n\r\n"),
    UNCOMMON,
)
case("RFC9112-5.1-OBS-FOLD", "RFC 9112 5.2", get("X-Test: value\r\n continued"), ONLY_400)
case("RFC9110-5.6.2-SP-BEFORE-COLON", "RFC 9112 5.1", get("X-Test : value"), ONLY_400)
case("RFC9112-3-MULTI-SP-REQUEST-LINE", _REQUEST_LINE, ask("GET  / HTTP/1.1"), UNCOMMON)
case("RFC9112-7.1-MISSING-HOST", _HOST, get(host=None), ONLY_400)
case("RFC9112-2.3-INVALID-VERSION", _VERSION, ask("GET / HTTP/9.9"), refused_with(400, 505))
case("RFC9112-5-EMPTY-HEADER-NAME", _FIELDS, get(": empty-name"), REFUSED)
case(
    "RFC9112-3-CR-ONLY-LINE-ENDING",
    _LINES,
    raw(f"GET / HTTP/1.1\rHost: {HOST}\r\n", "\r\n"),
    ONLY_400,
)
case("RFC9112-3-MISSING-TARGET", _REQUEST_LINE, ask("GET HTTP/1.1"), REFUSED)
case("RFC9112-3.2-FRAGMENT-IN-TARGET", "RFC 9112 3.2", get(target="/path#frag"), UNCOMMON)
case("RFC9112-2.3-HTTP09-REQUEST", _VERSION, raw("GET /\r\n"), UNFINISHED)
case("RFC9112-5-INVALID-HEADER-NAME", _FIELDS, get("Bad[Name: value"), REFUSED)
case("RFC9112-5-HEADER-NO-COLON", _FIELDS, get("NoColonHere"), REFUSED)
case("RFC9110-5.4-DUPLICATE-HOST", _HOST, get("Host: other.example.com"), ONLY_400)
case(
    "RFC9112-6.1-CL-NON-NUMERIC",
    _CODING,
    length(" abc", ""),
    REFUSED,
)
case("RFC9112-6.1-CL-PLUS-SIGN", _CODING, length(" +5"), REFUSED)
case(
    "COMP-WHITESPACE-BEFORE-HEADERS",
    _LINES,
    raw(f"GET / HTTP/1.1\r\n \r\nHost: {HOST}\r\n", "\r\n"),
    REFUSED,
)
case("COMP-DUPLICATE-HOST-SAME", _HOST, get(f"Host: {HOST}"), ONLY_400)
case("COMP-HOST-WITH-USERINFO", _HOST, get(host=f"user@{HOST}"), REFUSED)
case("COMP-HOST-WITH-PATH", _HOST, get(host=f"{HOST}/path"), REFUSED)
case("COMP-ASTERISK-WITH-GET", "RFC 9112 3.2.4", get(target="*"), REFUSED)
case("COMP-OPTIONS-STAR", "RFC 9112 3.2.4", ask("OPTIONS * HTTP/1.1"), ACCEPTED)
case("COMP-UNKNOWN-TE-501", _CODING, post("Transfer-Encoding: gzip"), refused_with(400, 501))
case(
    "COMP-LEADING-CRLF",
    _LINES,
    raw("\r\n\r\nGET / HTTP/1.1\r\n", f"Host: {HOST}\r\n\r\n"),
    UNCOMMON,
)
unscored(
    "COMP-ABSOLUTE-FORM",
    "RFC 9112 3.2.2",
    get(target=f"http://{HOST}/"),
    Expect("2xx; 400 or close is allowed", OK, {400}, closed=WARN),
)
case(
    "COMP-METHOD-CASE",
    "RFC 9110 9.1",
    ask("get / HTTP/1.1"),
    Expect("400/405/501 or close; 2xx is allowed", {400, 405, 501}, OK, closed=PASS),
)
case("COMP-POST-CL-BODY", _BODY, length(" 5"), echoes(b"hello"))
case("COMP-POST-CL-ZERO", _BODY, length(" 0", ""), ACCEPTED_OR_CLOSED)
case("COMP-POST-NO-CL-NO-TE", "RFC 9112 6.3", post(), ACCEPTED_OR_CLOSED)
case("COMP-POST-CL-UNDERSEND", _BODY, length(" 10"), UNFINISHED)
case("COMP-CHUNKED-BODY", _CHUNKS, chunk("5\r\n"), echoes(b"hello"))
case(
    "COMP-CHUNKED-MULTI",
    _CHUNKS,
    chunk("5\r\n", "hello\r\n6\r\n world\r\n"),
    echoes(b"hello world"),
)
case("COMP-CHUNKED-EMPTY", _CHUNKS, chunked("0\r\n\r\n"), ACCEPTED_OR_CLOSED)
case("COMP-CHUNKED-NO-FINAL", _CHUNKS, chunked("5\r\nhello\r\n"), UNFINISHED)

_WEBSOCKET = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
_OFFER = ("Connection: Upgrade", *_WEBSOCKET)

case(
    "COMP-UPGRADE-POST",
    "RFC 6455 4.1",
    post(*_OFFER, "Sec-WebSocket-Version: 13"),
    NOT_SWITCHED,
)
case(
    "COMP-UPGRADE-MISSING-CONN",
    _UPGRADE,
    get(*_WEBSOCKET, "Sec-WebSocket-Version: 13"),
    NOT_SWITCHED,
)
case(
    "COMP-UPGRADE-UNKNOWN",
    _UPGRADE,
    get("Connection: Upgrade", "Upgrade: totally-made-up/1.0"),
    NOT_SWITCHED,
)
case(
    "COMP-METHOD-CONNECT",
    "RFC 9110 9.3.6",
    ask("CONNECT example.com:443 HTTP/1.1", host="example.com:443"),
    refused_with(400, 405, 501),
)
case(
    "COMP-EXPECT-UNKNOWN",
    "RFC 9110 10.1.1",
    get("Expect: 200-ok"),
    Expect("417 or close; 2xx is allowed", {417}, OK, closed=PASS),
)
unscored(
    "COMP-GET-WITH-CL-BODY",
    "RFC 9110 9.3.1",
    ask("GET / HTTP/1.1", "Content-Length: 5", body="hello"),
    Expect("400 or close; anything is allowed", {400}, ANY, closed=PASS),
)
case(
    "COMP-CHUNKED-EXTENSION",
    "RFC 9112 7.1.1",
    chunk("5;ext=value\r\n"),
    Expect(
        "2xx with b'hello'; 400 or close is allowed",
        warns={400},
        closed=WARN,
        special=lambda r: echoes(b"hello")([r]) if r.ok else None,
    ),
)
case(
    "COMP-UPGRADE-INVALID-VER",
    "RFC 6455 4.4",
    get(*_OFFER, "Sec-WebSocket-Version: 99"),
    Expect("426 or another refusal; 2xx is allowed", set(ANY) - {101} - set(OK), OK, closed=PASS),
)
_TRACE = Expect("405/501 or close; 2xx is allowed", {405, 501}, OK, closed=PASS)
unscored("COMP-METHOD-TRACE", "RFC 9110 9.3.8", ask("TRACE / HTTP/1.1"), _TRACE)
case("COMP-HOST-EMPTY-VALUE", _HOST, get(host=""), REFUSED)
case("COMP-REQUEST-LINE-TAB", _REQUEST_LINE, ask("GET\t/ HTTP/1.1"), UNCOMMON)
case("COMP-VERSION-MISSING-MINOR", _VERSION, ask("GET / HTTP/1"), REFUSED)
case("COMP-VERSION-LEADING-ZEROS", _VERSION, ask("GET / HTTP/01.01"), REFUSED)
case("COMP-VERSION-WHITESPACE", _VERSION, ask("GET / HTTP/ 1.1"), REFUSED)
case(
    "COMP-CONNECTION-CLOSE",
    "RFC 9112 9.3",
    get("Connection: close"),
    if_ok("2xx and close", closes(FAIL)),
)
case(
    "COMP-HTTP10-DEFAULT-CLOSE",
    "RFC 9112 9.3",
    ask("GET / HTTP/1.0"),
    if_ok("2xx and close; to stay open is allowed", closes(WARN)),
)
unscored("COMP-HTTP10-NO-HOST", _HOST, ask("GET / HTTP/1.0", host=None), UNCOMMON)
unscored(
    "COMP-HTTP12-VERSION",
    _VERSION,
    ask("GET / HTTP/1.2"),
    Expect("close; 2xx or 505 is allowed", warns={505, *OK}, closed=PASS),
)
unscored(
    "COMP-TRACE-WITH-BODY",
    "RFC 9110 9.3.8",
    ask("TRACE / HTTP/1.1", "Content-Length: 5", body="hello"),
    Expect("400/405/501 or close; 2xx is allowed", {400, 405, 501}, OK, closed=PASS),
)
case(
    "COMP-CHUNKED-TRAILER-VALID",
    "RFC 9112 7.1.2",
    chunked("5\r\nhello\r\n0\r\nX-Checksum: abc\r\n\r\n"),
    echoes(b"hello"),
)
case("COMP-CHUNKED-HEX-UPPERCASE", _CHUNKS, chunk("A\r\n", "helloworld\r\n"), echoes(b"helloworld"))
case(
    "COMP-RANGE-POST",
    "RFC 9110 14.2",
    post("Content-Length: 5", "Range: bytes=0-10", body="hello"),
    Expect("2xx, not 206", set(OK) - {206}),
)
case(
    "COMP-UPGRADE-HTTP10",
    _UPGRADE,
    ask("GET / HTTP/1.0", *_OFFER, "Sec-WebSocket-Version: 13"),
    NOT_SWITCHED,
)
case(
    "COMP-HEAD-NO-BODY",
    "RFC 9110 9.3.2",
    ask("HEAD / HTTP/1.1"),
    if_ok("2xx without a body", lambda r: FAIL if r.body else PASS),
)
case(
    "COMP-UNKNOWN-METHOD",
    "RFC 9110 9.1",
    ask("FOOBAR / HTTP/1.1"),
    Expect("400/405/501 or close; 2xx is allowed", {400, 405, 501}, OK, closed=PASS),
)
case(
    "COMP-405-ALLOW",
    "RFC 9110 15.5.6",
    ask("DELETE / HTTP/1.1"),
    Expect(
        "405 with Allow; anything but 405 is allowed",
        warns=set(ANY) - {405},
        special=lambda r: PASS if r.status == 405 and "allow" in r.headers else None,
    ),
)
case("COMP-DATE-HEADER", "RFC 9110 6.6.1", GET, with_header("Date", FAIL))
_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
unscored(
    "COMP-DATE-FORMAT",
    "RFC 9110 5.6.7",
    GET,
    if_ok(
        "2xx with a date of the preferred form",
        lambda r: PASS if _DATE.fullmatch(r.headers.get("date", "")) else WARN,
    ),
)
case(
    "COMP-NO-1XX-HTTP10",
    "RFC 9110 15.2",
    ask("POST / HTTP/1.0", "Expect: 100-continue", "Content-Length: 5", body="hello"),
    Expect("anything but 1xx", range(200, 600), closed=PASS, silent=PASS),
)
case(
    "COMP-NO-CL-IN-204",
    _LENGTH,
    ask("OPTIONS / HTTP/1.1"),
    Expect(
        "204 without Content-Length; anything but 204 is allowed",
        warns=set(ANY) - {204},
        special=lambda r: PASS if r.status == 204 and "content-length" not in r.headers else None,
    ),
)
case("COMP-OPTIONS-ALLOW", "RFC 9110 9.3.7", ask("OPTIONS / HTTP/1.1"), with_header("Allow", WARN))
case("COMP-CONTENT-TYPE", "RFC 9110 8.3", GET, with_header("Content-Type", WARN))
case("COMP-VERSION-CASE", _VERSION, ask("GET / http/1.1"), REFUSED)
case(
    "COMP-LONG-URL-OK",
    _REQUEST_LINE,
    get(target="/" + 7900 * "a"),
    Expect("anything but 414; close is allowed", set(ANY) - {414}, closed=WARN),
)
case("COMP-SPACE-IN-TARGET", "RFC 9112 3.2", get(target="/pa th"), REFUSED)
case(
    "COMP-DUPLICATE-CT",
    "RFC 9110 5.3",
    post("Content-Length: 5", "Content-Type: text/plain", "Content-Type: text/html", body="hello"),
    UNCOMMON,
)
unscored(
    "COMP-TRACE-SENSITIVE",
    "RFC 9110 9.3.8",
    ask("TRACE / HTTP/1.1", "Authorization: Bearer secret-token-123"),
    if_ok(
        "405/501, close, or 2xx that does not repeat credentials",
        lacks(b"secret-token-123", otherwise=WARN),
        passes={405, 501},
        closed=PASS,
    ),
)
unscored(
    "COMP-RANGE-INVALID",
    "RFC 9110 14.2",
    get("Range: bytes=abc-xyz"),
    Expect("2xx (not 206) or 416", {416, *OK} - {206}, ANY, closed=WARN),
)
unscored(
    "COMP-ACCEPT-NONSENSE",
    "RFC 9110 12.5.1",
    get("Accept: application/x-nonsense"),
    Expect("406; 2xx or close is allowed", {406}, OK, closed=WARN),
)
unscored(
    "COMP-POST-UNSUPPORTED-CT",
    "RFC 9110 15.5.16",
    post("Content-Length: 5", "Content-Type: application/x-nonsense", body="hello"),
    Expect("415 or 2xx", {415, *OK}, ANY, closed=WARN),
)

# -- smuggling -----------------------------------------------------------------------------------

_EXTENSIONS = "RFC 9112 7.1.1"
_LISTS = "RFC 9110 5.6.1"
_SPACE = "RFC 9110 5.5"
_FOLD = "RFC 9112 5.2"
_TRAILERS = "RFC 9110 6.5.1"
_BAD_CODING = refused_with(400, 501)

case(
    "SMUG-CL-TE-BOTH",
    _CODING,
    post(
        "Content-Length: 23",
        "Transfer-Encoding: chunked",
        body="D\r\nhello-bananas\r\n0\r\n\r\n",
    ),
    UNCOMMON,
)
case(
    "SMUG-DUPLICATE-CL",
    _LENGTH,
    post("Content-Length: 5", "Content-Length: 10", body="helloworld"),
    REFUSED,
)
case("SMUG-CL-LEADING-ZEROS", _LENGTH, length(" 005"), UNCOMMON)
case("SMUG-TE-XCHUNKED", _CODING, coded(" xchunked"), _BAD_CODING)
case(
    "SMUG-TE-TRAILING-SPACE",
    _CODING,
    coded(" chunked "),
    if_ok(
        "400/501 or close; 2xx and close is allowed",
        closes(FAIL, closed=WARN),
        passes={400, 501},
        closed=PASS,
    ),
)
case(
    "SMUG-TE-SP-BEFORE-COLON",
    _FIELDS,
    post("Transfer-Encoding : chunked", "Content-Length: 5", body="hello"),
    REFUSED,
)
case("SMUG-CL-NEGATIVE", _LENGTH, length(" -1", ""), REFUSED)
_CONFLICT = Expect(
    "400 or close; 2xx is allowed",
    {400},
    OK,
    closed=PASS,
    special=lambda r: PASS if r.closed else None,
)
case(
    "SMUG-CLTE-PIPELINE",
    _CODING,
    post("Content-Length: 4", "Transfer-Encoding: chunked", body="0\r\n\r\n"),
    _CONFLICT,
)
case(
    "SMUG-TECL-PIPELINE",
    _CODING,
    post("Transfer-Encoding: chunked", "Content-Length: 30", body="0\r\n\r\n"),
    _CONFLICT,
)
case("SMUG-CL-TRAILING-SPACE", _SPACE, length(" 5 "), UNCOMMON)
case("SMUG-TE-DOUBLE-CHUNKED", _CODING, coded(" chunked, chunked"), UNCOMMON)
case("SMUG-CL-EXTRA-LEADING-SP", _SPACE, length("  5"), UNCOMMON)
case("SMUG-TE-CASE-MISMATCH", _CODING, coded(" Chunked"), UNCOMMON)
case("SMUG-CL-COMMA-DIFFERENT", _LENGTH, length(" 5, 10"), REFUSED)
case(
    "SMUG-TE-NOT-FINAL-CHUNKED",
    "RFC 9112 6.3",
    post("Transfer-Encoding: chunked, gzip", body="0\r\n\r\n"),
    REFUSED,
)
case(
    "SMUG-TE-HTTP10",
    _CODING,
    ask("POST / HTTP/1.0", "Transfer-Encoding: chunked", "Content-Length: 5", body="hello"),
    REFUSED,
)
case("SMUG-CHUNK-BARE-SEMICOLON", _EXTENSIONS, chunk("5;\r\n"), REFUSED)
case("SMUG-CHUNK-EXT-INVALID-TOKEN", _EXTENSIONS, chunk("5;bad[=x\r\n"), REFUSED)
case(
    "SMUG-BARE-CR-HEADER-VALUE",
    _LINES,
    post("Content-Length: 5", "X-Test: val\rue", body="hello"),
    REFUSED,
)
case("SMUG-CL-OCTAL", _LENGTH, length(" 0o5"), REFUSED)
case("SMUG-CHUNK-UNDERSCORE", _CHUNKS, chunk("1_0\r\n", "hello world!!!!!\r\n"), REFUSED)
case("SMUG-TE-EMPTY-VALUE", _CODING, coded(" "), REFUSED)
case("SMUG-TE-LEADING-COMMA", _LISTS, coded(" , chunked"), UNCOMMON)
case(
    "SMUG-TE-DUPLICATE-HEADERS",
    _CODING,
    coded(" chunked\r\nTransfer-Encoding: identity"),
    REFUSED,
)
case("SMUG-CHUNK-HEX-PREFIX", _CHUNKS, chunk("0x5\r\n"), REFUSED)
case("SMUG-CHUNK-SIZE-PLUS", _CHUNKS, chunk("+5\r\n"), REFUSED)
case("SMUG-CHUNK-SIZE-TRAILING-OWS", _CHUNKS, chunk("5 \r\n"), REFUSED)
case("SMUG-CL-HEX-PREFIX", _LENGTH, length(" 0x5"), REFUSED)
case("SMUG-CL-INTERNAL-SPACE", _LENGTH, length(" 1 0", "hello12345"), REFUSED)
case("SMUG-CHUNK-LEADING-SP", _CHUNKS, chunk(" 5\r\n"), REFUSED)
case("SMUG-CHUNK-MISSING-TRAILING-CRLF", _CHUNKS, chunk("5\r\n", "hello"), REFUSED)
case("SMUG-CHUNK-EXT-LF", _EXTENSIONS, chunk("5;\n"), UNCOMMON)
case("SMUG-CHUNK-SPILL", _CHUNKS, chunk("5\r\n", "hello!!\r\n"), REFUSED)
case("SMUG-CHUNK-LF-TERM", _CHUNKS, chunk("5\r\n", "hello\n"), UNCOMMON)
case("SMUG-CHUNK-EXT-CTRL", _EXTENSIONS, chunk("5;\0ext\r\n"), REFUSED)
case("SMUG-CHUNK-EXT-CR", _EXTENSIONS, chunk("5;a\rX\r\n"), REFUSED)
case("SMUG-TE-VTAB", _CODING, coded(" \x0bchunked"), REFUSED)
case("SMUG-TE-FORMFEED", _CODING, coded(" \x0cchunked"), REFUSED)
case("SMUG-TE-NULL", _CODING, coded(" chunked\0"), REFUSED)
case("SMUG-CHUNK-LF-TRAILER", _CHUNKS, chunked("5\r\nhello\r\n0\r\n\n"), UNCOMMON)
case("SMUG-TE-IDENTITY", "RFC 9112 7", coded(" identity"), _BAD_CODING)
case("SMUG-CHUNK-NEGATIVE", _CHUNKS, chunk("-1\r\n"), REFUSED)
unscored(
    "SMUG-TRANSFER_ENCODING",
    _CODING,
    post("Transfer_Encoding: chunked", "Content-Length: 5", body="hello"),
    UNCOMMON,
)
unscored("SMUG-CL-COMMA-SAME", _LENGTH, length(" 5, 5"), UNCOMMON)
unscored("SMUG-CL-COMMA-TRIPLE", _LENGTH, length(" 5, 5, 5"), UNCOMMON)
unscored("SMUG-CHUNKED-WITH-PARAMS", "RFC 9112 7", coded(" chunked;ext=val"), UNCOMMON)
_EXPECTING = post("Content-Length: 5", "Expect: 100-continue", body="hello")
unscored("SMUG-EXPECT-100-CL", "RFC 9110 10.1.1", _EXPECTING, UNCOMMON)
for _name, _field in {
    "CL": "Content-Length: 50",
    "TE": "Transfer-Encoding: chunked",
    "HOST": "Host: evil.example.com",
    "AUTH": "Authorization: Bearer evil",
    "CONTENT-TYPE": "Content-Type: text/evil",
}.items():
    unscored(
        f"SMUG-TRAILER-{_name}",
        _TRAILERS,
        chunked(f"5\r\nhello\r\n0\r\n{_field}\r\n\r\n"),
        UNCOMMON,
    )
unscored(
    "SMUG-HEAD-CL-BODY",
    "RFC 9110 9.3.2",
    ask("HEAD / HTTP/1.1", "Content-Length: 5", body="hello"),
    UNCOMMON,
)
_OPTIONS_BODY = ask("OPTIONS / HTTP/1.1", "Content-Length: 5", body="hello")
unscored("SMUG-OPTIONS-CL-BODY", "RFC 9110 9.3.7", _OPTIONS_BODY, UNCOMMON)
case("SMUG-CL-UNDERSCORE", _LENGTH, length(" 1_0", "helloworld"), REFUSED)
case("SMUG-CL-NEGATIVE-ZERO", _LENGTH, length(" -0", ""), REFUSED)
case("SMUG-CL-DOUBLE-ZERO", _LENGTH, length(" 00", ""), UNCOMMON)
case("SMUG-CL-LEADING-ZEROS-OCTAL", _LENGTH, length(" 0200", 200 * "A"), UNCOMMON)
case(
    "SMUG-TE-OBS-FOLD",
    _FOLD,
    coded("\r\n chunked"),
    if_ok(
        "400 or close; 2xx and close is allowed",
        closes(FAIL, closed=WARN),
        passes={400},
        closed=PASS,
    ),
)
case("SMUG-TE-TRAILING-COMMA", _LISTS, coded(" chunked,"), UNCOMMON)
unscored("SMUG-TE-TAB-BEFORE-VALUE", _SPACE, coded("\tchunked"), UNCOMMON)
unscored(
    "SMUG-ABSOLUTE-URI-HOST-MISMATCH",
    "RFC 9112 3.2.2",
    get(target="http://other.example.com/"),
    UNCOMMON,
)
case("SMUG-MULTIPLE-HOST-COMMA", "RFC 9110 7.2", get(host=f"{HOST}, other.example.com"), REFUSED)
case("SMUG-CHUNK-BARE-CR-TERM", _LINES, chunk("5\r"), REFUSED)

_NO_SECOND = Sequel("400 or close", after=lambda r: FAIL)


def _both(first: str, second: str, body: str) -> list[Step]:
    return [post(first, second, body=body), GET]


_CHUNKED = "Transfer-Encoding: chunked"
case("SMUG-CLTE-CONN-CLOSE", _CODING, _both("Content-Length: 5", _CHUNKED, "0\r\n\r\n"), _NO_SECOND)
case("SMUG-TECL-CONN-CLOSE", _CODING, _both(_CHUNKED, "Content-Length: 5", "0\r\n\r\n"), _NO_SECOND)
case("SMUG-CLTE-DESYNC", _CODING, _both("Content-Length: 6", _CHUNKED, "0\r\n\r\nX"), _NO_SECOND)
case("SMUG-CLTE-SMUGGLED-GET", _CODING, hiding("Content-Length: {n}", _CHUNKED), Hidden())
for _name, _fields in {
    "CL-PLUS": ("Content-Length: +{n}", _CHUNKED),
    "CL-NON-NUMERIC": ("Content-Length: {n}x", _CHUNKED),
    "TE-OBS-FOLD": ("Transfer-Encoding:\r\n chunked", "Content-Length: {n}"),
    "TE-TRAILING-SPACE": ("Content-Length: {n}", "Transfer-Encoding: chunked "),
    "TE-LEADING-COMMA": ("Content-Length: {n}", "Transfer-Encoding: , chunked"),
    "TE-CASE-MISMATCH": ("Content-Length: {n}", "Transfer-Encoding: Chunked"),
}.items():
    case(f"SMUG-CLTE-SMUGGLED-GET-{_name}", _CODING, hiding(*_fields), Hidden())
case(
    "SMUG-CLTE-SMUGGLED-HEAD",
    _CODING,
    hiding("Content-Length: {n}", _CHUNKED, hidden=HIDDEN.replace("GET", "HEAD")),
    Hidden(),
)
case(
    "SMUG-TE-DUPLICATE-HEADERS-SMUGGLED-GET",
    _CODING,
    hiding(_CHUNKED, "Transfer-Encoding: identity", "Content-Length: {n}"),
    Hidden(),
)
# The hidden request claims seven bytes: the rest of the framing, were it taken for a second one.
_HIDDEN_7 = HIDDEN.replace("\r\n\r\n", "\r\nContent-Length: 7\r\n\r\n")
case(
    "SMUG-TECL-SMUGGLED-GET",
    _CODING,
    post(
        _CHUNKED,
        f"Content-Length: {len(f'{len(_HIDDEN_7):x}') + 2}",
        body=f"{len(_HIDDEN_7):x}\r\n{_HIDDEN_7}\r\n0\r\n\r\n",
    ),
    Hidden(),
)
case(
    "SMUG-DUPLICATE-CL-SMUGGLED-GET",
    _LENGTH,
    hiding("Content-Length: 4", "Content-Length: {n}", before="PING"),
    Hidden(),
)
_PREFIX = HIDDEN.removesuffix("\r\n")
unscored(
    "SMUG-GET-CL-PREFIX-DESYNC",
    "RFC 9110 9.3.1",
    [
        ask("GET / HTTP/1.1", f"Content-Length: {len(_PREFIX)}", body=_PREFIX),
        raw("\r\nGET / HTTP/1.1\r\n", f"Host: {HOST}\r\n\r\n"),
    ],
    Sequel(
        "400, close, or one answer for the second",
        after=lambda r: PASS if r.responses == 1 and (r.ok or r.status == 400) else WARN,
        other=WARN,
    ),
)
case("SMUG-TECL-DESYNC", _CODING, _both(_CHUNKED, "Content-Length: 30", "0\r\n\r\nX"), _NO_SECOND)
unscored(
    "SMUG-CL0-BODY-POISON",
    _BODY,
    [length(" 0", "X"), GET],
    Sequel("400 or close; anything is allowed", after=lambda r: WARN),
)
_UNPOISONED = Sequel("400, close, or 2xx for both", after=by_status(OK, (), other=WARN))
unscored(
    "SMUG-GET-CL-BODY-DESYNC",
    "RFC 9110 9.3.1",
    [ask("GET / HTTP/1.1", "Content-Length: 5", body="hello"), GET],
    _UNPOISONED,
)
unscored("SMUG-OPTIONS-CL-BODY-DESYNC", "RFC 9110 9.3.7", [_OPTIONS_BODY, GET], _UNPOISONED)
unscored(
    "SMUG-EXPECT-100-CL-DESYNC",
    "RFC 9110 10.1.1",
    [_EXPECTING, GET],
    Sequel(
        "400, 417, close, or 2xx for both",
        after=by_status(OK, (), other=WARN),
        refusals={400, 417},
        other=WARN,
    ),
)
case(
    "SMUG-OPTIONS-TE-OBS-FOLD",
    _FOLD,
    [
        ask(
            "OPTIONS / HTTP/1.1",
            "Transfer-Encoding:\r\n chunked",
            "Content-Length: 5",
            body="hello",
        ),
        GET,
    ],
    _NO_SECOND,
)
case("SMUG-CHUNK-INVALID-SIZE-DESYNC", _CHUNKS, [chunked("+0\r\n\r\nX"), GET], _NO_SECOND)
unscored(
    "SMUG-PIPELINE-SAFE",
    "RFC 9112 9.3",
    [GET, GET],
    Conditional("2xx twice", after=by_status(OK, ANY)),
)

# -- malformed input -----------------------------------------------------------------------------

_HUGE = 100_000
_TOO_LARGE = refused_with(400, 431)
_ODD_TARGET = Expect("400 or close; 2xx or 4xx is allowed", {400}, range(200, 500), closed=PASS)

case("MAL-BINARY-GARBAGE", "", Step(random.Random(42).randbytes(256)), UNFINISHED)
case("MAL-LONG-URL", "", get(target="/" + _HUGE * "A"), refused_with(400, 414, 431))
case("MAL-LONG-HEADER-VALUE", "", get(f"X-Big: {_HUGE * 'B'}"), _TOO_LARGE)
case("MAL-MANY-HEADERS", "", get(*(f"X-H-{n}: value" for n in range(10_000))), _TOO_LARGE)
case("MAL-NUL-IN-URL", "", get(target="/\0test"), REFUSED)
# BEL and BS; the public suite means a VT too, but what it sends for that is "?f".
case("MAL-CONTROL-CHARS-HEADER", "", get("X-Test: abc\x07\x08?f"), REFUSED)
case(
    "MAL-INCOMPLETE-REQUEST",
    "",
    raw("GET / HTTP/1.1\r\n", f"Host: {HOST}\r\nX-Test: value"),
    UNFINISHED,
)
case("MAL-EMPTY-REQUEST", "", raw(""), UNFINISHED)
case("MAL-LONG-HEADER-NAME", "", get(f"{_HUGE * 'A'}: val"), _TOO_LARGE)
case("MAL-LONG-METHOD", "", ask(f"{_HUGE * 'A'} / HTTP/1.1"), refused_with(400))
case("MAL-NON-ASCII-HEADER-NAME", "", get("X-T\xc3\xabst: value"), REFUSED)
case("MAL-NON-ASCII-URL", "", get(target="/caf\xc3\xa9"), REFUSED)
case("MAL-CL-OVERFLOW", "", length(" 99999999999999999999", ""), REFUSED)
case("MAL-WHITESPACE-ONLY-LINE", "", raw("   \r\n\r\n"), UNFINISHED)
case("MAL-NUL-IN-HEADER-VALUE", "", get("X-Test: val\0ue"), REFUSED)
case("MAL-CHUNK-SIZE-OVERFLOW", "", chunk("FFFFFFFFFFFFFFFF0\r\n"), REFUSED)
case(
    "MAL-H2-PREFACE",
    "",
    raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Expect("400, 505, close, or nothing", {400, 505}, closed=PASS, silent=PASS),
)
case("MAL-CL-EMPTY", _LENGTH, length(" ", ""), REFUSED)
case("MAL-CL-TAB-BEFORE-VALUE", _SPACE, length("\t5"), UNCOMMON)
case("MAL-URL-BACKSLASH", "", get(target="/path\\file"), _ODD_TARGET)
case("MAL-URL-OVERLONG-UTF8", "", get(target="/\xc0\xaf"), REFUSED)
case("MAL-URL-PERCENT-NULL", "", get(target="/path%00.html"), _ODD_TARGET)
case("MAL-URL-PERCENT-CRLF", "", get(target="/path%0d%0aX-Injected:%20true"), _ODD_TARGET)
case(
    "MAL-CHUNK-EXT-64K",
    "",
    chunk(f"5;ext={65_536 * 'a'}\r\n"),
    Expect("400/431 or close; 2xx is allowed", {400, 431}, OK, closed=PASS),
)
unscored(
    "MAL-RANGE-OVERLAPPING",
    "",
    get("Range: bytes=" + ",".join(1000 * ["0-"])),
    Expect("close; 200/206/400/416/431", warns={200, 206, 400, 416, 431}, closed=PASS),
)
case("MAL-POST-CL-HUGE-NO-BODY", "", length(" 999999999", ""), UNFINISHED)

# -- normalization -------------------------------------------------------------------------------


def _resembling(id: str, rfc: str, name: str, sent: str, value: str, keep: bool = True) -> None:
    step = post("Content-Length: 11", f"{sent}: {value}", body="hello world", target="/echo")
    (case if keep else unscored)(id, rfc, step, not_taken_for(name, sent, value))


_resembling("NORM-UNDERSCORE-CL", "", "Content-Length", "Content_Length", "99")
_resembling("NORM-SP-BEFORE-COLON-CL", _FIELDS, "Content-Length", "Content-Length ", "5")
_resembling("NORM-TAB-IN-NAME", "", "Content-Length", "Content\tLength", "99")
_resembling("NORM-CASE-TE", "", "Transfer-Encoding", "TRANSFER-ENCODING", "chunked", keep=False)
_resembling("NORM-UNDERSCORE-TE", "", "Transfer-Encoding", "Transfer_Encoding", "chunked")

# -- cookies: none is scored ---------------------------------------------------------------------


def _cookie(id: str, value: str, judge: Judge, target: str = "/echo") -> None:
    unscored(f"COOK-{id}", "RFC 6265 5.4", get(f"Cookie: {value}", target=target), judge)


def _parsed(*pairs: bytes) -> Expect:
    return if_ok("2xx with each pair", contains(*pairs), warns={400, 404}, closed=WARN)


_SURVIVED = Expect("2xx or 400", {400, *OK}, closed=PASS)
_SURVIVED_SIZE = Expect("2xx, 400 or 431", {400, 431, *OK}, closed=PASS)
_ALIVE = Expect("2xx or 400", {400, *OK}, {404}, closed=WARN)

_cookie(
    "ECHO",
    "foo=bar",
    if_ok(
        "2xx with the cookie", lambda r: PASS if b"cookie:" in r.body.lower() else FAIL, closed=WARN
    ),
)
_cookie("OVERSIZED", f"big={65_536 * 'A'}", _SURVIVED_SIZE)
_cookie("EMPTY", "", _SURVIVED)
_cookie(
    "NUL",
    "foo=\0bar",
    if_ok("400, or 2xx without the NUL", lacks(b"\0"), passes={400}, closed=PASS),
)
_cookie(
    "CONTROL-CHARS",
    "foo=\x01\x02\x03",
    if_ok("400, or 2xx without them", lacks(b"\x01", b"\x02", b"\x03"), passes={400}, closed=PASS),
)
_cookie("MANY-PAIRS", "; ".join(f"k{n}=v{n}" for n in range(1000)), _SURVIVED_SIZE)
_cookie("MALFORMED", "===;;;", _SURVIVED)
_cookie(
    "MULTI-HEADER",
    "a=1\r\nCookie: b=2",
    if_ok("2xx with both", contains(b"a=1", b"b=2", otherwise=WARN), warns={400}, closed=WARN),
)
_cookie("PARSED-BASIC", "foo=bar", _parsed(b"foo=bar"), "/cookie")
_cookie("PARSED-MULTI", "a=1; b=2; c=3", _parsed(b"a=1", b"b=2", b"c=3"), "/cookie")
_cookie("PARSED-EMPTY-VAL", "foo=", _ALIVE, "/cookie")
_cookie("PARSED-SPECIAL", "a=hello world; b=x=y", _ALIVE, "/cookie")

# -- capabilities: none is scored ----------------------------------------------------------------


def _conditional(
    id: str,
    rfc: str,
    second: str | Callable[[Reply], str],
    after: Callable[[Reply], object],
    says: str,
    needs: str = "",
) -> None:
    """A GET, and another with the field that ``second`` makes of its answer."""

    def follow(reply: Reply) -> Step:
        return get(second if isinstance(second, str) else second(reply))

    judge = Conditional(says, after, needs)  # type: ignore[arg-type]
    unscored(f"CAP-{id}", f"RFC 9110 {rfc}", [get("Connection: keep-alive"), follow], judge)


def _etag(reply: Reply) -> str:
    return reply.headers.get("etag", '"no-etag"')


_UNMODIFIED = by_status({304}, OK)
_MODIFIED = by_status(OK, {304})

_conditional(
    "ETAG-304", "13.1.2", lambda r: f"If-None-Match: {_etag(r)}", _UNMODIFIED, "304", "etag"
)
_conditional(
    "LAST-MODIFIED-304",
    "13.1.3",
    lambda r: (
        "If-Modified-Since: " + r.headers.get("last-modified", "Thu, 01 Jan 2099 00:00:00 GMT")
    ),
    _UNMODIFIED,
    "304",
    "last-modified",
)
_conditional(
    "ETAG-IN-304",
    "15.4.5",
    lambda r: f"If-None-Match: {_etag(r)}",
    lambda r: PASS if r.status == 304 and "etag" in r.headers else WARN,
    "304 with ETag",
    "etag",
)
_conditional(
    "INM-PRECEDENCE",
    "13.1.2",
    lambda r: f"If-None-Match: {_etag(r)}\r\nIf-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    _UNMODIFIED,
    "304",
    "etag",
)
_conditional("INM-WILDCARD", "13.1.2", "If-None-Match: *", _UNMODIFIED, "304")
_conditional(
    "IMS-FUTURE", "13.1.3", "If-Modified-Since: Thu, 01 Jan 2099 00:00:00 GMT", _MODIFIED, "2xx"
)
_conditional("IMS-INVALID", "13.1.3", "If-Modified-Since: not-a-date", _MODIFIED, "2xx")
_conditional(
    "INM-UNQUOTED",
    "8.8.3",
    lambda r: "If-None-Match: " + _etag(r).removeprefix("W/").strip('"'),
    _MODIFIED,
    "2xx",
    "etag",
)
_conditional(
    "ETAG-WEAK",
    "13.1.2",
    lambda r: "If-None-Match: W/" + _etag(r).removeprefix("W/"),
    _UNMODIFIED,
    "304",
    "etag",
)
