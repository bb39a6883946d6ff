"""One history that is not drawn: a connection that moves, and a fault at one of its steps.

A step is any change of the world (something arrives, a worker goes on, a client sends) or a turn
of the master. Only how long a worker takes for what is drawn, always the same.
"""

from __future__ import annotations

import math
import signal
from dataclasses import replace

from sticky.options import Options

from .actors import LIMIT, Client, Weather
from .history import World
from .kernel import LARGE, Code, Request, Wire

OTHERS = (0.5, 0.55, 0.6, 0.6, 0.62, 0.64, 0.66)
"""When the connections come that are in its way, in slot 1."""
FAULTS = ("crash 0", "crash 1", "FIN", "RST", "TERM", "INT", "HUP")
UPGRADE_FAULTS = (*FAULTS, "TTIN", "USR2", "the trial dies")


class _Scripted(Client):
    """Sends what it is told to send."""

    def connect(self) -> None:
        self.act()
        self.world.listener.connect(self.wire)


class Cramped(World):
    """Hardly a descriptor is free, and processes die with what lies in their inboxes."""

    def draw(self) -> None:
        super().draw()
        self.spare, self.weather.stall = 2, 0.0
        self.weather.deaths, self.weather.busy = 0.9, 0.2


class Restless(World):
    """Processes die early and late, and the master often does not run."""

    def draw(self) -> None:
        super().draw()
        self.spare, self.weather.stall = 1000, 0.1
        self.weather.deaths, self.weather.bad_boots = 0.9, 0.0


class Scene(World):
    """A connection's requests belong to slots 0, 1, 0 and 1: it moves three times, with a small, a
    large and no prefix, to a slot whose inbox is free, full and free.

    Args:
        fault: one of FAULTS; None to see how it is without.
        step: after how many steps it comes.
    """

    def __init__(
        self, code: Code, fault: str | None = None, step: int = 0, *, trace: bool = False
    ) -> None:
        self.fault = fault
        super().__init__(1, code, trace=trace)
        self.kernel.after_step = lambda now: self.strike() if fault and now == step else None

    def draw(self) -> None:
        self.weather = Weather(self.rng)
        for name in vars(self.weather):
            setattr(self.weather, name, 0)
        self.options = Options(
            num=2,
            proxy=True,
            worker_class="eventlet",
            seed=b"12345678",
            max_head_size=LIMIT,
            prefetch=1,
            graceful_timeout=10.0,
            keep_alive=1.0,
        )
        self.spare, self.capacity, self.control_capacity = 1000, 1, 100

    def _write_upgrades(self) -> None:
        """None."""

    def _write_script(self) -> None:
        self.mover = self.make_wire(self.key_of(0))
        client = self.play(self.mover, [(0, 0), (1, 5), (0, 2 * LARGE), (1, 0)], 0.5)
        # The second comes with the first, half of the third after the second was served, ...
        first, second, third, fourth = (_bytes(request) for request in self.mover.requests)
        send = self.mover.send
        client.steps = [
            (0.0, send, (first + second,)),
            (0.0, None, (1,)),
            (0.0, send, (third,)),
            (0.0, None, (3,)),
            (0.1, send, (fourth,)),
        ]
        for moment in OTHERS:
            wire = self.make_wire(self.key_of(1))
            other = self.play(wire, [(1, 0)], moment)
            other.steps = [(0.0, wire.send, (_bytes(wire.request),))]
        self.kernel.at(3.0, self.send_signal, signal.SIGTERM)

    def play(self, wire: Wire, requests: list[tuple[int, int]], moment: float) -> Client:
        wire.requests = []
        for slot, body in requests:
            head = b"%d %d GET\n" % (self.key_of(slot), body)
            wire.requests.append(Request(self.key_of(slot), None, head, len(head) + body))
        client = _Scripted(self, wire)
        self.kernel.at(moment, client.connect)
        return client

    def strike(self) -> None:
        fault = self.fault
        self.kernel.say("now comes", fault)
        if fault in ("FIN", "RST"):
            if self.mover.place != "ended":
                (self.mover.shut if fault == "FIN" else self.mover.leave)()
        elif fault == "STOP 0":  # the slot's worker does not run for a while
            for worker in [w for w in self.workers.values() if w.slot == 0 and w.alive]:
                worker.hung_until = self.kernel.moment(20)
        elif fault == "the trial dies":
            for trial in self.trials:
                trial.die(-9)
        elif fault in ("TERM", "INT", "HUP", "TTIN", "USR2"):
            self.send_signal(signal.Signals[f"SIG{fault}"])
        else:
            slot = int(fault.split()[1])
            for worker in [w for w in self.workers.values() if w.slot == slot and w.alive]:
                worker.die(-9)


class RestingScene(Scene):
    """Four connections of slot 0 are at rest when its process is replaced. They pass to the
    successor, through an inbox that is full most of the time, and send their second requests."""

    def draw(self) -> None:
        super().draw()
        self.options = replace(self.options, keep_alive=75.0, queue_timeout=1.0)

    def _write_script(self) -> None:
        resting = []
        for number in range(4):
            wire = self.make_wire(self.key_of(0))
            resting.append(wire)
            client = self.play(wire, [(0, 0), (0, 5)], 0.5 + number / 100)
            first, second = (_bytes(request) for request in wire.requests)
            client.steps = [(0.0, wire.send, (first,)), (3.0, wire.send, (second,))]
        self.mover = resting[1]
        for moment in (1.5, 1.51, 1.51, 1.52, 1.52, 1.53, 1.53, 1.55, 1.55, 1.6):
            wire = self.make_wire(self.key_of(0))
            other = self.play(wire, [(0, 0)], moment)
            other.steps = [(0.0, wire.send, (_bytes(wire.request),))]
        self.kernel.at(1.5, self.send_signal, signal.SIGHUP)
        self.kernel.at(6.0, self.send_signal, signal.SIGTERM)


class UpgradeScene(Scene):
    """The master replaces its code while one connection's head is awaited, others wait in the queue
    of a slot whose inbox is full, lie in it, and are being refused; one rests in the process of
    slot 0, whose successor starts."""

    def draw(self) -> None:
        super().draw()
        self.options = replace(self.options, keep_alive=75.0, queue_timeout=2.0)

    def _write_script(self) -> None:
        self.mover = self.comes(0, 0.5, b"%d 0", b" GET\n", pause=0.8)
        self.comes(0, 0.51, b"%d 0 GET\n", b"%d 0 GET\n", pause=1.2)
        bad = self.comes(1, 0.69, b"?\n")
        bad.requests = [Request(self.key_of(1), 400, b"?\n", 2)]
        for number in range(8):
            self.comes(1, 0.7 + number / 100, b"%d 0 GET\n")
        self.kernel.at(0.6, self.send_signal, signal.SIGUSR2)
        self.kernel.at(0.46, self.send_signal, signal.SIGHUP)
        for moment in (0.76, 0.8, 0.9):
            self.comes(0, moment, b"%d 0 GET\n")
        self.kernel.at(4.0, self.send_signal, signal.SIGTERM)

    def comes(self, slot: int, moment: float, *pieces: bytes, pause: float = 0.0) -> Wire:
        """A connection that sends this, the second piece after a pause."""
        wire = self.make_wire(self.key_of(slot))
        requests = sum(piece.startswith(b"%d") for piece in pieces)
        client = self.play(wire, [(slot, 0)] * max(1, requests), moment)
        sent = [piece.replace(b"%d", b"%d" % self.key_of(slot)) for piece in pieces]
        pauses = (0.0, pause)
        client.steps = [(pauses[n], wire.send, (piece,)) for n, piece in enumerate(sent)]
        return wire

    def try_code(self, path: str, command: list[str], *more: object, **how: object) -> int:
        self.tried_at = self.kernel.steps - 1
        return super().try_code(path, command, *more, **how)

    def reap(self, pid: int) -> int:
        if self.stop_at == math.inf:  # the last one that was replaced, when all is over
            self.done_at = self.kernel.steps + 1
        return super().reap(pid)

    def draw_trial(self) -> tuple[float, str]:
        return 0.13, "yes"

    def draw_change(self) -> tuple[bool, float]:
        return False, 0.05

    def meet_signals(self) -> None:
        """What comes is the fault."""


def _bytes(request: Request) -> bytes:
    return request.head + bytes(97 + i % 26 for i in range(request.size - len(request.head)))
