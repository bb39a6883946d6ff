"""python -m tests.simulation [--histories N] [--processes P] [--first SEED] [--seed SEED]"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from .history import trace
from .kernel import Code
from .many import Told, some

AT_ONCE = 500
"""Histories that a process runs before it tells what became of them."""


def told(batches: list[range], processes: int) -> Iterator[Told]:
    """The same of all of them, by several processes."""
    if processes == 1:
        yield from map(some, batches)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(some, batches)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="show one history, step by step")
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--processes", type=int, default=1, help="0: one for each usable CPU")
    given = parser.parse_args()
    if given.seed is not None:
        print("\n".join(trace(given.seed, Code())))
        return 0
    end = given.first + given.histories
    batches = [range(at, min(at + AT_ONCE, end)) for at in range(given.first, end, AT_ONCE)]
    processes = given.processes or len(os.sched_getaffinity(0))
    total: Counter[str] = Counter()
    events: Counter[str] = Counter()
    done = turns = broken = 0
    began = said = time.monotonic()
    for number, of_these, outcomes, happened, disproved in told(batches, processes):
        done, turns = done + number, turns + of_these
        total.update(outcomes)
        events.update(happened)
        if disproved:
            broken += 1
            print(disproved, flush=True)
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{done} of {given.histories} after {said - began:.0f} s", flush=True)
    print(f"{done} histories, {turns} turns, {time.monotonic() - began:.1f} s")
    for outcome, number in total.most_common():
        print(f"{number:9d} connections {outcome}")
    for event, number in sorted(events.items()):
        print(f"{number:9d} histories with {event}")
    if broken:
        print(f"{broken} of {len(batches)} batches ended with a promise that was broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
