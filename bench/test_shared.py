"""What it costs that several clients share a connection: looking, moving, and a proxy in front.

    pytest bench/test_shared.py

As in test_throughput.py a turn asks every rig, one after the other, and the turns repeat; ratios
are medians of the ratios within a turn. What is reported is CPU time of the whole tree per request
(nginx included, where there is one; what asks is not).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from statistics import median

import pytest

from .asking import APPS, WORKERS, Asking, clients_by_slot, lines, moves_of, nginx
from .rigs import Rig, rig

TURNS = int(os.environ.get("STICKY_BENCH_TURNS", "15"))
REQUESTS = 600
LOOKING = {"eventlet": 1.10, "uvicorn": 1.20}
MOVED = {1: 4.0, 16: 2.5}
OVER_HASH = {4: 1.20, 32: 1.20, 0: 1.0}
"""At most, by the number of connections that nginx keeps; 0: it closes them."""

Sample = tuple[float, float, float]
"""Microseconds of CPU per request: of the whole tree, of the master, of nginx."""


@pytest.fixture(scope="module")
def asking():
    with Asking() as it:
        yield it


@pytest.mark.timeout(400)
@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("kind", APPS)
def test_a_request_that_is_own_and_one_that_is_moved(benchmark, report, asking, kind, connections):
    app, blind = APPS[kind]
    with contextlib.ExitStack() as stack:
        looks = stack.enter_context(rig("proxy", WORKERS, app=app))
        does_not = stack.enter_context(rig("proxy", WORKERS, app=blind))
        closes = stack.enter_context(rig("proxy", WORKERS, "--keep-alive", "0", app=app))
        own, moved = lines("own", connections), lines("moved", connections)
        measured = {
            "own": (looks, own, True),
            "own, not looking": (does_not, own, True),
            "moved": (looks, moved, True),
            "Connection: close": (closes, moved, False),
        }

        def ask(name: str) -> None:
            it, them, keep = measured[name]
            asking.run(it.port, them, REQUESTS, keep=keep)

        samples = _turns(
            benchmark, ask, {name: (it, lambda: 0) for name, (it, _, _) in measured.items()}
        )
        before = moves_of(looks)
        ask("moved")
        moves = (moves_of(looks) - before) / REQUESTS
    assert moves > 0.9
    rows = _rows(samples, "own", ("tree_us", "master_us"))
    verdicts = [
        (
            f"{kind}, own request, looking over not looking",
            _ratio(samples, "own", "own, not looking"),
            LOOKING[kind],
        ),
        (f"{kind}, moved over own", _ratio(samples, "moved", "own"), MOVED[connections]),
        (
            f"{kind}, moved over Connection: close",
            _ratio(samples, "moved", "Connection: close"),
            1.0,
        ),
    ]
    benchmark.extra_info.update(rows=rows, verdicts=verdicts)
    benchmark.group = "a turn over all rigs, without a proxy"
    title = f"{kind}, {connections} connection{'s'[: connections > 1]} of two clients each"
    report(f"{title}, {TURNS} turns of {REQUESTS} requests", rows, verdicts)


@pytest.mark.timeout(400)
@pytest.mark.skipif(
    shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") is None,
    reason="needs nginx",
)
@pytest.mark.parametrize("kind", APPS)
def test_behind_nginx(benchmark, report, asking, kind):
    them = [[client] for clients in clients_by_slot(5) for client in clients]
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(rig("proxy", WORKERS, app=APPS[kind][0]))
        plain = stack.enter_context(rig(kind, WORKERS))
        front = stack.enter_context(nginx({"sticky": ours, "hash": plain}, list(OVER_HASH)))
        measured = {
            (name, keepalive): (ours if name == "sticky" else plain, port)
            for (name, keepalive), port in front.ports.items()
        }
        moves: dict[tuple[str, int], float] = {}

        def ask(name: tuple[str, int]) -> None:
            asking.run(measured[name][1], them, REQUESTS)

        samples = _turns(
            benchmark, ask, {name: (it, front.cpu) for name, (it, _) in measured.items()}
        )
        for name, (it, _) in measured.items():
            if name[0] == "sticky":
                before = moves_of(it)
                ask(name)
                moves[name] = (moves_of(it) - before) / REQUESTS
    rows, verdicts = [], []
    for keepalive, limit in OVER_HASH.items():
        how = f"keepalive {keepalive}" if keepalive else "close"
        names = {(name, keepalive): f"{name}, {how}" for name in ("hash", "sticky")}
        some = {names[name]: taken for name, taken in samples.items() if name in names}
        for name, row in zip(
            names,
            _rows(some, f"hash, {how}", ("tree_us", "master_us", "nginx_us"), "over_hash"),
            strict=True,
        ):
            rows.append({**row, "moves": moves.get(name)})
        over = _ratio(some, f"sticky, {how}", f"hash, {how}")
        verdicts.append((f"{kind}, sticky over nginx's hash, {how}", over, limit))
    benchmark.extra_info.update(rows=rows, verdicts=verdicts)
    benchmark.group = "a turn over all rigs, behind nginx"
    report(f"{kind} behind nginx, 20 clients, {TURNS} turns of {REQUESTS} requests", rows, verdicts)


def _turns(
    benchmark, ask: Callable[..., None], counted: dict[object, tuple[Rig, Callable[[], int]]]
) -> dict[object, list[Sample]]:
    """Ask everything in turn, the first time to warm up; what each took."""
    samples: dict[object, list[Sample]] = {name: [] for name in counted}

    def turn() -> None:
        for name, (it, front) in counted.items():
            (master, tree), proxy = it.cpu(), front()
            ask(name)
            (master_after, tree_after), proxy_after = it.cpu(), front()
            proxy = proxy_after - proxy
            each = (tree_after - tree + proxy, master_after - master, proxy)
            samples[name].append(tuple(ns / 1000 / REQUESTS for ns in each))

    turn()
    for taken in samples.values():
        taken.clear()
    benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=0)
    return samples


def _rows(samples, base: str, columns: tuple[str, ...], over: str | None = None) -> list[dict]:
    rows = []
    for name, taken in samples.items():
        medians = (median(column) for column in zip(*taken, strict=True))
        row = {"rig": name}
        row.update((column, round(value, 1)) for column, value in zip(columns, medians))  # noqa: B905
        row[over or f"over_{base}"] = _ratio(samples, name, base)
        rows.append(row)
    return rows


def _ratio(samples, of: object, to: object) -> float:
    """The median of the ratios within a turn."""
    return round(median(a[0] / b[0] for a, b in zip(samples[of], samples[to], strict=True)), 3)
