"""Datagrams on their way to the mailboxes of other processes: sent, or kept until there is room.

Nothing here waits but ``finish``. What a mailbox has no room for is kept in a queue of bounded size
for that process, and what comes when that is full is dropped, counted and logged.
"""

from __future__ import annotations

import array
import errno
import os
import time
from _socket import SCM_RIGHTS as _RIGHTS
from _socket import SO_SNDBUF, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812 - never monkey-patched: it must not wait
from collections import deque
from functools import partial
from socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_SEQPACKET
from typing import Any

from . import board
from .mailbox import FILE, HEADER, INLINE, VERSION, Sender, Waiter

OVERHEAD = 256
"""Bytes counted for each message in a queue, beside its own length."""

_RETRY = 0.05  # seconds until something is sent again that failed for want of descriptors
_QUIET = 10.0  # seconds between two log lines about the same trouble
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE)
_SEND = int(MSG_DONTWAIT | MSG_NOSIGNAL)


class Sibling:
    """The way to another process."""

    __slots__ = ("dropped", "next_log", "queue", "queued", "row", "slot", "sock")

    def __init__(self, row: int, slot: int, fd: int) -> None:
        self.row = row
        self.slot = slot
        self.sock = Socket(int(AF_UNIX), int(SOCK_SEQPACKET), 0, fd)
        self.queue: deque[tuple[bytes, int]] = deque()  # datagrams, and how many messages each has
        self.queued = 0  # bytes
        self.dropped = 0  # messages
        self.next_log = 0.0


class Outgoing:
    """The queues. The lock is to be held in every call.

    Args:
        sender: who this process is.
        limit: bytes that are kept for a process that does not keep up.
        cells: the counters of this process.
        lock: taken where the event loop calls.

    Attributes:
        limit: as given; as much is kept for a subscriber here.
        inline: bytes of a datagram that a mailbox takes; more go in a memfd.
        waiter: the event loop; None: there is none, and it is tried again with the next datagram.
        broken: there was a mailbox that nobody reads any more.
        unsaid: for the log, which may switch to another greenlet: not while the lock is held.
    """

    def __init__(self, sender: Sender, limit: int, cells: Any, lock: Any) -> None:
        self.limit = limit
        self.inline = INLINE
        self.waiter: Waiter | None = None
        self.broken = False
        self.unsaid: list[str] = []
        self._cells = cells
        self._lock = lock
        self._as_file = HEADER.pack(VERSION, FILE, sender.slot & 0xFFFF, sender.row, sender.pid)
        self._stuck = False  # what was full does not say when it is not

    def put(self, sibling: Sibling, datagram: bytes, count: int, memfd: int = -1) -> None:
        """Have another process get this.

        Args:
            count: so many messages are in it.
            memfd: the same in a file, if it is longer than ``inline``; -1: there is none yet.
        """
        if sibling.queue and self.waiter is None:
            self._send_queued(sibling)
        if not sibling.queue and self._send(sibling, datagram, memfd):
            self._cells[board.MAIL_SENT] += count
            return
        size = len(datagram) + OVERHEAD * count
        if sibling.queue and sibling.queued + size > self.limit:
            sibling.dropped += count
            self._cells[board.MAIL_DROPPED] += count
            self._complain(sibling)
            return
        sibling.queue.append((datagram, count))
        sibling.queued += size
        if len(sibling.queue) == 1 and self.waiter is not None:
            self._wait_for_room(sibling)

    def _send(self, sibling: Sibling, datagram: bytes, memfd: int = -1) -> bool:
        """Whether it is done: sent, or there is nobody any more. False: there is no room."""
        try:
            if len(datagram) <= self.inline:
                sibling.sock.send(datagram, _SEND)
            else:
                own = written(datagram) if memfd < 0 else -1
                try:
                    rights = array.array("i", [own if memfd < 0 else memfd])
                    sibling.sock.sendmsg([self._as_file], [(SOL_SOCKET, _RIGHTS, rights)], _SEND)
                finally:
                    if own >= 0:
                        os.close(own)
        except OSError as error:
            if error.errno in _FULL:
                self._stuck = error.errno != errno.EAGAIN
                return False
            if error.errno == errno.EMSGSIZE and self.inline > 4096:
                self.inline = max(4096, sibling.sock.getsockopt(SOL_SOCKET, SO_SNDBUF) // 4)
                return self._send(sibling, datagram, memfd)
            self.broken = True
        return True

    def _wait_for_room(self, sibling: Sibling) -> None:
        assert self.waiter is not None
        if self._stuck:  # nothing will announce that it is not any more
            self.waiter.call(partial(self._try_later, sibling))
        else:
            self.waiter.watch(
                sibling.sock.fileno(), lambda _: self._room(sibling, watched=True), writing=True
            )

    def _try_later(self, sibling: Sibling) -> None:
        assert self.waiter is not None
        self.waiter.later(_RETRY, lambda: self._room(sibling, watched=False))

    def _room(self, sibling: Sibling, *, watched: bool) -> None:
        """There may be room in its mailbox."""
        with self._lock:
            if sibling.sock.fileno() < 0 or not sibling.queue:
                return
            self._send_queued(sibling)
            waiter = self.waiter
            assert waiter is not None
            if watched and (self._stuck or not sibling.queue):
                waiter.unwatch(sibling.sock.fileno())
            if sibling.queue and (self._stuck or not watched):
                self._wait_for_room(sibling)

    def _send_queued(self, sibling: Sibling) -> None:
        self._stuck = False
        while sibling.queue:
            datagram, count = sibling.queue[0]
            if not self._send(sibling, datagram):
                return
            self._sent(sibling, datagram, count)

    def _sent(self, sibling: Sibling, datagram: bytes, count: int) -> None:
        """The first in the queue."""
        self._cells[board.MAIL_SENT] += count
        sibling.queue.popleft()
        sibling.queued -= len(datagram) + OVERHEAD * count

    def _complain(self, sibling: Sibling) -> None:
        now = time.monotonic()
        if now >= sibling.next_log:
            sibling.next_log = now + _QUIET
            self.unsaid.append(
                f"{sibling.dropped} messages for worker {sibling.slot} lost so far: it does not "
                "keep up"
            )

    def attend(self, sibling: Sibling) -> None:
        """There is an event loop now."""
        if sibling.queue:
            self._wait_for_room(sibling)

    def part(self, sibling: Sibling) -> None:
        """It has ended."""
        if sibling.queue and self.waiter is not None:
            self.waiter.unwatch(sibling.sock.fileno())
        sibling.queue.clear()
        sibling.sock.close()

    def finish(self, sibling: Sibling, deadline: float) -> None:
        """Send what is left, if it takes it until then; there is no event loop any more."""
        self._send_queued(sibling)
        while sibling.queue and (left := deadline - time.monotonic()) > 0:
            datagram, count = sibling.queue[0]
            sibling.sock.settimeout(left)
            try:
                if len(datagram) <= self.inline:
                    sibling.sock.send(datagram, int(MSG_NOSIGNAL))
                elif not self._send(sibling, datagram):
                    time.sleep(min(left, _RETRY))
                    continue
            except OSError:  # late, or gone
                break
            finally:
                sibling.sock.settimeout(None)  # nothing else waits
            self._sent(sibling, datagram, count)


def written(data: bytes) -> int:
    """A new memfd with this in it."""
    memfd = os.memfd_create("sticky-mail", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(memfd, view) :]
    except BaseException:
        os.close(memfd)
        raise
    return memfd
