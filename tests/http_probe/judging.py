"""What came back for a case, and what that is worth.

A verdict is PASS, WARN (allowed, but there is something stricter) or FAIL. Whoever counts counts a
WARN as held.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3})")

OK = range(200, 300)
ANY = range(100, 600)


class Verdict(enum.Enum):
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


PASS, WARN, FAIL = Verdict


@dataclass(frozen=True)
class Reply:
    """All bytes that came after one step, and whether the server had closed by then."""

    data: bytes
    closed: bool

    @cached_property
    def status(self) -> int | None:
        """Of the first response; None when nothing came, or nothing that is one."""
        found = _STATUS.match(self.data)
        return int(found[1]) if found else None

    @property
    def ok(self) -> bool:
        return self.status in OK

    @property
    def responses(self) -> int:
        """How many status lines there are, wherever they stand."""
        return len(_STATUS.findall(self.data))

    @cached_property
    def headers(self) -> dict[str, str]:
        """Of the first response, by lower-case name."""
        found: dict[str, str] = {}
        for line in self.data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
            name, _, value = line.decode("latin-1").partition(":")
            found.setdefault(name.strip().lower(), value.strip())
        return found

    @cached_property
    def body(self) -> bytes:
        """What follows the first head, without its chunks' framing if that is sound."""
        raw = self.data.partition(b"\r\n\r\n")[2]
        if "chunked" not in self.headers.get("transfer-encoding", "").lower():
            return raw
        decoded, rest = b"", raw
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            try:
                length = int(size.partition(b";")[0], 16)
            except ValueError:
                return raw
            decoded, rest = decoded + rest[:length], rest[length + 2 :] if length else b""
        return decoded


class Judge(Protocol):
    def __call__(self, replies: Sequence[Reply]) -> Verdict: ...

    @property
    def says(self) -> str:
        """What is expected, in words."""


@dataclass(frozen=True)
class Expect:
    """What the only step may lead to.

    Attributes:
        says: in words.
        passes, warns: statuses; any other fails.
        closed: what it is worth to close without a response.
        silent: what it is worth to say nothing, and not to close, while the client waits.
        special: judges a response before its status does; None leaves it to the status.
    """

    says: str
    passes: Container[int] = ()
    warns: Container[int] = ()
    closed: Verdict = FAIL
    silent: Verdict = FAIL
    special: Callable[[Reply], Verdict | None] | None = None

    def __call__(self, replies: Sequence[Reply]) -> Verdict:
        reply = replies[0]
        if reply.status is None:
            return self.closed if reply.closed else self.silent
        verdict = self.special(reply) if self.special else None
        if verdict is not None:
            return verdict
        if reply.status in self.passes:
            return PASS
        return WARN if reply.status in self.warns else FAIL


@dataclass(frozen=True)
class Sequel:
    """What a first request may lead to for which more is sent if its connection stays open.

    Attributes:
        says: in words.
        refusals: statuses with which refusing the first request passes.
        after: judges what came for the second step, after a first answer of 2xx.
        other: what any other first answer is worth.
    """

    says: str
    after: Callable[[Reply], Verdict]
    refusals: Container[int] = frozenset({400})
    other: Verdict = FAIL

    def __call__(self, replies: Sequence[Reply]) -> Verdict:
        first = replies[0]
        if first.status in self.refusals or first.closed:
            return PASS
        if not first.ok:
            return self.other
        return self.after(replies[1])


@dataclass(frozen=True)
class Conditional:
    """What a GET and then a conditional GET may lead to; ``after`` judges the second answer.

    Attributes:
        needs: a header of the first response without which there is nothing to judge (WARN).
    """

    says: str
    after: Callable[[Reply], Verdict]
    needs: str = ""

    def __call__(self, replies: Sequence[Reply]) -> Verdict:
        if not replies[0].ok:
            return FAIL
        if self.needs and self.needs not in replies[0].headers:
            return WARN
        if len(replies) < 2 or replies[1].status is None:
            return WARN
        return self.after(replies[1])


@dataclass(frozen=True)
class Hidden:
    """A request hidden in the body of another must not be answered as one of its own."""

    says: str = "400 or close, and never a second response"

    def __call__(self, replies: Sequence[Reply]) -> Verdict:
        reply = replies[0]
        refused = reply.status == 400 or reply.closed
        return PASS if refused and reply.responses < 2 else FAIL


# -- expectations that many cases share ----------------------------------------------------------

ONLY_400 = Expect("400", {400})
REFUSED = Expect("400, close, or nothing", {400}, closed=PASS, silent=PASS)
UNCOMMON = Expect("400 or close; 2xx is allowed", {400}, OK, closed=PASS)
UNFINISHED = Expect("wait for the rest, 400, or close", {400}, closed=PASS, silent=PASS)
ACCEPTED = Expect("2xx", OK)
ACCEPTED_OR_CLOSED = Expect("2xx", OK, closed=PASS, silent=PASS)
NOT_SWITCHED = Expect("anything but 101", set(ANY) - {101}, closed=PASS)


def refused_with(*statuses: int) -> Expect:
    """One of these or a close; silence fails."""
    return Expect("/".join(map(str, statuses)) + " or close", set(statuses), closed=PASS)


def echoes(body: bytes) -> Expect:
    """2xx with this body, or with what a server says that cannot echo."""

    def judge(reply: Reply) -> Verdict:
        said = reply.body.rstrip(b"\r\n")
        return PASS if reply.ok and said in (body, b"OK") else FAIL

    return Expect(f"2xx with {body!r}", special=judge)


def with_header(name: str, otherwise: Verdict) -> Expect:
    """2xx with this header."""

    def judge(reply: Reply) -> Verdict:
        if not reply.ok:
            return FAIL
        return PASS if name.lower() in reply.headers else otherwise

    return Expect(f"2xx with {name}", special=judge)


def if_ok(says: str, judge: Callable[[Reply], Verdict], **others: object) -> Expect:
    """An answer of 2xx is judged by this function; ``others`` as for ``Expect``."""
    return Expect(says, special=lambda r: judge(r) if r.ok else None, **others)  # type: ignore[arg-type]


def closes(otherwise: Verdict, closed: Verdict = PASS) -> Callable[[Reply], Verdict]:
    """Whether the server has closed behind its answer."""
    return lambda reply: closed if reply.closed else otherwise


def contains(*parts: bytes, otherwise: Verdict = FAIL) -> Callable[[Reply], Verdict]:
    """Whether all of these are in the body."""
    return lambda reply: PASS if all(part in reply.body for part in parts) else otherwise


def lacks(*parts: bytes, otherwise: Verdict = FAIL) -> Callable[[Reply], Verdict]:
    """Whether none of these is in the body."""
    return lambda reply: otherwise if any(part in reply.body for part in parts) else PASS


def by_status(
    passes: Container[int], warns: Container[int], other: Verdict = FAIL
) -> Callable[..., Verdict]:
    """What a later answer is worth by its status alone."""
    return lambda reply: (
        PASS if reply.status in passes else WARN if reply.status in warns else other
    )


def not_taken_for(name: str, sent: str, value: str) -> Expect:
    """A field name that only resembles ``name`` is refused or dropped (PASS), or reaches the app
    as it was sent (WARN), but not as ``name``; the body lists the fields that the app has got."""

    def judge(reply: Reply) -> Verdict:
        assert reply.status is not None
        if not reply.ok:
            return PASS if reply.status >= 400 else FAIL
        got = set()
        for line in reply.body.decode("latin-1").splitlines():
            field, _, content = line.partition(":")
            if content.strip().lower() == value.lower():
                got.add(field.lower() if name.lower() != sent.lower() else field)
        if name.lower() == sent.lower():
            return WARN if sent in got else FAIL if got else PASS
        if name.lower() in got:
            return FAIL
        return WARN if sent.lower() in got else PASS

    return Expect(f"refused, or not taken for {name}", closed=PASS, special=judge)
