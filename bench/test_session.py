"""What session ids cost: the routing call with and without ``session``, and minting.

    pytest bench/test_session.py

The two routers are asked in turn, many times a turn, and a ratio is the median of the ratios of the
turns: on a busy machine neither side has the better moments.
"""

from __future__ import annotations

import os
import time
from statistics import median

import pytest

from sticky._core import Router

from .test_core import PEER, SEED, SIZES, N, head

TURNS, CALLS = 60, 5000
SID = "lv_VI97HAXpY6yYWAAAC"
WITH_OVER_WITHOUT = 1.30


def nanoseconds(function, *arguments) -> float:
    begun = time.perf_counter_ns()
    for _ in range(CALLS):
        function(*arguments)
    return (time.perf_counter_ns() - begun) / CALLS


def with_id(data: bytes, place: str) -> bytes:
    """The same head, as long as before, with a session id in it."""
    size = len(data)
    if place == "query":
        data = data.replace(b"&t=P7kQ2Zx", b"&t=P7kQ2Zx&sid=" + SID.encode())
    else:
        name = b"Mcp-Session-Id: " if place == "header" else b"Cookie: sid="
        at = data.index(b"\r\n") + 2
        data = data[:at] + name + SID.encode() + b"\r\n" + data[at:]
    more = len(data) - size
    at = data.index(b"User-Agent") + 13  # what does not matter makes room
    data = data[:at] + data[at + more :]
    assert len(data) == size
    return data


@pytest.mark.parametrize("size", SIZES)
def test_with_and_without(benchmark, report, size):
    plain = head(size, "last")
    without = Router(N, SEED, proxy=True)
    cases = {
        ("query", "an id"): (b"query:sid", with_id(plain, "query")),
        ("query", "none"): (b"query:sid", plain),
        ("header", "an id"): (b"header:mcp-session-id", with_id(plain, "header")),
        ("header", "none"): (b"header:mcp-session-id", plain),
        ("cookie", "an id"): (b"cookie:sid", with_id(plain, "cookie")),
        ("cookie", "none"): (b"cookie:sid", plain),
    }
    routers = {name: Router(N, SEED, proxy=True, session=rule) for name, (rule, _) in cases.items()}
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in cases}

    def turn() -> None:
        for name, (_, data) in cases.items():
            base = nanoseconds(without.route, data, size, PEER)
            taken[name].append((nanoseconds(routers[name].route, data, size, PEER), base))

    turn()
    benchmark.group = f"session ids, {size} B"
    benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=0)
    rows = [
        {
            "place": place,
            "request has": has,
            "ns": round(median(a for a, _ in pairs)),
            "without": round(median(b for _, b in pairs)),
            "ratio": round(median(a / b for a, b in pairs), 2),
        }
        for (place, has), pairs in taken.items()
    ]
    verdicts = [
        (f"{row['place']}, {row['request has']}", row["ratio"], WITH_OVER_WITHOUT) for row in rows
    ]
    benchmark.extra_info.update(size=size, rows=rows, verdicts=verdicts)
    report(f"the routing call with session over without, {size} B", rows, verdicts)


@pytest.mark.parametrize("size", SIZES)
def test_one_source_more(benchmark, report, size):
    """The same requests, whose id is in none of the places, or in the last."""
    sources = (
        b"header:mcp-session-id",
        b"query:sid",
        b"path:/session/{id}/",
        b"mark:sticky_worker",
    )
    plain = head(size, "last")
    routers = [Router(N, SEED, proxy=True, session=sources[:count]) for count in range(1, 5)]
    taken: dict[str, list[float]] = {}

    def turn() -> None:
        ns = [nanoseconds(router.route, plain, size, PEER) for router in routers]
        for count in range(1, 4):
            name = f"{count + 1}: {sources[count].decode()}"
            taken.setdefault(name, []).append(ns[count] / ns[count - 1])

    turn()
    benchmark.group = f"one source more, {size} B"
    benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=0)
    rows = [{"source": name, "ratio": round(median(found), 2)} for name, found in taken.items()]
    verdicts = [(row["source"], row["ratio"], WITH_OVER_WITHOUT) for row in rows]
    benchmark.extra_info.update(size=size, rows=rows, verdicts=verdicts)
    report(f"the routing call with one source more, {size} B", rows, verdicts)


@pytest.mark.parametrize("n", [2, 8, 32, 64, 256, 1024])
def test_mint(benchmark, n):
    benchmark.group = "mint an id"
    router = Router(n, SEED, proxy=False)
    drawn = [os.urandom(15) for _ in range(64)]

    def mint() -> None:
        for raw in drawn:
            router.mint(n // 2, raw)

    benchmark.pedantic(mint, rounds=20, iterations=1, warmup_rounds=1)
    benchmark.extra_info.update(n=n, each_us=round(benchmark.stats.stats.median / 64 * 1e6, 2))
