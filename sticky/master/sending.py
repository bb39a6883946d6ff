"""Connections on their way to the workers: sent to an inbox, or waiting in the line for it."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from .. import channel
from .held import Connection
from .queues import Line
from .waiting import Waiting

_WATCH_QUEUED = select.EPOLLRDHUP | select.EPOLLET


class Sending:
    """The inboxes, and who waits for room in them.

    Args:
        waiting: where connections are.
        inboxes: where the connections of each slot are sent.
        own_inboxes: where those are sent that only one process can serve.
        register, unregister: the loop's, to be told of events on a descriptor.
        clock: the monotonic time, in seconds.
        counters: where to count.
    """

    def __init__(
        self,
        waiting: Waiting,
        *,
        inboxes: Sequence[socket.socket],
        own_inboxes: Mapping[Any, socket.socket],
        register: Callable[[int, int, Callable[[int], object]], None],
        unregister: Callable[[int], None],
        clock: Callable[[], float],
        counters: MutableMapping[str, int],
    ) -> None:
        self._waiting = waiting
        self._inboxes = inboxes
        self._own_inboxes = own_inboxes
        self._register = register
        self._unregister = unregister
        self._clock = clock
        self.counters = counters

    def hand_over(self, connection: Connection, slot: int) -> None:
        """Send a connection to its slot, or have it wait there."""
        self.put(connection, self._waiting.lines[slot])

    def put(self, connection: Connection, line: Line) -> None:
        """Send a connection to where a line leads, or have it wait there."""
        starved = False
        rest = connection.kind == channel.REST
        connection.since = channel.stamp(self._clock())
        if line.is_idle or (line.open and not rest and not line.queue):
            try:
                self._send(connection, line)
            except OSError as error:
                starved = error.errno != errno.EAGAIN
            else:
                connection.sock.close()
                return
        if self._waiting.queue(connection, line, self._clock(), starved=starved, rest=rest):
            self.watch_queued(connection)

    def inbox(self, line: Line) -> socket.socket:
        """Where a line leads."""
        if line.process is None:
            return self._inboxes[line.slot]
        return self._own_inboxes[line.process]

    def deliver(self, line: Line) -> None:
        """Send what waits in a line, in order, until there is no room."""
        while line.open and (connection := line.first) is not None:
            assert isinstance(connection, Connection)
            self._unregister(connection.sock.fileno())
            try:
                self._send(connection, line)
            except OSError as error:
                self.watch_queued(connection)
                starved = error.errno != errno.EAGAIN
                self._waiting.blocked(line, self._clock(), starved=starved)
                return
            self._waiting.delivered(connection, line)
            connection.sock.close()

    def _send(self, connection: Connection, line: Line) -> None:
        channel.send_connection(
            self.inbox(line),
            connection.kind,
            connection.sock.fileno(),
            connection.address,
            connection.prefix,
            moves=connection.moves,
            unheld=connection.unheld,
            since=connection.since,
        )
        self.counters["passed_on"] += connection.kind == channel.REST

    def watch_queued(self, connection: Connection) -> None:
        """Be told when the client of one that waits is gone."""
        self._register(
            connection.sock.fileno(), _WATCH_QUEUED, lambda _: self._left_queue(connection)
        )

    def _left_queue(self, connection: Connection) -> None:
        """The client of a queued connection closed its side. Whether it has left or only said
        that it has no more to send cannot be told apart, so it is answered; if it has asked for
        anything."""
        self._waiting.refuse(connection, 503, self._clock())
