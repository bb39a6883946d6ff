"""Request -> key -> slot, and why.

Does no I/O and reads no clock; the random seed of ``make_router`` is the one thing it takes from
outside.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .core import Router
from .options import Options
from .rules import ANYWHERE, BY_PEER, MALFORMED, MISSING, NEED_MORE, sentence

__all__ = [
    "ANYWHERE",
    "MALFORMED",
    "MISSING",
    "NEED_MORE",
    "Explanation",
    "Router",
    "explain",
    "is_by_peer",
    "make_router",
]


_BY_PEER = sentence(BY_PEER, None, b"", 0)


def is_by_peer(why: str) -> bool:
    """Whether a reason that ``Router.explain`` gives is the address of the TCP peer, for want of
    a header or without one."""
    return why == _BY_PEER or why.startswith(_BY_PEER + ", ")


@dataclass(frozen=True)
class Explanation:
    """Where a request goes, and why.

    Attributes:
        key: the bytes that identify the client, readable: ``b"203.0.113.7"``,
            ``b"2001:db8:1:2::/64"``, the header's value, or the session id. Empty when there is
            no key.
        why: one sentence for people.
        slot: the slot, 0 to n-1; None when the request is refused or not complete, or where
            ``balance`` chooses: any of them.
        status: the HTTP status it is refused with (400), else None.
    """

    key: bytes
    why: str
    slot: int | None
    status: int | None


def make_router(options: Options) -> Router:
    """The Router these options describe, with a random seed where they name none."""
    return _router(options, os.urandom(8) if options.seed is None else options.seed)


def _router(options: Options, seed: bytes) -> Router:
    return Router(
        options.num,
        seed,
        proxy=options.proxy,
        header=options.header.encode("ascii"),
        hops=options.hops or 0,
        ipv4_prefix=options.ipv4_prefix,
        ipv6_prefix=options.ipv6_prefix,
        ignore_missing_header=options.ignore_missing_header,
        session=options.router_session,
        affix=options.affix,
        anywhere=options.balance != "address",
    )


def explain(
    head: bytes | bytearray,
    peer: str | tuple[Any, ...],
    options: Options | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Say which slot serves a request, and why.

    The slot is the one a server with the same options and the same ``seed`` chooses. Without a
    seed every start of a server draws one, so there is no such server: 8 zero bytes are used then,
    which gives the same answers every time and no server's answers in particular. The key, the
    reason and the status do not depend on the seed.

    Args:
        head: the request's first bytes, as they come from the client.
        peer: the client's address, alone or as ``socket.getpeername()`` gives it.
        options: an Options object or a mapping.
        **kwargs: single options, as for ``listen``.

    Raises:
        OptionError: an option is not known or has a value that is not allowed.
        TypeError: ``head`` is neither bytes nor a bytearray.
    """
    settings = Options.make(options, **kwargs)
    router = _router(settings, settings.seed or bytes(8))
    address = peer if isinstance(peer, str) else peer[0]
    slot, key, why = router.explain(head, len(head), address)
    if slot >= 0:
        return Explanation(key, why, slot, None)
    if slot == ANYWHERE:
        return Explanation(key, f"{why}: balance is {settings.balance!r}", None, None)
    return Explanation(key, why, None, None if slot == NEED_MORE else 400)
