"""A python-socketio client manager across the local workers, without a broker.

    sio = socketio.Server(client_manager=sticky.cluster.Manager())

An emit, a room change or a disconnect of one worker reaches the clients of all of them, as with
socketio.RedisManager, over the bus that the master made: one SEQPACKET pair per slot, of which
every worker holds the write end and the slot's own process the read end.

Delivery is at most once, as with any publish and subscribe. What was sent while a slot had no
process is read by its successor before it has a client that it could concern.
"""

from __future__ import annotations

import array
import errno
import itertools
import logging
import os
import select
import threading
import time
import uuid
from _socket import socket  # never monkey-patched: a send must fail with EAGAIN, not wait
from collections import deque
from collections.abc import Iterator, Sequence
from socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    SCM_RIGHTS,
    SO_SNDBUF,
    SOCK_SEQPACKET,
    SOL_SOCKET,
)
from typing import Any

import socketio

from .errors import StickyError
from .worker.main import current_worker

INLINE = 60_000  # bytes of a message in the socket itself; a longer one travels as a memfd
QUEUE_LIMIT = 8 * 1024 * 1024  # bytes kept for one slow sibling; what comes after is dropped
QUEUE_OVERHEAD = 256  # bytes counted for each message beside its own length
READ_TURN = 64  # messages handled before the other greenlets get a turn
LOG_INTERVAL = 10.0  # seconds between two lines about the same trouble
FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE)

log = logging.getLogger("sticky.cluster")
_being_read: set[int] = set()  # mailboxes in this process


def _wait(fd: int, *, write: bool = False) -> None:
    """Wait for an fd; cooperatively where `select` has been monkey-patched (eventlet, gevent)."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLOUT if write else select.POLLIN)
        poll.poll()
    else:  # eventlet takes poll away, and its select has no limit of 1024
        select.select([] if write else [fd], [fd] if write else [], [])


class _Sibling:
    """The way to one slot: what it does not take at once waits in a bounded queue."""

    def __init__(self, slot: int, fd: int, limit: int) -> None:
        self.slot = slot
        self.fd = fd
        self.limit = limit
        self.sock = socket(AF_UNIX, SOCK_SEQPACKET, 0, os.dup(fd))
        self.sock.setblocking(False)
        self.inline = min(INLINE, self.sock.getsockopt(SOL_SOCKET, SO_SNDBUF) // 4)
        self.lock = threading.Lock()  # one order of messages, also with threads
        self.queue: deque[bytes] = deque()
        self.queued = 0  # bytes
        self.dropped = 0
        self.next_log = 0.0

    def put(self, data: bytes) -> bool:
        """Send or queue or drop; True if there is now a queue that nobody is flushing."""
        with self.lock:
            if not self.queue and self._send(data):
                return False
            size = len(data) + QUEUE_OVERHEAD
            if self.queue and self.queued + size > self.limit:
                self._drop()
                return False
            self.queue.append(data)
            self.queued += size
            return len(self.queue) == 1

    def flush(self) -> None:
        """Send what is queued, as fast as the other side takes it."""
        while True:
            _wait(self.sock.fileno(), write=True)
            with self.lock:
                before = len(self.queue)
                while self.queue and self._send(self.queue[0]):
                    self.queued -= len(self.queue.popleft()) + QUEUE_OVERHEAD
                if not self.queue:
                    return
                stuck = len(self.queue) == before
            if stuck:  # writable, and yet no room: out of fds, or for a small message only
                time.sleep(0.01)

    def _send(self, data: bytes) -> bool:
        """False if it does not fit now."""
        try:
            if len(data) <= self.inline:
                self.sock.send(data)
            else:
                self._send_as_file(data)
        except OSError as error:
            if error.errno in FULL:
                return False
            self._drop(error)
        return True

    def _send_as_file(self, data: bytes) -> None:
        fd = os.memfd_create("sticky-bus", os.MFD_CLOEXEC)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            self.sock.sendmsg([b"F"], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd]))])
        finally:
            os.close(fd)

    def _drop(self, error: OSError | None = None) -> None:
        self.dropped += 1
        if (now := time.monotonic()) >= self.next_log:
            self.next_log = now + LOG_INTERVAL
            why = error or "it does not keep up"
            log.warning("%d events for worker %d lost so far: %s", self.dropped, self.slot, why)


class Manager(socketio.PubSubManager):  # type: ignore[misc]  # python-socketio is not typed
    """One for each worker's socketio.Server. The arguments are for tests.

    own, mailbox, siblings: our slot and the fds of the bus, which stay the caller's; all three or
    none, then they are those of ``sticky.current_worker()``.
    queue_limit: bytes kept for a sibling that does not keep up.

    Raises StickyError outside of a worker.
    """

    name = "sticky"

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        own: int | None = None,
        mailbox: int | None = None,
        siblings: Sequence[int] | None = None,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        super().__init__(logger=logger)
        if own is None or mailbox is None or siblings is None:
            if (worker := current_worker()) is None:
                raise StickyError(
                    "sticky.cluster.Manager needs the bus between the workers, and this process is "
                    "not one: make it in the factory that is given to sticky.listen"
                )
            own, mailbox, siblings = worker.id, worker.mailbox, worker.siblings
        self._own = own
        # An answer to a callback is for one worker only, and has nothing but the asker's host_id.
        self.host_id = f"{own}.{uuid.uuid4().hex}"
        self._mailbox_fd = mailbox
        self._mailbox = socket(AF_UNIX, SOCK_SEQPACKET, 0, os.dup(mailbox))
        self._mailbox.setblocking(False)
        self._fds = siblings  # which become more where the number of workers does
        self._limit = queue_limit
        self._siblings: list[_Sibling] = []
        self._meet()

    def _meet(self) -> None:
        """Know all siblings that there are. A slot that was there, was not, and is again has
        another descriptor."""
        for slot, fd in enumerate(self._fds):
            if slot == len(self._siblings):
                self._siblings.append(_Sibling(slot, fd, self._limit))
            elif self._siblings[slot].fd != fd:
                self._siblings[slot].sock.close()
                self._siblings[slot] = _Sibling(slot, fd, self._limit)

    @property
    def dropped(self) -> dict[int, int]:
        """Slot -> events that were not sent to its worker because it did not keep up."""
        return {sibling.slot: sibling.dropped for sibling in self._siblings if sibling.dropped}

    def set_server(self, server: socketio.Server) -> None:
        """Start reading. At the first client, when python-socketio would, is too late: until then
        the mail piles up, and that client would be told old news."""
        if self._mailbox_fd in _being_read:
            raise StickyError("one sticky.cluster.Manager per worker: two would share its mail")
        _being_read.add(self._mailbox_fd)
        super().set_server(server)
        super().initialize()

    def initialize(self) -> None:
        """Nothing is left to do when the first client comes."""

    def close(self) -> None:
        """Give the fds back; for tests, a worker's manager lives as long as the process."""
        _being_read.discard(self._mailbox_fd)
        for sock in [self._mailbox, *(sibling.sock for sibling in self._siblings)]:
            sock.close()

    def _publish(self, message: dict[str, Any]) -> None:
        data = self.json.dumps(message)
        if isinstance(data, str):  # there are JSON modules that give bytes
            data = data.encode()
        only = _slot_of(message["host_id"]) if message["method"] == "callback" else None
        self._meet()
        for sibling in self._siblings:
            wanted = sibling.slot != self._own if only is None else sibling.slot == only
            if wanted and sibling.put(data):
                self.server.start_background_task(sibling.flush)

    def _listen(self) -> Iterator[bytes]:
        """Each message of the mailbox, until no sender is left."""
        buffer = bytearray(INLINE)
        view = memoryview(buffer)
        for turn in itertools.count(1):
            if turn % READ_TURN == 0:
                self.server.sleep(0)
            try:
                size, extra, flags, _ = self._mailbox.recvmsg_into(
                    [buffer], CMSG_SPACE(4), MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                _wait(self._mailbox.fileno())
                continue
            if extra:
                yield _read_file(array.array("i", extra[0][2][:4])[0])
            elif flags & MSG_CTRUNC:
                log.error("an event was lost: this worker has no file descriptor left")
            elif size:
                yield bytes(view[:size])
            else:
                return


def _slot_of(host_id: str) -> int | None:
    slot = host_id.partition(".")[0]
    return int(slot) if slot.isdecimal() else None


def _read_file(fd: int) -> bytes:
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
