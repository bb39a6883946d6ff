"""What both twins of the routing core must agree on: verdicts, reasons, limits, constants.

Imports nothing of ours. ``_core`` copies these values into C when it is loaded, ``_pycore`` uses
them as they are, so neither can drift away from the other.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

# What ``Router.route`` returns instead of a slot.
NEED_MORE: Final = -1
"""The head is not complete, and nothing in it is wrong so far."""
MISSING: Final = -2
"""Nothing to route by: the header is absent, empty, too short, or only ``unknown``. HTTP 400."""
MALFORMED: Final = -3
"""Servers could disagree about what this head says. HTTP 400."""
ANYWHERE: Final = -4
"""There is no session id, and no address is to decide instead: any slot will do."""

MAX_SLOTS: Final = 1024
MAX_HOPS: Final = 65535
MAX_ADDRESS: Final = 128
"""A longer text is no address: room for any IPv6 form with a port and a long zone id."""

# Why a request goes where it goes. The order is used: up to LAST_KEY there is a key, up to
# LAST_MISSING the verdict is MISSING, INCOMPLETE is NEED_MORE, NO_SESSION is ANYWHERE, and all
# others are MALFORMED. ``parse`` says the same four from NUL to FOLDED, and those of ``_REFUSALS``.
BY_PEER: Final = 0
BY_LEFTMOST: Final = 1
BY_HOPS: Final = 2
BY_BYTES: Final = 3
BY_SESSION: Final = 4
LAST_KEY: Final = 4
ABSENT: Final = 5
EMPTY: Final = 6
ONLY_UNKNOWN: Final = 7
TOO_FEW: Final = 8
NO_ADDRESS: Final = 9
LAST_MISSING: Final = 9
INCOMPLETE: Final = 10
NUL: Final = 11
BARE_CR: Final = 12
BARE_LF: Final = 13
FOLDED: Final = 14
SPACE_BEFORE_COLON: Final = 15
NO_COLON: Final = 16
SESSION_SPACE: Final = 17
SESSION_NO_COLON: Final = 18
NO_SESSION: Final = 19

_WHY: Final = (
    "peer address",
    "leftmost address of '{header}'",
    "element {hops} from the right of '{header}'",
    "no address in '{header}', so its bytes",
    "session id in the {source}",
    "'{header}' is missing",
    "'{header}' is empty",
    "nothing but 'unknown' in '{header}'",
    "fewer than {hops} elements in '{header}'",
    "element {hops} from the right of '{header}' is no address",
    "the head is not complete",
    "NUL in the head",
    "bare CR in the head",
    "LF without CR in the head",
    "a line of the head is folded",
    "white space before the colon of '{header}'",
    "no colon after '{header}'",
    "white space before the colon of '{field}'",
    "no colon after '{field}'",
    "no session id in the {sources}",
)

# Where a session id is looked for.
NOWHERE: Final = 0
IN_QUERY: Final = 1
IN_HEADER: Final = 2
IN_COOKIE: Final = 3
IN_PATH: Final = 4
_PLACES: Final = {
    b"query": IN_QUERY,
    b"header": IN_HEADER,
    b"cookie": IN_COOKIE,
    b"path": IN_PATH,
    b"mark": IN_COOKIE,
}
_IN_WORDS: Final = ("", "query parameter", "header", "cookie", "path")

# What of a value is the id.
PLAIN: Final = 0
"""All of it, whoever has made it."""
MARK: Final = 1
"""A minted id and its tag are all there is; anything else is none."""
AFFIX: Final = 2
"""A minted id and its tag stand before what the app has made, with a dot between them; a value
without them has no id."""

MINTED: Final = 20
"""Characters of an id that is minted."""
TAG: Final = 11
"""Characters of its tag: 64 bits in base64 (RFC 4648, section 5)."""
MARK_SIZE: Final = MINTED + TAG
TAG_LABELS: Final = (b"tag key 0", b"tag key 1", b"tag key 2", b"tag key 3")
"""Their hashes are the key of the tags: what is seen of those tells nothing about the seed."""
MAX_SOURCES: Final = 4
"""Places in which a session id is looked for, one after the other."""
ID_IN_PATH: Final = b"{id}"
AGREED_FOR: Final = 2000
"""Milliseconds for which all processes send a client that has no id yet to the same slot: those in
which a browser opens several tabs, or asks for what is on a page."""

# RFC 9110 section 5.6.2
TOKEN: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

VISIBLE: Final = frozenset(range(0x21, 0x7F))
TEXT: Final = frozenset(range(256)) - frozenset(range(0x20)) - {0x7F} | {0x09}
"""What a field value may hold: RFC 9110, section 5.5."""
TARGET: Final = (VISIBLE | frozenset(range(0x80, 0x100))) - {0x23}
"""What a request target may hold: no fragment; bytes above ASCII are sent, so they are read."""
REG_NAME: Final = (TOKEN | frozenset(b"();=")) - frozenset(b"#^`|%")
"""What the name of a host may hold beside %XX: RFC 3986, section 3.2.2, but no comma, which would
make a list of it."""

IN_BASE64: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")

RANDOM_BYTES: Final = 15
"""What a minted id is made of: 20 characters of base64, as Engine.IO's own."""


def mix(word: int) -> int:
    """MurmurHash3's 32-bit finaliser: a bijection in which every bit in moves every bit out."""
    word = (word ^ word >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    word = (word ^ word >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return word ^ word >> 16


SLOT_SALTS: Final = tuple(mix((slot + 1) * 0x9E3779B9 & 0xFFFFFFFF) for slot in range(MAX_SLOTS))
"""One constant per slot. They differ, and ``mix`` is a bijection, so two slots never tie."""


def verdict(why: int) -> int:
    """The verdict that belongs to a reason later than ``LAST_KEY``."""
    if why <= LAST_MISSING:
        return MISSING
    if why == NO_SESSION:
        return ANYWHERE
    return NEED_MORE if why == INCOMPLETE else MALFORMED


class Source(NamedTuple):
    """A place in which a session id is looked for.

    Attributes:
        place: IN_QUERY and so on.
        name: of the parameter, the header (in lower case) or the cookie; of a path what stands
            before the id and behind it, with ID_IN_PATH between them.
        kind: PLAIN, MARK or AFFIX.
    """

    place: int
    name: bytes
    kind: int

    @property
    def field(self) -> bytes:
        """The name of the header that has to be read for it, or b""."""
        return {IN_HEADER: self.name, IN_COOKIE: b"cookie"}.get(self.place, b"")

    def __str__(self) -> str:
        return f"{_IN_WORDS[self.place]} {self.name.decode('ascii')!r}"


def sentence(
    why: int,
    missing: int | None,
    header: bytes,
    hops: int,
    sources: Sequence[Source] = (),
    at: int = 0,
) -> str:
    """One line for people.

    Args:
        why: the reason.
        missing: why the peer had to stand in for the header, or None.
        header, hops: the router's.
        sources: where it looks for session ids.
        at: which of them the reason is about.
    """
    text = _WHY[why]
    if missing is not None:
        text += ", because " + _WHY[missing]
    source = sources[at] if sources else None
    return text.format(
        header=header.decode("ascii"),
        hops=hops,
        source=source,
        sources=" or the ".join(map(str, sources)),
        field=source.field.decode("ascii") if source else "",
    )


def sources_of(session: bytes | tuple[bytes, ...], affix: bool = False) -> tuple[Source, ...]:
    """The places that are meant, in their order.

    Args:
        session: b"place:name", several of them, or b"" or () for none.
        affix: the ids in headers and cookies are those that this server has put before the app's.

    Raises:
        ValueError: there is no such place, or nothing there can have that name; or a place twice,
            or too many.
    """
    given = (session,) if isinstance(session, bytes) else tuple(session)
    found = tuple(_source(text, affix) for text in given if text)
    if len(found) > MAX_SOURCES:
        raise ValueError(f"session may name {MAX_SOURCES} places, not {len(found)}")
    for index, source in enumerate(found):
        if source[:2] in [other[:2] for other in found[:index]]:
            raise ValueError(f"session names the {source} twice")
    return found


def _source(text: bytes, affix: bool) -> Source:
    if not isinstance(text, bytes):
        raise TypeError("session must be bytes, or a tuple of them")
    word, _, name = text.partition(b":")
    place = _PLACES.get(word, NOWHERE)
    allowed = TOKEN if place in (IN_HEADER, IN_COOKIE) else VISIBLE
    good = bool(place and name) and allowed.issuperset(name)
    if place == IN_PATH:
        before, _, behind = name.partition(ID_IN_PATH)
        good = good and name.count(ID_IN_PATH) == 1 and not set(b"?#").intersection(name)
        good = good and before[:1] == b"/" == before[-1:] and behind[:1] in (b"", b"/")
    if not good:
        raise ValueError(
            "session must be query:NAME, header:NAME, cookie:NAME, mark:NAME or "
            f"path:/PATH/{{id}}/, not {text!r}"
        )
    kind = PLAIN
    if word == b"mark":
        kind = MARK
    elif affix and place in (IN_HEADER, IN_COOKIE):
        kind = AFFIX
    return Source(place, name.lower() if place == IN_HEADER else name, kind)


def check_router(
    n: int,
    seed: bytes,
    header: bytes,
    hops: int,
    ipv4_prefix: int,
    ipv6_prefix: int,
    session: bytes | tuple[bytes, ...] = b"",
    anywhere: bool = False,
) -> None:
    """Raise ValueError (TypeError for what is no bytes) unless a Router can be made of these."""
    if not isinstance(seed, bytes) or not isinstance(header, bytes):
        raise TypeError("seed and header must be bytes")
    if not isinstance(session, bytes | tuple):
        raise TypeError("session must be bytes, or a tuple of them")
    if len(seed) != 8:
        raise ValueError(f"seed must be exactly 8 bytes, not {len(seed)}")
    if not header or not TOKEN.issuperset(header):
        raise ValueError(f"header must be a field name (RFC 9110 token), not {header!r}")
    sources = sources_of(session)
    if header.lower() in [source.field for source in sources]:
        raise ValueError(f"header and session must name two headers, not both {header!r}")
    if anywhere and not sources:
        raise ValueError("anywhere needs a session")
    for name, value, low, high in (
        ("n", n, 1, MAX_SLOTS),
        ("hops", hops, 0, MAX_HOPS),
        ("ipv4_prefix", ipv4_prefix, 0, 32),
        ("ipv6_prefix", ipv6_prefix, 0, 128),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}, not {value}")


# --- heads ---------------------------------------------------------------------------------------

CHUNKED: Final = -1
"""``Head.length`` of a body that is sent in chunks."""
MAX_METHOD: Final = 64
"""A longer method is none that anybody has: 400."""
MAX_LENGTH_DIGITS: Final = 18
"""Of a Content-Length; whatever they say fits into 64 bits."""
MAX_PORT: Final = 65535

# Why ``parse`` refuses a head, beside NUL, BARE_CR, BARE_LF and FOLDED.
CONTROL: Final = 20
REQUEST_LINE: Final = 21
LONG_METHOD: Final = 22
BAD_TARGET: Final = 23
NO_VERSION: Final = 24
OTHER_VERSION: Final = 25
NAME_SPACE: Final = 26
BAD_NAME: Final = 27
LINE_WITHOUT_COLON: Final = 28
NO_HOST: Final = 29
HOST_TWICE: Final = 30
BAD_HOST: Final = 31
BAD_LENGTH: Final = 32
LENGTH_TWICE: Final = 33
LENGTH_AND_CODING: Final = 34
OLD_CODING: Final = 35
CODING_TWICE: Final = 36
BAD_CODING: Final = 37
OTHER_CODING: Final = 38
TOO_LARGE: Final = 39

_REFUSALS: Final = {
    NUL: (400, "The head of the request holds a NUL byte."),
    BARE_CR: (400, "The head of the request holds a CR that no LF follows."),
    BARE_LF: (400, "A line of the request's head ends with LF and no CR before it."),
    FOLDED: (400, "A line of the request's head is folded: it begins with white space."),
    CONTROL: (400, "The head of the request holds a control character."),
    REQUEST_LINE: (
        400,
        "The request line is not a method, a target and a version with one space between them.",
    ),
    LONG_METHOD: (400, f"The method of the request has more than {MAX_METHOD} characters."),
    BAD_TARGET: (400, "The request target is none that this method may have."),
    NO_VERSION: (400, "The request line does not end with an HTTP version."),
    OTHER_VERSION: (505, "The request is not of version 1 of HTTP."),
    NAME_SPACE: (400, "There is white space in a field name or before its colon."),
    BAD_NAME: (400, "A field name is empty, or holds a character that no name may have."),
    LINE_WITHOUT_COLON: (400, "A line of the request's head has no colon."),
    NO_HOST: (400, "The request has no Host field."),
    HOST_TWICE: (400, "The request has more than one Host field."),
    BAD_HOST: (400, "The Host field does not name a host."),
    BAD_LENGTH: (
        400,
        f"The Content-Length is not one number of 1 to {MAX_LENGTH_DIGITS} digits.",
    ),
    LENGTH_TWICE: (400, "The request has more than one Content-Length field."),
    LENGTH_AND_CODING: (400, "The request has a Content-Length beside a Transfer-Encoding."),
    OLD_CODING: (400, "The request has a Transfer-Encoding, which HTTP/1.0 does not know."),
    CODING_TWICE: (400, "The request has more than one Transfer-Encoding field."),
    BAD_CODING: (400, "The Transfer-Encoding does not end in one 'chunked'."),
    OTHER_CODING: (501, "The Transfer-Encoding has a coding other than 'chunked'."),
    TOO_LARGE: (431, "The head of the request is too large."),
}


def status(reason: int) -> int:
    """The status with which a head is refused for this reason: 400, 431, 501 or 505."""
    return _REFUSALS[reason][0]


def refusal(reason: int) -> str:
    """One sentence for people: why ``parse`` refuses a head."""
    return _REFUSALS[reason][1]


# The names that most requests are made of: those a head is read by first, and in this order.
KNOWN_NAMES: Final = (
    *(b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"),
    *(b"cookie", b"content-type"),
    *(b"accept", b"accept-encoding", b"accept-language", b"access-control-request-headers"),
    *(b"access-control-request-method", b"authorization", b"cache-control", b"cdn-loop"),
    *(b"cf-connecting-ip", b"cf-ipcountry", b"cf-ray", b"cf-visitor", b"content-encoding"),
    *(b"date", b"dnt", b"forwarded", b"from", b"if-match", b"if-modified-since"),
    *(b"if-none-match", b"if-range", b"if-unmodified-since", b"keep-alive"),
    *(b"mcp-protocol-version", b"mcp-session-id", b"origin", b"pragma", b"priority", b"range"),
    *(b"referer", b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform", b"sec-fetch-dest"),
    *(b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-user", b"sec-websocket-extensions"),
    *(b"sec-websocket-key", b"sec-websocket-protocol", b"sec-websocket-version", b"te"),
    *(b"traceparent", b"tracestate", b"upgrade-insecure-requests", b"user-agent", b"via"),
    *(b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto"),
    *(b"x-forwarded-server", b"x-real-ip", b"x-request-id", b"x-requested-with"),
)


def environ_name(name: bytes) -> str:
    """What a field is called in a WSGI environ (PEP 3333; RFC 3875, section 4.1.18)."""
    text = name.decode("ascii").upper().replace("-", "_")
    return text if text in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + text


# --- chunked bodies (RFC 9112, section 7.1) ------------------------------------------------------

MAX_SIZE_DIGITS: Final = 16
MAX_CHUNK: Final = 1 << 62
MAX_CHUNK_LINE: Final = 4096
"""Bytes of a line with a chunk's size and extensions, without its CRLF."""
MAX_EXTENSIONS: Final = 16384
"""By how many bytes the extensions of a body may exceed the payload before them."""
MAX_TRAILERS: Final = 16384
"""Bytes of all trailer lines, with their line ends and the last, empty one."""

# Where in a body one is: named by what has been read last. Those from AT_SPACE to AT_QUOTED_END are
# within the extensions of a chunk, those from AT_TRAILER to AT_LAST_CR within the trailers.
AT_CHUNK: Final = 0
AT_SIZE: Final = 1
AT_SPACE: Final = 2
AT_SEMICOLON: Final = 3
AT_NAME: Final = 4
AT_NAME_SPACE: Final = 5
AT_EQUALS: Final = 6
AT_VALUE: Final = 7
AT_VALUE_SPACE: Final = 8
AT_QUOTE: Final = 9
AT_ESCAPE: Final = 10
AT_QUOTED_END: Final = 11
AT_SIZE_CR: Final = 12
AT_DATA: Final = 13
AT_DATA_END: Final = 14
AT_DATA_CR: Final = 15
AT_TRAILER: Final = 16
AT_TRAILER_NAME: Final = 17
AT_TRAILER_VALUE: Final = 18
AT_TRAILER_CR: Final = 19
AT_LAST_CR: Final = 20
AT_END: Final = 21
AT_ERROR: Final = 22

_NOT_EXTENDED: Final = "an extension of a chunk is malformed"
_NO_CRLF: Final = "a chunk is longer than its size says"
_NO_TRAILER: Final = "a trailer of the body is malformed"
CHUNK_ERRORS: Final = (
    *("a chunk does not begin with its size in hexadecimal digits",) * 2,
    *("there is white space behind the size of a chunk", *(_NOT_EXTENDED,) * 9),
    *("the line with the size of a chunk does not end with CRLF", *(_NO_CRLF,) * 3),
    *(_NO_TRAILER,) * 5,
    *("the body is over", "the body has been refused before"),
)
"""What is wrong where a byte has no place, by where it has none."""
LONG_SIZE: Final = "the size of a chunk is too large"
LONG_EXTENSIONS: Final = "the extensions of the chunks are too long"
LONG_TRAILERS: Final = "the trailers of the body are too long"


def _steps() -> bytes:
    """Where each byte leads, 256 for each place in a body."""
    blank, hexadecimal, cr, lf = b" \t", b"0123456789abcdefABCDEF", b"\r", b"\n"
    quoted = TEXT - frozenset(b'"\\')
    ways: dict[int, tuple[tuple[Iterable[int], int], ...]] = {
        AT_CHUNK: ((hexadecimal, AT_SIZE),),
        AT_SIZE: (
            *((hexadecimal, AT_SIZE), (blank, AT_SPACE)),
            *((b";", AT_SEMICOLON), (cr, AT_SIZE_CR)),
        ),
        AT_SPACE: ((blank, AT_SPACE), (b";", AT_SEMICOLON)),
        AT_SEMICOLON: ((blank, AT_SEMICOLON), (TOKEN, AT_NAME)),
        AT_NAME: (
            *((TOKEN, AT_NAME), (blank, AT_NAME_SPACE), (b"=", AT_EQUALS)),
            *((b";", AT_SEMICOLON), (cr, AT_SIZE_CR)),
        ),
        AT_NAME_SPACE: ((blank, AT_NAME_SPACE), (b"=", AT_EQUALS), (b";", AT_SEMICOLON)),
        AT_EQUALS: ((blank, AT_EQUALS), (TOKEN, AT_VALUE), (b'"', AT_QUOTE)),
        AT_VALUE: (
            *((TOKEN, AT_VALUE), (blank, AT_VALUE_SPACE)),
            *((b";", AT_SEMICOLON), (cr, AT_SIZE_CR)),
        ),
        AT_VALUE_SPACE: ((blank, AT_VALUE_SPACE), (b";", AT_SEMICOLON)),
        AT_QUOTE: ((quoted, AT_QUOTE), (b"\\", AT_ESCAPE), (b'"', AT_QUOTED_END)),
        AT_ESCAPE: ((TEXT, AT_QUOTE),),
        AT_QUOTED_END: ((blank, AT_VALUE_SPACE), (b";", AT_SEMICOLON), (cr, AT_SIZE_CR)),
        AT_SIZE_CR: ((lf, AT_DATA),),
        AT_DATA_END: ((cr, AT_DATA_CR),),
        AT_DATA_CR: ((lf, AT_CHUNK),),
        AT_TRAILER: ((TOKEN, AT_TRAILER_NAME), (cr, AT_LAST_CR)),
        AT_TRAILER_NAME: ((TOKEN, AT_TRAILER_NAME), (b":", AT_TRAILER_VALUE)),
        AT_TRAILER_VALUE: ((TEXT, AT_TRAILER_VALUE), (cr, AT_TRAILER_CR)),
        AT_TRAILER_CR: ((lf, AT_TRAILER),),
        AT_LAST_CR: ((lf, AT_END),),
    }
    table = bytearray([AT_ERROR]) * (256 * (AT_ERROR + 1))
    for place, steps in ways.items():
        for letters, to in steps:
            for byte in letters:
                table[256 * place + byte] = to
    return bytes(table)


CHUNK_STEPS: Final = _steps()
"""The grammar of a chunked body but for what is counted: sizes, payload, limits."""
