"""The routing core, written to be read: the reference for ``_core``, and its oracle in the tests.

The rules, in the order in which they are applied:

* A head is optional empty lines, a request line, field lines, and an empty line. LF ends a line,
  and a CR may stand before it (RFC 9112, 2.2). What comes after the head is never looked at.
* A head in which servers could disagree about the routing header is MALFORMED: NUL or a bare CR
  anywhere, white space before the colon of the routing header or no colon after its name, and a
  continuation line directly after the request line. What comes first in the bytes is the reason,
  and it is reported as soon as it is certain, complete head or not.
* Each line of the routing header is a list of its own, and all of them are one list in their order
  (RFC 9110, 5.3). Elements are divided by commas outside quoted strings. A quote that is not closed
  in its line is plain text, and so is all that follows it in this line: nothing that a client
  sends can swallow the line that a proxy adds.
* The key is an address, masked, or the bytes of the value. The hash of an address is
  HalfSipHash-1-3 over its big-endian 32-bit words: one word for IPv4, four for IPv6, in each case
  followed by the usual last word, which is the length in bytes (4 or 16) shifted left by 24. A
  packet filter loads exactly these words from the network header. The hash of bytes is plain
  HalfSipHash-1-3.
* A session id, where one is asked for, comes before all addresses. In the query: the first
  parameter of that name with a value, both decoded, of the request target and nothing else. In a
  header or a cookie: the first value that is not empty. Its bytes are the key.
* The slot is the one with the greatest ``mix(hash ^ salt of the slot)``: rendezvous hashing.
"""

import base64
import ipaddress
import re
from collections.abc import Iterable, Iterator
from struct import unpack_from
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from sticky import rules
from sticky.rules import SLOT_SALTS, mix

_BARE_CR: Final = re.compile(rb"\r[^\n]")
_EMPTY_LINES: Final = re.compile(rb"(?:\r?\n)*")
_TARGET: Final = re.compile(rb"[ \t]*[^ \t\n]+[ \t]+([^ \t\n]*)")
_VALUE: Final = re.compile(rb"[^\n]*+(?:\n[ \t][^\n]*+)*")

# Up to a separator, the end, or a quote that is never closed. Possessive: a value that does not
# match must not be tried in every other way as well. (Never so for a group: before Python 3.11.5
# that goes wrong where the group has to step back, gh-106052.)
_QUOTED: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*"'
_PIECE: Final = {
    separator: re.compile(rb'(?:[^"%b]++|%b)*' % (separator, _QUOTED), re.DOTALL)
    for separator in (b",", b";")
}
_QUOTED_STRING: Final = re.compile(_QUOTED, re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)

_OCTET: Final = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = re.compile(rb"(%b)\.(%b)\.(%b)\.(%b)(?::[0-9]{1,5})?" % ((_OCTET,) * 4))
_ZONE: Final = rb"(?:%[!-\\^-~]+)?"  # visible ASCII without ']'
_IPV6: Final = re.compile(rb"([0-9A-Fa-f:.]+)" + _ZONE)
_IPV6_IN_BRACKETS: Final = re.compile(rb"\[([0-9A-Fa-f:.]+)" + _ZONE + rb"\](?::[0-9]{1,5})?")

_OWS: Final = b" \t\r\n"  # CR and LF: what is left of a folded line
_MAPPED: Final = {0xFFFF, 0x64FF9B << 64}  # ::ffff:0:0/96 and 64:ff9b::/96, without the last word


class Address(NamedTuple):
    """An address with its host part cut off: 32-bit words, and how many bits are left."""

    words: tuple[int, ...]
    prefix: int

    def text(self) -> bytes:
        value = int.from_bytes(b"".join(word.to_bytes(4, "big") for word in self.words), "big")
        bits = 32 * len(self.words)
        address = ipaddress.IPv4Address(value) if bits == 32 else ipaddress.IPv6Address(value)
        return (str(address) if self.prefix == bits else f"{address}/{self.prefix}").encode()


Key = Address | bytes


class Router:
    """From the first bytes of a connection to the slot that serves it.

    Args:
        n: number of slots, 1 to 1024.
        seed: 8 bytes that key the hash: who does not know them cannot tell where a value goes.
        proxy: route by ``header``; otherwise by the address of the peer alone.
        header: field name, compared without regard to ASCII case; ``forwarded`` is read as
            RFC 7239 has it.
        hops: take this element, counted from the right over all lines; 0 takes the leftmost
            valid address.
        ipv4_prefix: bits of an IPv4 address that count, 0 to 32.
        ipv6_prefix: bits of an IPv6 address that count, 0 to 128. fe80::/10 counts whole.
        ignore_missing_header: use the peer's address where the header is missing.
        session: where a session id is looked for, before any address: ``b"query:NAME"``,
            ``b"header:NAME"``, ``b"cookie:NAME"``, or ``b""``.
        anywhere: where there is no session id, do not ask for the address but say ANYWHERE.

    Raises:
        ValueError: one of them is out of its range.
    """

    def __init__(
        self,
        n: int,
        seed: bytes,
        *,
        proxy: bool,
        header: bytes = b"x-forwarded-for",
        hops: int = 0,
        ipv4_prefix: int = 32,
        ipv6_prefix: int = 64,
        ignore_missing_header: bool = False,
        session: bytes = b"",
        anywhere: bool = False,
    ) -> None:
        rules.check_router(n, seed, header, hops, ipv4_prefix, ipv6_prefix, session, bool(anywhere))
        self._n = n
        self._seed = seed
        self._proxy = proxy
        self._header = header.lower()
        self._hops = hops
        self._forwarded = self._header == b"forwarded"
        self._ipv4_prefix = ipv4_prefix
        self._ipv6_prefix = ipv6_prefix
        self._ignore_missing_header = ignore_missing_header
        self._session = session
        self._place, self._name = rules.session_at(session)
        self._anywhere = anywhere
        # One pass that stops only at lines that matter. The look-ahead says nothing new; it makes
        # the other lines cheap. Groups: 1 the end of the head, 2 a continuation line, 3 the header
        # with its colon, 4 white space before that colon, 5 no colon; 6 to 8 the same for the
        # header with the session id.
        names = [self._header if proxy else b""]
        if self._place in (rules.IN_HEADER, rules.IN_COOKIE):
            names.append(self._name if self._place == rules.IN_HEADER else b"cookie")
        first = re.escape(b"".join(name[:1] + name[:1].upper() for name in names))
        lines = (
            rb"(?i:%b)(?:(:)|([ \t]+:)|([ \t]*\r?\n))" % (re.escape(name) or b"(?!)")
            for name in names
        )
        self._stops = re.compile(
            rb"\n(?=[\r\n \t%b])(?:(\r?\n)|([ \t])|%b)" % (first, b"|".join(lines))
        )

    def route(self, data: bytes | bytearray, length: int, peer: str) -> int:
        """The slot for the request that starts ``data[:length]``, or a verdict (below zero).

        Args:
            data: what has arrived; looked at only with ``proxy`` or ``session``.
            length: how many bytes of ``data`` count.
            peer: the peer's address as the socket module gives it; "" for a Unix socket.

        Raises:
            TypeError: ``data`` is neither bytes nor a bytearray, or ``peer`` is no str.
            ValueError: ``length`` is negative or exceeds ``data``.
        """
        why, _, key = self._decide(data, length, peer)
        if why > rules.LAST_KEY:
            return rules.verdict(why)
        return pick(self._hash(key), self._n) if self._n > 1 else 0

    def explain(self, data: bytes | bytearray, length: int, peer: str) -> tuple[int, bytes, str]:
        """What ``route`` returns, the key (b"" with a verdict), and one sentence that says why.

        Takes and raises what ``route`` does.
        """
        why, missing, key = self._decide(data, length, peer)
        text = rules.sentence(why, missing, self._header, self._hops, self._session)
        if why > rules.LAST_KEY:
            return rules.verdict(why), b"", text
        slot = pick(self._hash(key), self._n)
        return slot, key.text() if isinstance(key, Address) else key, text

    def session(self, data: bytes | bytearray, length: int) -> bytes:
        """The session id of the request that starts ``data[:length]``, or b"".

        Raises what ``route`` does.
        """
        why, _, key = self._decide(data, length, "")
        return key if why == rules.BY_SESSION else b""  # type: ignore[return-value]

    def owner(self, session: bytes) -> int:
        """The slot that requests with this session id go to."""
        return pick(siphash(self._seed, session), self._n)

    def mint(self, slot: int, random: bytes) -> bytes:
        """A session id of 20 characters of base64 (RFC 4648, section 5) that leads to a slot.

        Its first 16 characters are those of the random bytes; the last 3 bytes are counted up until
        the id leads where it should. Who does not know the seed can neither aim nor guess.

        Args:
            slot: 0 to n-1.
            random: 15 bytes that nobody can predict.

        Raises:
            ValueError: there is no such slot, or these are not 15 bytes.
            LookupError: none of these ids leads there, which is as good as impossible.
        """
        if not 0 <= slot < self._n:
            raise ValueError(f"slot must be 0 to {self._n - 1}, not {slot}")
        if len(random) != rules.RANDOM_BYTES:
            raise ValueError(f"random must be {rules.RANDOM_BYTES} bytes, not {len(random)}")
        start = int.from_bytes(random[-3:], "big")
        for step in range(1 << 24):
            last = (start + step & 0xFFFFFF).to_bytes(3, "big")
            session = base64.urlsafe_b64encode(random[:-3] + last)
            if self.owner(session) == slot:
                return session
        raise LookupError("no id leads to this slot")

    def _hash(self, key: Key) -> int:
        if isinstance(key, Address):
            return _half_siphash(self._seed, (*key.words, len(key.words) << 26))
        return siphash(self._seed, key)

    def _decide(
        self, data: bytes | bytearray, length: int, peer: str
    ) -> tuple[int, int | None, Key]:
        """(why, why the peer stands in, key). The key means nothing after LAST_KEY."""
        if not isinstance(data, (bytes, bytearray)):
            raise TypeError(f"data must be bytes or bytearray, not {type(data).__name__}")
        if not isinstance(peer, str):
            raise TypeError(f"peer must be str, not {type(peer).__name__}")
        if not 0 <= length <= len(data):
            raise ValueError(f"length must be 0 to {len(data)}, not {length}")
        if not self._proxy and not self._place:
            return rules.BY_PEER, None, self._peer_key(peer)
        why, values, session = self._scan(data, length)
        if session:
            return rules.BY_SESSION, None, session
        if self._anywhere and (why == rules.BY_BYTES or why == rules.ABSENT):
            return rules.NO_SESSION, None, b""
        if not self._proxy and why == rules.ABSENT:
            return rules.BY_PEER, None, self._peer_key(peer)
        if why == rules.BY_BYTES:
            why, key = self._read(values)
        else:
            key = b""
        if self._ignore_missing_header and rules.LAST_KEY < why <= rules.LAST_MISSING:
            return rules.BY_PEER, why, self._peer_key(peer)
        return why, None, key

    def _peer_key(self, peer: str) -> Key:
        text = peer.encode()
        return self._address(text) or text

    def _scan(self, data: bytes | bytearray, length: int) -> tuple[int, list[bytes], bytes]:
        """The values of the header (folds and all) with BY_BYTES and the session id or b"", or what
        is wrong and nothing."""
        start = 0
        if length and data[0] in b"\r\n":
            start = _EMPTY_LINES.match(data, 0, length).end()  # type: ignore[union-attr]
        values, sessions = [], []
        why, end = rules.INCOMPLETE, length
        for stop in self._stops.finditer(data, start, length):
            group = stop.lastindex
            if group == 3:
                values.append(stop.end())
                continue
            if group == 6:
                sessions.append(stop.end())
                continue
            if group == 1:
                why = rules.BY_BYTES if values else rules.ABSENT
            elif group == 4:
                why = rules.SPACE_BEFORE_COLON
            elif group == 5:
                why = rules.NO_COLON
            elif group == 7:
                why = rules.SESSION_SPACE
            elif group == 8:
                why = rules.SESSION_NO_COLON
            elif data.find(b"\n", start) == stop.start():
                why = rules.FIRST_FOLDED
            else:
                continue
            end = stop.end()
            break
        # No stop has a NUL or a bare CR within it: what is found now comes before the last one.
        nul = data.find(b"\0", start, end)
        bare_cr = _BARE_CR.search(data, start, end)
        if nul >= 0 and (not bare_cr or nul < bare_cr.start()):
            return rules.NUL, [], b""
        if bare_cr:
            return rules.BARE_CR, [], b""
        if why not in (rules.BY_BYTES, rules.ABSENT):
            return why, [], b""
        found = [
            [_VALUE.match(data, at, end - 1)[0] for at in places]  # type: ignore[index]
            for places in (values, sessions)
        ]
        if self._place == rules.IN_QUERY:
            target = _TARGET.match(data, start, end)
            session = self._in_query(target[1].removesuffix(b"\r") if target else b"")
        else:
            session = next(filter(None, map(self._in_value, found[1])), b"")
        return why, found[0], session

    def _in_query(self, target: bytes) -> bytes:
        """The session id in a request target, or b""."""
        for pair in target.partition(b"?")[2].split(b"&"):
            name, _, value = pair.partition(b"=")
            if value and _unquote(name) == self._name:
                return _unquote(value)
        return b""

    def _in_value(self, value: bytes) -> bytes:
        """The session id in the value of a header, or b""."""
        if self._place == rules.IN_HEADER:
            return _unfold(value)
        for pair in value.split(b";"):
            name, _, text = pair.partition(b"=")
            if name.strip(_OWS) == self._name:
                text = text.strip(_OWS)
                if text[:1] == text[-1:] == b'"' and len(text) > 1:
                    text = text[1:-1]
                if text:
                    return text
        return b""

    def _read(self, values: list[bytes]) -> tuple[int, Key]:
        """From the values of the header to the key."""
        elements = (element for value in values for element in _split(value, b",") if element)
        if self._hops:
            chosen = list(elements)[-self._hops :]
            if len(chosen) < self._hops:
                return rules.TOO_FEW if chosen else rules.EMPTY, b""
            node = self._node(chosen[0])
            address = node and self._address(node)
            return (rules.BY_HOPS, address) if address else (rules.NO_ADDRESS, b"")
        why = rules.EMPTY
        for element in elements:
            node = self._node(element)
            if node and (address := self._address(node)):
                return rules.BY_LEFTMOST, address
            if node is None or node.lower() != b"unknown":
                why = rules.BY_BYTES
            elif why == rules.EMPTY:
                why = rules.ONLY_UNKNOWN
        return why, b", ".join(filter(None, map(_unfold, values)))

    def _node(self, element: bytes) -> bytes | None:
        """The text in an element that may be an address, without its quotes; None without one."""
        if self._forwarded:
            for pair in _split(element, b";"):
                if pair[:4].lower() == b"for=":
                    element = pair[4:]
                    break
            else:
                return None
        if element[:1] == b'"':
            if not _QUOTED_STRING.fullmatch(element) or len(element) > rules.MAX_ADDRESS + 2:
                return None
            return _ESCAPE.sub(rb"\1", element[1:-1])
        return element

    def _address(self, text: bytes) -> Address | None:
        """``v4``, ``v4:port``, ``v6``, ``[v6]`` or ``[v6]:port``, with a zone id or without."""
        if len(text) > rules.MAX_ADDRESS:
            return None
        if ipv4 := _IPV4.fullmatch(text):
            return self._ipv4(int.from_bytes(map(int, ipv4.groups()), "big"))
        ipv6 = _IPV6.fullmatch(text) or _IPV6_IN_BRACKETS.fullmatch(text)
        if not ipv6:
            return None
        try:
            value = int(ipaddress.IPv6Address(ipv6[1].decode("ascii")))
        except ValueError:
            return None
        if value >> 32 in _MAPPED:
            return self._ipv4(value & 0xFFFFFFFF)
        # Every link has the same fe80::/64: only the rest tells two of its hosts apart.
        prefix = 128 if value >> 118 == 0xFE80 >> 6 else self._ipv6_prefix
        value = value >> 128 - prefix << 128 - prefix
        return Address(unpack_from(">4I", value.to_bytes(16, "big")), prefix)

    def _ipv4(self, value: int) -> Address:
        prefix = self._ipv4_prefix
        return Address((value >> 32 - prefix << 32 - prefix,), prefix)


def _split(text: bytes, separator: bytes) -> Iterator[bytes]:
    """The pieces of a list without the white space around them, empty ones included."""
    if b'"' in text:
        piece, start = _PIECE[separator], 0
        while True:
            end = piece.match(text, start).end()  # type: ignore[union-attr]
            if text[end : end + 1] != separator:
                break
            yield text[start:end].strip(_OWS)
            start = end + 1
        # The end, or a quote that is never closed: nothing after it is quoted any more.
        end = text.find(separator, end)
        if end < 0:
            yield text[start:].strip(_OWS)
            return
        yield text[start:end].strip(_OWS)
        text = text[end + 1 :]
    for part in text.split(separator):
        yield part.strip(_OWS)


def _unfold(value: bytes) -> bytes:
    """A value without white space at its ends, each fold replaced by one space (RFC 9112, 5.2)."""
    if b"\n" not in value:
        return value.strip(_OWS)
    return b" ".join(filter(None, (line.strip(_OWS) for line in value.split(b"\n"))))


def _unquote(text: bytes) -> bytes:
    """Percent-decoded, as servers do it: '+' is a space, what is no escape stays."""
    return unquote_to_bytes(text.replace(b"+", b" "))


def _half_siphash(seed: bytes, words: Iterable[int]) -> int:
    """HalfSipHash-1-3 with 32 bits of output over words that already end with the length."""
    v0: int
    v1: int
    v0, v1 = unpack_from("<2I", seed)
    v2, v3 = v0 ^ 0x6C796765, v1 ^ 0x74656462
    for word in words:
        v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ word)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v1 ^ v3


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = v0 + v1 & 0xFFFFFFFF
    v1 = (v1 << 5 | v1 >> 27) & 0xFFFFFFFF ^ v0
    v0 = (v0 << 16 | v0 >> 16) & 0xFFFFFFFF
    v2 = v2 + v3 & 0xFFFFFFFF
    v3 = (v3 << 8 | v3 >> 24) & 0xFFFFFFFF ^ v2
    v0 = v0 + v3 & 0xFFFFFFFF
    v3 = (v3 << 7 | v3 >> 25) & 0xFFFFFFFF ^ v0
    v2 = v2 + v1 & 0xFFFFFFFF
    v1 = (v1 << 13 | v1 >> 19) & 0xFFFFFFFF ^ v2
    return v0, v1, (v2 << 16 | v2 >> 16) & 0xFFFFFFFF, v3


def siphash(key8: bytes, data: bytes) -> int:
    """HalfSipHash-1-3 of ``data`` with 32 bits of output, keyed with 8 bytes.

    Raises:
        ValueError: the key is not exactly 8 bytes.
    """
    if not isinstance(key8, bytes) or not isinstance(data, bytes):
        raise TypeError("key8 and data must be bytes")
    if len(key8) != 8:
        raise ValueError(f"key8 must be exactly 8 bytes, not {len(key8)}")
    full = len(data) // 4
    tail = int.from_bytes(data[full * 4 :], "little")
    words = unpack_from(f"<{full}I", data)
    return _half_siphash(key8, (*words, (len(data) & 0xFF) << 24 | tail))


def pick(hash32: int, n: int) -> int:
    """The slot, 0 to n-1, for a 32-bit hash: rendezvous hashing.

    With one slot more, 1/(n+1) of all hashes move, all of them to the new slot.

    Raises:
        ValueError: the hash has more than 32 bits, or n is not 1 to 1024.
    """
    if not 1 <= n <= rules.MAX_SLOTS:
        raise ValueError(f"n must be 1 to {rules.MAX_SLOTS}, not {n}")
    if not 0 <= hash32 <= 0xFFFFFFFF:
        raise ValueError(f"hash32 must be a number of 32 bits without a sign, not {hash32}")
    weights = [mix(hash32 ^ salt) for salt in SLOT_SALTS[:n]]
    return weights.index(max(weights))
