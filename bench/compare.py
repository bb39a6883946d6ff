"""This tree beside another one: what a change costs or saves.

    python -m bench.compare ../main "sticky eventlet" kept 16

The kinds are those of ``bench.alone``. Two servers of each tree are asked in turn.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from statistics import median

from . import rigs
from .alone import alone
from .measure import Case, alternate, ratio

EACH = 2
TURNS = 15
REQUESTS = 500


def main(other: str, name: str, kind: str, connections: int) -> None:
    trees = {"this": rigs.ROOT, "other": Path(other).resolve()}
    with contextlib.ExitStack() as stack:
        cases: dict[str, Case] = {}
        for number in range(EACH):
            for which, tree in trees.items():
                it = stack.enter_context(alone(name, kind, connections, tree=tree))
                cases[f"{which} {number}"] = it.case
        alternate(cases, TURNS, REQUESTS)
    both = {
        which: [total for n in range(EACH) for total in cases[f"{which} {n}"].totals()]
        for which in trees
    }
    for which, totals in both.items():
        print(f"{which}: {median(totals):.1f} us")
    print(f"this over other: {ratio(both['this'], both['other']):.2f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
