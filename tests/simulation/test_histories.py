"""The master over a simulated kernel: seeded histories in which anything may happen at any step."""

from __future__ import annotations

from collections import Counter

import pytest

from .history import World, run, trace
from .kernel import Code


def test_every_promise_is_kept_in_every_history(seeds):
    code = Code()
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        outcomes += run(seed, code).outcomes()
    # Histories in which nothing happens would keep every promise.
    for outcome in ("served", "refused", "dropped", "left", "lost with its worker"):
        assert outcomes[outcome] > len(seeds) // 100, outcomes
    assert outcomes["served"] > len(seeds), outcomes


def test_a_seed_always_tells_the_same_history():
    code = Code()
    for seed in range(20):
        assert trace(seed, code) == trace(seed, code)


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
        "next(iter(self.queues[slot]), None)",
        "next(reversed(self.queues[slot]), None)",
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
    "the backlog is thrown away in a graceful stop": ("dispatcher", "1000 if drain else 0", "0"),
}


# In which some of them were met, to save the time of looking for them: they are rare.
RARE = (1230, 348, 319)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_would_be_noticed_if(mutant):
    module, old, new = MUTANTS[mutant]
    code = Code({module: (old, new)})
    for seed in (*RARE, *range(3000)):
        try:
            World(seed, code).run()
        except Exception:
            return
    pytest.fail("it was not noticed")
