"""What lies in the inboxes: watched for room, read back where nobody reads it, told to come again
where nobody does so in time."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from .. import channel
from ..errors import ChannelError
from .children import Children, drained
from .loop import Loop
from .queues import Line
from .returning import Returning
from .room import Room


class Inboxes:
    """Those of the slots, and of the processes.

    Args:
        children: whose they are.
        loop: tells when there is room in one.
        room: for what is taken out.
        returning: what becomes of it.
        reader: reads messages.
        on_room: called with the line that leads to one with room.
        queue_timeout: seconds for which something may lie there.
    """

    def __init__(
        self,
        children: Children,
        loop: Loop,
        room: Room,
        returning: Returning,
        reader: channel.Reader,
        on_room: Callable[[Line], object],
        queue_timeout: float,
    ) -> None:
        self._children = children
        self._loop = loop
        self._room = room
        self._returning = returning
        self._reader = reader
        self._on_room = on_room
        self._queue_timeout = queue_timeout

    def watch(self, line: Line, on: bool) -> None:
        """Be told when there is room in the inbox of a line, or not any more."""
        children = self._children
        if on and not line.wants_room:
            return  # to make room, somebody was told to go before this had its turn
        if line.process is None:
            inbox = children.inboxes[line.slot]
        elif line.process in children.own_inboxes:
            inbox = children.own_inboxes[line.process]
        else:
            return  # it has ended, and its inbox with it
        if on:
            self._loop.register(inbox.fileno(), select.EPOLLOUT, lambda _: self._on_room(line))
        else:
            self._loop.unregister(inbox.fileno())

    def read_back(self, line: Line) -> None:
        """Nobody reads this inbox any more: what lies in it waits here again."""
        end = self._children.inbox_end(line.slot, line.process)
        if end is not None:
            self._returning.return_(line, self.collect(end))
            self._room.make()

    def collect(self, end: socket.socket) -> list[channel.Message]:
        """All that lies in an inbox."""
        found = []
        self._room.give()
        for message in drained(end, self._reader):
            found.append(message)
            self._room.make()
            if not self._room.keep():  # nobody else could go
                self._returning.turn_away(found.pop())
                self._room.make()
            self._room.give()
        self._room.make()
        return found

    def relieve(self, now: float) -> None:
        """Who lies in an inbox for longer than ``queue_timeout``, its process being busy, is told
        to come again: from there nobody else can have it."""
        ends = [pairs.inbox_end for pairs in self._children.pairs]
        ends += [c.inbox_end for c in self._children.by_key.values() if c.inbox_end is not None]
        for end in ends:
            while (since := channel.oldest(end)) is not None:
                if channel.age(since, now) < self._queue_timeout:
                    break
                self._room.give()
                try:
                    message = self._reader.receive(end)
                except (OSError, ChannelError):  # the process was faster, after all
                    break
                if message is not None:
                    self._returning.overstayed(message)
                self._room.settle()
