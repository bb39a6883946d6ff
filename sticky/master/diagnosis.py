"""What is probably misconfigured, seen from the first requests: each a line in the log, once.

Most misconfigurations look like "it works on my machine": everybody behind one address lands on
one worker, and nothing fails. The first requests tell; after them nothing is counted any more.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from ..options import Options
from ..routing import is_by_peer
from ..topology import Topology

log = logging.getLogger("sticky.master")

ENOUGH = 200
"""Requests after which a survey is over."""

_MOST = 0.95
_SHOWN = 100
_OTHERS = (
    b"x-forwarded-for",
    b"x-real-ip",
    b"cf-connecting-ip",
    b"true-client-ip",
    b"fly-client-ip",
    b"forwarded",
)


class Notices:
    """What clients can cause, and the log is told once.

    Attributes:
        told: the subjects of what was said.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()

    def tell(self, subject: str, text: str) -> None:
        """Log something that clients can cause, once: a log is not theirs to fill."""
        if subject not in self.told:
            self.told.add(subject)
            log.warning("%s", text)

    def sniff(self, begun: bytes | bytearray, length: int) -> bool:
        """Whether these bytes begin something that is not HTTP/1; says so in the log, once."""
        if begun[:2] == b"\x16\x03" and length > 2:
            self.tell(
                "tls",
                "a client speaks TLS to this port, which expects plain HTTP from a proxy: "
                "let the proxy terminate TLS, or use http:// in the client's URL",
            )
        elif length >= 14 and begun[:14] == b"PRI * HTTP/2.0":
            self.tell(
                "http2",
                "a client speaks HTTP/2 to this port: let the proxy use HTTP/1.1 to reach it",
            )
        else:
            return False
        return True


class Survey:
    """Looks at the first requests of a server.

    Args:
        options: the settings.
        topology: says the key of a request, and how many slots there are.
        tell: called with a subject and a text.
    """

    def __init__(
        self, options: Options, topology: Topology, tell: Callable[[str, str], None]
    ) -> None:
        self._options = options
        self._topology = topology
        self._tell = tell
        self._keys: Counter[bytes] = Counter()
        self._by_peer = 0
        self._total = 0
        self._others: Counter[bytes] = Counter()

    def note(self, head: bytearray, length: int, peer: str) -> bool:
        """Take note of one placed request; whether the survey is over."""
        _, key, why = self._topology.router.explain(head, length, peer)
        self._total += 1
        self._keys[key] += 1
        self._by_peer += is_by_peer(why)
        if self._options.proxy:
            lines = bytes(head[:length]).lower().split(b"\n")[1:]
            self._others.update({line.partition(b":")[0] for line in lines} & set(_OTHERS))
        if self._total < ENOUGH:
            return False
        self._conclude()
        return True

    def _conclude(self) -> None:
        options, total = self._options, self._total
        key, times = self._keys.most_common(1)[0]
        shown = repr(key[:_SHOWN])[2:-1]  # it may be any bytes that a client likes
        one = self._topology.num > 1 and times >= _MOST * total
        if not options.proxy:
            if one:
                self._tell(
                    "one address",
                    f"{times} of the first {total} connections came from one address, {shown}, so "
                    "one worker does nearly all the work: you seem to be behind a proxy; use "
                    "--proxy, so that clients are told apart by the address in its header",
                )
            return
        header = options.header
        if 0.05 * total <= self._by_peer <= 0.95 * total:
            self._tell(
                "some without",
                f"{self._by_peer} of the first {total} requests had no usable {header!r} header "
                "and were routed by their TCP peer: one client may reach two workers that way; "
                "have every proxy in front set the header",
            )
        elif one:
            others = [
                name.decode()
                for name, times in self._others.most_common()
                if name.decode() != header and times >= total / 2
            ]
            hint = f"; these headers are there too: {', '.join(others)}" if others else ""
            self._tell(
                "one key",
                f"{times} of the first {total} requests have the same client, {shown}, in "
                f"{header!r}, so one worker does nearly all the work: is that a proxy's address? "
                f"Choose the header that tells clients apart with --proxy-header{hint}",
            )
