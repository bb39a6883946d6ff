"""python -m tests.simulation [--histories N] [--first SEED] [--seed SEED]"""

import argparse
import time
from collections import Counter

from .history import run, trace
from .kernel import Code


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="show one history, step by step")
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    given = parser.parse_args()
    code = Code()
    if given.seed is not None:
        print("\n".join(trace(given.seed, code)))
        return
    total: Counter[str] = Counter()
    events: Counter[str] = Counter()
    turns, began = 0, time.monotonic()
    for seed in range(given.first, given.first + given.histories):
        world = run(seed, code)
        total.update(world.outcomes())
        events.update(set(world.kernel.events))
        turns += world.kernel.turns
    took = time.monotonic() - began
    print(f"{given.histories} histories, {turns} turns, {took:.1f} s")
    for outcome, number in total.most_common():
        print(f"{number:9d} connections {outcome}")
    for event, number in sorted(events.items()):
        print(f"{number:9d} histories with {event}")


if __name__ == "__main__":
    main()
