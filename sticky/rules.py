"""What both twins of the routing core must agree on: verdicts, reasons, limits, constants.

Imports nothing. ``_core`` copies these values into C when it is loaded, ``_pycore`` uses them as
they are, so neither can drift away from the other.
"""

from typing import Final

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
# others are MALFORMED.
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
SPACE_BEFORE_COLON: Final = 13
NO_COLON: Final = 14
FIRST_FOLDED: Final = 15
SESSION_SPACE: Final = 16
SESSION_NO_COLON: Final = 17
NO_SESSION: Final = 18

_WHY: Final = (
    "peer address",
    "leftmost address of '{header}'",
    "element {hops} from the right of '{header}'",
    "no address in '{header}', so its bytes",
    "session id in the {place} '{name}'",
    "'{header}' is missing",
    "'{header}' is empty",
    "nothing but 'unknown' in '{header}'",
    "fewer than {hops} elements in '{header}'",
    "element {hops} from the right of '{header}' is no address",
    "the head is not complete",
    "NUL in the head",
    "bare CR in the head",
    "white space before the colon of '{header}'",
    "no colon after '{header}'",
    "the first header line is folded",
    "white space before the colon of '{field}'",
    "no colon after '{field}'",
    "no session id in the {place} '{name}'",
)

# Where a session id is looked for.
NOWHERE: Final = 0
IN_QUERY: Final = 1
IN_HEADER: Final = 2
IN_COOKIE: Final = 3
PLACES: Final = (b"", b"query", b"header", b"cookie")

# RFC 9110 section 5.6.2
TOKEN: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


VISIBLE: Final = frozenset(range(0x21, 0x7F))

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


def sentence(why: int, missing: int | None, header: bytes, hops: int, session: bytes = b"") -> str:
    """One line for people. ``missing``: why the peer had to stand in for the header, or None."""
    text = _WHY[why]
    if missing is not None:
        text += ", because " + _WHY[missing]
    at, bare = session_at(session)
    name = bare.decode("ascii")
    return text.format(
        header=header.decode("ascii"),
        hops=hops,
        place=("", "query parameter", "header", "cookie")[at],
        name=name,
        field=name if at == IN_HEADER else "cookie",
    )


def session_at(session: bytes) -> tuple[int, bytes]:
    """The place and the name in ``b"place:name"``; the name of a header in lower case.

    Raises:
        ValueError: there is no such place, or nothing there can have that name.
    """
    if not session:
        return NOWHERE, b""
    word, _, name = session.partition(b":")
    place = PLACES.index(word) if word in PLACES[1:] else NOWHERE
    allowed = TOKEN if place in (IN_HEADER, IN_COOKIE) else VISIBLE
    if not place or not name or not allowed.issuperset(name):
        raise ValueError(f"session must be query:NAME, header:NAME or cookie:NAME, not {session!r}")
    return place, name.lower() if place == IN_HEADER else name


def check_router(
    n: int,
    seed: bytes,
    header: bytes,
    hops: int,
    ipv4_prefix: int,
    ipv6_prefix: int,
    session: bytes = b"",
    anywhere: bool = False,
) -> None:
    """Raise ValueError (TypeError for what is no bytes) unless a Router can be made of these."""
    if not isinstance(seed, bytes) or not isinstance(header, bytes):
        raise TypeError("seed and header must be bytes")
    if not isinstance(session, bytes):
        raise TypeError("session must be bytes")
    if len(seed) != 8:
        raise ValueError(f"seed must be exactly 8 bytes, not {len(seed)}")
    if not header or not TOKEN.issuperset(header):
        raise ValueError(f"header must be a field name (RFC 9110 token), not {header!r}")
    place, of_session = session_at(session)
    if header.lower() in {IN_HEADER: (of_session,), IN_COOKIE: (b"cookie",)}.get(place, ()):
        raise ValueError(f"header and session must name two headers, not both {header!r}")
    if anywhere and not place:
        raise ValueError("anywhere needs a session")
    for name, value, low, high in (
        ("n", n, 1, MAX_SLOTS),
        ("hops", hops, 0, MAX_HOPS),
        ("ipv4_prefix", ipv4_prefix, 0, 32),
        ("ipv6_prefix", ipv6_prefix, 0, 128),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}, not {value}")
