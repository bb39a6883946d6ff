"""How a process is ended: told to END, then to QUIT, made to show where it hangs, killed; each step
in its time. No I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from .agenda import Abort, Agenda, Kill, Say, Serves, Tell, Why
from .roster import Process, Roster, Slot, Step, Worker

QUIT_GRACE = 2.5
"""Seconds for a process that was told QUIT: it cancels what it has in hand, and the app's own end
has its turn."""
ABORT_GRACE = 1.0
"""Seconds for a process to write down where it hangs."""


class Ends:
    """What comes next for those that are to end.

    Args:
        agenda: where to put what is to be done.
        roster: who there is.
        shuts: called with a slot that none reads the inbox of any more, and whether there are
            fewer slots now.
    """

    def __init__(
        self, agenda: Agenda, roster: Roster, shuts: Callable[[int, bool], object]
    ) -> None:
        self.agenda = agenda
        self.roster = roster
        self.shuts = shuts
        self._slots, self._workers = roster.slots, roster.workers

    def end(self, process: Hashable | None) -> None:
        """It is not needed any more, and finishes what it has."""
        worker = self._workers[process]
        if worker.state is Process.READY:
            worker.becomes(Process.DRAINING)  # READY -> DRAINING
            self.say(process, Tell.END)

    def quit(self, process: Hashable, now: float) -> None:
        """There is no more time."""
        worker = self._workers[process]
        if worker.step in (Step.NONE, Step.END, Step.QUIT) and not worker.doomed:
            self.say(process, Tell.QUIT)
            worker.then(Step.ABORT, self.agenda.remind(now + QUIT_GRACE))

    def abort(self, process: Hashable, why: Why, now: float) -> None:
        """Kill it, but have it show first where it hangs."""
        worker = self._workers[process]
        self._doom(process, why)
        self.agenda.add(Abort(process, why))
        worker.then(Step.KILL, self.agenda.remind(now + ABORT_GRACE))

    def kill(self, process: Hashable | None, why: Why) -> None:
        """Kill it: it has nothing in hand."""
        worker = self._workers[process]
        if not worker.doomed:
            self._doom(process, why)
            worker.then(Step.NONE, math.inf)
            self.agenda.add(Kill(process, why))

    def _doom(self, process: Hashable | None, why: Why) -> None:
        worker = self._workers[process]
        worker.doomed = True
        worker.why = why
        slot = self._slots[worker.slot]
        if slot.current == process:
            if worker.state is Process.READY:
                self.shut(worker.slot)
            self.agenda.add(Serves(worker.slot))
        elif slot.previous == process:
            self.agenda.add(Serves(worker.slot))

    def say(self, process: Hashable | None, what: Tell) -> None:
        """Tell it something."""
        self.agenda.add(Say(process, what))

    def shut(self, number: int) -> None:
        """No process reads the slot's inbox any more."""
        self.shuts(number, False)

    def next_step(self, process: Hashable, worker: Worker, now: float) -> None:
        """One that is to end has not, in its time."""
        if worker.step is Step.END:  # it wanted to be replaced, and nobody has become ready
            slot = self._slots[worker.slot]
            slot.previous, slot.current, slot.successor = process, slot.successor, None
            self.shut(worker.slot)
            self.end(process)
            self.agenda.add(Serves(worker.slot))
            if slot.current is None and not slot.spawning:
                slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
                slot.start_at = self.agenda.remind(max(now, slot.wait_until))
            self.quit(process, now)
        elif worker.step is Step.QUIT:
            self.quit(process, now)
        elif worker.step is Step.ABORT:
            self.abort(process, Why.NOT_ENDED, now)
        elif worker.step is Step.KILL:
            worker.then(Step.NONE, math.inf)
            self.agenda.add(Kill(process, worker.why))
