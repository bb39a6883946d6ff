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

MAX_SLOTS: Final = 1024
MAX_HOPS: Final = 65535
MAX_ADDRESS: Final = 128
"""A longer text is no address: room for any IPv6 form with a port and a long zone id."""

# Why a request goes where it goes. The order is used: up to LAST_KEY there is a key, up to
# LAST_MISSING the verdict is MISSING, INCOMPLETE is NEED_MORE, and all later ones are MALFORMED.
BY_PEER: Final = 0
BY_LEFTMOST: Final = 1
BY_HOPS: Final = 2
BY_BYTES: Final = 3
LAST_KEY: Final = 3
ABSENT: Final = 4
EMPTY: Final = 5
ONLY_UNKNOWN: Final = 6
TOO_FEW: Final = 7
NO_ADDRESS: Final = 8
LAST_MISSING: Final = 8
INCOMPLETE: Final = 9
NUL: Final = 10
BARE_CR: Final = 11
SPACE_BEFORE_COLON: Final = 12
NO_COLON: Final = 13
FIRST_FOLDED: Final = 14

_WHY: Final = (
    "peer address",
    "leftmost address of '{header}'",
    "element {hops} from the right of '{header}'",
    "no address in '{header}', so its bytes",
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
)

# RFC 9110 section 5.6.2
TOKEN: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


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
    return NEED_MORE if why == INCOMPLETE else MALFORMED


def sentence(why: int, missing: int | None, header: bytes, hops: int) -> str:
    """One line for people. ``missing``: why the peer had to stand in for the header, or None."""
    text = _WHY[why]
    if missing is not None:
        text += ", because " + _WHY[missing]
    return text.format(header=header.decode("ascii"), hops=hops)


def check_router(
    n: int, seed: bytes, header: bytes, hops: int, ipv4_prefix: int, ipv6_prefix: int
) -> None:
    """Raise ValueError (TypeError for what is no bytes) unless a Router can be made of these."""
    if not isinstance(seed, bytes) or not isinstance(header, bytes):
        raise TypeError("seed and header must be bytes")
    if len(seed) != 8:
        raise ValueError(f"seed must be exactly 8 bytes, not {len(seed)}")
    if not header or not TOKEN.issuperset(header):
        raise ValueError(f"header must be a field name (RFC 9110 token), not {header!r}")
    for name, value, low, high in (
        ("n", n, 1, MAX_SLOTS),
        ("hops", hops, 0, MAX_HOPS),
        ("ipv4_prefix", ipv4_prefix, 0, 32),
        ("ipv6_prefix", ipv6_prefix, 0, 128),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}, not {value}")
