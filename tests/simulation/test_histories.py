"""The master over a simulated kernel: seeded histories in which anything may happen at any step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from .history import World, run, trace
from .kernel import Code
from .scene import FAULTS, RestingScene, Scene

# What a connection that moves can meet, and in how many of 1000 histories it has to be met.
EVENTS = {
    "hand back": 200,
    "hand back of much": 50,
    "hand back of a 400": 4,
    "hand back has to wait": 2,
    "hand back starved": 2,
    "hand back in a stop": 40,
    "hand back by one that ends": 8,
    "hand back in a reload": 10,
    "queue after a move": 50,
    "refused after a move": 80,
    "served after 1 moves": 100,
    "served after 2 moves": 50,
    "served after 3 moves": 20,
    "503 after a move, because of moves": 50,
    "503 after a move, because of time": 10,
    "503 after a move, because of a stop": 30,
    "503 after a move, because of crowds": 3,
    "crash before a hand back": 20,
    "crash with a hand back in flight": 20,
    "crash after a hand back, before it is served": 20,
    "crash with a moved connection in the inbox": 12,
    "rest with an heir": 8,
    "rest without an heir": 8,
    "rest after a move": 1,
    "taken on at rest": 8,
    "another worker class in a reload": 10,
}
for step, number in {
    "worker": 40,
    "worker again": 10,
    "leaving": 2,
    "moving": 5,
    "queue again": 2,
    "inbox again": 10,
    "refused again": 40,
}.items():
    EVENTS |= {f"FIN {step}": number, f"RST {step}": number}


def test_every_promise_is_kept_in_every_history(seeds):
    code = Code()
    outcomes: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for seed in seeds:
        world = run(seed, code)
        outcomes += world.outcomes()
        events.update(set(world.kernel.events))
    if len(seeds) >= 1000:
        rare = {event for event in EVENTS if events[event] * 1000 < EVENTS[event] * len(seeds)}
        assert not rare, events
    # Histories in which nothing happens would keep every promise.
    for outcome in ("served", "refused", "dropped", "left", "lost with its worker"):
        assert outcomes[outcome] > len(seeds) // 100, outcomes
    assert outcomes["served"] > len(seeds), outcomes


def test_a_seed_always_tells_the_same_history():
    code = Code()
    for seed in range(20):
        assert trace(seed, code) == trace(seed, code)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_connection_that_moves_meets_a_fault_at_every_step(fault):
    code = Code()
    scene = Scene(code)
    scene.run()
    assert (scene.mover.served, scene.mover.moves) == (4, 3)
    assert scene.kernel.events["queue after a move"] == 1
    assert scene.kernel.events["hand back of much"] == 1
    outcomes = set()
    for step in range(scene.kernel.steps + 1):
        struck = Scene(code, fault, step)
        try:
            struck.run()
        except Exception as error:
            error.add_note(f"{fault} after {step} steps")
            raise
        outcomes.add(struck.mover.outcome)
        if fault in ("FIN", "RST", "HUP"):  # which are nothing to the others
            assert all(wire.served for wire in struck.wires if wire is not struck.mover), step
    assert len(outcomes) > 1  # it has had some effect


@pytest.mark.parametrize("fault", FAULTS)
def test_connections_at_rest_meet_a_fault_at_every_step_on_their_way_to_the_successor(fault):
    code = Code()
    scene = RestingScene(code)
    scene.run()
    assert all(wire.served == len(wire.requests) for wire in scene.wires)
    assert scene.kernel.events["taken on at rest"] == 4
    assert scene.kernel.events["rest after a move"] >= 1
    outcomes = set()
    for step in range(scene.kernel.steps + 1):
        struck = RestingScene(code, fault, step)
        try:
            struck.run()
        except Exception as error:
            error.add_note(f"{fault} after {step} steps")
            raise
        outcomes |= {wire.outcome for wire in struck.wires}
        if fault in ("FIN", "RST"):
            assert all(wire.served for wire in struck.wires if wire is not struck.mover), step
    assert len(outcomes) > 1


# One line of the source each, and what it would break.
MUTANTS = {
    "a connection waits in a queue without a deadline": (
        "ledger",
        "waiting.queue[connection] = self._remind(now + self.rules.queue_timeout)",
        "waiting.queue[connection] = now + self.rules.queue_timeout",
    ),
    "accepting is never resumed": (
        "ledger",
        "if self._paused and self._queued <= self.rules.max_queued // 2:",
        "if self._paused and self._queued < 0:",
    ),
    "accepting never pauses": (
        "ledger",
        "if self._queued >= self.rules.max_queued and not self._paused:",
        "if self._queued >= 2 * self.rules.max_queued and not self._paused:",
    ),
    "accepting is resumed after starvation, whatever is queued": (
        "ledger",
        "            if not self._paused:\n",
        "            if True:\n",
    ),
    "a queue is delivered from its end": (
        "ledger",
        "next(iter(self.queues[slot] or self.resting[slot]), None)",
        "next(reversed(self.queues[slot] or self.resting[slot]), None)",
    ),
    "a full inbox is not watched": (
        "ledger",
        "        else:\n            self.actions.append(WatchInbox(slot, True))",
        "        else:\n            self.actions.append(WatchInbox(slot, False))",
    ),
    "workers are told to end while heads are awaited": (
        "ledger",
        "if not filled and not self._heads and not self._queued:",
        "if not filled and not self._queued:",
    ),
    "workers are told to end while connections lie in inboxes": (
        "ledger",
        "if not filled and not self._heads and not self._queued:",
        "if not self._heads and not self._queued:",
    ),
    "a slot that was not needed when the stop began never is": (
        "ledger",
        "slot.start_at = self._remind(self._now)",
        "slot.start_at = None",
    ),
    "each quick stop gives workers more time": (
        "ledger",
        "self._remind(min(self._stop_by, now + QUIT_GRACE))",
        "self._remind(now + QUIT_GRACE)",
    ),
    "time in which the master did not run counts": (
        "ledger",
        "return now - self._missed - max(0.0, now - self._now - LONGEST_STEP)",
        "return now - self._missed",
    ),
    "a worker that answers is killed": (
        "ledger",
        "            worker.owes = None\n\n",
        "            pass\n\n",
    ),
    "a worker that hangs is never killed": (
        "ledger",
        "elif self._answer_by(worker) <= now:",
        "elif self._answer_by(worker) < 0:",
    ),
    "the back-off does not grow": ("ledger", "slot.backoff * 2 or BACKOFF_FIRST", "BACKOFF_FIRST"),
    "the back-off is not reset": ("ledger", "BACKOFF_FIRST if lived else slot", "slot"),
    "a failing start before the others are ready is tried again": (
        "ledger",
        "elif not started and not self.announced:",
        "elif not started and self.announced is None:",
    ),
    "the server is announced again after a restart": (
        "ledger",
        "            self.announced = True\n",
        "",
    ),
    "the master leaves before a process that was replaced has ended": (
        "ledger",
        "if self.stage is Stage.ENDING and not self._workers and not starting:",
        "if self.stage is Stage.ENDING and not starting:",
    ),
    "a second reload starts a second successor": (
        "ledger",
        "            if self._replacing is None:\n                self._replace_next()",
        "            self._replace_next()",
    ),
    "a process that was replaced goes on": (
        "ledger",
        "            self._end(old)\n",
        "",
    ),
    "a process that was replaced may take for ever to end": (
        "ledger",
        "            return worker.end_by\n",
        "            return None\n",
    ),
    "the others are started again when the first worker is": (
        "ledger",
        "if other.state is Slot.BACKOFF and other.start_at is None:",
        "if True:",
    ),
    "what a worker said before it died is not read": (
        "master",
        "continue  # it died with",
        "return  # it died with",
    ),
    "a connection moves without the bytes that were read": (
        "dispatcher",
        "            connection.prefix,\n",
        "",
    ),
    "an overdue head is answered and stays": (
        "ledger",
        "if self._heads.pop(connection, None) is not None:",
        "if connection in self._heads:",
    ),
    "two descriptors' events in a turn meet the same connection": (
        "master",
        "if book.actions:  # or the next",
        "if False:  # or the next",
    ),
    "a process that cannot be started ends the master": (
        "master",
        "except OSError as error:  # no memory",
        "except ZeroDivisionError as error:  # no memory",
    ),
    "a newcomer overtakes the queue": (
        "dispatcher",
        "if slot >= 0 and not queues[slot]:",
        "if slot >= 0:",
    ),
    "a connection is handed over while its events are still wanted": (
        "dispatcher",
        "        self._unregister(connection.sock.fileno())\n        self._undecided",
        "        self._undecided",
    ),
    "moves are not counted": ("dispatcher", "message.moves + 1, message", "message.moves, message"),
    "moves are forgotten on the way": ("dispatcher", "moves=connection.moves,", "moves=0,"),
    "moves have no limit": ("dispatcher", "if moves > self._max_moves:", "if False:"),
    "the last move is refused": (
        "dispatcher",
        "if moves > self._max_moves:",
        "if moves >= self._max_moves:",
    ),
    "one that moved too often is not counted": (
        "dispatcher",
        '            self.counters["moved_too_often"] += 1\n',
        "",
    ),
    "one that moved too often is closed without a word": (
        "dispatcher",
        "self._refuse(connection, status)",
        "self._refuse(connection, status) if status == 400 else sock.close()",
    ),
    "the prefix is lost in the master": (
        "dispatcher",
        "inbox, fd, address, payload, moves, unheld",
        "inbox, fd, address, b'', moves, unheld",
    ),
    "the prefix is lost in the queue": (
        "dispatcher",
        "Connection(sock, address, payload, moves)",
        "Connection(sock, address, b'', moves)",
    ),
    "the prefix is doubled in the master": (
        "dispatcher",
        "inbox, fd, address, payload, moves, unheld",
        "inbox, fd, address, payload * 2, moves, unheld",
    ),
    "a prefix loses its end": (
        "dispatcher",
        "            connection.prefix,\n",
        "            connection.prefix[:100],\n",
    ),
    "what is handed back goes to the first slot": (
        "dispatcher",
        "inbox = self._inboxes[slot]",
        "inbox = self._inboxes[0]",
    ),
    "what is handed back overtakes the queue": (
        "dispatcher",
        "if slot >= 0 and not self._ledger.queues[slot]:",
        "if slot >= 0:",
    ),
    "what is handed back with a bad head is closed without a word": (
        "dispatcher",
        "self._refuse(connection, status)",
        "self._refuse(connection, status) if status == 503 else sock.close()",
    ),
    "what is handed back in a stop is refused": (
        "dispatcher",
        "elif self._ledger.stage not in (Stage.ENDING, Stage.OVER):",
        "elif self._ledger.stage is Stage.SERVING:",
    ),
    "what is handed back after the end is placed": (
        "dispatcher",
        "elif self._ledger.stage not in (Stage.ENDING, Stage.OVER):",
        "else:",
    ),
    "workers are told to end while a hand back is on its way": (
        "master",
        "                self._on_control(key, sys.maxsize)  # what was handed back",
        "                pass  # what was handed back",
    ),
    "what a worker handed back before it died is lost": (
        "master",
        "        self._on_control(key, sys.maxsize)  # what it said last",
        "        pass  # what it said last",
    ),
    "a client that leaves a queue is not noticed": (
        "dispatcher",
        "rest=rest)\n        self._watch_queued(connection)",
        "rest=rest)",
    ),
    "no descriptors are kept for what is handed back": (
        "master",
        "        self._give_reserve()\n        try:",
        "        try:",
    ),
    "nobody makes room for what is handed back": (
        "master",
        "not self._keep_reserve() and self._ledger.crowded(time.monotonic())",
        "not self._keep_reserve() and False",
    ),
    "a large prefix waits until there are descriptors": (
        "master",
        "                self._give_reserve()  # a large",
        "                pass  # a large",
    ),
    "who has asked nothing is answered": (
        "dispatcher",
        "if not handle.prefix and self._is_silent(sock):",
        "if False:",
    ),
    "a connection at rest waits as one with a request": (
        "dispatcher",
        "rest = connection.kind == channel.REST",
        "rest = False",
    ),
    "a connection at rest overtakes those with a request": (
        "dispatcher",
        "if not (self._ledger.queues[slot] or self._ledger.resting[slot]):",
        "if True:",
    ),
    "a connection at rest is handed over as one with a request": (
        "dispatcher",
        "            connection.kind,\n",
        "            channel.CONNECTION,\n",
    ),
    "a connection at rest goes back to the process that gave it away": (
        "master",
        "return None if serving in (None, process) else process.slot",
        "return process.slot",
    ),
    "a connection at rest is passed on in a stop": (
        "dispatcher",
        "if slot is None or self._ledger.stage is not Stage.SERVING:",
        "if slot is None:",
    ),
    "a connection at rest waits for ever": (
        "ledger",
        "            for connection in _overdue(slot.resting, now):\n",
        "            for connection in ():\n",
    ),
    "connections at rest stay when the server stops": (
        "ledger",
        "            for connection in list(resting):\n",
        "            for connection in ():\n",
    ),
    "connections at rest count for max_queued": (
        "ledger",
        "        if rest:\n",
        "        self._queued += rest\n        if rest:\n",
    ),
    "what is passed on from the queue is not counted": (
        "dispatcher",
        '            self.counters["passed_on"] += connection.kind == channel.REST\n',
        "",
    ),
    "two worker classes send the app to each other for ever": (
        "ledger",
        "self.stage is Stage.SERVING and not worker.corrected",
        "self.stage is Stage.SERVING",
    ),
    "a successor that names another class ends the reload": (
        "ledger",
        "            if again:\n                slot.corrects = True",
        "            if False:\n                slot.corrects = True",
    ),
    "what a worker says that it has become is forgotten": (
        "master",
        "            self._worker_class = str(found)\n",
        "",
    ),
    "the backlog is thrown away in a graceful stop": ("dispatcher", "1000 if drain else 0", "0"),
}


# In which some of them were met, to save the time of looking for them: they are rare.
RARE = (308, 187, 761, 221, 595, 166, 5976)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_would_be_noticed_if(mutant):
    module, old, new = MUTANTS[mutant]
    code = Code({module: (old, new)})
    worlds: list[Callable[[], World]] = [partial(World, seed, code) for seed in RARE]
    if "at rest" in mutant:
        steps = range(0, 400, 3)
        faults = ("FIN", "TERM", "STOP 0")
        worlds += [partial(RestingScene, code, fault, at) for at in steps for fault in faults]
    worlds += [partial(World, seed, code) for seed in range(3000)]
    for world in worlds:
        try:
            world().run()
        except Exception:
            return
    pytest.fail("it was not noticed")
