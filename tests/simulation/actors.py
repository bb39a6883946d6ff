"""Who lives around the master: clients, and workers that start, serve, hang and die."""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sticky import channel
from sticky.heartbeat import every
from sticky.master.waiting import LAST_HEAD
from sticky.rules import NEED_MORE

from .kernel import LARGE, Control, Flag, Inbox, News, Parcel, Pipe, Request, Wire, demand

if TYPE_CHECKING:
    from .history import World

LIMIT = 1024
"""The longest head, in bytes."""
BODY = bytes(97 + (i + i // 26) % 26 for i in range(2 * LARGE))
"""No two bytes are like their neighbours, so that none can be lost or change places."""
KEYS = 12
"""So many clients are told apart by what they send."""


def nothing() -> None:
    """What follows from what concerns nobody."""


class Client:
    """Connects, sends requests in one piece or several (or never all of it), and may leave.

    It is a proxy that shares its connection between clients: each request may belong elsewhere. A
    head is a number that says whose it is, the length of the body, some letters, perhaps the id of
    a session, and a line end; "!" begins a malformed one, "?" one without the header. What the
    master can tell from the bytes is in World.route.
    """

    def __init__(self, world: World, wire: Wire) -> None:
        self.world, self.wire = world, wire
        self.rng = world.rng
        self.steps: list[tuple[float, Callable[..., object] | None, tuple[Any, ...]]] = []
        self.waiting = False  # for an answer, before it goes on
        self.moves_left = -1  # until it vanishes
        self.first_key = wire.request.key
        wire.on_answer = self.answered
        wire.on_served = self.served
        wire.on_move = self.moved

    def connect(self) -> None:
        rng, wire, weather = self.rng, self.wire, self.world.weather
        number = rng.choice((2, 3, 5, 8)) if rng.random() < weather.shared else 1
        wire.requests = []
        for _ in range(number if self.world.proxy else 1):
            key = rng.randrange(KEYS) if wire.requests else self.first_key
            wire.requests.append(self.draw_request(key))
            if wire.requests[-1].wrong:
                break
        for number, request in enumerate(wire.requests):
            if number and rng.random() >= weather.pipelined:
                self.steps.append((0.0, None, (number,)))
                pauses = (0.3, 1.0, 3.0) if weather.sessions else (0.0, 0.01, 0.3)
                self.steps.append((rng.choice(pauses), wire.send, (b"",)))
            self.send(request, whole=number < len(wire.requests) - 1)
        if rng.random() < weather.half_closers:
            self.steps.append((rng.choice((0.0, 0.0, 0.3, 2.0)), wire.shut, ()))
        if rng.random() < weather.leavers:
            at = rng.randrange(len(self.steps) + 1)
            self.steps.insert(at, (rng.choice((0.0, 0.01, 0.3, 2.0)), wire.leave, ()))
        if rng.random() < weather.leavers:
            self.moves_left = rng.randrange(3, 18)
        self.act()
        self.world.listener.connect(wire)

    def draw_request(self, key: int) -> Request:
        rng, weather = self.rng, self.world.weather
        if rng.random() < weather.bad_heads and self.world.proxy:
            bad = [(400, b"!bad\n"), (400, b"?\n"), (431, b"0" * LIMIT)]
            if not self.wire.requests:
                bad.append((400, b"\x16\x03\x01"))
            wrong, head = rng.choice(bad)
            return Request(key, wrong, head, len(head))
        body = rng.choice((1, 20, 2 * LARGE)) if rng.random() < weather.bodies else 0
        method = rng.choice((b"GET", b"PUT", b"POST", b"OPTIONS"))
        session = bool(self.wire.requests) and rng.random() < weather.sessions
        if session and not self.wire.requests[0].wrong:
            key = self.first_key  # and the id leads to the same slot
            method += b" %d.%d" % (key, self.wire.number)
        head = b"%d %d %s\n" % (key, body, method)
        return Request(key, None, head, len(head) + body, session)

    def send(self, request: Request, *, whole: bool) -> None:
        rng, weather = self.rng, self.world.weather
        head = request.head
        pieces = [head]
        if rng.random() < weather.slow_heads:
            cut = sorted(rng.sample(range(len(head) + 1), min(3, len(head))))
            pieces = [head[a:b] for a, b in zip([0, *cut], [*cut, len(head)], strict=True)]
            if rng.random() < 0.4 and not whole:
                pieces.pop()  # and never ends
        body = BODY[: request.size - len(head)]
        if rng.random() < 0.3 and body:
            pieces.append(body)
        else:
            pieces[-1] += body
        delay = 0.0
        for number, piece in enumerate(pieces):
            if number or rng.random() < 0.3:
                delay = rng.choice((0.0, 0.01, 0.05, 0.5, 3.0))
            self.steps.append((delay, self.wire.send, (piece,)))
            delay = 0.0

    def act(self) -> None:
        """The steps that come without delay; then the next one has its time."""
        while self.steps and self.wire.place != "ended" and not self.wire.reset:
            delay, step, arguments = self.steps[0]
            if delay:
                self.steps[0] = (0.0, step, arguments)
                self.world.kernel.at(delay, self.act)
                return
            if step is None and self.wire.served < arguments[0]:
                self.waiting = True
                return
            self.steps.pop(0)
            if step is not None:
                step(*arguments)

    def served(self) -> None:
        """One more of its requests was."""
        if self.waiting:
            self.waiting = False
            self.world.kernel.at(0.0, self.act)

    def moved(self) -> None:
        """Its connection is somewhere else now; some leave at just that step."""
        self.moves_left -= 1
        if self.moves_left == 0:
            delay = self.rng.choice((0.0, 0.0, 0.01, 0.02))
            self.world.kernel.at(delay, self.rng.choice((self.vanish, self.wire.shut)))

    def vanish(self) -> None:
        if self.wire.place != "ended":
            self.wire.leave()

    def answered(self) -> None:
        """It was refused: it reads why and closes, or leaves at once, or does nothing at all."""
        wire, rng = self.wire, self.rng
        self.world.kernel.say(wire, "is answered", wire.answer)
        if rng.random() < 0.7:
            delay = rng.choice((0.0, 0.01, 0.1, 1.0))
            self.world.kernel.at(delay, rng.choice((wire.shut, wire.leave)))


class Held:
    """A connection in a worker, and what was read of it and not used."""

    def __init__(self, parcel: Parcel) -> None:
        self.wire, self.prefix, self.moves, rest, self.unheld, _ = parcel
        self.buffer = bytearray(self.prefix)
        self.first = not rest  # the master chose who serves this request
        self.asks = False  # but whether its session is held here is to be looked at
        self.state = "looking"  # then serving or leaving
        self.woken = False  # it will be looked at
        self.patience = 10  # how often its body is asked for
        self.timed: object = None  # what its time is running for
        self.right = False  # its request is to be served here


class Worker:
    """One worker process of a slot."""

    def __init__(
        self,
        world: World,
        slot: int,
        pid: int,
        worker_class: str,
        row: int,
        own: Inbox,
        news: News,
    ) -> None:
        self.world, self.slot, self.pid, self.row = world, slot, pid, row
        self.worker_class = self.asked_class = worker_class
        self.generation = world.generation
        self.kernel, self.rng = world.kernel, world.rng
        self.inbox, self.own = world.inboxes[slot], own
        self.alive = True
        self.collected = False
        self.status: int | None = None
        self.closing = False
        self.ending = False
        self.ready = False  # it has said so
        self.hung_until = 0.0
        self.stopped = False  # it does not even hear SIGABRT
        self.not_begun: list[Held] = []
        self.begun: list[Held] = []
        self.picking = False
        self.looking = world.sessions or world.num > 1  # at further requests of a connection
        self.lingers = False  # the sessions that it holds are asked for
        # What the master has been told, and when, on the clock that runs only while it does.
        self.known_ready: float | None = None
        self.ready_at = 0.0
        self.started = self.kernel.ran
        self.beaten = 0.0
        self.mail: deque[int] = deque()  # what it was sent and has not read
        self.told: set[int] = set()
        self.owed: deque[int] = deque()  # what it was to be told, and there was no room
        self.draining = False  # it is to end because the server does
        self.quit_said: float | None = None
        self.aborted: float | None = None
        self.killed = False
        self.unneeded = False  # its slot was none any more, before it was ready
        self.by_design = False  # killed without having had its time
        self.leaving: float | None = None  # since when it asks to be replaced
        self.replaced: float | None = None  # when its successor was ready
        self.changed = 0.0  # when it became, or was no more, one to be asked for sessions
        self.failed = False  # it said why it cannot start
        self.failure_status = 3
        self.right_class: str | None = None
        self.corrected = False  # it is of the class that the one before it has named
        self.news = news
        self.pidfd: Flag | None = None
        self.control = Control(self.kernel)
        self.control.capacity = world.control_capacity
        self.control.hear = self.hear
        self.control.seen = self.seen
        self.control.back = partial(world.takes_back, self)
        self.control.rest = partial(world.takes_rest, self)
        own.number, own.worker = slot, self
        own.is_read = lambda: not self.collected
        self.boot()

    def __repr__(self) -> str:
        return f"worker {self.pid} of slot {self.slot}"

    @property
    def knows_its_end(self) -> bool:
        """Whether it was told to end, or is to be."""
        return channel.END in self.told or channel.END in self.owed

    @property
    def doomed(self) -> bool:
        """Whether it was sent what it will die of."""
        return self.killed or self.aborted is not None

    @property
    def is_hopeless(self) -> bool:
        """Whether it said that it cannot start, or did not do so in time."""
        return self.known_ready is None and (self.failed or self.aborted is not None)

    @property
    def serves(self) -> bool:
        """Whether it is ready to, as far as the master can know."""
        return self.known_ready is not None and not self.killed and self.aborted is None

    def later(self, delay: float, what: Callable[..., object], *arguments: Any) -> None:
        """Do something after this time, if then alive; hung, when it hangs no longer."""

        def do() -> None:
            if not self.alive:
                return
            if self.hung_until > self.kernel.now:
                if self.hung_until < 1e9:
                    self.kernel.at(self.hung_until - self.kernel.now, do)
                return
            what(*arguments)

        self.kernel.at(delay, do)

    # -- its life -----------------------------------------------------------------------------

    def boot(self) -> None:
        rng, weather = self.rng, self.world.weather
        delay = rng.choice((0.02, 0.1, 0.3))
        right = self.world.right_class
        if self.worker_class == "auto" and right == "asgi":
            self.worker_class = right  # which needs no patching, so it goes on as that
        if self.worker_class != right:
            self.later(delay, self.fail, 4, right)
            return
        fate = rng.random()
        bad = weather.bad_boots
        if self.world.options.reload and not self.world.announced:
            bad = weather.bad_code / (1 + self.generation)
        elif not self.world.announced:
            fate *= 5  # or most histories would end before they have begun
        elif self.slot >= self.world.num and fate < weather.deaths / 4:
            self.later(delay, self.die, rng.choice((1, -9, -11)))
            return
        if fate >= bad:
            if rng.random() < weather.slow_boots:
                delay = self.world.options.boot_timeout * rng.choice((0.5, 0.9, 1.0, 1.1))
            self.later(delay, self.is_ready)
            return
        fate = rng.choice(("fails", "dies", "hangs"))
        if fate == "fails":
            self.later(delay, self.fail, rng.choice((3, 4)))
        elif fate == "dies":
            self.later(delay, self.die, rng.choice((1, -9, -11)))

    def fail(self, status: int, right_class: str | None = None) -> None:
        self.failed, self.failure_status, self.right_class = True, status, right_class
        why = {"reason": "it cannot", "status": status, "worker_class": self.right_class}
        self.control.say(channel.FAILED, why)
        self.die(status)

    def is_ready(self) -> None:
        rng, weather = self.rng, self.world.weather
        self.ready = True
        self.beat()
        self.control.say(channel.READY, {"worker_class": self.worker_class})
        self.inbox.readers.append(self.wake)
        self.own.readers.append(self.wake)
        self.wake()
        if rng.random() < weather.terms:
            self.later(rng.choice((0.0, 0.1, 0.5, 3.0)), self.ask_to_leave)
        if rng.random() < weather.deaths:
            fate = rng.choice((self.crash, self.crash, self.retire, self.hang))
            self.later(rng.choice((0.0, 0.1, 0.5, 3.0, 12.0)), fate)

    def beat(self) -> None:
        """By a timer of its own loop, whatever else it does."""
        self.world.board.beat(self.row)
        self.beaten = self.kernel.ran
        self.later(every(self.world.options.timeout), self.beat)

    def crash(self) -> None:
        if self.alive:
            note = self.kernel.note
            for held in self.begun:
                if held.state == "leaving":
                    note("crash before a hand back")
            if self.control.full or any(kind == channel.HAND_BACK for kind, _ in self.control.said):
                note("crash with a hand back in flight")
            for wire in self.world.wires:
                if wire.handed_back_by is self and wire.moved and wire.place in ("master", "inbox"):
                    note("crash after a hand back, before it is served")
            if any(parcel.wire.moved for parcel in self.inbox.messages):
                note("crash with a moved connection in the inbox")
        self.die(self.rng.choice((1, -9, -11, 0)))

    def retire(self) -> None:
        self.kernel.say(self, "ends by itself")
        self.end()

    def ask_to_leave(self) -> None:
        """It was sent SIGTERM. It goes on until it is told END."""
        if not self.ending:
            self.kernel.say(self, "asks to be replaced")
            self.control.say(channel.LEAVING)

    def hang(self) -> None:
        pause = self.rng.choice((0.3, 2.0, 10.0, 1e9))
        self.kernel.say(self, "hangs for", pause, "s")
        self.hung_until = self.kernel.moment(pause)
        self.stopped = self.rng.random() < 0.5
        if self.rng.random() < 0.1:
            self.die(-9)

    def die(self, status: int) -> None:
        if not self.alive:
            return
        self.kernel.say(self, "ends with", status)
        self.alive = False
        self.status = status
        lost = len(self.not_begun)
        demand(lost <= self.world.options.prefetch, self, "took", lost, "with it")
        for held in (*self.not_begun, *self.begun):
            held.wire.on_stir, held.wire.leaving = nothing, False
            held.wire.move("worker", "ended", "lost with its worker")
        if self.ready:
            self.inbox.readers.remove(self.wake)
            self.own.readers.remove(self.wake)
        # Its descriptors are closed, and then it can be waited for: in this order, soon after.
        self.control.end()
        if self.rng.random() < 0.5:
            self.ended()
        else:
            self.kernel.at(0.01, self.ended)

    def ended(self) -> None:
        if self.pidfd is not None:
            self.pidfd.raise_()

    def abort(self) -> None:
        """SIGABRT."""
        self.aborted = self.kernel.now
        if not self.stopped:
            self.kernel.at(self.rng.choice((0.0, 0.01, 0.5)), self.die, -6)

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        self.kernel.at(self.rng.choice((0.0, 0.01, 0.02)), self.die, -9)

    # -- connections --------------------------------------------------------------------------

    def wake(self) -> None:
        if not self.picking:
            self.picking = True
            busy = self.rng.random() < self.world.weather.busy
            delays = (0.3, 1.0, 3.0) if busy else (0.0, 0.01, 0.03)
            self.later(self.rng.choice(delays), self.pick_up)

    def pick_up(self) -> None:
        self.picking = False
        while self.own.messages:
            held = Held(self.own.take())
            held.asks = True
            self.not_begun.append(held)
            self.begin(held)
        while self.inbox.messages and self.takes_new and self.has_room():
            held = Held(self.inbox.take())
            held.asks = self.world.sessions and not held.unheld and self.others_may_hold
            if held.first:
                self.not_begun.append(held)
                self.later(self.rng.choice((0.0, 0.01, 0.1)), self.begin, held)
            else:
                self.kernel.note("taken on at rest")
                self.not_begun.append(held)
                self.begin(held)
            if self.rng.random() < 0.3:
                self.wake()
                return

    @property
    def takes_new(self) -> bool:
        """Whether what comes for the slot is this process's."""
        replaced = self.world.sessions and self.world.board.is_replaced(self.row)
        return not (self.ending or replaced)

    @property
    def others_may_hold(self) -> bool:
        """Whether another process may hold sessions that lead here."""
        board = self.world.board
        return self.ending or board.has_others(self.row) or bool(self.world.epoch)

    def holds(self, wire: Wire) -> bool:
        """Whether the session of the wire's request is held here."""
        return self.world.holders.get(wire.number) is self

    def has_room(self) -> bool:
        return len(self.not_begun) < self.world.options.prefetch

    def begin(self, held: Held) -> None:
        wire = held.wire
        self.not_begun.remove(held)
        self.begun.append(held)
        arrived = held.prefix + wire.data
        demand(arrived == wire.stream[wire.used :], wire, "reached its worker with", arrived)
        wire.on_stir = partial(self.stirred, held)
        if self.world.proxy:
            self.look(held)
        else:
            self.serve(held)
        self.wake()

    def stirred(self, held: Held) -> None:
        """Something came over a connection, or its client has left."""
        if held.state == "looking" and not held.woken:
            held.woken = True
            self.later(self.rng.choice((0.0, 0.0, 0.01)), self.look, held)

    def look(self, held: Held) -> None:
        """Read, and look whose request it is: to be served here, or handed back."""
        held.woken = False
        if held not in self.begun or held.state != "looking":
            return
        wire, rng = held.wire, self.rng
        if wire.reset:
            self.close(held, "left")
            return
        size = len(wire.data) if rng.random() < 0.7 else rng.randrange(len(wire.data) + 1)
        held.buffer += wire.read(size)
        verdict = self.world.verdict(bytes(held.buffer))
        looking = self.looking
        odds = self.world.weather.disagreement
        if verdict < 0 and odds:
            odds = 0.5
        if looking and b"\n" in held.buffer and rng.random() < odds:
            self.leave(held)  # whosever it is, good or bad
        elif verdict == NEED_MORE:
            whole = b"\n" in held.buffer + wire.data
            demand(whole or not held.first, wire, "came with half a head")
            self.await_more(held)
        elif verdict < 0:
            demand(wire.wrong == 400, wire, "is refused by", self)
            self.close(held, "refused by its worker")
        elif (held.asks or not held.first) and looking:
            self.place(held, verdict)
        else:
            self.serve(held)

    def place(self, held: Held, slot: int) -> None:
        """Serve a request of which the master has not said that it is to be served here, or have
        it placed."""
        wire, board = held.wire, self.world.board
        session = wire.request.session
        others = self.world.sessions and self.others_may_hold
        if slot != self.slot:
            if session and others and self.holds(wire):
                self.serve(held)
            else:
                self.leave(held, unheld=session and others and held.first)
        elif others and session:
            if self.holds(wire):
                self.serve(held)
            else:
                self.leave(held, unheld=True)
        elif others and not self.closing and (self.ending or board.is_replaced(self.row)):
            self.leave(held)  # a new session would begin in the wrong process
        else:
            self.serve(held)

    def await_more(self, held: Held) -> None:
        """The next head is not complete."""
        wire, options = held.wire, self.world.options
        if wire.data:
            self.stirred(held)
        elif len(held.buffer) >= LIMIT or (wire.fin and held.buffer):
            self.close(held, "refused by its worker")
        elif wire.fin or (self.ending and not held.buffer):
            self.close(held, "served")
        else:
            patience = options.head_timeout if held.buffer else options.keep_alive
            timed = (wire.served, bool(held.buffer))
            if held.timed != timed:
                held.timed = timed
                self.later(patience, self.tire, held, timed)

    def tire(self, held: Held, timed: object) -> None:
        if held in self.begun and held.state == "looking" and held.timed == timed:
            self.close(held, "idle")

    def serve(self, held: Held) -> None:
        held.state = "serving"
        held.right = not self.looking or self.world.slot_of(held.wire.request.key) == self.slot
        if held.first:
            held.right = held.asks or held.wire.destined == self.slot
        self.world.judge_session(held.wire, self, alone=not held.unheld and not held.asks)
        if self.rng.random() < self.world.weather.long_requests:
            self.later(self.rng.choice((1.0, 5.0, 20.0)), self.finish, held)
        else:
            self.later(self.rng.choice((0.0, 0.01, 0.05, 0.2)), self.finish, held)

    def finish(self, held: Held) -> None:
        wire, buffer = held.wire, held.buffer
        demand(held.right or self.holds(wire), wire, "was served by", self)
        demand(wire.answer is None, wire, "was served and refused")
        self.world.served[self.slot] += 1
        if not self.world.proxy:
            self.close(held, "served")
            return
        head, _, _ = bytes(buffer).partition(b"\n")
        size = len(head) + 1 + int(head.split()[1])
        buffer += wire.read(max(0, size - len(buffer)))
        if len(buffer) < size:
            held.patience -= 1
            if wire.fin or wire.reset or not held.patience:
                self.close(held, "left")
            else:
                self.later(0.2, self.finish, held)
            return
        if self.world.sessions and not wire.served:
            self.world.holders[wire.number] = self
        wire.use(bytes(buffer[:size]))
        del buffer[:size]
        if wire.moves:
            self.kernel.note("served after", min(wire.moves, 3), "moves")
        held.first, held.moves, held.patience, held.state = False, 0, 10, "looking"
        held.asks = held.unheld = False
        if self.closing or self.rng.random() < self.world.weather.closers:
            self.close(held, "served")
        else:
            self.look(held)

    def close(self, held: Held, outcome: str) -> None:
        self.forget(held)
        held.wire.move("worker", "ended", outcome)
        self.end_when_done()

    def forget(self, held: Held) -> None:
        self.begun.remove(held)
        held.wire.on_stir, held.wire.leaving = nothing, False

    def leave(self, held: Held, *, unheld: bool = False) -> None:
        """It belongs elsewhere. Between this decision and the message anything may happen."""
        held.state, held.wire.leaving = "leaving", True
        held.wire.on_move()
        self.tempt_fate()
        self.later(self.rng.choice((0.0, 0.0, 0.01, 0.02)), self.hand_back, held, unheld)

    def hand_back(self, held: Held, unheld: bool = False) -> None:
        wire, note = held.wire, self.kernel.note
        if wire.reset and self.rng.random() < 0.3:
            self.close(held, "left")
            return
        if self.control.failing or self.control.full:
            note("hand back", "starved" if self.control.failing else "has to wait")
            self.later(0.05, self.hand_back, held, unheld)
            return
        note("hand back")
        if len(held.buffer) > LARGE:
            note("hand back of much")
        if unheld:
            note("hand back, unheld")
        if wire.wrong:
            note("hand back of a", wire.wrong)
        if self.ending:
            note("hand back by one that ends")
        elif self.world.stop_at < math.inf:
            note("hand back in a stop")
        if self.world.reloading:
            note("hand back in a reload")
        self.forget(held)
        wire.waits, wire.handed_back_by = None, self
        wire.moved += 1
        wire.moves += 1
        wire.move("worker", "moving")
        parcel = Parcel(wire, bytes(held.buffer), held.moves, unheld=unheld)
        self.control.say(channel.HAND_BACK, parcel)
        self.tempt_fate()
        self.end_when_done()

    def pass_on(self, held: Held) -> None:
        """It is at rest, and for the successor."""
        wire, note = held.wire, self.kernel.note
        if self.control.failing or self.control.full:
            self.later(0.05, self.pass_on, held)
            return
        note("rest")
        if wire.data:
            note("rest with something unread")
        self.forget(held)
        wire.waits, wire.heir = None, self.slot
        wire.move("worker", "moving")
        self.control.say(channel.REST, Parcel(wire, b"", 0, True))
        self.tempt_fate()
        self.end_when_done()

    def tempt_fate(self) -> None:
        """The moments in which it would be worst to crash."""
        if self.rng.random() < self.world.weather.deaths / 20:
            self.later(self.rng.choice((0.0, 0.0, 0.01, 0.03)), self.crash)

    # -- what it is told ----------------------------------------------------------------------

    def hear(self, kind: int) -> None:
        """The master says something; it is read when there is time, and in order."""
        demand(self.owed, self, "hears of", kind, "for nothing")
        owed = self.owed.popleft()
        demand(kind == owed, self, "hears of", kind, "before", owed)
        self.told.add(kind)
        self.mail.append(kind)
        self.control.unread += 1
        self.later(self.rng.choice((0.0, 0.0, 0.02)), self.read_mail)

    def is_told(self, kind: int) -> None:
        """The master has decided to tell it something, though there may be no room for it."""
        self.owed.append(kind)
        self.world.told(self, kind)

    def read_mail(self) -> None:
        if not self.ready:
            self.later(0.1, self.read_mail)  # it reads nothing before it is
            return
        kind = self.mail.popleft()
        self.control.unread -= 1
        self.control.stir()
        if kind == channel.CLOSING:
            self.closing = True
            if self.rng.random() < self.world.weather.deaths / 3:
                self.later(self.rng.choice((0.01, 0.1)), self.crash)
        elif kind == channel.END:
            self.end()
        elif kind == channel.QUIT and self.rng.random() >= self.world.weather.deaf:
            self.later(self.rng.choice((0.0, 0.1)), self.die, 0)
        elif kind == channel.RESCALED:
            self.looking = True

    def end(self) -> None:
        if self.ending:  # once more: nobody asks for its sessions now
            self.lingers = False
            self.end_when_done()
            return
        replaced = not self.closing
        self.ending = True
        self.lingers = self.world.sessions and replaced
        self.closing = self.closing or not self.lingers
        for held in list(self.begun):
            if held.state != "looking":
                continue
            if replaced and not held.buffer:
                held.state = "leaving"
                self.later(self.rng.choice((0.0, 0.0, 0.01, 0.02)), self.pass_on, held)
            elif held.buffer or held.wire.data:
                held.timed = "the end"
                self.later(LAST_HEAD, self.tire, held, held.timed)
            else:
                self.close(held, "idle")
        self.end_when_done()

    def end_when_done(self) -> None:
        if not self.ending or self.not_begun or self.begun:
            return
        wires, holders = self.world.wires, self.world.holders
        held = [n for n, who in holders.items() if who is self and wires[n].place != "ended"]
        if self.lingers and held:
            self.later(0.25, self.end_when_done)
        else:
            self.later(0.01, self.die, 0)

    def seen(self, kind: int) -> None:
        """The master has read what this worker said."""
        if kind == channel.READY and self.asked_class == "auto":
            self.world.known_class = self.worker_class
        if kind == channel.READY and self.doomed:
            self.kernel.note("ready, and killed already")
        elif kind == channel.READY:
            self.known_ready = self.beaten = self.kernel.ran
            self.ready_at = self.changed = self.kernel.now
            self.world.is_ready(self)
        elif kind == channel.LEAVING:
            self.world.is_leaving(self)


class Trial:
    """A process that tries the new code of the master.

    Args:
        pid: its number.
        answer: where it says what has come of it.
        delay: seconds that it needs.
        fate: yes, no, or what else it ends with; "late" for one that never says anything.
    """

    def __init__(self, world: World, pid: int, answer: Pipe, delay: float, fate: str) -> None:
        self.world, self.pid, self.answer, self.fate = world, pid, answer, fate
        self.started = world.kernel.now
        self.alive = True
        self.collected = False
        self.status = 0
        self.used = False  # what it has said was acted upon
        answer.held = True
        said = {"yes": {"version": "2"}, "no": {"no": "not that"}}
        self.unsaid = text = json.dumps(said[fate]) if fate in said else ""
        if fate != "late":
            cut = world.luck.randrange(len(text) + 1)
            world.kernel.at(delay, self.say, text[:cut])
            world.kernel.at(delay + world.luck.choice((0.0, 0.05)), self.say, text[cut:])
            world.kernel.at(delay + 0.05, self.die, 0 if text else -9)

    def __repr__(self) -> str:
        return f"trial {self.pid}"

    @property
    def agreed(self) -> bool:
        """Whether the master has read that it could take over, and that this was all."""
        return self.fate == "yes" and self.answer.ended and self.unsaid == ""

    def say(self, text: str) -> None:
        if self.alive:
            self.answer.said += text.encode()
            self.unsaid = self.unsaid[len(text) :]
            self.answer.stir()

    def die(self, status: int) -> None:
        if self.alive:
            self.alive, self.status, self.answer.held = False, status, False
            self.world.kernel.say(self, "ends with", status)
            self.answer.stir()


class Weather:
    """How likely what is in one history: drawn once, so that some are calm and some are not."""

    def __init__(self, rng: random.Random) -> None:
        def often(*choices: float) -> float:
            return rng.choice(choices)

        self.bad_heads = often(0, 0.05, 0.3)
        self.slow_heads = often(0, 0.2, 0.7)
        self.bodies = often(0, 0.3)
        self.half_closers = often(0, 0.1, 0.4)
        self.leavers = often(0, 0.1, 0.4)
        self.bad_boots = often(0, 0, 0.05, 0.3)
        self.slow_boots = often(0, 0, 0.3)
        self.deaths = often(0, 0.3, 0.9)
        self.long_requests = often(0, 0.1, 0.6)
        self.stall = often(0, 0, 0.02, 0.1)
        self.starvation = often(0, 0, 0.5)
        self.reloads = often(0, 0, 0.5)
        self.shared = often(0, 0.5, 0.9)
        self.closers = often(0, 0, 0.1)
        self.pipelined = often(0, 0.3, 1.0)
        self.disagreement = often(0, 0, 0.1, 0.97)
        self.sessions = 0.0
        self.terms = often(0, 0, 0.4)
        self.scaling = often(0, 0, 0.6)
        self.deaf = often(0, 0, 0.3)
        self.busy = often(0, 0, 0.2)
        self.bad_code = often(0, 1.0)

    def move(self) -> None:
        """Much is shared, and little is in the way of it."""
        self.shared, self.bad_boots = 0.9, 0.0

    def rest(self) -> None:
        """Connections stay open between requests, and processes are replaced."""
        self.reloads, self.closers, self.slow_boots, self.bad_heads = 0.8, 0.0, 0.0, 0.0
        self.leavers, self.half_closers = self.leavers / 3, self.half_closers / 3

    def hold(self) -> None:
        """Sessions are held while processes are replaced."""
        self.sessions, self.reloads, self.shared, self.closers = 0.7, 0.8, 0.9, 0.0
        self.deaths, self.disagreement = self.deaths / 3, 0.0
        self.leavers, self.half_closers = self.leavers / 3, self.half_closers / 3

    def __repr__(self) -> str:
        return json.dumps(vars(self))
