"""Accept, peek until the head can be decided or is too late, and hand over or have it refused.

Nothing is consumed from a connection that will be served: the bytes are peeked at and stay where
they are, for the worker to read. What a client can do meanwhile (say nothing, dribble, leave, send
rubbish) ends in deadlines (``waiting``) and in ``_watched`` below.

The common case (the whole head is there when the connection is accepted, the inbox has room) is
``accept``: five system calls with the one that waited, and no object but the socket.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from .. import channel
from ..channel import hand_over
from ..firsts import FirstRequests
from ..options import Options
from ..rules import ANYWHERE, MALFORMED, MISSING, NEED_MORE
from ..topology import Topology
from .agenda import Connection as Handle
from .diagnosis import Notices, Survey
from .held import Connection, Socket
from .ledger import Ledger
from .refusing import Refusing
from .returning import Returning
from .sending import Sending
from .state import Packed, Packing

_MOST_AT_ONCE = 64
"""Connections accepted before everything else gets its turn again."""
_FULL_BATCHES = 4
"""Full batches in a row after which the batch grows."""

_WATCH = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_OUT_OF_SOMETHING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


def _accept_unnamed(accept: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
    """Accept from a unix socket: what its client may have bound itself to is no address."""
    return accept()[0], ""


class Dispatcher:
    """The listeners, and the connections whose head is awaited.

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

    Attributes:
        sending, refusing, returning: what becomes of the connections.
        notices: what the log is told of them.
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
        router = topology.router
        self._route = router.route
        self._explain = router.explain
        self._waiting = ledger.waiting
        self._inboxes = inboxes
        self._register = register
        self._unregister = unregister
        self._clock = clock
        self._buffer = bytearray(self._limit)
        self._listeners: list[socket.socket] = []
        self._kinds: dict[socket.socket, tuple[Callable[[], tuple[int, Any]], int, int, int]] = {}
        self._burst, self._full = 1, 0
        self.notices = notices = Notices()
        # With session ids one address may well be all that is seen, and nothing is wrong.
        surveyed = options.session is None
        self._survey: Survey | None = Survey(options, topology, notices.tell) if surveyed else None
        self.counters = counters
        self._next_slot = next_slot
        self._firsts = firsts
        self.sending = Sending(
            self._waiting,
            inboxes=inboxes,
            own_inboxes=own_inboxes,
            register=register,
            unregister=unregister,
            clock=clock,
            counters=counters,
        )
        self.refusing = Refusing(
            options, self._waiting, register=register, unregister=unregister, counters=counters
        )
        self.returning = Returning(
            options,
            topology,
            ledger,
            self.sending,
            placed=self._placed,
            unregister=unregister,
            clock=clock,
            counters=counters,
            tell=notices.tell,
        )

    # -- an upgrade in place ------------------------------------------------------------------

    def pack(self, connections: Iterable[Handle], packing: Packing) -> dict[str, Any]:
        """What ``restore`` needs: all connections that are here, and what the log was told."""
        entries = []
        for one in connections:
            assert isinstance(one, Connection)
            fd, prefix = packing.fd(one.sock.fileno()), packing.piece(one.prefix)
            entries.append([fd, one.address, prefix, one.moves, one.unheld, one.kind, one.since])
        over = self._survey is None
        return {"connections": entries, "told": sorted(self.notices.told), "surveyed": over}

    def restore(self, known: Mapping[str, Any], packed: Packed) -> list[Connection]:
        """The connections that another process of ours had, in the same order."""
        self.notices.told.update(known["told"])
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
                self.refusing.watch(handle)
            else:
                self.sending.watch_queued(handle)

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
        self.notices.tell(
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
        if (
            slot == NEED_MORE
            and length < self._limit
            and not self.notices.sniff(self._buffer, length)
        ):
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
            self.sending.hand_over(connection, slot)
        elif slot == NEED_MORE and not length:
            connection.sock.close()  # it ended without a word
        elif (
            slot == NEED_MORE
            and length < self._limit
            and not self.notices.sniff(self._buffer, length)
        ):
            self._await(connection)
        elif slot == NEED_MORE and length >= self._limit:
            self._refuse(connection, 431)
        else:
            if self.notices.sniff(self._buffer, length):
                pass  # and that is said already
            elif slot == MISSING:
                self.notices.tell(
                    "missing",
                    f"a request has no usable {self._header!r} header and was answered 400: is "
                    "there a proxy in front that sets it? (health probes and direct clients: "
                    "--ignore-missing-header; another header: --proxy-header)",
                )
            elif slot == MALFORMED:
                _, _, why = self._explain(self._buffer, length, "")
                self.notices.tell(
                    "malformed",
                    f"a client sent a malformed head ({why}) and was answered 400: "
                    "it does not speak HTTP, or wants servers to disagree about what it asks",
                )
            self._refuse(connection, 400)

    def _refuse(self, connection: Connection, status: int) -> None:
        self._waiting.refuse(connection, status, self._clock())
