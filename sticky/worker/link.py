"""The worker's channels: connections come through the inbox of its slot, those of sessions that
only this process may hold through its own, and orders and what goes back to the master through the
control pair of this process (``sticky.channel``)."""

from __future__ import annotations

import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import board, channel, logs
from ..errors import ChannelError
from .boundary import Wire
from .descriptors import Margin
from .hub import Watcher
from .inbox import Inbox
from .kernel import EPOLLIN, EPOLLOUT, Socket

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger("sticky.worker")

_RETRY = 0.05
"""Seconds until something is sent again that failed for a reason nothing announces the end of."""


class Link:
    """The worker's end of all channels.

    Attributes:
        inbox: of the slot.
        own_inbox: of this process.
        has_left: what comes on the control pair is of no interest any more.
    """

    def __init__(self, service: Service, control: Socket, inbox: Socket, own_inbox: Socket) -> None:
        self.service = service
        self.control = control
        self._margin = margin = Margin()
        self.inbox = Inbox(service, inbox, margin, lambda: service.has_room, self.adopt)
        self.own_inbox = Inbox(
            service, own_inbox, margin, lambda: service.has_room_for_own, self._adopt_own
        )
        self.has_left = False
        self._reader = channel.Reader()
        self._leaving: deque[tuple[Wire, int, int, bool]] = deque()
        self._blocked = False
        self._asks = False  # to be replaced
        self._watcher = Watcher(self._on_control)

    def begin(self) -> None:
        """Tell the master that the app is ready; from now on connections are picked up."""
        self.service.hub.register(self.control.fileno(), self._watcher)
        self.tell(channel.READY, {"worker_class": self.service.options.worker_class})
        self.room()

    # -- connections --------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether connections are left in the inboxes, because there is no room for another one."""
        return self.inbox.paused or self.own_inbox.paused

    def room(self) -> None:
        """There may be room again: look at the inboxes, if there is."""
        self.inbox.room()
        self.own_inbox.room()

    def adopt(self, message: channel.Message, *, asked: bool = False) -> None:
        """Serve a connection.

        Args:
            asked: it is of a session that this process may hold, and no other that was asked.
        """
        service = self.service
        service.count(board.ADOPTED)
        rest = message.kind == channel.REST
        asks = asked or (service.looks and not rest and service.placing.asks_first(message.unheld))
        wire = service.make_wire(message.fds[0], message.address, message.moves, asks=asks)
        service.opened(wire)
        if rest:
            wire.begin_at_rest()
        else:
            wire.begin(message.payload)

    def _adopt_own(self, message: channel.Message) -> None:
        """Serve one of a session that only this process may hold, if it does."""
        self.adopt(message, asked=True)

    def hand_back(self, wire: Wire, *, moves: int, unheld: bool) -> None:
        """Give a connection to the master, with what was read of its next request."""
        self._send_back(wire, channel.HAND_BACK, moves, unheld)

    def pass_on(self, wire: Wire) -> None:
        """Give a resting connection to the process that has the slot now, by way of the master."""
        self._send_back(wire, channel.REST, 0, False)

    def _send_back(self, wire: Wire, kind: int, moves: int, unheld: bool) -> None:
        wire.unregister()
        self._leaving.append((wire, kind, moves, unheld))
        if len(self._leaving) == 1:
            self._flush()

    def _flush(self) -> None:
        """Send those that are leaving, in order; go on when there is room for the next."""
        service = self.service
        while self._leaving and not self.has_left:
            wire, kind, moves, unheld = self._leaving[0]
            if wire.sock.fileno() >= 0:  # its client may have been too slow for it meanwhile
                self._count(kind, unheld, 1)  # first: another worker may answer before we go on
                try:
                    channel.send_connection(
                        self.control,
                        kind,
                        wire.fd,
                        wire.address,
                        wire.http.unread,
                        moves=moves,
                        unheld=unheld,
                    )
                except BlockingIOError:
                    self._count(kind, unheld, -1)
                    self._blocked = True
                    service.hub.modify(self.control.fileno(), EPOLLIN | EPOLLOUT)
                    return
                except OSError as error:
                    if error.errno not in channel.PASSING:
                        service.orphaned()
                    self._count(kind, unheld, -1)
                    service.hub.later(_RETRY, self._flush)
                    return
                wire.close()
            self._leaving.popleft()

    def _count(self, kind: int, unheld: bool, by: int) -> None:
        """One that is given away."""
        self.service.count(board.PASSED_ON if kind == channel.REST else board.HANDED_BACK, by)
        if unheld:
            self.service.count(board.UNHELD, by)

    # -- the control pair ---------------------------------------------------------------------

    def _on_control(self, events: int) -> None:
        if events & EPOLLOUT and self._blocked:
            self._blocked = False
            self.service.hub.modify(self.control.fileno(), EPOLLIN)
            self._flush()
        if events & ~EPOLLOUT:
            self.receive()

    def receive(self) -> None:
        """Obey what the master says."""
        service = self.service
        while not self.has_left:
            try:
                message = self._reader.receive(self.control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = None
            except ChannelError as error:
                service.count(board.LOST)
                log.error("a message was lost: %s", error)
                continue
            if message is None:
                service.orphaned()
            self._obey(message)

    def _obey(self, message: channel.Message) -> None:
        service = self.service
        match message.kind:
            case channel.RESCALED:
                service.placing.rescaled()
            case channel.CLOSING:
                service.closing = True
            case channel.END:
                service.draining.end(replaced=not service.closing)
            case channel.QUIT:
                service.draining.quit()
            case channel.REOPEN:
                logs.reopen()
                if service.access_log is not None:
                    service.access_log.reopen()

    def tell(self, kind: int, content: Any = None) -> None:
        """Send the master a message."""
        payload = b"" if content is None else json.dumps(content).encode()
        try:
            channel.send(self.control, channel.pack_header(kind), payload)
        except BlockingIOError:
            pass  # the master is behind: of notices one less
        except OSError:
            self.service.orphaned()

    def ask_to_leave(self) -> None:
        """Ask to be replaced. Until the master says END nothing else changes."""
        if not (self._asks or self.service.closing or self.service.placing.ending):
            self._asks = True
            self._ask()

    def _ask(self) -> None:
        if self.has_left:
            return
        try:
            channel.send(self.control, channel.pack_header(channel.LEAVING))
        except BlockingIOError:  # nobody would ask again whether we want to
            self.service.hub.later(_RETRY, self._ask)
        except OSError:
            self.service.orphaned()

    def notice(self, subject: str, text: str) -> None:
        """Have the master log this, once for all workers."""
        self.tell(channel.NOTICE, {"subject": subject, "text": text})

    # -- the end ------------------------------------------------------------------------------

    def leave(self) -> None:
        """Nothing more is sent or received."""
        if self.has_left:
            return
        self._flush()
        self.has_left = True  # what is read from now on is the end that is made here
        self.service.hub.unregister(self.control.fileno())
        self.own_inbox.pause()  # what lies there the master takes back

    def close_after_fork(self) -> None:
        """In a child of the app's."""
        self.has_left = True
        self._margin.let_go()
        self.control.close()
        self.inbox.sock.close()
        self.own_inbox.sock.close()
