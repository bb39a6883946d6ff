"""How long a process is waited for: until it is ready, and for its answers; by a clock that runs
only while we do. No I/O, no clock of its own."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

from . import records
from .agenda import LONGEST_STEP, Rules, Tell, Why
from .ends import Ends
from .roster import Process, Worker

PING_EVERY = 5.0
"""Seconds between two pings at most; less where ``timeout`` is short."""

_PACKED = ("now", "_missed")


class Patience:
    """Who is late.

    Args:
        rules: the limits.
        ends: what happens to them.

    Attributes:
        now: when it was looked at last.
    """

    def __init__(self, rules: Rules, ends: Ends) -> None:
        self.rules = rules
        self.ends = ends
        self.now = 0.0
        self._missed = 0.0  # seconds in which we did not run

    def pack(self) -> dict[str, Any]:
        """What ``restore`` needs."""
        return records.fields(self, _PACKED)

    def restore(self, packed: Mapping[str, Any]) -> None:
        """The time before counts.

        Raises:
            StickyError: something was packed that has no place here.
        """
        records.put_back(self, packed, _PACKED)

    def tick(self, now: float) -> None:
        """We run."""
        self._missed = now - self.running(now)
        self.now = now

    def running(self, now: float) -> float:
        """The time on a clock that runs only while we do."""
        return now - self._missed - max(0.0, now - self.now - LONGEST_STEP)

    @property
    def ping_every(self) -> float:
        return min(self.rules.timeout / 4, PING_EVERY) or LONGEST_STEP

    def limit(self, worker: Worker) -> float:
        """When something is due about a process."""
        if worker.doomed:
            return worker.at
        if worker.state is Process.STARTING:
            return self._missed + worker.started + self.rules.boot_timeout
        if worker.state is not Process.READY or not self.rules.timeout:
            return worker.at
        ping = self._missed + worker.asked + self.ping_every
        return min(worker.at, ping, self._answer_by(worker))

    def _answer_by(self, worker: Worker) -> float:
        owes = math.inf if worker.owes is None else worker.owes
        return self._missed + owes + self.rules.timeout

    def check(self, process: Hashable, worker: Worker, now: float) -> None:
        if worker.at <= now:
            self.ends.next_step(process, worker, now)
        elif worker.doomed or self.limit(worker) > now:
            pass
        elif worker.state is Process.STARTING:
            self.ends.abort(process, Why.NOT_READY, now)
        elif self._answer_by(worker) <= now:
            self.ends.abort(process, Why.SILENT, now)
        elif worker.state is Process.READY:
            # It has the whole timeout from here, however late we were to ask.
            worker.asked = now - self._missed
            worker.owes = worker.asked if worker.owes is None else worker.owes
            self.ends.say(process, Tell.PING)
