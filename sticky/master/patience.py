"""How long a process is waited for: until it is ready, and for its next beat; by a clock that runs
only while we do. No I/O, no clock of its own."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

from .. import heartbeat
from . import records
from .agenda import LONGEST_STEP, Rules, Why
from .ends import Ends
from .roster import Process, Worker

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
        self._every = heartbeat.every(rules.timeout)
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

    def heard(self, worker: Worker, beats: int, now: float) -> None:
        """So many beats of a process were counted by now."""
        if beats != worker.beats:
            worker.beats, worker.beaten = beats, self.running(now)

    def limit(self, worker: Worker) -> float:
        """When something is due about a process."""
        if worker.doomed:
            return worker.at
        if worker.state is Process.STARTING:
            return self._ready_by(worker)
        if worker.state is not Process.READY or not self.rules.timeout:
            return worker.at
        return min(worker.at, self.now + self._every, self._beat_by(worker))

    def check(self, process: Hashable, worker: Worker, now: float) -> None:
        """Whether a process is late for anything, and what comes of it."""
        if worker.at <= now:
            self.ends.next_step(process, worker, now)
        elif worker.doomed:
            pass
        elif worker.state is Process.STARTING and self._ready_by(worker) <= now:
            self.ends.abort(process, Why.NOT_READY, now)
        elif worker.state is Process.READY and self._beat_by(worker) <= now:
            self.ends.abort(process, Why.SILENT, now)

    def _ready_by(self, worker: Worker) -> float:
        return self._missed + worker.started + self.rules.boot_timeout

    def _beat_by(self, worker: Worker) -> float:
        # What it does instead of the next beat may take the whole timeout.
        return self._missed + worker.beaten + self._every + (self.rules.timeout or math.inf)
