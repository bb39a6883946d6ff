"""Connections that come back: from workers that found them to be another's, and from inboxes that
nobody reads any more."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Hashable, Iterable, MutableMapping

from .. import channel
from ..options import Options
from ..topology import Topology
from .agenda import Connection as Handle
from .agenda import Stage
from .held import Connection, Socket
from .ledger import Ledger
from .queues import Line
from .sending import Sending

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class Returning:
    """Where they go then.

    Args:
        options: the settings.
        topology: decides from the bytes that were read.
        ledger: decides everything else.
        sending: how they get there.
        placed: the slot for a request, or a verdict.
        unregister: the loop's, to be told of no more events on a descriptor.
        clock: the monotonic time, in seconds.
        counters: where to count.
        tell: called with a subject and a text for the log.
    """

    def __init__(
        self,
        options: Options,
        topology: Topology,
        ledger: Ledger,
        sending: Sending,
        *,
        placed: Callable[[bytes | bytearray, int, channel.Address], int],
        unregister: Callable[[int], None],
        clock: Callable[[], float],
        counters: MutableMapping[str, int],
        tell: Callable[[str, str], object],
    ) -> None:
        self._peeks = options.peeks
        self._limit = options.max_head_size
        self._buffer = bytearray(self._limit)
        self._max_moves = options.max_moves
        self._topology = topology
        self._ledger = ledger
        self._waiting = ledger.waiting
        self._sending = sending
        self._placed = placed
        self._unregister = unregister
        self._clock = clock
        self.counters = counters
        self.tell = tell

    def take_back(self, message: channel.Message, process: Hashable) -> bool:
        """A worker looked at the next request of a connection and found it to be another's.

        In the common case it is sent on as it came, and no object made for it.

        Args:
            message: what it has sent.
            process: who has.

        Returns:
            Whether it stays here: it was queued or refused.
        """
        fd, address, payload = message.fds[0], message.address, message.payload
        moves, unheld = message.moves + 1, message.unheld
        self.counters["moved"] += 1
        self.counters["bytes_carried"] += len(payload)
        status, line = 503, None
        if moves > self._max_moves:
            self.counters["moved_too_often"] += 1
            self.tell("moves", "a connection was moved too often for one request: answered 503")
        elif self._ledger.stage not in (Stage.ENDING, Stage.OVER):
            line = self._holder(process, payload) if unheld else None
            if line is not None:
                moves, unheld = message.moves, False  # it is asked for, and has not moved yet
            else:
                status, slot = 400, self._placed(payload, len(payload), address)
                line = self._waiting.lines[slot] if slot >= 0 else None
            if line is not None and line.open and not line.queue:
                since = channel.stamp(self._clock())
                if _pass_on(
                    self._sending.inbox(line), fd, address, payload, moves, since, unheld=unheld
                ):
                    return False
        connection = self._taken(message)
        connection.moves, connection.unheld = moves, unheld
        if line is None:
            self._refuse(connection, status)
        else:
            self._sending.put(connection, line)
        return connection.sock.fileno() >= 0

    def _holder(self, process: Hashable, head: bytes) -> Line | None:
        """The line of the next process that may hold the session which this one does not."""
        lives = self._ledger.lives
        _, session = self._topology.router.find(head, len(head))
        who = lives.next_holder(process, self._topology.owners(session))
        return self._waiting.own(who, lives.slot_of(who)) if who is not None else None

    def pass_on(self, message: channel.Message, slot: int | None) -> bool:
        """A worker that ends gives away a connection at rest.

        Args:
            message: what it has sent.
            slot: whose process is to have it; None: nobody's can.

        Returns:
            Whether it stays here: it waits for its turn.
        """
        connection = self._taken(message)
        if slot is None or self._ledger.stage is not Stage.SERVING:
            self._waiting.end_rest(connection, self._clock())
        else:
            self._sending.put(connection, self._waiting.lines[slot])
        return connection.sock.fileno() >= 0

    def _taken(self, message: channel.Message) -> Connection:
        """The connection that came with a message."""
        fd, address = message.fds[0], message.address
        sock = Socket(channel.socket_family(address), socket.SOCK_STREAM, 0, fd)
        connection = Connection(sock, address, message.payload, message.moves)
        connection.unheld = message.unheld
        if message.kind == channel.REST:
            connection.kind = channel.REST
        return connection

    def return_(self, line: Line, messages: Iterable[channel.Message]) -> None:
        """These lay in the inbox of a line that nobody reads any more."""
        now = self._clock()
        returned = [(self._taken(message), message.since) for message in messages]
        if line.process is None and line.slot < self._topology.num:
            self._waiting.return_(
                line,
                (
                    (connection, now - channel.age(since, now), connection.kind == channel.REST)
                    for connection, since in returned
                ),
                now,
            )
            for connection, since in returned:
                connection.since = since
                self._sending.watch_queued(connection)
        else:
            for connection, _ in returned:
                self.place(connection)

    def turn_away(self, message: channel.Message) -> None:
        """It lay in an inbox that nobody reads, and there is no room for it here."""
        self.counters["crowded_out"] += 1
        connection = self._taken(message)
        if connection.kind == channel.REST:
            self._waiting.end_rest(connection, self._clock())
        else:
            self._refuse(connection, 503)

    def overstayed(self, message: channel.Message) -> None:
        """It lay in an inbox for longer than it may wait."""
        connection = self._taken(message)
        if connection.kind == channel.REST:
            self._waiting.end_rest(connection, self._clock())
        else:
            self._waiting.overstayed(connection, self._clock())

    def place(self, handle: Handle) -> None:
        """Decide anew where a connection goes: where it was to go, nobody is."""
        assert isinstance(handle, Connection)
        sock, address = handle.sock, handle.address
        self._unregister(sock.fileno())
        if handle.kind == channel.REST and self._ledger.stage is not Stage.SERVING:
            self._waiting.end_rest(handle, self._clock())
            return
        if handle.kind == channel.REST:
            slot = self.heir(address)
        elif handle.prefix:
            slot = self._placed(handle.prefix, len(handle.prefix), address)
        else:
            try:
                length = sock.recv_into(self._buffer, self._limit, _PEEK) if self._peeks else 0
            except OSError:
                length = 0
            slot = self._placed(self._buffer, length, address)
        if slot >= 0:
            self._sending.hand_over(handle, slot)
        else:
            self._refuse(handle, 503)

    def heir(self, address: channel.Address) -> int:
        """The slot that a connection at rest goes to whose slot is none any more."""
        if self._peeks:  # each request of it will be looked at
            free = self._waiting.free
            return max(range(self._topology.num), key=lambda slot: free[slot])
        return max(0, self._placed(b"", 0, address))

    def _refuse(self, connection: Connection, status: int) -> None:
        self._waiting.refuse(connection, status, self._clock())


def _pass_on(
    to: socket.socket,
    fd: int,
    address: channel.Address,
    prefix: bytes,
    moves: int,
    since: int,
    *,
    unheld: bool = False,
) -> bool:
    """Send a connection that is known by its descriptor alone; whether there was room for it."""
    try:
        channel.send_connection(
            to, channel.CONNECTION, fd, address, prefix, moves=moves, unheld=unheld, since=since
        )
    except OSError:
        return False
    os.close(fd)
    return True
