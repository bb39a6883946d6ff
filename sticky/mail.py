"""Mail between the processes of a server: small messages by topic, to all who want them or to one.

Every process has a mailbox, an AF_UNIX SOCK_SEQPACKET pair of which it reads one end; the others
(and the master, who hands it on) have the other end. So both processes of a slot that is being
reloaded hear, and a new one hears nothing that was sent before it was there.

    datagram    header (12 bytes)               frames, one or more
                version kind slot row pid       size, size of the topic, topic, payload

What a process wants is a cell of its own in the board (``wanted``), one bit for each 60th of all
topics: a message goes only where its bit is set, without asking anybody, and where it is set for
nobody it costs next to nothing. That a process has come or gone the master says (``news``), and a
counter in the board says whether there are news: so a sender knows everybody who was there when it
began to send.

Nothing here waits. What a mailbox has no room for is kept in a queue of bounded size for that
process, and what comes when that is full is dropped, counted and logged. Delivery is at most once,
and in order for each sender. The first message of a turn of the event loop goes out at once; those
that follow it in the same turn go together, in one datagram.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import time
import zlib
from _socket import SCM_RIGHTS as _RIGHTS
from _socket import SO_SNDBUF, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812 - never monkey-patched: it must not wait
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SOCK_SEQPACKET,
)
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, NamedTuple, Protocol

from . import board, channel
from .errors import ChannelError

VERSION = 1
QUEUE = 8 * 1024 * 1024
"""Bytes kept for one process that does not keep up."""
OVERHEAD = 256
"""Bytes counted for each message in a queue, beside its own length."""
LONGEST_TOPIC = 255

_INLINE = 60_000  # bytes of a datagram; more go in a memfd
_BATCH = 32_000  # bytes that are worth a datagram of their own, whatever else may come
_SMALL = 4096  # bytes of a datagram behind which there is probably no other
_READ = 4  # datagrams in one turn, before everything else in this process gets its turn again
_RETRY = 0.05  # seconds until something is sent again that failed for want of descriptors
_QUIET = 10.0  # seconds between two log lines about the same trouble
_STALE = 0.001  # seconds after which a message is the first of its turn in any case
_HEADER = Struct("<BBHII")
_FRAME = Struct("<IH")
_FRAMES, _FILE = 0, 1
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE)
_SEND = int(MSG_DONTWAIT | MSG_NOSIGNAL)
_RECEIVE = int(MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
_CUT = int(MSG_CTRUNC)
_SPACE = CMSG_SPACE(4)

log = logging.getLogger("sticky.mail")


class Sender(NamedTuple):
    """Who has sent a message.

    Attributes:
        row: of the board; 0 for a process that is no worker of the server.
        slot: -1 for a process that is no worker of the server.
        pid: its process id.
    """

    row: int
    slot: int
    pid: int


Handler = Callable[[bytes, Sender], object]


class Waiter(Protocol):
    """The event loop of a process, as far as its mail needs it.

    Attributes:
        asynchronous: it is asyncio's.
        here: it is asyncio's, and the calling thread is in it.
    """

    asynchronous: bool

    @property
    def here(self) -> bool: ...

    def watch(self, fd: int, call: Callable[[int], None], *, writing: bool = False) -> None:
        """Have this called, in the loop, whenever the descriptor is ready."""

    def unwatch(self, fd: int) -> None:
        """Do not call it any more."""

    def call(self, call: Callable[[], object]) -> None:
        """Have this called in the loop's next turn; from any thread."""

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have this called in so many seconds; from the loop's own thread."""


EVENTS, QUESTIONS, ANSWERS = b"\0\0", b"\0\1", b"\0\2"
"""Topics of this package, each with a bit of its own."""


def bit_of(topic: bytes) -> int:
    """The bit of a topic, in the cell that says what a process wants."""
    return 1 << (topic[1] & 3) if topic[0] == 0 else 16 << zlib.crc32(topic) % 60


class _Sibling:
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
        gone: called with the row of a process that has ended, from the loop.
        broken: there was a mailbox that nobody reads any more.
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
        self.broken = False
        self.limit = limit
        self._news = news
        self._mailbox = mailbox
        self._siblings = {row: _Sibling(row, slot, fd) for row, slot, fd in siblings}
        self._epoch = epoch
        self._presence = memory.presence
        self._wanted = memory.wanted
        self._cells = board.private().cells if cells is None else cells
        self._lock = allocate_lock()
        self._reader = channel.Reader(connections=True)
        self._header = _HEADER.pack(VERSION, _FRAMES, sender.slot & 0xFFFF, sender.row, sender.pid)
        self._as_file = _HEADER.pack(VERSION, _FILE, sender.slot & 0xFFFF, sender.row, sender.pid)
        self._inline = _INLINE
        self._buffer = bytearray(_INLINE)
        self._waiter: Waiter | None = None
        self._topics: dict[bytes, tuple[Handler, ...]] = {}
        self._on_attend: list[Callable[[], object]] = []
        # What goes out together: frames, their bit, and for whom they are (None: all).
        self._pending: list[tuple[bytes, int, int | None]] = []
        self._pending_size = 0
        self._here: list[tuple[bytes, bytes]] = []  # for this process itself
        self._turn = 0
        self._sent = (-1, 0.0)  # the turn, and the time, of the last message that went at once
        self._stuck = False  # what was full does not say when it is not
        # For the log, which may switch to another greenlet: not while the lock is held.
        self._unsaid: list[str] = []
        self._opened = False
        self._closed = False

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
                self._siblings[row] = _Sibling(row, slot, message.fds[0])

    def came(self, row: int, slot: int, mailbox: int, epoch: int) -> None:
        """Another process is there; where nobody sends news."""
        with self._lock:
            self._part(row)
            self._siblings[row] = _Sibling(row, slot, mailbox)
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
        waiter = self._waiter
        if waiter is not None:
            if sibling.queue:
                waiter.unwatch(sibling.sock.fileno())
            if self._topics:
                waiter.call(partial(self._left, sibling.row))
        sibling.sock.close()
        sibling.queue.clear()

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
        if self._presence[0] != self._epoch:
            return True
        bit, wanted = bit_of(topic), self._wanted
        return any(wanted[row] & bit for row in tuple(self._siblings))

    # -- sending ----------------------------------------------------------------------------------

    def post(self, topic: bytes, payload: bytes, *, only: int | None = None) -> bool:
        """Send a message to all other processes that want it.

        Args:
            only: to the one with this row, if it does.

        Returns:
            Whether there is one.
        """
        bit = bit_of(topic)
        wanted = self._wanted
        with self._lock:
            if self._presence[0] != self._epoch:
                self._meet()
            for row in self._siblings:
                if wanted[row] & bit and (only is None or only == row):
                    break
            else:
                return False
            frame = _FRAME.pack(len(payload), len(topic)) + topic + payload
            self._add(frame, bit, only)
        self._say()
        return True

    def _add(self, frame: bytes, bit: int, only: int | None) -> None:
        pending = self._pending
        if len(frame) < _BATCH:
            if not pending:
                now = time.monotonic()
                turn, then = self._sent
                if self._waiter is None or turn != self._turn or now - then > _STALE:
                    self._sent = self._turn, now
                    self._put(self._header + frame, 1, bit, only)
                    return
                self._waiter.call(self._flush)
            pending.append((frame, bit, only))
            self._pending_size += len(frame)
            if self._pending_size >= _BATCH:
                self._go()
            return
        if pending:
            self._go()
        self._put(self._header + frame, 1, bit, only)

    def _flush(self) -> None:
        """Send what is to go together."""
        with self._lock:
            self._turn += 1
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
                self._put_one(sibling, b"".join([self._header, *frames]), len(frames))

    def _put(self, datagram: bytes, count: int, bit: int, only: int | None) -> None:
        """Have everybody get it who is to have it."""
        memfd = -1
        wanted = self._wanted
        try:
            for row, sibling in self._siblings.items():
                if wanted[row] & bit and (only is None or only == row):
                    if memfd < 0 and len(datagram) > self._inline:
                        with contextlib.suppress(OSError):  # then it is tried once more, later
                            memfd = _written(datagram)
                    self._put_one(sibling, datagram, count, memfd)
        finally:
            if memfd >= 0:
                os.close(memfd)

    def _put_one(self, sibling: _Sibling, datagram: bytes, count: int, memfd: int = -1) -> None:
        if sibling.queue and self._waiter is None:
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
        if len(sibling.queue) == 1 and self._waiter is not None:
            self._wait_for_room(sibling)

    def _send(self, sibling: _Sibling, datagram: bytes, memfd: int = -1) -> bool:
        """Whether it is done: sent, or there is nobody any more. False: there is no room."""
        try:
            if len(datagram) <= self._inline:
                sibling.sock.send(datagram, _SEND)
            else:
                own = _written(datagram) if memfd < 0 else -1
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
            if error.errno == errno.EMSGSIZE and self._inline > 4096:
                self._inline = max(4096, sibling.sock.getsockopt(SOL_SOCKET, SO_SNDBUF) // 4)
                return self._send(sibling, datagram, memfd)
            self.broken = True
        return True

    def _wait_for_room(self, sibling: _Sibling) -> None:
        assert self._waiter is not None
        if self._stuck:  # nothing will announce that it is not any more
            self._waiter.call(partial(self._try_later, sibling))
        else:
            self._waiter.watch(
                sibling.sock.fileno(), lambda _: self._room(sibling, watched=True), writing=True
            )

    def _try_later(self, sibling: _Sibling) -> None:
        assert self._waiter is not None
        self._waiter.later(_RETRY, lambda: self._room(sibling, watched=False))

    def _room(self, sibling: _Sibling, *, watched: bool) -> None:
        """There may be room in its mailbox."""
        with self._lock:
            if sibling.sock.fileno() < 0 or not sibling.queue:
                return
            self._send_queued(sibling)
            waiter = self._waiter
            assert waiter is not None
            if watched and (self._stuck or not sibling.queue):
                waiter.unwatch(sibling.sock.fileno())
            if sibling.queue and (self._stuck or not watched):
                self._wait_for_room(sibling)

    def _send_queued(self, sibling: _Sibling) -> None:
        self._stuck = False
        while sibling.queue:
            datagram, count = sibling.queue[0]
            if not self._send(sibling, datagram):
                return
            self._cells[board.MAIL_SENT] += count
            sibling.queue.popleft()
            sibling.queued -= len(datagram) + OVERHEAD * count

    def _complain(self, sibling: _Sibling) -> None:
        now = time.monotonic()
        if now >= sibling.next_log:
            sibling.next_log = now + _QUIET
            self._unsaid.append(
                f"{sibling.dropped} messages for worker {sibling.slot} lost so far: it does not "
                "keep up"
            )

    def _say(self) -> None:
        while self._unsaid:
            log.warning("%s", self._unsaid.pop())

    def finish(self, seconds: float) -> None:
        """Send what is left, to those who take it within this time: this process ends, and its
        event loop has ended. What is sent from now on goes at once, as far as there is room; call
        this once more for the rest."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self._waiter = None
        self._flush()
        for sibling in tuple(self._siblings.values()):
            with self._lock:
                self._send_queued(sibling)
                while sibling.queue and (left := deadline - time.monotonic()) > 0:
                    sibling.sock.settimeout(left)
                    datagram, count = sibling.queue[0]
                    try:
                        if len(datagram) <= self._inline:
                            sibling.sock.send(datagram, int(MSG_NOSIGNAL))
                        elif not self._send(sibling, datagram):
                            time.sleep(min(left, _RETRY))
                            continue
                    except OSError:  # late, or gone
                        break
                    sibling.queue.popleft()
                    sibling.queued -= len(datagram) + OVERHEAD * count

    # -- receiving --------------------------------------------------------------------------------

    def subscribe(self, topic: bytes, handler: Handler) -> None:
        """Have this called with each message of a topic, and who has sent it: in the event loop,
        where it must not wait. From now on, whatever is sent arrives; and is handed over once this
        process has its loop."""
        with self._lock:
            self._topics[topic] = (*self._topics.get(topic, ()), handler)
            self._want()
        if not self._opened and self._waiter is not None:
            self._waiter.call(self._open)

    def unsubscribe(self, topic: bytes, handler: Handler) -> None:
        """Do not call it any more."""
        with self._lock:
            left = tuple(one for one in self._topics.get(topic, ()) if one != handler)
            if left:
                self._topics[topic] = left
            else:
                self._topics.pop(topic, None)
            self._want()

    def _want(self) -> None:
        bits = 0
        for topic in self._topics:
            bits |= bit_of(topic)
        if self.sender.row and not self._closed:
            self._wanted[self.sender.row] = bits

    def post_here(self, topic: bytes, payload: bytes) -> None:
        """Have a message for this process itself; it comes in the loop's next turn."""
        if topic not in self._topics:
            return
        with self._lock:
            self._here.append((topic, payload))
            if len(self._here) > 1 or self._waiter is None:
                return
        self._waiter.call(self._hand_over)

    def _hand_over(self) -> None:
        with self._lock:
            here, self._here = self._here, []
        for topic, payload in here:
            _tell(self._topics.get(topic, ()), payload, self.sender)

    def attended(self, call: Callable[[], object]) -> None:
        """Have this called in the event loop's thread, once there is one."""
        with self._lock:
            if self._waiter is None:
                self._on_attend.append(call)
                return
        self._waiter.call(call)

    @property
    def waiter(self) -> Waiter | None:
        """The event loop, once there is one."""
        return self._waiter

    def attend(self, waiter: Waiter, news: Waiter | None = None) -> None:
        """There is an event loop. To be called in its thread.

        Args:
            waiter: where mail is read, and what there is no room for is sent.
            news: where it is heard who comes and goes, if that is another one.
        """
        with self._lock:
            self._waiter = waiter
            calls, self._on_attend = self._on_attend, []
            for sibling in self._siblings.values():
                if sibling.queue:
                    self._wait_for_room(sibling)
        if self._news is not None:
            (news or waiter).watch(self._news.fileno(), lambda _: self.meet())
        if self._topics:
            waiter.call(self._open)
        if self._here:
            waiter.call(self._hand_over)
        for call in calls:
            call()

    def _open(self) -> None:
        """Begin to read."""
        if self._mailbox is not None and self._waiter is not None and not self._opened:
            self._opened = True
            self._waiter.watch(self._mailbox.fileno(), self._read)

    def _read(self, _: int = 0) -> None:
        self._turn += 1
        assert self._mailbox is not None
        buffer = self._buffer
        for _ in range(_READ):
            try:
                size, extra, flags, _ = self._mailbox.recvmsg_into([buffer], _SPACE, _RECEIVE)
            except OSError:
                return  # there is nothing more
            if not size:  # nobody is left who could send
                assert self._waiter is not None
                self._waiter.unwatch(self._mailbox.fileno())
                return
            if extra:
                data = _read_back(array.array("i", extra[0][2][:4])[0])
            elif flags & _CUT:
                self.lost(1)
                log.error("a message was lost: this worker has no file descriptor left")
                continue
            else:
                data = bytes(memoryview(buffer)[:size])
            try:
                self._dispatch(data)
            except (StructError, ValueError) as error:
                log.error("mail of %d bytes cannot be read: %s", len(data), error)
            if size < _SMALL:  # most likely that was all; if not, this is called again
                return

    def _dispatch(self, data: bytes) -> None:
        version, _, slot, row, pid = _HEADER.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"it is of version {version}, and not {VERSION}")
        sender = Sender(row, slot if slot < 0xFFFF else -1, pid)
        at, end, unpack, topics = _HEADER.size, len(data), _FRAME.unpack_from, self._topics
        received = 0
        while at < end:
            size, named = unpack(data, at)
            cut = at + 6 + named
            handlers = topics.get(data[at + 6 : cut])
            at = cut + size
            if handlers is not None:
                received += 1
                _tell(handlers, data[cut:at], sender)
        self._cells[board.MAIL_RECEIVED] += received

    def lost(self, count: int) -> None:
        """Count messages that have come and could not be kept."""
        self._cells[board.MAIL_DROPPED] += count

    # -- the end ----------------------------------------------------------------------------------

    def descriptors(self) -> Sequence[int]:
        """All that is open here."""
        ends = [end for end in (self._mailbox, self._news) if end is not None]
        ends += [sibling.sock for sibling in self._siblings.values()]
        return [end.fileno() for end in ends]

    def close(self) -> None:
        """Close all of it, without a word to anybody; also in a child of the app's, whose parent
        goes on."""
        self._closed = True
        for end in (self._mailbox, self._news):
            if end is not None:
                end.close()
        for sibling in self._siblings.values():
            sibling.sock.close()
        self._siblings = {}
        self._waiter = None


def _tell(handlers: Iterable[Handler], payload: bytes, sender: Sender) -> None:
    for handler in handlers:
        try:
            handler(payload, sender)
        except Exception:
            log.exception("a subscriber failed")


def _written(data: bytes) -> int:
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


def _read_back(memfd: int) -> bytes:
    try:
        return os.pread(memfd, os.fstat(memfd).st_size, 0)
    finally:
        os.close(memfd)
