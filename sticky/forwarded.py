"""Whom to believe about the client: what a proxy in front says in X-Forwarded-For and -Proto.

Which worker serves a request is decided elsewhere (``routing``); this is about what the app is
told. No I/O, no clock.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

Answer = TypeVar("Answer")

_REMEMBERED = 4096
"""Answers that are kept, of each question: reading an address takes ten times as long."""
_LONGEST = 64
"""A longer text is no address."""
_MOST = 100
"""Elements of one header that are looked at, from the right. Proxies in a row are a few."""

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Trusted:
    """The peers that are believed, as uvicorn and gunicorn write them.

    Args:
        text: addresses and networks (CIDR), divided by commas; "*": everybody; "unix": whoever
            connects to a unix socket. "": nobody.

    Raises:
        ValueError: an element is none of these.
    """

    def __init__(self, text: str) -> None:
        words = [word for word in (part.strip() for part in text.split(",")) if word]
        self.everybody = "*" in words
        networks = [ipaddress.ip_network(word) for word in words if word not in ("*", "unix")]
        self._networks = [
            (network.version, int(network.network_address), int(network.netmask))
            for network in networks
        ]
        self._unix = self.everybody or "unix" in words
        self._known: dict[str, bool] = {"": self._unix}
        self._clients: dict[str, str] = {}

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, host: str) -> bool:
        """Whether to believe this peer: an address as ``accept()`` gives it, "" on a unix
        socket."""
        known = self._known.get(host)
        if known is None:
            known = self.everybody or self._holds(_address(host))
            _remember(self._known, host, known)
            self._known[""] = self._unix
        return known

    def client_of(self, value: str) -> str:
        """See the function of this name."""
        known = self._clients.get(value)
        if known is None:
            known = self._find(value)
            if len(value) <= _LONGEST:
                _remember(self._clients, value, known)
        return known

    def _find(self, value: str) -> str:
        if self.everybody:
            return _host(value.strip(", \t").partition(",")[0])
        found = ""
        for element in reversed(value.rsplit(",", _MOST)[-_MOST:]):
            if not element.strip(" \t"):
                continue
            host = _host(element)
            if not host:
                break
            found = host
            if host not in self:
                break
        return found

    def _holds(self, address: IPv4Address | IPv6Address | None) -> bool:
        if address is None:
            return False
        version, number = address.version, int(address)
        return any(
            version == other and number & mask == network for other, network, mask in self._networks
        )


def client_of(value: str, trusted: Trusted) -> str:
    """The client's address in an X-Forwarded-For, or "" where that cannot be said.

    Each proxy adds its peer on the right, so the first from there that is no trusted proxy is the
    client; the leftmost, if all are trusted. What is no address ends the search: what is to the
    left of it is nobody's word.

    Args:
        value: of the header; of several lines, joined by commas.
        trusted: the proxies.
    """
    return trusted.client_of(value)


def _remember(known: dict[str, Answer], question: str, answer: Answer) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[question] = answer


def scheme_of(value: str) -> str:
    """The scheme in an X-Forwarded-Proto: "http" or "https", or "" where it says neither."""
    return _SCHEMES.get(value.partition(",")[0].strip(" \t").lower(), "")


def _host(element: str) -> str:
    """The address in an element of X-Forwarded-For, without port, brackets and zone, or ""."""
    text = element.strip(" \t").strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = text.partition("%")[0]
    return text if _address(text) is not None else ""


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address; that of IPv4 where it is mapped into IPv6."""
    if len(text) > _LONGEST:
        return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
