"""Accept, peek until the head can be decided or is too late, and hand over or refuse.

Nothing is consumed from a connection that will be served: the bytes are peeked at and stay where
they are, for the worker to read. What a client can do meanwhile (say nothing, dribble, leave, send
rubbish) ends in deadlines (``waiting``) and in ``_watched`` below.

The common case (the whole head is there when the connection is accepted, the inbox has room) is
``accept``: five system calls with the one that waited, and no object but the socket.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from .. import channel
from ..answers import refusals
from ..channel import hand_over
from ..firsts import FirstRequests
from ..options import Options
from ..rules import ANYWHERE, MALFORMED, MISSING, NEED_MORE
from ..topology import Topology
from .agenda import Connection as Handle
from .agenda import Stage
from .diagnosis import Survey
from .ledger import Ledger
from .state import Packed, Packing
from .waiting import Line

log = logging.getLogger("sticky.master")

_MOST_AT_ONCE = 64
"""Connections accepted before everything else gets its turn again."""
_FULL_BATCHES = 4
"""Full batches in a row after which the batch grows."""

_WATCH = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_WATCH_QUEUED = select.EPOLLRDHUP | select.EPOLLET
_OUT_OF_SOMETHING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
# As a number: what is done with the enums of the socket module takes longer than the system call.
# The end of the stream follows, and goes in the same segment.
_LAST = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | socket.MSG_MORE)


# The type below ``socket.socket``. Making one costs a third, and what the other adds (enums,
# reference counts of its files) nobody here looks at.
Socket = socket.SocketType


def _accept_unnamed(accept: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
    """Accept from a unix socket: what its client may have bound itself to is no address."""
    return accept()[0], ""


class Connection:
    """One connection that the master holds for longer than a moment."""

    __slots__ = ("address", "kind", "moves", "prefix", "since", "sock", "unheld")

    def __init__(
        self, sock: Socket, address: channel.Address, prefix: bytes = b"", moves: int = 0
    ) -> None:
        self.sock = sock
        self.address = address
        self.prefix = prefix
        self.moves = moves
        self.unheld = False
        self.since = 0  # when it was decided where it goes, as a message carries it
        self.kind = channel.CONNECTION  # or REST


class Dispatcher:
    """The listeners, and the connections whose head is awaited or that are being refused.

    Args:
        options: the settings.
        topology: decides from the peeked bytes.
        ledger: decides everything else.
        inboxes: where the connections of each slot are sent.
        own_inboxes: where those are sent that only one process can serve.
        register, unregister: the loop's, to be told of events on a descriptor.
        clock: the monotonic time, in seconds.
        counters: where to count.
        next_slot: says where a request goes that may go anywhere.
        firsts: what is agreed about clients that have no id yet, if they are to be given one.
    """

    def __init__(
        self,
        options: Options,
        topology: Topology,
        ledger: Ledger,
        *,
        inboxes: Sequence[socket.socket],
        own_inboxes: Mapping[Any, socket.socket],
        register: Callable[[int, int, Callable[[int], object]], None],
        unregister: Callable[[int], None],
        clock: Callable[[], float],
        counters: MutableMapping[str, int],
        next_slot: Callable[[], int],
        firsts: FirstRequests | None = None,
    ) -> None:
        self._peeks = options.peeks
        self._header = options.header
        self._limit = options.max_head_size
        self._topology = topology
        router = topology.router
        self._route = router.route
        self._explain = router.explain
        self._ledger = ledger
        self._waiting = ledger.waiting
        self._inboxes = inboxes
        self._own_inboxes = own_inboxes
        self._register = register
        self._unregister = unregister
        self._clock = clock
        self._buffer = bytearray(self._limit)
        self._listeners: list[socket.socket] = []
        self._kinds: dict[socket.socket, tuple[Callable[[], tuple[int, Any]], int, int, int]] = {}
        self._burst, self._full = 1, 0
        self._answers = refusals(options)
        self._max_moves = options.max_moves
        self._told: set[str] = set()
        # With session ids one address may well be all that is seen, and nothing is wrong.
        surveyed = options.session is None
        self._survey: Survey | None = Survey(options, topology, self.tell) if surveyed else None
        self.counters = counters
        self._next_slot = next_slot
        self._firsts = firsts

    # -- an upgrade in place ------------------------------------------------------------------

    def pack(self, connections: Iterable[Handle], packing: Packing) -> dict[str, Any]:
        """What ``restore`` needs: all connections that are here, and what the log was told."""
        entries = []
        for one in connections:
            assert isinstance(one, Connection)
            fd, prefix = packing.fd(one.sock.fileno()), packing.piece(one.prefix)
            entries.append([fd, one.address, prefix, one.moves, one.unheld, one.kind, one.since])
        over = self._survey is None
        return {"connections": entries, "told": sorted(self._told), "surveyed": over}

    def restore(self, known: Mapping[str, Any], packed: Packed) -> list[Connection]:
        """The connections that another process of ours had, in the same order."""
        self._told.update(known["told"])
        if known["surveyed"]:
            self._survey = None
        connections = []
        for fd, address, prefix, moves, unheld, kind, since in known["connections"]:
            address = tuple(address) if address else ""
            sock = packed.connection(fd, channel.socket_family(address))
            one = Connection(sock, address, packed.piece(prefix), moves)
            one.unheld, one.kind, one.since = unheld, kind, since
            connections.append(one)
        return connections

    def resume(self) -> None:
        """Be told what happens to them. What has happened before is an event, too: a descriptor
        that is registered anew reports what it finds, edge-triggered or not (epoll(7))."""
        for kind, _, handle, _ in list(self._waiting.places()):
            assert isinstance(handle, Connection)
            if kind == "head":
                self._watch_head(handle)
            elif kind == "refused":
                self._watch_refused(handle)
            else:
                self._watch_queued(handle)

    # -- listeners ----------------------------------------------------------------------------

    def listen(self, listeners: Iterable[socket.socket]) -> None:
        """Begin to accept."""
        self._listeners.extend(listeners)
        for it in self._listeners:
            # _accept() is what accept() wraps in a socket.socket; see Socket above.
            accept: Callable[[], tuple[int, Any]] = it._accept  # type: ignore[attr-defined]
            if it.family == socket.AF_UNIX:
                accept = partial(_accept_unnamed, accept)
            self._kinds[it] = accept, int(it.family), int(it.type), it.proto
        self.accepting(True)

    def accepting(self, on: bool) -> None:
        """Begin, pause or resume accepting."""
        for listener in self._listeners:
            if on:
                self._register(listener.fileno(), select.EPOLLIN, partial(self.accept, listener))
            else:
                self._unregister(listener.fileno())

    def close(self, *, drain: bool) -> None:
        """Close the listeners; with ``drain``, accept first what has arrived."""
        for listener in self._listeners:
            self._unregister(listener.fileno())
            # What arrives while we drain is served too, but a flood must not keep us here.
            for _ in range(1000 if drain else 0):
                self._burst = _MOST_AT_ONCE
                if self.accept(listener) < _MOST_AT_ONCE:
                    break
            listener.close()
        self._listeners.clear()

    def accept(self, listener: socket.socket, _: int = 0) -> int:
        """Accept what is there, in bounded batches; how many there were.

        One at a time while they come singly: the next wait tells as cheaply as a failing accept
        whether there are more, and when there often are, the batch doubles.
        """
        accept, family, kind, protocol = self._kinds[listener]
        route, buffer, limit = self._route, self._buffer, self._limit
        free, inboxes, peeks = self._waiting.free, self._inboxes, self._peeks
        survey, since = self._survey, channel.stamp(self._clock())
        done, length = 0, 0
        while done < self._burst:
            try:
                fd, address = accept()
            except BlockingIOError:
                self._burst, self._full = 1, 0
                break
            except OSError as error:
                if error.errno in _OUT_OF_SOMETHING:
                    self._starve()
                    break
                done += 1  # the client left before we came, or its network failed: accept(2)
                continue
            done += 1
            if peeks:
                sock = Socket(family, kind, protocol, fd)
                try:
                    length = sock.recv_into(buffer, limit, _PEEK)
                except BlockingIOError:
                    self._await(Connection(sock, address))
                    continue
                except OSError:
                    sock.close()
                    continue
            slot = route(buffer, length, address[0] if address else "")
            if slot == ANYWHERE:
                slot = self._anywhere(buffer, length, address)
            if (
                survey is not None
                and slot >= 0
                and survey.note(buffer, length, address[0] if address else "")
            ):
                self._survey = survey = None
            if slot >= 0 and free[slot]:
                try:
                    hand_over(inboxes[slot], fd, address, since)
                except OSError:
                    pass  # no room: it is queued below
                else:
                    if peeks:
                        sock.close()
                    else:
                        os.close(fd)
                    continue
            if not peeks:  # where nothing is peeked at, a number was enough until here
                sock = Socket(family, kind, protocol, fd)
            self._undecided(Connection(sock, address), slot, length)
        else:
            self._full += 1
            if self._full >= _FULL_BATCHES:
                self._burst = min(self._burst * 2, _MOST_AT_ONCE)
        self.counters["accepted"] += done
        return done

    def _starve(self) -> None:
        """Out of descriptors or memory. Whoever has waited longest makes room; with nobody to
        ask, accepting pauses until the next tick instead of spinning."""
        self.counters["starved"] += 1
        self.tell(
            "starved",
            "no file descriptor (or memory) is left to accept a connection with: "
            "raise the limit (ulimit -n) or lower max_pending_heads",
        )
        self._burst, self._full = 1, 0
        self._waiting.starved(self._clock())

    # -- one connection -----------------------------------------------------------------------

    def _placed(self, head: bytes | bytearray, length: int, address: channel.Address) -> int:
        """The slot for this request, or a verdict."""
        slot = self._route(head, length, address[0] if address else "")
        return self._anywhere(head, length, address) if slot == ANYWHERE else slot

    def _anywhere(self, head: bytes | bytearray, length: int, address: channel.Address) -> int:
        """The slot for a request that any slot may have."""
        firsts = self._firsts
        if firsts is None:
            return self._next_slot()
        who = firsts.who(head, length, address[0] if address else "")
        slot = firsts.agreed(who)
        return slot if slot >= 0 else firsts.agree(who, self._next_slot())

    def _await(self, connection: Connection) -> None:
        self._waiting.awaiting(connection, self._clock())
        self._watch_head(connection)

    def _watch_head(self, connection: Connection) -> None:
        self._register(
            connection.sock.fileno(), _WATCH, lambda events: self._watched(connection, events)
        )

    def _watched(self, connection: Connection, events: int) -> None:
        """Something happened to a connection whose head is awaited."""
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._waiting.left(connection)
            return
        try:
            length = connection.sock.recv_into(self._buffer, self._limit, _PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._waiting.left(connection)
            return
        if not length:
            self._waiting.left(connection)
            return
        address = connection.address
        slot = self._placed(self._buffer, length, address)
        if slot == NEED_MORE and length < self._limit and not self._sniff(length):
            if events & select.EPOLLRDHUP:  # half closed in mid-head: the rest will never come
                self._refuse(connection, 400)
            return
        self._waiting.decided(connection)
        # Before it moves: the file lives on in the worker, and would keep its registration.
        self._unregister(connection.sock.fileno())
        self._undecided(connection, slot, length)

    def _undecided(self, connection: Connection, slot: int, length: int) -> None:
        """Everything but the common case."""
        if slot >= 0:
            self.hand_over(connection, slot)
        elif slot == NEED_MORE and not length:
            connection.sock.close()  # it ended without a word
        elif slot == NEED_MORE and length < self._limit and not self._sniff(length):
            self._await(connection)
        elif slot == NEED_MORE and length >= self._limit:
            self._refuse(connection, 431)
        else:
            if self._sniff(length):
                pass  # and that is said already
            elif slot == MISSING:
                self.tell(
                    "missing",
                    f"a request has no usable {self._header!r} header and was answered 400: is "
                    "there a proxy in front that sets it? (health probes and direct clients: "
                    "--ignore-missing-header; another header: --proxy-header)",
                )
            elif slot == MALFORMED:
                _, _, why = self._explain(self._buffer, length, "")
                self.tell(
                    "malformed",
                    f"a client sent a malformed head ({why}) and was answered 400: "
                    "it does not speak HTTP, or wants servers to disagree about what it asks",
                )
            self._refuse(connection, 400)

    def _sniff(self, length: int) -> bool:
        """Whether these bytes begin something that is not HTTP/1; says so in the log, once."""
        if self._buffer[:2] == b"\x16\x03" and length > 2:
            self.tell(
                "tls",
                "a client speaks TLS to this port, which expects plain HTTP from a proxy: "
                "let the proxy terminate TLS, or use http:// in the client's URL",
            )
        elif length >= 14 and self._buffer[:14] == b"PRI * HTTP/2.0":
            self.tell(
                "http2",
                "a client speaks HTTP/2 to this port: let the proxy use HTTP/1.1 to reach it",
            )
        else:
            return False
        return True

    def hand_over(self, connection: Connection, slot: int) -> None:
        """Send a connection to its slot, or have it wait there."""
        self._put(connection, self._waiting.lines[slot])

    def _put(self, connection: Connection, line: Line) -> None:
        starved = False
        rest = connection.kind == channel.REST
        connection.since = channel.stamp(self._clock())
        if self._waiting.is_idle(line) or (line.open and not rest and not line.queue):
            try:
                self._send(connection, line)
            except OSError as error:
                starved = error.errno != errno.EAGAIN
            else:
                connection.sock.close()
                return
        if self._waiting.queue(connection, line, self._clock(), starved=starved, rest=rest):
            self._watch_queued(connection)

    def _inbox(self, line: Line) -> socket.socket:
        if line.process is None:
            return self._inboxes[line.slot]
        return self._own_inboxes[line.process]

    def _send(self, connection: Connection, line: Line) -> None:
        channel.send_connection(
            self._inbox(line),
            connection.kind,
            connection.sock.fileno(),
            connection.address,
            connection.prefix,
            moves=connection.moves,
            unheld=connection.unheld,
            since=connection.since,
        )
        self.counters["passed_on"] += connection.kind == channel.REST

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
                if _pass_on(self._inbox(line), fd, address, payload, moves, since, unheld=unheld):
                    return False
        connection = self._taken(message)
        connection.moves, connection.unheld = moves, unheld
        if line is None:
            self._refuse(connection, status)
        else:
            self._put(connection, line)
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
        if slot is None or self._ledger.stage is not Stage.SERVING:
            self.counters["rest_closed"] += 1
            os.close(message.fds[0])
            return False
        connection = self._taken(message)
        self._put(connection, self._waiting.lines[slot])
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
                self._watch_queued(connection)
        else:
            for connection, _ in returned:
                self.place(connection, unheld=line.process is not None)

    def turn_away(self, message: channel.Message) -> None:
        """It lay in an inbox that nobody reads, and there is no room for it here."""
        self.counters["crowded_out"] += 1
        connection = self._taken(message)
        if connection.kind == channel.REST:
            self.counters["rest_closed"] += 1
            connection.sock.close()
        else:
            self._refuse(connection, 503)

    def overstayed(self, message: channel.Message) -> None:
        """It lay in an inbox for longer than it may wait."""
        connection = self._taken(message)
        if connection.kind == channel.REST:
            self.counters["rest_closed"] += 1
            connection.sock.close()
        else:
            self._waiting.overstayed(connection, self._clock())

    def place(self, handle: Handle, *, unheld: bool) -> None:
        """Decide anew where a connection goes: where it was to go, nobody is."""
        assert isinstance(handle, Connection)
        sock, address = handle.sock, handle.address
        self._unregister(sock.fileno())
        handle.unheld = handle.unheld or unheld
        if handle.kind == channel.REST and self._ledger.stage is not Stage.SERVING:
            self.counters["rest_closed"] += 1
            sock.close()
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
            self.hand_over(handle, slot)
        else:
            self._refuse(handle, 503)

    def heir(self, address: channel.Address) -> int:
        """The slot that a connection at rest goes to whose slot is none any more."""
        if self._peeks:  # each request of it will be looked at
            free = self._waiting.free
            return max(range(self._topology.num), key=lambda slot: free[slot])
        return max(0, self._placed(b"", 0, address))

    def _watch_queued(self, connection: Connection) -> None:
        self._register(
            connection.sock.fileno(), _WATCH_QUEUED, lambda _: self._left_queue(connection)
        )

    def _left_queue(self, connection: Connection) -> None:
        """The client of a queued connection closed its side. Whether it has left or only said
        that it has no more to send cannot be told apart, so it is answered; if it has asked for
        anything."""
        if connection.kind == channel.REST:
            self._waiting.left(connection)
        else:
            self._refuse(connection, 503)

    def deliver(self, line: Line) -> None:
        """Send what waits in a line, in order, until there is no room."""
        while line.open and (connection := self._waiting.first(line)) is not None:
            assert isinstance(connection, Connection)
            self._unregister(connection.sock.fileno())
            try:
                self._send(connection, line)
            except OSError as error:
                self._watch_queued(connection)
                starved = error.errno != errno.EAGAIN
                self._waiting.blocked(line, self._clock(), starved=starved)
                return
            self._waiting.delivered(connection, line)
            connection.sock.close()

    # -- the end of a connection --------------------------------------------------------------

    def _refuse(self, connection: Connection, status: int) -> None:
        self._waiting.refuse(connection, status, self._clock())

    def refuse(self, handle: Handle, status: int) -> None:
        """Answer, and wait a little for the client to have read it (RFC 9112, 9.6). Who has asked
        nothing is told nothing: it would be taken for the answer to the next thing that is asked.
        """
        assert isinstance(handle, Connection)
        sock = handle.sock
        if sock.fileno() < 0:
            return  # it had to make room before it could be answered
        self._unregister(sock.fileno())
        if not handle.prefix and self._is_silent(sock):
            self._waiting.closed(handle)
            return
        self.counters["refused"] += 1
        try:
            sock.send(self._answers[status], _LAST)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._waiting.left(handle)
            return
        if self._linger(handle):  # what lies here already need not be an event first
            self._watch_refused(handle)

    def _watch_refused(self, connection: Connection) -> None:
        self._register(
            connection.sock.fileno(),
            select.EPOLLIN,
            lambda _: self._linger(connection),
        )

    def _is_silent(self, sock: Socket) -> bool:
        """Whether not a byte has come."""
        try:
            return not sock.recv_into(self._buffer, 1, _PEEK)
        except OSError:
            return True

    def _linger(self, connection: Connection) -> bool:
        """Read and forget what a refused client still sends; whether there may be more."""
        try:
            if connection.sock.recv_into(self._buffer, self._limit, socket.MSG_DONTWAIT):
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        self._waiting.left(connection)
        return False

    def drop(self, handle: Handle) -> None:
        """Close."""
        assert isinstance(handle, Connection)
        self._unregister(handle.sock.fileno())
        handle.sock.close()

    def tell(self, subject: str, text: str) -> None:
        """Log something that clients can cause, once: a log is not theirs to fill."""
        if subject not in self._told:
            self._told.add(subject)
            log.warning("%s", text)


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
