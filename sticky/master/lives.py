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
  does not become ready ends the reload that it was for, and no other: none where it was for
  something else.
* More slots count when all of them are ready, fewer at once. A new one whose process says that it
  cannot start, is not ready in time, or cannot even be started, ends the growth; one whose process
  just dies (somebody has killed it) is tried again.
* No process is killed that was not told to end before, and then shown where it hangs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from typing import Any

from ..topology import Topology
from .agenda import Agenda, Rules, Serves, Stage, Tell, Why
from .ends import Ends
from .patience import Patience
from .roster import Process, Roster, Slot, Step, Worker
from .rounds import BACKOFF_FIRST, BACKOFF_LAST, Rounds
from .scaling import Scaling


class Lives:
    """The processes: what happens to them, and what comes of it.

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
        roster: who there is.
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
        self._opens = opens
        self._fails = fails
        self.roster = roster = Roster(rules.num, agenda, topology)
        self._slots, self._workers = roster.slots, roster.workers
        self._ends = ends = Ends(agenda, roster, shuts)
        self._patience = Patience(rules, ends)
        self._rounds = rounds = Rounds(rules, agenda, roster, ends)
        self._scaling = Scaling(rules, agenda, roster, ends, rounds)
        # What is asked, and decided, there:
        self.state_of, self.slot_of, self.backoff = roster.state_of, roster.slot_of, roster.backoff
        self.slot_state, self.next_holder = roster.slot_state, roster.next_holder
        self.current, self.previous = roster.current, roster.previous
        self.reload, self.replace, self.worn = rounds.reload, rounds.replace, rounds.worn
        self.scale = self._scaling.scale

    def pack(self) -> dict[str, Any]:
        """What ``restore`` needs, as JSON can carry it (where it can carry the processes)."""
        patience, rounds = self._patience.pack(), self._rounds.pack()
        return {"roster": self.roster.pack(), "patience": patience, "rounds": rounds}

    def restore(self, packed: Mapping[str, Any]) -> None:
        """Instead of ``start``: everything is as it was.

        Raises:
            StickyError: something was packed that has no place here.
        """
        self.roster.restore(packed["roster"])
        self._patience.restore(packed["patience"])
        self._rounds.restore(packed["rounds"])

    @property
    def announced(self) -> bool:
        """Whether every worker was ready."""
        return self.roster.announced

    @property
    def numbers(self) -> range:
        """The slots that there are, those included that are coming or going."""
        return self.roster.numbers

    @property
    def target(self) -> int:
        """How many slots there will be."""
        return self.roster.target

    @property
    def reloading(self) -> bool:
        """Whether slots wait to be replaced, or one is."""
        return self._rounds.reloading

    # -- events -------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start a process for every slot."""
        self._patience.now = now
        if self.rules.first_alone:
            for slot in self._slots[1:]:
                slot.start_at = None
        self._start_due(now)

    def spawned(self, process: Hashable, number: int, now: float) -> None:
        """The process that ``Spawn`` asked for was started."""
        slot = self._slots[number]
        corrected, slot.corrects, slot.spawning = slot.corrects, False, False
        worker = Worker(
            number, self._patience.running(now), self._rounds.wanted, corrected=corrected
        )
        self._workers[process] = worker
        if slot.current is None:
            slot.current = process
        else:
            slot.successor = process
        self.agenda.remind(now + self.rules.boot_timeout)
        needed = self.agenda.stage is Stage.SERVING or slot.current == process
        if self.agenda.stage is Stage.ENDING or number >= self.target or not needed:
            self._ends.kill(process, Why.STOPPED)
        self._rounds.go_on(now)  # its slot was the one being replaced, perhaps, and is not now

    def not_started(self, number: int, now: float) -> None:
        """The process that ``Spawn`` asked for could not even be started."""
        slot = self._slots[number]
        slot.corrects = slot.spawning = False
        if slot.current is not None:
            self._rounds.failed(slot, self._rounds.wanted, now)
        else:
            self._vacant(number, now, 3, hopeless=True)
        self._rounds.go_on(now)

    def ready(self, process: Hashable, now: float) -> bool:
        """The process has loaded the app; whether that still counts."""
        worker = self._workers[process]
        if worker.doomed:
            return False  # too late
        worker.becomes(Process.READY)  # STARTING -> READY
        worker.ready_at = now
        worker.beaten = self._patience.running(now)
        self.agenda.remind(self._patience.limit(worker))
        slot = self._slots[worker.slot]
        if self.agenda.stage is not Stage.SERVING:
            self._ends.say(process, Tell.CLOSING)
        if slot.successor == process:
            self._rounds.succeed(slot, worker.slot, now)
        self.agenda.add(Serves(worker.slot))
        self._opens(worker.slot)
        self._start_others(worker.slot, now)
        self._scaling.all_ready()
        self._rounds.go_on(now)
        return True

    def leaving(self, process: Hashable, now: float) -> None:
        """The process asks to be replaced (it alone was sent TERM)."""
        worker = self._workers[process]
        if self.agenda.stage is Stage.SERVING and worker.state is Process.READY:
            if not (worker.leaving or worker.doomed):
                worker.leaving = True
                worker.then(Step.END, self.agenda.remind(now + self.rules.graceful_timeout))
            self._rounds.go_on(now)

    def heard(self, process: Hashable, beats: int, now: float) -> None:
        """So many beats of the process were counted by now (``board``)."""
        if worker := self._workers.get(process):
            self._patience.heard(worker, beats, now)

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
                self.roster.spawn(worker.slot)
            elif worker.why is not Why.STOPPED:
                self._rounds.failed(slot, worker.generation, now)
        elif slot.current == process:
            self._ends.shut(worker.slot)
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
                    old = worker.generation < self._rounds.wanted
                    hopeless = not started and (said_why or worker.why is Why.NOT_READY)
                    self._vacant(
                        *(worker.slot, now, status),
                        started=started,
                        lived=lived,
                        old=old,
                        hopeless=hopeless,
                    )
        self._rounds.go_on(now)
        self._proceed()
        return again

    # -- starting and ending ------------------------------------------------------------------

    def _start_others(self, number: int, now: float) -> None:
        """The first one has found out how all are to be started."""
        if self.rules.first_alone and number == 0 and not self.announced:
            for other in self._slots[1:]:
                if other.state is Slot.BACKOFF and other.start_at is None:
                    other.start_at = self.agenda.remind(now)

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
            self._scaling.give_up(now)
        else:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
            slot.backoff = BACKOFF_FIRST if lived else slot.backoff * 2 or BACKOFF_FIRST
            slot.backoff = min(slot.backoff, BACKOFF_LAST)
            slot.start_at = self.agenda.remind(now + slot.backoff)
            self.counters["restarts"] += 1

    def stop(self, *, quick: bool) -> None:
        """The server stops: who starts to take another's place is not needed any more."""
        self._rounds.stop()
        self.roster.growing = None
        for slot in self._slots:
            if slot.current is not None and self.state_of(slot.successor) is Process.STARTING:
                self._ends.kill(slot.successor, Why.STOPPED)
        for process, worker in self._workers.items():
            if worker.step is Step.END:  # it ends with all the others now
                worker.then(Step.NONE, math.inf)
            if worker.state is Process.READY and not quick:
                self._ends.say(process, Tell.CLOSING)

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
                self._ends.kill(process, Why.STOPPED)
            elif quick:
                self._ends.quit(process, now)
            elif worker.state is Process.DRAINING:
                self._ends.say(process, Tell.END)  # once more: nobody will ask for its sessions
            else:
                self._ends.end(process)
        self._proceed()

    def _proceed(self) -> None:
        """A stop is over when every process has ended."""
        starting = any(slot.state is Slot.UP for slot in self._slots)
        if self.agenda.stage is Stage.ENDING and not self._workers and not starting:
            self.agenda.stage = Stage.OVER  # ENDING -> OVER
            self.agenda.remind(self._patience.now)

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whatever is due by now."""
        self._patience.tick(now)
        if self.agenda.stage in (Stage.SERVING, Stage.LISTENING, Stage.PLACING):
            self._start_due(now)
        for process, worker in list(self._workers.items()):
            self._patience.check(process, worker, now)
        self._rounds.go_on(now)

    def next_due(self) -> float:
        """When something is due, at the earliest."""
        due = math.inf
        for slot in self._slots:
            if slot.start_at is not None:
                due = min(due, slot.start_at)
            if slot.wait_until > self._patience.now:
                due = min(due, slot.wait_until)
        return min(due, *(self._patience.limit(worker) for worker in self._workers.values()), due)

    def _start_due(self, now: float) -> None:
        for number, slot in enumerate(self._slots):
            if slot.start_at is not None and slot.start_at <= now:
                slot.becomes(Slot.UP)  # BACKOFF -> UP
                slot.start_at = None
                self.roster.spawn(number)
