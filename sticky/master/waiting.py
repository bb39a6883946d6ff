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
  no limit. What cannot be placed is answered if a request has come meanwhile, and else closed
  without a word, because an answer to nothing would be taken for that of the next request.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from itertools import islice
from typing import Any

from .agenda import RETRY, Accepting, Agenda, Connection, Drop, Refuse, Rules, Stage
from .queues import Line, Queues, overdue

LINGER = 2.0
"""Seconds for a refused client to read its answer: closing at once, with bytes of its request
unread, would reset the connection and the answer with it (RFC 9112, 9.6)."""
LAST_HEAD = 1.0
"""Seconds for heads that are awaited when a stop begins: one that is on its way needs less, and a
browser's spare connection would never send any."""


class Waiting:
    """Where each connection is that the master holds, and until when.

    Args:
        rules: the limits.
        agenda: where to put what is to be done.
        counters: where to count.

    Attributes:
        queues: those that wait in a line.
        lines: of the slots, by number.
        free: for each slot 1 while what comes for it may be sent to its inbox at once.
    """

    def __init__(self, rules: Rules, agenda: Agenda, counters: MutableMapping[str, int]) -> None:
        self.rules = rules
        self.agenda = agenda
        self.counters = counters
        self.queues = queues = Queues(rules, agenda, counters, self.refuse)
        self.lines, self.free = queues.lines, queues.free
        # What happens to a line, and in one:
        self.grow, self.open, self.shut, self.ended = (
            queues.grow,
            queues.open,
            queues.shut,
            queues.ended,
        )
        self.own, self.queue, self.return_ = queues.of_process, queues.queue, queues.return_
        self.room, self.delivered, self.blocked = queues.room, queues.delivered, queues.blocked
        self.end_rest = queues.end_rest
        self._heads: dict[Connection, float] = {}
        self._refused: dict[Connection, float] = {}
        self._resume: float | None = None

    # -- what the shell asks ------------------------------------------------------------------

    @property
    def held(self) -> int:
        """How many connections are here, in whatever place."""
        return len(self._heads) + len(self._refused) + len(self.queues.line_of)

    @property
    def queued(self) -> int:
        """How many wait with a request."""
        return self.queues.queued

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
        for line in self.queues:
            for connection, deadline in line.queue.items():
                yield "queue", line, connection, deadline
            for connection, deadline in line.resting.items():
                yield "rest", line, connection, deadline

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

        packed = {
            "resume": self._resume,
            "heads": put(self._heads),
            "refused": put(self._refused),
            **self.queues.pack(put),
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

        self._resume = packed["resume"]
        self._heads, self._refused = take(packed["heads"]), take(packed["refused"])
        self.queues.restore(packed, take)
        if next(left, None) is not None:
            raise ValueError("there are more connections than places for them")

    def watched(self) -> Iterator[Line]:
        """The lines whose inboxes are to be watched for room."""
        for line in self.queues:
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

    def overstayed(self, connection: Connection, now: float) -> None:
        """One that lay in the inbox of a process that did not read it for ``queue_timeout``."""
        self.counters["queue_timeouts"] += 1
        self.refuse(connection, 503, now)

    def _forget(self, connection: Connection) -> bool:
        """Take a connection out of where it waits; whether it waited anywhere."""
        if self._heads.pop(connection, None) is not None:
            return True
        return self.queues.forget(connection)

    # -- there is no room ---------------------------------------------------------------------

    def starved(self, now: float) -> None:
        """A connection could not be accepted for want of descriptors or memory.

        Whoever has been here longest makes room; with nobody to ask, accepting pauses.
        """
        if self.queues.sacrifice():
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
        if self.queues.sacrifice():
            return True
        oldest = next(iter(self._refused or self._heads), None)
        if oldest is not None:
            self.counters["crowded_out"] += oldest in self._heads
            self.left(oldest)
            return True
        newest = self.queues.newest()
        if newest is None:
            return False
        self.counters["crowded_out"] += 1
        self.refuse(newest, 503, now)
        return True

    # -- a stop -------------------------------------------------------------------------------

    def hurry(self, now: float) -> None:
        """The server stops: who has said nothing yet has little time left, and who rests none."""
        for connection, deadline in self._heads.items():
            self._heads[connection] = min(deadline, now + LAST_HEAD)
        self.queues.rest_no_more(now)

    def refuse_all(self, now: float) -> None:
        """Nobody waits any longer."""
        for connection in [*self._heads, *(one for line in self.queues for one in line.queue)]:
            self.refuse(connection, 503, now)

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whatever is due by now."""
        for connection in overdue(self._heads, now):
            self.counters["head_timeouts"] += 1
            self.refuse(connection, 408, now)
        self.queues.tick(now)
        for connection in overdue(self._refused, now):
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
        return min(due, self.queues.next_due())
