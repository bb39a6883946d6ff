"""The system calls that the master makes, over a world that is only numbers.

The master and its dispatcher run here as they are, on top of this: descriptors (the
lowest free number first, and only so many), epoll (level- and edge-triggered, and what it does to
a registration whose file lives on elsewhere), a listener with its backlog, client sockets, the
inboxes of slots and processes, control pairs, pidfds, signals, and a clock that moves only in
``epoll.poll``.

``Code`` makes fresh copies of the master's modules, with their system calls replaced, and with
their source text changed first where a test wants to see that the change is noticed.
"""

from __future__ import annotations

import builtins
import errno
import heapq
import importlib
import io
import itertools
import json
import logging
import math
import os
import random
import select
import signal
import socket
import struct
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import sticky.channel
from sticky.master.agenda import LONGEST_STEP

IN, OUT, ERR, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
RDHUP, ET = select.EPOLLRDHUP, select.EPOLLET
GRID = 0.01
"""Things happen at multiples of this many seconds, so that many happen at once."""
TURNS = 4_000
"""A history that takes more turns than this does not end."""
STEPS = 100_000
"""And one in which the world changes more often than this neither."""
LARGE = 64
"""A prefix of more bytes than this goes in a memfd, which takes one more descriptor."""
CONTROL = 4
"""Hand backs that fit in a control pair."""
ANY = -2
"""The slot of a connection at rest that any slot may have."""


class Broken(AssertionError):
    """A promise was not kept."""


def broken(*what: object) -> NoReturn:
    """A promise was not kept: these words say which."""
    raise Broken(" ".join(map(str, what)))


def demand(kept: object, *what: object) -> None:
    """Raise Broken, with these words, unless the promise was kept. What is looked at in every turn
    says ``kept or broken(...)``: then the words cost nothing."""
    if not kept:
        broken(*what)


def failing(number: int) -> OSError:
    """What a system call raises."""
    return OSError(number, os.strerror(number))


class Replaced(BaseException):
    """execve(2) never returns: what was running is left by this, and does nothing any more."""


class Kernel:
    """Time, descriptors and epoll.

    Attributes:
        frozen: the code that runs is none any more; it only has not noticed yet.
    """

    def __init__(self, rng: random.Random, descriptors: int, stall: float) -> None:
        self.rng = rng
        self.now = 1000.0
        self.ran = 0.0  # the master's own time: of a long step only the first second
        self.stalls = 0
        self.stalled = 0.0
        self.turns = 0
        self.cut = False  # in this turn poll() did not report all it could have
        self.stirred: list[File] = []  # those that epoll could report, and could not before
        self.starved_at = -math.inf  # when the last descriptor was asked for in vain
        self.steps = 0  # how often the world has changed, or the master had its turn
        self.after_step: Callable[[int], object] | None = None
        self.events: Counter[str] = Counter()  # what has happened, for those who count it
        self.trace: list[str] | None = None
        self.frozen = False
        self.watched: dict[int, list[Any]] = {}  # fd: [events, file, what it saw last]
        self.files: dict[int, File] = {}
        self.sockets = 0  # of these files
        self.ended: list[Wire] = []  # since they were last looked at
        self.between_turns: Callable[[float], None] = lambda timeout: None
        self.unwatched: Callable[[int], None] = lambda fd: None
        # Numbers that no real descriptor has, in case a real system call gets one.
        self._free = list(range(1_000_003, 1_000_003 + descriptors))
        self._agenda: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._stall = stall
        self._last = self.now

    def say(self, *words: object) -> None:
        """A line for whoever replays this history."""
        if self.trace is not None:
            self.trace.append(f"{self.now - 1000:9.3f} {' '.join(map(str, words))}")

    def note(self, *words: object) -> None:
        """Something happened that a history is run for."""
        self.events[" ".join(map(str, words)) if len(words) > 1 else str(words[0])] += 1

    # -- time ---------------------------------------------------------------------------------

    def at(self, delay: float, what: Callable[..., object], *arguments: Any) -> None:
        """Have something happen after this many seconds."""
        heapq.heappush(self._agenda, (self.moment(delay), next(self._order), what, arguments))

    def moment(self, delay: float) -> float:
        """When it is after this many seconds."""
        return math.ceil((self.now + delay) / GRID - 1e-6) * GRID

    def _advance(self, until: float) -> None:
        """Go to this moment, with everything that happens on the way."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= until:
            when, _, what, arguments = heapq.heappop(agenda)
            self.now = max(self.now, when)
            what(*arguments)
            self._step()
        self.now = max(self.now, until)

    def _step(self) -> None:
        self.steps += 1
        demand(self.steps < STEPS, "this does not end, in one turn")
        if self.after_step is not None:
            self.after_step(self.steps)

    # -- descriptors --------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many descriptors are free."""
        return len(self._free)

    def open(self, file: File) -> File:
        """Give a file the lowest free descriptor."""
        if not self._free:
            self.starved_at = self.now
            raise failing(errno.EMFILE)
        file.fd = heapq.heappop(self._free)
        self.files[file.fd] = file
        return file

    def close(self, file: File) -> None:
        """Close a descriptor; closing it again does nothing, as with socket objects."""
        if file.fd < 0 or self.frozen:
            return
        watch = self.watched.get(file.fd)
        if watch is not None:
            demand(not file.lives_elsewhere(), file, "was closed without leaving epoll")
            del self.watched[file.fd]
        del self.files[file.fd]
        heapq.heappush(self._free, file.fd)
        file.fd = -1

    def set_inheritable(self, fd: int, on: bool) -> None:
        """Whether it stays open over execve(2)."""
        if fd in self.files and not self.frozen:
            self.files[fd].inheritable = on

    def become(self) -> None:
        """What execve(2) does: the registrations are gone, and so is what is not inheritable."""
        self.frozen = False
        self.watched.clear()
        for file in list(self.files.values()):
            if not file.inheritable:
                file.close()

    # -- epoll (the module ``select``, as far as it is used) ----------------------------------

    def register(self, fd: int, events: int) -> None:
        demand(fd not in self.watched, "registered twice:", fd)
        demand(fd in self.files, "registered, but not open:", fd)
        self.watched[fd] = [events, self.files[fd], -1]

    def modify(self, fd: int, events: int) -> None:
        demand(fd in self.watched, "changed, but not registered:", fd)
        self.watched[fd][0] = events
        self.watched[fd][2] = -1

    def unregister(self, fd: int) -> None:
        if self.frozen:
            return
        demand(fd in self.watched, "unregistered, but not registered:", fd)
        del self.watched[fd]
        self.unwatched(fd)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Wait, while the world goes on, until something can be reported."""
        self.between_turns(timeout)
        self.turns += 1
        self._step()
        demand(self.turns < TURNS, "this does not end")
        rng = self.rng
        deadline = self.now + math.ceil(timeout * 1000) / 1000
        if self._stall and rng.random() < self._stall:
            pause = rng.choice((0.02, 0.3, 1.5, 8.0, 70.0))
            self.say("the master does not run for", pause, "s")
            self.stalls += 1
            self.stalled += pause
            self._advance(self.now + pause)
        ready = self._ready()
        while not ready:
            if not self._agenda or self._agenda[0][0] > deadline:
                self._advance(deadline)
                break
            self._advance(self._agenda[0][0])
            if any(file.fd in self.watched for file in self.stirred):
                ready = self._ready()
        self.run_on()
        self.cut = False
        if len(ready) > 1:
            rng.shuffle(ready)
            if rng.random() < 0.2:
                del ready[rng.randrange(1, len(ready)) :]
                self.cut = True
        for fd, events in ready:
            watch = self.watched[fd]
            watch[2] = watch[1].edge
            if self.trace is not None:
                self.say("event", watch[1], events)
        return ready

    def run_on(self) -> None:
        """The master runs again."""
        self.ran += min(self.now - self._last, LONGEST_STEP)
        self._last = self.now

    def _ready(self) -> list[tuple[int, int]]:
        self.stirred.clear()
        ready = []
        for fd, (events, file, seen) in self.watched.items():
            if events & ET and seen == file.edge:
                continue
            if found := file.ready() & (events | ERR | HUP):
                ready.append((fd, found))
        return ready


class File:
    """Something the master has a descriptor for."""

    name = "file"
    inheritable = False

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.fd = -1
        self.edge = 0
        kernel.open(self)

    def __repr__(self) -> str:
        return f"{self.name}[{self.fd - 1_000_000}]"

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        self.kernel.close(self)

    def setblocking(self, flag: bool) -> None:
        """They never block."""

    def stir(self) -> None:
        """What can be reported of this file has changed."""
        self.edge += 1
        self.kernel.stirred.append(self)

    def ready(self) -> int:
        return 0

    def lives_elsewhere(self) -> bool:
        return False


class Request(NamedTuple):
    """One request of a connection: a head that ends with a line end, and a body."""

    key: int  # whose it is: says the slot, together with the number of slots
    wrong: int | None  # the status that it deserves, if it does not deserve to be served
    head: bytes
    size: int  # of head and body
    session: bool = False  # it is of the session that the connection's first request began


class Parcel(NamedTuple):
    """A connection on its way between the master and a worker."""

    wire: Wire
    prefix: bytes
    moves: int
    rest: bool = False  # nothing of a next request was read
    unheld: bool = False  # who could have held its session does not
    since: int = 0


class Wire:
    """One client's connection, from its connect to its end, wherever it is.

    ``place`` is backlog, master, inbox, worker, moving (back to the master) or ended; only ``move``
    changes it. Every byte of the ``stream`` that the client has sent is of a request that was
    served (the first ``used``), was read and goes wherever the connection goes (``carried``), or
    waits in the kernel (``data``): whoever holds the connection is asked for what is carried.
    """

    def __init__(self, kernel: Kernel, number: int, key: int) -> None:
        self.kernel = kernel
        self.number = number
        self.requests = [Request(key, None, b"", 0)]  # what the client means to send
        self.served = 0  # of the requests
        self.moved = 0  # times, for the request whose turn it is
        self.moves = 0  # in all
        self.overlooked = 0  # turns in which it was queued though its client had left
        self.leaving = False  # its worker is about to hand it back
        self.destined = -1  # the slot that was decided on
        self.asked: Any = None  # the worker that is to be asked for its session
        self.unheld = False  # nobody is left to be asked
        self.put = kernel.now  # in an inbox
        self.got = kernel.now  # when the master had it, with a whole head or at rest
        self.rests_in = 0  # the slot in whose line it was last seen at rest
        self.turn_since = kernel.now  # of the request whose turn it is
        self.heir: int | None = None  # at rest, and on its way to this slot, or to any (ANY)
        self.orphan = False  # at rest, and there was no successor
        self.stream = bytearray()
        self.used = 0
        self.data = bytearray()
        self.fin = self.reset = False
        self.place = "backlog"
        self.waits: str | None = None  # where in the ledger, as it was between the last turns
        self.since = kernel.now
        self.decided = 0  # which one it was, of all that were routed
        self.answer: int | None = None
        self.outcome: str | None = None
        self.sock: Socket | None = None
        self.handed_back_by: Any = None  # the worker that did so last
        self.on_answer: Callable[[], object] = lambda: None
        self.on_served: Callable[[], object] = lambda: None
        self.on_move: Callable[[], object] = lambda: None
        self.on_stir: Callable[[], object] = lambda: None  # for the worker that holds it

    def __repr__(self) -> str:
        return f"wire {self.number}"

    @property
    def request(self) -> Request:
        """The request whose turn it is; the last one again, when all were served."""
        return self.requests[min(self.served, len(self.requests) - 1)]

    @property
    def wrong(self) -> int | None:
        """The status that the request whose turn it is deserves."""
        return self.request.wrong

    @property
    def carried(self) -> bytes:
        """What was read and not used: it must be wherever the connection is."""
        end = len(self.stream) - len(self.data)
        return bytes(self.stream[self.used : end]) if end > self.used else b""

    def move(self, before: str, after: str, outcome: str | None = None) -> None:
        """It goes from one place to another."""
        demand(self.place == before, self, "goes to", after, "from", self.place, "not", before)
        self.place = after
        self.outcome = outcome
        if after == "ended":
            self.kernel.ended.append(self)
        self.kernel.say(self, "->", after, outcome or "")
        self.on_move()

    def read(self, size: int) -> bytes:
        """Its worker reads."""
        demand(self.place == "worker", self, "is read by a worker in", self.place)
        piece = bytes(self.data[:size])
        del self.data[:size]
        return piece

    def use(self, piece: bytes) -> None:
        """A request was served, which had these bytes."""
        expected = self.stream[self.used : self.used + len(piece)]
        demand(piece == expected, self, "was served", piece, "not", bytes(expected))
        self.used += len(piece)
        self.served += 1
        self.moved = 0
        self.unheld = False
        self.turn_since = self.kernel.now
        self.on_served()

    # What the client does.

    def send(self, data: bytes) -> None:
        if not (self.fin or self.reset):
            self.data += data
            self.stream += data
            self._stir()

    def shut(self) -> None:
        self.kernel.note("FIN", self.whereabouts)
        self.fin = True
        self._stir()

    def leave(self) -> None:
        self.kernel.note("RST", self.whereabouts)
        self.reset = True
        self._stir()

    @property
    def whereabouts(self) -> str:
        """At which step of its way it is, for those who count."""
        place = self.waits if self.place == "master" else self.place
        if self.leaving:
            place = "leaving"
        return f"{place} again" if self.moves and place != "moving" else f"{place}"

    def _stir(self) -> None:
        if self.sock is not None:
            self.sock.stir()
        self.on_stir()


class Socket(File):
    """The master's descriptor for a wire."""

    name = "socket"

    def __init__(self, kernel: Kernel, wire: Wire) -> None:
        self.wire = wire
        super().__init__(kernel)
        kernel.sockets += 1

    def __repr__(self) -> str:
        return f"{self.wire}[{self.fd - 1_000_000}]"

    def ready(self) -> int:
        wire = self.wire
        if wire.reset:
            return IN | OUT | RDHUP | ERR | HUP
        found = OUT
        if wire.data:
            found |= IN
        if wire.fin:
            found |= IN | RDHUP
        return found

    def lives_elsewhere(self) -> bool:
        return self.wire.place in ("inbox", "worker", "moving")

    def recv_into(self, buffer: bytearray, size: int, flags: int) -> int:
        wire = self.wire
        demand(wire.place == "master", wire, "is read by the master in", wire.place)
        if wire.reset:
            raise failing(errno.ECONNRESET)
        if not wire.data:
            if wire.fin:
                return 0
            raise BlockingIOError(errno.EAGAIN, "no data")
        size = min(size, len(wire.data))
        buffer[:size] = wire.data[:size]
        if not flags & socket.MSG_PEEK:
            demand(wire.answer, wire, "lost bytes to the master")
            del wire.data[:size]
        return size

    def send(self, data: bytes, flags: int) -> int:
        wire = self.wire
        demand(wire.place == "master", wire, "is answered by the master in", wire.place)
        demand(wire.answer is None, wire, "is answered twice")
        demand(wire.heir is None or wire.data, wire, "is answered at rest")
        demand(wire.served < len(wire.requests), wire, "is answered for nothing")
        if wire.reset:
            raise failing(errno.EPIPE)
        wire.answer = int(data[9:12])
        wire.on_answer()
        return len(data)

    def shutdown(self, how: int) -> None:
        demand(how == socket.SHUT_WR, "shut down the wrong side")
        if self.wire.reset:
            raise failing(errno.ENOTCONN)

    def close(self) -> None:
        if self.fd >= 0 and not self.kernel.frozen:
            super().close()
            self.kernel.sockets -= 1
            if self.wire.place == "master":
                self.wire.move("master", "ended", "refused" if self.wire.answer else "dropped")


class Listener(File):
    """The listening socket."""

    name = "listener"
    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, 0

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.backlog: deque[Wire] = deque()
        self.open = True
        self.failing: int | None = None
        self.starved_at = -math.inf
        self.accepted = 0  # since the last turn

    def ready(self) -> int:
        return IN if self.backlog else 0

    def connect(self, wire: Wire) -> None:
        """A client comes."""
        if self.open:
            self.backlog.append(wire)
            self.stir()
        else:
            wire.move("backlog", "ended", "too late")

    def _accept(self) -> tuple[int, tuple[str, int]]:
        demand(self.fd >= 0, "accept on a closed listener")
        if not self.backlog:
            raise BlockingIOError(errno.EAGAIN, "nobody there")
        if self.failing is not None or not self.kernel.room:
            self.starved_at = self.kernel.now
            raise failing(self.failing or errno.EMFILE)
        wire = self.backlog.popleft()
        if wire.reset and self.kernel.rng.random() < 0.5:
            wire.move("backlog", "ended", "left")
            raise failing(errno.ECONNABORTED)
        wire.move("backlog", "master")
        wire.sock = Socket(self.kernel, wire)
        self.accepted += 1
        return wire.sock.fd, (str(wire.number), 0)

    def accept(self) -> tuple[Socket, tuple[str, int]]:
        fd, address = self._accept()
        sock = self.kernel.files[fd]
        assert isinstance(sock, Socket)
        return sock, address

    def close(self) -> None:
        if self.kernel.frozen:
            return
        super().close()
        self.open = False
        while self.backlog:
            self.backlog.popleft().move("backlog", "ended", "lost in the backlog")


class Inbox(File):
    """The master's end of an inbox, and what lies in it.

    Attributes:
        number: of the slot whose it is.
        worker: the process whose own it is.
    """

    name = "inbox"
    relieving = False  # the master looks for what lies there for too long

    def __init__(self, kernel: Kernel, capacity: int, max_moves: int) -> None:
        super().__init__(kernel)
        self.number = -1
        self.worker: Any = None
        self.capacity = capacity
        self.max_moves = max_moves
        self.messages: deque[Parcel] = deque()
        self.failing: int | None = None
        self.readers: list[Callable[[], object]] = []
        self.last = 0
        self.told_end = False
        self.room = capacity  # for so many, between the last two turns, and not used since
        self.opened = 0.0  # when somebody began to read it
        self.passed_on = 0
        self.judge_rest: Callable[[Wire, int], object] = lambda wire, number: None
        self.is_read: Callable[[], object] = lambda: True

    @property
    def writable(self) -> bool:
        """epoll says so only when most of it has been read."""
        return len(self.messages) <= self.capacity // 4

    def ready(self) -> int:
        return OUT if self.writable else 0

    def put(
        self, fd: int, prefix: bytes, moves: int, since: int, *, rest: bool, unheld: bool
    ) -> None:
        """A connection is handed over."""
        sock = self.kernel.files[fd]
        assert isinstance(sock, Socket)
        wire = sock.wire
        demand(prefix == wire.carried, wire, "is handed over with", prefix, "not", wire.carried)
        demand(moves == wire.moved, wire, "is handed over as moved", moves, "times")
        demand(moves <= self.max_moves, wire, "is handed over after", moves, "moves")
        demand(fd not in self.kernel.watched, wire, "is handed over without leaving epoll")
        demand(wire.place == "master", wire, "is handed over from", wire.place)
        demand(wire.answer is None, wire, "is handed over after it was refused")
        demand(rest == (wire.heir is not None), wire, "is said to rest:", rest)
        if rest:
            demand(wire.heir in (ANY, self.number), wire, "rests, and goes to slot", self.number)
        else:
            demand(wire.asked is self.worker, wire, "goes to", self.worker, "not", wire.asked)
            right = self.worker or wire.destined == self.number
            demand(right, wire, "is handed to slot", self.number, "not", wire.destined)
            demand(unheld == wire.unheld, wire, "is said to be unheld:", unheld)
        demand(self.is_read(), wire, "goes where nobody reads:", self)
        late = sticky.channel.age(since, self.kernel.now) - (self.kernel.now - wire.got)
        demand(rest or abs(late) < 0.002, wire, "is said to have come", late, "s before it did")
        if len(self.messages) >= self.capacity:
            raise BlockingIOError(errno.EAGAIN, "full")
        if self.failing is not None:
            raise failing(self.failing)
        demand(not self.told_end, wire, "comes after its worker was told that nothing would")
        if rest:
            self.judge_rest(wire, self.number)
            self.passed_on += 1
        else:
            demand(wire.decided > self.last, wire, "overtakes another in slot", self.number)
            self.last = wire.decided
        wire.move("master", "inbox")
        wire.put = self.kernel.now
        self.room -= 1
        self.messages.append(Parcel(wire, prefix, moves, rest, unheld, since))
        for wake in self.readers:
            wake()

    def take(self) -> Parcel:
        """The worker picks one up."""
        parcel = self.messages.popleft()
        parcel.wire.move("inbox", "worker")
        parcel.wire.heir = parcel.wire.asked = None
        self.stir()
        return parcel

    def read_back(self) -> Parcel:
        """The master does, because nobody reads it, or nobody does so in time."""
        parcel = self.messages.popleft()
        parcel.wire.move("inbox", "master")
        parcel.wire.waits = "inbox"
        if not Inbox.relieving:  # they will come once more
            self.last = min(self.last, parcel.wire.decided - 1)
        self.kernel.note("overstayed" if Inbox.relieving else "read back")
        self.stir()
        return parcel


class InboxEnd(File):
    """Where an inbox is read; the master has this end, too."""

    name = "inbox end"

    def __init__(self, kernel: Kernel, inbox: Inbox) -> None:
        super().__init__(kernel)
        self.inbox = inbox


class Control(File):
    """The master's end of a pair; what the other side has said waits in ``said``."""

    name = "control"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.said: deque[tuple[int, Any]] = deque()
        self.hear: Callable[..., object] = lambda kind: None
        self.seen: Callable[[int], object] = lambda kind: None
        self.refused: Callable[[], object] = lambda: None
        self.back: Callable[[Wire, bool], object] = lambda wire, unheld: None
        self.rest: Callable[[Wire, bool], object] = lambda wire, unheld: None
        self.unread = 0
        self.capacity = 100
        self.failing: int | None = None
        self.reset = False
        self.alive = True

    def ready(self) -> int:
        found = (IN if self.said or not self.alive else 0) | (0 if self.alive else HUP | RDHUP)
        return found | (0 if self.is_full else OUT)

    @property
    def is_full(self) -> bool:
        """Whether the master can say no more just now."""
        return self.alive and self.unread >= self.capacity

    def say(self, kind: int, content: Any = None) -> None:
        """The other side says something."""
        self.said.append((kind, content))
        self.stir()

    @property
    def full(self) -> bool:
        """Whether it takes no more connections."""
        return sum(isinstance(content, Parcel) for _, content in self.said) >= CONTROL

    def end(self) -> None:
        """The other side is gone."""
        self.alive = False
        self.reset = self.unread > 0
        self.stir()

    def put(self, kind: int, payload: bytes = b"", *fds: int) -> None:
        if not self.alive:
            self.refused()
            raise failing(errno.EPIPE)
        if self.is_full:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.hear(kind)


class News(File):
    """Where a process hears who comes and goes: the mailboxes that it knows, by row."""

    name = "news"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.known: dict[int, File] = {}
        self.other: File | None = None
        self.full = -math.inf  # until then
        self.refused: float | None = None  # since when there is something that it does not know

    def put(self, kind: int, payload: bytes, *fds: int) -> None:
        kernel = self.kernel
        if self.refused is None and kernel.rng.random() < 0.05:
            self.full, self.refused = kernel.now + kernel.rng.choice((0.0, 0.5)), kernel.ran
        if kernel.now <= self.full:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.refused = None
        _, row, _ = sticky.channel.unpack_presence(payload)
        self.known.pop(row, None)
        if kind == sticky.channel.CAME:
            self.known[row] = self.kernel.files[fds[0]]


class Flag(File):
    """A descriptor that is readable or not: a pidfd, the wake-up pipe of signals."""

    name = "flag"
    up = False

    def ready(self) -> int:
        return IN if self.up else 0

    def raise_(self) -> None:
        self.up = True
        self.stir()


class Memory(File):
    """A memfd that is written and then read: by this program's file objects, too."""

    name = "memory"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.content = io.BytesIO()

    def __enter__(self) -> io.BytesIO:
        return self.content

    def __exit__(self, *_: object) -> None:
        """It stays open."""

    def read(self, size: int) -> bytes:
        return self.content.read(size)


class Pipe(File):
    """The end of a pipe that is read; its ``writer`` is the other one, until it is closed."""

    name = "pipe"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.said = b""
        self.held = False  # another process has the other end, too
        self.ended = False  # the master has read all
        try:
            self.writer = File(kernel)
        except OSError:
            self.close()
            raise

    @property
    def over(self) -> bool:
        return not self.held and self.writer.fd < 0

    def ready(self) -> int:
        return (IN if self.said else 0) | (HUP if self.over else 0)

    def take(self, size: int) -> bytes:
        demand(self.said or self.over, "the master waits for what nobody has said yet")
        piece, self.said = self.said[:size], self.said[size:]
        self.ended = not piece
        self.stir()
        return piece


# -- the modules, with this kernel under them -----------------------------------------------------


class _Over:
    """A module, with some of its names replaced."""

    def __init__(self, below: types.ModuleType, **names: Any) -> None:
        self._below = below
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._below, name)
        setattr(self, name, value)
        return value


_NAMES = (
    *("topology", "reserve", "master.agenda", "master.balance", "master.changes"),
    *("master.children", "master.diagnosis", "master.dispatcher", "master.ends", "master.hearing"),
    *("master.held", "master.inboxes", "master.ledger", "master.lives", "master.loop"),
    *("master.master", "master.operations", "master.orders", "master.parts", "master.patience"),
    *("master.performing", "master.post", "master.queues", "master.records", "master.refusing"),
    *("master.returning", "master.room", "master.roster", "master.rounds", "master.scaling"),
    *("master.sending", "master.state", "master.succession", "master.upgrade", "master.waiting"),
    "master.wear",
)
_SOURCES = {
    f"sticky.{name}": Path(f"{importlib.import_module(f'sticky.{name}').__file__}").read_text()
    for name in _NAMES
}
_COMPILED = {
    name: compile(source, f"<{name}>", "exec", dont_inherit=True)
    for name, source in _SOURCES.items()
}


class Code:
    """Fresh copies of the modules that the master is made of, which know each other and not the
    originals.

    Args:
        changes: by module, what to replace in its source text, and with what.
    """

    def __init__(self, changes: Mapping[str, tuple[str, str]] | None = None) -> None:
        self._changed = {}
        for name, (old, new) in (changes or {}).items():
            whole = "sticky.topology" if name == "topology" else f"sticky.master.{name}"
            source = _SOURCES[whole]
            assert source.count(old) == 1, f"{name} has this {source.count(old)} times: {old}"
            self._changed[whole] = compile(source.replace(old, new), f"<{whole}>", "exec")
        self._loaded: dict[str, types.ModuleType] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}
        self.topology = self._load("sticky.topology")
        self.master = self._load("sticky.master.master")
        self.state = self._load("sticky.master.state")

    def part(self, name: str) -> Any:
        """The copy of a module of the master."""
        return self._load(f"sticky.master.{name}")

    def _load(self, name: str) -> types.ModuleType:
        module = self._loaded.get(name)
        if module is None:
            module = self._loaded[name] = types.ModuleType(name)
            package = name.rpartition(".")[0]
            module.__dict__.update(__package__=package, __builtins__=self._builtins)
            exec(self._changed.get(name, _COMPILED[name]), module.__dict__)
        return module

    def _import(
        self,
        name: str,
        names: Any = None,
        local: Any = None,
        wanted: Any = (),
        level: int = 0,
    ) -> Any:
        """What ``import`` does in the copies."""
        if level:
            package = names["__package__"].rsplit(".", level - 1)[0]
            whole = f"{package}.{name}" if name else package
            if whole in _SOURCES:
                return self._load(whole)
            found = {one: f"{whole}.{one}" for one in wanted or ()}
            if any(one in _SOURCES for one in found.values()):
                return types.SimpleNamespace(
                    **{
                        one: self._load(full) if full in _SOURCES else importlib.import_module(full)
                        for one, full in found.items()
                    }
                )
        return builtins.__import__(name, names, local, wanted, level)

    def install(self, kernel: Kernel, world: Any) -> None:
        """Put a kernel under the copies. ``world`` says what the master meets in it."""
        log = _Log(kernel)
        channel = _Over(
            sticky.channel,
            inbox=world.make_inbox,
            pair=lambda *_: _pair(kernel),
            pack_header=lambda kind, *_, **__: kind,
            send=_send,
            hand_over=_hand_over,
            send_connection=_send_connection,
            oldest=_oldest,
            Reader=_Reader,
        )
        system = _Over(
            os,
            environ={},
            open=lambda *_: File(kernel).fd,
            dup=lambda _: File(kernel).fd,
            pidfd_open=world.pidfd_open,
            close=lambda fd: None if kernel.frozen else kernel.files[fd].close(),
            getpid=lambda: 4242,
            kill=world.kill_pid,
            memfd_create=lambda *_: Memory(kernel).fd,
            set_inheritable=kernel.set_inheritable,
            pipe=lambda: _pipe(kernel),
            read=_read_of(kernel),
            posix_spawn=world.try_code,
            execve=world.execve,
        )
        spawn = types.SimpleNamespace(start=world.start)
        self.topology.make_router = lambda options: world
        self._load("sticky.reserve").os = system
        self.part("loop").select = _Over(select, epoll=lambda: _Epoll(kernel))
        logs = types.SimpleNamespace(
            reopen=lambda: None, printable=lambda text, _: text, pending=lambda: False
        )
        clock = _Over(time, monotonic=lambda: kernel.now)
        below = {"channel": channel, "os": system, "log": log, "time": clock, "logs": logs}
        below |= {"spawn": spawn, "reap": world.reap, "hand_over": _hand_over}
        below["Socket"] = lambda family, kind, protocol, fd: kernel.files[fd]
        for name in ("changes", "children", "diagnosis", "dispatcher", "hearing", "inboxes"):
            self._replace(name, below)
        for name in ("master", "operations", "orders", "performing", "post", "returning", "room"):
            self._replace(name, below)
        for name in ("sending", "succession", "wear"):
            self._replace(name, below)
        children = self.part("children")
        children.signal = _Over(signal, pidfd_send_signal=world.kill)
        children.fcntl = types.SimpleNamespace(ioctl=_ioctl)
        self.part("hearing")._AT_ONCE = 2
        master = self.master
        master.Signals = world.make_signals
        master.Terminal = lambda *_: _Terminal(world)
        master.Listeners = partial(_Listeners, world.listener)
        state = self.state
        state.os, state.open = system, lambda fd, *_, **__: kernel.files[fd]
        state.socket = types.SimpleNamespace(
            socket=lambda fileno: kernel.files[fileno], SOCK_STREAM=socket.SOCK_STREAM
        )
        state.Socket = below["Socket"]
        upgrade = self.part("upgrade")
        upgrade.os, upgrade.log, upgrade.reap = system, log, world.reap
        upgrade.spawn = types.SimpleNamespace(interpreter=lambda *words: ["python", *words])
        upgrade.logs = types.SimpleNamespace(finish=lambda _: None, printable=lambda text: text)
        upgrade.signal = _Over(signal, pthread_sigmask=world.mask)

    def _replace(self, name: str, below: Mapping[str, Any]) -> None:
        """Have a module find these instead of what it has imported under the same names."""
        names = vars(self.part(name))
        names.update({known: thing for known, thing in below.items() if known in names})


class _Listeners:
    """Of one listener. ``packed`` is what a master before has left of it."""

    def __init__(self, listener: Listener, _: object, __: object, packed: Any = None) -> None:
        self.sockets = [listener]
        self.addresses, self.urls = [("127.0.0.1", 8000)], ["http://127.0.0.1:8000"]
        if packed is not None:
            self.sockets = [packed.socket(packed.content["listeners"])]
            demand(self.sockets == [listener], "there is another listener:", self.sockets)

    def pack(self, packing: Any) -> int:
        return int(packing.fd(self.sockets[0].fileno()))

    def close(self) -> None:
        self.sockets[0].close()


def _pipe(kernel: Kernel) -> tuple[int, int]:
    pipe = Pipe(kernel)
    return pipe.fd, pipe.writer.fd


def _read_of(kernel: Kernel) -> Callable[[int, int], bytes]:
    def read(fd: int, size: int) -> bytes:
        pipe = kernel.files[fd]
        assert isinstance(pipe, Pipe)
        return pipe.take(size)

    return read


def _pair(kernel: Kernel) -> tuple[File, File]:
    first = News(kernel)  # or a mailbox
    try:
        second = News(kernel)
    except OSError:
        first.close()
        raise
    second.other = first
    return first, second


class _Epoll:
    def __init__(self, kernel: Kernel) -> None:
        self.register, self.modify = kernel.register, kernel.modify
        self.unregister, self.poll = kernel.unregister, kernel.poll

    def close(self) -> None:
        """Nothing is left of it."""


class _Log:
    """Where the modules log: into the trace, if there is one."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def info(self, text: str, *arguments: object) -> None:
        if self._kernel.trace is not None:
            self._kernel.say("log:", text % arguments if arguments else text)

    debug = warning = error = info

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        return level >= logging.INFO


class _Message:
    __slots__ = ("address", "fds", "kind", "moves", "payload", "since", "unheld")

    def __init__(self, kind: int, payload: bytes) -> None:
        self.kind, self.payload = kind, payload
        self.fds: list[int] = []
        self.unheld, self.since = False, 0


class _Reader:
    def receive(self, source: Control | InboxEnd) -> _Message | None:
        if isinstance(source, InboxEnd):
            if not source.inbox.messages:
                raise BlockingIOError(errno.EAGAIN, "nothing lies there")
            _has_room_for(source.inbox.messages[0], source.kernel)
            parcel = source.inbox.read_back()
            kind = sticky.channel.REST if parcel.rest else sticky.channel.CONNECTION
            return _connection(kind, parcel)
        if source.reset:  # told once, and before what was said
            source.reset = False
            raise failing(errno.ECONNRESET)
        if not source.said:
            if source.alive:
                raise BlockingIOError(errno.EAGAIN, "nothing said")
            return None
        kind, content = source.said.popleft()
        source.seen(kind)
        if not isinstance(content, Parcel):
            return _Message(kind, json.dumps(content).encode())
        _has_room_for(content, source.kernel)
        content.wire.move("moving", "master")
        (source.rest if content.rest else source.back)(content.wire, content.unheld)
        return _connection(kind, content)


def _has_room_for(parcel: Parcel, kernel: Kernel) -> None:
    demand(kernel.room >= 1 + (len(parcel.prefix) > LARGE), parcel.wire, "is cut off")


def _connection(kind: int, parcel: Parcel) -> _Message:
    wire = parcel.wire
    wire.sock = Socket(wire.kernel, wire)
    message = _Message(kind, parcel.prefix)
    message.moves, message.unheld, message.since = parcel.moves, parcel.unheld, parcel.since
    message.fds, message.address = [wire.sock.fd], (str(wire.number), 0)
    return message


def _send(channel: Control, kind: int, payload: bytes = b"", *fds: int) -> None:
    channel.put(kind, payload, *fds)


def _hand_over(inbox: Inbox, fd: int, address: object, since: int) -> None:
    inbox.put(fd, b"", 0, since, rest=False, unheld=False)


def _send_connection(
    inbox: Inbox,
    kind: int,
    fd: int,
    address: object,
    prefix: bytes = b"",
    *,
    moves: int = 0,
    unheld: bool = False,
    since: int = 0,
) -> None:
    memfd = File(inbox.kernel) if len(prefix) > LARGE else None
    try:
        inbox.put(fd, prefix, moves, since, rest=kind == sticky.channel.REST, unheld=unheld)
    finally:
        if memfd is not None:
            memfd.close()


def _oldest(end: InboxEnd) -> int | None:
    return end.inbox.messages[0].since if end.inbox.messages else None


def _ioctl(end: InboxEnd, request: int, buffer: bytes) -> bytes:
    return struct.pack("i", 300 * len(end.inbox.messages))


class _Terminal:
    nohup = False

    def __init__(self, world: Any) -> None:
        self.is_closed = lambda: world.terminal_closed

    def pack(self) -> dict[str, bool]:
        return {"nohup": False, "had_one": True}
