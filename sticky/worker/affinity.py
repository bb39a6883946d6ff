"""Ids that this server makes itself, so that an app needs none: marks and affixes.

A mark is a cookie of ours (``session="affinity"``): a minted id and its tag. The worker sets it on
an answer to a client that has none, where no cache can give it to another client, and takes it out
of what the app is given. An affix (``affix=True``) is the same before an id of the app's, with a
dot between them: put there on the way out and taken away on the way in.

Whose requests have an id is held while they are in hand and for a while behind the last
(``held``), so that a process that is replaced keeps its clients.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from typing import Any

from ..core import Head, Router
from ..firsts import FirstRequests
from ..options import Options
from ..rules import AFFIX, IN_COOKIE, IN_HEADER, MARK, PLAIN, Source
from .held import Held

log = logging.getLogger("sticky.worker")

Field = tuple[Any, Any]
"""A name and a value, both as bytes or both as text."""

_SET_COOKIE = "set-cookie"
_CACHED = ("expires", "etag", "last-modified")
_PRIVATE = ("private", "no-store", "no-cache")
_COOKIE = re.compile(rb"([ \t]*([^=;\s]+)[ \t]*=[ \t]*\"?)([^\";\s][^;]*)(;.*)?", re.DOTALL)


class Marking:
    """What one request has to do with ids of ours.

    Attributes:
        ids: for each source the tagged id that the request has there, or b"".
    """

    __slots__ = ("_affinity", "_given", "_held", "_who", "ids")

    def __init__(
        self, affinity: Affinity, ids: tuple[bytes, ...], held: bytes, who: int | None
    ) -> None:
        self._affinity = affinity
        self._held = held
        self._given: list[bytes] | None = None
        self._who = who
        self.ids = ids

    def hold(self, id: bytes) -> None:
        """What was given to the client is held as well."""
        if self._given is None:
            self._given = []
        if id != self._held and id not in self._given:
            self._given.append(id)
            self._affinity.held.begin(id)

    def answer(self, status: int, fields: Iterable[Field]) -> Iterable[Field]:
        """The fields of the answer as they are sent, which the app does not see.

        Args:
            status: of the answer.
            fields: as the app has given them.
        """
        if self._who is None and not self._affinity.affixes:
            return fields
        return self._affinity.answer(self, self._who, status, fields)

    def end(self) -> None:
        """The request is over."""
        held, self._held = self._held, b""
        if held:
            self._affinity.held.end(held)
        if self._given:
            for id in self._given:
                self._affinity.held.end(id)
            self._given = None


class Affinity:
    """What is done with ids of ours in one process.

    Args:
        options: the settings.
        router: from an id to its slot.
        slot: this process's.
        firsts: what is agreed about clients that have no id yet.
        held: the ids of this process.
    """

    def __init__(
        self, options: Options, router: Router, slot: int, firsts: FirstRequests, held: Held
    ) -> None:
        self._router = router
        self._slot = slot
        self._firsts = firsts
        self.held = held
        self._sources: tuple[Source, ...] = options.sources
        self._all_tagged = all(source.kind != PLAIN for source in self._sources)
        self._alone = len(self._sources) == 1
        kinds = [source.kind for source in self._sources]
        self._marks = kinds.index(MARK) if MARK in kinds else -1
        # By their names: which of the sources a field of an answer, or a cookie in it, belongs to.
        self._headers: dict[str, int] = {}
        self._cookies: dict[bytes, int] = {}
        for at, source in enumerate(self._sources):
            if source.kind == AFFIX and source.place == IN_HEADER:
                self._headers[source.name.decode("ascii")] = at
            elif source.kind == AFFIX and source.place == IN_COOKIE:
                self._cookies[source.name] = at
        self.affixes = bool(self._headers or self._cookies)
        self._name = options.affinity_cookie.encode("ascii")
        self._behind = b"; Path=/; HttpOnly; " + options.affinity_attributes.encode("ascii")
        self._complained = False

    def begin(self, head: Head, data: bytes | bytearray, peer: str) -> Marking:
        """A request is in hand: take what is ours out of its head.

        Args:
            head: its head.
            data: what has been read, from the beginning of that head on.
            peer: the address of the connection's other end.
        """
        ids = self._router.strip(head)
        if self._alone:
            decides = ids[0]
        elif self._all_tagged:
            decides = next(filter(None, ids), b"")
        else:  # an id that is not ours may come before
            at, _ = self._router.find(data, head.end)
            decides = ids[at] if at >= 0 else b""
        if decides:
            self.held.begin(decides)
        who = None
        if self._marks >= 0 and not ids[self._marks]:
            who = self._firsts.who(data, head.end, peer)
        return Marking(self, ids, decides, who)

    def answer(
        self, marking: Marking, who: int | None, status: int, fields: Iterable[Field]
    ) -> Iterable[Field]:
        """See ``Marking.answer``.

        Args:
            marking: of the request.
            who: who it is that has no mark yet; None: it has one, or needs none.
            status, fields: the answer.
        """
        sent: list[Field] = []
        control: list[str] = []
        cached = named = False
        for name, value in fields:
            low = (name if isinstance(name, str) else bytes(name).decode("latin-1")).lower()
            if low in self._headers:
                value = self._affix(marking, self._headers[low], value)
            elif low == _SET_COOKIE:
                raw = value.encode("latin-1", "replace") if isinstance(value, str) else value
                found = _COOKIE.match(raw)
                named = named or raw.partition(b"=")[0].strip() == self._name
                if found is not None and found[2] in self._cookies and _is_http_only(raw):
                    at = self._cookies[found[2]]
                    value = found[1] + self._affix(marking, at, found[3]) + (found[4] or b"")
            elif low == "cache-control":
                control.append(value if isinstance(value, str) else value.decode("latin-1"))
            elif low in _CACHED:
                cached = True
            sent.append((name, value))
        if who is None or not (status >= 200 or status == 101) or status == 304:
            return sent
        if named:
            self._complain()
            return sent
        if control:
            words = [word.strip().lower() for text in control for word in text.split(",")]
            if status != 101 and not any(word in words for word in _PRIVATE):
                return sent
        elif cached and status != 101:
            return sent
        self._mark(marking, who, sent, private=not control and status != 101)
        return sent

    def _mark(self, marking: Marking, who: int, sent: list[Field], *, private: bool) -> None:
        id = self._firsts.id_for(who, self._slot)
        if not id:
            return
        marking.hold(id)
        cookie = self._name + b"=" + id + self._router.tag(id) + self._behind
        if private:  # RFC 9111, 5.2.2.7
            sent.append((b"Cache-Control", b"private"))
        sent.append((b"Set-Cookie", cookie))

    def _affix(self, marking: Marking, at: int, value: Any) -> bytes:
        """An id of the app's with ours before it, that of the request if it had one."""
        raw: bytes = value.encode("latin-1") if isinstance(value, str) else bytes(value)
        theirs = raw.strip(b" \t")
        if not theirs or self._router.tagged_id(theirs, AFFIX):
            return raw
        id = marking.ids[at]
        if not id:
            if self._slot >= self._router.n:
                return raw
            id = self._router.mint(self._slot, os.urandom(15))
        marking.hold(id)
        return id + self._router.tag(id) + b"." + theirs

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            log.error(
                "the app sets a cookie named %r, which is the one that keeps clients with their "
                "worker: it is left as it is, and ours is not set (--affinity-cookie gives ours "
                "another name)",
                self._name.decode("ascii"),
            )


def _is_http_only(cookie: bytes) -> bool:
    """Whether scripts of the page cannot read it (RFC 6265, 4.1.2.6)."""
    return b"httponly" in [part.strip().lower() for part in cookie.split(b";")[1:]]
