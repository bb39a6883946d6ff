"""New connections through the real server, beside the floors, in turn in one run.

    pytest bench/test_throughput.py

A turn loads every rig with every size of head, one after the other, and the next turn does it
again (A B C A B C ...), so that what else the machine does meets all of them alike. Ratios are
medians of the ratios within a turn. What is reported is CPU time, of the master and of the whole
tree, beside connections per second: on a busy machine the first says more. pytest-benchmark's own
table shows whole turns and is good for nothing but the duration of this run; the figures are in
``extra_info``, in the summary at the end and, with ``--results``, in bench/results/.
"""

from __future__ import annotations

import contextlib
import os
import time
from statistics import median

import pytest

from .rigs import GENERATORS, KINDS, Load, rig, sleeps_of

TURNS = int(os.environ.get("STICKY_BENCH_TURNS", "9"))
SIZES = (300, 8192)
REGIMES = {
    # Connections per round and, in each generator, at a time.
    "trickle": (300, 1),
    "load": (600, 24),
}
MASTER_OVER_BARE = 1.30
LARGE_OVER_SMALL = 1.15

Sample = tuple[float, float, float, float]
"""Per connection: microseconds of CPU of the master, of the whole tree, and of the clock; and how
often the master was woken up."""


@pytest.fixture(scope="module")
def load():
    with Load() as it:
        yield it


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda n: f"{n} workers")
def rigs(request):
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(rig(kind, request.param)) for kind in KINDS}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("regime", REGIMES)
def test_new_connections(benchmark, report, rigs, load, regime):
    connections, at_once = REGIMES[regime]
    samples: dict[tuple[str, int], list[Sample]] = {
        (kind, size): [] for size in SIZES for kind in KINDS
    }

    def turn() -> None:
        for (kind, size), taken in samples.items():
            it = rigs[kind]
            cpu, slept, clock = it.cpu(), sleeps_of(it.master), time.perf_counter()
            load.run(it.port, connections, size, at_once, kind != "direct")
            elapsed = time.perf_counter() - clock
            master, tree = (after - before for after, before in zip(it.cpu(), cpu, strict=True))
            slept = sleeps_of(it.master) - slept
            each = (master / 1000, tree / 1000, elapsed * 1_000_000, slept)
            taken.append(tuple(it / connections for it in each))

    def warm_up() -> None:
        turn()
        for taken in samples.values():
            taken.clear()

    warm_up()
    benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=0)

    workers = len(rigs["proxy"].workers)
    benchmark.group = f"a turn over all rigs, {regime}"
    rows = []
    for (kind, size), taken in samples.items():
        master, tree, elapsed, slept = (median(column) for column in zip(*taken, strict=True))
        floor = samples["bare", size]
        shared = samples["shared", size]
        rows.append(
            {
                "rig": kind,
                "head": size,
                "per_second": round(1_000_000 / elapsed),
                "master_us": None if kind == "shared" else round(master, 1),
                "master_over_bare": None if kind == "shared" else ratio(taken, floor, 0),
                "wakeups": None if kind == "shared" else round(slept, 2),
                "tree_us": round(tree, 1),
                "tree_over_shared": ratio(taken, shared, 1),
            }
        )
    small, large = (samples["proxy", size] for size in SIZES)
    verdicts = [
        (
            "master, 300 B head, over the bare loop",
            ratio(small, samples["bare", 300], 0),
            MASTER_OVER_BARE,
        ),
        ("master, 8 KB head over 300 B head", ratio(large, small, 0), LARGE_OVER_SMALL),
    ]
    benchmark.extra_info.update(workers=workers, regime=regime, rows=rows, verdicts=verdicts)
    at_a_time = "one at a time" if at_once == 1 else f"{GENERATORS} x {at_once} in flight"
    report(
        f"{workers} worker{'s'[: workers > 1]}, {regime} ({at_a_time}), "
        f"{TURNS} turns of {connections} connections",
        rows,
        verdicts,
    )


def ratio(of: list[Sample], to: list[Sample], column: int) -> float:
    """The median of the ratios within a turn."""
    return round(median(a[column] / b[column] for a, b in zip(of, to, strict=True)), 3)
