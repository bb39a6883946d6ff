"""Worker processes as the system sees them: pids, pidfds, channels.

What is to be done with them is decided in ``lives``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import signal
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .. import channel, spawn
from ..board import Board
from ..errors import ChannelError, StickyError
from ..options import Options
from ..program import Program
from . import records, systemd
from .agenda import Why
from .loop import Loop
from .post import Post
from .signals import reap
from .spares import Spares
from .state import Packed, Packing

_FIONREAD = termios.FIONREAD


class Pairs:
    """What a slot has, whoever serves it: both ends of its inbox.

    Args:
        ends: these, where they are open already.
    """

    def __init__(self, ends: Sequence[socket.socket] = ()) -> None:
        self.ends = tuple(ends) or channel.inbox()
        self.inbox, self.inbox_end = self.ends

    def close(self) -> None:
        """Close all of them."""
        for end in self.ends:
            end.close()


_PACKED = ("slot", "pid", "row", "worker_class", "failure", "limit", "version")
"""Of ``Child``, what is packed as it is."""


class Child:
    """One worker process.

    Attributes:
        slot: whose it is; -1 for another process of ours.
        row: its counters, in the board.
        inbox, inbox_end: its own inbox, for what only it can serve.
        failure: its last words, if it cannot serve.
        version: of the messages that it understands.
    """

    def __init__(
        self,
        slot: int,
        pid: int,
        control: socket.socket,
        row: int = 0,
        worker_class: str = "",
        pidfd: int | None = None,
    ) -> None:
        self.slot = slot
        self.row = row
        self.worker_class = worker_class
        self.pid = pid
        self.pidfd = os.pidfd_open(pid) if pidfd is None else pidfd
        self.control = control
        self.inbox: socket.socket | None = None
        self.inbox_end: socket.socket | None = None
        self.failure: dict[str, Any] | None = None
        self.killed_because: Why | None = None
        # For what there was no room on the control pair: kind, payload.
        self.unsaid: deque[tuple[int, bytes]] = deque()
        self.limit = 0  # of requests, after which it is replaced
        self.version = channel.VERSION

    def pack(self, packing: Packing) -> dict[str, Any]:
        """What ``restore`` needs."""
        assert self.inbox is not None
        assert self.inbox_end is not None
        ends = (self.control, self.inbox, self.inbox_end)
        return {
            **records.fields(self, _PACKED),
            "killed_because": self.killed_because and self.killed_because.name,
            "unsaid": [(kind, payload.decode()) for kind, payload in self.unsaid],
            "ends": [packing.fd(end.fileno()) for end in ends],
        }

    @classmethod
    def restore(cls, known: Mapping[str, Any], packed: Packed) -> Child:
        """The same process, in a new master.

        Raises:
            StickyError: this code does not understand it.
        """
        known = dict(known)
        control, inbox, inbox_end = map(packed.socket, known.pop("ends"))
        unsaid, why = known.pop("unsaid"), known.pop("killed_because")
        child = cls(known["slot"], known["pid"], control, pidfd=packed.pidfd(known["pid"]))
        records.put_back(child, known, _PACKED)
        if child.version not in channel.SPOKEN:
            raise StickyError(
                f"worker {child.slot} (pid {child.pid}) speaks version {child.version} of the "
                f"messages, and this code {', '.join(map(str, sorted(channel.SPOKEN)))}"
            )
        child.inbox, child.inbox_end = inbox, inbox_end
        child.unsaid.extend((kind, payload.encode()) for kind, payload in unsaid)
        child.killed_because = why and Why[why]
        return child

    def send(self, sig: signal.Signals) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, sig)

    def close(self) -> None:
        """Close what we hold of it."""
        os.close(self.pidfd)
        for end in (self.control, self.inbox, self.inbox_end):
            if end is not None:
                end.close()


class Children:
    """All worker processes of a server, and what belongs to their slots.

    Args:
        options: the settings.
        program: what they run.
        board: where they count.
        loop: tells of their ends and of what they say.
        on_end, on_control: called with a process's key.
        nohup: SIGHUP was ignored when the program was started, and is to be in its children.
    """

    def __init__(
        self,
        options: Options,
        program: Program,
        board: Board,
        loop: Loop,
        *,
        on_end: Callable[[int], object],
        on_control: Callable[[int], object],
        nohup: bool = False,
    ) -> None:
        self._nohup = nohup
        self._options = options
        self._program = program
        self._board = board
        self._loop = loop
        self._on_end = on_end
        self._on_control = on_control
        self._started = 0
        self.worker_class = options.worker_class  # what new processes are told
        self.pairs: list[Pairs] = []
        self.inboxes: list[socket.socket] = []
        self.own_inboxes: dict[int, socket.socket] = {}
        self.by_key: dict[int, Child] = {}
        self.post = Post(board)
        self._secret = os.urandom(32)  # of which sticky.secret() is made, in all of them alike
        self._spares = Spares(options.spares, loop)

    def grow(self, num: int) -> None:
        """Have what belongs to so many slots."""
        while len(self.pairs) < num:
            pairs = Pairs()
            self.pairs.append(pairs)
            self.inboxes.append(pairs.inbox)

    def shrink(self, num: int) -> None:
        """Close what belongs to slots from this number on, once nobody is there any more."""
        last = max((child.slot for child in self.by_key.values()), default=-1)
        while len(self.pairs) > max(num, last + 1):
            self.pairs.pop().close()
            self.inboxes.pop()

    def pack(self, packing: Packing) -> dict[str, Any]:
        """What ``restore`` needs."""
        return {
            "started": self._started,
            "secret": self._secret.hex(),
            "worker_class": self.worker_class,
            "pairs": [[packing.fd(end.fileno()) for end in pairs.ends] for pairs in self.pairs],
            "children": [[key, child.pack(packing)] for key, child in self.by_key.items()],
            "post": self.post.pack(packing),
        }

    def restore(self, known: Mapping[str, Any], packed: Packed) -> None:
        """Those that a master before had started.

        Raises:
            OSError: there is no descriptor for their pidfds.
            StickyError: this code does not understand them.
        """
        self._started = known["started"]
        self._secret = bytes.fromhex(known["secret"])
        self.worker_class = known["worker_class"]
        self.pairs[:] = [Pairs([packed.socket(fd) for fd in fds]) for fds in known["pairs"]]
        self.inboxes[:] = [pairs.inbox for pairs in self.pairs]
        for key, entry in known["children"]:
            child = self.by_key[key] = Child.restore(entry, packed)
            assert child.inbox is not None
            self.own_inboxes[key] = child.inbox
        self.post.restore(known["post"], packed)

    def resume(self) -> None:
        """Hear what they say, and tell them what there was no room for."""
        for key, child in self.by_key.items():
            unsaid, child.unsaid = child.unsaid, deque()
            self.listen(key)
            for kind, payload in unsaid:
                self.say(child, kind, payload)

    def start(self, number: int) -> int:
        """Start a process for a slot; its key.

        Raises:
            OSError: it could not be started.
        """
        row = self._board.give()
        try:
            inbox, inbox_end = channel.inbox()
        except OSError:
            self._board.take_back(row)
            raise
        try:
            child = self._spawn(number, row, inbox_end)
        except OSError:
            self.post.close(row)
            self._board.take_back(row)
            inbox.close()
            inbox_end.close()
            raise
        child.inbox, child.inbox_end = inbox, inbox_end
        self._started += 1
        key = self._started
        self.by_key[key] = child
        self.own_inboxes[key] = inbox
        self.listen(key)
        return key

    def listen(self, key: int) -> None:
        """Hear what a process says, and when it ends."""
        child = self.by_key[key]
        self._loop.register(child.pidfd, select.EPOLLIN, lambda _: self._on_end(key))
        self._loop.register(child.control.fileno(), select.EPOLLIN, lambda _: self._on_control(key))

    def _spawn(self, number: int, row: int, own: socket.socket) -> Child:
        options, post = self._options, self.post.open(row, number)
        place = {"slot": number, "row": row, **post.spec}
        ends = (self.pairs[number].inbox_end, own, post.mailbox, post.news)
        fds = [*(end.fileno() for end in ends), self._board.fd, *post.fds]
        try:
            child = self._spares.take(self.worker_class, json.dumps(place).encode(), fds)
            if child is not None:
                child.slot, child.row = number, row
            else:
                child = self._begin(f"worker {number}", {"role": "worker", **place}, fds)
        finally:
            post.close()
        if options.max_requests:
            jitter = random.randint(0, options.max_requests_jitter)  # noqa: S311 - no secret
            child.limit = options.max_requests + jitter
        return child

    def _begin(self, label: str, role: dict[str, Any], fds: Sequence[int] = ()) -> Child:
        """Start a process, of a slot or of none yet."""
        program, slot, row = self._program, role.get("slot", -1), role.get("row", 0)
        spec = {
            **role,
            "master": os.getpid(),
            "nohup": self._nohup,
            "secret": self._secret.hex(),
            "options": self._options.to_json() | {"worker_class": self.worker_class},
            "target": program.target,
            "script": program.script,
            "module": program.module,
            "call": program.call,
            "argv": list(program.argv),
            "path": list(program.path),
        }
        environment = systemd.without(os.environ) | dict(self._options.env)
        if slot >= 0:
            environment["STICKY_WORKER_ID"] = str(slot)
        pid, control = spawn.start(label, spec, fds, environment=environment, stdin=os.devnull)
        try:
            return Child(slot, pid, control, row, self.worker_class)
        except OSError:  # without a pidfd its end would not be noticed
            control.close()
            os.kill(pid, signal.SIGKILL)
            reap(pid)
            raise

    # -- spares -------------------------------------------------------------------------------

    def keep_spares(self) -> None:
        """Have as many processes as the options say that wait for a slot."""
        if self.worker_class != "auto":
            self._spares.fill(lambda: self._begin(spawn.SPARE, {"role": "spare"}))

    def drop_spares(self) -> None:
        """End those that wait: what they have imported is old."""
        self._spares.drop()

    # -- what they are told -------------------------------------------------------------------

    def say(self, child: Child, kind: int, payload: bytes = b"") -> None:
        """Tell a process something; as soon as there is room for it."""
        if child.unsaid:
            child.unsaid.append((kind, payload))
            return
        try:
            channel.send(child.control, channel.pack_header(kind), payload)
        except BlockingIOError:
            child.unsaid.append((kind, payload))
            self._loop.register(
                child.control.fileno(),
                select.EPOLLIN | select.EPOLLOUT,
                lambda events: self._room(child, events),
            )
        except OSError:
            pass  # it is dead: its pidfd tells

    def _room(self, child: Child, events: int) -> None:
        key = next(key for key, other in self.by_key.items() if other is child)
        if events & select.EPOLLOUT:
            unsaid, child.unsaid = child.unsaid, deque()
            self._loop.register(
                child.control.fileno(), select.EPOLLIN, lambda _: self._on_control(key)
            )
            for kind, payload in unsaid:
                self.say(child, kind, payload)
        if events & ~select.EPOLLOUT:
            self._on_control(key)

    # -- their inboxes ------------------------------------------------------------------------

    def inbox_end(self, slot: int, key: Any = None) -> socket.socket | None:
        """Where an inbox is read: that of a slot, or a process's own."""
        if key is None:
            return self.pairs[slot].inbox_end
        child = self.by_key.get(key)
        return child.inbox_end if child else None

    def unread(self, slot: int) -> int:
        """How many connections lie in the inbox of a slot, roughly."""
        return _unread(self.pairs[slot].inbox_end) // channel.HEADER_SIZE

    def filled(self) -> set[int]:
        """The slots for which connections lie in an inbox."""
        found = {number for number, pairs in enumerate(self.pairs) if _unread(pairs.inbox_end)}
        own = {c.slot for c in self.by_key.values() if c.inbox_end and _unread(c.inbox_end)}
        return found | own

    def forget(self, key: int) -> Child:
        """A process has ended: collect it. What it said, and what lies in its inbox, is to be read
        before."""
        child = self.by_key.pop(key)
        self._loop.unregister(self.own_inboxes.pop(key).fileno())
        self._loop.unregister(child.pidfd)
        self._loop.unregister(child.control.fileno())
        self.post.close(child.row)
        self._board.take_back(child.row)
        return child

    def close(self) -> None:
        """Close everything; no worker is ended by that."""
        self.drop_spares()
        for child in self.by_key.values():
            child.close()
        for pairs in self.pairs:
            pairs.close()
        self.post.close_all()


def _unread(end: socket.socket) -> int:
    """Bytes that lie in an inbox."""
    size: int = struct.unpack("i", fcntl.ioctl(end, _FIONREAD, b"\0\0\0\0"))[0]
    return size


def drained(end: socket.socket, reader: channel.Reader) -> Iterator[channel.Message]:
    """All messages that lie in an inbox, taken out of it.

    Those whose descriptors there is no room for are lost; see ``reserve``.
    """
    while True:
        try:
            message = reader.receive(end)
        except ChannelError:
            continue
        except OSError:
            return
        if message is None:
            return
        yield message
