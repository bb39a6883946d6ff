"""What a master leaves to the one that takes its place: the same actions follow."""

from __future__ import annotations

import enum
import io
import json
import os
import random
from collections import Counter

import pytest

from sticky import board, channel
from sticky.board import Board
from sticky.errors import StickyError
from sticky.master.agenda import (
    CloseListeners,
    Deliver,
    Kill,
    Place,
    ReadBack,
    Rules,
    Spawn,
    Stage,
    Watch,
)
from sticky.master.dispatcher import Dispatcher
from sticky.master.held import Connection
from sticky.master.ledger import Ledger
from sticky.master.queues import Line
from sticky.master.roster import Process
from sticky.master.state import FORMAT, Copy, Packed, Packing, Unopened
from sticky.options import Options
from sticky.topology import Topology

RULES = Rules(num=3, max_pending_heads=6, max_queued=8, queue_timeout=4.0, timeout=6.0)


def plain(thing, seen=None):
    """All that a thing consists of, to be compared: objects by their attributes."""
    seen = seen if seen is not None else {}
    if isinstance(thing, dict):
        return [[plain(key, seen), plain(value, seen)] for key, value in thing.items()]
    if isinstance(thing, (list, tuple)):
        return [plain(one, seen) for one in thing]
    if isinstance(thing, (int, float, str, bytes, bytearray, type(None), enum.Enum)):
        return thing
    if id(thing) in seen:
        return f"<{type(thing).__name__} {seen[id(thing)]}>"
    seen[id(thing)] = len(seen)
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    known = {name: getattr(thing, name) for name in slots} | getattr(thing, "__dict__", {})
    return [type(thing).__name__, plain(dict(sorted(known.items())), seen)]


def state_of(ledger):
    """All that a ledger knows. What is due is looked at anew by one that was restored."""
    waiting, lives = ledger.waiting, ledger.lives
    line_of = waiting.queues.line_of  # in no order that means anything
    kept = {"line_of": {one: (line.slot, line.process) for one, line in line_of.items()}}
    parts = (waiting, waiting.queues, lives.roster, lives._rounds, lives._patience)
    known = {*map(id, parts), id(lives._ends), id(ledger.agenda), id(lives.topology)}
    known |= {id(lives.counters), id(line_of)}
    for part in parts:
        for key, value in vars(part).items():
            if id(value) not in known and not callable(value):
                kept[f"{type(part).__name__}.{key}"] = plain(value)
    return kept, ledger._now, ledger._stop_by, ledger._over, ledger.status


class World:
    """A ledger, and what happens to it: decided by a number alone and by the ledger's state."""

    def __init__(self, seed: int) -> None:
        self.topology = Topology(Options(num=RULES.num, seed=b"sameseed"))
        self.counters = Counter()
        self.ledger = Ledger(RULES, self.topology, self.counters)
        self.random = random.Random(seed)
        self.now = 100.0
        self.count = 0  # of connections and processes
        self.dying: list[int] = []
        self.done: list[object] = []

    def upgraded(self) -> World:
        """The same in a new master: everything went through JSON."""
        packed, connections = json.loads(json.dumps(self.ledger.pack()))
        other = World(0)
        cells = other.topology._cells
        cells[0], cells[1] = self.topology.num, self.topology.epoch
        other.topology.restore(self.topology.pack())
        other.counters.update(self.counters)
        other.ledger.restore(packed, connections)
        other.ledger.agenda.due = self.ledger.agenda.due
        other.random.setstate(self.random.getstate())
        other.now, other.count, other.dying = self.now, self.count, list(self.dying)
        return other

    def new(self) -> int:
        self.count += 1
        return self.count

    # -- the shell ------------------------------------------------------------------------------

    def perform(self) -> None:
        ledger = self.ledger
        while actions := ledger.agenda.take():
            for action in actions:
                self.done.append(
                    [type(action).__name__, *(repr(part) for part in action)],
                )
                match action:
                    case Spawn(slot) if ledger.lives.announced and self.random.random() < 0.1:
                        ledger.lives.not_started(slot, self.now)
                    case Spawn(slot):
                        ledger.lives.spawned(self.new(), slot, self.now)
                    case Kill(process, _):
                        self.dying.append(process)
                    case Place(connection):
                        slot = self.random.randrange(self.topology.num)
                        line = ledger.waiting.lines[slot]
                        ledger.waiting.queue(connection, line, self.now)
                    case ReadBack(line) if line.process is None:
                        found = [(self.new(), self.now - 1.0, self.random.random() < 0.2)]
                        if line.slot < self.topology.num:
                            ledger.waiting.return_(line, found, self.now)
                    case Deliver(line):
                        self.deliver(line)
                    case CloseListeners():
                        ledger.listeners_closed()

    def deliver(self, line: Line) -> None:
        waiting = self.ledger.waiting
        while line.open and (connection := line.first) is not None:
            if self.random.random() < 0.4:
                waiting.blocked(line, self.now, starved=self.random.random() < 0.3)
                return
            waiting.delivered(connection, line)

    # -- what happens ---------------------------------------------------------------------------

    def happen(self) -> None:
        """One event, and what it leads to."""
        connects, ready = (self.connects,) * 3, (self.becomes_ready,) * 2
        others = (self.is_decided, self.leaves, self.room, self.ends, self.operator)
        event = self.random.choice((*connects, *ready, *others, self.time_passes))
        event()
        self.perform()

    def connects(self) -> None:
        waiting, now = self.ledger.waiting, self.now
        how = self.random.random()
        if how < 0.4:
            waiting.awaiting(self.new(), now)
        elif how < 0.8:
            line = waiting.lines[self.random.randrange(self.topology.num)]
            rest, starved = self.random.random() < 0.2, self.random.random() < 0.1
            waiting.queue(self.new(), line, now, rest=rest, starved=starved)
        elif previous := [
            process
            for slot in self.ledger.lives.numbers
            if (process := self.ledger.lives.previous(slot)) is not None
        ]:
            line = waiting.own(previous[0], self.ledger.lives.slot_of(previous[0]))
            waiting.queue(self.new(), line, now)

    def is_decided(self) -> None:
        waiting = self.ledger.waiting
        heads = [one for kind, _, one, _ in waiting.places() if kind == "head"]
        if heads:
            one = self.random.choice(heads)
            waiting.decided(one)
            waiting.queue(one, waiting.lines[self.random.randrange(self.topology.num)], self.now)

    def leaves(self) -> None:
        waiting = self.ledger.waiting
        held = [one for _, _, one, _ in waiting.places()]
        how = self.random.random()
        if how < 0.2:
            waiting.starved(self.now)
        elif how < 0.4:
            waiting.crowded(self.now)
        elif held:
            waiting.left(self.random.choice(held))

    def room(self) -> None:
        for line in self.ledger.waiting.watched():
            self.ledger.waiting.room(line)
            return

    def processes(self, *states: Process) -> list[int]:
        lives = self.ledger.lives
        return [one for one in lives.roster.workers if lives.state_of(one) in states]

    def becomes_ready(self) -> None:
        starting = self.processes(Process.STARTING)
        if starting:
            self.ledger.lives.ready(starting[0], self.now)
        for one in self.processes(Process.READY):
            if self.random.random() < 0.8:
                self.ledger.lives.heard(one, int(self.now * 2), self.now)

    def ends(self) -> None:
        alive = self.processes(Process.READY, Process.STARTING, Process.DRAINING)
        draining = self.processes(Process.DRAINING)
        one = None
        if self.dying:
            one = self.dying.pop(0)
        elif draining:
            one = draining[0]
        elif alive and self.random.random() < 0.3 and self.ledger.lives.announced:
            one = self.random.choice(alive)
        if one in alive:
            self.ledger.ended(one, self.now, again=self.random.random() < 0.1)

    def operator(self) -> None:
        lives, now = self.ledger.lives, self.now
        how = self.random.random()
        ready = self.processes(Process.READY)
        if how < 0.3:
            lives.reload(now)
        elif how < 0.5:
            self.ledger.scale(self.random.randint(1, 5), now)
        elif how < 0.7:
            lives.replace(self.random.randrange(self.topology.num), now)
        elif ready and how < 0.85:
            lives.leaving(self.random.choice(ready), now)
        elif ready:
            lives.worn(self.random.choice(ready), now)

    def time_passes(self) -> None:
        self.now += self.random.choice((0.01, 0.06, 0.5, 1.0, 3.0))
        self.ledger.tick(self.now)


@pytest.mark.parametrize("seed", range(60))
def test_the_same_actions_follow_in_the_next_master(seed: int) -> None:
    world = World(seed)
    world.ledger.start(world.now)
    world.perform()
    for _ in range(world.random.randrange(200)):
        world.happen()
    assert world.ledger.stage is Stage.SERVING
    other = world.upgraded()
    assert state_of(other.ledger) == state_of(world.ledger)
    world.done.clear()
    for step in range(150):
        world.happen()
        other.happen()
        assert other.done == world.done, step
    for each in (world, other):
        each.ledger.stop(each.now)
        each.perform()
        each.ledger.inboxes(set())
        each.perform()
    assert other.done == world.done
    assert state_of(other.ledger) == state_of(world.ledger)


def test_what_is_watched_is_what_was_watched() -> None:
    """The watches themselves are the loop's, and do not outlive it."""
    for seed in range(30):
        world = World(seed)
        world.ledger.start(world.now)
        world.perform()
        watched = {}
        for _ in range(150):
            before = len(world.done)
            world.happen()
            for name, *parts in world.done[before:]:
                if name == Watch.__name__:
                    watched[parts[0].partition(":")[0]] = parts[1]
        for line in world.ledger.waiting.watched():
            assert watched[repr(line).partition(":")[0]] == "True"


def packed_by(packing: Packing, content) -> Copy:
    file = os.fdopen(packing.write(content), "rb")
    file.seek(0)
    return Copy(json.loads(file.readline()), file)


def test_pieces_come_back_in_their_order() -> None:
    packing = Packing()
    pieces = [b"GET / HTTP/1.1\r\n\n\0", b"", b"\xff" * 100_000, b"{}"]
    lengths = [packing.piece(piece) for piece in pieces]
    packed = packed_by(packing, {"lengths": lengths})
    assert packed.content["lengths"] == lengths
    assert [packed.piece(length) for length in lengths] == pieces
    packed.close()


def test_pieces_that_are_missing_or_too_many_are_noticed() -> None:
    packed = Copy({"format": FORMAT}, io.BytesIO(b"1234"))
    packed.piece(1)
    with pytest.raises(StickyError, match="of 4 bytes of a connection 3 are there"):
        packed.piece(4)
    packed = Copy({"format": FORMAT}, io.BytesIO(b"1234"))
    packed.piece(3)
    with pytest.raises(StickyError, match="more bytes of connections than connections"):
        packed.close()


@pytest.mark.parametrize("other", [FORMAT + 1, None, "1"])
def test_another_format_is_refused(other: object) -> None:
    with pytest.raises(StickyError, match="the state is of format"):
        Packed({"format": other}, io.BytesIO())


def test_what_has_no_place_in_this_code_is_refused() -> None:
    world = World(1)
    packed, _ = world.ledger.pack()
    packed["lives"]["roster"]["slots"][0]["mood"] = "good"
    with pytest.raises(StickyError, match="does not know mood"):
        World(2).ledger.restore(packed, [])


def test_more_connections_than_places_are_refused() -> None:
    packed, _ = World(1).ledger.pack()
    with pytest.raises(ValueError, match="more connections"):
        World(2).ledger.restore(packed, [1])


class Stub:
    """A dispatcher's connections, and nothing else of it."""

    def __init__(self) -> None:
        options = Options(seed=b"sameseed")
        topology = Topology(options)
        self.dispatcher = Dispatcher(
            options,
            topology,
            Ledger(RULES, topology, Counter()),
            inboxes=[],
            own_inboxes={},
            register=lambda *_: None,
            unregister=lambda _: None,
            clock=lambda: 0.0,
            counters=Counter(),
            next_slot=lambda: 0,
        )


def test_connections_come_back_as_they_were() -> None:
    held = [
        Connection(Unopened(5), ("192.0.2.1", 4711), b"GET / HTTP/1.1\r\n\0\xff", 3),
        Connection(Unopened(6), ("2001:db8::1", 1, 0, 2)),
        Connection(Unopened(7), "", b"x" * 100_000),
        Connection(Unopened(8), ("192.0.2.1", 2)),
    ]
    held[1].kind, held[2].unheld, held[3].since = channel.REST, True, 123_456
    before, after, packing = Stub(), Stub(), Packing()
    before.dispatcher.notices.tell("tls", "told once")
    packed = packed_by(packing, {"all": before.dispatcher.pack(held, packing)})
    assert packing.fds == [5, 6, 7, 8]
    found = after.dispatcher.restore(packed.content["all"], packed)
    names = [name for name in Connection.__slots__ if name != "sock"]
    for old, new in zip(held, found, strict=True):
        assert [getattr(old, name) for name in names] == [getattr(new, name) for name in names]
        assert old.sock.fileno() == new.sock.fileno()
    assert after.dispatcher.pack(found, Packing()) == before.dispatcher.pack(held, Packing())
    packed.close()


def test_the_rows_of_the_counters_are_given_on() -> None:
    before = Board()
    rows = [before.give() for _ in range(5)]
    before.take_back(rows[1])
    after = Board(os.dup(before.fd))
    after.restore({rows[0], rows[2], rows[3], rows[4]})
    assert after.give() == rows[1]
    assert after.give() == rows[4] + 1
    before.close()
    after.close()


def test_a_layout_that_has_more_fits_and_another_one_does_not() -> None:
    ours = board.layout()
    assert board.fits(ours)
    assert board.fits({**ours, "worker": ours["worker"][:-1]})
    assert not board.fits({**ours, "worker": [*ours["worker"], "moods"]})
    assert not board.fits({**ours, "cells": 64})
    assert not board.fits({**ours, "master": ours["master"][::-1]})
    assert json.loads(json.dumps(ours)) == ours


def test_the_version_that_we_send_is_one_that_we_understand() -> None:
    assert channel.VERSION in channel.SPOKEN
