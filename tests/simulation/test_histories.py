"""The master over a simulated kernel: seeded histories in which anything may happen at any step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from .history import World, run, trace
from .kernel import Code
from .scene import (
    FAULTS,
    UPGRADE_FAULTS,
    Cramped,
    RestingScene,
    Restless,
    Scene,
    UpgradeScene,
)

# What can be met, and in how many of 1000 histories it has to be.
EVENTS = {
    "hand back": 143,
    "hand back of much": 32,
    "hand back of a 400": 4,
    "hand back has to wait": 2,
    "hand back starved": 2,
    "hand back in a stop": 40,
    "hand back by one that ends": 8,
    "hand back in a reload": 10,
    "queue after a move": 50,
    "refused after a move": 80,
    "served after 1 moves": 100,
    "served after 2 moves": 35,
    "served after 3 moves": 14,
    "503 after a move, because of moves": 28,
    "503 after a move, because of time": 10,
    "503 after a move, because of a stop": 30,
    "503 after a move, because of crowds": 3,
    "crash before a hand back": 13,
    "crash with a hand back in flight": 13,
    "crash after a hand back, before it is served": 20,
    "crash with a moved connection in the inbox": 8,
    "rest with an heir": 8,
    "rest without an heir": 6,
    "rest after a move": 1,
    "taken on at rest": 8,
    "another worker class in a reload": 10,
    "shed": 98,
    "overstayed": 55,
    "read back": 104,
    "back in the queue": 73,
    "leaving": 104,
    "nobody was ready in time": 27,
    "more slots": 28,
    "fewer slots": 27,
    "scaled up": 60,
    "retired": 27,
    "there cannot be more slots": 25,
    "a start of one more slot is tried again": 8,
    "waits for other code": 33,
    "ready, and killed already": 38,
    "hand back, unheld": 13,
    "asked for a session": 12,
    "a session was lost": 4,
    "rest closed because of more": 17,
    "rest answered": 2,
    "upgraded": 25,
    "upgraded with a head": 5,
    "upgraded with a refused one": 5,
    "upgraded with a process before": 3,
    "upgraded with a process that starts": 8,
    "upgraded with a reload": 5,
    "a signal in an upgrade": 12,
}
for step, number in {
    "worker": 40,
    "worker again": 7,
    "leaving": 1,
    "moving": 5,
    "queue again": 2,
    "inbox again": 5,
    "refused again": 40,
}.items():
    EVENTS |= {f"FIN {step}": number, f"RST {step}": number}


FOUND = (102293, 119205, 145079, 145642, 147024, 151779, 1016334, 1041370)
FOUND += (20128178, 20558519, 20822334)
"""Seeds in which the server or the simulation was wrong."""


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


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_disproved_once_is_not_any_more(seed):
    run(seed)


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
    assert scene.kernel.events["queue after a move"] >= 1
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
    assert scene.kernel.events["taken on at rest"] >= 4
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


@pytest.mark.parametrize("fault", UPGRADE_FAULTS)
def test_an_upgrade_meets_a_fault_at_every_step(fault):
    code = Code()
    scene = UpgradeScene(code)
    scene.run()
    assert all(wire.served or wire.answer == 400 for wire in scene.wires)
    events = scene.kernel.events
    for place in ("head", "queue", "refused one", "reload", "process that starts"):
        assert events[f"upgraded with a {place}"] == 1, place
    upgrades = set()
    for step in range(scene.tried_at, scene.done_at):
        struck = UpgradeScene(code, fault, step)
        try:
            struck.run()
        except Exception as error:
            error.add_note(f"{fault} after {step} steps")
            raise
        upgrades.add(struck.kernel.events["upgraded"])
        if fault in ("FIN", "RST", "HUP", "TTIN", "USR2", "the trial dies"):
            others = [wire for wire in struck.wires if wire is not struck.mover]
            assert all(wire.served or wire.answer == 400 for wire in others), step
    sometimes = {"TERM": {0, 1}, "INT": {0, 1}, "USR2": {1, 2}, "the trial dies": {0, 1}}
    assert upgrades == sometimes.get(fault, {1})


@pytest.mark.parametrize("kind", [Cramped, Restless])
def test_promises_are_kept_where_much_is_in_the_way(kind):
    code = Code()
    for seed in range(100):
        kind(seed, code).run()


# One line of the source each, and what it would break.
MUTANTS = {
    "a connection waits in a queue without a deadline": (
        "queues",
        "deadline = self.agenda.remind(now + self.rules.queue_timeout)",
        "deadline = now + self.rules.queue_timeout",
    ),
    "accepting is never resumed": (
        "waiting",
        "            self.agenda.add(Accepting(True))\n",
        "            pass\n",
    ),
    "accepting pauses because many wait": (
        "queues",
        '            self.counters["shed"] += 1\n',
        (
            '            self.counters["shed"] += 1\n'
            "            from .agenda import Accepting\n"
            "            self.agenda.add(Accepting(False))\n"
        ),
    ),
    "more may wait than max_queued": (
        "queues",
        "while self.queued > self.rules.max_queued:",
        "while self.queued > 2 * self.rules.max_queued:",
    ),
    "one that waits for a slot with room is refused for a slot that is flooded": (
        "queues",
        "longest = max(self, key=lambda one: len(one.queue))",
        "longest = min((one for one in self if one.queue), key=lambda one: len(one.queue))",
    ),
    "who comes back from an inbox waits, however many do": (
        "queues",
        "len(queue) + len(resting)\n        self._shed(now)\n",
        "len(queue) + len(resting)\n",
    ),
    "who has waited longest is refused for a newcomer": (
        "queues",
        "self.refuse(next(reversed(longest.queue)), 503, now)",
        "self.refuse(next(iter(longest.queue)), 503, now)",
    ),
    "a queue is delivered from its end": (
        "queues",
        "next(iter(self.queue or self.resting), None)",
        "next(reversed(self.queue or self.resting), None)",
    ),
    "a full inbox is not watched": (
        "queues",
        "        else:\n            self.agenda.add(Watch(line, True))",
        "        else:\n            self.agenda.add(Watch(line, False))",
    ),
    "workers are told to end while heads are awaited": (
        "ledger",
        "if not filled and not waiting.heads and not waiting.queued:",
        "if not filled and not waiting.queued:",
    ),
    "workers are told to end while connections lie in inboxes": (
        "ledger",
        "if not filled and not waiting.heads and not waiting.queued:",
        "if not waiting.heads and not waiting.queued:",
    ),
    "a slot that was not needed when the stop began never is": (
        "lives",
        "belongs there\n                slot.start_at = self.agenda.remind(now)",
        "belongs there\n                slot.start_at = None",
    ),
    "each quick stop gives workers more time": (
        "ends",
        "if worker.step in (Step.NONE, Step.END, Step.QUIT) and not worker.doomed:",
        "if not worker.doomed:",
    ),
    "time in which the master did not run counts": (
        "patience",
        "return now - self._missed - max(0.0, now - self.now - LONGEST_STEP)",
        "return now - self._missed",
    ),
    "time in which the master did not run counts for a beat": (
        "patience",
        "return self._missed + worker.beaten + self._every",
        "return worker.beaten + self._every",
    ),
    "a worker that beats is killed": (
        "patience",
        "        if beats != worker.beats:\n",
        "        if False:\n",
    ),
    "a worker that does not beat any more is taken for one that does": (
        "patience",
        "        if beats != worker.beats:\n",
        "        if True:\n",
    ),
    "what a worker does instead of a beat has less than the whole timeout": (
        "patience",
        "worker.beaten + self._every",
        "worker.beaten",
    ),
    "nobody looks at the beats": (
        "master",
        "            self._lives.heard(key, self._board.beats(child.row), now)\n",
        "            pass\n",
    ),
    "the beats are looked at too rarely": (
        "patience",
        "return min(worker.at, self.now + self._every, self._beat_by(worker))",
        "return min(worker.at, self._beat_by(worker))",
    ),
    "a process that boots is expected to beat": (
        "patience",
        "elif worker.state is Process.READY and self._beat_by",
        "elif worker.state is not Process.DRAINING and self._beat_by",
    ),
    "a worker that hangs is never killed": (
        "patience",
        "elif worker.state is Process.READY and self._beat_by(worker) <= now:",
        "elif worker.state is Process.READY and self._beat_by(worker) < 0:",
    ),
    "the back-off does not grow": (
        "lives",
        "BACKOFF_FIRST if lived else slot.backoff * 2 or BACKOFF_FIRST",
        "BACKOFF_FIRST",
    ),
    "the back-off is not reset": (
        "lives",
        "BACKOFF_FIRST if lived else slot.backoff",
        "slot.backoff",
    ),
    "a failing start before the others are ready is tried again": (
        "lives",
        "elif not started and not self.announced:\n",
        "elif not started and self.announced is None:\n",
    ),
    "the server is announced again after a restart": (
        "scaling",
        "            self.roster.announced = True\n",
        "",
    ),
    "the master leaves before a process that was replaced has ended": (
        "lives",
        "if self.agenda.stage is Stage.ENDING and not self._workers and not starting:",
        "if self.agenda.stage is Stage.ENDING and not starting:",
    ),
    "a second slot is replaced before the first is": (
        "rounds",
        "if slot.spawning or slot.successor is not None:\n                return",
        "if slot.spawning:\n                return",
    ),
    "a process that was replaced goes on": (
        "rounds",
        "        self.ends.end(old)\n",
        "",
    ),
    "a process that was replaced may take for ever to end": (
        "rounds",
        "worker.then(Step.QUIT, self.agenda.remind(by))",
        "pass",
    ),
    "the others are started again when the first worker is": (
        "lives",
        "if other.state is Slot.BACKOFF and other.start_at is None:",
        "if True:",
    ),
    "what a worker said before it died is not read": (
        "hearing",
        "continue  # it died with",
        "return  # it died with",
    ),
    "a connection moves without the bytes that were read": (
        "sending",
        "            connection.prefix,\n",
        "",
    ),
    "an overdue head is answered and stays": (
        "waiting",
        "if self._heads.pop(connection, None) is not None:",
        "if connection in self._heads:",
    ),
    "two descriptors' events in a turn meet the same connection": (
        "loop",
        "                settle()\n",
        "",
    ),
    "a process that cannot be started ends the master": (
        "performing",
        "except OSError as error:  # no memory",
        "except ZeroDivisionError as error:  # no memory",
    ),
    "a newcomer overtakes the queue": (
        "dispatcher",
        "if slot >= 0 and free[slot]:",
        "if slot >= 0:",
    ),
    "a connection is handed over while its events are still wanted": (
        "dispatcher",
        "        self._unregister(connection.sock.fileno())\n        self._undecided",
        "        self._undecided",
    ),
    "moves are not counted": (
        "returning",
        "message.moves + 1, message",
        "message.moves, message",
    ),
    "moves are forgotten on the way": (
        "sending",
        "moves=connection.moves,",
        "moves=0,",
    ),
    "moves have no limit": (
        "returning",
        "if moves > self._max_moves:",
        "if False:",
    ),
    "the last move is refused": (
        "returning",
        "if moves > self._max_moves:",
        "if moves >= self._max_moves:",
    ),
    "one that moved too often is not counted": (
        "returning",
        '            self.counters["moved_too_often"] += 1\n',
        "",
    ),
    "one that moved too often is closed without a word": (
        "returning",
        "            self._refuse(connection, status)\n",
        "            if status == 400:\n                self._refuse(connection, status)\n",
    ),
    "the prefix is lost in the master": (
        "returning",
        "fd, address, payload, moves, since, unheld=unheld",
        "fd, address, b'', moves, since, unheld=unheld",
    ),
    "the prefix is lost in the queue": (
        "returning",
        "Connection(sock, address, message.payload, message.moves)",
        "Connection(sock, address, b'', message.moves)",
    ),
    "the prefix is doubled in the master": (
        "returning",
        "fd, address, payload, moves, since, unheld=unheld",
        "fd, address, payload * 2, moves, since, unheld=unheld",
    ),
    "a prefix loses its end": (
        "sending",
        "            connection.prefix,\n",
        "            connection.prefix[:100],\n",
    ),
    "what is handed back goes to the first slot": (
        "sending",
        "return self._inboxes[line.slot]",
        "return self._inboxes[0]",
    ),
    "what is handed back overtakes the queue": (
        "returning",
        "if line is not None and line.open and not line.queue:",
        "if line is not None and line.open:",
    ),
    "what is handed back with a bad head is closed without a word": (
        "returning",
        "            self._refuse(connection, status)\n",
        "            if status == 503:\n                self._refuse(connection, status)\n",
    ),
    "what is handed back in a stop is refused": (
        "returning",
        "elif self._ledger.stage not in (Stage.ENDING, Stage.OVER):",
        "elif self._ledger.stage is Stage.SERVING:",
    ),
    "what is handed back after the end is placed": (
        "returning",
        "elif self._ledger.stage not in (Stage.ENDING, Stage.OVER):",
        "else:",
    ),
    "workers are told to end while a hand back is on its way": (
        "master",
        "                self._hearing.on_control(key, sys.maxsize)  # what was handed back",
        "                pass  # what was handed back",
    ),
    "what a worker handed back before it died is lost": (
        "hearing",
        "        self.on_control(key, sys.maxsize)  # what it said last",
        "        pass  # what it said last",
    ),
    "a client that leaves a queue is not noticed": (
        "sending",
        "rest=rest):\n            self.watch_queued(connection)",
        "rest=rest):\n            pass",
    ),
    "no descriptors are kept for what is handed back": (
        "hearing",
        "        self._room.give()\n        try:",
        "        try:",
    ),
    "nobody makes room for what is handed back": (
        "room",
        "not self._reserve.keep() and self._waiting.crowded(time.monotonic())",
        "not self._reserve.keep() and False",
    ),
    "a large prefix waits until there are descriptors": (
        "performing",
        "                self._room.empty()  # a large",
        "                pass  # a large",
    ),
    "who has asked nothing is answered": (
        "refusing",
        "if not handle.prefix and self._is_silent(sock):",
        "if False:",
    ),
    "a request that comes while its connection waits at rest is not answered": (
        "queues",
        "        self.refuse(connection, 503, now)\n\n    def sacrifice",
        "        self.forget(connection), self.agenda.add(Drop(connection))\n\n    def sacrifice",
    ),
    "a connection at rest waits as one with a request": (
        "sending",
        "        rest = connection.kind == channel.REST\n",
        "        rest = False\n",
    ),
    "a connection at rest overtakes those with a request": (
        "sending",
        "(line.open and not rest and not line.queue)",
        "line.open",
    ),
    "a connection at rest is handed over as one with a request": (
        "sending",
        "            connection.kind,\n",
        "            channel.CONNECTION,\n",
    ),
    "a connection at rest goes back to the process that gave it away": (
        "hearing",
        "return None if self._lives.current(slot) == key else slot",
        "return slot",
    ),
    "a connection at rest is passed on in a stop": (
        "returning",
        "if slot is None or self._ledger.stage is not Stage.SERVING:",
        "if slot is None:",
    ),
    "a connection at rest waits for ever": (
        "queues",
        "            for connection in overdue(line.resting, now):\n",
        "            for connection in ():\n",
    ),
    "connections at rest stay when the server stops": (
        "queues",
        "            for connection in list(line.resting):\n",
        "            for connection in ():\n",
    ),
    "connections at rest count for max_queued": (
        "queues",
        "        if rest:\n            line.resting",
        "        self._queued += rest\n        if rest:\n            line.resting",
    ),
    "what is passed on from the queue is not counted": (
        "sending",
        '        self.counters["passed_on"] += connection.kind == channel.REST\n',
        "",
    ),
    "two worker classes send the app to each other for ever": (
        "lives",
        "self.agenda.stage is Stage.SERVING and not worker.corrected",
        "self.agenda.stage is Stage.SERVING",
    ),
    "a successor that names another class ends the reload": (
        "lives",
        "            if again:\n                slot.corrects = True",
        "            if False:\n                slot.corrects = True",
    ),
    "what a worker says that it has become is forgotten": (
        "hearing",
        "            self._children.worker_class = str(found)\n",
        "",
    ),
    "the backlog is thrown away in a graceful stop": (
        "dispatcher",
        "1000 if drain else 0",
        "0",
    ),
    "who asks to be replaced is not": (
        "lives",
        "worker.leaving = True",
        "worker.leaving = False",
    ),
    "who asks to be replaced waits for its turn": (
        "rounds",
        "worker.leaving and self._may_start(slot, worker, now):",
        "worker.leaving and self._due(now) == number:",
    ),
    "who asks to be replaced is told to end before its successor is ready": (
        "lives",
        "worker.leaving = True",
        "worker.leaving = True\n                self._ends.end(process)",
    ),
    "who asks to be replaced has no end while nobody is ready": (
        "lives",
        "worker.then(Step.END, self.agenda.remind(now + self.rules.graceful_timeout))",
        "pass",
    ),
    "what lies in an inbox that nobody reads stays there": (
        "queues",
        "            self.agenda.add(ReadBack(line))\n        if retired:",
        "        if retired:",
    ),
    "what comes for a slot without a process is put in its inbox": (
        "queues",
        "            self.free[slot] = 0\n            if line.retry",
        "            if line.retry",
    ),
    "what is handed back for a slot without a process is put in its inbox": (
        "returning",
        "if line is not None and line.open and not line.queue:",
        "if line is not None and not line.queue:",
    ),
    "who comes back from an inbox has all its time again": (
        "queues",
        "deadline = max(now, min(sent + self.rules.queue_timeout, latest))",
        "deadline = now + self.rules.queue_timeout",
    ),
    "who comes back from an inbox is the last": (
        "queues",
        "line.queue, line.resting = queue | line.queue, resting | line.resting",
        "line.queue, line.resting = line.queue | queue, line.resting | resting",
    ),
    "who lies in the inbox of a busy process waits for ever": (
        "master",
        "        self._inboxes.relieve(now)\n",
        "",
    ),
    "it is looked into the inboxes too rarely": (
        "master",
        "        self._agenda.remind(self._looked_around + _LOOK_AROUND)\n",
        "",
    ),
    "who was queued has all its time again in the inbox": (
        "sending",
        "            since=connection.since,\n",
        "            since=channel.stamp(self._clock()),\n",
    ),
    "who asks a process that dies asks nobody else": (
        "returning",
        "        self._unregister(sock.fileno())\n",
        "        self._unregister(sock.fileno())\n        handle.unheld = True\n",
    ),
    "nobody is asked for a session": (
        "returning",
        "line = self._holder(process, payload) if unheld else None",
        "line = None",
    ),
    "asking for a session counts as a move": (
        "returning",
        "moves, unheld = message.moves, False",
        "unheld = False",
    ),
    "the same processes are asked again and again": (
        "roster",
        "asked = chain.index(process) + 1 if process in chain else 0",
        "asked = 0",
    ),
    "a slot's process before is not asked": (
        "roster",
        "who in (self.current(slot), self.previous(slot))",
        "who in (self.current(slot),)",
    ),
    "where a session was when there were more slots is forgotten": (
        "topology",
        "for num in (self.num, *self._earlier)",
        "for num in (self.num,)",
    ),
    "what lies in the own inbox of a process that ends is lost": (
        "hearing",
        "left = self._inboxes.collect(child.inbox_end) if child.inbox_end is not None else []",
        "left = []",
    ),
    "what a busy process is told is lost": (
        "children",
        "in unsaid:\n                self.say(child, kind, payload)\n        if",
        "in ():\n                self.say(child, kind, payload)\n        if",
    ),
    "a process is told things in another order": (
        "children",
        "        if child.unsaid:\n",
        "        if False:\n",
    ),
    "who is ready after it was killed serves": (
        "lives",
        "        if worker.doomed:\n            return False  # too late",
        "        if False:\n            return False  # too late",
    ),
    "who is killed goes on getting connections": (
        "ends",
        "            if worker.state is Process.READY:\n                self.shut(worker.slot)\n",
        "",
    ),
    "a process that was replaced is forgotten": (
        "rounds",
        "        slot.previous = old\n",
        "",
    ),
    "the rows of processes that have ended stay": (
        "children",
        "        self._board.take_back(child.row)\n        return child",
        "        return child",
    ),
    "nobody sees that the process before is there": (
        "performing",
        "self._board.previous(row, previous is not None)",
        "self._board.previous(row, False)",
    ),
    "each reload begins with the first slot": (
        "rounds",
        "self._cursor = due + 1",
        "self._cursor = 0",
    ),
    "a reload is swallowed while one is under way": (
        "rounds",
        "        self.wanted += 1\n",
        "        self.wanted += self._replacing is None\n",
    ),
    "a successor that fails ends reloads that were asked for later": (
        "rounds",
        "            self._given_up = asked",
        "            self._given_up = self.wanted",
    ),
    "a successor that fails ends a reload that it was not for": (
        "rounds",
        "        if asked <= generation:",
        "        if True:",
    ),
    "a successor that fails is tried again at once": (
        "rounds",
        "slot.wait_until = self.agenda.remind(now + slot.backoff)",
        "slot.wait_until = now",
    ),
    "code that cannot be loaded ends --reload": (
        "lives",
        "elif not started and not self.announced and self.rules.reload:",
        "elif not started and not self.announced and False:",
    ),
    "code that was corrected while the old was being loaded is waited for": (
        "lives",
        "            if old:  # there",
        "            if False:  # there",
    ),
    "more slots count before they are served": (
        "scaling",
        "elif ready and self.roster.growing is not None:",
        "elif self.roster.growing is not None:",
    ),
    "slots that cannot be had are wanted for ever": (
        "lives",
        "elif hopeless and number >= self.topology.num:",
        "elif False:",
    ),
    "a process that dies while it starts ends the growth": (
        "lives",
        "elif hopeless and number >= self.topology.num:",
        "elif not started and number >= self.topology.num:",
    ),
    "who says that there cannot be more slots is not heard": (
        "lives",
        "(said_why or worker.why is Why.NOT_READY)",
        "worker.why is Why.NOT_READY",
    ),
    "more slots are wanted though they are not ready in time": (
        "lives",
        "(said_why or worker.why is Why.NOT_READY)",
        "said_why",
    ),
    "who waits for a slot that is none any more stays there": (
        "queues",
        "        if retired:\n            self._turn_away(line)\n",
        "",
    ),
    "a slot that is none any more keeps its process": (
        "scaling",
        "                self.ends.end(slot.previous)\n",
        "",
    ),
    "a slot that was none for a while has the successor of then": (
        "scaling",
        "slot.previous, slot.current, slot.successor = slot.current",
        "slot.previous, slot.current, _ = slot.current",
    ),
    "a slot that was none when its process started is lost": (
        "scaling",
        "slot.state is Slot.UP and not slot.spawning:",
        "slot.state is Slot.UP:",
    ),
    "a process does not hear who comes": (
        "post",
        "        epoch = self._tell_all(channel.CAME, row, slot, box)\n",
        "        epoch = self._board.came_or_went()\n",
    ),
    "a process does not hear who goes": (
        "post",
        "            self._tell_all(channel.WENT, row, box.slot)\n",
        "            pass\n",
    ),
    "what there was no room for is never said": (
        "post",
        "            if not self._tell(box, kind, epoch, row, slot, about):\n",
        "            if kind:\n",
    ),
    "who hangs is killed before it can say where": (
        "ends",
        "        self.agenda.add(Abort(process, why))\n",
        "        self.agenda.add(Kill(process, why))\n",
    ),
    "who does not end of SIGABRT is never killed": (
        "ends",
        "worker.then(Step.KILL, self.agenda.remind(now + ABORT_GRACE))",
        "worker.then(Step.NONE, math.inf)",
    ),
    "who is late to end is killed and not told before": (
        "ends",
        "        elif worker.step is Step.QUIT:\n            self.quit(process, now)",
        "        elif worker.step is Step.QUIT:\n            self.abort(process, worker.why, 0)",
    ),
    "a signal that means nothing ends the master": (
        "orders",
        'log.warning("%s means nothing here", number.name)',
        "self._operator.stop_because(number.name, now, quick=True)",
    ),
    "a closed terminal is a reload": (
        "orders",
        "case signal.SIGHUP if self._terminal.is_closed():",
        "case signal.SIGHUP if False:",
    ),
    "a head that was awaited is forgotten in an upgrade": (
        "waiting",
        'take(packed["heads"]), take(packed["refused"])',
        'take(packed["heads"]) and {}, take(packed["refused"])',
    ),
    "a refused connection is forgotten in an upgrade": (
        "waiting",
        'take(packed["heads"]), take(packed["refused"])',
        'take(packed["heads"]), take(packed["refused"]) and {}',
    ),
    "a head that was awaited is not watched after an upgrade": (
        "dispatcher",
        "                self._watch_head(handle)\n            elif",
        "                pass\n            elif",
    ),
    "who has waited in a queue has all its time again after an upgrade": (
        "queues",
        "line.queue, line.resting = take(queue), take(resting)",
        "line.queue, line.resting = take([it + 1 for it in queue]), take(resting)",
    ),
    "who was queued came long ago after an upgrade": (
        "dispatcher",
        "one.unheld, one.kind, one.since = unheld, kind, since",
        "one.unheld, one.kind = unheld, kind",
    ),
    "a full inbox is not watched after an upgrade": (
        "waiting",
        "            if line.wants_room:\n",
        "            if False:\n",
    ),
    "a worker is not listened to after an upgrade": (
        "children",
        "            self.listen(key)\n            for",
        "            for",
    ),
    "what could not be said to a busy worker is lost in an upgrade": (
        "children",
        "child.unsaid.extend((kind, payload.encode()) for kind, payload in unsaid)",
        "pass",
    ),
    "a reload that was asked for is lost in an upgrade": (
        "rounds",
        '("wanted", "_given_up", ',
        '("_given_up", ',
    ),
    "a growth is lost in an upgrade": (
        "roster",
        '**records.fields(self, ("announced", "growing"))',
        '**records.fields(self, ("announced",))',
    ),
    "the server begins anew after an upgrade": (
        "roster",
        '**records.fields(self, ("announced", "growing"))',
        '**records.fields(self, ("growing",))',
    ),
    "earlier numbers of slots are lost in an upgrade": (
        "topology",
        "self._earlier = list(struct",
        "_ = list(struct",
    ),
    "the rows of the counters are given again after an upgrade": (
        "succession",
        "parts.board.restore(child.row for child in parts.children.by_key.values())",
        "pass",
    ),
    "signals of the moment are lost in an upgrade": (
        "succession",
        '"signals": arrived}',
        '"signals": []}',
    ),
    "the master is deaf after an upgrade": (
        "succession",
        '        upgrade.release(content["blocked"])\n',
        "",
    ),
    "signals are not held back in an upgrade": (
        "upgrade",
        "signal.pthread_sigmask(signal.SIG_BLOCK, QUIET)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, ())",
    ),
    "the workers keep the old code after an upgrade": (
        "master",
        "        self._operator.renew()  # the workers run the old code still\n",
        "",
    ),
    "the state's memory stays open after an upgrade": (
        "state",
        "        self._rest.close()\n",
        "",
    ),
    "descriptors go to children after an upgrade": (
        "state",
        "        os.set_inheritable(number, False)\n",
        "",
    ),
    "there is one descriptor too few for an upgrade": (
        "master",
        "            self._succession.restore(packed)  # all",
        "            self._room.keep()\n            self._succession.restore(packed)  # all",
    ),
    "what was asked for just before an upgrade is half done": (
        "succession",
        "        self._perform()  # what was asked",
        "        pass  # what was asked",
    ),
    "new code that says nothing is waited for": (
        "upgrade",
        "if self.pid and now >= self._until:",
        "if False:",
    ),
    "new code that says no takes over": (
        "upgrade",
        "self._on_answer(None if why is None else logs.printable(why))",
        "self._on_answer(None)",
    ),
    "new code that dies takes over": (
        "upgrade",
        'self._on_answer(f"the new code {describe',
        'self._on_answer(None and f"the new code {describe',
    ),
    "new code takes over in a stop": (
        "master",
        "        if not serving:\n            self._succession.abandon()\n",
        "        if False:\n            self._succession.abandon()\n",
    ),
    "an upgrade that the system refuses ends the master": (
        "succession",
        "        except (OSError, StickyError) as error:\n            log.error",
        "        except StickyError as error:\n            log.error",
    ),
    "there is no room for what comes back from an inbox": (
        "inboxes",
        "            if not self._room.keep():  # nobody",
        "            if False:  # nobody",
    ),
}


# In which some of them were met, to save the time of looking for them: they are rare.
RARE = (1837, 3218, 236, 235, 706, 845, 364, 380, 1141, 1186, 1743, 2173, 3830, 4561, 7479)
RARE += (51412, 7291)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_would_be_noticed_if(mutant):
    module, old, new = MUTANTS[mutant]
    code = Code({module: (old, new)})
    worlds: list[Callable[[], World]] = [partial(World, seed, code) for seed in RARE]
    if "at rest" in mutant:
        steps = range(0, 400, 3)
        faults = ("FIN", "TERM", "STOP 0")
        worlds += [partial(RestingScene, code, fault, at) for at in steps for fault in faults]
    if "upgrade" in mutant or "new code" in mutant:
        worlds = [partial(UpgradeScene, code), partial(Cramped, 4663, code, upgrade=True)]
        worlds += [partial(World, seed, code, upgrade=True) for seed in (1496, *range(500))]
    if "large prefix" in mutant:
        worlds.append(partial(Cramped, 10199, code))
    if "no room" in mutant:
        worlds += [partial(Cramped, seed, code) for seed in (826, *range(300))]
    if "back-off" in mutant:
        worlds += [partial(Restless, seed, code) for seed in range(300)]
    worlds += [partial(World, seed, code) for seed in range(3000)]
    for world in worlds:
        try:
            world().run()
        except Exception:
            return
    pytest.fail("it was not noticed")
