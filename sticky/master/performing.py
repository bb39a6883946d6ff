"""What was decided, carried out: by its processes, and by what sends connections to them."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from typing import Any

from .. import channel
from . import agenda
from .agenda import Tell, Why
from .parts import Parts

log = logging.getLogger("sticky.master")

_TOLD = {
    Tell.CLOSING: channel.CLOSING,
    Tell.END: channel.END,
    Tell.QUIT: channel.QUIT,
}
_WHY = {
    Why.NOT_READY: "it was not ready within {boot_timeout:g} s",
    Why.SILENT: "it did not answer for {timeout:g} s",
    Why.NOT_ENDED: "it did not end in time",
}
"""What the log says of a process that is killed; of one that is killed by design, nothing."""


class Performer:
    """Carries out what the ledger has put into its agenda.

    Args:
        parts: what the master consists of.

    Attributes:
        status: the exit status, once all is over.
    """

    def __init__(self, parts: Parts) -> None:
        self.status: int | None = None
        self._options = parts.options
        self._launcher = parts.launcher
        self._listeners = parts.listeners
        self._board = parts.board
        self._topology = parts.topology
        self._ledger, self._agenda = parts.ledger, parts.ledger.agenda
        self._lives = parts.ledger.lives
        self._children = parts.children
        self._dispatcher = parts.dispatcher
        self._room = parts.room
        self._inboxes = parts.inboxes
        self._around = parts.around

    def perform(self) -> None:
        """Carry out what was decided, and what that leads to."""
        while actions := self._agenda.take():
            for action in actions:
                self._act(action)

    def _act(self, action: agenda.Action) -> None:
        match action:
            case agenda.Spawn(slot):
                self._spawn(slot)
            case agenda.Abort(process, why):
                self._kill(process, why, signal.SIGABRT)
            case agenda.Kill(process, why):
                self._kill(process, why, signal.SIGKILL)
            case agenda.Say(process, what):
                self._say(process, what)
            case agenda.Serves(slot):
                self.publish(slot)
            case agenda.Rescaled(num, done):
                self._rescaled(num, done)
            case agenda.Deliver(line):
                self._room.empty()  # a large prefix takes a memfd for the moment
                self._dispatcher.sending.deliver(line)
                self._room.keep()
            case agenda.Watch(line, on):
                self._inboxes.watch(line, on)
            case agenda.ReadBack(line):
                self._inboxes.read_back(line)
            case agenda.Place(connection):
                self._dispatcher.returning.place(connection)
            case agenda.Refuse(connection, status):
                self._dispatcher.refusing.refuse(connection, status)
            case agenda.Drop(connection):
                self._dispatcher.refusing.drop(connection)
            case agenda.Accepting(on):
                self._dispatcher.accepting(on)
            case agenda.CloseListeners(drain):
                self._dispatcher.close(drain=drain)
                self._listeners.close()
                self._children.drop_spares()
                self._ledger.listeners_closed()
            case agenda.Announce():
                self._announce()
            case agenda.Exit(status):
                self.status = status

    def _spawn(self, number: int) -> None:
        try:
            self._children.grow(number + 1)
            key = self._children.start(number)
        except OSError as error:  # no memory, no descriptor, too many processes: it may pass
            log.error("worker %d could not be started: %s", number, error.strerror)
            self._lives.not_started(number, time.monotonic())
            return
        self._lives.spawned(key, number, time.monotonic())
        log.debug("worker %d started (pid %d)", number, self._children.by_key[key].pid)

    def _kill(self, key: Any, why: Why, sig: signal.Signals) -> None:
        child = self._children.by_key[key]
        if (text := _WHY.get(why)) and child.killed_because is None:
            text = text.format(**vars(self._options))
            log.error("worker %d (pid %d) is killed: %s", child.slot, child.pid, text)
        child.killed_because = why
        child.send(sig)

    def _say(self, key: Any, what: Tell) -> None:
        child = self._children.by_key.get(key)
        if child is not None:  # else its last words were that it is ready
            self._children.say(child, _TOLD[what])

    def publish(self, slot: int) -> None:
        """Have all processes see who serves a slot."""
        by_key = self._children.by_key
        current: Any = self._lives.current(slot)
        previous: Any = self._lives.previous(slot)
        if previous is not None and current is None:
            self._board.hide(by_key[previous].row)
        if current is not None:
            row = by_key[current].row
            self._board.previous(row, previous is not None)
            self._board.show(row, slot, by_key[current].pid)

    def _rescaled(self, num: int, done: bool) -> None:
        self._children.shrink(self._lives.target)
        if done:
            log.info("There are %d worker%s now", num, "s" if num > 1 else "")
            self._around.status(" at ".join(self._about()))
            for child in self._children.by_key.values():
                self._children.say(child, channel.RESCALED)
        else:
            log.error("more workers cannot be started: there are %d, as before", num)

    def _announce(self) -> None:
        bound = self._listeners.addresses
        self._dispatcher.listen(self._listeners.sockets)
        workers, where = self._about()
        self._around.ready(f"{workers} at {where}")
        log.info("Listening at: %s (pid %d), %s", where, os.getpid(), workers)
        if self._launcher is not None:
            payload = json.dumps(bound).encode()
            try:
                channel.send(self._launcher, channel.pack_header(channel.READY), payload)
            except OSError:
                self._ledger.stop(time.monotonic(), quick=True)

    def _about(self) -> tuple[str, str]:
        """What this server is, for people: how many workers, and where."""
        num = self._topology.num
        return f"{num} worker{'s' if num > 1 else ''}", ", ".join(self._listeners.urls)
