"""The lines in which connections wait for an inbox (the rules: ``waiting``). No I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from ..rules import MAX_SLOTS
from .agenda import (
    RETRY,
    Agenda,
    Connection,
    Deliver,
    Drop,
    Place,
    ReadBack,
    Rules,
    Stage,
    Watch,
)


class Line:
    """Who waits for one inbox.

    Attributes:
        slot: whose inbox it is, or the slot of the process whose own it is.
        process: whose own inbox it is; None for a slot's.
        queue: those with a request, in order, with their deadlines.
        resting: those at rest, behind all of the queue.
    """

    __slots__ = ("open", "process", "queue", "resting", "retry", "slot")

    def __init__(self, slot: int, process: Hashable | None = None) -> None:
        self.slot = slot
        self.process = process
        self.queue: dict[Connection, float] = {}
        self.resting: dict[Connection, float] = {}
        self.retry: float | None = None
        self.open = process is not None  # somebody reads the inbox

    @property
    def wants_room(self) -> bool:
        """Whether somebody waits for there to be room in the inbox, and will be told of it."""
        return self.open and self.retry is None and bool(self.queue or self.resting)

    @property
    def first(self) -> Connection | None:
        """Who is next of those that wait here."""
        return next(iter(self.queue or self.resting), None)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits here, so that what comes may be sent at once."""
        return self.open and not (self.queue or self.resting)

    def __repr__(self) -> str:
        own = "" if self.process is None else f", process {self.process}"
        return f"<line of slot {self.slot}{own}: {len(self.queue)} + {len(self.resting)}>"


class Queues:
    """The lines of the slots, and of processes.

    Args:
        rules: the limits.
        agenda: where to put what is to be done.
        counters: where to count.
        refuse: called with a connection that waits here, a status and the time.

    Attributes:
        lines: of the slots, by number.
        own: of the processes that have one.
        free: for each slot 1 while what comes for it may be sent to its inbox at once.
        line_of: where each of the connections waits.
        queued: how many wait with a request.
    """

    def __init__(
        self,
        rules: Rules,
        agenda: Agenda,
        counters: MutableMapping[str, int],
        refuse: Callable[[Connection, int, float], object],
    ) -> None:
        self.rules = rules
        self.agenda = agenda
        self.counters = counters
        self.refuse = refuse
        self.lines: list[Line] = []
        self.own: dict[Hashable, Line] = {}
        self.free = bytearray(MAX_SLOTS)
        self.line_of: dict[Connection, Line] = {}
        self.queued = 0
        self.grow(rules.num)

    def __iter__(self) -> Iterator[Line]:
        yield from self.lines
        yield from self.own.values()

    def grow(self, num: int) -> None:
        """There are at least so many slots."""
        self.lines.extend(Line(slot) for slot in range(len(self.lines), num))

    def of_process(self, process: Hashable, slot: int) -> Line:
        """The line of a process's own inbox."""
        line = self.own.get(process)
        if line is None:
            line = self.own[process] = Line(slot, process)
        return line

    def pack(self, put: Callable[[dict[Connection, float]], list[float]]) -> dict[str, Any]:
        """What ``restore`` needs.

        Args:
            put: called with connections and their deadlines, in order; returns these.
        """

        def line(line: Line) -> list[Any]:
            return [line.open, line.retry, put(line.queue), put(line.resting)]

        return {
            "lines": [line(one) for one in self.lines],
            "own": [[who, one.slot, line(one)] for who, one in self.own.items()],
        }

    def restore(
        self, packed: Mapping[str, Any], take: Callable[[list[float]], dict[Connection, float]]
    ) -> None:
        """Each connection waits where it did.

        Args:
            take: the opposite of ``put``.
        """

        def fill(line: Line, known: Iterable[Any]) -> Line:
            line.open, line.retry, queue, resting = known
            line.queue, line.resting = take(queue), take(resting)
            self.line_of.update(dict.fromkeys((*line.queue, *line.resting), line))
            self.queued += len(line.queue)
            return line

        self.lines[:] = [fill(Line(at), known) for at, known in enumerate(packed["lines"])]
        self.own.update({who: fill(Line(slot, who), known) for who, slot, known in packed["own"]})
        for line in self.lines:
            self.free[line.slot] = line.open and not line.queue

    # -- what happens to a line ---------------------------------------------------------------

    def open(self, slot: int) -> None:
        """A process is ready that reads the slot's inbox."""
        line = self.lines[slot]
        line.open = True
        self.free[slot] = not line.queue
        if line.queue or line.resting:
            self.agenda.add(Deliver(line))

    def shut(self, slot: int, *, retired: bool = False) -> None:
        """No process reads the slot's inbox any more.

        Args:
            retired: none will: there are fewer slots now.
        """
        line = self.lines[slot]
        if line.open:
            line.open = False
            self.free[slot] = 0
            if line.retry is None and (line.queue or line.resting):
                self.agenda.add(Watch(line, False))
            line.retry = None
            self.agenda.add(ReadBack(line))
        if retired:
            self._turn_away(line)

    def ended(self, process: Hashable) -> None:
        """This process has ended: who waits for its own inbox goes elsewhere."""
        line = self.own.get(process)
        if line is not None:
            line.open = False
            if line.retry is None and (line.queue or line.resting):
                self.agenda.add(Watch(line, False))
            line.retry = None
            self.agenda.add(ReadBack(line))
            self._turn_away(line)
            del self.own[process]

    def _turn_away(self, line: Line) -> None:
        for connection in [*line.queue, *line.resting]:
            self._take_out(connection, line)
            self.agenda.add(Place(connection))

    # -- what happens to a connection ---------------------------------------------------------

    def queue(
        self,
        connection: Connection,
        line: Line,
        now: float,
        *,
        starved: bool = False,
        rest: bool = False,
    ) -> bool:
        """The inbox took no more (or others wait already, or nobody reads it), so it waits.

        Args:
            starved: the system is out of something, and nothing will announce when it is not.
            rest: it is at rest, not one with a request.

        Returns:
            Whether it does: in a flood it is itself the one that is refused.
        """
        if line.open:
            if starved:
                line.retry = self.agenda.remind(now + RETRY)
            elif not (line.queue or line.resting):
                self.agenda.add(Watch(line, True))
        self.line_of[connection] = line
        deadline = self.agenda.remind(now + self.rules.queue_timeout)
        if rest:
            line.resting[connection] = deadline
            return True
        line.queue[connection] = deadline
        if line.process is None:
            self.free[line.slot] = 0
        self.counters["queued"] += 1
        self.queued += 1
        self._shed(now)
        return self.line_of.get(connection) is line

    def _shed(self, now: float) -> None:
        """Too many wait, perhaps: the newest of the longest line is refused."""
        while self.queued > self.rules.max_queued:
            longest = max(self, key=lambda one: len(one.queue))
            self.counters["shed"] += 1
            self.refuse(next(reversed(longest.queue)), 503, now)

    def return_(
        self, line: Line, connections: Iterable[tuple[Connection, float, bool]], now: float
    ) -> None:
        """Those that lay in an inbox that nobody reads wait at the front of its line again.

        Args:
            connections: in order, each with when it was sent there, and whether it is at rest.
        """
        queue: dict[Connection, float] = {}
        resting: dict[Connection, float] = {}
        for connection, sent, rest in connections:
            if rest and self.agenda.stage is not Stage.SERVING:
                self.end_rest(connection, now)
                continue
            returned, waiting = (resting, line.resting) if rest else (queue, line.queue)
            latest = next(iter(waiting.values()), math.inf)
            deadline = max(now, min(sent + self.rules.queue_timeout, latest))
            returned[connection] = self.agenda.remind(deadline)
            self.line_of[connection] = line
        line.queue, line.resting = queue | line.queue, resting | line.resting
        self.queued += len(queue)
        self.counters["returned"] += len(queue) + len(resting)
        self._shed(now)

    def room(self, line: Line) -> None:
        """The inbox takes messages again."""
        self.agenda.add(Deliver(line))

    def delivered(self, connection: Connection, line: Line) -> None:
        """The first of the line was handed over."""
        self._take_out(connection, line)

    def blocked(self, line: Line, now: float, *, starved: bool = False) -> None:
        """Sending from the line stopped for want of room."""
        if starved:
            line.retry = self.agenda.remind(now + RETRY)
            self.agenda.add(Watch(line, False))
        else:
            self.agenda.add(Watch(line, True))

    def rest_no_more(self, now: float) -> None:
        """The server stops: none at rest is passed on."""
        for line in self:
            for connection in list(line.resting):
                self.end_rest(connection, now)

    def end_rest(self, connection: Connection, now: float) -> None:
        """One at rest, wherever it is, can be passed to nobody. If a request has come meanwhile it
        is answered; if not it is closed without a word."""
        self.counters["rest_closed"] += 1
        self.refuse(connection, 503, now)

    def sacrifice(self) -> bool:
        """Close one that waits at rest, with which nothing is lost; whether there was one."""
        for line in self:
            for connection in line.resting:
                self._take_out(connection, line)
                self.counters["rest_closed"] += 1
                self.agenda.add(Drop(connection))
                return True
        return False

    def newest(self) -> Connection | None:
        """Who was queued last."""
        last = [next(reversed(line.queue.items())) for line in self if line.queue]
        return max(last, key=lambda waiting: waiting[1])[0] if last else None

    def forget(self, connection: Connection) -> bool:
        """Take a connection out of its line; whether it was in one."""
        line = self.line_of.get(connection)
        if line is not None:
            self._take_out(connection, line)
        return line is not None

    def _take_out(self, connection: Connection, line: Line) -> None:
        del self.line_of[connection]
        if line.resting.pop(connection, None) is None:
            del line.queue[connection]
            self.queued -= 1
            if not line.queue and line.process is None:
                self.free[line.slot] = line.open
        if line.open and not (line.queue or line.resting):
            line.retry = None
            self.agenda.add(Watch(line, False))

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whatever is due by now."""
        for line in self:
            if line.retry is not None and line.retry <= now:
                line.retry = None
                self.agenda.add(Deliver(line))
                continue  # who can be sent is not late; the others are in the next tick
            for connection in overdue(line.queue, now):
                self.counters["queue_timeouts"] += 1
                self.refuse(connection, 503, now)
            for connection in overdue(line.resting, now):
                self.end_rest(connection, now)

    def next_due(self) -> float:
        """When something is due, at the earliest."""
        due = math.inf
        for line in self:
            for waiting in (line.queue, line.resting):
                due = min(due, next(iter(waiting.values()), due))
            if line.retry is not None:
                due = min(due, line.retry)
        return due


def overdue(waiting: dict[Connection, float], now: float) -> list[Connection]:
    """Those whose deadline has passed. All of one place wait equally long, so the oldest is due
    first and one look at it is enough in the common case."""
    due = []
    for connection, deadline in waiting.items():
        if deadline > now:
            break
        due.append(connection)
    return due
