"""The master's decisions, joined: connections (``waiting``), processes (``lives``), and the stages
of a stop, in which both have their part. No I/O, no clock: what happens to bytes, sockets, signals
and messages is the shell's business (master.py, dispatcher.py, children.py).

A stop goes through three stages. LISTENING ends when the listeners are accepted to the last
connection and closed; PLACING when nothing waits here or in an inbox; ENDING when every process has
ended. No worker is told to end before all stages before are over, because a worker cannot serve
what has not reached it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from ..topology import Topology
from .agenda import LONGEST_STEP, RETRY, Agenda, CloseListeners, Connection, Exit, Rules, Stage
from .lives import Lives
from .waiting import Waiting


class Ledger:
    """Which connection is where, who may have it, what a deadline or a death changes.

    Args:
        rules: the limits.
        topology: how many slots there are.
        counters: where to count.

    Attributes:
        agenda, waiting, lives: its parts.
        status: what the master is to exit with.
    """

    def __init__(
        self, rules: Rules, topology: Topology, counters: MutableMapping[str, int] | None = None
    ) -> None:
        self.rules = rules
        self.status = 0
        counters = Counter() if counters is None else counters
        self.agenda = agenda = Agenda()
        self.waiting = waiting = Waiting(rules, agenda, counters)
        self.lives = Lives(
            rules,
            agenda,
            topology,
            counters,
            opens=waiting.open,
            shuts=lambda slot, retired: waiting.shut(slot, retired=retired),
            fails=self.fail,
        )
        self._now = 0.0
        self._stop_by = math.inf
        self._over = False

    @property
    def stage(self) -> Stage:
        """How far a stop has come."""
        return self.agenda.stage

    # -- events -------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start a process for every slot."""
        self._now = now
        self.lives.start(now)

    def pack(self) -> tuple[dict[str, Any], list[Connection]]:
        """What ``restore`` needs, and the connections in their order. Only while nothing is
        decided and not yet done, and no stop is under way."""
        assert self.agenda.stage is Stage.SERVING
        assert not self.agenda.actions
        waiting, connections = self.waiting.pack()
        return {"now": self._now, "waiting": waiting, "lives": self.lives.pack()}, connections

    def restore(self, packed: Mapping[str, Any], connections: Iterable[Connection]) -> None:
        """Instead of ``start``: everything goes on where it was.

        Raises:
            ValueError, StickyError: that is not possible.
        """
        self._now = packed["now"]
        self.waiting.restore(packed["waiting"], connections)
        self.lives.restore(packed["lives"])
        self.agenda.due = 0.0  # every deadline is looked at again

    def ended(
        self,
        process: object,
        now: float,
        status: int = 3,
        *,
        again: bool = False,
        said_why: bool = False,
    ) -> bool:
        """A process has ended; see ``Lives.ended``."""
        again = self.lives.ended(process, now, status, again=again, said_why=said_why)
        self.waiting.ended(process)
        self._see_the_end()
        return again

    def scale(self, num: int, now: float) -> bool:
        """Have so many slots; see ``Lives.scale``."""
        self.waiting.grow(num)
        return self.lives.scale(num, now)

    # -- stopping -----------------------------------------------------------------------------

    def stop(self, now: float, *, quick: bool = False) -> None:
        """Stop everything: gracefully (requests in hand are finished), or at once.

        A quick stop overtakes a graceful one; anything else is already under way.
        """
        agenda = self.agenda
        if agenda.stage is Stage.OVER or (agenda.stage is not Stage.SERVING and not quick):
            return
        if agenda.stage is Stage.SERVING:
            agenda.add(CloseListeners(drain=not quick))
            self.lives.stop(quick=quick)
        self.waiting.hurry(now)
        if quick:
            self._give_up(now)
            return
        agenda.stage = Stage.LISTENING  # SERVING -> LISTENING
        self._stop_by = now + self.rules.graceful_timeout
        agenda.due = now  # every deadline is looked at again

    def fail(self, now: float, status: int) -> None:
        """Something that the server cannot do without is missing: stop, with this status."""
        self.status = status
        self.stop(now, quick=True)

    def listeners_closed(self) -> None:
        """Nothing new can arrive."""
        if self.agenda.stage is Stage.LISTENING:
            self.agenda.stage = Stage.PLACING  # LISTENING -> PLACING
            self.agenda.due = self._now

    def inboxes(self, filled: set[int]) -> None:
        """While PLACING: these slots have connections in an inbox that is read, the others none."""
        waiting = self.waiting
        if self.agenda.stage is not Stage.PLACING:
            return
        self.lives.needs(filled, {line.slot for line in waiting.lines if line.queue}, self._now)
        if not filled and not waiting.heads and not waiting.queued:
            self.agenda.stage = Stage.ENDING  # PLACING -> ENDING
            self.lives.end_all(self._now)
            self._see_the_end()

    def _give_up(self, now: float) -> None:
        """There is no more time."""
        self._stop_by = math.inf
        self.waiting.refuse_all(now)
        self.agenda.stage = Stage.ENDING  # any -> ENDING
        self.lives.end_all(now, quick=True)
        self._see_the_end()

    def _see_the_end(self) -> None:
        if self.agenda.stage is Stage.OVER and not self._over:
            self._over = True
            self.agenda.add(Exit(self.status))

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whatever is due by now."""
        self._now = now
        self.waiting.tick(now)
        if now >= self._stop_by:
            self._give_up(now)
        self.lives.tick(now)
        self._see_the_end()  # where the last one could not even be started
        due = min(now + LONGEST_STEP, self.waiting.next_due(), self.lives.next_due())
        if self.agenda.stage is Stage.PLACING:
            due = min(due, now + RETRY)  # nothing announces that an inbox has become empty
        self.agenda.due = min(due, self._stop_by)
