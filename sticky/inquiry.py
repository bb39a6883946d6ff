"""What somebody means who asks where "203.0.113.7" or "a-session-id" goes: the request that it
would be, and its explanation. No I/O."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from .errors import StickyError
from .options import Options
from .routing import explain
from .rules import ID_IN_PATH, IN_COOKIE, IN_HEADER, IN_QUERY

_PEER = "127.0.0.1"
_ID = re.compile(r"[!-~]{1,1000}")


def of_address(address: str, options: Options, peer: str = _PEER) -> tuple[bytes, str]:
    """A request of the client with this address: its head, and the TCP peer it comes from. With
    ``proxy`` what a proxy would send for it."""
    if not options.proxy:
        return b"GET / HTTP/1.1\r\n\r\n", address
    value = f"for={_quoted(address)}" if options.header == "forwarded" else address
    return f"GET / HTTP/1.1\r\n{options.header}: {value}\r\n\r\n".encode(), peer


def of_session(session: str, options: Options) -> tuple[bytes, str]:
    """A request with this session id; of marks and affixes the whole value.

    Raises:
        StickyError: the server does not route by session ids, or this cannot be one.
    """
    if options.session is None:
        raise StickyError(
            f"{session!r} is no address, and this server routes by nothing else (it has no option "
            "'session')"
        )
    if not _ID.fullmatch(session):
        raise StickyError("a session id has 1 to 1000 printable ASCII characters, and no space")
    # It is in all places where one is looked for, as it would be in its own.
    path, query, fields, cookies = "/", [], "", []
    quoted = session.replace("&", "%26").replace("#", "%23")
    for source in options.sources:
        name = source.name.decode("ascii")
        if source.place == IN_QUERY:
            query.append(f"{name}={quoted}")
        elif source.place == IN_COOKIE:
            cookies.append(f"{name}={session}")
        elif source.place == IN_HEADER:
            fields += f"{name}: {session}\r\n"
        elif path == "/":
            whole = quoted.replace("/", "%2F").replace("?", "%3F")
            path = name.replace(ID_IN_PATH.decode("ascii"), whole)
    target = path + ("?" + "&".join(query) if query else "")
    if cookies:
        fields += f"cookie: {'; '.join(cookies)}\r\n"
    address = f"{options.header}: {_PEER}\r\n" if options.proxy else ""
    if options.header == "forwarded" and address:
        address = f"forwarded: for={_PEER}\r\n"
    return f"GET {target} HTTP/1.1\r\n{fields}{address}\r\n".encode(), _PEER


def why(text: str, options: Options, num: int) -> Mapping[str, Any]:
    """Where a client or a session of a server goes, and why: for people, and without its seed.

    Args:
        text: an address, or a session id.
        options: the server's, with its seed.
        num: how many slots it has now.

    Returns:
        "key", "why", "slot" (None: refused, or any) and "n".

    Raises:
        StickyError: it is neither.
    """
    text = text.strip()
    try:
        ipaddress.ip_address(text)
    except ValueError:
        head, peer = of_session(text, options)
    else:
        head, peer = of_address(text, options)
    found = explain(head, peer, dataclasses.replace(options, num=num))
    key = found.key.decode(errors="backslashreplace")
    return {"key": key, "why": found.why, "slot": found.slot, "n": num}


def _quoted(address: str) -> str:
    return f'"[{address}]"' if ":" in address and not address.startswith("[") else address
