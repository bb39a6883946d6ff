"""One way on which connections come to a worker: the inbox of its slot, or its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import board, channel
from ..errors import ChannelError
from .descriptors import Margin
from .kernel import Socket

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger("sticky.worker")

_MOST_AT_ONCE = 16
"""Connections picked up before everything else gets its turn again."""
_FULL_BATCHES = 4
"""Full batches in a row after which the batch grows."""
_RETRY = 0.05
_LONGEST_WAIT = 0.5
"""Seconds until it is looked again, at least and at most, whether there is a descriptor."""
_NO_DESCRIPTORS = (
    "a worker has no file descriptor free: connections wait until there is one; raise the limit "
    "(ulimit -n, LimitNOFILE=), or lower max_connections"
)


class Inbox:
    """Picks up connections while there is room for them.

    Args:
        service: what they are for.
        sock: where they come.
        margin: the descriptors that are kept free for them.
        has_room: whether one more may be picked up.
        take: called with each, as a message.

    Attributes:
        paused: it is not looked at, because there is no room for another connection.
    """

    def __init__(
        self,
        service: Service,
        sock: Socket,
        margin: Margin,
        has_room: Callable[[], bool],
        take: Callable[[channel.Message], object],
    ) -> None:
        self.sock = sock
        self.paused = True
        self._service = service
        self._margin = margin
        self._has_room = has_room
        self._take = take
        self._receive = channel.Reader(connections=True).receive
        self._burst = 1
        self._full = 0
        self._patience = 0.0  # while there is no descriptor: until it is looked again
        self._looks_again = False

    def room(self) -> None:
        """There may be room again: look at it, if there is."""
        if self.paused and self._has_room():
            self.paused = False
            self._service.watch_inbox(self.sock.fileno(), self._come)

    def pause(self) -> None:
        """Leave in it what is there."""
        if not self.paused:
            self.paused = True
            self._service.leave_inbox(self.sock.fileno())

    def _come(self, _: int = 0) -> None:
        """Adopt what is there, within the bound.

        One at a time while they come singly: the next wait tells as cheaply as a failing read
        whether there are more, and when there often are, the batch doubles.
        """
        service, margin = self._service, self._margin
        for _ in range(self._burst):
            if service.hub.over:  # or this is a child, which the app has forked meanwhile
                return
            if not self._has_room():
                self.pause()
                return
            if margin.watched and not margin.take():
                self._starve()
                return
            try:
                message = self._receive(self.sock)
            except BlockingIOError:
                self._burst, self._full = 1, 0
                return
            except ChannelError as error:
                margin.watched = True
                service.count(board.LOST)
                log.error("a connection was lost: %s", error)
                continue
            finally:
                if margin.watched:
                    margin.put_back()
            if message is None:
                service.orphaned()
            margin.seen(message.fds[0])
            self._patience = 0.0
            self._take(message)
        self._full += 1
        if self._full >= _FULL_BATCHES:
            self._burst = min(self._burst * 2, _MOST_AT_ONCE)

    def _starve(self) -> None:
        """There is no descriptor for a connection: it stays where it is until there is one. The
        end of a connection announces that; of what the app has open nothing does."""
        self._service.tell_once("descriptors", _NO_DESCRIPTORS)
        self.pause()
        self._patience = min(self._patience * 2 or _RETRY, _LONGEST_WAIT)
        if not self._looks_again:
            self._looks_again = True
            self._service.hub.later(self._patience, self._look_again)

    def _look_again(self) -> None:
        self._looks_again = False
        self.room()
