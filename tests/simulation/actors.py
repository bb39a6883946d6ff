"""Who lives around the master: clients, and workers that start, serve, hang and die."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sticky import channel

from .kernel import Control, Flag, Wire, demand

if TYPE_CHECKING:
    from .history import World

LIMIT = 1024
"""The longest head, in bytes."""


class Client:
    """Connects, sends its head in one piece or several (or never all of it), and may leave.

    A head is the number of its slot, some letters and a line end; "!" begins a malformed one, "?"
    one without the header. What the master can tell from the bytes is in World.route.
    """

    def __init__(self, world: World, wire: Wire) -> None:
        self.world, self.wire = world, wire
        self.rng = world.rng
        self.steps: list[tuple[float, Callable[..., object], tuple[bytes, ...]]] = []
        wire.on_answer = self.answered

    def connect(self) -> None:
        rng, wire, weather = self.rng, self.wire, self.world.weather
        head = b"%d%s\n" % (wire.slot, b"x" * rng.randrange(12))
        fate = rng.random()
        if fate < weather.bad_heads:
            wire.wrong, head = rng.choice(
                ((400, b"!bad\n"), (400, b"?\n"), (400, b"\x16\x03\x01"), (431, b"0" * LIMIT))
            )
            if not self.world.proxy and wire.wrong:
                wire.wrong = None  # then nobody looks at it
        pieces = [head]
        if rng.random() < weather.slow_heads:
            cut = sorted(rng.sample(range(len(head) + 1), min(3, len(head))))
            pieces = [head[a:b] for a, b in zip([0, *cut], [*cut, len(head)], strict=True)]
            if rng.random() < 0.4:
                pieces.pop()  # and never ends
        if rng.random() < weather.eager:
            pieces[-1] += b"body"
        delay = 0.0
        for number, piece in enumerate(pieces):
            if number or rng.random() < 0.3:
                delay = rng.choice((0.0, 0.01, 0.05, 0.5, 3.0))
            self.steps.append((delay, wire.send, (piece,)))
            delay = 0.0
        if rng.random() < weather.half_closers:
            self.steps.append((rng.choice((0.0, 0.0, 0.3, 2.0)), wire.shut, ()))
        if rng.random() < weather.leavers:
            at = rng.randrange(len(self.steps) + 1)
            self.steps.insert(at, (rng.choice((0.0, 0.01, 0.3, 2.0)), wire.leave, ()))
        self.act()
        self.world.listener.connect(wire)

    def act(self) -> None:
        """The steps that come without delay; then the next one has its time."""
        while self.steps and self.wire.place != "ended" and not self.wire.reset:
            delay, step, arguments = self.steps.pop(0)
            if delay:
                self.steps.insert(0, (0.0, step, arguments))
                self.world.kernel.at(delay, self.act)
                return
            step(*arguments)

    def answered(self) -> None:
        """It was refused: it reads why and closes, or leaves at once, or does nothing at all."""
        wire, rng = self.wire, self.rng
        self.world.kernel.say(wire, "is answered", wire.answer)
        if rng.random() < 0.7:
            delay = rng.choice((0.0, 0.01, 0.1, 1.0))
            self.world.kernel.at(delay, rng.choice((wire.shut, wire.leave)))


class Worker:
    """One worker process of a slot."""

    def __init__(self, world: World, slot: int, pid: int) -> None:
        self.world, self.slot, self.pid = world, slot, pid
        self.kernel, self.rng = world.kernel, world.rng
        self.inbox = world.inboxes[slot]
        self.alive = True
        self.status: int | None = None
        self.ending = False
        self.quitting = False
        self.ready = False  # it has said so
        self.hung_until = 0.0
        self.not_begun: list[Wire] = []
        self.begun: list[Wire] = []
        self.picking = False
        # What the master has been told, and when, on the clock that runs only while it does.
        self.known_ready: float | None = None
        self.ready_at = 0.0
        self.started = self.kernel.ran
        self.pinged = 0.0
        self.unanswered: float | None = None
        self.told: list[int] = []
        self.killed = False
        self.replaced: float | None = None  # when its successor was ready
        self.failure_status = 3
        self.right_class: str | None = None
        self.pidfd: Flag | None = None
        self.control = Control(self.kernel)
        self.control.hear = self.hear
        self.control.seen = self.seen
        self.boot()

    def __repr__(self) -> str:
        return f"worker {self.pid} of slot {self.slot}"

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
        if self.world.worker_class != self.world.right_class:
            self.later(delay, self.fail, 4, self.world.right_class)
            return
        fate = rng.random()
        if not self.world.announced:
            fate *= 5  # or most histories would end before they have begun
        if fate >= weather.bad_boots:
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
        self.failure_status, self.right_class = status, right_class
        why = {"reason": "it cannot", "status": status, "worker_class": self.right_class}
        self.control.say(channel.FAILED, why)
        self.die(status)

    def is_ready(self) -> None:
        rng, weather = self.rng, self.world.weather
        self.ready = True
        self.control.say(channel.READY)
        self.inbox.readers.append(self.wake)
        self.wake()
        if rng.random() < weather.deaths:
            fate = rng.choice((self.crash, self.crash, self.retire, self.hang))
            self.later(rng.choice((0.0, 0.1, 0.5, 3.0, 12.0)), fate)

    def crash(self) -> None:
        self.die(self.rng.choice((1, -9, -11, 0)))

    def retire(self) -> None:
        self.kernel.say(self, "ends by itself")
        self.end()

    def hang(self) -> None:
        pause = self.rng.choice((0.3, 2.0, 10.0, 1e9))
        self.kernel.say(self, "hangs for", pause, "s")
        self.hung_until = self.kernel.now + pause
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
        for wire in (*self.not_begun, *self.begun):
            wire.move("worker", "ended", "lost with its worker")
        if self.ready:
            self.inbox.readers.remove(self.wake)
        # Its descriptors are closed, and then it can be waited for: in this order, soon after.
        self.control.end()
        if self.rng.random() < 0.5:
            self.ended()
        else:
            self.kernel.at(0.01, self.ended)

    def ended(self) -> None:
        if self.pidfd is not None:
            self.pidfd.raise_()

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        self.kernel.at(self.rng.choice((0.0, 0.01, 0.02)), self.die, -9)

    # -- connections --------------------------------------------------------------------------

    def wake(self) -> None:
        if not self.picking:
            self.picking = True
            self.later(self.rng.choice((0.0, 0.01, 0.03)), self.pick_up)

    def pick_up(self) -> None:
        self.picking = False
        while self.inbox.messages and not self.ending and self.has_room():
            wire = self.inbox.take()
            self.not_begun.append(wire)
            self.later(self.rng.choice((0.0, 0.01, 0.1)), self.begin, wire)
            if self.rng.random() < 0.3:
                self.wake()
                return

    def has_room(self) -> bool:
        return len(self.not_begun) < self.world.options.prefetch

    def begin(self, wire: Wire) -> None:
        self.not_begun.remove(wire)
        self.begun.append(wire)
        arrived = len(wire.prefix) + len(wire.data)
        demand(arrived == wire.sent, wire, "reached its worker without all its bytes")
        if self.rng.random() < self.world.weather.long_requests:
            self.later(self.rng.choice((1.0, 5.0, 20.0)), self.finish, wire)
        else:
            self.later(self.rng.choice((0.0, 0.01, 0.05, 0.2)), self.finish, wire)
        self.wake()

    def finish(self, wire: Wire) -> None:
        demand(wire.slot == self.slot, wire, "was served by", self)
        demand(wire.answer is None, wire, "was served and refused")
        self.begun.remove(wire)
        self.world.served[self.slot] += 1
        gone = wire.fin or wire.reset or self.ending or channel.CLOSING in self.told
        if gone or not self.world.proxy or self.rng.random() >= self.world.weather.shared:
            wire.move("worker", "ended", "served")
        else:
            self.next_request(wire)
        self.end_when_done()

    def next_request(self, wire: Wire) -> None:
        """Another client's request comes over the same connection; it is read before it is known
        whose it is."""
        wire.slot = self.rng.randrange(self.world.options.num)
        wire.prefix = b"%d%s\n" % (wire.slot, b"y" * self.rng.randrange(9))
        wire.data.clear()
        wire.sent = len(wire.prefix)
        if wire.slot == self.slot:
            self.not_begun.append(wire)
            self.begin(wire)
        else:
            wire.waits = wire.answer = None
            wire.move("worker", "moving")
            self.control.say(channel.HAND_BACK, wire)

    # -- what it is told ----------------------------------------------------------------------

    def hear(self, kind: int) -> None:
        """The master says something; it is read when there is time."""
        self.told.append(kind)
        self.control.unread += 1
        if kind == channel.PING:
            self.pinged = self.kernel.ran
            if self.unanswered is None:
                self.unanswered = self.kernel.ran
        self.world.told(self, kind)
        self.later(self.rng.choice((0.0, 0.0, 0.02)), self.obey, kind)

    def obey(self, kind: int) -> None:
        if not self.ready:
            self.later(0.1, self.obey, kind)  # it reads nothing before it is
            return
        self.control.unread -= 1
        if kind == channel.PING:
            self.control.say(channel.PONG, {})
        elif kind == channel.CLOSING:
            if self.rng.random() < self.world.weather.deaths / 3:
                self.later(self.rng.choice((0.01, 0.1)), self.crash)
        elif kind == channel.END:
            self.end()
        elif kind == channel.QUIT:
            self.later(self.rng.choice((0.0, 0.1)), self.die, 0)

    def end(self) -> None:
        self.ending = True
        self.end_when_done()

    def end_when_done(self) -> None:
        if self.ending and not (self.not_begun or self.begun):
            self.later(0.01, self.die, 0)

    def seen(self, kind: int) -> None:
        """The master has read what this worker said."""
        if kind == channel.READY and not self.killed:
            self.known_ready = self.pinged = self.kernel.ran
            self.ready_at = self.kernel.now
            self.world.is_ready(self)
        elif kind == channel.PONG:
            self.unanswered = None


class Weather:
    """How likely what is in one history: drawn once, so that some are calm and some are not."""

    def __init__(self, rng: random.Random) -> None:
        def often(*choices: float) -> float:
            return rng.choice(choices)

        self.bad_heads = often(0, 0.05, 0.3)
        self.slow_heads = often(0, 0.2, 0.7)
        self.eager = often(0, 0.3)
        self.half_closers = often(0, 0.1, 0.4)
        self.leavers = often(0, 0.1, 0.4)
        self.bad_boots = often(0, 0, 0.05, 0.3)
        self.slow_boots = often(0, 0, 0.3)
        self.deaths = often(0, 0.3, 0.9)
        self.long_requests = often(0, 0.1, 0.6)
        self.stall = often(0, 0, 0.02, 0.1)
        self.starvation = often(0, 0, 0.5)
        self.reloads = often(0, 0, 0.5)
        self.shared = often(0, 0.3, 0.7)

    def __repr__(self) -> str:
        return json.dumps(vars(self))
