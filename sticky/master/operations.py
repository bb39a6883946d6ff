"""What an operator can have done: what ``sticky ctl`` asks for (``control``), and signals."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from .. import inquiry
from ..errors import StickyError
from ..options import MAX_WORKERS
from .agenda import Stage
from .children import Child
from .parts import Parts
from .report import Reporter, Seen
from .succession import Succession

log = logging.getLogger("sticky.master")


class Operator:
    """Does all of it (``control.Operations``); each returns at once, and what it begins goes on.

    Args:
        parts: what the master consists of.
        succession: goes on with new code for the master.
        on_reload: called when there may be new code for the workers.
    """

    def __init__(
        self, parts: Parts, succession: Succession, on_reload: Callable[[], object]
    ) -> None:
        self._options = parts.options
        self._board = parts.board
        self._reporter = Reporter(parts.board)
        self._ledger = ledger = parts.ledger
        self._lives, self._waiting, self._agenda = ledger.lives, ledger.waiting, ledger.agenda
        self._children = parts.children
        self._topology = parts.topology
        self._listeners = parts.listeners
        self._around = parts.around
        self._succession = succession
        self._on_reload = on_reload

    def status(self) -> Mapping[str, Any]:
        """What there is, slot by slot; report.py says in which words."""
        lives, waiting = self._lives, self._waiting
        seen = []
        for key, child in self._children.by_key.items():
            state, serves = lives.state_of(key).name.lower(), lives.current(child.slot) == key
            seen.append(Seen(child.slot, child.pid, child.row, state, serves, child.worker_class))
        slots = [
            (lives.slot_state(number).name.lower(), len(line.queue), len(line.resting))
            for number, line in zip(lives.numbers, waiting.lines, strict=False)
            if number < lives.target
        ]
        return self._reporter.status(
            seen,
            slots,
            time.monotonic(),
            stage=self._agenda.stage.name.lower(),
            reloading=lives.reloading,
            listening=self._listeners.urls,
            held=waiting.held,
        )

    def stats(self) -> Mapping[str, Any]:
        """The counters, as ``sticky.stats()`` gives them."""
        return self._board.stats()

    def mail(self) -> tuple[Mapping[str, Any], list[int]]:
        """The workers' mailboxes, for an emitter."""
        answer, fds = self._children.post.mailboxes()
        return {**answer, "pid": os.getpid()}, fds

    def why(self, text: str) -> Mapping[str, Any]:
        """Where an address or a session id goes, and the process that is there.

        Raises:
            StickyError: it is neither.
        """
        found = inquiry.why(text, self._options, self._topology.num)
        slot = found["slot"]  # None where any may have it
        key: Any = None if slot is None else self._lives.current(slot)
        return {**found, "pid": self._children.by_key[key].pid if key is not None else None}

    def reload(self) -> None:
        """Replace all workers by new ones, with what their code is now.

        Raises:
            StickyError: the server stops, or has not started yet.
        """
        self._while_serving()
        self.renew()

    def upgrade(self) -> None:
        """Go on with new code for the master in this very process, if that can take over; then
        replace all workers.

        Raises:
            StickyError: not now, or there is no room to try it.
        """
        self._succession.begin(self._while_serving)

    def scale(self, n: int) -> None:
        """Have so many workers.

        Raises:
            StickyError: that many are not possible, or not now.
        """
        self._while_serving()
        if not 1 <= n <= MAX_WORKERS:
            raise StickyError(f"{n} workers are not possible: from 1 to {MAX_WORKERS} are")
        before = self._lives.target
        if self._ledger.scale(n, time.monotonic()):
            log.info("Scaling from %d to %d workers", before, n)

    def drain(self, slot: int) -> None:
        """Replace the process of a slot by a new one, gracefully."""
        self._while_serving()
        self._at(slot)
        self._lives.replace(slot, time.monotonic())

    def kill(self, slot: int) -> None:
        """SIGKILL to the process of a slot, which then gets another."""
        self._at(slot).send(signal.SIGKILL)

    def stop(self, *, quick: bool = False) -> None:
        """End the server: requests in hand are finished, or at once."""
        self.stop_because("sticky ctl", time.monotonic(), quick=quick)

    def stop_because(self, why: str, now: float, *, quick: bool) -> None:
        """The same, for this reason, whoever asks for it."""
        if self._agenda.stage is Stage.SERVING:
            log.info("%s: stopping%s", why, "" if quick else " gracefully")
        self._ledger.stop(now, quick=quick)

    def renew(self) -> None:
        """The same, in whatever state the server is."""
        self._on_reload()
        if self._lives.reload(time.monotonic()):
            log.info("Reloading: the workers are replaced one after another")
            self._around.reloading()
            self._children.drop_spares()

    def _at(self, slot: int) -> Child:
        if slot >= self._topology.num:
            last = self._topology.num - 1
            raise StickyError(f"there is no slot {slot}: they are 0 to {last}")
        key: Any = self._lives.current(slot)
        if key is None:
            raise StickyError(f"slot {slot} has no process that serves it now")
        return self._children.by_key[key]

    def _while_serving(self) -> None:
        if self._agenda.stage is not Stage.SERVING:
            raise StickyError("the server stops")
        if not self._lives.announced:
            raise StickyError("the server is starting: not all of its workers have been ready yet")
