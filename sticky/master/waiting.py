"""Connections that the master holds. Events and the time go in, actions come out; no I/O, no clock.

The rules, in the words of the design:

* A connection that the master holds is in exactly one place: its head is awaited, it waits in a
  line, or it has been refused and is being closed. One that was handed over is forgotten.
* A line leads to one inbox: that of a slot, or the own one of a process, for sessions that only it
  holds. It keeps its order, nothing overtakes it, and no other line waits for it.
* The line of a slot that no ready process serves is shut. What waits there has its deadlines like
  all that wait, and its clients are seen leaving.
* When ``max_queued`` wait, the newest of the longest line is refused, also when some of them have
  come back from an inbox. Accepting pauses only for want of descriptors.
* A connection at rest, of which no request was read, waits behind all that have one, and counts for
  no limit. It is never answered: what cannot be placed is closed without a word, because an answer
  to nothing would be taken for that of the next request.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping
from itertools import islice
from typing import Any

from ..rules import MAX_SLOTS
from .agenda import (
    RETRY,
    Accepting,
    Agenda,
    Connection,
    Deliver,
    Drop,
    Place,
    ReadBack,
    Refuse,
    Rules,
    Stage,
    Watch,
)

LINGER = 2.0
"""Seconds for a refused client to read its answer: closing at once, with bytes of its request
unread, would reset the connection and the answer with it (RFC 9112, 9.6)."""
LAST_HEAD = 1.0
"""Seconds for heads that are awaited when a stop begins: one that is on its way needs less, and a
browser's spare connection would never send any."""


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

    def __repr__(self) -> str:
        own = "" if self.process is None else f", process {self.process}"
        return f"<line of slot {self.slot}{own}: {len(self.queue)} + {len(self.resting)}>"


class Waiting:
    """Where each connection is that the master holds, and until when.

    Args:
        rules: the limits.
        agenda: where to put what is to be done.
        counters: where to count.

    Attributes:
        lines: of the slots, by number.
        free: for each slot 1 while what comes for it may be sent to its inbox at once.
    """

    def __init__(self, rules: Rules, agenda: Agenda, counters: MutableMapping[str, int]) -> None:
        self.rules = rules
        self.agenda = agenda
        self.counters = counters
        self.lines: list[Line] = []
        self.free = bytearray(MAX_SLOTS)
        self._own: dict[Hashable, Line] = {}
        self._heads: dict[Connection, float] = {}
        self._refused: dict[Connection, float] = {}
        self._line_of: dict[Connection, Line] = {}
        self._queued = 0
        self._resume: float | None = None
        self.grow(rules.num)

    def grow(self, num: int) -> None:
        """There are at least so many slots."""
        self.lines.extend(Line(slot) for slot in range(len(self.lines), num))

    # -- what the shell asks ------------------------------------------------------------------

    def first(self, line: Line) -> Connection | None:
        """The connection that is next of those that wait in a line."""
        return next(iter(line.queue or line.resting), None)

    @property
    def held(self) -> int:
        """How many connections are here, in whatever place."""
        return len(self._heads) + len(self._refused) + len(self._line_of)

    @property
    def queued(self) -> int:
        """How many wait with a request."""
        return self._queued

    @property
    def heads(self) -> int:
        """Of how many the head is awaited."""
        return len(self._heads)

    def places(self) -> Iterator[tuple[str, Line | None, Connection, float]]:
        """Each connection that is here: "head", "queue", "rest" or "refused", the line, and the
        deadline."""
        for connection, deadline in self._heads.items():
            yield "head", None, connection, deadline
        for connection, deadline in self._refused.items():
            yield "refused", None, connection, deadline
        for line in self._all():
            for connection, deadline in line.queue.items():
                yield "queue", line, connection, deadline
            for connection, deadline in line.resting.items():
                yield "rest", line, connection, deadline

    def is_idle(self, line: Line) -> bool:
        """Whether nobody waits in a line, so that what comes may be sent at once."""
        return line.open and not (line.queue or line.resting)

    @property
    def paused(self) -> bool:
        """Whether accepting is paused, for want of descriptors."""
        return self._resume is not None

    # -- an upgrade in place ------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, Any], list[Connection]]:
        """What ``restore`` needs, as JSON can carry it, and the connections in their order."""
        connections: list[Connection] = []

        def put(waiting: dict[Connection, float]) -> list[float]:
            connections.extend(waiting)
            return list(waiting.values())

        def line(line: Line) -> list[Any]:
            return [line.open, line.retry, put(line.queue), put(line.resting)]

        packed = {
            "resume": self._resume,
            "heads": put(self._heads),
            "refused": put(self._refused),
            "lines": [line(one) for one in self.lines],
            "own": [[who, one.slot, line(one)] for who, one in self._own.items()],
        }
        return packed, connections

    def restore(self, packed: Mapping[str, Any], connections: Iterable[Connection]) -> None:
        """Each connection is where it was; in the order of ``pack``.

        Raises:
            ValueError: there are not as many as were packed.
        """
        left = iter(connections)

        def take(deadlines: list[float]) -> dict[Connection, float]:
            return dict(zip(islice(left, len(deadlines)), deadlines, strict=True))

        def fill(line: Line, known: Iterable[Any]) -> Line:
            line.open, line.retry, queue, resting = known
            line.queue, line.resting = take(queue), take(resting)
            self._line_of.update(dict.fromkeys((*line.queue, *line.resting), line))
            self._queued += len(line.queue)
            return line

        self._resume = packed["resume"]
        self._heads, self._refused = take(packed["heads"]), take(packed["refused"])
        self.lines[:] = [fill(Line(at), known) for at, known in enumerate(packed["lines"])]
        self._own = {who: fill(Line(slot, who), known) for who, slot, known in packed["own"]}
        for line in self.lines:
            self.free[line.slot] = line.open and not line.queue
        if next(left, None) is not None:
            raise ValueError("there are more connections than places for them")

    def watched(self) -> Iterator[Line]:
        """The lines whose inboxes are to be watched for room."""
        for line in self._all():
            if line.wants_room:
                yield line

    # -- heads --------------------------------------------------------------------------------

    def awaiting(self, connection: Connection, now: float) -> None:
        """A connection was accepted whose head is not complete."""
        if len(self._heads) >= self.rules.max_pending_heads:
            # The newest is as likely to be honest as any; the oldest had the most time.
            self.counters["heads_evicted"] += 1
            self.refuse(next(iter(self._heads)), 408, now)
        patience = self.rules.head_timeout
        if self.agenda.stage is not Stage.SERVING:
            patience = min(patience, LAST_HEAD)
        self._heads[connection] = self.agenda.remind(now + patience)

    def decided(self, connection: Connection) -> None:
        """The head is complete: the connection is about to be placed or refused."""
        del self._heads[connection]

    # -- lines --------------------------------------------------------------------------------

    def own(self, process: Hashable, slot: int) -> Line:
        """The line of a process's own inbox."""
        line = self._own.get(process)
        if line is None:
            line = self._own[process] = Line(slot, process)
        return line

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
            self._turn_away(line, unheld=False)

    def ended(self, process: Hashable) -> None:
        """This process has ended: who waits for its own inbox goes elsewhere."""
        line = self._own.get(process)
        if line is not None:
            line.open = False
            if line.retry is None and (line.queue or line.resting):
                self.agenda.add(Watch(line, False))
            line.retry = None
            self.agenda.add(ReadBack(line))
            self._turn_away(line, unheld=True)
            del self._own[process]

    def _turn_away(self, line: Line, *, unheld: bool) -> None:
        for connection in [*line.queue, *line.resting]:
            self._take_out(connection, line)
            self.agenda.add(Place(connection, unheld))

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
        self._line_of[connection] = line
        deadline = self.agenda.remind(now + self.rules.queue_timeout)
        if rest:
            line.resting[connection] = deadline
            return True
        line.queue[connection] = deadline
        if line.process is None:
            self.free[line.slot] = 0
        self.counters["queued"] += 1
        self._queued += 1
        self._shed(now)
        return self._line_of.get(connection) is line

    def _shed(self, now: float) -> None:
        """Too many wait, perhaps: the newest of the longest line is refused."""
        while self._queued > self.rules.max_queued:
            longest = max(self._all(), key=lambda one: len(one.queue))
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
                self.counters["rest_closed"] += 1
                self.agenda.add(Drop(connection))
                continue
            returned, waiting = (resting, line.resting) if rest else (queue, line.queue)
            latest = next(iter(waiting.values()), math.inf)
            deadline = max(now, min(sent + self.rules.queue_timeout, latest))
            returned[connection] = self.agenda.remind(deadline)
            self._line_of[connection] = line
        line.queue, line.resting = queue | line.queue, resting | line.resting
        self._queued += len(queue)
        self.counters["returned"] += len(queue) + len(resting)
        self._shed(now)

    def overstayed(self, connection: Connection, now: float) -> None:
        """One that lay in the inbox of a process that did not read it for ``queue_timeout``."""
        self.counters["queue_timeouts"] += 1
        self.refuse(connection, 503, now)

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

    # -- ends ---------------------------------------------------------------------------------

    def refuse(self, connection: Connection, status: int, now: float) -> None:
        """A connection, wherever it is or new here, is answered and closed."""
        self._forget(connection)
        self._refused[connection] = self.agenda.remind(now + LINGER)
        self.agenda.add(Refuse(connection, status))

    def left(self, connection: Connection) -> None:
        """The client is gone, wherever the connection was (if it is not gone already)."""
        if self._refused.pop(connection, None) is None and not self._forget(connection):
            return
        self.counters["left"] += 1
        self.agenda.add(Drop(connection))

    def closed(self, connection: Connection) -> None:
        """A connection that was to be refused had asked nothing, and is closed without a word."""
        if self._refused.pop(connection, None) is not None:
            self.agenda.add(Drop(connection))

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
            self._resume = self.agenda.remind(now + RETRY)
            self.agenda.add(Accepting(False))

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
        last = [next(reversed(line.queue.items())) for line in self._all() if line.queue]
        if not last:
            return False
        newest, _ = max(last, key=lambda waiting: waiting[1])
        self.counters["crowded_out"] += 1
        self.refuse(newest, 503, now)
        return True

    # -- a stop -------------------------------------------------------------------------------

    def hurry(self, now: float) -> None:
        """The server stops: who has said nothing yet has little time left, and who rests none."""
        for connection, deadline in self._heads.items():
            self._heads[connection] = min(deadline, now + LAST_HEAD)
        for line in self._all():
            for connection in list(line.resting):
                self._close_resting(connection, line)

    def refuse_all(self, now: float) -> None:
        """Nobody waits any longer."""
        for connection in [*self._heads, *(one for line in self._all() for one in line.queue)]:
            self.refuse(connection, 503, now)

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whatever is due by now."""
        for connection in _overdue(self._heads, now):
            self.counters["head_timeouts"] += 1
            self.refuse(connection, 408, now)
        for line in self._all():
            if line.retry is not None and line.retry <= now:
                line.retry = None
                self.agenda.add(Deliver(line))
                continue  # who can be sent is not late; the others are in the next tick
            for connection in _overdue(line.queue, now):
                self.counters["queue_timeouts"] += 1
                self.refuse(connection, 503, now)
            for connection in _overdue(line.resting, now):
                self._close_resting(connection, line)
        for connection in _overdue(self._refused, now):
            del self._refused[connection]
            self.agenda.add(Drop(connection))
        if self._resume is not None and self._resume <= now:
            self._resume = None
            self.agenda.add(Accepting(True))

    def next_due(self) -> float:
        """When something is due, at the earliest."""
        due = self._resume if self._resume is not None else math.inf
        for waiting in (self._heads, self._refused):
            due = min(due, next(iter(waiting.values()), due))
        for line in self._all():
            for waiting in (line.queue, line.resting):
                due = min(due, next(iter(waiting.values()), due))
            if line.retry is not None:
                due = min(due, line.retry)
        return due

    # -- steps that several events share ------------------------------------------------------

    def _all(self) -> Iterator[Line]:
        yield from self.lines
        yield from self._own.values()

    def _forget(self, connection: Connection) -> bool:
        """Take a connection out of where it waits; whether it waited anywhere."""
        if self._heads.pop(connection, None) is not None:
            return True
        line = self._line_of.get(connection)
        if line is not None:
            self._take_out(connection, line)
        return line is not None

    def _close_resting(self, connection: Connection, line: Line) -> None:
        self._take_out(connection, line)
        self.counters["rest_closed"] += 1
        self.agenda.add(Drop(connection))

    def _sacrifice(self) -> bool:
        """Close one that waits at rest, with which nothing is lost; whether there was one."""
        for line in self._all():
            for connection in line.resting:
                self._close_resting(connection, line)
                return True
        return False

    def _take_out(self, connection: Connection, line: Line) -> None:
        del self._line_of[connection]
        if line.resting.pop(connection, None) is None:
            del line.queue[connection]
            self._queued -= 1
            if not line.queue and line.process is None:
                self.free[line.slot] = line.open
        if line.open and not (line.queue or line.resting):
            line.retry = None
            self.agenda.add(Watch(line, False))


def _overdue(waiting: dict[Connection, float], now: float) -> list[Connection]:
    """Those whose deadline has passed. All of one place wait equally long, so the oldest is due
    first and one look at it is enough in the common case."""
    due = []
    for connection, deadline in waiting.items():
        if deadline > now:
            break
        due.append(connection)
    return due
