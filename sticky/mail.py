"""Mail between the processes of a server: small messages by topic, to all who want them or to one.

What a process wants is a cell of its own in the board (``wanted``), one bit for each 60th of all
topics: a message goes only where its bit is set, without asking anybody, and where it is set for
nobody it costs next to nothing. That a process has come or gone the master says (``news``), and a
counter in the board says whether there are news: so a sender knows everybody who was there when it
began to send.

Nothing here waits. What a mailbox (``mailbox``) has no room for is kept for a while (``outgoing``).
Delivery is at most once, and in order for each sender. The first message of a turn of the event
loop goes out at once; those that follow it in the same turn go together, in one datagram.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from _socket import socket as Socket  # noqa: N812 - never monkey-patched: it must not wait
from _thread import allocate_lock
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from . import board, channel
from .errors import ChannelError
from .mailbox import FRAME, FRAMES, HEADER, VERSION, Mailbox, Sender, Waiter, bit_of
from .outgoing import Outgoing, Sibling, written

QUEUE = 8 * 1024 * 1024
"""Bytes kept for one process that does not keep up."""

_BATCH = 32_000  # bytes that are worth a datagram of their own, whatever else may come
_STALE = 0.001  # seconds after which a message is the first of its turn in any case

log = logging.getLogger("sticky.mail")


class Mail:
    """What one process sends and receives.

    Args:
        sender: who this process is.
        memory: the server's board.
        news: where the master says who has come and gone; None: nobody says it.
        mailbox: the end of the own mailbox that is read; None: there is none.
        siblings: of each other process its row, its slot, and a descriptor of its mailbox.
        epoch: what ``memory.presence`` was when these were all there were.
        limit: bytes that are kept for a process that does not keep up.
        cells: the counters of this process.

    Attributes:
        box: what others send to this process; ``subscribe`` and others are its.
        out: what it sends to others.
        gone: called with the row of a process that has ended, from the loop.
    """

    def __init__(
        self,
        sender: Sender,
        memory: board.Board,
        *,
        news: Socket | None = None,
        mailbox: Socket | None = None,
        siblings: Iterable[tuple[int, int, int]] = (),
        epoch: int = 0,
        limit: int = QUEUE,
        cells: Any = None,
    ) -> None:
        self.sender = sender
        self.memory = memory
        self.gone: Callable[[int], object] = lambda row: None
        cells = board.private().cells if cells is None else cells
        self.box = box = Mailbox(sender, mailbox, memory, cells)
        self.subscribe, self.unsubscribe = box.subscribe, box.unsubscribe
        self.post_here, self.lost = box.post_here, box.lost
        self._news = news
        self._siblings = {row: Sibling(row, slot, fd) for row, slot, fd in siblings}
        self._epoch = epoch
        self._presence = memory.presence
        self._wanted = memory.wanted
        self._lock = allocate_lock()
        self.out = Outgoing(sender, limit, cells, self._lock)
        self._reader = channel.Reader(connections=True)
        self._header = HEADER.pack(VERSION, FRAMES, sender.slot & 0xFFFF, sender.row, sender.pid)
        self._on_attend: list[Callable[[], object]] = []
        # What goes out together: frames, their bit, and for whom they are (None: all).
        self._pending: list[tuple[bytes, int, int | None]] = []
        self._pending_size = 0
        # The turn, and the time, of the last message that went at once.
        self._sent_turn, self._sent_at = -1, 0.0
        self._unsaid = self.out.unsaid

    # -- who is there -----------------------------------------------------------------------------

    def meet(self) -> None:
        """Learn who has come and gone."""
        with self._lock:
            self._meet()
        self._say()

    def _meet(self) -> None:
        while self._news is not None:
            try:
                message = self._reader.receive(self._news)
            except BlockingIOError:
                return
            except (ChannelError, OSError) as error:
                self._unsaid.append(f"who has come or gone is not known: {error}")
                return
            if message is None:
                return
            self._epoch, row, slot = channel.unpack_presence(message.payload)
            self._part(row)
            if message.kind == channel.CAME:
                self._siblings[row] = Sibling(row, slot, message.fds[0])

    def came(self, row: int, slot: int, mailbox: int, epoch: int) -> None:
        """Another process is there; where nobody sends news."""
        with self._lock:
            self._part(row)
            self._siblings[row] = Sibling(row, slot, mailbox)
            self._epoch = epoch

    def went(self, row: int, epoch: int) -> None:
        """Another process has ended; where nobody sends news."""
        with self._lock:
            self._part(row)
            self._epoch = epoch

    def _part(self, row: int) -> None:
        if self._pending:  # it was sent to those who were there then
            self._go()
        sibling = self._siblings.pop(row, None)
        if sibling is None:
            return
        self.out.part(sibling)
        if self.waiter is not None and self.box:
            self.waiter.call(partial(self._left, row))

    def _left(self, row: int) -> None:
        self.gone(row)

    def wanting(self, bit: int) -> dict[int, int]:
        """Row -> slot of the other processes that want mail with this bit."""
        with self._lock:
            if self._presence[0] != self._epoch:
                self._meet()
            wanted = self._wanted
            return {
                row: sibling.slot for row, sibling in self._siblings.items() if wanted[row] & bit
            }

    @property
    def dropped(self) -> dict[int, int]:
        """Slot -> messages that a process of it did not get, because it did not keep up."""
        found: dict[int, int] = {}
        for sibling in tuple(self._siblings.values()):
            if sibling.dropped:
                found[sibling.slot] = found.get(sibling.slot, 0) + sibling.dropped
        return found

    def is_wanted(self, topic: bytes) -> bool:
        """Whether it may be that another process wants a message of this topic."""
        return self._presence[0] != self._epoch or self._is_for_any(bit_of(topic), None)

    def _is_for_any(self, bit: int, only: int | None) -> bool:
        wanted = self._wanted
        for row in tuple(self._siblings):
            if wanted[row] & bit and (only is None or only == row):
                return True
        return False

    # -- sending ----------------------------------------------------------------------------------

    def post(self, topic: bytes, payload: bytes, *, only: int | None = None) -> bool:
        """Send a message to all other processes that want it.

        Args:
            only: to the one with this row, if it does.

        Returns:
            Whether there is one.
        """
        bit = bit_of(topic)
        with self._lock:
            if self._presence[0] != self._epoch:
                self._meet()
            found = self._is_for_any(bit, only)
            if found:
                frame = FRAME.pack(len(payload), len(topic)) + topic + payload
                if len(frame) < _BATCH and (self._pending or not self._is_first()):
                    self._add(frame, bit, only)
                else:
                    if self._pending:
                        self._go()
                    self._put(self._header + frame, 1, bit, only)
        if self._unsaid:
            self._say()
        return found

    def _is_first(self) -> bool:
        """Whether this message is the first of its turn, which goes at once."""
        now, turn = time.monotonic(), self.box.turn
        if self.out.waiter is None or turn != self._sent_turn or now - self._sent_at > _STALE:
            self._sent_turn, self._sent_at = turn, now
            return True
        return False

    def _add(self, frame: bytes, bit: int, only: int | None) -> None:
        """It goes with others, at the end of this turn."""
        if not self._pending:
            assert self.waiter is not None
            self.waiter.soon(self._flush)
        self._pending.append((frame, bit, only))
        self._pending_size += len(frame)
        if self._pending_size >= _BATCH:
            self._go()

    def _flush(self) -> None:
        """Send what is to go together."""
        with self._lock:
            self.box.turn += 1
            if self._pending:
                self._go()
        self._say()

    def _go(self) -> None:
        pending, self._pending, self._pending_size = self._pending, [], 0
        _, bit, only = pending[0]
        if all(other == bit and whom == only for _, other, whom in pending):
            whole = b"".join([self._header, *[frame for frame, _, _ in pending]])
            self._put(whole, len(pending), bit, only)
            return
        wanted = self._wanted
        for row, sibling in self._siblings.items():
            its = wanted[row]
            frames = [
                frame for frame, bit, only in pending if its & bit and (only is None or only == row)
            ]
            if frames:
                self.out.put(sibling, b"".join([self._header, *frames]), len(frames))

    def _put(self, datagram: bytes, count: int, bit: int, only: int | None) -> None:
        """Have everybody get it who is to have it."""
        memfd, wanted = -1, self._wanted
        try:
            for row, sibling in self._siblings.items():
                if wanted[row] & bit and (only is None or only == row):
                    if memfd < 0 and len(datagram) > self.out.inline:
                        with contextlib.suppress(OSError):  # then it is tried once more, later
                            memfd = written(datagram)
                    self.out.put(sibling, datagram, count, memfd)
        finally:
            if memfd >= 0:
                os.close(memfd)

    def _say(self) -> None:
        while self._unsaid:
            log.warning("%s", self._unsaid.pop())

    def finish(self, seconds: float) -> None:
        """Send what is left, to those who take it within this time: this process ends, and its
        event loop has ended. What is sent from now on goes at once, as far as there is room; call
        this once more for the rest."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self.out.waiter = None
        self._flush()
        for sibling in tuple(self._siblings.values()):
            with self._lock:
                self.out.finish(sibling, deadline)

    # -- the event loop ---------------------------------------------------------------------------

    @property
    def waiter(self) -> Waiter | None:
        """The event loop, once there is one."""
        return self.out.waiter

    def attended(self, call: Callable[[], object]) -> None:
        """Have this called in the event loop's thread, once there is one."""
        with self._lock:
            waiter = self.waiter
            if waiter is None:
                self._on_attend.append(call)
                return
        waiter.call(call)

    def attend(self, waiter: Waiter, news: Waiter | None = None) -> None:
        """There is an event loop. To be called in its thread.

        Args:
            waiter: where mail is read, and what there is no room for is sent.
            news: where it is heard who comes and goes, if that is another one.
        """
        with self._lock:
            self.out.waiter = waiter
            calls, self._on_attend = self._on_attend, []
            for sibling in self._siblings.values():
                self.out.attend(sibling)
        if self._news is not None:
            (news or waiter).watch(self._news.fileno(), lambda _: self.meet())
        self.box.attend(waiter)
        for call in calls:
            call()

    # -- the end ----------------------------------------------------------------------------------

    def descriptors(self) -> Sequence[int]:
        """All that is open here."""
        ends = [sibling.sock for sibling in self._siblings.values()]
        if self._news is not None:
            ends.append(self._news)
        return [*self.box.descriptors(), *(end.fileno() for end in ends)]

    def close(self) -> None:
        """Close all of it, without a word to anybody; also in a child of the app's, whose parent
        goes on."""
        self.box.close()
        if self._news is not None:
            self._news.close()
        for sibling in self._siblings.values():
            sibling.sock.close()
        self._siblings = {}
        self.out.waiter = None
