"""The core, written to be read: the reference for ``_core``, and its oracle in the tests.

The rules of routing, in the order in which they are applied (those of ``parse`` and ``Chunks`` are
with them, below):

* A head is optional empty lines, a request line, field lines, and an empty line. CRLF ends a line.
  What comes after the head is never looked at.
* A head in which servers could disagree about the routing header is MALFORMED: NUL, a CR or an LF
  without the other, or a line that begins with white space anywhere; white space before the colon
  of the routing header, or no colon after its name. What comes first in the bytes is the reason,
  and it is reported as soon as it is certain, complete head or not. What else may be wrong with a
  head is the worker's to refuse: ``parse``.
* Each line of the routing header is a list of its own, and all of them are one list in their order
  (RFC 9110, 5.3). Elements are divided by commas outside quoted strings. A quote that is not closed
  in its line is plain text, and so is all that follows it in this line: nothing that a client
  sends can swallow the line that a proxy adds.
* The key is an address, masked, or the bytes of the value. The hash of an address is
  HalfSipHash-1-3 over its big-endian 32-bit words: one word for IPv4, four for IPv6, in each case
  followed by the usual last word, which is the length in bytes (4 or 16) shifted left by 24. A
  packet filter loads exactly these words from the network header. The hash of bytes is plain
  HalfSipHash-1-3.
* A session id, where one is asked for, comes before all addresses, and it is looked for in one
  source after the other: the first that has one decides. In the query: the first parameter of that
  name with a value, both decoded, of the request target and nothing else. In the path: what stands
  in the place of the id, if it is not empty, decoded. In a header or a cookie: the first value that
  is not empty. Its bytes are the key.
* Where ids are tagged, only a value with the right tag has one: a mark is 20 characters and the 11
  of their tag, and nothing else; an affix is the same, a dot, and something behind it. The first
  such value counts, and the 20 characters are the key. The tag is the SipHash-2-4 of the id in
  base64, with a key that is made from the seed.
* The slot is the one with the greatest ``mix(hash ^ salt of the slot)``: rendezvous hashing.
"""

import base64
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from struct import unpack_from
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from sticky import rules
from sticky.rules import SLOT_SALTS, mix

_BARE: Final = re.compile(rb"(\0)|(\r)[^\n]|(?<!\r)(\n)", re.DOTALL)
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*")
_TARGET: Final = re.compile(rb"[ \t]*[^ \t\r]+[ \t]+([^ \t\r]*)")
_VALUE: Final = re.compile(rb"[^\r]*")
_AGENT: Final = re.compile(rb"\n(?i:user-agent):([^\r]*)")

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

_OWS: Final = b" \t"
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
        session: where session ids are looked for, before any address and in this order: of
            ``b"query:NAME"``, ``b"header:NAME"``, ``b"cookie:NAME"``, ``b"path:/PATH/{id}/"`` and
            ``b"mark:NAME"`` (a cookie with a tagged id) one, or a tuple of at most 4.
        affix: the values in headers and cookies begin with a tagged id; others have none.
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
        session: bytes | tuple[bytes, ...] = b"",
        affix: bool = False,
        anywhere: bool = False,
    ) -> None:
        rules.check_router(n, seed, header, hops, ipv4_prefix, ipv6_prefix, session, bool(anywhere))
        self._number = n
        self._cell: memoryview | None = None
        self._seed = seed
        self._proxy = proxy
        self._header = header.lower()
        self._hops = hops
        self._forwarded = self._header == b"forwarded"
        self._ipv4_prefix = ipv4_prefix
        self._ipv6_prefix = ipv6_prefix
        self._ignore_missing_header = ignore_missing_header
        self._sources = rules.sources_of(session, affix)
        self._anywhere = anywhere
        labels = rules.TAG_LABELS
        self._tag_key = b"".join(siphash(seed, it).to_bytes(4, "little") for it in labels)
        # One pass that stops only at lines that matter. The look-ahead says nothing new; it makes
        # the other lines cheap. Groups: 1 the end of the head, 2 a continuation line, 3 the header
        # with its colon, 4 white space before that colon, 5 no colon; 6 to 8 the same for the
        # first header with session ids, and so on.
        fields = dict.fromkeys(source.field for source in self._sources if source.field)
        self._fields = list(fields)
        names = [self._header if proxy else b"", *self._fields]
        first = re.escape(b"".join(name[:1] + name[:1].upper() for name in names))
        lines = (
            rb"(?i:%b)(?:(:)|([ \t]+:)|([ \t]*\r\n))" % (re.escape(name) or b"(?!)")
            for name in names
        )
        self._stops = re.compile(
            rb"\n(?=[\r \t%b])(?:(\r\n)|([ \t])|%b)" % (first, b"|".join(lines))
        )

    def follow(self, cells: memoryview) -> None:
        """Read the number of slots from the first 8 bytes of this memory from now on, at each call:
        what several processes share changes for all of them at the same moment.

        Args:
            cells: a memoryview of at least 8 bytes, aligned, of memory that stays where it is.

        Raises:
            ValueError: it is too small, or followed already.
        """
        if self._cell is not None:
            raise ValueError("the number of slots is read from other memory already")
        cell = memoryview(cells).cast("B")
        if cell.nbytes < 8:
            raise ValueError("the number of slots takes 8 bytes")
        self._cell = cell[:8].cast("Q")

    @property
    def n(self) -> int:
        """How many slots there are now."""
        return self._number if self._cell is None else min(max(self._cell[0], 1), rules.MAX_SLOTS)

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
        why, _, key, _ = self._decide(data, length, peer)
        if why > rules.LAST_KEY:
            return rules.verdict(why)
        return pick(self._hash(key), self.n)

    def explain(self, data: bytes | bytearray, length: int, peer: str) -> tuple[int, bytes, str]:
        """What ``route`` returns, the key (b"" with a verdict), and one sentence that says why.

        Takes and raises what ``route`` does.
        """
        why, missing, key, at = self._decide(data, length, peer)
        text = rules.sentence(why, missing, self._header, self._hops, self._sources, at)
        if why > rules.LAST_KEY:
            return rules.verdict(why), b"", text
        slot = pick(self._hash(key), self.n)
        return slot, key.text() if isinstance(key, Address) else key, text

    def find(self, data: bytes | bytearray, length: int) -> tuple[int, bytes]:
        """The session id of the request that starts ``data[:length]``: which of the sources has it,
        and the id; -1 and b"" where there is none.

        Raises what ``route`` does.
        """
        why, _, key, at = self._decide(data, length, "")
        return (at, key) if why == rules.BY_SESSION else (-1, b"")  # type: ignore[return-value]

    def who(self, data: bytes | bytearray, length: int, peer: str) -> int:
        """64 bits that tell a client from others by what it has without any id: the address by
        which it would be routed, and the value of its first User-Agent.

        Args:
            data, length: a whole head, as for ``route``.
            peer: stands in where the routing header gives no key.

        Raises what ``route`` does.
        """
        _check_data(data)
        _check_within("length", length, 0, len(data))
        why, values, _, _ = self._scan(data, length) if self._proxy else (rules.ABSENT, [], b"", 0)
        if why == rules.BY_BYTES:
            why, key = self._read(values)
        if why > rules.LAST_KEY:
            key = self._peer_key(peer)
        start = _EMPTY_LINES.match(data, 0, length).end()  # type: ignore[union-attr]
        end = data.find(b"\n\r", start, length)
        agent = _AGENT.search(data, start, length if end < 0 else end)
        value = agent[1].strip(_OWS) if agent else b""
        return siphash_2_4(self._tag_key, self._hash(key).to_bytes(4, "little") + value)

    def tag(self, minted: bytes) -> bytes:
        """The 11 characters by which an id of ours is known."""
        raw = siphash_2_4(self._tag_key, minted).to_bytes(8, "little")
        return base64.urlsafe_b64encode(raw)[: rules.TAG]

    def tagged_id(self, value: bytes, kind: int) -> bytes:
        """The id in a value of this kind (``rules.MARK``, ``rules.AFFIX``), if it has the right
        tag; else b""."""
        return self._tagged(value, kind)

    def random(self, text: bytes) -> bytes:
        """15 bytes for ``mint`` that are the same for the same text, and that nobody can predict
        who does not know the seed."""
        words = (siphash_2_4(self._tag_key, bytes([number]) + text) for number in range(2))
        return b"".join(word.to_bytes(8, "little") for word in words)[: rules.RANDOM_BYTES]

    def strip(self, head: "Head") -> tuple[bytes, ...]:
        """Take out of a head what is ours: marks, also those of another server or none, by what
        they look like; and affixes with the right tag.

        Returns:
            For each source the tagged id that the request has there, or b"".
        """
        found = [b""] * len(self._sources)
        lines = []
        for name, value in head._lines:
            if name == b"cookie":
                left = self._strip_cookies(value, found)
                if left is None:
                    continue
                value = left
            else:
                for at, source in enumerate(self._sources):
                    if source.kind == rules.AFFIX and source.field == name:
                        value = self._strip_affix(value, at, found)
            lines.append((name, value))
        head._lines = lines
        return tuple(found)

    def _strip_affix(self, value: bytes, at: int, found: list[bytes]) -> bytes:
        tagged = self._tagged(value, rules.AFFIX)
        if not tagged:
            return value
        found[at] = found[at] or tagged
        return value[rules.MARK_SIZE + 1 :]

    def _strip_cookies(self, value: bytes, found: list[bytes]) -> bytes | None:
        """What is left of the value of a Cookie field; None: nothing, where there was something."""
        pairs = []
        changed = False
        for pair in value.split(b";"):
            name, equals, text = pair.partition(b"=")
            bare = _unquoted(text.strip(_OWS))
            kept = pair
            for at, source in enumerate(self._sources):
                if source.place != rules.IN_COOKIE or source.name != name.strip(_OWS):
                    continue
                if source.kind == rules.MARK and _is_like_mark(bare):
                    found[at] = found[at] or self._tagged(bare, rules.MARK)
                    kept = b""
                    break
                if source.kind == rules.AFFIX:
                    left = self._strip_affix(bare, at, found)
                    if left != bare:
                        kept = name + equals + left
            changed = changed or kept is not pair
            if kept is pair or kept:
                pairs.append(kept)
        if not changed:
            return value
        return b";".join(pairs).strip(_OWS) or None

    def _tagged(self, value: bytes, kind: int) -> bytes:
        if kind == rules.MARK:
            good = len(value) == rules.MARK_SIZE
        else:
            good = value[rules.MARK_SIZE : rules.MARK_SIZE + 1] == b"." and (
                len(value) > rules.MARK_SIZE + 1
            )
        minted = value[: rules.MINTED]
        return minted if good and value[rules.MINTED : rules.MARK_SIZE] == self.tag(minted) else b""

    def owner(self, session: bytes, n: int = 0) -> int:
        """The slot that requests with this session id go to; among ``n`` slots, if it is given."""
        return pick(siphash(self._seed, session), min(n, rules.MAX_SLOTS) if n > 0 else self.n)

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
        n = self.n
        if not 0 <= slot < n:
            raise ValueError(f"slot must be 0 to {n - 1}, not {slot}")
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
    ) -> tuple[int, int | None, Key, int]:
        """(why, why the peer stands in, key, source). The key means nothing after LAST_KEY."""
        _check_data(data)
        if not isinstance(peer, str):
            raise TypeError(f"peer must be str, not {type(peer).__name__}")
        _check_within("length", length, 0, len(data))
        if not self._proxy and not self._sources:
            return rules.BY_PEER, None, self._peer_key(peer), 0
        why, values, session, at = self._scan(data, length)
        if session:
            return rules.BY_SESSION, None, session, at
        if self._anywhere and (why == rules.BY_BYTES or why == rules.ABSENT):
            return rules.NO_SESSION, None, b"", 0
        if not self._proxy and why == rules.ABSENT:
            return rules.BY_PEER, None, self._peer_key(peer), 0
        if why == rules.BY_BYTES:
            why, key = self._read(values)
        else:
            key = b""
        if self._ignore_missing_header and rules.LAST_KEY < why <= rules.LAST_MISSING:
            return rules.BY_PEER, why, self._peer_key(peer), 0
        return why, None, key, at

    def _peer_key(self, peer: str) -> Key:
        text = peer.encode()
        return self._address(text) or text

    def _scan(self, data: bytes | bytearray, length: int) -> tuple[int, list[bytes], bytes, int]:
        """The values of the header with BY_BYTES, and the session id or b"" and its source; or what
        is wrong and nothing, but for the source that it is about."""
        start = _EMPTY_LINES.match(data, 0, length).end()  # type: ignore[union-attr]
        if data[start : min(start + 1, length)] == b"\n":
            return rules.BARE_LF, [], b"", 0
        places: list[list[int]] = [[] for _ in range(1 + len(self._fields))]
        why, end, at = rules.INCOMPLETE, length, 0
        for stop in self._stops.finditer(data, start, length):
            field, what = divmod((stop.lastindex or 0) - 3, 3)
            if field >= 0 and not what:
                places[field].append(stop.end())
                continue
            if stop.lastindex == 1:
                why = rules.BY_BYTES if places[0] else rules.ABSENT
            elif field < 0:
                why = rules.FOLDED
            elif not field:
                why = (0, rules.SPACE_BEFORE_COLON, rules.NO_COLON)[what]
            else:
                why = (0, rules.SESSION_SPACE, rules.SESSION_NO_COLON)[what]
                name = self._fields[field - 1]
                at = [source.field for source in self._sources].index(name)
            end = stop.end()
            break
        # Nothing bare is within a stop: what is found now comes before the last one.
        if bare := _BARE.search(data, start, end):
            why = (0, rules.NUL, rules.BARE_CR, rules.BARE_LF)[bare.lastindex or 0]
            return why, [], b"", 0
        if why not in (rules.BY_BYTES, rules.ABSENT):
            return why, [], b"", at
        found = [
            [_VALUE.match(data, at, end - 1)[0] for at in several]  # type: ignore[index]
            for several in places
        ]
        target = _TARGET.match(data, start, end)
        for at, source in enumerate(self._sources):
            session = self._session(source, target[1] if target else b"", found)
            if session:
                return why, found[0], session, at
        return why, found[0], b"", 0

    def _session(self, source: rules.Source, target: bytes, found: list[list[bytes]]) -> bytes:
        """The session id in one of the sources, or b""."""
        if source.place == rules.IN_QUERY:
            return _in_query(source.name, target)
        if source.place == rules.IN_PATH:
            return _in_path(source.name, target)
        for value in found[1 + self._fields.index(source.field)]:
            if source.place == rules.IN_HEADER:
                texts: Iterable[bytes] = (value.strip(_OWS),)
            else:
                texts = _in_cookies(source.name, value)
            for text in texts:
                session = text if source.kind == rules.PLAIN else self._tagged(text, source.kind)
                if session:
                    return session
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
        return why, b", ".join(filter(None, (value.strip(_OWS) for value in values)))

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


def _in_query(name: bytes, target: bytes) -> bytes:
    """The first value that a parameter of a request target has, or b""."""
    for pair in target.partition(b"?")[2].split(b"&"):
        key, _, value = pair.partition(b"=")
        if value and _unquote(key) == name:
            return _unquote(value)
    return b""


def _in_path(name: bytes, target: bytes) -> bytes:
    """What stands in the path of a request target in the place of the id, or b""."""
    before, _, behind = name.partition(rules.ID_IN_PATH)
    if target[:1] != b"/" and (authority := _ABSOLUTE.match(target)):
        target = target[authority.end() :]
    path = target.partition(b"?")[0]
    if not path.startswith(before):
        return b""
    session, slash, rest = path[len(before) :].partition(b"/")
    if not (slash + rest).startswith(behind):
        return b""
    return unquote_to_bytes(session)


def _in_cookies(name: bytes, value: bytes) -> Iterator[bytes]:
    """All values that a cookie has in one line."""
    for pair in value.split(b";"):
        key, _, text = pair.partition(b"=")
        if key.strip(_OWS) == name:
            yield _unquoted(text.strip(_OWS))


def _unquoted(text: bytes) -> bytes:
    """A cookie's value without the quotes around it (RFC 6265, 4.1.1)."""
    return text[1:-1] if text[:1] == text[-1:] == b'"' and len(text) > 1 else text


def _is_like_mark(text: bytes) -> bool:
    return len(text) == rules.MARK_SIZE and rules.IN_BASE64.issuperset(text)


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


class Firsts:
    """To which slot clients without an id were sent in the last two seconds: the same for all
    processes that have this memory, whoever chooses first.

    A cell is one word, so that it is there as a whole or not at all: 36 bits of who it is, 18 of
    when that was in milliseconds, 10 of the slot. (The compiled twin puts it there only in the
    place of what was seen there before, by compare and swap, which Python has not.) Four cells
    share a place; when all are taken, the oldest goes.

    Args:
        cells: a memoryview of memory that stays where it is: 32 bytes, or 2, 4, 8 ... times that.

    Raises:
        ValueError: it has another size.
    """

    def __init__(self, cells: memoryview) -> None:
        self._cells = memoryview(cells).cast("B")
        size = self._cells.nbytes
        if size < 32 or size & (size - 1):
            raise ValueError("this takes 32 bytes of memory, or 2, 4, 8 ... times that")
        self._cells = self._cells.cast("Q")

    def agree(self, who: int, now: int, slot: int) -> tuple[int, int]:
        """Where a client goes, and since when.

        Args:
            who: 64 bits, as ``Router.who`` gives them.
            now: milliseconds, on a clock that all processes share.
            slot: where it goes unless that was chosen before; -1: only say whether it was.

        Returns:
            The slot and the time of the choice (18 bits); -1 and 0: there is none.
        """
        now &= 0x3FFFF
        place = 4 * (who & (len(self._cells) // 4 - 1))
        ages = []
        for at in range(place, place + 4):
            word = self._cells[at]
            age = (now - (word >> 10)) & 0x3FFFF
            if age >= 0x20000:
                age = 0  # by a clock that was read a little later
            if not word:
                age = 0x40000
            elif word >> 28 == who >> 28:
                if age < rules.AGREED_FOR:
                    return word & 0x3FF, word >> 10 & 0x3FFFF
                age = 0x80000  # it must not be there twice
            ages.append(age)
        if slot < 0:
            return -1, 0
        self._cells[place + ages.index(max(ages))] = who >> 28 << 28 | now << 10 | slot
        return slot, now


def siphash_2_4(key16: bytes, data: bytes) -> int:
    """SipHash-2-4 of ``data`` with 64 bits of output (Aumasson and Bernstein, 2012).

    Args:
        key16: 16 bytes.
        data: any bytes.

    Raises:
        ValueError: the key is not exactly 16 bytes.
    """
    if len(key16) != 16:
        raise ValueError(f"key16 must be exactly 16 bytes, not {len(key16)}")
    k0: int
    k1: int
    k0, k1 = unpack_from("<2Q", key16)
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    full = len(data) // 8
    tail = int.from_bytes(data[full * 8 :], "little")
    words: tuple[int, ...] = unpack_from(f"<{full}Q", data)
    for word in (*words, (len(data) & 0xFF) << 56 | tail):
        v3 ^= word
        for _ in range(2):
            v0, v1, v2, v3 = _round_64(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(4):
        v0, v1, v2, v3 = _round_64(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _round_64(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    most = (1 << 64) - 1
    v0 = v0 + v1 & most
    v1 = (v1 << 13 | v1 >> 51) & most ^ v0
    v0 = (v0 << 32 | v0 >> 32) & most
    v2 = v2 + v3 & most
    v3 = (v3 << 16 | v3 >> 48) & most ^ v2
    v0 = v0 + v3 & most
    v3 = (v3 << 21 | v3 >> 43) & most ^ v0
    v2 = v2 + v1 & most
    v1 = (v1 << 17 | v1 >> 47) & most ^ v2
    v2 = (v2 << 32 | v2 >> 32) & most
    return v0, v1, v2, v3


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


# --- the head of a request -----------------------------------------------------------------------
# The rules, in the order of the bytes:
#
# * Empty lines, which are CRLF and nothing else, may come before the request line.
# * The request line is a method (a token), a target and a version with one space between them, and
#   then CRLF. A version that is not HTTP/1.x is refused before the form of the target is judged:
#   what is a target there is another version's business.
# * A field line is a token, a colon at once, and a value: no control character but HTAB. White
#   space around the value does not belong to it. No line begins with white space.
# * CR and LF stand together or nowhere.
# * A field that says something about the request itself (Host, Content-Length, Transfer-Encoding)
#   is refused where it stands; that there is no Host, at the end of the head.

_RUN_OF: Final = {
    kind: re.compile(rb"[%b]*" % re.escape(bytes(sorted(kind))))
    for kind in (rules.TOKEN, rules.TARGET, rules.TEXT)
}
_DIGITS: Final = b"0123456789"
_VERSION: Final = (b"H", b"T", b"T", b"P", b"/", _DIGITS, b".", _DIGITS)
_REG_NAME: Final = rb"(?:[%b]|%%[0-9A-Fa-f]{2})+" % re.escape(bytes(sorted(rules.REG_NAME)))
_HOST: Final = re.compile(rb"(?:%b|\[([0-9A-Fa-f:.]*)\])(?::([0-9]*))?" % _REG_NAME)
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?]*)")
_TOKEN: Final = rb"[%b]+" % re.escape(bytes(sorted(rules.TOKEN)))
_CODING: Final = re.compile(
    rb"%b(?:[ \t]*;[ \t]*%b[ \t]*=[ \t]*(?:%b|%b))*" % (_TOKEN, _TOKEN, _TOKEN, _QUOTED), re.DOTALL
)


class _Refused(Exception):  # noqa: N818 - not an error: a reason, or 0 for not complete
    def __init__(self, reason: int) -> None:
        self.reason = reason


class Head:
    """The head of a request, read and found to be in order. ``parse`` makes them.

    Attributes:
        end: where it ends in the data: behind the empty line.
        method: as it was sent.
        target: as it was sent, in any of the four forms of RFC 9112, section 3.2.
        minor: 1, or 0 for HTTP/1.0. Later versions of HTTP/1 count as 1 (RFC 9110, 2.5).
        length: bytes of the body, or ``rules.CHUNKED``.
        keep_alive: whether the client allows another request on its connection.
        expects: whether it waits for a 100 (Continue).
        upgrade: whether it offers another protocol: an Upgrade field that is not empty and that
            Connection names.
        websocket: whether that is a WebSocket, as RFC 6455 opens one: with GET, without a body.
        host: the value of Host; b"" without one.
    """

    end: int
    method: str
    target: bytes
    minor: int
    length: int
    keep_alive: bool
    expects: bool
    upgrade: bool
    websocket: bool
    host: bytes
    _lines: list[tuple[bytes, bytes]]

    def __init__(self) -> None:
        raise TypeError("a Head is made by parse")

    def fields(self) -> list[tuple[bytes, bytes]]:
        """The fields in their order: (name in lower case, value).

        Several Cookie fields are one, joined by b"; ", in the place of the first
        (RFC 9113, section 8.2.3).
        """
        cookies = [value for name, value in self._lines if name == b"cookie"]
        found = []
        for name, value in self._lines:
            if name != b"cookie":
                found.append((name, value))
            elif cookies:
                found.append((name, b"; ".join(cookies)))
                cookies = []
        return found

    def environ(self, into: dict[str, str]) -> None:
        """Put the fields into a WSGI environ (PEP 3333): HTTP_*, CONTENT_TYPE, CONTENT_LENGTH.

        Several fields of one name are joined by a comma, Cookie by "; ". Names with an underscore
        are left out: they would meet those with a hyphen.
        """
        values: dict[str, list[str]] = {}
        for name, value in self._lines:
            if b"_" not in name:
                values.setdefault(rules.environ_name(name), []).append(value.decode("latin-1"))
        for key, several in values.items():
            into[key] = ("; " if key == "HTTP_COOKIE" else ",").join(several)


def parse(data: bytes | bytearray, start: int, limit: int) -> Head | int:
    """The head of the request that begins at ``data[start:]``.

    Reads a head as RFC 9112 has it, and strictly: what readers could disagree about is refused.
    ``rules.status`` and ``rules.refusal`` say with what and why. The first thing that is wrong in
    the bytes is the reason; it is reported as soon as it is certain, whether the head is complete
    or not, and it stays the reason whatever comes after.

    Args:
        data: what has arrived. Nothing keeps it.
        start: where the request, or an empty line before it, begins.
        limit: how many bytes a head may have, empty lines before it included.

    Returns:
        A Head; 0 while the head is not complete; or why it is refused: an int above 0.

    Raises:
        TypeError: ``data`` is neither bytes nor a bytearray.
        ValueError: ``start`` is negative or exceeds ``data``, or ``limit`` is negative.
    """
    _check_data(data)
    _check_within("start", start, 0, len(data))
    if limit < 0:
        raise ValueError(f"limit must not be negative, but is {limit}")
    text = bytes(data[start : start + limit])
    try:
        head = _Reader(text).head()
    except _Refused as refused:
        return rules.TOO_LARGE if not refused.reason and len(text) == limit else refused.reason
    head.end += start
    return head


class _Reader:
    """Reads one head from its first byte to its last."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0
        self.minor = 0
        self.values: dict[bytes, bytes] = {}  # of the fields that say what the request is
        self.chunked = False
        self.options: list[bytes] = []  # of Connection
        self.expected: list[bytes] = []
        self.protocols: list[bytes] = []

    def head(self) -> Head:
        head = object.__new__(Head)
        self.at = _EMPTY_LINES.match(self.text).end()  # type: ignore[union-attr]
        self.request_line(head)
        head._lines = []
        while not self.text.startswith(b"\r\n", self.at):
            head._lines.append(self.field())
        head.end = self.at + 2
        if head.minor and b"host" not in self.values:
            raise _Refused(rules.NO_HOST)
        head.host = self.values.get(b"host", b"")
        head.length = rules.CHUNKED if self.chunked else int(self.values.get(b"content-length", 0))
        head.keep_alive = b"close" not in self.options and (
            head.minor > 0 or b"keep-alive" in self.options
        )
        head.expects = head.minor > 0 and b"100-continue" in self.expected
        head.upgrade = head.minor > 0 and b"upgrade" in self.options and any(self.protocols)
        head.websocket = (
            head.upgrade
            and b"websocket" in self.protocols
            and head.length == 0
            and head.method == "GET"
        )
        return head

    def run_of(self, kind: frozenset[int]) -> bytes:
        """The bytes of this kind that come next."""
        start = self.at
        self.at = _RUN_OF[kind].match(self.text, start).end()  # type: ignore[union-attr]
        return self.text[start : self.at]

    def line_ends(self) -> bool:
        """Whether a line ends here; if not, something that is allowed in a line comes next."""
        two = self.text[self.at : self.at + 2]
        if two in (b"", b"\r"):
            raise _Refused(0)
        if two[0] == 0:
            raise _Refused(rules.NUL)
        if two[:1] == b"\n":
            raise _Refused(rules.BARE_LF)
        if two[:1] == b"\r" and two != b"\r\n":
            raise _Refused(rules.BARE_CR)
        if two[0] != 0x0D and (two[0] < 0x20 or two[0] == 0x7F):
            raise _Refused(rules.CONTROL)
        return two == b"\r\n"

    def space(self, otherwise: int) -> None:
        """One space in the request line."""
        if self.line_ends():
            raise _Refused(rules.REQUEST_LINE)
        if self.text[self.at] != 0x20:
            raise _Refused(otherwise)
        self.at += 1

    def request_line(self, head: Head) -> None:
        method = self.run_of(rules.TOKEN)
        if len(method) > rules.MAX_METHOD:
            raise _Refused(rules.LONG_METHOD)
        self.space(rules.REQUEST_LINE)
        if not method:
            raise _Refused(rules.REQUEST_LINE)
        target = self.run_of(rules.TARGET)
        self.space(rules.BAD_TARGET)
        if not target:
            raise _Refused(rules.REQUEST_LINE)
        major, head.minor = self.version()
        if major != 1:
            raise _Refused(rules.OTHER_VERSION)
        if not _is_target(method, target):
            raise _Refused(rules.BAD_TARGET)
        self.minor = head.minor
        head.method = method.decode("ascii")
        head.target = target

    def version(self) -> tuple[int, int]:
        """The version, and the end of the line behind it."""
        start = self.at
        for allowed in _VERSION:
            if self.line_ends() or self.text[self.at] not in allowed:
                raise _Refused(rules.NO_VERSION)
            self.at += 1
        if not self.line_ends():
            raise _Refused(rules.REQUEST_LINE)
        self.at += 2
        return int(self.text[start + 5 : start + 6]), min(int(self.text[start + 7 : start + 8]), 1)

    def field(self) -> tuple[bytes, bytes]:
        name = self.run_of(rules.TOKEN).lower()
        if self.text[self.at : self.at + 1] in (b" ", b"\t"):
            raise _Refused(rules.NAME_SPACE if name else rules.FOLDED)
        if not name or self.text[self.at : self.at + 1] != b":":
            ends = self.line_ends()
            raise _Refused(rules.LINE_WITHOUT_COLON if ends else rules.BAD_NAME)
        self.at += 1
        value = self.run_of(rules.TEXT).strip(_OWS)
        self.line_ends()
        self.at += 2
        if read := _READ.get(name):
            read(self, value)
        return name, value

    def host(self, value: bytes) -> None:
        if b"host" in self.values:
            raise _Refused(rules.HOST_TWICE)
        if value and not _is_host(value):
            raise _Refused(rules.BAD_HOST)
        self.values[b"host"] = value

    def content_length(self, value: bytes) -> None:
        if b"content-length" in self.values:
            raise _Refused(rules.LENGTH_TWICE)
        if self.chunked:
            raise _Refused(rules.LENGTH_AND_CODING)
        if not 1 <= len(value) <= rules.MAX_LENGTH_DIGITS or value.strip(_DIGITS):
            raise _Refused(rules.BAD_LENGTH)
        self.values[b"content-length"] = value

    def transfer_encoding(self, value: bytes) -> None:
        if self.minor == 0:
            raise _Refused(rules.OLD_CODING)
        if self.chunked:
            raise _Refused(rules.CODING_TWICE)
        if b"content-length" in self.values:
            raise _Refused(rules.LENGTH_AND_CODING)
        *others, last = _split(value, b",")
        chunked = [coding.lower() for coding in (*others, last)].count(b"chunked")
        if chunked != 1 or last.lower() != b"chunked" or not all(map(_CODING.fullmatch, others)):
            raise _Refused(rules.BAD_CODING)
        if others:
            raise _Refused(rules.OTHER_CODING)
        self.chunked = True

    def connection(self, value: bytes) -> None:
        self.options += _words(value)

    def expect(self, value: bytes) -> None:
        self.expected += _words(value)

    def upgrade(self, value: bytes) -> None:
        self.protocols += _words(value) if value else []


_READ: Final[dict[bytes, Callable[[_Reader, bytes], None]]] = {
    b"host": _Reader.host,
    b"content-length": _Reader.content_length,
    b"transfer-encoding": _Reader.transfer_encoding,
    b"connection": _Reader.connection,
    b"expect": _Reader.expect,
    b"upgrade": _Reader.upgrade,
}


def _words(value: bytes) -> list[bytes]:
    """The elements of a list in which nothing is quoted."""
    return [word.strip(_OWS).lower() for word in value.split(b",")]


def _is_host(text: bytes, port: bool = False) -> bool:
    """Whether this is ``host [":" port]`` (RFC 9110, 7.2); port: with a port that has a digit."""
    found = _HOST.fullmatch(text)
    if not found:
        return False
    if found[1] is not None and not _is_ipv6(found[1]):
        return False
    digits = (found[2] or b"").lstrip(b"0")
    if port and not found[2]:
        return False
    return len(digits) <= 5 and int(digits or b"0") <= rules.MAX_PORT


def _is_ipv6(text: bytes) -> bool:
    try:
        ipaddress.IPv6Address(text.decode("ascii"))
    except ValueError:
        return False
    return True


def _is_target(method: bytes, target: bytes) -> bool:
    """Whether the target has a form that this method may have (RFC 9112, section 3.2)."""
    if method == b"CONNECT":
        return _is_host(target, port=True)
    if target == b"*":
        return method == b"OPTIONS"
    absolute = _ABSOLUTE.match(target)
    return target.startswith(b"/") or (absolute is not None and _is_host(absolute[1]))


def end_of_head(data: bytes | bytearray, start: int, seen: int) -> int:
    """Whether ``parse`` has something to decide in what has arrived since it returned 0.

    Looks only at what is new, so that a head that comes byte by byte is read in linear time.

    Args:
        data: what has arrived.
        start: where the request begins, as for ``parse``.
        seen: up to where an earlier call of this or of ``parse`` looked; ``start`` at first.

    Returns:
        The index behind the first LF in ``data[max(start, seen):]`` that no CR stands before, or
        that ends an empty line behind one that is not empty: ``Head.end``, if it is a head. 0:
        there is none, and ``parse`` would find at most that the limit has been reached, or a byte
        that no head may have, which it will find later as well.

    Raises:
        TypeError: ``data`` is neither bytes nor a bytearray.
        ValueError: ``start`` or ``seen`` is negative or exceeds ``data``.
    """
    _check_data(data)
    _check_within("start", start, 0, len(data))
    _check_within("seen", seen, 0, len(data))
    at = max(start, seen)
    while at := data.find(b"\n", at) + 1:
        before = data[max(start, at - 5) : at - 1]
        if not before.endswith(b"\r"):
            return at
        if len(before) == 4 and before.endswith(b"\r\n\r") and before[0] != 0x0A:
            return at
    return 0


# --- chunked bodies ------------------------------------------------------------------------------


class ChunkError(ValueError):
    """A chunked body is malformed. Its text is for people."""


class Chunks:
    """The chunked body of one request (RFC 9112, section 7.1), as it arrives.

    Strict: CRLF alone ends a line, a size is 1 to 16 hexadecimal digits below 2**62, extensions and
    trailers have to be in order, and are dropped. A line with a size may have 4096 bytes, all
    trailers 16384, and all extensions 16384 more than there has been payload. Every byte is
    looked at once, however they are cut.

    Attributes:
        over: whether the end of the body has been read.
    """

    def __init__(self) -> None:
        self._at = rules.AT_CHUNK
        self._digits = 0  # of the size that is being read
        self._line = 0  # bytes of the line with it
        self._trailers = 0  # bytes of all trailers
        self._left = 0  # payload of the chunk that is to come
        self._spare = rules.MAX_EXTENSIONS  # bytes that extensions may still have

    @property
    def over(self) -> bool:
        return self._at == rules.AT_END

    def feed(self, data: bytes | bytearray, start: int, end: int) -> tuple[int, bytes]:
        """Read ``data[start:end]``, or as much of it as belongs to the body.

        Returns:
            Up to where it has been read, as an index of ``data``, and the payload in it.

        Raises:
            ChunkError: the body is malformed; nothing can be read from it any more.
            TypeError: ``data`` is neither bytes nor a bytearray.
            ValueError: ``start`` and ``end`` do not lie within ``data``, in this order.
        """
        _check_data(data)
        _check_within("end", end, 0, len(data))
        _check_within("start", start, 0, end)
        at, pieces = start, []
        while at < end and self._at != rules.AT_END:
            if self._at == rules.AT_DATA:
                pieces.append(bytes(data[at : min(end, at + self._left)]))
                self._take(len(pieces[-1]))
                at += len(pieces[-1])
            else:
                self._step(data[at])
                at += 1
        return at, b"".join(pieces)

    def _take(self, count: int) -> None:
        self._left -= count
        self._spare += count
        if not self._left:
            self._at = rules.AT_DATA_END

    def _step(self, byte: int) -> None:
        """Go on by a byte that is no payload."""
        before, self._at = self._at, rules.CHUNK_STEPS[256 * self._at + byte]
        if self._at == rules.AT_ERROR:
            self._refuse(rules.CHUNK_ERRORS[before])
        elif self._at == rules.AT_SIZE:
            self._size(bytes([byte]), first=before == rules.AT_CHUNK)
        elif rules.AT_SPACE <= self._at <= rules.AT_QUOTED_END:
            self._line += 1
            self._spare -= 1
            if self._line > rules.MAX_CHUNK_LINE or self._spare < 0:
                self._refuse(rules.LONG_EXTENSIONS)
        elif self._at == rules.AT_DATA and not self._left:
            self._at = rules.AT_TRAILER
        elif before >= rules.AT_TRAILER:
            self._trailers += 1
            if self._trailers > rules.MAX_TRAILERS:
                self._refuse(rules.LONG_TRAILERS)

    def _size(self, digit: bytes, first: bool) -> None:
        if first:
            self._digits = self._line = self._left = 0
        self._digits += 1
        self._line += 1
        self._left = self._left << 4 | int(digit, 16)
        if self._digits > rules.MAX_SIZE_DIGITS or self._left >= rules.MAX_CHUNK:
            self._refuse(rules.LONG_SIZE)

    def _refuse(self, why: str) -> None:
        self._at = rules.AT_ERROR
        raise ChunkError(why)


def _check_data(data: object) -> None:
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data must be bytes or bytearray, not {type(data).__name__}")


def _check_within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, not {value}")
