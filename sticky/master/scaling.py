"""More slots, and fewer. No I/O, no clock."""

from __future__ import annotations

from .agenda import Agenda, Announce, Rescaled, Rules, Serves, Stage, Why
from .ends import Ends
from .roster import Place, Process, Roster, Slot, Step
from .rounds import Rounds


class Scaling:
    """How many slots there are, and will be.

    Args:
        rules: the limits.
        agenda: where to put what is to be done.
        roster: who there is.
        ends: how those end whose slot is none any more.
        rounds: whose turn it is to be replaced.
    """

    def __init__(
        self, rules: Rules, agenda: Agenda, roster: Roster, ends: Ends, rounds: Rounds
    ) -> None:
        self.rules = rules
        self.agenda = agenda
        self.roster = roster
        self.topology = roster.topology
        self.ends = ends
        self.rounds = rounds
        self._slots, self._workers = roster.slots, roster.workers

    def scale(self, num: int, now: float) -> bool:
        """Have so many slots; whether that is another number than there will be anyway."""
        if (
            self.agenda.stage is not Stage.SERVING
            or not self.roster.announced
            or num == self.roster.target
        ):
            return False
        if num <= self.topology.num:
            fewer = num < self.topology.num
            self.roster.growing = None
            if fewer:
                self.topology.change(num)
                self._retire(num, now)
                self.agenda.add(Rescaled(num, True))
            else:
                self._retire(num, now)
            self.rounds.go_on(now)
            return True
        self.roster.growing = num
        self._retire(num, now)
        self._slots.extend(Place(None) for _ in range(len(self._slots), num))
        for slot in self._slots[self.topology.num : num]:
            if slot.current is None and slot.start_at is None and not slot.spawning:
                slot.start_at = self.agenda.remind(now)
        self.all_ready()
        self.rounds.go_on(now)
        return True

    def _retire(self, num: int, now: float) -> None:
        """The slots from this number on are none any more."""
        for number in range(num, len(self._slots)):
            slot = self._slots[number]
            slot.start_at = None
            for process in (slot.successor, slot.current):
                worker = self._workers.get(process)
                if worker is not None and worker.state is Process.STARTING:
                    self.ends.kill(process, Why.STOPPED)
            worker = self._workers.get(slot.current)
            if worker is not None and worker.state is Process.READY:
                slot.previous, slot.current, slot.successor = slot.current, slot.successor, None
                self.ends.shuts(number, True)
                self.ends.end(slot.previous)
                if not worker.doomed:
                    rules = self.rules
                    by = now + rules.session_timeout + rules.graceful_timeout
                    by = self.agenda.remind(by)
                    worker.then(Step.QUIT, min(by, worker.at) if worker.leaving else by)
                if slot.current is None and slot.state is Slot.UP and not slot.spawning:
                    slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
                self.agenda.add(Serves(number))
            else:
                self.ends.shuts(number, True)

    def all_ready(self) -> None:
        """See whether every worker is, for the first time or of those that are new."""
        if self.agenda.stage is not Stage.SERVING:
            return
        ready = all(self.roster.current(number) is not None for number in range(self.roster.target))
        if ready and not self.roster.announced:
            self.roster.announced = True
            self.agenda.add(Announce())
        elif ready and self.roster.growing is not None:
            num, self.roster.growing = self.roster.growing, None
            self.topology.change(num)
            self.agenda.add(Rescaled(num, True))

    def give_up(self, now: float) -> None:
        """The slots that there were to be cannot be had."""
        self.roster.growing = None
        self._retire(self.topology.num, now)
        self.agenda.add(Rescaled(self.topology.num, False))
