"""Replacing processes by newer ones, one slot after another. No I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

from . import records
from .agenda import Agenda, Rules, Stage, Tell
from .ends import Ends
from .roster import Place, Process, Roster, Slot, Step, Worker

BACKOFF_FIRST = 0.1
BACKOFF_LAST = 10.0

_PACKED = ("wanted", "_given_up", "_cursor", "_replacing")


class Rounds:
    """The reloads, and whose turn it is.

    Args:
        rules: the limits.
        agenda: where to put what is to be done.
        roster: who there is.
        ends: how those end that were replaced.

    Attributes:
        wanted: the generation that a reload asks for.
    """

    def __init__(self, rules: Rules, agenda: Agenda, roster: Roster, ends: Ends) -> None:
        self.rules = rules
        self.agenda = agenda
        self.roster = roster
        self.ends = ends
        self._slots, self._workers = roster.slots, roster.workers
        self.wanted = 0
        self._given_up = 0  # the latest generation that is not waited for any more
        self._cursor = 0  # the slot that the search for the next one to replace begins with
        self._replacing: int | None = None

    def pack(self) -> dict[str, Any]:
        """What ``restore`` needs."""
        return records.fields(self, _PACKED)

    def restore(self, packed: Mapping[str, Any]) -> None:
        """They go on where they were.

        Raises:
            StickyError: something was packed that has no place here.
        """
        records.put_back(self, packed, _PACKED)

    @property
    def reloading(self) -> bool:
        """Whether slots wait to be replaced, or one is."""
        return self._replacing is not None or self._due() is not None

    def reload(self, now: float) -> bool:
        """Replace every process by one with newer code; whether that is done now or soon."""
        if self.agenda.stage is not Stage.SERVING:
            return False
        self.wanted += 1
        if not self.roster.announced:  # those that could not start wait for nothing else
            alone = self.rules.first_alone and self.roster.current(0) is None
            for slot in self._slots[: 1 if alone else self.roster.target]:
                if slot.state is Slot.BACKOFF:
                    slot.start_at = self.agenda.remind(now)
        self.go_on(now)
        return True

    def replace(self, number: int, now: float) -> None:
        """Replace the process of this slot, in its turn."""
        worker = self._workers.get(self._slots[number].current)
        if worker is not None:
            worker.outdated = True
        self.go_on(now)

    def worn(self, process: Hashable, now: float) -> bool:
        """The process has served, or holds, as much as it may; whether that was not known yet."""
        worker = self._workers.get(process)
        if worker is None or worker.outdated:
            return False
        worker.outdated = True
        self.go_on(now)
        return True

    def go_on(self, now: float) -> None:
        """Start the successors that are due: of those that leave at once, of the others one."""
        if self.agenda.stage is not Stage.SERVING or not self.roster.announced:
            return
        for number, slot in enumerate(self._slots):
            worker = self._workers.get(slot.current)
            if worker is not None and worker.leaving and self._may_start(slot, worker, now):
                self.roster.spawn(number)
        if self._replacing is not None:
            slot = self._slots[self._replacing]
            if slot.spawning or slot.successor is not None:
                return
            self._replacing = None
        due = self._due(now)
        if due is not None:
            self._replacing = due
            self._cursor = due + 1
            self.roster.spawn(due)

    def _due(self, now: float = math.inf) -> int | None:
        """The next slot whose process is to be replaced."""
        count = len(self._slots)
        for step in range(count):
            number = (self._cursor + step) % count
            slot = self._slots[number]
            worker = self._workers.get(slot.current)
            if worker is None or not self._may_start(slot, worker, now):
                continue
            newer = self.wanted > self._given_up and worker.generation < self.wanted
            if newer or worker.outdated:
                return number
        return None

    def _may_start(self, slot: Place, worker: Worker, now: float) -> bool:
        return (
            worker.state is Process.READY
            and not worker.doomed
            and not slot.spawning
            and slot.successor is None
            and slot.wait_until <= now
        )

    def failed(self, slot: Place, generation: int, now: float) -> None:
        """A successor has not become ready: the oldest reload that its slot waits for comes to an
        end, and those that were asked for later go on."""
        asked = max(self._given_up, self._workers[slot.current].generation) + 1
        if asked <= generation:
            self._given_up = asked
        slot.backoff = min(slot.backoff * 2 or BACKOFF_FIRST, BACKOFF_LAST)
        slot.wait_until = self.agenda.remind(now + slot.backoff)

    def succeed(self, slot: Place, number: int, now: float) -> None:
        """The successor is ready: it takes the slot, the old process drains."""
        old, slot.current, slot.successor = slot.current, slot.successor, None
        for earlier, worker in self._workers.items():
            if worker.state is Process.DRAINING and worker.slot == number:
                self.ends.say(earlier, Tell.END)  # once more: it is not asked from now on
                if worker.step is Step.QUIT:
                    at = self.agenda.remind(now + self.rules.graceful_timeout)
                    worker.then(Step.QUIT, min(worker.at, at))
        worker = self._workers[old]
        slot.backoff = 0.0
        slot.previous = old
        self.ends.end(old)
        by = now + self.rules.session_timeout + self.rules.graceful_timeout
        by = min(by, worker.at) if worker.leaving else by
        if not worker.doomed:
            worker.then(Step.QUIT, self.agenda.remind(by))

    def stop(self) -> None:
        """Nobody is replaced any more."""
        self._replacing = None
