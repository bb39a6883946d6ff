"""Going on with new code in this very process (SIGUSR2): when, and what the next master is told.
How it is done stands in ``upgrade``."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from .. import __version__, channel
from ..board import layout
from ..errors import StickyError
from . import upgrade
from .parts import Parts
from .state import Packed, Packing

log = logging.getLogger("sticky.master")


class Succession:
    """The upgrades of one master.

    Args:
        parts: what it consists of.
        perform: has done what was decided.

    Attributes:
        trial: of the new code.
        agreed: it can take over.
    """

    def __init__(self, parts: Parts, perform: Callable[[], object]) -> None:
        self._parts = parts
        self._perform = perform
        self.trial = upgrade.Trial(parts.loop, self._on_trial)
        self.agreed = False

    def begin(self, while_serving: Callable[[], object]) -> None:
        """Try the new code, to go on with it if that can take over.

        Args:
            while_serving: raises StickyError if the server is in no state for that.

        Raises:
            StickyError: not now, or there is no room to try it.
        """
        self._perform()  # what was asked for just before: what is packed has nothing half done
        try:
            while_serving()
            if self.trial.pid or self.agreed:
                raise StickyError("another one is under way")
            packing = Packing()
            self.trial.start(packing, self._pack(packing), time.monotonic())
        except (OSError, StickyError) as error:
            raise StickyError(upgrade.cannot(error)) from None
        log.info("Upgrading in place: trying the new code")

    def _on_trial(self, why_not: str | None) -> None:
        if why_not is not None:
            log.error("%s", upgrade.cannot(why_not))
        else:
            self.agreed = True
            # Between two turns, with nothing half done.
            self._parts.ledger.agenda.remind(time.monotonic())

    def abandon(self) -> None:
        """The server stops, and has no use for it."""
        if self.trial.pid or self.agreed:
            self.trial.stop()
            self.agreed = False
            log.info("%s", upgrade.cannot("the server stops"))

    def _pack(self, packing: Packing) -> dict[str, Any]:
        """Everything that the next master in this process has to know."""
        parts = self._parts
        ledger, connections = parts.ledger.pack()
        program, launcher, topology = parts.program, parts.launcher, parts.topology
        return {
            "path": list(program.path),
            "pid": os.getpid(),
            "version": __version__,
            "messages": channel.VERSION,
            "options": parts.options.to_json(),
            "program": vars(program),
            "launcher": None if launcher is None else packing.fd(launcher.fileno()),
            "listeners": parts.listeners.pack(packing),
            "board": {"fd": packing.fd(parts.board.fd), "layout": layout()},
            "topology": {
                "cells": parts.board.topology.tolist(),
                "earlier": topology.pack().hex(),
            },
            "children": parts.children.pack(packing),
            "ledger": ledger,
            "dispatcher": parts.dispatcher.pack(connections, packing),
            "around": parts.around.pack(packing),
            "terminal": parts.terminal.pack(),
        }

    def replace_code(self) -> list[signal.Signals]:
        """Become the new code. If the system refuses, go on as before.

        Returns:
            The signals that have come meanwhile.
        """
        self._parts.changes.stop()
        self._parts.children.drop_spares()
        before = upgrade.hold()
        arrived = self._parts.signals.arrived()
        self._parts.room.empty()
        packing = Packing()
        try:
            content = self._pack(packing)
            upgrade.become(packing, {**content, "blocked": before, "signals": arrived})
        except (OSError, StickyError) as error:
            log.error("%s", upgrade.cannot(error))
        self._parts.room.make()
        upgrade.release(before)
        return arrived

    def restore(self, packed: Packed) -> None:
        """Have everything as the master before had it; ``resume`` goes on from there."""
        content, parts = packed.content, self._parts
        parts.topology.restore(bytes.fromhex(content["topology"]["earlier"]))
        parts.children.restore(content["children"], packed)
        parts.board.restore(child.row for child in parts.children.by_key.values())
        connections = parts.dispatcher.restore(content["dispatcher"], packed)
        parts.ledger.restore(content["ledger"], connections)

    def resume(self, packed: Packed) -> list[signal.Signals]:
        """Take the place of the master before.

        Returns:
            The signals that it has not obeyed.
        """
        content, parts = packed.content, self._parts
        parts.children.resume()
        parts.dispatcher.listen(parts.listeners.sockets)
        if parts.ledger.waiting.paused:
            parts.dispatcher.accepting(False)
        parts.dispatcher.resume()
        for line in parts.ledger.waiting.watched():
            parts.inboxes.watch(line, True)
        parts.around.resume()
        upgrade.release(content["blocked"])
        log.info(
            "Upgraded in place from %s to %s (pid %d)", content["version"], __version__, os.getpid()
        )
        arrived = [signal.Signals(number) for number in content["signals"]]
        packed.close()
        parts.room.make()
        return arrived
