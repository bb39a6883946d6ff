"""``sticky explain``: where a request goes, and why."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Sequence

from . import inquiry
from .arguments import Parser, add_options, from_arguments
from .config import settings
from .errors import OptionError
from .routing import explain

_ROUTING = (
    "num",
    "proxy",
    "header",
    "ignore_missing_header",
    "hops",
    "ipv4_prefix",
    "ipv6_prefix",
    "session",
    "affix",
    "affinity_cookie",
    "balance",
    "seed",
)


def main(argv: Sequence[str], *, prog: str) -> int:
    """Print key, reason and slot; the exit status is 1 for a request that would be refused.

    Raises:
        OptionError: an option is wrong.
    """
    parser = Parser(
        prog=prog,
        description="Say which worker a client's request goes to, and why. With an address: that "
        "client's. Without: that of the request head on the standard input.",
        epilog="The slot depends on the seed, which every start of a server draws anew unless "
        "--seed gives it; without it an all-zero seed is used here.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("address", nargs="?", default=None, help="the client's address")
    parser.add_argument(
        "--peer", default="127.0.0.1", help="the TCP peer's address (default: 127.0.0.1)"
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="a TOML file with options")
    add_options(parser, _ROUTING)
    given = vars(parser.parse_args(argv))
    options = settings(from_arguments(given), config=given.get("config"))
    head, peer = b"GET / HTTP/1.1\r\n\r\n", given["peer"]
    if given["address"] is None:
        head = _as_head(sys.stdin.buffer.read(options.max_head_size))
    else:
        head, peer = inquiry.of_address(given["address"], options, peer)
    try:
        if peer:  # the clients of a unix socket have none
            ipaddress.ip_address(peer)
    except ValueError:
        raise OptionError(
            f"the client's address is {peer!r}: it must be an IPv4 or an IPv6 address, "
            "for example 203.0.113.7"
        ) from None
    found = explain(head, peer, options)
    if found.slot is None and found.why.endswith(f"balance is {options.balance!r}"):
        print(f"why   {found.why}")
        print(f"slot  any of {options.num}")
        return 0
    if found.slot is None:
        print(f"no slot: {found.why}" + (f" ({found.status})" if found.status else ""))
        return 1
    print(f"key   {found.key.decode(errors='backslashreplace')}")
    print(f"why   {found.why}")
    print(f"slot  {found.slot} of {options.num}")
    return 0


def _as_head(text: bytes) -> bytes:
    """A head as people keep it in a file: perhaps with LF, or without the blank line at its end."""
    if b"\r" not in text:
        text = text.replace(b"\n", b"\r\n")
    return text if b"\r\n\r\n" in text else text.rstrip(b"\r\n") + b"\r\n\r\n"
