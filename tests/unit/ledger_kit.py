"""The master's decisions without a master: what is decided is carried out as far as it is about
starting processes, and the rest is there to be looked at."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sticky.master.agenda import LONGEST_STEP, Abort, Kill, Rules, Say, Serves, Spawn, Tell
from sticky.master.ledger import Ledger
from sticky.options import Options
from sticky.topology import Topology

RULES = Rules(
    num=2,
    head_timeout=5.0,
    max_pending_heads=3,
    max_queued=4,
    queue_timeout=6.0,
    boot_timeout=20.0,
    timeout=8.0,
    graceful_timeout=30.0,
)


class Book:
    """A ledger, the time, and a shell that starts a process for each Spawn: p0, p1, p2 ...

    Attributes:
        published: the slots of which was said that somebody else serves them; see ``take``.
    """

    def __init__(self, **rules: Any) -> None:
        self.rules = RULES._replace(**rules)
        self.counters: Counter[str] = Counter()
        self.topology = Topology(Options(num=self.rules.num, seed=bytes(8)))
        self.ledger = Ledger(self.rules, self.topology, self.counters)
        self.agenda, self.lives = self.ledger.agenda, self.ledger.lives
        self.waiting = self.ledger.waiting
        self.published: list[int] = []
        self.now = 100.0
        self.started = 0
        self.ledger.start(self.now)

    def decided(self):
        """What was decided since the last time; of Serves only the slots are kept."""
        actions = self.agenda.take()
        self.published += [action.slot for action in actions if isinstance(action, Serves)]
        return [action for action in actions if not isinstance(action, Serves)]

    def take(self):
        """The same, with the processes started."""
        done = []
        while actions := self.decided():
            for action in actions:
                done.append(action)
                if isinstance(action, Spawn):
                    self.lives.spawned(f"p{self.started}", action.slot, self.now)
                    self.started += 1
        return done

    def ready(self, *processes):
        for process in processes:
            self.lives.ready(process, self.now)
        return self.take()

    def serving(self):
        """Every worker is ready."""
        self.take()
        self.ready(*(f"p{number}" for number in range(self.rules.num)))
        return self

    def after(self, seconds):
        """Time passes, in steps in which nothing is missed."""
        done = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + LONGEST_STEP / 4)
            self.ledger.tick(self.now)
            done += self.take()
        return done

    def jump(self, seconds):
        """The master does not run for this long."""
        self.now += seconds
        self.ledger.tick(self.now)
        return self.take()

    def ended(self, process, status=3, *, said_why=False):
        self.ledger.ended(process, self.now, status, said_why=said_why)
        return self.take()

    def reload(self):
        self.lives.reload(self.now)
        return self.take()

    def leaving(self, process):
        self.lives.leaving(process, self.now)
        return self.take()

    def scale(self, num):
        self.ledger.scale(num, self.now)
        return self.take()

    def line(self, slot):
        return self.waiting.lines[slot]

    def queue(self, slot, *connections, starved=False, rest=False):
        line = slot if not isinstance(slot, int) else self.line(slot)
        for connection in connections:
            self.waiting.queue(connection, line, self.now, starved=starved, rest=rest)
        return self.take()

    def place(self, connection):
        """Where a connection is; None when not here."""
        found = [place for place, _, one, _ in self.waiting.places() if one == connection]
        assert len(found) <= 1
        return found[0] if found else None

    def roster(self, slot):
        """Who serves a slot, and who did before."""
        return self.lives.current(slot), self.lives.previous(slot)

    def wait(self):
        """Seconds until something is due."""
        return self.agenda.due - self.now

    def stop(self, *, quick=False):
        self.ledger.stop(self.now, quick=quick)
        done = self.take()
        self.ledger.listeners_closed()
        return done + self.take()


def kills(actions):
    """Who is to die, gently or not."""
    return [action.process for action in actions if isinstance(action, Kill | Abort)]


def told(actions, what=Tell.END):
    """Who is told this."""
    return [action.process for action in actions if isinstance(action, Say) and action.what is what]
