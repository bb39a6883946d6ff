"""One history: a world drawn from a seed, the master in it, and what must hold between its turns.

Replay one with ``python -m tests.simulation --seed N``, and run many with ``--histories N``.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import random
import signal
from collections import Counter, deque
from collections.abc import Mapping
from functools import partial
from typing import Any

from sticky import channel
from sticky.board import Board
from sticky.core import pick, siphash
from sticky.heartbeat import every
from sticky.master.agenda import LONGEST_STEP, RETRY
from sticky.master.ends import ABORT_GRACE, QUIT_GRACE
from sticky.master.rounds import BACKOFF_FIRST, BACKOFF_LAST
from sticky.master.upgrade import LONGEST
from sticky.master.waiting import LAST_HEAD, LINGER
from sticky.options import Options
from sticky.program import Program
from sticky.rules import MALFORMED, MISSING, NEED_MORE

from .actors import KEYS, LIMIT, Client, Trial, Weather, Worker
from .kernel import (
    ANY,
    OUT,
    Broken,
    Code,
    Control,
    Flag,
    Inbox,
    InboxEnd,
    Kernel,
    Listener,
    Memory,
    News,
    Pipe,
    Replaced,
    Socket,
    Wire,
    broken,
    demand,
    failing,
)

MOMENT = 0.002
"""Timers of epoll count milliseconds, and round up."""
BLUR = 0.05
"""The ledger looks at its clock less often than we do, and each look costs up to a millisecond."""
LAST_BREATH = 0.1
"""Seconds in which a process that was killed has ended, and its end was noticed."""
LOOK_AROUND = 1.0
"""Seconds between two looks at what lies in inboxes for too long."""
SEED = b"12345678"


@functools.cache
def pick_slot(key: int, num: int) -> int:
    """The slot of a client among so many."""
    return pick(siphash(SEED, b"%d" % key), num)


class _SlotSeen:
    """What a slot's history looks like from outside."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        self.previous: Worker | None = None
        self.wait_until = 0.0  # before then no other successor is started
        self.passed_over = 0  # times that another slot's process was replaced though this is due
        self.due = 0.0
        self.ended = 0.0
        self.backoff = self.backoff_before = 0.0
        self.needed = math.inf  # since when it has had something to serve, in a stop
        self.corrects = False  # its next process is started because the last one said how


class _Signals:
    """Those that the master gets."""

    def __init__(self, world: World) -> None:
        self._world = world

    def fileno(self) -> int:
        return self._world.signals.fd

    def arrived(self) -> list[signal.Signals]:
        world = self._world
        world.signals.up = False
        arrived, world.sent_signals = world.sent_signals, []
        return arrived

    def close(self) -> None:
        self._world.signals.close()


class Watcher:
    """The process that says when files change."""

    def __init__(self, world: World) -> None:
        self.pid = 4999
        self.alive = True
        self.pidfd: Flag | None = None
        self.control = Control(world.kernel)
        self.control.seen = lambda kind: world.reload() if kind == channel.CHANGED else None

    def ended(self) -> None:
        """Nobody asks."""


class World:
    """Everything that is not the master; also what the master meets in its modules' place."""

    def __init__(
        self, seed: int, code: Code, *, trace: bool = False, upgrade: bool = False
    ) -> None:
        self.upgrade = upgrade  # there is one in any case
        self.rng = rng = random.Random(seed)
        self.code = code
        self.draw()
        num, weather = self.options.num, self.weather
        self.proxy = self.options.proxy
        self.sessions = self.options.session is not None
        self.kernel = kernel = Kernel(rng, 6 + 10 * num + self.spare, weather.stall)
        if trace:
            kernel.trace = [str(self.options), str(weather)]
        kernel.between_turns = self.check
        kernel.unwatched = self.unwatched
        self.listener = Listener(kernel)
        self.inboxes: list[Inbox] = []
        self.made: list[Inbox] = []  # all that there have been
        self.cells = memoryview(bytearray(16)).cast("Q")
        self.signals = Flag(kernel)
        self.sent_signals: list[signal.Signals] = []
        self.blocked: set[signal.Signals] = set()
        self.pending: list[signal.Signals] = []  # sent while they are blocked
        self.unobeyed = 0
        self.luck = random.Random(-1 - seed)  # of upgrades alone: without one it draws nothing
        self.trials: list[Trial] = []
        self.state: Memory | None = None  # what the next master finds
        self.pause = 0.0  # until there is one
        self.resumes = False  # one has taken the place of another, and begins
        self.follows = False  # the reload that belongs to that
        self.fresh = False  # it has had no turn yet
        self.launcher = Control(kernel) if rng.random() < 0.4 else None
        if self.launcher is not None:
            self.launcher.refused = partial(self.stop, quick=True)
            self.launcher.hear = self.announce
        self.wires: list[Wire] = []
        self.handed_back: Counter[str] = Counter()  # as the master should have counted it
        self.workers: dict[int, Worker] = {}
        self.processes: list[Worker] = []  # those that were not collected yet
        self.slots = [_SlotSeen() for _ in range(num)]
        self.right_class = "eventlet"
        self.known_class = self.options.worker_class  # as far as the master can know it
        if self.options.worker_class == "auto":
            self.right_class = rng.choice(("eventlet", "eventlet", "asgi"))
            for seen in self.slots[1:]:
                seen.due = math.inf  # the first one starts alone
        self.generation = 0  # of the code
        self.given_up = 0  # the latest that could not be started
        self.step = 0  # by so many slots it is to be more
        self.vain = 0  # starts that failed in this turn
        self.gave_up_at = 0.0
        self.target = num  # so many slots there are to be
        self.earlier: list[int] = []  # numbers of slots
        self.terminal_closed = False
        self.watcher: Watcher | None = None
        self.holders: dict[int, Worker] = {}  # of the session of a connection
        self.sheds = False  # in this turn
        self.chosen = 0.0  # when the number of slots was another one
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
        self.until = kernel.now + rng.choice((2.0, 4.0, 4.0, 12.0))
        self._write_script()
        self._write_upgrades()
        code.install(kernel, self)
        self.master = code.master.Master(self.options, Program("app:make"), self.launcher)
        self._listen_in()

    def draw(self) -> None:
        """The circumstances: weather, settings, how many descriptors and messages there may be."""
        rng = self.rng
        self.weather = Weather(rng)
        moving = rng.random() < 0.5  # most of what can happen to a move needs many of them
        if moving:
            self.weather.move()
        sessions = moving and rng.random() < 0.4
        if sessions:
            self.weather.hold()
        settings: dict[str, Any] = {
            "num": rng.choice((2, 2, 3, 4) if moving else (1, 1, 2, 2, 3, 4)),
            "proxy": moving or rng.random() < 0.7,
            "worker_class": rng.choice(("auto", "eventlet")),
            "seed": SEED,
            "session": "sid" if sessions else None,
            "reload": rng.random() < 0.15,
            "max_head_size": LIMIT,
            "head_timeout": rng.choice((0.2, 2.0, 10.0)),
            "max_pending_heads": rng.choice((1, 2, 5, 1000)),
            "max_queued": rng.choice((1, 3, 8, 1000)),
            "queue_timeout": rng.choice((0.3, 2.0, 10.0)),
            "prefetch": rng.choice((1, 2, 4)),
            "boot_timeout": rng.choice((0.5, 3.0, 60.0)),
            "timeout": rng.choice((0.0, 0.0, 0.7, 3.0, 30.0, 30.0)),
            "keep_alive": rng.choice((0.3, 2.0, 75.0)),
            "max_moves": rng.choice((1, 2, 8)),
            "graceful_timeout": rng.choice((0.0, 0.5, 3.0, 30.0)),
        }
        if moving and rng.random() < 0.3:  # and most of what can happen to one at rest, reloads
            self.weather.rest()
            settings.update(queue_timeout=rng.choice((0.3, 2.0)), keep_alive=75.0)
            settings.update(timeout=30.0, boot_timeout=60.0)
        if sessions:
            settings.update(keep_alive=75.0, graceful_timeout=rng.choice((3.0, 30.0)))
            settings.update(boot_timeout=60.0, max_moves=8)
        self.options = Options(**settings)
        self.spare = rng.choice((4, 12, 1000))
        self.capacity = rng.choice((1, 2, 4, 8))
        self.control_capacity = rng.choice((1, 2, 100, 100))

    def _write_script(self) -> None:
        """What will happen, as far as it does not depend on what the master does."""
        rng, kernel, weather = self.rng, self.kernel, self.weather
        span = self.until - kernel.now
        for _ in range(rng.choice((1, 3, 8))):
            moment = rng.random() * span * 1.05
            if rng.random() < 0.2:
                moment = max(0.0, span - rng.choice((0.01, 0.2)))  # just before the stop
            only = rng.randrange(KEYS) if rng.random() < 0.5 else None
            for _ in range(rng.choice((1, 2, 5, 20))):
                wire = self.make_wire(rng.randrange(KEYS) if only is None else only)
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
        if rng.random() < weather.reloads:  # and many in a row
            pause, begin = rng.choice((0.0, 0.02, 0.2)), rng.random() * span
            stops += [(begin + n * pause, signal.SIGHUP) for n in range(rng.choice((3, 16)))]
        while rng.random() < weather.scaling:
            moment = rng.random() * span * 1.05
            way = rng.choice((signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU))
            stops += [(moment, way)] * rng.choice((1, 1, 2, 4))
            if rng.random() < 0.3:
                stops.append((moment, rng.choice((signal.SIGHUP, signal.SIGTTOU, signal.SIGTTIN))))
        while rng.random() < 0.1:
            nothing = rng.choice((signal.SIGUSR1, signal.SIGALRM))
            stops.append((rng.random() * span * 1.05, nothing))
        if rng.random() < 0.03:
            kernel.at(rng.random() * span, self.close_terminal)
        if self.options.reload:
            for _ in range(rng.choice((0, 1, 3))):
                kernel.at(rng.random() * span, self.save)
        for delay, number_ in stops:
            kernel.at(delay, self.send_signal, number_)

    def _write_upgrades(self) -> None:
        """When the master is to have new code."""
        luck, kernel = self.luck, self.kernel
        if luck.random() >= 0.15 and not self.upgrade:
            return
        span = self.until - kernel.now
        for _ in range(luck.choice((1, 1, 2, 3))):
            moment = luck.random() * span
            kernel.at(moment, self.send_signal, signal.SIGUSR2)
            while luck.random() < 0.5:  # and what is in its way
                number = luck.choice((signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU))
                kernel.at(moment + luck.choice((0.0, 0.05, 0.3)), self.send_signal, number)

    def _listen_in(self) -> None:
        """Hear what the master decides before anything comes of it."""
        self.ledger, self.board = self.master._ledger, self.master._board
        self.lives, self.lines = self.master._lives, self.master._waiting.lines
        children, topology, waiting = (
            self.master._children,
            self.master._topology,
            self.ledger.waiting,
        )
        say, room, change, queue = children.say, children._room, topology.change, waiting.queue
        return_ = waiting.return_
        again = 0  # so many things are said that could not be said before

        def said(child: Any, kind: int, *more: Any) -> None:
            nonlocal again
            worker = self.workers[child.pid]
            if self.resumes:
                pass  # what could not be said to it before
            elif again:
                again -= 1
            else:
                worker.is_told(kind)
            say(child, kind, *more)
            if not worker.alive:
                worker.owed.clear()

        def there_is_room(child: Any, events: int) -> None:
            nonlocal again
            again = len(child.unsaid) if events & OUT else 0
            room(child, events)

        def changes(num: int) -> None:
            self.rescales(num)
            change(num)

        def everyone() -> list[list[Any]]:
            return [list(line.queue) for line in waiting.queues]

        def queues(connection: Any, line: Any, *more: Any, **how: Any) -> bool:
            full = waiting.queued >= self.options.max_queued
            there = everyone() if full else []
            shed = self.board.master["shed"]
            waits = queue(connection, line, *more, **how)
            if shed := self.board.master["shed"] - shed:
                lines = list(waiting.queues)
                there += [[] for _ in lines[len(there) :]]  # its own may be new
                there[lines.index(line)].append(connection)
                self.judge_shed(there, shed)
            return waits

        def returns(line: Any, connections: Any, now: float) -> None:
            there, come = everyone(), list(connections)
            shed = self.board.master["shed"]
            return_(line, come, now)
            if shed := self.board.master["shed"] - shed:
                there[list(waiting.queues).index(line)][:0] = [
                    it for it, _, rest in come if not rest
                ]
                self.judge_shed(there, shed)

        def scales(num: int, now: float) -> Any:
            self.scale(num)
            return scale(num, now)

        def fails(number: int, now: float) -> None:
            self.vain += 1
            demand(self.vain < 500, "a process is started in vain again and again")
            self.not_started(number)
            not_started(number, now)

        def relieves(now: float) -> None:
            Inbox.relieving = True
            try:
                relieve(now)
            finally:
                Inbox.relieving = False

        def obeys(number: signal.Signals) -> None:
            resumes, self.resumes = self.resumes, False
            self.unobeyed -= 1
            self.obeys(number)
            tries = number == signal.SIGUSR2 and self.can_try()
            before = len(self.trials)
            obey(number)
            if len(self.trials) == before:  # what came just before may be in the way
                demand(not (tries and self.can_try()), "the new code is not tried")
            self.resumes = resumes

        def resume(packed: Any) -> None:
            self.resumes, self.follows = True, False
            begin(packed)
            self.resumes = False
            demand(self.follows, "the code of the workers stays as it was")

        def reload() -> None:
            if self.resumes:
                self.follows = True
                self.reload()
            do_reload()

        begin, self.master._resume = self.master._resume, resume
        operator = self.master._operator
        do_reload, operator.renew = operator.renew, reload
        orders = self.master._orders
        obey, orders._obey = orders._obey, obeys
        inboxes = self.master._inboxes
        relieve, scale = inboxes.relieve, self.ledger.scale
        inboxes.relieve, self.ledger.scale = relieves, scales
        not_started = self.lives.not_started
        self.lives.not_started = fails
        children.say, children._room = said, there_is_room
        topology.change, waiting.queue, waiting.return_ = changes, queues, returns

    @property
    def num(self) -> int:
        """How many slots there are."""
        return self.cells[0] or self.options.num

    @property
    def epoch(self) -> int:
        """How often that has changed."""
        return self.cells[1]

    def slot_of(self, key: int) -> int:
        """The slot of a client now."""
        return pick_slot(key, self.num)

    def key_of(self, slot: int) -> int:
        """A client of this slot."""
        return next(key for key in range(KEYS) if self.slot_of(key) == slot)

    def make_wire(self, key: int) -> Wire:
        wire = Wire(self.kernel, len(self.wires), key)
        self.wires.append(wire)
        return wire

    # -- what happens to the master -----------------------------------------------------------

    def send_signal(self, number: signal.Signals) -> None:
        if number in self.blocked:
            if number not in self.pending:
                self.kernel.say("the master is to get", number.name)
                self.kernel.note("a signal in an upgrade")
                self.pending.append(number)
                self.unobeyed += 1
        elif self.signals.fd >= 0:
            self.kernel.say("the master gets", number.name)
            self.sent_signals.append(number)
            self.unobeyed += 1
            self.signals.raise_()

    def mask(self, how: int, numbers: Any) -> set[signal.Signals]:
        """signal.pthread_sigmask."""
        if how == signal.SIG_BLOCK:
            self.meet_signals()
        before = self.blocked
        given = {signal.Signals(number) for number in numbers}
        self.blocked = before | given if how == signal.SIG_BLOCK else given
        pending, self.pending = self.pending, []
        for number in sorted(pending):
            if number not in self.blocked:
                self.unobeyed -= 1
            self.send_signal(number)
        return before

    # -- an upgrade in place ------------------------------------------------------------------

    def can_try(self) -> bool:
        """Whether there is nothing in the way of trying new code."""
        serving = self.announced and self.stop_at == math.inf
        busy = any(not trial.collected for trial in self.trials) or self.agreed
        return serving and not busy and self.kernel.room > 3 and self.kernel.now >= self.cramped

    @property
    def agreed(self) -> bool:
        """Whether new code has said that it can take over, and has not yet."""
        return any(one.agreed and not one.used for one in self.trials[-1:])

    def draw_trial(self) -> tuple[float, str]:
        """How long new code takes to say something, and what."""
        luck = self.luck
        fate = luck.choice(("yes", "yes", "yes", "yes", "no", "nothing", "late"))
        return luck.choice((0.02, 0.1, 0.5, 1.5)), fate

    def draw_change(self) -> tuple[bool, float]:
        """Whether the system refuses to replace the code, and how long that takes."""
        return self.luck.random() < 0.1, self.luck.choice((0.0, 0.05, 0.3, 2.0))

    def try_code(self, path: str, command: list[str], *_: object, **__: object) -> int:
        """os.posix_spawn."""
        files = self.kernel.files
        state, theirs = (files[int(word)] for word in command[-2:])
        demand(self.stop_at == math.inf and self.announced, "new code is tried, and what for?")
        demand(state.inheritable and theirs.inheritable, "new code is not told anything")
        if self.kernel.now < self.cramped:
            raise failing(errno.EAGAIN)
        (answer,) = (p for p in files.values() if isinstance(p, Pipe) and p.writer is theirs)
        trial = Trial(self, 8000 + len(self.trials), answer, *self.draw_trial())
        self.trials.append(trial)
        self.kernel.say(trial, "starts")
        return trial.pid

    def execve(self, path: str, command: list[str], _: object) -> None:
        """The master replaces itself."""
        demand(self.agreed, "the master has other code, and nobody has said that it can")
        demand(self.stop_at >= self.kernel.now, "the master has other code in a stop")
        self.trials[-1].used = True
        self.meet_signals()
        refused, self.pause = self.draw_change()
        if refused:
            self.kernel.note("an upgrade that the system refuses")
            raise failing(errno.ENOMEM)
        state = self.kernel.files[int(command[-1])]
        assert isinstance(state, Memory)
        self.state = state
        # Where each is, and since when.
        self.check_places(self.kernel.now, 0.0, self.all_inboxes())
        self.next_board = Board(os.dup(self.board.fd))
        self.kernel.frozen = True
        raise Replaced

    def meet_signals(self) -> None:
        """Some come just when they cannot be obeyed."""
        numbers = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTERM, signal.SIGUSR2)
        while self.luck.random() < 0.2:
            self.send_signal(self.luck.choice(numbers))

    def go_on(self) -> None:
        """What ``upgraded.go_on`` does: there is another master, with the state of the first."""
        kernel, code, state, pause = self.kernel, self.code, self.state, self.pause
        assert state is not None
        kernel.note("upgraded")
        before = self.master._children
        for child in before.by_key.values():
            owed = [kind for kind, _ in child.unsaid]
            self.workers[child.pid].owed = deque(owed)
            if owed:
                kernel.note("upgraded with something unsaid")
        kernel.become()
        kernel.stalls += pause > 0  # with what was before, it may be more than a step
        kernel.stalled += pause
        kernel._advance(kernel.now + pause)
        kernel.run_on()
        self.meet_signals()
        demand(state.fd >= 0, "the state is lost")
        state.content.seek(0)
        content = json.loads(state.content.readline())
        for place, count in self.packed_places(content).items():
            if count:
                kernel.note("upgraded with a", place)
        launcher = content["launcher"]
        if launcher is not None:
            launcher = kernel.files[launcher]
            kernel.set_inheritable(launcher.fd, False)
        self.master = code.master.Master(
            Options.make(content["options"]),
            Program(**content["program"]),
            launcher,
            None,
            self.next_board,
            packed=code.state.Packed(content, state),
        )
        self.fresh = True
        state.inheritable = False
        left = [file for file in kernel.files.values() if file.inheritable]
        demand(not left, "children of the master would have", left)
        self._listen_in()

    @staticmethod
    def packed_places(content: Mapping[str, Any]) -> dict[str, int]:
        """How many connections are where, in a packed state."""
        waiting, lives = content["ledger"]["waiting"], content["ledger"]["lives"]
        lines = [*waiting["lines"], *(line for _, _, line in waiting["own"])]
        roster = lives["roster"]
        workers = [worker for _, worker in roster["workers"]]
        return {
            "head": len(waiting["heads"]),
            "refused one": len(waiting["refused"]),
            "queue": sum(len(line[2]) for line in lines),
            "rest": sum(len(line[3]) for line in lines),
            "pause of accepting": waiting["resume"] is not None,
            "process before": sum(slot["previous"] is not None for slot in roster["slots"]),
            "process that starts": sum(one["state"] == "STARTING" for one in workers),
            "growth": roster["growing"] is not None,
            "reload": lives["rounds"]["_replacing"] is not None,
            "back-off": sum(slot["start_at"] is not None for slot in roster["slots"]),
        }

    def close_terminal(self) -> None:
        """The next SIGHUP says so."""
        self.terminal_closed = True
        self.send_signal(signal.SIGHUP)

    def save(self) -> None:
        """A file of the program is saved."""
        if self.watcher is not None and self.watcher.alive:
            self.watcher.control.say(channel.CHANGED, ["app.py"])

    def reload(self) -> None:
        """The master learned that there is newer code; it may be for another worker class now."""
        if self.stop_at < math.inf:
            return
        self.generation += 1
        if not self.announced:
            first = self.slots[0].worker
            alone = self.options.worker_class == "auto" and not (first and first.serves)
            for seen in self.slots[: 1 if alone else self.target]:
                if seen.worker is None:
                    seen.due = min(seen.due, self.kernel.now)
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

    def pairs(self) -> list[Inbox | Control]:
        """Everything that descriptors are sent over."""
        return [*self.inboxes, *(worker.control for worker in self.workers.values())]

    # -- what the master's modules call -------------------------------------------------------

    def make_inbox(self) -> tuple[Inbox, InboxEnd]:
        """One of a slot or of a process: of which is known when one is started with it."""
        inbox = Inbox(self.kernel, self.capacity, self.options.max_moves)
        inbox.judge_rest = self.judge_rest
        self.made.append(inbox)
        try:
            return inbox, InboxEnd(self.kernel, inbox)
        except OSError:
            inbox.close()
            raise

    def follow(self, cells: memoryview) -> None:
        """Router.follow: the number of slots is to be read here."""
        self.cells = cells

    def make_signals(self, numbers: object) -> Any:
        if self.signals.fd < 0:  # those of a master before
            self.signals = Flag(self.kernel)
            self.sent_signals.clear()
        return _Signals(self)

    def obeys(self, number: signal.Signals) -> None:
        """The master does what a signal says."""
        if number == signal.SIGHUP and self.terminal_closed:
            self.stop(quick=False)
        elif number == signal.SIGHUP:
            self.reload()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self.step = 1 if number == signal.SIGTTIN else -1
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self.stop(quick=number != signal.SIGTERM)

    def start(self, label: str, spec: Mapping[str, Any], fds: Any = (), **__: object) -> Any:
        """spawn.start."""
        if label == "watcher":
            self.watcher = Watcher(self)
            return self.watcher.pid, self.watcher.control
        slot: int = spec["slot"]
        shared, own = (self.kernel.files[fd] for fd in fds[:2])
        assert isinstance(shared, InboxEnd)
        assert isinstance(own, InboxEnd)
        news = self.kernel.files[fds[3]].other
        assert isinstance(news, News)
        for (row, _), fd in zip(spec["siblings"], fds[5:], strict=True):
            news.known[row] = self.kernel.files[fd]
        del self.inboxes[len(self.master._children.pairs) :]
        for number, pairs in enumerate(self.master._children.pairs):
            if number >= len(self.inboxes) or self.inboxes[number] is not pairs.inbox:
                del self.inboxes[number:]
                self.inboxes.append(pairs.inbox)
                pairs.inbox.number = number
                pairs.inbox.is_read = partial(self.is_served, number)
        demand(self.inboxes[slot] is shared.inbox, "slot", slot, "has another inbox now")
        demand(own.inbox.worker is None, "slot", slot, "has the own inbox of another process")
        seen = self.slots[slot]
        now = self.kernel.now
        if seen.worker is None:
            early = now < seen.due - MOMENT and self.stop_at == math.inf
            early = early and slot < self.target  # else it was decided before, and is undone
            if early and self.generation and seen.ended == now:
                # It ended when its successor had just been decided on: that one comes at once.
                early, seen.backoff = False, seen.backoff_before
            demand(not early, "slot", slot, "is started", seen.due - now, "s early")
        else:
            due = self.is_due(seen) or seen.corrects or self.gave_up_at == now
            demand(due, "slot", slot, "has a process:", seen.worker)
            demand(seen.successor is None, "slot", slot, "has a successor:", seen.successor)
            # A reload may have been decided in the moment before.
            demand(self.stop_at >= now, "a successor is started in a stop")
            self.judge_turn(seen)
        demand(not self.quick or self.stop_at == now, "a process is started in a quick stop")
        corrects, seen.corrects = seen.corrects, False
        worker_class: str = spec["options"]["worker_class"]
        demand(worker_class == self.known_class, "it starts a", worker_class, self.known_class)
        if now < self.cramped:
            raise failing(errno.EAGAIN)
        if not self.kernel.room:
            raise failing(errno.EMFILE)
        pid = 5000 + len(self.workers)
        worker = Worker(self, slot, pid, worker_class, spec["row"], own.inbox, news)
        worker.corrected = corrects
        self.workers[pid] = worker
        self.processes.append(worker)
        if seen.worker is None:
            seen.worker = worker
        else:
            seen.successor = worker
        self.kernel.say(worker, "starts")
        return pid, worker.control

    def pidfd_open(self, pid: int) -> int:
        worker: Any = self.workers.get(pid, self.watcher)
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
        for trial in self.trials:
            if trial.pid == pid:
                demand(not trial.collected, trial, "is killed, and was collected")
                trial.die(-number)
                return
        worker = self.workers[pid]
        demand(worker.pidfd is None, worker, "is killed by its pid")
        worker.die(-number)

    def kill(self, pidfd: int, number: int) -> None:
        """signal.pidfd_send_signal."""
        if self.watcher is not None and self.watcher.pidfd and self.watcher.pidfd.fd == pidfd:
            self.watcher.alive = False
            return
        (worker,) = (w for w in self.workers.values() if w.pidfd and w.pidfd.fd == pidfd)
        self.kernel.say(worker, "gets", signal.Signals(number).name)
        demand(not worker.killed, worker, "is killed twice")
        if number == signal.SIGABRT:
            demand(worker.aborted is None, worker, "is aborted twice")
            self.judge_abort(worker)
            worker.changed = self.kernel.now
            worker.abort()
            return
        demand(number == signal.SIGKILL)
        if worker.aborted is None:
            self.judge_kill(worker)
            worker.by_design = True
        else:
            late = self.kernel.now - worker.aborted - ABORT_GRACE
            demand(late >= -MOMENT, worker, "has had no time to say where it hangs")
        worker.kill()

    def reap(self, pid: int) -> int:
        for trial in self.trials:
            if trial.pid == pid:
                demand(not trial.alive, trial, "is waited for, and lives")
                trial.collected = True
                return trial.status
        if pid not in self.workers:
            return -9
        worker = self.workers[pid]
        demand(not worker.alive, worker, "is waited for, and lives")
        assert worker.status is not None
        said = worker.control.said
        demand(not said or worker.pidfd is None, worker, "was not heard out:", said)
        demand(not worker.own.messages, worker, "leaves what lay in its own inbox")
        worker.collected, worker.changed = True, self.kernel.now
        self.processes.remove(worker)
        seen = self.slots[worker.slot]
        if worker.pidfd is None:  # it is as if it had not been started
            if seen.worker is worker:
                seen.worker = None
            else:
                seen.successor = None
            return worker.status
        how = self.says_how(worker)
        if how:
            self.kernel.note("another worker class")
            assert worker.right_class is not None
            self.known_class = worker.right_class
        if seen.previous is worker:
            seen.previous = None
        if seen.successor is worker:
            seen.successor = None
            seen.corrects = how
            if how:
                self.kernel.note("another worker class in a reload")
            elif not worker.by_design:
                self.fails_to_succeed(seen, worker.generation)
        elif seen.worker is worker:
            seen.worker, seen.successor = seen.successor, None
            if seen.worker is None:
                seen.corrects = how
                self.gone(worker.slot, worker)
        else:
            demand(worker.replaced is not None, worker, "is nobody's")
        return worker.status

    def fails_to_succeed(self, seen: _SlotSeen, generation: int) -> None:
        """A successor has not become ready."""
        seen.passed_over = 0  # it had its turn
        before = seen.worker.generation if seen.worker else 0
        reload = max(self.given_up, before) + 1
        if reload <= generation:  # otherwise it was for something else
            self.given_up, self.gave_up_at = reload, self.kernel.now
        seen.backoff = min(seen.backoff * 2 or BACKOFF_FIRST, BACKOFF_LAST)
        seen.wait_until = self.kernel.now + seen.backoff

    def not_started(self, slot: int) -> None:
        self.kernel.say("slot", slot, "could not start a process")
        self.slots[slot].corrects = False  # the next start is not the one that was asked for
        if self.slots[slot].worker is None:
            self.gone(slot, None)
        else:
            self.fails_to_succeed(self.slots[slot], self.generation)

    def gone(self, slot: int, worker: Worker | None) -> None:
        """A process has ended (or could not even start): what is due now."""
        seen, now = self.slots[slot], self.kernel.now
        seen.ended = now
        was_ready = worker is not None and worker.known_ready is not None
        generation = worker.generation if worker is not None else self.generation
        if self.stop_at < math.inf:
            seen.due = now + BACKOFF_FIRST
        elif worker is not None and self.says_how(worker):
            seen.due = now
        elif slot >= self.target:
            seen.due = math.inf
        elif worker is not None and worker.by_design:
            seen.due = now  # it was not needed, and is again
        elif not was_ready and not self.announced and self.options.reload:
            self.kernel.note("waits for other code")
            seen.due = now if generation < self.generation else math.inf
        elif not was_ready and not self.announced:
            self.status = worker.failure_status if worker is not None else 3
            self.stop(quick=True)
        elif slot >= self.num and (worker is None or worker.is_hopeless):
            self.kernel.note("there cannot be more slots")
            self.retire(self.num)
        else:
            if not was_ready and slot >= self.num:
                self.kernel.note("a start of one more slot is tried again")
            lived = was_ready and worker is not None and now - worker.ready_at >= BACKOFF_LAST
            doubled = seen.backoff * 2 or BACKOFF_FIRST
            seen.backoff_before = seen.backoff
            seen.backoff = BACKOFF_FIRST if lived else min(doubled, BACKOFF_LAST)
            seen.due = now + seen.backoff

    def scale(self, num: int) -> None:
        """The master decides that there are to be more slots or fewer."""
        demand(num == self.target + self.step, "there are to be", num, "slots: who said so?")
        if self.stop_at < math.inf or not self.announced:
            return
        fewer = num < self.target
        if fewer:
            self.retire(num)
            return
        self.kernel.note("scaled up")
        self.target = num
        for number in range(self.num, self.target):
            if number == len(self.slots):
                self.slots.append(_SlotSeen())
                self.served.append(0)
            seen = self.slots[number]
            if seen.worker is None and seen.due == math.inf:
                seen.due = self.kernel.now

    def retire(self, num: int) -> None:
        """Slots from this number on are none any more, or do not come to be any."""
        self.target, now = num, self.kernel.now
        for seen in self.slots[num:]:
            seen.due = math.inf
            worker = seen.worker
            for starting in (worker, seen.successor):
                if starting is not None and starting.known_ready is None:
                    starting.unneeded = True
            if worker is not None and worker.known_ready is not None:
                self.kernel.note("retired")
                worker.replaced = worker.changed = now
                seen.previous, seen.worker, seen.successor = worker, seen.successor, None

    def rescales(self, num: int) -> None:
        """There are so many slots now."""
        demand(num == self.target, "there are", num, "slots, not", self.target)
        others = [earlier for earlier in self.earlier if earlier not in (self.num, num)]
        self.earlier = [self.num, *others][:8]
        self.kernel.note("more slots" if num > self.num else "fewer slots")
        self.chosen = self.kernel.now
        if num > self.num:
            lacking = [n for n in range(num) if not self.is_served(n)]
            demand(not lacking, "there are", num, "slots, without a process in", lacking)
        for wire in self.wires:
            if wire.heir is not None and wire.heir >= num:
                wire.heir, wire.since = ANY, self.kernel.now  # and it waits in another line
            elif wire.heir == ANY and wire.waits == "rest" and wire.rests_in >= num:
                wire.since = self.kernel.now

    def is_served(self, slot: int) -> bool:
        """Whether a process reads the inbox of this slot, as far as the master can know."""
        worker = self.slots[slot].worker
        return worker is not None and worker.serves and not worker.draining

    def is_due(self, seen: _SlotSeen) -> bool:
        """Whether the slot's process is to be replaced."""
        worker = seen.worker
        if worker is None or seen.successor is not None or not worker.serves:
            return False
        newer = self.generation > self.given_up and worker.generation < self.generation
        return newer or worker.leaving is not None

    def judge_turn(self, chosen: _SlotSeen) -> None:
        """The slot's process is replaced: is it its turn?"""
        chosen.passed_over = 0
        urgent = chosen.worker is not None and chosen.worker.leaving is not None
        for seen in self.slots:
            other = seen.worker
            if not urgent and other and other.leaving is None and seen.successor is not None:
                demand(chosen.corrects, chosen.worker, "is replaced at the same time as", other)
        for seen in self.slots:
            if seen is not chosen and self.is_due(seen) and seen.wait_until <= self.kernel.now:
                seen.passed_over += 1
                many = 3 * len(self.slots)
                demand(seen.passed_over <= many, seen.worker, "is passed over again and again")

    def says_how(self, worker: Worker) -> bool:
        """Whether it is to be started once more at once, as another class."""
        auto = self.options.worker_class == "auto"
        serves = self.stop_at == math.inf
        return bool(serves and auto and worker.right_class and not worker.corrected)

    def route(self, buffer: bytearray, length: int, host: str) -> int:
        """Router.route: what the peeked bytes say."""
        wire = self.wires[int(host)]
        verdict = self.slot_of(wire.request.key)
        if self.proxy:
            head = bytes(buffer[:length])
            expected = wire.stream[wire.used : wire.used + length]
            demand(head == expected, wire, "is routed by", head, "not", bytes(expected))
            verdict = self.verdict(head)
        if verdict >= 0:
            self.decide(wire)
            wire.destined = verdict
            wire.asked = None  # who has ended
        return verdict

    def decide(self, wire: Wire) -> None:
        """Where it goes."""
        self.decisions += 1
        wire.decided = self.decisions
        wire.got = self.kernel.now

    def find(self, head: bytes, length: int) -> tuple[int, bytes]:
        """Router.find."""
        words = bytes(head[:length]).partition(b"\n")[0].split()
        return (0, words[3]) if len(words) > 3 else (-1, b"")

    def owner(self, session: bytes, num: int = 0) -> int:
        """Router.owner."""
        return pick_slot(int(session.partition(b".")[0]), num or self.num)

    def verdict(self, head: bytes) -> int:
        """What these bytes say of whose request it is."""
        if head[:1] == b"!":
            return MALFORMED
        if b"\n" not in head:
            return NEED_MORE
        return MISSING if head[:1] == b"?" else self.slot_of(int(head.split()[0]))

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
        timely = self.kernel.now >= self.quit_at(worker) - MOMENT
        before = self.stop_at == self.kernel.now and self.listener.open and timely
        if kind == channel.END and before and worker.replaced is None:
            self.gives_up_waiting(worker)  # that was decided before the stop, in the same moment
        if kind == channel.END and self.stop_at == math.inf:
            if worker.replaced is None and self.kernel.now >= self.quit_at(worker) - MOMENT:
                self.gives_up_waiting(worker)
            demand(worker.replaced is not None, worker, "is told to end, and has no successor")
        elif kind == channel.END and (worker.replaced is None or channel.END in worker.told):
            demand(not self.listener.open, worker, "is told to end before the listeners closed")
            waiting = self.waiting()
            waiting += [wire for wire in self.wires if wire.place == "moving"]
            demand(not waiting, worker, "is told to end while these wait:", waiting)
            self.ends = worker.draining = True
            if worker.slot < len(self.inboxes):
                self.inboxes[worker.slot].told_end = True
        elif kind == channel.QUIT:
            demand(worker.quit_said is None, worker, "is told to quit twice")
            worker.quit_said = self.kernel.now
            timely = self.kernel.now >= self.quit_at(worker) - MOMENT
            demand(self.quick or self.time_over or timely, worker, "is told to quit, and has time")
        elif kind == channel.CLOSING:
            demand(self.stop_at < math.inf, worker, "is told to close, and nothing stops")

    def quit_at(self, worker: Worker) -> float:
        """When its time for ending by itself is over."""
        begins = [when for when in (worker.replaced, worker.leaving) if when is not None]
        return min(begins, default=math.inf) + self.options.graceful_timeout

    def gives_up_waiting(self, worker: Worker) -> None:
        """It has asked to be replaced, and nobody has become ready in time."""
        self.kernel.note("nobody was ready in time")
        seen, now = self.slots[worker.slot], self.kernel.now
        worker.replaced = worker.changed = now
        seen.previous, seen.worker, seen.successor = worker, seen.successor, None
        if seen.worker is None:
            seen.due = max(now, seen.wait_until)
            seen.ended = now

    def is_leaving(self, worker: Worker) -> None:
        """The master learned that a worker asks to be replaced."""
        if self.stop_at == math.inf and worker.serves and worker.replaced is None:
            self.kernel.note("leaving")
            if worker.leaving is None:
                worker.leaving = self.kernel.now

    def is_ready(self, worker: Worker) -> None:
        """The master learned that one more worker is ready."""
        seen, now = self.slots[worker.slot], self.kernel.now
        if self.stop_at < math.inf:
            return
        if seen.successor is worker:
            old, seen.worker, seen.successor = seen.worker, worker, None
            assert old is not None
            old.replaced = old.changed = now
            seen.backoff = 0.0
            if old.known_ready is not None:
                if seen.previous is not None:
                    seen.previous.changed = now
                seen.previous = old
        auto = self.options.worker_class == "auto"
        if worker.slot == 0 and auto and not self.announced:
            for other in self.slots[1:]:
                other.due = now if other.due == math.inf else other.due
        everyone = all(self.is_served(number) for number in range(self.num))
        self.announced = self.announced or everyone
        self.inboxes[worker.slot].opened = now

    def takes_back(self, worker: Worker, wire: Wire, unheld: bool) -> None:
        """The master has read that a worker hands a connection back."""
        self.handed_back["moved"] += 1
        self.handed_back["bytes_carried"] += len(wire.carried)
        self.handed_back["moved_too_often"] += wire.moved > self.options.max_moves
        wire.unheld, wire.asked = unheld, None
        if unheld and wire.moved <= self.options.max_moves and not self.ends and not self.quick:
            wire.asked = self.next_holder(worker, wire)
            if wire.asked is not None:
                self.kernel.note("asked for a session")
                wire.moved -= 1  # it only asks, until somebody has it
                wire.unheld = False
                self.decide(wire)

    def next_holder(self, worker: Worker, wire: Wire) -> Worker | None:
        """Who is to be asked next for the session of a connection's request."""
        nums = (self.num, *self.earlier)
        chain: list[Worker] = []
        for slot in dict.fromkeys(pick_slot(wire.request.key, num) for num in nums):
            seen = self.slots[slot]
            chain += [w for w in (seen.worker, seen.previous) if w is not None and w.serves]
        if worker in chain:
            chain = chain[chain.index(worker) + 1 :]
        return next((one for one in chain if one is not worker), None)

    def judge_session(self, wire: Wire, worker: Worker, *, alone: bool) -> None:
        """A worker serves a request: if it is of a session that it does not hold, nobody does who
        could have been asked."""
        holder = self.holders.get(wire.number)
        if not self.sessions or not wire.request.session or holder in (None, worker):
            return
        assert holder is not None
        self.kernel.note("a session was lost")
        if not holder.serves or holder.collected or not holder.alive or self.ends or self.quick:
            return
        seen = self.slots[holder.slot]
        reachable = holder in (seen.worker, seen.previous)
        settled = max(holder.changed, self.chosen, self.began(worker)) < wire.turn_since
        demand(not (reachable and settled), wire, "of", holder, "is answered by", worker)

    @staticmethod
    def began(worker: Worker) -> float:
        """When a worker began to serve."""
        return worker.changed

    def takes_rest(self, worker: Worker, wire: Wire, _: bool) -> None:
        """The master has read that a worker gives away a connection at rest."""
        heir = self.slots[worker.slot].worker
        retired = worker.slot >= self.num
        wire.heir = ANY if retired else worker.slot
        wire.orphan = not retired and heir is worker and self.is_served(worker.slot)
        wire.got = self.kernel.now
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
            self.stop_by = now + (0.0 if quick else self.options.graceful_timeout)
            self.stalled_before = self.kernel.stalled
            self.target = self.num
        elif quick:
            self.stop_by = min(self.stop_by, now)
        self.quick = self.quick or quick

    @property
    def time_over(self) -> bool:
        return self.kernel.now >= self.stop_by - MOMENT

    @property
    def reloading(self) -> bool:
        """Whether a process has a successor that starts, or that has taken its place."""
        alive = [w for w in self.processes if w.alive and w.replaced is not None]
        return bool(alive) or any(seen.successor for seen in self.slots)

    def places(self) -> list[tuple[str, Any, Any, float]]:
        """Every connection that the ledger knows, where it is, and until when."""
        return list(self.ledger.waiting.places())

    def all_inboxes(self) -> list[Inbox]:
        """Those of the slots, and those of the processes."""
        own = [worker.own for worker in self.processes]
        return [inbox for inbox in self.inboxes + own if inbox.fd >= 0]

    def waiting(self) -> list[Wire]:
        """Every connection that is still to be given to a worker."""
        lying = [parcel.wire for inbox in self.all_inboxes() for parcel in inbox.messages]
        return lying + [held.sock.wire for place, _, held, _ in self.places() if place != "refused"]

    # -- the promises -------------------------------------------------------------------------

    def judge_kill(self, worker: Worker) -> None:
        """A worker is killed at once: it has nothing in hand, and is not needed."""
        demand(worker.known_ready is None, worker, "is killed, and was not told to end before")
        needed = self.stop_at == math.inf and worker.slot < self.target
        demand(not needed or worker.unneeded, worker, "is killed, and needed")

    def judge_abort(self, worker: Worker) -> None:
        """A worker is to be killed: was it late, by time in which the master ran?"""
        options, ran, now = self.options, self.kernel.ran, self.kernel.now
        silent = options.timeout and worker.known_ready is not None
        patience = every(options.timeout) + options.timeout
        silent = silent and ran - worker.beaten >= patience - MOMENT
        if silent and worker.replaced is None and not worker.draining:
            return
        if worker.quit_said is not None:
            age = now - worker.quit_said
            demand(age >= QUIT_GRACE - MOMENT, worker, "had only", age, "s to quit")
        elif worker.known_ready is None:
            age = ran - worker.started
            demand(age >= options.boot_timeout - MOMENT, worker, "had only", age, "s to start")
        else:
            demand(worker.replaced is None, worker, "is killed, and was not told to quit")
            demand(options.timeout, worker, "is killed, but it may be silent for ever")
            demand(silent, worker, "is killed, and has beaten at", worker.beaten, "of", ran)

    def judge_shed(self, there: list[list[Any]], count: int) -> None:
        """So many were refused because too many wait: was each the newest of the longest line?"""
        self.kernel.note("shed")
        self.sheds = True
        for refused in list(self.ledger.waiting._refused)[-count:]:
            longest = max(map(len, there))
            fair = [queue for queue in there if len(queue) == longest and queue[-1] is refused]
            demand(fair, refused.sock.wire, "is refused, and not the newest of the longest line")
            fair[0].pop()

    def judge_rest(self, wire: Wire, slot: int) -> None:
        """A wire at rest is handed over: is it its turn, and is there somebody to have it?"""
        demand(not self.lines[slot].queue, wire, "overtakes at rest, in slot", slot)
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
        late = self.kernel.now - wire.got >= self.options.queue_timeout - MOMENT
        queued = wire.waits in ("queue", "inbox") and late
        over = self.quick or self.time_over
        return queued or self.sheds or self.is_late_head(wire) or over

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
            waited = now - wire.got
            late = waited >= options.queue_timeout - MOMENT
            late = late and wire.waits in ("queue", "rest", "inbox", None)
            still = not (wire.fin or wire.reset or self.kernel.cut)
            if late and still and self.listener.open and wire.waits == "queue":
                inbox = wire.asked.own if wire.asked else self.inboxes[wire.destined]
                full = inbox.room <= 0 or inbox.failing or not inbox.is_read()
                retried = now - max(self.fed_at, inbox.opened) > RETRY + MOMENT
                demand(full or not retried, wire, "got 503 though its inbox had room")
            over = self.quick or self.time_over or self.ends
            too_often = wire.moved > options.max_moves
            crowded = self.kernel.starved_at == now or self.sheds
            if wire.heir is not None:  # and a request has come meanwhile
                self.kernel.note("rest answered")
                over = over or wire.orphan or self.stop_at <= now
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
        demand(not self.ledger.agenda.take(), "something was decided and not done")
        if self.master._performer.status is not None:
            return
        if self.fresh:  # for what was due in the meantime, the first turn is early enough
            self.fresh = False
            demand(not timeout, "it sleeps, and does not know what is due")
            for place, _, connection, _ in self.places():
                if place == "head" and connection.sock.wire.waits != place:
                    connection.sock.wire.waits, connection.sock.wire.since = place, now
            return
        handlers = self.master._loop._handlers
        if kernel.watched.keys() != handlers.keys():
            alone = [kernel.files.get(fd, fd) for fd in kernel.watched.keys() ^ handlers.keys()]
            broken("handlers without events:", alone)
        inboxes = self.all_inboxes()
        deadlines = self.check_places(now, timeout, inboxes)
        deadlines += self.check_processes(now)
        if self.stop_at < math.inf:
            if now < self.stop_by:
                deadlines.append((max(self.stop_by, now + RETRY), "the stop"))
            self.check_stop(now)
        else:
            deadlines += self.check_replacing(now)
        self.check_roster()
        self.check_upgrade(now)
        self.check_accepting(now, timeout)
        self.check_inboxes(now, timeout, inboxes)
        for deadline, what in deadlines if timeout else ():
            late = now + timeout - deadline
            late <= MOMENT or broken("it would sleep", late, "s past a deadline of", what)
        listener.accepted = self.vain = 0
        self.sheds = False

    def check_roster(self) -> None:
        """Who serves a slot is the same for the master, for everybody else, and in fact."""
        board, lives = self.board, self.lives
        by_key = self.master._children.by_key
        rows = list(board._shown())
        shown = dict(rows)
        len(shown) == len(rows) or broken("a slot is shown twice:", rows)
        target = lives.target
        demand(target == self.target, "there will be", target, "slots")
        earlier = self.master._topology._earlier
        demand(earlier == self.earlier, "there were", earlier, "slots, not", self.earlier)
        living = {child.row for child in by_key.values()}
        demand(living >= set(shown.values()), "rows are shown of processes that have ended")
        for number, seen in enumerate(self.slots):
            worker = seen.worker
            if worker is not None and (worker.draining or not worker.serves):
                worker = None
            key = lives.current(number)
            current = self.workers[by_key[key].pid] if key is not None else None
            if current is not worker:
                broken("slot", number, "is served by", current, "not", worker)
            key = lives.previous(number)
            previous = self.workers[by_key[key].pid] if key is not None else None
            before = seen.previous if seen.previous and not seen.previous.doomed else None
            if previous is not before:
                broken("slot", number, "was served by", previous, "not", before)
            if worker is not None:
                shown.get(number) == worker.row or broken(worker, "is not shown")
                others = board.has_others(worker.row)
                others == (before is not None) or broken(worker, "has others:", others, before)
            else:
                row = shown.get(number)
                doomed = seen.worker.row if seen.worker is not None else None
                before_it = seen.previous.row if seen.previous is not None else None
                row in (None, doomed, before_it) or broken("slot", number, "is shown as", row)
        pairs, boxes = self.master._children.pairs, self.master._children.post.boxes
        demand(len(pairs) >= max(self.num, target), "there are pairs for", len(pairs))
        mailboxes = {row: box.mailbox for row, box in boxes.items()}
        for worker in self.processes:
            if not worker.alive or worker.pidfd is None:
                continue
            demand(worker.row in boxes, worker, "has no mailbox")
            known = {**worker.news.known, worker.row: mailboxes[worker.row]}
            if known == mailboxes:
                continue
            rows = known.keys() | mailboxes.keys()
            differing = {row for row in rows if mailboxes.get(row) is not known.get(row)}
            late = {entry[2] for entry in boxes[worker.row].unsaid}
            demand(differing <= late, worker, "does not know of rows", differing - late)
            since = worker.news.refused
            overdue = since is not None and self.kernel.ran - since > 0.5 + LOOK_AROUND + BLUR
            demand(not overdue, worker, "is not told of rows", late)

    def check_upgrade(self, now: float) -> None:
        """No signal is lost, and new code that is tried is heard in its time."""
        heard = len(self.sent_signals) + len(self.pending)
        self.unobeyed == heard or broken(self.unobeyed - heard, "signals are lost")
        not self.blocked or broken("the master is deaf to", self.blocked)
        known = self.master._succession.trial.pid
        if not self.trials:
            not known or broken("the trial is", known)
            return
        tried = [trial.pid for trial in self.trials if not trial.collected]
        demand(tried == ([known] if known else []), "the trial is", known, "not", tried)
        trial = self.trials[-1]
        serving = self.stop_at == math.inf
        demand(not (serving and self.agreed), "new code could take over, and does not")
        if not trial.collected:
            limit = LONGEST if serving else self.stop_at - trial.started
            late = now - trial.started - limit - LOOK_AROUND
            demand(late <= BLUR, trial, "was not seen to", late)

    def check_replacing(self, now: float) -> list[tuple[float, object]]:
        """Who is to be replaced is, in turn, and who asks for it at once."""
        deadlines: list[tuple[float, object]] = []
        if not self.announced:
            return deadlines
        replacing = False
        due = []
        for number, seen in enumerate(self.slots):
            replacing = replacing or seen.successor is not None
            if not self.is_due(seen):
                continue
            if seen.wait_until > now:
                deadlines.append((seen.wait_until, "a replacement"))
            else:
                leaving = seen.worker is not None and seen.worker.leaving is not None
                demand(not leaving, seen.worker, "asks to be replaced, and is not")
                due.append(number)
        demand(not due or replacing, "slots", due, "are to be replaced, and are not")
        if self.target > self.num:
            lacking = [n for n in range(self.target) if not self.is_served(n)]
            demand(lacking, "there are to be", self.target, "slots, and not", self.num)
        return deadlines

    def check_inboxes(self, now: float, timeout: float, inboxes: list[Inbox]) -> None:
        """Where nobody reads nothing lies; and nothing lies for long."""
        waiting = self.ledger.waiting
        by_key = self.master._children.by_key
        own = {self.workers[by_key[key].pid]: line for key, line in waiting.queues.own.items()}
        for inbox in inboxes:
            line = own.get(inbox.worker) if inbox.worker else waiting.lines[inbox.number]
            messages = inbox.messages
            not messages or inbox.is_read() or broken(inbox, "is not read, and holds some")
            some = line is not None and (line.queue or line.resting)
            open = line is not None and line.open
            if inbox.fd in self.kernel.watched:
                some or broken(inbox, "is watched for nothing")
                open or broken(inbox, "is watched, and nobody reads it")
            elif some and open:
                timeout <= RETRY + MOMENT or broken(inbox, "is not watched")
            seen = inbox.writable and not self.kernel.cut
            inbox.room = inbox.capacity - len(messages) if seen else 0
            if messages:
                parcel = messages[0]
                late = now - parcel.wire.got - self.options.queue_timeout
                if parcel.rest:
                    late = now - parcel.wire.since - self.options.queue_timeout
                late = min(late, now - parcel.wire.put)  # after a time in which we did not run
                bound = LOOK_AROUND + 2 * MOMENT
                late <= bound or broken(parcel.wire, "lies in an inbox", late, "s too long")
        for worker in self.processes:
            if worker.owed and worker.alive and not self.kernel.cut and timeout:
                watch = self.kernel.watched.get(worker.control.fd)
                demand(watch and watch[0] & OUT, worker, "is not told", worker.owed)

    def check_places(
        self, now: float, timeout: float, inboxes: list[Inbox]
    ) -> list[tuple[float, object]]:
        """Every connection is in one place, for no longer than it may be there."""
        options, kernel = self.options, self.kernel
        watched, places = kernel.watched, self.places()
        num = max(self.num, self.target)
        held = {connection.sock.wire for _, _, connection, _ in places}
        demand(len(held) == len(places), "a connection is in two places:", places)
        heads = queued = 0
        deadlines: list[tuple[float, object]] = []
        for place, line, connection, _ in places:
            wire = connection.sock.wire
            wire.place == "master" or broken(wire, "is", place, "and", wire.place)
            connection.sock.fd in watched or broken(wire, "is not watched in", place)
            if place == "queue":
                right = line.slot == wire.destined if line.process is None else wire.asked
                right or broken(wire, "is queued for", line)
                there = line.process is not None or line.slot < num
                there or broken(wire, "waits for slot", line.slot, "of", self.num)
            elif place == "rest":
                wire.heir in (ANY, line.slot) or broken(wire, "is queued for", line)
                wire.rests_in = line.slot
            (place == "refused") == (wire.answer is not None) or broken(wire, "is", place)
            if (wire.fin or wire.reset) and place in ("queue", "rest"):
                # That is told again when it could not be handed over just then.
                wire.overlooked += 1
                wire.overlooked < 8 or broken(wire, "is queued, and has left")
            if place != "refused":
                kept = connection.prefix == wire.carried
                kept or broken(wire, "has lost what was read of it")
            if place != wire.waits:
                if place == "refused":
                    self.judge_answer(wire)
                if place == "queue" and wire.waits == "inbox":
                    self.kernel.note("back in the queue")
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
                (place == "rest") == (wire.heir is not None) or broken(wire, "is in", place)
                deadline = (wire.since if place == "rest" else wire.got) + options.queue_timeout
            else:
                deadline = wire.since + LINGER
            if deadline < now - MOMENT and timeout:  # with none, it is about to be refused
                broken(wire, "is", now - deadline, "s too long in", place)
            deadlines.append((deadline, wire))
        if kernel.sockets != len(held):
            lost = [file for file in kernel.files.values() if isinstance(file, Socket)]
            broken("held and forgotten:", [file for file in lost if file.wire not in held])
        ended, kernel.ended = kernel.ended, []
        for wire in ended:
            if wire.outcome == "refused" and wire.waits != "refused":
                self.judge_answer(wire)
            elif wire.outcome == "dropped":
                starved = now in (self.listener.starved_at, kernel.starved_at)
                starved = starved or options.head_timeout == 0
                if wire.heir is not None:
                    late = now - wire.got >= options.queue_timeout - MOMENT
                    late = late and wire.waits in ("rest", "inbox")
                    told = wire.data and not (wire.reset or starved)
                    demand(not told, wire, "was dropped at rest, and had asked")
                    starved = starved or late or wire.orphan or self.stop_at <= now
                    kernel.note("rest closed because of", "time" if late else "more")
                elif not wire.stream:
                    starved = starved or self.is_silent_for_too_long(wire)
                demand(wire.fin or wire.reset or starved, wire, "was dropped for nothing")
            wire.waits = None
        demand(heads <= options.max_pending_heads, "too many heads:", heads)
        demand(queued <= options.max_queued, "too many are queued:", queued)
        self.heads_before = heads
        for inbox in inboxes:
            for parcel in inbox.messages:
                if parcel.wire.waits != "inbox":
                    parcel.wire.waits, parcel.wire.since = "inbox", now
        return deadlines

    def check_processes(self, now: float) -> list[tuple[float, object]]:
        """Slots have their processes, and processes their time."""
        options, ran = self.options, self.kernel.ran
        blurred = self.kernel.stalls > 0  # of time not run, the ledger may count less than we do
        slack = self.kernel.stalls * LONGEST_STEP + BLUR
        beat = every(options.timeout)
        deadlines: list[tuple[float, object]] = []
        serving = self.stop_at == math.inf
        for number, seen in enumerate(self.slots):
            worker = seen.worker
            late = seen.corrects and worker and not seen.successor and serving
            demand(not late, "slot", number, "has no successor of the right class")
            if worker is None:
                due = seen.due
                if not serving:
                    content = self.lines[number].queue
                    seen.needed = min(seen.needed, now) if content else math.inf
                    due = max(due, seen.needed + RETRY)
                if not self.quick and not self.time_over:
                    demand(due > now - MOMENT, "slot", number, "has no process")
                    deadlines.append((due, "a start"))
        for worker in self.processes:
            if worker.killed or not worker.alive:
                continue
            deadline = None
            if worker.aborted is not None:
                deadline = worker.aborted + ABORT_GRACE
            elif worker.quit_said is not None:
                deadline = worker.quit_said + QUIT_GRACE
            elif worker.replaced is not None:
                deadline = self.quit_at(worker)
            if deadline is not None:
                deadline > now - MOMENT or broken(worker, "was to end", now - deadline, "s ago")
                deadlines.append((deadline, worker))
            if worker.replaced is not None:
                worker.knows_its_end or broken(worker, "was not told that it is replaced")
            if deadline is not None or self.quick or worker.knows_its_end:
                continue
            if worker.known_ready is None:
                limits = [worker.started + options.boot_timeout]
            elif options.timeout:
                limits = [worker.beaten + 2 * beat + options.timeout]  # one until it is seen
            else:
                limits = []
            for limit in limits:
                ran <= limit + slack or broken(worker, "was not seen to", ran, limit)
                if not blurred:
                    deadlines.append((now + limit - ran + BLUR, worker))
        return deadlines

    def check_accepting(self, now: float, timeout: float) -> None:
        """Accepting pauses only when starved, and is resumed."""
        listener = self.listener
        on = listener.fd in self.kernel.watched
        demand(self.announced or not on, "it accepts before all workers are ready")
        if not listener.open or not self.announced:
            return
        on != self.ledger.waiting.paused or broken("accepting pauses, or not:", on)
        if not on:
            starving = now < listener.starved_at + RETRY + MOMENT
            demand(starving, "accepting pauses")
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
            for worker in self.processes:
                if worker.alive and worker.known_ready is not None:
                    told = worker.knows_its_end or worker.doomed
                    demand(told, worker, "was not told to end")

    # -- the whole of it ----------------------------------------------------------------------

    def run(self) -> None:
        """Let it happen."""
        kernel = self.kernel
        status = None
        while status is None:
            try:
                status = self.master.run()
            except Replaced:
                self.go_on()
        kernel.say("the master ends with", status)
        demand(status == self.status, "it ended with", status, "not", self.status)
        for worker in self.workers.values():
            demand(not worker.alive, worker, "is left behind")
        for trial in self.trials:
            demand(trial.collected, trial, "is left behind")
        late = kernel.now - self.stop_by - (kernel.stalled - self.stalled_before)
        late -= QUIT_GRACE + ABORT_GRACE
        demand(late <= LAST_BREATH, "the stop took", late, "s too long")
        demand(not kernel.files or kernel.files.keys() <= self.left_open(), "descriptors leak")
        counted = self.master._dispatcher.counters
        for what, number in self.handed_back.items():
            demand(counted[what] == number, "it counted", counted[what], what, "not", number)
        own = [worker.own for worker in self.workers.values()]
        passed_on = sum(inbox.passed_on for inbox in {*self.made, *own})
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
