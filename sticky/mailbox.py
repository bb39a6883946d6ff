"""A process's mailbox: what others have sent, handed over by topic in the turns of its event loop.

It is an AF_UNIX SOCK_SEQPACKET pair of which the process reads one end; the others (and the master,
who hands it on) have the other end. So both processes of a slot that is being reloaded hear, and a
new one hears nothing that was sent before it was there.

    datagram    header (12 bytes)               frames, one or more
                version kind slot row pid       size, size of the topic, topic, payload
"""

from __future__ import annotations

import array
import logging
import os
import zlib
from _socket import socket as Socket  # noqa: N812 - never monkey-patched: it must not wait
from _thread import allocate_lock
from collections.abc import Callable
from socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, NamedTuple, Protocol

from . import board

VERSION = 1
LONGEST_TOPIC = 255
INLINE = 60_000
"""Bytes of a datagram; more go in a memfd."""
FRAMES, FILE = 0, 1
"""Kinds of datagrams: the frames follow, or are in the file that comes with it."""
HEADER = Struct("<BBHII")
FRAME = Struct("<IH")

_SMALL = 4096  # bytes of a datagram behind which there is probably no other
_READ = 4  # datagrams in one turn, before everything else in this process gets its turn again
_RECEIVE = int(MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
_CUT = int(MSG_CTRUNC)
_SPACE = CMSG_SPACE(4)
_KNOWN = 256  # senders whose headers are kept

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

    def soon(self, call: Callable[[], object]) -> None:
        """The same, for what may wait until something more has gathered."""

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have this called in so many seconds; from the loop's own thread."""


EVENTS, QUESTIONS, ANSWERS = b"\0\0", b"\0\1", b"\0\2"
"""Topics of this package, each with a bit of its own."""


def bit_of(topic: bytes) -> int:
    """The bit of a topic, in the cell that says what a process wants."""
    return 1 << (topic[1] & 3) if topic[0] == 0 else 16 << zlib.crc32(topic) % 60


class Mailbox:
    """What one process receives.

    Args:
        sender: who this process is.
        sock: the end that is read; None: there is none.
        memory: the server's board, where it says what it wants.
        cells: the counters of this process.

    Attributes:
        turn: how often it has been read; the number of the event loop's turn.
    """

    def __init__(
        self, sender: Sender, sock: Socket | None, memory: board.Board, cells: Any
    ) -> None:
        self.sender = sender
        self.turn = 0
        self._sock = sock
        self._wanted = memory.wanted
        self._cells = cells
        self._lock = allocate_lock()
        self._buffer = bytearray(INLINE)
        self._waiter: Waiter | None = None
        self._topics: dict[bytes, tuple[Handler, ...]] = {}
        self._here: list[tuple[bytes, bytes]] = []  # for this process itself
        self._senders: dict[bytes, Sender] = {}
        self._opened = False
        self._closed = False

    def __bool__(self) -> bool:
        """Whether anything is wanted."""
        return bool(self._topics)

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

    def attend(self, waiter: Waiter) -> None:
        """There is an event loop. To be called in its thread."""
        self._waiter = waiter
        if self._topics:
            waiter.call(self._open)
        if self._here:
            waiter.call(self._hand_over)

    def _open(self) -> None:
        """Begin to read."""
        if self._sock is not None and self._waiter is not None and not self._opened:
            self._opened = True
            self._waiter.watch(self._sock.fileno(), self.read)

    def read(self, _: int = 0) -> None:
        """Hand over what has come."""
        self.turn += 1
        assert self._sock is not None
        receive, buffer = self._sock.recvmsg_into, self._buffer
        for _ in range(_READ):
            try:
                size, extra, flags, _ = receive([buffer], _SPACE, _RECEIVE)
            except OSError:
                return  # there is nothing more
            if not size:  # nobody is left who could send
                assert self._waiter is not None
                self._waiter.unwatch(self._sock.fileno())
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
        header = data[: HEADER.size]
        sender = self._senders.get(header) or self._learn(header)
        at, end, unpack, topics = HEADER.size, len(data), FRAME.unpack_from, self._topics
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

    def _learn(self, header: bytes) -> Sender:
        version, _, slot, row, pid = HEADER.unpack(header)
        if version != VERSION:
            raise ValueError(f"it is of version {version}, and not {VERSION}")
        if len(self._senders) >= _KNOWN:
            self._senders.clear()
        sender = Sender(row, slot if slot < 0xFFFF else -1, pid)
        self._senders[header] = sender
        return sender

    def lost(self, count: int) -> None:
        """Count messages that have come and could not be kept."""
        self._cells[board.MAIL_DROPPED] += count

    def descriptors(self) -> list[int]:
        """What is open here."""
        return [] if self._sock is None else [self._sock.fileno()]

    def close(self) -> None:
        """Read nothing more, without a word to anybody."""
        self._closed = True
        self._waiter = None
        if self._sock is not None:
            self._sock.close()


def _tell(handlers: tuple[Handler, ...], payload: bytes, sender: Sender) -> None:
    for handler in handlers:
        try:
            handler(payload, sender)
        except Exception:
            log.exception("a subscriber failed")


def _read_back(memfd: int) -> bytes:
    try:
        return os.pread(memfd, os.fstat(memfd).st_size, 0)
    finally:
        os.close(memfd)
