"""Who there is: the slots, their processes, and the states of both. What changes them is decided in
``lives`` and its parts. No I/O, no clock."""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from ..topology import Topology
from . import records
from .agenda import Agenda, Spawn, Why


class Process(enum.Enum):
    """The life of a worker process."""

    STARTING = enum.auto()
    READY = enum.auto()
    DRAINING = enum.auto()
    GONE = enum.auto()


_LIVES = {
    Process.STARTING: {Process.READY, Process.GONE},
    Process.READY: {Process.DRAINING, Process.GONE},
    Process.DRAINING: {Process.GONE},
    Process.GONE: set[Process](),
}


class Slot(enum.Enum):
    """The state of a slot: it has a process, waits to start the next one, or never will again."""

    UP = enum.auto()
    BACKOFF = enum.auto()
    FATAL = enum.auto()


_SLOTS = {
    Slot.UP: {Slot.BACKOFF, Slot.FATAL},
    Slot.BACKOFF: {Slot.UP, Slot.FATAL},
    Slot.FATAL: set[Slot](),
}


class Step(enum.Enum):
    """What comes next for a process that is to end."""

    END = enum.auto()
    QUIT = enum.auto()
    ABORT = enum.auto()
    KILL = enum.auto()
    NONE = enum.auto()


class Worker:
    """What is known of one process."""

    __slots__ = (
        "at",
        "beaten",
        "beats",
        "corrected",
        "doomed",
        "generation",
        "leaving",
        "outdated",
        "ready_at",
        "slot",
        "started",
        "state",
        "step",
        "why",
    )

    def __init__(
        self, slot: int, ran: float, generation: int = 0, *, corrected: bool = False
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.corrected = corrected  # started because the one before had said what to change
        self.state = Process.STARTING
        self.ready_at = 0.0
        self.leaving = False  # it has asked to be replaced
        self.outdated = False  # it is to be replaced, whatever its code
        self.doomed = False  # it is killed
        self.step, self.at = Step.NONE, math.inf  # how it is ended, and when
        self.why = Why.NOT_ENDED
        # On the clock that runs only while we do:
        self.started = ran
        self.beaten = 0.0  # when another number of beats was seen than before
        self.beats = 0

    def becomes(self, state: Process) -> None:
        assert state in _LIVES[self.state], (self.state, state)
        self.state = state

    def then(self, step: Step, at: float) -> None:
        self.step, self.at = step, at


class Place:
    """What is known of one slot."""

    __slots__ = (
        "backoff",
        "corrects",
        "current",
        "previous",
        "spawning",
        "start_at",
        "state",
        "successor",
        "wait_until",
    )

    def __init__(self, start_at: float | None = 0.0) -> None:
        self.state = Slot.BACKOFF  # nothing runs yet
        self.current: Hashable | None = None
        self.previous: Hashable | None = None  # replaced, and still there
        self.successor: Hashable | None = None  # starting, to take the place of the current one
        self.spawning = False  # its start was asked for
        self.backoff = 0.0
        self.corrects = False  # the next process is started with what the last one has said
        self.start_at = start_at
        self.wait_until = 0.0  # before then no other successor is started

    def becomes(self, state: Slot) -> None:
        assert state in _SLOTS[self.state], (self.state, state)
        self.state = state


class Roster:
    """Who serves which slot, who is to, and who did before.

    Args:
        num: how many slots there are at first.
        agenda: where to put what is to be done.
        topology: how many slots there are.

    Attributes:
        slots: those that there are, those included that are coming or going.
        workers: the processes that have not ended.
        announced: every worker was ready.
        growing: the number of slots that there will be, if that is more than there are.
    """

    def __init__(self, num: int, agenda: Agenda, topology: Topology) -> None:
        self.agenda = agenda
        self.topology = topology
        self.slots = [Place() for _ in range(num)]
        self.workers: dict[Hashable, Worker] = {}
        self.announced = False
        self.growing: int | None = None

    def pack(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON can carry it (where it can carry the processes)."""
        return {
            **records.fields(self, ("announced", "growing")),
            "slots": [records.fields(slot, Place.__slots__) for slot in self.slots],
            "workers": [
                [process, records.fields(worker, Worker.__slots__)]
                for process, worker in self.workers.items()
            ],
        }

    def restore(self, packed: Mapping[str, Any]) -> None:
        """Everybody is there again.

        Raises:
            StickyError: something was packed that has no place here.
        """
        own = {name: value for name, value in packed.items() if name not in ("slots", "workers")}
        records.put_back(self, own, ("announced", "growing"))
        self.slots[:] = [Place() for _ in packed["slots"]]
        for slot, known in zip(self.slots, packed["slots"], strict=True):
            records.put_back(slot, known, Place.__slots__, state=Slot)
        self.workers.clear()
        for process, known in packed["workers"]:
            worker = self.workers[process] = Worker(known["slot"], 0.0)
            records.put_back(worker, known, Worker.__slots__, state=Process, step=Step, why=Why)

    def state_of(self, process: Hashable) -> Process:
        """The state of a process."""
        worker = self.workers.get(process)
        return worker.state if worker else Process.GONE

    def slot_of(self, process: Hashable) -> int:
        """The slot of a process that has not ended."""
        return self.workers[process].slot

    def slot_state(self, slot: int) -> Slot:
        """The state of a slot."""
        return self.slots[slot].state

    def backoff(self, slot: int) -> float:
        """Seconds between the last end of the slot's process and its next start."""
        return self.slots[slot].backoff

    def current(self, slot: int) -> Hashable | None:
        """Who serves the slot: the process that reads its inbox. None: nobody just now."""
        process = self.slots[slot].current if slot < len(self.slots) else None
        worker = self.workers.get(process)
        ready = worker is not None and worker.state is Process.READY and not worker.doomed
        return process if ready else None

    def previous(self, slot: int) -> Hashable | None:
        """Who served the slot before, and may still hold sessions."""
        process = self.slots[slot].previous if slot < len(self.slots) else None
        worker = self.workers.get(process)
        return process if worker is not None and not worker.doomed else None

    @property
    def numbers(self) -> range:
        """The slots that there are, those included that are coming or going."""
        return range(len(self.slots))

    @property
    def target(self) -> int:
        """How many slots there will be."""
        return self.growing or self.topology.num

    def next_holder(self, process: Hashable, slots: Iterable[int]) -> Hashable | None:
        """Who may hold a session that this process does not.

        Args:
            slots: those that the session's id leads to, likeliest first (``Topology.owners``).
        """
        chain = [who for slot in slots for who in (self.current(slot), self.previous(slot))]
        asked = chain.index(process) + 1 if process in chain else 0
        return next((who for who in chain[asked:] if who not in (None, process)), None)

    def spawn(self, number: int) -> None:
        """Have a process started for this slot."""
        self.slots[number].spawning = True
        self.agenda.add(Spawn(number))
