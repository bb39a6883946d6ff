"""Worker processes: who starts, serves, is replaced, and ends. Events and the time go in, actions
come out; no I/O, no clock.

The rules, in the words of the design:

* A slot outlives its processes. It has one current process and, while that one is being replaced,
  a successor that starts, and afterwards a previous one. This is the roster, and it is decided here
  alone.
* When the current process ends, the next takes the same slot: after 0.1 s, and after twice as long
  each time until it has been ready for a while.
* Until every worker has been ready, one that cannot start stops everything, with its reason.
* Who is replaced goes on serving until its successor is ready; then it has ``graceful_timeout`` to
  end. A process may ask for it itself (LEAVING): then the time begins at once.
* A reload asks for newer code than there was. The slots are replaced one after another, each time
  the next that is due, so that none is left out however often it is asked for. A successor that
  does not become ready ends the reloads asked for before it was started, and no others.
* More slots count when all of them are ready, fewer at once. A new one whose process says that it
  cannot start, is not ready in time, or cannot even be started, ends the growth; one whose process
  just dies (somebody has killed it) is tried again.
* No process is killed that was not told to end before, and then shown where it hangs.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping
from typing import Any

from ..topology import Topology
from . import records
from .agenda import (
    LONGEST_STEP,
    Abort,
    Agenda,
    Announce,
    Kill,
    Rescaled,
    Rules,
    Say,
    Serves,
    Spawn,
    Stage,
    Tell,
    Why,
)

BACKOFF_FIRST = 0.1
BACKOFF_LAST = 10.0
QUIT_GRACE = 2.5
"""Seconds for a process that was told QUIT: it cancels what it has in hand, and the app's own end
has its turn."""
ABORT_GRACE = 1.0
"""Seconds for a process to write down where it hangs."""
PING_EVERY = 5.0
"""Seconds between two pings at most; less where ``timeout`` is short."""


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


class _Step(enum.Enum):
    """What comes next for a process that is to end."""

    END = enum.auto()
    QUIT = enum.auto()
    ABORT = enum.auto()
    KILL = enum.auto()
    NONE = enum.auto()


class _Worker:
    """What is known of one process."""

    __slots__ = (
        "asked",
        "at",
        "corrected",
        "doomed",
        "generation",
        "leaving",
        "outdated",
        "owes",
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
        self.step, self.at = _Step.NONE, math.inf  # how it is ended, and when
        self.why = Why.NOT_ENDED
        # On the clock that runs only while we do:
        self.started = ran
        self.asked = 0.0  # the last ping
        self.owes: float | None = None  # the first ping since the last answer

    def becomes(self, state: Process) -> None:
        assert state in _LIVES[self.state], (self.state, state)
        self.state = state

    def then(self, step: _Step, at: float) -> None:
        self.step, self.at = step, at


class _Slot:
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


_PACKED = (
    *("announced", "_wanted", "_given_up", "_cursor", "_replacing", "_growing"),
    *("_now", "_missed"),
)
"""Of ``Lives``, what is packed beside slots and workers."""


class Lives:
    """The processes and the roster.

    Args:
        rules: the limits.
        agenda: where to put what is to be done.
        topology: how many slots there are.
        counters: where to count.
        opens: called with a slot that a process reads the inbox of from now on.
        shuts: called with a slot that none reads the inbox of any more, and whether there are
            fewer slots now.
        fails: called with an exit status when the server cannot do without what is missing.

    Attributes:
        announced: every worker was ready.
    """

    def __init__(
        self,
        rules: Rules,
        agenda: Agenda,
        topology: Topology,
        counters: MutableMapping[str, int],
        *,
        opens: Callable[[int], object],
        shuts: Callable[[int, bool], object],
        fails: Callable[[float, int], object],
    ) -> None:
        self.rules = rules
        self.agenda = agenda
        self.topology = topology
        self.counters = counters
        self.announced = False
        self._opens = opens
        self._shuts = shuts
        self._fails = fails
        self._slots = [_Slot() for _ in range(rules.num)]
        self._workers: dict[Hashable, _Worker] = {}
        self._wanted = 0  # the generation that a reload asks for
        self._given_up = 0  # the latest generation that could not be started
        self._cursor = 0  # the slot that the search for the next one to replace begins with
        self._replacing: int | None = None
        self._growing: int | None = None  # the number of slots that there will be
        self._now = 0.0
        self._missed = 0.0  # seconds in which we did not run

    # -- an upgrade in place ------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON can carry it (where it can carry the processes)."""
        return {
            **records.fields(self, _PACKED),
            "slots": [records.fields(slot, _Slot.__slots__) for slot in self._slots],
            "workers": [
                [process, records.fields(worker, _Worker.__slots__)]
                for process, worker in self._workers.items()
            ],
        }

    def restore(self, packed: Mapping[str, Any]) -> None:
        """Instead of ``start``: everything is as it was.

        Raises:
            StickyError: something was packed that has no place here.
        """
        own = {name: value for name, value in packed.items() if name not in ("slots", "workers")}
        records.put_back(self, own, _PACKED)
        self._slots = [_Slot() for _ in packed["slots"]]
        for slot, known in zip(self._slots, packed["slots"], strict=True):
            records.put_back(slot, known, _Slot.__slots__, state=Slot)
        self._workers = {}
        for process, known in packed["workers"]:
            worker = self._workers[process] = _Worker(known["slot"], 0.0)
            records.put_back(worker, known, _Worker.__slots__, state=Process, step=_Step, why=Why)

    # -- what is asked ------------------------------------------------------------------------

    def state_of(self, process: Hashable) -> Process:
        """The state of a process."""
        worker = self._workers.get(process)
        return worker.state if worker else Process.GONE

    def slot_of(self, process: Hashable) -> int:
        """The slot of a process that has not ended."""
        return self._workers[process].slot

    def slot_state(self, slot: int) -> Slot:
        """The state of a slot."""
        return self._slots[slot].state

    def backoff(self, slot: int) -> float:
        """Seconds between the last end of the slot's process and its next start."""
        return self._slots[slot].backoff

    def current(self, slot: int) -> Hashable | None:
        """Who serves the slot: the process that reads its inbox. None: nobody just now."""
        process = self._slots[slot].current if slot < len(self._slots) else None
        worker = self._workers.get(process)
        ready = worker is not None and worker.state is Process.READY and not worker.doomed
        return process if ready else None

    def previous(self, slot: int) -> Hashable | None:
        """Who served the slot before, and may still hold sessions."""
        process = self._slots[slot].previous if slot < len(self._slots) else None
        worker = self._workers.get(process)
        return process if worker is not None and not worker.doomed else None

    @property
    def numbers(self) -> range:
        """The slots that there are, those included that are coming or going."""
        return range(len(self._slots))

    @property
    def target(self) -> int:
        """How many slots there will be."""
        return self._growing or self.topology.num

    @property
    def reloading(self) -> bool:
        """Whether slots wait to be replaced, or one is."""
        return self._replacing is not None or self._due() is not None

    def next_holder(self, process: Hashable, slots: Iterable[int]) -> Hashable | None:
        """Who may hold a session that this process does not.

        Args:
            slots: those that the session's id leads to, likeliest first (``Topology.owners``).
        """
        chain = [who for slot in slots for who in (self.current(slot), self.previous(slot))]
        asked = chain.index(process) + 1 if process in chain else 0
        return next((who for who in chain[asked:] if who not in (None, process)), None)

    # -- events -------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start a process for every slot."""
        self._now = now
        if self.rules.first_alone:
            for slot in self._slots[1:]:
                slot.start_at = None
        self._start_due(now)

    def spawned(self, process: Hashable, number: int, now: float) -> None:
        """The process that ``Spawn`` asked for was started."""
        slot = self._slots[number]
        corrected, slot.corrects, slot.spawning = slot.corrects, False, False
        worker = _Worker(number, self._running(now), self._wanted, corrected=corrected)
        self._workers[process] = worker
        if slot.current is None:
            slot.current = process
        else:
            slot.successor = process
        self.agenda.remind(now + self.rules.boot_timeout)
        needed = self.agenda.stage is Stage.SERVING or slot.current == process
        if self.agenda.stage is Stage.ENDING or number >= self.target or not needed:
            self._kill(process, Why.STOPPED)
        self._go_on(now)  # its slot was the one being replaced, perhaps, and is not any more

    def not_started(self, number: int, now: float) -> None:
        """The process that ``Spawn`` asked for could not even be started."""
        slot = self._slots[number]
        slot.corrects = slot.spawning = False
        if slot.current is not None:
            self._failed(slot, self._wanted, now)
        else:
            self._vacant(number, now, 3, hopeless=True)
        self._go_on(now)

    def ready(self, process: Hashable, now: float) -> bool:
        """The process has loaded the app; whether that still counts."""
        worker = self._workers[process]
        if worker.doomed:
            return False  # too late
        worker.becomes(Process.READY)  # STARTING -> READY
        worker.ready_at = now
        worker.asked = self._running(now)
        self.agenda.remind(now + self._ping_every)
        slot = self._slots[worker.slot]
        if self.agenda.stage is not Stage.SERVING:
            self._say(process, Tell.CLOSING)
        if slot.successor == process:
            self._succeed(slot, worker.slot, now)
        self.agenda.add(Serves(worker.slot))
        self._opens(worker.slot)
        self._start_others(worker.slot, now)
        self._all_ready()
        self._go_on(now)
        return True

    def leaving(self, process: Hashable, now: float) -> None:
        """The process asks to be replaced (it alone was sent TERM)."""
        worker = self._workers[process]
        if self.agenda.stage is Stage.SERVING and worker.state is Process.READY:
            if not (worker.leaving or worker.doomed):
                worker.leaving = True
                worker.then(_Step.END, self.agenda.remind(now + self.rules.graceful_timeout))
            self._go_on(now)

    def heard(self, process: Hashable) -> None:
        """The process answered a ping."""
        if worker := self._workers.get(process):
            worker.owes = None

    def ended(
        self,
        process: Hashable,
        now: float,
        status: int = 3,
        *,
        again: bool = False,
        said_why: bool = False,
    ) -> bool:
        """The process has ended.

        Args:
            status: what everything ends with if no worker can start at all.
            again: start it once more at once: it said what has to be different.
            said_why: it could not start, and said why not.

        Returns:
            Whether that is done. Once for each start: otherwise two worker classes that send the
            app to each other would go on for ever.
        """
        worker = self._workers.pop(process)
        started = worker.state is not Process.STARTING
        again = again and self.agenda.stage is Stage.SERVING and not worker.corrected
        worker.becomes(Process.GONE)  # STARTING, READY, DRAINING -> GONE
        slot = self._slots[worker.slot]
        if slot.previous == process:
            slot.previous = None
            self.agenda.add(Serves(worker.slot))
        elif slot.successor == process:  # it leaves the old one serving
            slot.successor = None
            if again:
                slot.corrects = True
                self._spawn(worker.slot)
            elif worker.why is not Why.STOPPED:
                self._failed(slot, worker.generation, now)
        elif slot.current == process:
            self._shut(worker.slot)
            self.agenda.add(Serves(worker.slot))
            slot.current, slot.successor = slot.successor, None
            if slot.current is None and not slot.spawning:
                revived = worker.why is Why.STOPPED and self.agenda.stage is Stage.SERVING
                if again or (revived and worker.slot < self.target):
                    slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
                    slot.start_at = self.agenda.remind(now)
                    slot.corrects = again
                else:
                    lived = started and now - worker.ready_at >= BACKOFF_LAST
                    old = worker.generation < self._wanted
                    hopeless = not started and (said_why or worker.why is Why.NOT_READY)
                    self._vacant(
                        *(worker.slot, now, status),
                        started=started,
                        lived=lived,
                        old=old,
                        hopeless=hopeless,
                    )
        self._go_on(now)
        self._proceed()
        return again

    # -- replacing ----------------------------------------------------------------------------

    def reload(self, now: float) -> bool:
        """Replace every process by one with newer code; whether that is done now or soon."""
        if self.agenda.stage is not Stage.SERVING:
            return False
        self._wanted += 1
        if not self.announced:  # those that could not start wait for nothing else
            alone = self.rules.first_alone and self.current(0) is None
            for slot in self._slots[: 1 if alone else self.target]:
                if slot.state is Slot.BACKOFF:
                    slot.start_at = self.agenda.remind(now)
        self._go_on(now)
        return True

    def replace(self, number: int, now: float) -> None:
        """Replace the process of this slot, in its turn."""
        worker = self._workers.get(self._slots[number].current)
        if worker is not None:
            worker.outdated = True
        self._go_on(now)

    def worn(self, process: Hashable, now: float) -> bool:
        """The process has served, or holds, as much as it may; whether that was not known yet."""
        worker = self._workers.get(process)
        if worker is None or worker.outdated:
            return False
        worker.outdated = True
        self._go_on(now)
        return True

    def _go_on(self, now: float) -> None:
        """Start the successors that are due: of those that leave at once, of the others one."""
        if self.agenda.stage is not Stage.SERVING or not self.announced:
            return
        for number, slot in enumerate(self._slots):
            worker = self._workers.get(slot.current)
            if worker is not None and worker.leaving and self._may_start(slot, worker, now):
                self._spawn(number)
        if self._replacing is not None:
            slot = self._slots[self._replacing]
            if slot.spawning or slot.successor is not None:
                return
            self._replacing = None
        due = self._due(now)
        if due is not None:
            self._replacing = due
            self._cursor = due + 1
            self._spawn(due)

    def _due(self, now: float = math.inf) -> int | None:
        """The next slot whose process is to be replaced."""
        count = len(self._slots)
        for step in range(count):
            number = (self._cursor + step) % count
            slot = self._slots[number]
            worker = self._workers.get(slot.current)
            if worker is None or not self._may_start(slot, worker, now):
                continue
            newer = self._wanted > self._given_up and worker.generation < self._wanted
            if newer or worker.outdated:
                return number
        return None

    def _may_start(self, slot: _Slot, worker: _Worker, now: float) -> bool:
        return (
            worker.state is Process.READY
            and not worker.doomed
            and not slot.spawning
            and slot.successor is None
            and slot.wait_until <= now
        )

    def _failed(self, slot: _Slot, generation: int, now: float) -> None:
        """A successor has not become ready."""
        self._given_up = max(self._given_up, generation)
        slot.backoff = min(slot.backoff * 2 or BACKOFF_FIRST, BACKOFF_LAST)
        slot.wait_until = self.agenda.remind(now + slot.backoff)

    def _succeed(self, slot: _Slot, number: int, now: float) -> None:
        """The successor is ready: it takes the slot, the old process drains."""
        old, slot.current, slot.successor = slot.current, slot.successor, None
        for earlier, worker in self._workers.items():
            if worker.state is Process.DRAINING and worker.slot == number:
                self._say(earlier, Tell.END)  # once more: it is asked for no session from now on
        worker = self._workers[old]
        slot.backoff = 0.0
        slot.previous = old
        self._end(old)
        by = now + self.rules.graceful_timeout
        by = min(by, worker.at) if worker.leaving else by
        if not worker.doomed:
            worker.then(_Step.QUIT, self.agenda.remind(by))

    # -- more and fewer slots -----------------------------------------------------------------

    def scale(self, num: int, now: float) -> bool:
        """Have so many slots; whether that is another number than there will be anyway."""
        if self.agenda.stage is not Stage.SERVING or not self.announced or num == self.target:
            return False
        if num <= self.topology.num:
            fewer = num < self.topology.num
            self._growing = None
            if fewer:
                self.topology.change(num)
                self._retire(num, now)
                self.agenda.add(Rescaled(num, True))
            else:
                self._retire(num, now)
            self._go_on(now)
            return True
        self._growing = num
        self._retire(num, now)
        self._slots.extend(_Slot(None) for _ in range(len(self._slots), num))
        for slot in self._slots[self.topology.num : num]:
            if slot.current is None and slot.start_at is None and not slot.spawning:
                slot.start_at = self.agenda.remind(now)
        self._all_ready()
        self._go_on(now)
        return True

    def _retire(self, num: int, now: float) -> None:
        """The slots from this number on are none any more."""
        for number in range(num, len(self._slots)):
            slot = self._slots[number]
            slot.start_at = None
            for process in (slot.successor, slot.current):
                worker = self._workers.get(process)
                if worker is not None and worker.state is Process.STARTING:
                    self._kill(process, Why.STOPPED)
            worker = self._workers.get(slot.current)
            if worker is not None and worker.state is Process.READY:
                slot.previous, slot.current, slot.successor = slot.current, slot.successor, None
                self._shuts(number, True)
                self._end(slot.previous)
                if not worker.doomed:
                    by = self.agenda.remind(now + self.rules.graceful_timeout)
                    worker.then(_Step.QUIT, min(by, worker.at) if worker.leaving else by)
                if slot.current is None and slot.state is Slot.UP and not slot.spawning:
                    slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
                self.agenda.add(Serves(number))
            else:
                self._shuts(number, True)

    def _all_ready(self) -> None:
        """See whether every worker is, for the first time or of those that are new."""
        if self.agenda.stage is not Stage.SERVING:
            return
        ready = all(self.current(number) is not None for number in range(self.target))
        if ready and not self.announced:
            self.announced = True
            self.agenda.add(Announce())
        elif ready and self._growing is not None:
            num, self._growing = self._growing, None
            self.topology.change(num)
            self.agenda.add(Rescaled(num, True))

    # -- starting and ending ------------------------------------------------------------------

    def _start_others(self, number: int, now: float) -> None:
        """The first one has found out how all are to be started."""
        if self.rules.first_alone and number == 0 and not self.announced:
            for other in self._slots[1:]:
                if other.state is Slot.BACKOFF and other.start_at is None:
                    other.start_at = self.agenda.remind(now)

    def _spawn(self, number: int) -> None:
        self._slots[number].spawning = True
        self.agenda.add(Spawn(number))

    def _shut(self, number: int) -> None:
        self._shuts(number, False)

    def _vacant(
        self,
        number: int,
        now: float,
        status: int,
        *,
        started: bool = False,
        lived: bool = False,
        old: bool = False,
        hopeless: bool = False,
    ) -> None:
        """The slot has no process any more.

        Args:
            started: the last one has been ready;
            lived: for a while;
            old: there is newer code than it had;
            hopeless: it was not ready in its time, has said itself that it cannot be, or could
                not even be started.
        """
        slot = self._slots[number]
        stage = self.agenda.stage
        if stage in (Stage.ENDING, Stage.OVER):
            slot.becomes(Slot.FATAL)  # UP -> FATAL
            self._proceed()
        elif stage is not Stage.SERVING:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
            # Whether somebody waits for it decides whether it has a successor.
            slot.start_at = self.agenda.remind(now + BACKOFF_FIRST)
        elif number >= self.target:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
        elif not started and not self.announced and self.rules.reload:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF, until there is other code
            if old:  # there is already
                slot.start_at = self.agenda.remind(now)
        elif not started and not self.announced:
            slot.becomes(Slot.FATAL)  # UP -> FATAL
            self._fails(now, status)
        elif hopeless and number >= self.topology.num:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
            self._growing = None
            self._retire(self.topology.num, now)
            self.agenda.add(Rescaled(self.topology.num, False))
        else:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
            slot.backoff = BACKOFF_FIRST if lived else slot.backoff * 2 or BACKOFF_FIRST
            slot.backoff = min(slot.backoff, BACKOFF_LAST)
            slot.start_at = self.agenda.remind(now + slot.backoff)
            self.counters["restarts"] += 1

    def stop(self, *, quick: bool) -> None:
        """The server stops: who starts to take another's place is not needed any more."""
        self._replacing = self._growing = None
        for slot in self._slots:
            if slot.current is not None and self.state_of(slot.successor) is Process.STARTING:
                self._kill(slot.successor, Why.STOPPED)
        for process, worker in self._workers.items():
            if worker.step is _Step.END:  # it ends with all the others now
                worker.then(_Step.NONE, math.inf)
            if worker.state is Process.READY and not quick:
                self._say(process, Tell.CLOSING)

    def needs(self, filled: set[int], queued: set[int], now: float) -> None:
        """While PLACING: which slots have something to serve, and so need a process."""
        for number, slot in enumerate(self._slots):
            if slot.state is not Slot.BACKOFF:
                continue
            if number not in filled and number not in queued:
                slot.start_at = None
            elif slot.start_at is None:  # a head that was awaited until now belongs there
                slot.start_at = self.agenda.remind(now)

    def end_all(self, now: float, *, quick: bool = False) -> None:
        """Tell every process to end."""
        for slot in self._slots:
            slot.start_at = None
        for process, worker in self._workers.items():
            if worker.state is Process.STARTING:
                # It does not read messages yet, and has nothing in hand.
                self._kill(process, Why.STOPPED)
            elif quick:
                self._quit(process, now)
            elif worker.state is Process.DRAINING:
                self._say(process, Tell.END)  # once more: nobody will ask for its sessions
            else:
                self._end(process)
        self._proceed()

    def _end(self, process: Hashable | None) -> None:
        worker = self._workers[process]
        if worker.state is Process.READY:
            worker.becomes(Process.DRAINING)  # READY -> DRAINING
            self._say(process, Tell.END)

    def _quit(self, process: Hashable, now: float) -> None:
        worker = self._workers[process]
        if worker.step in (_Step.NONE, _Step.END, _Step.QUIT) and not worker.doomed:
            self._say(process, Tell.QUIT)
            worker.then(_Step.ABORT, self.agenda.remind(now + QUIT_GRACE))

    def _abort(self, process: Hashable, why: Why, now: float) -> None:
        """Kill it, but have it show first where it hangs."""
        worker = self._workers[process]
        self._doom(process, why)
        self.agenda.add(Abort(process, why))
        worker.then(_Step.KILL, self.agenda.remind(now + ABORT_GRACE))

    def _kill(self, process: Hashable | None, why: Why) -> None:
        worker = self._workers[process]
        if not worker.doomed:
            self._doom(process, why)
            worker.then(_Step.NONE, math.inf)
            self.agenda.add(Kill(process, why))

    def _doom(self, process: Hashable | None, why: Why) -> None:
        worker = self._workers[process]
        worker.doomed = True
        worker.why = why
        slot = self._slots[worker.slot]
        if slot.current == process:
            if worker.state is Process.READY:
                self._shut(worker.slot)
            self.agenda.add(Serves(worker.slot))
        elif slot.previous == process:
            self.agenda.add(Serves(worker.slot))

    def _say(self, process: Hashable | None, what: Tell) -> None:
        self.agenda.add(Say(process, what))

    def _proceed(self) -> None:
        """A stop is over when every process has ended."""
        starting = any(slot.state is Slot.UP for slot in self._slots)
        if self.agenda.stage is Stage.ENDING and not self._workers and not starting:
            self.agenda.stage = Stage.OVER  # ENDING -> OVER
            self.agenda.remind(self._now)

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whatever is due by now."""
        self._missed = now - self._running(now)
        self._now = now
        if self.agenda.stage in (Stage.SERVING, Stage.LISTENING, Stage.PLACING):
            self._start_due(now)
        for process, worker in list(self._workers.items()):
            self._check(process, worker, now)
        self._go_on(now)

    def next_due(self) -> float:
        """When something is due, at the earliest."""
        due = math.inf
        for slot in self._slots:
            if slot.start_at is not None:
                due = min(due, slot.start_at)
            if slot.wait_until > self._now:
                due = min(due, slot.wait_until)
        return min(due, *(self._limit(worker) for worker in self._workers.values()), due)

    def _start_due(self, now: float) -> None:
        for number, slot in enumerate(self._slots):
            if slot.start_at is not None and slot.start_at <= now:
                slot.becomes(Slot.UP)  # BACKOFF -> UP
                slot.start_at = None
                self._spawn(number)

    def _running(self, now: float) -> float:
        """The time on a clock that runs only while we do."""
        return now - self._missed - max(0.0, now - self._now - LONGEST_STEP)

    @property
    def _ping_every(self) -> float:
        return min(self.rules.timeout / 4, PING_EVERY) or LONGEST_STEP

    def _limit(self, worker: _Worker) -> float:
        """When something is due about a process."""
        if worker.doomed:
            return worker.at
        if worker.state is Process.STARTING:
            return self._missed + worker.started + self.rules.boot_timeout
        if worker.state is not Process.READY or not self.rules.timeout:
            return worker.at
        ping = self._missed + worker.asked + self._ping_every
        return min(worker.at, ping, self._answer_by(worker))

    def _answer_by(self, worker: _Worker) -> float:
        owes = math.inf if worker.owes is None else worker.owes
        return self._missed + owes + self.rules.timeout

    def _check(self, process: Hashable, worker: _Worker, now: float) -> None:
        if worker.at <= now:
            self._next_step(process, worker, now)
        elif worker.doomed or self._limit(worker) > now:
            pass
        elif worker.state is Process.STARTING:
            self._abort(process, Why.NOT_READY, now)
        elif self._answer_by(worker) <= now:
            self._abort(process, Why.SILENT, now)
        elif worker.state is Process.READY:
            # It has the whole timeout from here, however late we were to ask.
            worker.asked = now - self._missed
            worker.owes = worker.asked if worker.owes is None else worker.owes
            self._say(process, Tell.PING)

    def _next_step(self, process: Hashable, worker: _Worker, now: float) -> None:
        """One that is to end has not, in its time."""
        if worker.step is _Step.END:  # it wanted to be replaced, and nobody has become ready
            slot = self._slots[worker.slot]
            slot.previous, slot.current, slot.successor = process, slot.successor, None
            self._shut(worker.slot)
            self._end(process)
            self.agenda.add(Serves(worker.slot))
            if slot.current is None and not slot.spawning:
                slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
                slot.start_at = self.agenda.remind(max(now, slot.wait_until))
            self._quit(process, now)
        elif worker.step is _Step.QUIT:
            self._quit(process, now)
        elif worker.step is _Step.ABORT:
            self._abort(process, Why.NOT_ENDED, now)
        elif worker.step is _Step.KILL:
            worker.then(_Step.NONE, math.inf)
            self.agenda.add(Kill(process, worker.why))
