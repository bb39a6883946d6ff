"""The master's decisions. Events and the time go in, actions come out; no I/O, no clock.

The rules, in the words of the design:

* A connection that the master holds is in exactly one place: its head is awaited, it is queued for
  a slot, or it has been refused and is being closed. One that was handed over is forgotten.
* A queue belongs to one slot and keeps its order. Nothing overtakes it, and no other slot waits
  for it. Accepting pauses only when all queues together reach ``max_queued``.
* A connection at rest, of which no request was read, waits behind all that have one, and counts for
  no limit. It is never answered: what cannot be placed is closed without a word, because an answer
  to nothing would be taken for that of the next request.
* A slot outlives its processes. When one ends, the next takes the same slot: after 0.1 s, and
  after twice as long each time until it has been ready for a while.
* Until every worker has been ready, one that cannot start stops everything, with its reason.
* A stop goes through three stages. LISTENING ends when the listeners are accepted to the last
  connection and closed; PLACING when nothing waits here or in an inbox; ENDING when every process
  has ended. No worker is told to end before all stages before are over, because a worker cannot
  serve what has not reached it.

Connections and processes are whatever hashable values the caller uses to know them by. Actions
are collected in order and taken with ``take()``. What happens to bytes, sockets, signals and
messages is the shell's business (master.py, dispatcher.py).
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Hashable, MutableMapping
from typing import NamedTuple

Connection = Hashable

BACKOFF_FIRST = 0.1
BACKOFF_LAST = 10.0
LINGER = 2.0
"""Seconds for a refused client to read its answer: closing at once, with bytes of its request
unread, would reset the connection and the answer with it (RFC 9112, 9.6)."""
RETRY = 0.05
"""Seconds until a send is tried again that failed for a reason nothing announces the end of."""
LAST_HEAD = 1.0
"""Seconds for heads that are awaited when a stop begins: one that is on its way needs less, and a
browser's spare connection would never send any."""
QUIT_GRACE = 1.0
"""Seconds for workers to end by themselves in a quick stop."""
LONGEST_STEP = 1.0
"""What is longer than this in a step of the clock is time in which we did not run (a stopped or
starved master), and is not held against the workers."""
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


class Stage(enum.Enum):
    """How far a stop has come."""

    SERVING = enum.auto()
    LISTENING = enum.auto()
    PLACING = enum.auto()
    ENDING = enum.auto()
    OVER = enum.auto()


class Tell(enum.Enum):
    """What a process can be told."""

    PING = enum.auto()
    CLOSING = enum.auto()
    END = enum.auto()
    QUIT = enum.auto()


class Why(enum.Enum):
    """Why a process is killed."""

    STOPPED = enum.auto()  # the server stops, and this one is not even ready
    REPLACED = enum.auto()  # it was replaced, and is not even ready
    NOT_READY = enum.auto()  # within boot_timeout
    SILENT = enum.auto()  # for timeout
    NOT_ENDED = enum.auto()  # within graceful_timeout


class Rules(NamedTuple):
    """The limits, in seconds and numbers; names as in Options."""

    num: int
    head_timeout: float = 10.0
    max_pending_heads: int = 10_000
    max_queued: int = 10_000
    queue_timeout: float = 10.0
    boot_timeout: float = 60.0
    timeout: float = 30.0
    graceful_timeout: float = 30.0
    first_alone: bool = False
    """Start one worker, and the others when it is ready: it may say that all must be different."""


class Spawn(NamedTuple):
    """Start a process for this slot, and report it with ``spawned``."""

    slot: int


class Kill(NamedTuple):
    """SIGKILL; the end of the process is still to be reported with ``ended``."""

    process: Hashable
    why: Why


class Say(NamedTuple):
    """Send a control message."""

    process: Hashable
    what: Tell


class Deliver(NamedTuple):
    """Send what is queued for the slot (``first``, ``delivered``) until there is no room."""

    slot: int


class WatchInbox(NamedTuple):
    """Report with ``room`` when the inbox of the slot takes messages again (or stop doing so)."""

    slot: int
    on: bool


class Refuse(NamedTuple):
    """Answer with this status, and close: the connection is in the place for refused ones now."""

    connection: Connection
    status: int


class Drop(NamedTuple):
    """Close without a word."""

    connection: Connection


class Accepting(NamedTuple):
    """Pause or resume accepting."""

    on: bool


class CloseListeners(NamedTuple):
    """Accept what has arrived (drain), close the listeners, report with ``listeners_closed``."""

    drain: bool


class Announce(NamedTuple):
    """Every worker is ready for the first time."""


class Exit(NamedTuple):
    """All has ended; leave with this status."""

    status: int


Action = (
    Spawn
    | Kill
    | Say
    | Deliver
    | WatchInbox
    | Refuse
    | Drop
    | Accepting
    | CloseListeners
    | Announce
    | Exit
)


class _Worker:
    """What is known of one process."""

    __slots__ = (
        "asked",
        "corrected",
        "end_by",
        "killed",
        "owes",
        "ready_at",
        "slot",
        "started",
        "state",
    )

    def __init__(self, slot: int, ran: float, *, corrected: bool = False) -> None:
        self.slot = slot
        self.corrected = corrected  # started because the one before had said what to change
        self.state = Process.STARTING
        self.ready_at = 0.0
        self.end_by: float | None = None  # for one that was replaced
        self.killed = False
        # On the clock that runs only while we do:
        self.started = ran
        self.asked = 0.0  # the last ping
        self.owes: float | None = None  # the first ping since the last answer

    def becomes(self, state: Process) -> None:
        assert state in _LIVES[self.state], (self.state, state)
        self.state = state


class _Slot:
    """What is known of one slot."""

    __slots__ = (
        "backoff",
        "corrects",
        "process",
        "queue",
        "resting",
        "retry",
        "start_at",
        "state",
        "successor",
    )

    def __init__(self) -> None:
        self.state = Slot.BACKOFF  # nothing runs yet: the first start is due at once
        self.process: Hashable | None = None
        self.successor: Hashable | None = None  # starting, to take the place of the process
        self.backoff = 0.0
        self.corrects = False  # the next process is started with what the last one has said
        self.start_at: float | None = 0.0
        self.retry: float | None = None
        self.queue: dict[Connection, float] = {}  # in order, with deadlines
        self.resting: dict[Connection, float] = {}  # behind all of the queue

    def becomes(self, state: Slot) -> None:
        assert state in _SLOTS[self.state], (self.state, state)
        self.state = state


class Ledger:
    """Which connection is where, who may have it, what a deadline or a death changes.

    Args:
        rules: the limits.
        counters: where to count.
    """

    def __init__(self, rules: Rules, counters: MutableMapping[str, int] | None = None) -> None:
        self.rules = rules
        self.stage = Stage.SERVING
        self.announced = False
        self.status = 0
        self.counters = Counter() if counters is None else counters
        self._slots = [_Slot() for _ in range(rules.num)]
        self.queues = [slot.queue for slot in self._slots]
        self.resting = [slot.resting for slot in self._slots]
        self._workers: dict[Hashable, _Worker] = {}
        self._heads: dict[Connection, float] = {}
        self._refused: dict[Connection, float] = {}
        self._to_replace: list[int] = []
        self._replacing: int | None = None  # the slot whose successor was asked for
        self._queued = 0
        self._resting = 0
        self._paused = False
        self._resume: float | None = None
        self._now = 0.0
        self._missed = 0.0  # seconds in which we did not run
        self._stop_by = math.inf
        self.due = 0.0
        """When ``tick`` has something to do, at the latest."""
        self.actions: list[Action] = []
        """What was decided and not yet taken."""

    # -- what the shell asks ------------------------------------------------------------------

    def take(self) -> list[Action]:
        """The actions decided since the last call, in the order in which to carry them out."""
        actions, self.actions = self.actions, []
        return actions

    def first(self, slot: int) -> Connection | None:
        """The connection that is next of those that wait for a slot."""
        return next(iter(self.queues[slot] or self.resting[slot]), None)

    @property
    def held(self) -> int:
        """How many connections are here, in whatever place."""
        return len(self._heads) + len(self._refused) + self._queued + self._resting

    @property
    def reloading(self) -> bool:
        """Whether a reload is under way."""
        return self._replacing is not None or bool(self._to_replace)

    def state_of(self, process: Hashable) -> Process:
        """The state of a process."""
        worker = self._workers.get(process)
        return worker.state if worker else Process.GONE

    def slot_state(self, slot: int) -> Slot:
        """The state of a slot."""
        return self._slots[slot].state

    # -- connections --------------------------------------------------------------------------

    def awaiting(self, connection: Connection, now: float) -> None:
        """A connection was accepted whose head is not complete."""
        if len(self._heads) >= self.rules.max_pending_heads:
            # The newest is as likely to be honest as any; the oldest had the most time.
            self.counters["heads_evicted"] += 1
            self._refuse(next(iter(self._heads)), 408, now)
        patience = self.rules.head_timeout
        if self.stage is not Stage.SERVING:
            patience = min(patience, LAST_HEAD)
        self._heads[connection] = self._remind(now + patience)

    def decided(self, connection: Connection) -> None:
        """The head is complete: the connection is about to be placed or refused."""
        del self._heads[connection]

    def queue(
        self,
        connection: Connection,
        slot: int,
        now: float,
        *,
        starved: bool = False,
        rest: bool = False,
    ) -> None:
        """The inbox of the slot took no more (or others wait already), so it waits here.

        Args:
            starved: the system is out of something, and nothing will announce when it is not.
            rest: it is at rest, not one with a request.
        """
        waiting = self._slots[slot]
        if starved:
            waiting.retry = self._remind(now + RETRY)
        elif not (waiting.queue or waiting.resting):
            self.actions.append(WatchInbox(slot, True))
        if rest:
            waiting.resting[connection] = self._remind(now + self.rules.queue_timeout)
            self._resting += 1
            return
        waiting.queue[connection] = self._remind(now + self.rules.queue_timeout)
        self.counters["queued"] += 1
        self._queued += 1
        if self._queued >= self.rules.max_queued and not self._paused:
            self._paused = True
            if self._resume is None:
                self.actions.append(Accepting(False))

    def room(self, slot: int) -> None:
        """The inbox takes messages again."""
        self.actions.append(Deliver(slot))

    def delivered(self, connection: Connection, slot: int) -> None:
        """The first of the queue was handed over."""
        self._unqueue(connection, slot)

    def blocked(self, slot: int, now: float, *, starved: bool = False) -> None:
        """Sending from the queue stopped for want of room."""
        if starved:
            self._slots[slot].retry = self._remind(now + RETRY)
            self.actions.append(WatchInbox(slot, False))
        else:
            self.actions.append(WatchInbox(slot, True))

    def left(self, connection: Connection) -> None:
        """The client is gone, wherever the connection was (if it is not gone already)."""
        if self._refused.pop(connection, None) is None and not self._forget(connection):
            return
        self.counters["left"] += 1
        self.actions.append(Drop(connection))

    def closed(self, connection: Connection) -> None:
        """A connection that was to be refused had asked nothing, and is closed without a word."""
        if self._refused.pop(connection, None) is not None:
            self.actions.append(Drop(connection))

    def starved(self, now: float) -> None:
        """A connection could not be accepted for want of descriptors or memory.

        Whoever has been here longest makes room; with nobody to ask, accepting pauses.
        """
        if self._sacrifice():
            return
        oldest = next(iter(self._refused or self._heads), None)
        if oldest is not None:
            self.left(oldest)
        elif self._resume is None:
            self._resume = self._remind(now + RETRY)
            self.actions.append(Accepting(False))

    def crowded(self, now: float) -> bool:
        """There is no descriptor to spare with the connections that are here: one of them goes.

        First those that nothing is lost with, longest here first; then who was queued last.

        Returns:
            Whether there was one. A queued one is refused now, and goes when called again.
        """
        if self._sacrifice():
            return True
        oldest = next(iter(self._refused or self._heads), None)
        if oldest is not None:
            self.counters["crowded_out"] += oldest in self._heads
            self.left(oldest)
            return True
        last = [next(reversed(queue.items())) for queue in self.queues if queue]
        if not last:
            return False
        newest, _ = max(last, key=lambda waiting: waiting[1])
        self.counters["crowded_out"] += 1
        self._refuse(newest, 503, now)
        return True

    def refuse(self, connection: Connection, status: int, now: float) -> None:
        """A connection (whose head was awaited, or that is new here) is answered and closed."""
        self._refuse(connection, status, now)

    # -- processes ----------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start a process for every slot."""
        self._now = now
        if self.rules.first_alone:
            for slot in self._slots[1:]:
                slot.start_at = None
        self._start_due(now)

    def reload(self, now: float) -> None:
        """Replace every process by a new one, slot by slot, as each becomes ready.

        One that does not become ready ends the reload: what serves now goes on serving.
        """
        if self.stage is Stage.SERVING and self.announced:
            self._to_replace = list(range(self.rules.num))
            if self._replacing is None:
                self._replace_next()

    def spawned(self, process: Hashable, slot: int, now: float) -> None:
        """The process that ``Spawn`` asked for was started."""
        corrected, self._slots[slot].corrects = self._slots[slot].corrects, False
        self._workers[process] = _Worker(slot, self._running(now), corrected=corrected)
        if self._slots[slot].process is None:
            self._slots[slot].process = process
        else:
            self._slots[slot].successor = process
        self._remind(now + self.rules.boot_timeout)
        if self.stage is Stage.ENDING:
            self._kill(process, Why.STOPPED)

    def not_started(self, slot: int, now: float) -> None:
        """The process that ``Spawn`` asked for could not even be started."""
        self._slots[slot].corrects = False
        if self._slots[slot].process is not None:
            self._end_reload()
            return
        self._vacant(slot, now, 3)

    def ready(self, process: Hashable, now: float) -> None:
        """The process has loaded the app."""
        worker = self._workers[process]
        if worker.killed:
            return  # too late
        worker.becomes(Process.READY)  # STARTING -> READY
        worker.ready_at = now
        worker.asked = self._running(now)
        self._remind(now + self._ping_every)
        slot = self._slots[worker.slot]
        if self.stage is not Stage.SERVING:
            self._say(process, Tell.CLOSING)
        elif slot.successor == process:
            self._succeed(slot, now)
        elif self.rules.first_alone and worker.slot == 0 and not self.announced:
            for other in self._slots[1:]:
                if other.state is Slot.BACKOFF and other.start_at is None:
                    other.start_at = self._remind(now)
        if (
            self.stage is Stage.SERVING
            and not self.announced
            and all(
                slot.process is not None and self.state_of(slot.process) is Process.READY
                for slot in self._slots
            )
        ):
            self.announced = True
            self.actions.append(Announce())

    def heard(self, process: Hashable) -> None:
        """The process answered a ping."""
        if worker := self._workers.get(process):
            worker.owes = None

    def ended(self, process: Hashable, now: float, status: int = 3, *, again: bool = False) -> bool:
        """The process has ended.

        Args:
            status: what everything ends with if no worker can start at all.
            again: start it once more at once: it said what has to be different.

        Returns:
            Whether that is done. Once for each start: otherwise two worker classes that send the
            app to each other would go on for ever.
        """
        worker = self._workers.pop(process)
        started = worker.state is not Process.STARTING
        again = again and self.stage is Stage.SERVING and not worker.corrected
        worker.becomes(Process.GONE)  # STARTING, READY, DRAINING -> GONE
        slot = self._slots[worker.slot]
        if slot.successor == process:  # it leaves the old one serving
            slot.successor = None
            if again:
                slot.corrects = True
                self.actions.append(Spawn(worker.slot))
            else:
                self._end_reload()
        if slot.process != process:
            self._proceed()
            return again
        slot.process, slot.successor = slot.successor, None
        if slot.process is not None or self._replacing == worker.slot:  # its successor is starting
            self._replace_next()
        elif again:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
            slot.start_at = self._remind(now)
            slot.corrects = True
        else:
            lived = started and now - worker.ready_at >= BACKOFF_LAST
            self._vacant(worker.slot, now, status, started=started, lived=lived)
        return again

    def _replace_next(self) -> None:
        """Start the successor of the next slot that has a process to replace."""
        self._replacing = None
        while self._to_replace and self._replacing is None:
            number = self._to_replace.pop(0)
            if self._slots[number].process is not None:
                self._replacing = number
                self.actions.append(Spawn(number))

    def _end_reload(self) -> None:
        self._to_replace.clear()
        self._replacing = None

    def _succeed(self, slot: _Slot, now: float) -> None:
        """The successor is ready: it takes the slot, the old process drains."""
        old, slot.process, slot.successor = slot.process, slot.successor, None
        for earlier, worker in self._workers.items():
            if worker.state is Process.DRAINING and worker.slot == self._workers[old].slot:
                self._say(earlier, Tell.END)  # once more: it is asked for no session from now on
        if self.state_of(old) is Process.READY:
            self._end(old)
            self._workers[old].end_by = self._remind(now + self.rules.graceful_timeout)
        elif not self._workers[old].killed:
            self._kill(old, Why.REPLACED)
        self._replace_next()

    def _vacant(
        self, number: int, now: float, status: int, *, started: bool = False, lived: bool = False
    ) -> None:
        slot = self._slots[number]
        if self.stage is Stage.ENDING:
            slot.becomes(Slot.FATAL)  # UP -> FATAL
            self._proceed()
        elif self.stage is not Stage.SERVING:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
            # Something may still lie in its inbox: PLACING decides whether it needs a successor.
            slot.start_at = self._remind(now + BACKOFF_FIRST)
        elif not started and not self.announced:
            slot.becomes(Slot.FATAL)  # UP -> FATAL
            self.fail(now, status)
        else:
            slot.becomes(Slot.BACKOFF)  # UP -> BACKOFF
            slot.backoff = BACKOFF_FIRST if lived else slot.backoff * 2 or BACKOFF_FIRST
            slot.backoff = min(slot.backoff, BACKOFF_LAST)
            slot.start_at = self._remind(now + slot.backoff)
            self.counters["restarts"] += 1

    def backoff(self, slot: int) -> float:
        """Seconds between the last end of the slot's process and its next start."""
        return self._slots[slot].backoff

    # -- stopping -----------------------------------------------------------------------------

    def stop(self, now: float, *, quick: bool = False) -> None:
        """Stop everything: gracefully (requests in hand are finished), or at once.

        A quick stop overtakes a graceful one; anything else is already under way.
        """
        if self.stage is Stage.OVER or (self.stage is not Stage.SERVING and not quick):
            return
        self._end_reload()
        for number, resting in enumerate(self.resting):
            for connection in list(resting):
                self._close_resting(connection, number)
        if self.stage is Stage.SERVING:
            self.actions.append(CloseListeners(drain=not quick))
            for process, worker in self._workers.items():
                if worker.state is Process.READY and not quick:
                    self._say(process, Tell.CLOSING)
        if not quick:
            self.stage = Stage.LISTENING  # SERVING -> LISTENING
            self._stop_by = now + self.rules.graceful_timeout
            self.due = now  # every deadline is looked at again
            for connection, deadline in self._heads.items():
                self._heads[connection] = min(deadline, now + LAST_HEAD)
            return
        for waiting in (self._heads, *self.queues):
            for connection in list(waiting):
                self._refuse(connection, 503, now)
        self._end_all(quick=True)
        self._stop_by = self._remind(min(self._stop_by, now + QUIT_GRACE))

    def fail(self, now: float, status: int) -> None:
        """Something that the server cannot do without is missing: stop, with this status."""
        self.status = status
        self.stop(now, quick=True)

    def listeners_closed(self) -> None:
        """Nothing new can arrive."""
        if self.stage is Stage.LISTENING:
            self.stage = Stage.PLACING  # LISTENING -> PLACING
            self.due = self._now

    def inboxes(self, filled: set[int]) -> None:
        """While PLACING: these slots have connections in their inbox, the others have none."""
        if self.stage is not Stage.PLACING:
            return
        for number, slot in enumerate(self._slots):
            if slot.state is not Slot.BACKOFF:
                continue
            if number not in filled and not slot.queue:
                slot.start_at = None
            elif slot.start_at is None:  # a head that was awaited until now belongs there
                slot.start_at = self._remind(self._now)
        if not filled and not self._heads and not self._queued:
            self._end_all()

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whatever is due by now."""
        self._missed = now - self._running(now)
        self._now = now
        self._expire(now)
        if self._resume is not None and self._resume <= now:
            self._resume = None
            if not self._paused:
                self.actions.append(Accepting(True))
        if self.stage not in (Stage.SERVING, Stage.OVER) and now >= self._stop_by:
            self._give_up(now)
        if self.stage in (Stage.SERVING, Stage.LISTENING, Stage.PLACING):
            self._start_due(now)
        self._check_workers(now)
        self.due = self._next_due(now)

    def _next_due(self, now: float) -> float:
        due = now + LONGEST_STEP
        for waiting in (self._heads, self._refused, *self.queues, *self.resting):
            due = min(due, next(iter(waiting.values()), due))
        timers = [self._resume]
        for slot in self._slots:
            timers += (slot.start_at, slot.retry)
        for worker in self._workers.values():
            timers.append(self._limit(worker))
        due = min(due, *(when for when in timers if when is not None), due)
        if self.stage is Stage.PLACING:
            due = min(due, now + RETRY)  # nothing announces that an inbox has become empty
        if self.stage not in (Stage.SERVING, Stage.OVER):
            due = min(due, max(self._stop_by, now + RETRY))
        return due

    def _remind(self, when: float) -> float:
        self.due = min(self.due, when)
        return when

    def _expire(self, now: float) -> None:
        for connection in _overdue(self._heads, now):
            self.counters["head_timeouts"] += 1
            self._refuse(connection, 408, now)
        for number, slot in enumerate(self._slots):
            if slot.retry is not None and slot.retry <= now:
                slot.retry = None
                self.actions.append(Deliver(number))
                continue  # who can be sent is not late; the others are in the next tick
            for connection in _overdue(slot.queue, now):
                self.counters["queue_timeouts"] += 1
                self._refuse(connection, 503, now)
            for connection in _overdue(slot.resting, now):
                self._close_resting(connection, number)
        for connection in _overdue(self._refused, now):
            del self._refused[connection]
            self.actions.append(Drop(connection))

    def _start_due(self, now: float) -> None:
        for number, slot in enumerate(self._slots):
            if slot.start_at is not None and slot.start_at <= now:
                slot.becomes(Slot.UP)  # BACKOFF -> UP
                slot.start_at = None
                self.actions.append(Spawn(number))

    def _running(self, now: float) -> float:
        """The time on a clock that runs only while we do."""
        return now - self._missed - max(0.0, now - self._now - LONGEST_STEP)

    @property
    def _ping_every(self) -> float:
        return min(self.rules.timeout / 4, PING_EVERY) or LONGEST_STEP

    def _limit(self, worker: _Worker) -> float | None:
        """When something is due about a process."""
        if worker.killed:
            return None
        if worker.state is Process.STARTING:
            return self._missed + worker.started + self.rules.boot_timeout
        if worker.state is Process.DRAINING:
            return worker.end_by
        if worker.state is not Process.READY or not self.rules.timeout:
            return None
        ping = self._missed + worker.asked + self._ping_every
        return ping if worker.owes is None else min(ping, self._answer_by(worker))

    def _answer_by(self, worker: _Worker) -> float:
        owes = math.inf if worker.owes is None else worker.owes
        return self._missed + owes + self.rules.timeout

    def _check_workers(self, now: float) -> None:
        for process, worker in self._workers.items():
            limit = self._limit(worker)
            if limit is None or limit > now:
                continue
            if worker.state is Process.STARTING:
                self._kill(process, Why.NOT_READY)
            elif worker.state is Process.DRAINING:
                self._kill(process, Why.NOT_ENDED)
            elif self._answer_by(worker) <= now:
                self._kill(process, Why.SILENT)
            else:
                # It has the whole timeout from here, however late we were to ask.
                worker.asked = now - self._missed
                worker.owes = worker.asked if worker.owes is None else worker.owes
                self._say(process, Tell.PING)

    def _give_up(self, now: float) -> None:
        """The time for stopping is over."""
        if self.stage is not Stage.ENDING:
            for waiting in (self._heads, *self.queues):
                for connection in list(waiting):
                    self._refuse(connection, 503, now)
            self._end_all(quick=True)
        for process in self._workers:
            self._kill(process, Why.NOT_ENDED)

    # -- steps that several events share ------------------------------------------------------

    def _refuse(self, connection: Connection, status: int, now: float) -> None:
        self._forget(connection)
        self._refused[connection] = self._remind(now + LINGER)
        self.actions.append(Refuse(connection, status))

    def _forget(self, connection: Connection) -> bool:
        """Take a connection out of where it waits; whether it waited anywhere."""
        if self._heads.pop(connection, None) is not None:
            return True
        for slot, queue in enumerate(self.queues):
            if connection in queue or connection in self.resting[slot]:
                self._unqueue(connection, slot)
                return True
        return False

    def _close_resting(self, connection: Connection, slot: int) -> None:
        self._unqueue(connection, slot)
        self.counters["rest_closed"] += 1
        self.actions.append(Drop(connection))

    def _sacrifice(self) -> bool:
        """Close one that waits at rest, with which nothing is lost; whether there was one."""
        for slot, resting in enumerate(self.resting):
            for connection in resting:
                self._close_resting(connection, slot)
                return True
        return False

    def _unqueue(self, connection: Connection, slot: int) -> None:
        queue, resting = self.queues[slot], self.resting[slot]
        if resting.pop(connection, None) is not None:
            self._resting -= 1
        else:
            del queue[connection]
            self._queued -= 1
        if not (queue or resting):
            self._slots[slot].retry = None
            self.actions.append(WatchInbox(slot, False))
        if self._paused and self._queued <= self.rules.max_queued // 2:
            self._paused = False
            if self._resume is None:
                self.actions.append(Accepting(True))

    def _say(self, process: Hashable, what: Tell) -> None:
        self.actions.append(Say(process, what))

    def _kill(self, process: Hashable, why: Why) -> None:
        if not self._workers[process].killed:
            self._workers[process].killed = True
            self.actions.append(Kill(process, why))

    def _end(self, process: Hashable) -> None:
        worker = self._workers[process]
        if worker.state is Process.READY:
            worker.becomes(Process.DRAINING)  # READY -> DRAINING
            self._say(process, Tell.END)

    def _end_all(self, *, quick: bool = False) -> None:
        self.stage = Stage.ENDING  # PLACING (or, in a hurry, any) -> ENDING
        for slot in self._slots:
            slot.start_at = None
        for process, worker in self._workers.items():
            if worker.state is Process.STARTING:
                # It does not read messages yet, and has nothing in hand.
                self._kill(process, Why.STOPPED)
            elif quick:
                self._say(process, Tell.QUIT)
            elif worker.state is Process.DRAINING:
                self._say(process, Tell.END)  # once more: nobody will ask for its sessions
            else:
                self._end(process)
        self._proceed()

    def _proceed(self) -> None:
        starting = any(slot.state is Slot.UP for slot in self._slots)
        if self.stage is Stage.ENDING and not self._workers and not starting:
            self.stage = Stage.OVER  # ENDING -> OVER
            self.actions.append(Exit(self.status))


def _overdue(waiting: dict[Connection, float], now: float) -> list[Connection]:
    """Those whose deadline has passed. All of one place wait equally long, so the oldest is due
    first and one look at it is enough in the common case."""
    due = []
    for connection, deadline in waiting.items():
        if deadline > now:
            break
        due.append(connection)
    return due
