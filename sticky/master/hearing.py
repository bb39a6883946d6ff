"""What the workers say, and how they end: told to who decides, and to the log."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable

from .. import channel, logs
from ..errors import ChannelError
from ..topology import Topology
from .agenda import Stage, Why
from .children import Child, Children
from .dispatcher import Dispatcher
from .inboxes import Inboxes
from .ledger import Ledger
from .loop import Loop
from .room import Room
from .roster import Process, Slot
from .signals import describe, reap

log = logging.getLogger("sticky.master")

_AT_ONCE = 64
"""Messages of one process that are read before everything else gets its turn again."""


class Hearing:
    """The control pairs, and the pidfds.

    Args:
        children: the processes.
        ledger: decides what comes of it.
        dispatcher: has the connections that were handed back.
        inboxes: what lies in them.
        room: for what comes.
        topology: how many slots there are.
        loop: tells of what was said.
        reader: reads messages.
        publish: has all see who serves a slot.
        finds_class: it is left to the workers which class they are of.

    """

    def __init__(
        self,
        children: Children,
        ledger: Ledger,
        dispatcher: Dispatcher,
        inboxes: Inboxes,
        room: Room,
        *,
        topology: Topology,
        loop: Loop,
        reader: channel.Reader,
        publish: Callable[[int], object],
        finds_class: bool,
    ) -> None:
        self._children = children
        self._ledger = ledger
        self._lives, self._waiting, self._agenda = ledger.lives, ledger.waiting, ledger.agenda
        self._dispatcher, self._returning = dispatcher, dispatcher.returning
        self._inboxes = inboxes
        self._room = room
        self._topology = topology
        self._loop = loop
        self._reader = reader
        self._publish = publish
        self._auto = finds_class
        self._explained = False

    def on_control(self, key: int, most: int = _AT_ONCE) -> None:
        """A process has said something: hear at most so many messages."""
        self._room.give()
        try:
            self._obey(self._children.by_key[key], key, most)
        finally:
            self._room.settle()

    def expect_other_code(self) -> None:
        """If workers cannot start with that either, the log says why once more."""
        self._explained = False

    def _obey(self, child: Child, key: int, most: int) -> None:
        """Read and do what a process has said, so many messages of it."""
        for _ in range(most):
            try:
                message = self._reader.receive(child.control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it died with something of ours unread; what it said comes now
            except ChannelError as error:
                log.error("worker %d (pid %d): %s", child.slot, child.pid, error)
                continue
            if message is None:
                self._loop.unregister(child.control.fileno())  # its end is told by the pidfd
                return
            stays = False
            if message.kind == channel.READY:
                self._learn(child, message.payload)
                if self._lives.ready(key, time.monotonic()):
                    self._publish(child.slot)  # before anybody reads that it is ready
                    log.info("worker %d ready (pid %d)", child.slot, child.pid)
            elif message.kind == channel.HAND_BACK:
                stays = self._returning.take_back(message, key)
            elif message.kind == channel.REST:
                stays = self._returning.pass_on(message, self._heir(key, message.address))
            elif message.kind == channel.LEAVING:
                log.info("worker %d (pid %d) asks to be replaced", child.slot, child.pid)
                self._lives.leaving(key, time.monotonic())
            elif message.kind == channel.NOTICE:
                notice = json.loads(message.payload)
                self._dispatcher.notices.tell(
                    notice["subject"], logs.printable(notice["text"], 2000)
                )
            elif message.kind == channel.FAILED:
                child.failure = json.loads(message.payload)
            if stays or self._agenda.actions:
                self._room.settle()
                self._room.give()

    def _learn(self, child: Child, said: bytes) -> None:
        """A process that is ready says which class it has become, if that was left to it."""
        found = (json.loads(said or b"null") or {}).get("worker_class")
        if found and child.worker_class == "auto":
            self._children.worker_class = str(found)
            log.info("This app is served by the worker class %r", found)

    def _heir(self, key: int, address: channel.Address) -> int | None:
        """The slot that connections at rest of this process go to; None while it is to keep them.

        Args:
            address: their client's.
        """
        slot = self._children.by_key[key].slot
        if slot >= self._topology.num:
            return self._returning.heir(address)
        return None if self._lives.current(slot) == key else slot

    def on_end(self, key: int) -> None:
        """A process has ended."""
        self.on_control(key, sys.maxsize)  # what it said last
        child = self._children.by_key[key]
        before = self._lives.state_of(key)
        was_serving = self._agenda.stage is Stage.SERVING
        own = self._waiting.own(key, child.slot)
        left = self._inboxes.collect(child.inbox_end) if child.inbox_end is not None else []
        self._children.forget(key)
        status = reap(child.pid)
        child.close()
        now = time.monotonic()
        failure = child.failure or {}
        right = failure.get("worker_class")
        again = bool(right) and self._auto and right != child.worker_class
        status_then, said_why = failure.get("status", 3), child.failure is not None
        again = self._ledger.ended(key, now, status_then, again=again, said_why=said_why)
        if again:
            self._children.worker_class = str(right)
        self._returning.return_(own, left)
        self._room.settle()  # what lies in the inbox of a slot that goes is read before that closes
        self._children.shrink(self._lives.target)
        if again:
            log.info("This app needs the worker class %r: all workers are of that class", right)
        if again or child.killed_because is Why.STOPPED:
            return
        who = f"worker {child.slot} (pid {child.pid})"
        if not status and (before is Process.DRAINING or not was_serving):
            log.info("%s ended", who)
            return
        if before is Process.STARTING and not self._lives.announced:
            if not self._explained:
                self._explained = True
                reason = failure.get("reason") or f"it {describe(status)} before it was ready"
                log.error("%s could not start: %s", who, reason)
            return
        then = ""
        if self._lives.slot_state(child.slot) is Slot.BACKOFF and was_serving:
            then = f"; starting it again in {self._lives.backoff(child.slot):g} s"
        log.warning("%s %s%s", who, failure.get("reason") or describe(status), then)
