"""What the master keeps of connections that it has handed over: nothing.

    pytest bench/test_memory.py

5,000 idle websockets are opened and stay, 20,000 short connections come and go beside them, then
the websockets are closed. The master's descriptors and memory are what they were before.
"""

from __future__ import annotations

import time

import pytest

from .rigs import Load, Websockets, fds_of, memory_of, rig

WEBSOCKETS = 5_000
SHORT = 20_000
WORKERS = 2
MOST_GROWTH = 2_000
"""KB by which the master's resident memory may grow: a bound, not what is expected."""


@pytest.mark.timeout(300)
def test_the_master_keeps_nothing_of_what_it_has_handed_over(report):
    rows = []
    with rig("proxy", WORKERS, app="bench.apps:silent") as it, Load() as load:

        def note(when: str) -> dict[str, int]:
            rss, pss = memory_of(it.master)
            workers = [memory_of(worker) for worker in it.workers]
            row = {
                "master_fds": fds_of(it.master),
                "master_rss_kb": rss,
                "master_pss_kb": pss,
                "worker_fds": sum(map(fds_of, it.workers)),
                "workers_rss_kb": sum(rss for rss, _ in workers),
                "workers_pss_kb": sum(pss for _, pss in workers),
            }
            rows.append({"when": when} | row)
            return row

        def short(connections: int) -> None:
            load.run(it.port, connections, 300, 24, True)

        short(1_000)  # what is loaded and allocated once, at the first use
        wait_for_fds(it.workers, 0)
        before = note("after 1,000 connections")
        with Websockets(it.port, WEBSOCKETS):
            during = note(f"{WEBSOCKETS:,} idle websockets")
            short(SHORT)
            wait_for_fds(it.workers, before["worker_fds"] + WEBSOCKETS)
            beside = note(f"and after {SHORT:,} short connections")
        wait_for_fds(it.workers, before["worker_fds"])
        after = note("websockets closed")

    report(f"{WORKERS} workers, every connection through the same server", rows)
    assert during["worker_fds"] >= WEBSOCKETS
    for then in (during, beside, after):
        assert then["master_fds"] == before["master_fds"]
        assert then["master_rss_kb"] - before["master_rss_kb"] < MOST_GROWTH
    assert after["worker_fds"] == before["worker_fds"]


def wait_for_fds(workers: list[int], expected: int) -> None:
    """Until the workers hold no more than this together; 0: until the number stands still."""
    deadline = time.monotonic() + 20
    last = -1
    while time.monotonic() < deadline:
        held = sum(map(fds_of, workers))
        if held <= expected or (not expected and held == last):
            return
        last = held
        time.sleep(0.2)
    raise TimeoutError(f"the workers still hold {held} descriptors, not {expected}")
