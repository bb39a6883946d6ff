"""One history: a world drawn from a seed, the master in it, and what must hold between its turns.

Replay one with ``python -m tests.simulation --seed N``, and run many with ``--histories N``.
"""

from __future__ import annotations

import errno
import math
import random
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sticky import channel
from sticky.master.ledger import (
    BACKOFF_FIRST,
    BACKOFF_LAST,
    LAST_HEAD,
    LINGER,
    LONGEST_STEP,
    QUIT_GRACE,
    RETRY,
)
from sticky.options import Options
from sticky.program import Program
from sticky.rules import MALFORMED, MISSING, NEED_MORE

from .actors import LIMIT, Client, Weather, Worker
from .kernel import Broken, Code, Control, Flag, Inbox, Kernel, Listener, Wire, demand, failing

MOMENT = 0.002
"""Timers of epoll count milliseconds, and round up."""
BLUR = 0.05
"""The ledger looks at its clock less often than we do, and each look costs up to a millisecond."""
LAST_BREATH = 0.1
"""Seconds in which a process that was killed has ended, and its end was noticed."""


class _SlotSeen:
    """What a slot's history looks like from outside."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        self.due = 0.0
        self.ended = 0.0
        self.backoff = self.backoff_before = 0.0
        self.needed = math.inf  # since when it has had something to serve, in a stop
        self.corrects = False  # its next process is started because the last one said how


class World:
    """Everything that is not the master; also what the master meets in its modules' place."""

    def __init__(self, seed: int, code: Code, *, trace: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.code = code
        self.draw()
        num, weather = self.options.num, self.weather
        self.proxy = self.options.proxy
        self.kernel = kernel = Kernel(rng, 7 + 6 * num + self.spare, weather.stall)
        if trace:
            kernel.trace = [str(self.options), str(weather)]
        kernel.between_turns = self.check
        kernel.unwatched = self.unwatched
        self.listener = Listener(kernel)
        self.inboxes: list[Inbox] = []
        self.signals = Flag(kernel)
        self.sent_signals: list[signal.Signals] = []
        self.launcher = Control(kernel) if rng.random() < 0.4 else None
        if self.launcher is not None:
            self.launcher.refused = partial(self.stop, quick=True)
            self.launcher.hear = self.announce
        self.wires: list[Wire] = []
        self.unjudged: list[Wire] = []  # those whose end is still to be looked at
        self.handed_back: Counter[str] = Counter()  # as the master should have counted it
        self.workers: dict[int, Worker] = {}
        self.slots = [_SlotSeen() for _ in range(num)]
        self.right_class = "eventlet"
        self.known_class = self.options.worker_class  # as far as the master can know it
        if self.options.worker_class == "auto":
            self.right_class = rng.choice(("eventlet", "eventlet", "asgi"))
            for seen in self.slots[1:]:
                seen.due = math.inf  # the first one starts alone
        self.reloaded = False
        self.served = [0] * num
        self.decisions = 0
        self.announced = False
        self.announcements = 0
        self.paused = False
        self.cramped = 0.0  # until when no process can be started
        self.fed_at = 0.0  # when an inbox took descriptors again, which nothing announces
        self.quick = False
        self.ends = False  # the workers were told to end, and nothing moves any more
        self.stop_at = math.inf
        self.stop_by = math.inf
        self.stalled_before = 0.0
        self.status = 0
        self.empty_since = math.inf
        self.heads_before = 0
        self.queued_before = 0
        self.until = kernel.now + rng.choice((2.0, 4.0, 4.0, 12.0))
        self._write_script()
        code.install(kernel, self)
        self.master = code.master.Master(self.options, Program("app:make"), self.launcher)
        self.ledger = self.master._ledger

    def draw(self) -> None:
        """The circumstances: weather, settings, how many descriptors and messages there may be."""
        rng = self.rng
        self.weather = Weather(rng)
        moving = rng.random() < 0.5  # most of what can happen to a move needs many of them
        if moving:
            self.weather.move()
        self.options = Options(
            num=rng.choice((2, 2, 3, 4) if moving else (1, 1, 2, 2, 3, 4)),
            proxy=moving or rng.random() < 0.7,
            worker_class=rng.choice(("auto", "eventlet")),
            seed=b"12345678",
            max_head_size=LIMIT,
            head_timeout=rng.choice((0.2, 2.0, 10.0)),
            max_pending_heads=rng.choice((1, 2, 5, 1000)),
            max_queued=rng.choice((1, 3, 8, 1000)),
            queue_timeout=rng.choice((0.3, 2.0, 10.0)),
            prefetch=rng.choice((1, 2, 4)),
            boot_timeout=rng.choice((0.5, 3.0, 60.0)),
            timeout=rng.choice((0.0, 0.0, 0.7, 3.0, 30.0, 30.0)),
            keep_alive=rng.choice((0.3, 2.0, 75.0)),
            max_moves=rng.choice((1, 2, 8)),
            graceful_timeout=rng.choice((0.0, 0.5, 3.0, 30.0)),
        )
        if moving and rng.random() < 0.3:  # and most of what can happen to one at rest, reloads
            self.weather.rest()
            changes = {"keep_alive": 75.0, "queue_timeout": rng.choice((0.3, 2.0))}
            self.options = replace(self.options, timeout=30.0, boot_timeout=60.0, **changes)
        self.spare = rng.choice((4, 12, 1000))
        self.capacity = rng.choice((1, 2, 4, 8))

    def _write_script(self) -> None:
        """What will happen, as far as it does not depend on what the master does."""
        rng, kernel, weather = self.rng, self.kernel, self.weather
        span = self.until - kernel.now
        for _ in range(rng.choice((1, 3, 8))):
            moment = rng.random() * span * 1.05
            if rng.random() < 0.2:
                moment = max(0.0, span - rng.choice((0.01, 0.2)))  # just before the stop
            only = rng.randrange(self.options.num) if rng.random() < 0.5 else None
            for _ in range(rng.choice((1, 2, 5, 20))):
                slot = rng.randrange(self.options.num) if only is None else only
                wire = self.make_wire(slot)
                delay = rng.choice((0.0, 0.0, 0.1, 1.0))
                kernel.at(moment + delay * rng.random(), Client(self, wire).connect)
        if rng.random() < weather.starvation:
            for _ in range(3):
                kernel.at(rng.random() * span, self.starve)
        if self.launcher is not None and rng.random() < 0.3:
            kernel.at(rng.random() * span, self.launcher.end)
        stops = [(span, rng.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT)))]
        while rng.random() < 0.4:
            more = span + rng.choice((0.0, 0.02, 0.3, 1.2, 5.0))
            stops.append((more, rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))))
        while rng.random() < weather.reloads:
            stops.append((rng.random() * span * 1.05, signal.SIGHUP))
        while rng.random() < 0.1:
            stops.append((rng.random() * span * 1.05, signal.SIGUSR1))
        for delay, number_ in stops:
            kernel.at(delay, self.send_signal, number_)

    def make_wire(self, slot: int) -> Wire:
        wire = Wire(self.kernel, len(self.wires), slot)
        self.wires.append(wire)
        self.unjudged.append(wire)
        return wire

    # -- what happens to the master -----------------------------------------------------------

    def send_signal(self, number: signal.Signals) -> None:
        if self.signals.fd >= 0:
            self.kernel.say("the master gets", number.name)
            self.sent_signals.append(number)
            self.signals.raise_()

    def change_code(self) -> None:
        """Before a reload; it may be for another worker class now."""
        if self.options.worker_class == "auto" and self.rng.random() < 0.3:
            self.right_class = "asgi" if self.right_class == "eventlet" else "eventlet"

    def starve(self) -> None:
        """The system is out of something for a while."""
        pause = self.rng.choice((0.02, 0.2, 1.0))
        what = self.rng.randrange(3)
        self.kernel.say("starving for", pause, "s")
        if what == 0:
            self.listener.failing = errno.ENOMEM
        elif what == 1:
            for file in self.pairs():
                file.failing = errno.ETOOMANYREFS
        else:
            self.cramped = self.kernel.now + pause
        self.kernel.at(pause, self.feed)

    def feed(self) -> None:
        self.listener.failing = None
        self.fed_at = self.kernel.now
        for file in self.pairs():
            file.failing = None
        self.kernel.stirred = True

    def pairs(self) -> list[Inbox | Control]:
        """Everything that descriptors are sent over."""
        return [*self.inboxes, *(worker.control for worker in self.workers.values())]

    # -- what the master's modules call -------------------------------------------------------

    def make_inbox(self) -> tuple[Inbox, Any]:
        inbox = Inbox(self.kernel, len(self.inboxes), self.capacity, self.options.max_moves)
        self.inboxes.append(inbox)
        inbox.judge_rest = self.judge_rest
        end = Flag(self.kernel)
        end.messages = inbox.messages  # type: ignore[attr-defined]
        return inbox, end

    def make_signals(self, numbers: object) -> Any:
        world = self

        class Signals:
            def fileno(self) -> int:
                return world.signals.fd

            def arrived(self) -> list[signal.Signals]:
                world.signals.up = False
                arrived, world.sent_signals = world.sent_signals, []
                for number in arrived:
                    if number == signal.SIGHUP:
                        world.reloaded = True
                        world.change_code()
                    elif number not in (signal.SIGCHLD, signal.SIGUSR1):
                        world.stop(quick=number != signal.SIGTERM)
                return arrived

            def close(self) -> None:
                world.signals.close()

        return Signals()

    def start(self, label: str, spec: Mapping[str, Any], *_: object, **__: object) -> Any:
        """spawn.start."""
        slot: int = spec["slot"]
        seen = self.slots[slot]
        now = self.kernel.now
        if seen.worker is None:
            early = now < seen.due - MOMENT and self.stop_at == math.inf
            if early and self.reloaded and seen.ended == now:
                # It ended when its successor had just been decided on: that one comes at once.
                early, seen.backoff = False, seen.backoff_before
            demand(not early, "slot", slot, "is started", seen.due - now, "s early")
        else:
            demand(self.reloaded, "slot", slot, "has a process already:", seen.worker)
            demand(seen.successor is None, "slot", slot, "has a successor:", seen.successor)
            # A reload may have been decided in the moment before.
            demand(self.stop_at >= now, "a successor is started in a stop")
        demand(not self.quick or self.stop_at == now, "a process is started in a quick stop")
        corrects, seen.corrects = seen.corrects, False
        worker_class: str = spec["options"]["worker_class"]
        demand(worker_class == self.known_class, "it starts a", worker_class, self.known_class)
        if now < self.cramped:
            self.not_started(slot)
            raise failing(errno.EAGAIN)
        if not self.kernel.room:
            self.not_started(slot)
            raise failing(errno.EMFILE)
        pid = 5000 + len(self.workers)
        worker = Worker(self, slot, pid, worker_class)
        worker.corrected = corrects
        self.workers[pid] = worker
        if seen.worker is None:
            seen.worker = worker
        else:
            seen.successor = worker
        self.kernel.say(worker, "starts")
        return pid, worker.control

    def pidfd_open(self, pid: int) -> int:
        worker = self.workers[pid]
        try:
            worker.pidfd = Flag(self.kernel)
        except OSError:
            self.kernel.say(worker, "has no pidfd")
            raise
        if not worker.alive:
            worker.ended()
        return worker.pidfd.fd

    def kill_pid(self, pid: int, number: int) -> None:
        """os.kill, of a process that could not be watched."""
        worker = self.workers[pid]
        demand(worker.pidfd is None, worker, "is killed by its pid")
        worker.die(-number)

    def kill(self, pidfd: int, number: int) -> None:
        """signal.pidfd_send_signal."""
        (worker,) = (w for w in self.workers.values() if w.pidfd and w.pidfd.fd == pidfd)
        self.kernel.say(worker, "is killed")
        demand(number == signal.SIGKILL)
        demand(not worker.killed, worker, "is killed twice")
        self.judge_kill(worker)
        worker.kill()

    def reap(self, pid: int) -> int:
        worker = self.workers[pid]
        demand(not worker.alive, worker, "is waited for, and lives")
        assert worker.status is not None
        said = worker.control.said
        demand(not said or worker.pidfd is None, worker, "was not heard out:", said)
        seen = self.slots[worker.slot]
        how = self.says_how(worker)
        if how:
            self.kernel.note("another worker class")
            assert worker.right_class is not None
            self.known_class = worker.right_class
        if seen.successor is worker:
            seen.successor = None
            seen.corrects = how
            if how:
                self.kernel.note("another worker class in a reload")
        elif seen.worker is worker:
            seen.worker, seen.successor = seen.successor, None
            if seen.worker is None:
                seen.corrects = how
                self.gone(worker.slot, worker)
        else:
            demand(worker.replaced is not None, worker, "is nobody's")
        return worker.status

    def not_started(self, slot: int) -> None:
        self.kernel.say("slot", slot, "could not start a process")
        if self.slots[slot].worker is None:
            self.gone(slot, None)

    def gone(self, slot: int, worker: Worker | None) -> None:
        """A process has ended (or could not even start): what is due now."""
        seen, now = self.slots[slot], self.kernel.now
        seen.ended = now
        was_ready = worker is not None and worker.known_ready is not None
        if self.stop_at < math.inf:
            seen.due = now + BACKOFF_FIRST
        elif worker is not None and self.says_how(worker):
            seen.due = now
        elif not was_ready and not self.announced:
            self.status = worker.failure_status if worker is not None else 3
            self.stop(quick=True)
        else:
            lived = was_ready and worker is not None and now - worker.ready_at >= BACKOFF_LAST
            doubled = seen.backoff * 2 or BACKOFF_FIRST
            seen.backoff_before = seen.backoff
            seen.backoff = BACKOFF_FIRST if lived else min(doubled, BACKOFF_LAST)
            seen.due = now + seen.backoff

    def says_how(self, worker: Worker) -> bool:
        """Whether it is to be started once more at once, as another class."""
        auto = self.options.worker_class == "auto"
        serves = self.stop_at == math.inf
        return bool(serves and auto and worker.right_class and not worker.corrected)

    def route(self, buffer: bytearray, length: int, host: str) -> int:
        """Router.route: what the peeked bytes say."""
        wire = self.wires[int(host)]
        verdict = wire.slot
        if self.proxy:
            head = bytes(buffer[:length])
            expected = wire.stream[wire.used : wire.used + length]
            demand(head == expected, wire, "is routed by", head, "not", bytes(expected))
            verdict = self.verdict(head)
        if verdict >= 0:
            self.decisions += 1
            wire.decided = self.decisions
        return verdict

    @staticmethod
    def verdict(head: bytes) -> int:
        """What these bytes say of whose request it is."""
        if head[:1] == b"!":
            return MALFORMED
        if b"\n" not in head:
            return NEED_MORE
        return MISSING if head[:1] == b"?" else int(head[:1])

    def explain(self, *_: object) -> tuple[int, bytes, str]:
        """Router.explain."""
        return MALFORMED, b"", "it says so"

    # -- what can be seen of it ---------------------------------------------------------------

    def unwatched(self, fd: int) -> None:
        """The master turns away from a descriptor; from the launcher's, because it has ended."""
        if self.launcher is not None and fd == self.launcher.fd and not self.launcher.alive:
            self.stop(quick=True)

    def told(self, worker: Worker, kind: int) -> None:
        """A worker is told something."""
        self.kernel.say(worker, "is told", kind)
        if kind == channel.END and self.stop_at == math.inf:
            demand(worker.replaced is not None, worker, "is told to end, and has no successor")
        elif kind == channel.END:
            demand(not self.listener.open, worker, "is told to end before the listeners closed")
            waiting = self.waiting()
            waiting += [wire for wire in self.unjudged if wire.place == "moving"]
            demand(not waiting, worker, "is told to end while these wait:", waiting)
            self.inboxes[worker.slot].told_end = self.ends = True
        elif kind == channel.QUIT:
            demand(self.quick or self.time_over, worker, "is told to quit in a graceful stop")
        elif kind == channel.CLOSING:
            demand(self.stop_at < math.inf, worker, "is told to close, and nothing stops")

    def is_ready(self, worker: Worker) -> None:
        """The master learned that one more worker is ready."""
        seen, now = self.slots[worker.slot], self.kernel.now
        if self.stop_at < math.inf:
            return
        if seen.successor is worker:
            old, seen.worker, seen.successor = seen.worker, worker, None
            assert old is not None
            old.replaced = now
        if worker.slot == 0 and not self.announced:
            for other in self.slots[1:]:
                other.due = now if other.due == math.inf else other.due
        everyone = all(s.worker and s.worker.known_ready is not None for s in self.slots)
        self.announced = self.announced or everyone

    def takes_back(self, wire: Wire) -> None:
        """The master has read that a worker hands a connection back."""
        self.handed_back["moved"] += 1
        self.handed_back["bytes_carried"] += len(wire.carried)
        self.handed_back["moved_too_often"] += wire.moved > self.options.max_moves

    def takes_rest(self, worker: Worker, wire: Wire) -> None:
        """The master has read that a worker gives away a connection at rest."""
        heir = self.slots[worker.slot].worker
        wire.orphan = heir in (None, worker) or heir.known_ready is None
        self.kernel.note("rest without an heir" if wire.orphan else "rest with an heir")

    def announce(self, kind: int) -> None:
        """The launcher is told that the server listens."""
        self.announcements += 1
        demand(kind == channel.READY and self.announcements == 1, "announced again")
        demand(self.announced, "announced before all workers were ready")

    def stop(self, *, quick: bool) -> None:
        """The master learned that it is to stop."""
        now = self.kernel.now
        if self.stop_at == math.inf:
            self.stop_at = now
            self.stop_by = now + self.options.graceful_timeout
            if quick:
                self.stop_by = now + QUIT_GRACE
            self.stalled_before = self.kernel.stalled
        elif quick:
            self.stop_by = min(self.stop_by, now + QUIT_GRACE)
        self.quick = self.quick or quick

    @property
    def time_over(self) -> bool:
        return self.kernel.now >= self.stop_by - MOMENT

    @property
    def reloading(self) -> bool:
        """Whether a process has a successor that starts, or that has taken its place."""
        alive = [w for w in self.workers.values() if w.alive and w.replaced is not None]
        return bool(alive) or any(seen.successor for seen in self.slots)

    def places(self) -> list[tuple[str, int, Any]]:
        """Every connection that the ledger knows, and where it is."""
        book = self.ledger
        found = [("head", -1, c) for c in book._heads]
        found += [("refused", -1, c) for c in book._refused]
        for slot, queue in enumerate(book.queues):
            found += [("queue", slot, c) for c in queue]
            found += [("rest", slot, c) for c in book.resting[slot]]
        return found

    def waiting(self) -> list[Wire]:
        """Every connection that is still to be given to a worker."""
        lying = [parcel.wire for inbox in self.inboxes for parcel in inbox.messages]
        return lying + [held.sock.wire for place, _, held in self.places() if place != "refused"]

    # -- the promises -------------------------------------------------------------------------

    def judge_kill(self, worker: Worker) -> None:
        """A worker is killed: was it late, by time in which the master ran?"""
        options, ran = self.options, self.kernel.ran
        if self.quick or self.time_over:
            return
        if worker.known_ready is None and not self.listener.open and not self.waiting():
            return
        if worker.replaced is not None and worker.known_ready is None:
            return
        if worker.replaced is not None:
            age = self.kernel.now - worker.replaced
            demand(age >= options.graceful_timeout - MOMENT, worker, "had only", age, "s to end")
        elif worker.known_ready is None:
            age = ran - worker.started
            demand(age >= options.boot_timeout - MOMENT, worker, "had only", age, "s to start")
        else:
            demand(options.timeout, worker, "is killed, but it may be silent for ever")
            demand(worker.unanswered is not None, worker, "is killed, but it owes no answer")
            age = ran - worker.unanswered
            demand(age >= options.timeout - MOMENT, worker, "had only", age, "s to answer")

    def judge_rest(self, wire: Wire, slot: int) -> None:
        """A wire at rest is handed over: is it its turn, and is there somebody to have it?"""
        demand(not self.ledger.queues[slot], wire, "overtakes at rest, in slot", slot)
        demand(not wire.orphan, wire, "has no heir")
        demand(self.stop_at >= self.kernel.now, wire, "is passed on in a stop")

    def is_late_head(self, wire: Wire) -> bool:
        """Whether it is time for 408, or there are too many who could be."""
        options, now = self.options, self.kernel.now
        crowded = self.heads_before + self.listener.accepted >= options.max_pending_heads
        late = wire.waits == "head" and now - wire.since >= options.head_timeout - MOMENT
        if self.stop_at < now:
            late = late or now - max(self.stop_at, wire.since) >= LAST_HEAD - MOMENT
        return crowded or late

    def is_silent_for_too_long(self, wire: Wire) -> bool:
        """Whether a wire on which nothing was sent may be closed without a word."""
        late = self.kernel.now - wire.since >= self.options.queue_timeout - MOMENT
        queued = wire.waits == "queue" and late
        return queued or self.is_late_head(wire) or self.quick or self.time_over

    def judge_answer(self, wire: Wire) -> None:
        """A wire was refused in this turn: was there a reason, the one it was told?"""
        options, now = self.options, self.kernel.now
        waited = now - wire.since
        status = wire.answer
        if wire.wrong and status == wire.wrong:
            return
        demand(wire.stream, wire, "got", status, "and had asked nothing")
        if status == 408:
            demand(wire.waits == "head" or wire.waits is None, wire, "got 408 from", wire.waits)
            demand(self.is_late_head(wire), wire, "got 408 after", waited, "s")
        elif status == 503:
            late = wire.waits == "queue" and waited >= options.queue_timeout - MOMENT
            still = not (wire.fin or wire.reset or self.kernel.cut)
            if late and still and self.listener.open:
                inbox = self.inboxes[wire.slot]
                full = not inbox.writable or inbox.failing
                retried = now - self.fed_at > RETRY + MOMENT
                demand(full or not retried, wire, "got 503 though its inbox had room")
            over = self.quick or self.time_over or self.ends
            too_often = wire.moved > options.max_moves
            crowded = self.kernel.starved_at == now
            if wire.moved:
                names = {"moves": too_often, "crowds": crowded, "a stop": over}
                why = next((name for name, holds in names.items() if holds), "time")
                self.kernel.note("503 after a move, because of", why)
            demand(
                late or wire.fin or wire.reset or over or too_often or crowded,
                wire,
                "got 503 after",
                waited,
                "s in",
                wire.waits,
            )
        elif status == 400:
            demand(wire.fin or wire.reset, wire, "got 400 for nothing")
        else:
            raise Broken(f"{wire} got {status}, and deserved {wire.wrong}")

    def check(self, timeout: float) -> None:
        """Between two turns of the master, which is going to sleep for ``timeout``."""
        kernel, listener = self.kernel, self.listener
        now = kernel.now
        demand(timeout >= 0, "a timeout of", timeout)
        demand(not self.ledger.take(), "something was decided and not done")
        if self.master._status is not None:
            return
        demand(kernel.watched.keys() == self.master._handlers.keys(), "handlers without events")
        deadlines = self.check_places(now, timeout)
        deadlines += self.check_processes(now)
        if self.stop_at < math.inf:
            deadlines.append((max(self.stop_by, now + RETRY), "the stop"))
            self.check_stop(now)
        self.check_accepting(now, timeout)
        for inbox in self.inboxes:
            queue = self.ledger.queues[inbox.number] or self.ledger.resting[inbox.number]
            watched = inbox.fd in kernel.watched
            demand(queue or not watched, inbox, "is watched for nothing")
            demand(watched or not queue or timeout <= RETRY + MOMENT, inbox, "is not watched")
        for deadline, what in deadlines:
            late = now + timeout - deadline
            demand(
                late <= MOMENT or not timeout, "it would sleep", late, "s past a deadline of", what
            )
        listener.accepted = 0

    def check_places(self, now: float, timeout: float) -> list[tuple[float, object]]:
        """Every connection is in one place, for no longer than it may be there."""
        options = self.options
        places = self.places()
        held = {connection.sock.wire for _, _, connection in places}
        demand(len(held) == len(places), "a connection is in two places:", places)
        heads = queued = 0
        deadlines: list[tuple[float, object]] = []
        for place, slot, connection in places:
            wire = connection.sock.wire
            demand(wire.place == "master", wire, "is", place, "and", wire.place)
            demand(slot in (-1, wire.slot), wire, "is queued for", slot)
            demand((place == "refused") == (wire.answer is not None), wire, "is", place)
            # That its client has left is told again when it could not be handed over just then.
            wire.overlooked += place in ("queue", "rest") and (wire.fin or wire.reset)
            demand(wire.overlooked < 8, wire, "is queued, and has left")
            if place != "refused":
                demand(connection.prefix == wire.carried, wire, "has lost what was read of it")
            if place != wire.waits:
                if place == "refused":
                    self.judge_answer(wire)
                if wire.moved or place == "rest":
                    self.kernel.note(place, "after a move")
                wire.waits, wire.since = place, now
            if place == "head":
                heads += 1
                deadline = wire.since + options.head_timeout
                if self.stop_at <= now:
                    deadline = min(deadline, max(self.stop_at, wire.since) + LAST_HEAD)
            elif place in ("queue", "rest"):
                queued += place == "queue"
                demand((place == "rest") == (wire.heir is not None), wire, "is in", place)
                deadline = wire.since + options.queue_timeout
            else:
                deadline = wire.since + LINGER
            late = deadline < now - MOMENT and timeout  # with none, it is about to be refused
            demand(not late, wire, "is", now - deadline, "s too long in", place)
            deadlines.append((deadline, wire))
        for file in self.kernel.files.values():
            wire = getattr(file, "wire", None)
            demand(wire is None or wire in held, wire, "is held and forgotten")
        ended = [wire for wire in self.unjudged if wire.place == "ended"]
        if ended:
            self.unjudged = [wire for wire in self.unjudged if wire.place != "ended"]
            for wire in ended:
                if wire.outcome == "refused" and wire.waits != "refused":
                    self.judge_answer(wire)
                elif wire.outcome == "dropped":
                    starved = now in (self.listener.starved_at, self.kernel.starved_at)
                    starved = starved or options.head_timeout == 0
                    if wire.heir is not None:
                        late = now - wire.since >= options.queue_timeout - MOMENT
                        late = late and wire.waits == "rest"
                        starved = starved or late or wire.orphan or self.stop_at <= now
                        self.kernel.note("rest closed because of", "time" if late else "more")
                    elif not wire.stream:
                        starved = starved or self.is_silent_for_too_long(wire)
                    demand(wire.fin or wire.reset or starved, wire, "was dropped for nothing")
                wire.waits = None
        demand(heads <= options.max_pending_heads, "too many heads:", heads)
        self.heads_before, self.queued_before = heads, queued
        return deadlines

    def check_processes(self, now: float) -> list[tuple[float, object]]:
        """Slots have their processes, and processes their time."""
        options, ran = self.options, self.kernel.ran
        blurred = self.kernel.stalls > 0  # of time not run, the ledger may count less than we do
        ping = min(options.timeout / 4, 5.0)
        deadlines: list[tuple[float, object]] = []
        serving = self.stop_at == math.inf
        for number, seen in enumerate(self.slots):
            worker = seen.worker
            late = seen.corrects and worker and not seen.successor and serving
            demand(not late, "slot", number, "has no successor of the right class")
            if worker is None:
                due = seen.due
                if not serving:
                    content = self.inboxes[number].messages or self.ledger.queues[number]
                    seen.needed = min(seen.needed, now) if content else math.inf
                    due = max(due, seen.needed + RETRY)
                if not self.quick and not self.time_over:
                    demand(due > now - MOMENT, "slot", number, "has no process")
                    deadlines.append((due, "a start"))
        for worker in self.workers.values():
            if worker.killed or not worker.alive or self.quick:
                continue
            if worker.replaced is not None:
                deadline = worker.replaced + options.graceful_timeout
                demand(deadline > now - MOMENT, worker, "was to end", now - deadline, "s ago")
                demand(channel.END in worker.told, worker, "was not told that it is replaced")
                deadlines.append((deadline, worker))
                continue
            if channel.END in worker.told:
                continue
            if worker.known_ready is None:
                limits = [worker.started + options.boot_timeout]
            elif options.timeout:
                limits = [max(worker.pinged, worker.known_ready) + ping]
                if worker.unanswered is not None:
                    limits.append(worker.unanswered + options.timeout)
            else:
                limits = []
            for limit in limits:
                slack = self.kernel.stalls * LONGEST_STEP + BLUR
                demand(ran <= limit + slack, worker, "was not seen to", ran, limit)
                if not blurred:
                    deadlines.append((now + limit - ran + BLUR, worker))
        return deadlines

    def check_accepting(self, now: float, timeout: float) -> None:
        """Accepting pauses only at the limit (or when starved), and is resumed."""
        listener, options = self.listener, self.options
        on = listener.fd in self.kernel.watched
        demand(self.announced or not on, "it accepts before all workers are ready")
        if not listener.open or not self.announced:
            return
        starving = now < listener.starved_at + RETRY + MOMENT
        queued = self.queued_before
        if on:
            demand(queued < options.max_queued, "accepting goes on with", queued, "queued")
        elif queued <= options.max_queued // 2:
            demand(starving, "accepting pauses with", queued, "queued")
            demand(timeout <= RETRY + MOMENT, "it does not come back to accept")

    def check_stop(self, now: float) -> None:
        """A stop goes on as soon as it can."""
        demand(not self.listener.open, "the listeners are open in a stop")
        if self.waiting():
            self.empty_since = math.inf
            return
        self.empty_since = min(self.empty_since, now)
        late = now - self.empty_since > RETRY + MOMENT
        if late and not self.quick and not self.time_over:
            for worker in self.workers.values():
                if worker.alive and worker.known_ready is not None:
                    demand(channel.END in worker.told, worker, "was not told to end")

    # -- the whole of it ----------------------------------------------------------------------

    def run(self) -> None:
        """Let it happen."""
        kernel = self.kernel
        status = self.master.run()
        kernel.say("the master ends with", status)
        demand(status == self.status, "it ended with", status, "not", self.status)
        for worker in self.workers.values():
            demand(not worker.alive, worker, "is left behind")
        late = kernel.now - self.stop_by - (kernel.stalled - self.stalled_before)
        demand(late <= LAST_BREATH, "the stop took", late, "s too long")
        demand(not kernel.files or kernel.files.keys() <= self.left_open(), "descriptors leak")
        counted = self.master._dispatcher.counters
        for what, number in self.handed_back.items():
            demand(counted[what] == number, "it counted", counted[what], what, "not", number)
        passed_on = sum(inbox.passed_on for inbox in self.inboxes)
        demand(counted["passed_on"] == passed_on, "it counted", counted["passed_on"], passed_on)
        if self.quick or kernel.now >= self.stop_by:
            return
        starved = self.listener.starved_at >= self.stop_at
        for wire in self.wires:
            fine = wire.place == "ended" or wire.answer is not None
            if wire.outcome == "lost in the backlog":
                fine = starved or not self.announced
            # One that had not connected by then never came.
            demand(fine or wire.place == "backlog", wire, "was forgotten in", wire.place)

    def left_open(self) -> set[int]:
        """Refused connections that still linger, and what only this world has open."""
        held = {file.fd for file in self.kernel.files.values() if hasattr(file, "wire")}
        return held | {file.fd for file in (self.launcher,) if file is not None}

    def outcomes(self) -> Counter[str]:
        """What became of the connections."""
        return Counter(wire.outcome or wire.place for wire in self.wires)


class Disproved(AssertionError):
    """A history in which a promise was broken, with how to see it again."""


def run(seed: int, code: Code | None = None) -> World:
    """One history.

    Raises:
        Disproved: a promise was broken, or the master itself broke.
    """
    code = code or Code()
    try:
        world = World(seed, code)
        world.run()
    except Exception as error:
        lines = trace(seed, code)
        raise Disproved(
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"replay it with: python -m tests.simulation --seed {seed}\n" + "\n".join(lines[-40:])
        ) from error
    return world


def trace(seed: int, code: Code) -> list[str]:
    """What happens in a history, a line each, up to where it breaks."""
    world = World(seed, code, trace=True)
    lines = world.kernel.trace
    assert lines is not None
    try:
        world.run()
    except Exception as error:
        lines.append(f"{type(error).__name__}: {error}")
    return lines
