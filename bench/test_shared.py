"""What it costs that clients share connections: looking, moving, and beside nginx's own ``hash``.

    pytest bench/test_shared.py

As in test_throughput.py a turn asks every rig, one after the other, and the turns repeat; ratios
are medians of the ratios within a turn. Of every rig there are two, for two servers with the same
code differ by up to a tenth. What is reported is CPU time per request, of the whole tree and nginx
(what asks is not counted), of the master, and of nginx.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from statistics import median

import pytest

from .asking import APPS, PATH, WORKERS, Asking, clients_by_slot, lines, moves_of, nginx
from .rigs import Rig, rig

TURNS = int(os.environ.get("STICKY_BENCH_TURNS", "9"))
REQUESTS = 400
EACH = 2
LOOKING_OVER_NOT = {"eventlet": 1.10, "uvicorn": 1.20}
MOVED_OVER_OWN = {1: 4.0, 16: 2.5}
OVER_HASH = {4: 1.20, 32: 1.20, 0: 1.0}
"""By the number of idle connections that nginx keeps; 0: it closes them."""

Sample = tuple[float, float, float]
"""Microseconds of CPU per request: of all, of the master, of nginx."""

Measured = dict[str, Sequence[tuple[Rig, Callable[[], None]]]]
"""By its name in the table: its servers, and what asks each of them REQUESTS times."""

needs_nginx = pytest.mark.skipif(not shutil.which("nginx", path=PATH), reason="needs nginx")


@pytest.fixture(scope="module")
def asking():
    with Asking() as it:
        yield it


@pytest.mark.timeout(400)
@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("kind", APPS)
def test_own_and_moved_requests(benchmark, report, asking, kind, connections):
    app, blind = APPS[kind]
    own, moved = lines("own", connections), lines("moved", connections)
    with contextlib.ExitStack() as stack:
        looking = [stack.enter_context(rig("proxy", WORKERS, app=app)) for _ in range(EACH)]
        not_looking = [stack.enter_context(rig("proxy", WORKERS, app=blind)) for _ in range(EACH)]
        closing = [
            stack.enter_context(rig("proxy", WORKERS, "--keep-alive", "0", app=app))
            for _ in range(EACH)
        ]

        def asked(servers, them, keep=True):
            return [
                (it, lambda it=it: asking.run(it.port, them, REQUESTS, keep=keep)) for it in servers
            ]

        measured = {
            "own": asked(looking, own),
            "own, not looking": asked(not_looking, own),
            "moved": asked(looking, moved),
            "Connection: close": asked(closing, moved, keep=False),
        }
        samples = _samples(benchmark, measured)
        moves = _moves(measured["moved"])
    assert moves > 0.9
    rows = [_row(samples, name, "own") for name in samples]
    verdicts = [
        (
            f"{kind}, own request, looking over not looking",
            _ratio(samples, "own", "own, not looking"),
            LOOKING_OVER_NOT[kind],
        ),
        (f"{kind}, moved over own", _ratio(samples, "moved", "own"), MOVED_OVER_OWN[connections]),
        (
            f"{kind}, moved over Connection: close, without the client's share",
            _ratio(samples, "moved", "Connection: close"),
            1.0,
        ),
    ]
    benchmark.extra_info.update(rows=rows, verdicts=verdicts)
    benchmark.group = "a turn over all rigs, shared connections"
    how = "1 connection" if connections == 1 else f"{connections} connections"
    report(f"{kind}, {how}, {TURNS} turns of {EACH * REQUESTS} requests", rows, verdicts)


@needs_nginx
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", APPS)
def test_behind_nginx(benchmark, report, asking, kind):
    twenty = [[client] for clients in clients_by_slot(5) for client in clients]
    with contextlib.ExitStack() as stack:
        rigs = {}
        for number in range(EACH):
            rigs[f"sticky {number}"] = stack.enter_context(rig("proxy", WORKERS, app=APPS[kind][0]))
            rigs[f"hash {number}"] = stack.enter_context(rig(kind, WORKERS))
        front = stack.enter_context(nginx(rigs, list(OVER_HASH)))

        def asked(name, keepalive, them):
            return [
                (
                    rigs[f"{name} {number}"],
                    lambda port=front.ports[f"{name} {number}", keepalive]: asking.run(
                        port, them, REQUESTS
                    ),
                )
                for number in range(EACH)
            ]

        measured: Measured = {
            f"{name}, {_how(keepalive)}": asked(name, keepalive, twenty)
            for keepalive in OVER_HASH
            for name in ("hash", "sticky")
        }
        for connections in MOVED_OVER_OWN:
            for keepalive in (32, 0):
                measured[f"{connections} x 2 clients in turn, {_how(keepalive)}"] = asked(
                    "sticky", keepalive, lines("moved", connections)
                )
        samples = _samples(benchmark, measured, front.cpu)
        moves = {
            name: None if name.startswith("hash") else round(_moves(measured[name]), 2)
            for name in measured
        }
    rows, verdicts = [], []
    for name in samples:
        row = _row(samples, name, "hash, " + name.rpartition(", ")[2], "over_hash")
        if "in turn" in name:
            row["over_hash"] = None
        rows.append({**row, "moves": moves[name]})
    for keepalive, limit in OVER_HASH.items():
        how = _how(keepalive)
        over = _ratio(samples, f"sticky, {how}", f"hash, {how}")
        verdicts.append((f"{kind}, sticky over nginx's hash, {how}", over, limit))
    for connections in MOVED_OVER_OWN:
        name = f"{connections} x 2 clients in turn"
        over = _ratio(samples, f"{name}, {_how(32)}", f"{name}, {_how(0)}")
        verdicts.append((f"{kind}, {name}, moved over upstream close", over, 1.0))
    benchmark.extra_info.update(rows=rows, verdicts=verdicts)
    benchmark.group = "a turn over all rigs, behind nginx"
    report(
        f"{kind} behind nginx, 20 clients on {WORKERS} workers, "
        f"{TURNS} turns of {EACH * REQUESTS} requests",
        rows,
        verdicts,
    )


def _how(keepalive: int) -> str:
    return f"keepalive {keepalive}" if keepalive else "close"


def _samples(
    benchmark, measured: Measured, front: Callable[[], int] = lambda: 0
) -> dict[str, list[Sample]]:
    """What each takes in each turn; a first turn warms up."""
    samples: dict[str, list[Sample]] = {name: [] for name in measured}

    def turn() -> None:
        spent = {name: [0, 0, 0] for name in measured}
        for number in range(EACH):
            for name, servers in measured.items():
                it, ask = servers[number]
                before = (*it.cpu(), front())
                ask()
                master, tree, proxy = (
                    after - then for after, then in zip((*it.cpu(), front()), before, strict=True)
                )
                for column, ns in enumerate((tree + proxy, master, proxy)):
                    spent[name][column] += ns
        for name, columns in spent.items():
            samples[name].append(tuple(ns / 1000 / EACH / REQUESTS for ns in columns))

    turn()
    for taken in samples.values():
        taken.clear()
    benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=0)
    return samples


def _moves(servers: Sequence[tuple[Rig, Callable[[], None]]]) -> float:
    """How often a connection moves, per request."""
    it, ask = servers[0]
    before = moves_of(it)
    ask()
    return (moves_of(it) - before) / REQUESTS


def _row(samples, name: str, base: str, over: str = "over_own") -> dict[str, object]:
    tree, master, proxy = (median(column) for column in zip(*samples[name], strict=True))
    row = {"rig": name, "tree_us": round(tree, 1)}
    row["master_us"] = None if name.startswith("hash") else round(master, 1)
    if proxy:
        row["nginx_us"] = round(proxy, 1)
    return {**row, over: _ratio(samples, name, base)}


def _ratio(samples, of: str, to: str) -> float:
    """The median of the ratios within a turn."""
    pairs = zip(samples[of], samples[to], strict=True)
    return round(median(a[0] / b[0] for a, b in pairs), 3)
