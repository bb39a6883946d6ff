"""Whose a request is: the look at each further request of a connection, and at new sessions.

The one place that says whether this process serves a request, or which other worker has it. Does no
I/O and reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from ..firsts import FirstRequests
from ..options import Options
from ..rules import ANYWHERE, PLAIN
from ..topology import Topology
from .sessions import Sessions

# What ``look`` says besides slots and verdicts: the connection is to go back to the master, who
ELSEWHERE = 1 << 16  # decides which worker is to have it,
UNHELD = 1 << 17  # or asks the process that had this slot before.


class Roster(Protocol):
    """What the board says about the slot and its processes."""

    id: int

    def has_others(self) -> bool:
        """Whether another process of this slot is there, or may be."""

    def is_replaced(self) -> bool:
        """Whether another process has the slot now."""

    def rivals(self) -> Iterable[int]:
        """What each of the other workers has to do: sessions, and what will be some."""


class Placing:
    """Decides for one worker process.

    Args:
        options: the settings.
        topology: from a head to a slot.
        roster: who else is there.
        sessions: those of this process, with the option ``session``.
        firsts: what is agreed about clients that have no id yet, if they are to be given one.

    Attributes:
        looking: whether further requests of a connection are looked at: behind a proxy they may be
            another client's, and with sessions those of another session.
        ending: this process was told to end.
        stopping: the whole server stops, and not this process alone.
    """

    def __init__(
        self,
        options: Options,
        topology: Topology,
        roster: Roster,
        sessions: Sessions | None,
        firsts: FirstRequests | None = None,
    ) -> None:
        self.slot = roster.id
        self.looking = bool(options.session) or (options.proxy and topology.num > 1)
        self.ending = False
        self.stopping = False
        self._topology = topology
        self._router = router = topology.router
        self._roster = roster
        self._sessions = sessions
        self._firsts = firsts
        self._tagged = [source.kind != PLAIN for source in options.sources]
        self._in_turn = options.balance == "round-robin"
        self.look: Callable[[bytes | bytearray, int, str], int] = router.route
        if sessions is not None:
            self.look = self._look

    def asks_first(self, unheld: bool) -> bool:
        """Whether already the first request of a connection is to be looked at: its session may be
        held by the process before this one.

        Args:
            unheld: that process was asked.
        """
        return not unheld and self._sessions is not None and self._others_may_hold

    @property
    def _others_may_hold(self) -> bool:
        """Whether a session that leads here may be held by another process, or one that leads
        elsewhere by this one."""
        return self.ending or self._roster.has_others() or bool(self._topology.epoch)

    def rescaled(self) -> None:
        """There are more slots now, or fewer: what came before the change may belong elsewhere."""
        self.looking = True

    def look_first(self, data: bytes | bytearray, length: int, peer: str) -> int:
        """As ``look``, for the first request of a connection, which the master has placed here:
        where it may be served anywhere it is not given back to be placed once more."""
        if self._sessions is None:
            return self._router.route(data, length, peer)
        return self._look(data, length, peer, placed=True)

    def _look(
        self, data: bytes | bytearray, length: int, peer: str, *, placed: bool = False
    ) -> int:
        """Whose request this is: as ``route`` says it, or ELSEWHERE, or UNHELD."""
        slot = self._router.route(data, length, peer)
        if slot == ANYWHERE:
            if self._leaves_to_successor:
                return ELSEWHERE
            return self.slot if placed else self._anywhere(data, length, peer)
        if slot < 0 or not self._others_may_hold:
            return slot
        assert self._sessions is not None
        at, session = self._router.find(data, length)
        if slot != self.slot:
            # It may have begun here before the number of slots has changed.
            if session and self._holds(at, session, sure=True):
                return self.slot
            return UNHELD if session and placed else slot
        if not session:
            return ELSEWHERE if self._leaves_to_successor else slot
        return slot if self._holds(at, session) else UNHELD

    def _holds(self, source: int, session: bytes, *, sure: bool = False) -> bool:
        """Whether this process holds a session.

        Args:
            source: where its id was found.
            session: the id.
            sure: and not only may hold it.
        """
        assert self._sessions is not None
        if self._tagged[source]:
            return self._sessions.held.holds(session)
        text = session.decode(errors="replace")
        return self._sessions.surely_holds(text) if sure else self._sessions.hold(text)

    def _anywhere(self, data: bytes | bytearray, length: int, peer: str) -> int:
        """Where a request goes that may go anywhere, on a connection that is here."""
        firsts = self._firsts
        if firsts is None:
            return self.slot if self._keeps() else ELSEWHERE
        who = firsts.who(data, length, peer)
        slot = firsts.agreed(who)
        if slot >= 0:
            return slot
        return firsts.agree(who, self.slot) if self._keeps() else ELSEWHERE

    @property
    def _leaves_to_successor(self) -> bool:
        """Whether a new session would begin in the wrong process: another has the slot, or this
        one ends and another will have it."""
        return not self.stopping and (self.ending or self._roster.is_replaced())

    @property
    def takes_new(self) -> bool:
        """Whether what comes through the slot's inbox is this process's: it may be of a session
        that the successor has begun."""
        return self._sessions is None or not self._roster.is_replaced()

    def _keeps(self) -> bool:
        """Whether this worker serves a request that may be served anywhere, instead of giving it
        to the master to place. A little more than others have is no reason to move it."""
        if self._in_turn:
            return False
        assert self._sessions is not None
        self._sessions.count_servers()
        ours = self._sessions.counted
        return all(ours <= theirs + 1 + ours // 50 for theirs in self._roster.rivals())

    def key_of(self, head: bytes, peer: str) -> bytes:
        """What this request is routed by, for people; b"" while that is not known."""
        return self._router.explain(head, len(head), peer)[1]

    def recount(self) -> None:
        """A connection has ended, and perhaps its session with it."""
        if self._sessions is not None:
            self._sessions.count_servers()
