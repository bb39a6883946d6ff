"""The whole system beside others: CPU time of the whole process tree per request.

    python -m bench                    everything, in about a quarter of an hour
    BENCH_QUICK=1 python -m bench      fewer turns, in two or three minutes
    python -m bench new kept           some of it: new, kept, shared, echo, memory
    python -m bench --results          and write the figures to bench/results/system.md

In each part all servers run at the same time and are asked in turn, forwards and backwards, and a
ratio is the median of the ratios within a turn. Two servers with the same code differ by several
percent, so a part is measured with several sets of processes. Verdicts are printed; none fails.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from . import clients
from .clients import DIRECT, ECHO, IDLE_WEBSOCKET, KEPT, NEW, Clients, clients_by_slot
from .measure import QUICK, Case, Verdict, alternate, ratio, section
from .nginx import nginx
from .rigs import CLASSES, ROOT, Rig, fds_of, machine, memory_of, rig

SETS = 1 if QUICK else 3
TURNS = 7 if QUICK else 11
CHOSEN = [it for it in os.environ.get("BENCH_CLASSES", "").split(",") if it] or list(CLASSES)
OURS = [f"sticky {kind}" for kind in CHOSEN]
PLAIN = ["plain eventlet", "plain gevent", "plain uvicorn", "plain uvicorn-direct"]
GUNICORN = ["gunicorn gthread", "gunicorn gevent"]
BESIDE = {kind: "plain uvicorn" if kind == "asgi" else "plain eventlet" for kind in CLASSES}
"""What each worker class is measured against."""

NEW_OVER_HASH = {"eventlet": 0.45, "gevent": 0.45, "threads": 0.45, "asgi": 0.75}
NEW_OVER_SHARED = {"eventlet": 0.60, "gevent": 0.60, "threads": 0.60, "asgi": 1.05}
KEPT_OVER_PLAIN = {"eventlet": 0.30, "gevent": 0.30, "threads": 0.50, "asgi": 0.90}
KEPT_OVER_GTHREAD = 0.25
MOVE_OVER_NGINX = {"eventlet": 4.0, "gevent": 4.0, "threads": 4.5, "asgi": 4.0}
SHARED_OVER_HASH = {"eventlet": 0.85, "gevent": 0.85, "threads": 0.85, "asgi": 1.7}
ECHO_OVER_PLAIN = 1.10
ECHO_BESIDE = {"eventlet": "plain eventlet", "gevent": "plain gevent", "asgi": "plain uvicorn"}
MEMORY_BESIDE = {**ECHO_BESIDE, "threads": "gunicorn gthread"}

Part = Callable[[], str]


def measured(
    what: Callable[[contextlib.ExitStack, Clients], dict[str, Case]], turns: int, requests: int
) -> dict[str, Case]:
    """The cases of several sets of processes, one set after the other, with all their samples."""
    merged: dict[str, Case] = {}
    for _ in range(SETS):
        with contextlib.ExitStack() as stack:
            cases = what(stack, stack.enter_context(Clients()))
            alternate(cases, turns, requests)
        for name, case in cases.items():
            if name in merged:
                merged[name].samples += case.samples
            else:
                merged[name] = case
    return merged


def over(cases: Mapping[str, Case], above: str, below: str) -> float:
    return ratio(cases[above].totals(), cases[below].totals())


def rows_of(cases: Mapping[str, Case], *floors: str) -> list[dict[str, object]]:
    return [
        {"": name, **case.row()} | {f"over {floor}": over(cases, name, floor) for floor in floors}
        for name, case in cases.items()
    ]


def _case(
    asking: Clients,
    name: str,
    ports: Sequence[int],
    lines: Sequence[Sequence[str]],
    how: str,
    *counted: object,
    sticky: bool = True,
    at_once: int = 0,
) -> Case:
    asking.prepare(name, ports, lines, how, sticky=sticky)
    return Case(lambda requests: asking.ask(name, requests, at_once), counted)


def _hash(kind: str, keepalive: int) -> str:
    return f"nginx hash + 2 {kind}" + (f", keepalive {keepalive}" if keepalive else "")


# -- new connections ------------------------------------------------------------------------------


def new() -> str:
    """A connection for each request, eight at a time."""
    lines = clients.own(8, 2)

    def cases(stack: contextlib.ExitStack, asking: Clients) -> dict[str, Case]:
        found: dict[str, Case] = {}
        rigs: dict[str, Rig] = {}
        for name in OURS:
            it = stack.enter_context(rig(name, 2, "--proxy"))
            found[name] = _case(asking, name, [it.port], lines, NEW, it)
            it = stack.enter_context(rig(name, 2))
            direct = f"{name}, by address"
            found[direct] = _case(asking, direct, [it.port], lines, DIRECT, it)
        for name in PLAIN + GUNICORN:
            it = rigs[name] = stack.enter_context(rig(name, 2))
            found[name] = _case(asking, name, [it.port], lines, NEW, it, sticky=False)
        hashed = ("plain eventlet", "plain uvicorn")
        front = stack.enter_context(nginx({name: rigs[name].own for name in hashed}, [0, 32]))
        for (name, keepalive), port in front.ports.items():
            title = _hash(name, keepalive)
            found[title] = _case(asking, title, [port], lines, NEW, rigs[name], front)
        return found

    found = measured(cases, TURNS, 150 if QUICK else 300)
    verdicts = []
    for kind in CHOSEN:
        name, plain = f"sticky {kind}", BESIDE[kind]
        hashed = _hash(plain, 0)
        verdicts += [
            Verdict(
                f"{kind}, new connection, over {hashed}",
                over(found, name, hashed),
                NEW_OVER_HASH[kind],
            ),
            Verdict(
                f"{kind}, new connection by address, over {plain} on SO_REUSEPORT, not sticky",
                over(found, f"{name}, by address", plain),
                NEW_OVER_SHARED[kind],
            ),
            Verdict(
                f"{kind}, new connection, over {_hash(plain, 32)}",
                over(found, name, _hash(plain, 32)),
            ),
        ]
    return section(
        "New connections, 2 workers, 8 at a time",
        rows_of(found, "plain eventlet", "plain uvicorn"),
        verdicts,
    )


# -- requests on kept connections -----------------------------------------------------------------


def kept() -> str:
    """Requests on kept connections: each client's own, and shared ones, which move each time."""
    return "\n".join(_kept(connections) for connections in (16, 1))


def _kept(connections: int) -> str:
    own, moving = clients.own(connections, 2), clients.moving(connections, 2)

    def cases(stack: contextlib.ExitStack, asking: Clients) -> dict[str, Case]:
        found: dict[str, Case] = {}
        for name in OURS:
            it = stack.enter_context(rig(name, 2, "--proxy"))
            found[name] = _case(asking, name, [it.port], own, KEPT, it)
            moved = f"{name}, moved"
            found[moved] = _case(asking, moved, [it.port], moving, KEPT, it)
        rigs = {}
        for name in PLAIN + GUNICORN:
            it = rigs[name] = stack.enter_context(rig(name, 2))
            # As many connections to each process, where that can be had, as sticky's have.
            ports = it.own or [it.port]
            found[name] = _case(asking, name, ports, own, KEPT, it, sticky=False)
        upstream = "plain eventlet"
        front = stack.enter_context(nginx({upstream: rigs[upstream].own}, [32]))
        title = _hash(upstream, 32)
        found[title] = _case(asking, title, [front.ports[upstream, 32]], own, KEPT, it, front)
        found[title].counted = [rigs[upstream], front]
        return found

    found = measured(cases, TURNS, 300 if QUICK else 500)
    proxied = found[_hash("plain eventlet", 32)].part("nginx")
    verdicts = []
    for kind in CHOSEN:
        name, plain = f"sticky {kind}", BESIDE[kind]
        what = f"{kind}, own request, over"
        verdicts.append(Verdict(f"{what} {plain}", over(found, name, plain), KEPT_OVER_PLAIN[kind]))
        if kind == "asgi":
            direct = "plain uvicorn-direct"
            verdicts.append(Verdict(f"{what} {direct}", over(found, name, direct)))
        if kind == "threads":
            gunicorn = over(found, name, "gunicorn gthread")
            verdicts.append(Verdict(f"{what} gunicorn gthread", gunicorn, KEPT_OVER_GTHREAD))
        moved, stayed = found[f"{name}, moved"].totals(), found[name].totals()
        added = [a - b for a, b in zip(moved, stayed, strict=True)]
        verdicts.append(
            Verdict(
                f"{kind}, what a move adds, over what nginx adds to a kept request",
                ratio(added, proxied),
                MOVE_OVER_NGINX[kind],
            )
        )
    return section(
        f"Requests on kept connections, 2 workers, {connections} connection(s)",
        rows_of(found, "plain eventlet", "plain uvicorn"),
        verdicts,
    )


# -- behind an nginx ------------------------------------------------------------------------------


def shared() -> str:
    """An nginx that shares few connections between 20 clients, before 4 workers."""
    twenty = [[client] for slot in clients_by_slot(4, 5) for client in slot]

    def cases(stack: contextlib.ExitStack, asking: Clients) -> dict[str, Case]:
        rigs: dict[str, Rig] = {}
        for name in OURS:
            rigs[name] = stack.enter_context(rig(name, 4, "--proxy"))
        for name in ("plain eventlet", "plain uvicorn"):
            rigs[name] = stack.enter_context(rig(name, 4))
        ports = {name: it.own or [it.port] for name, it in rigs.items()}
        front = stack.enter_context(nginx(ports, [4, 32]))
        found = {}
        for (name, keepalive), port in front.ports.items():
            title = f"{name}, keepalive {keepalive}"
            served = rigs[name], front
            found[title] = _case(asking, title, [port], twenty, KEPT, *served, at_once=10)
        return found

    found = measured(cases, TURNS, 300 if QUICK else 500)
    verdicts = []
    for keepalive in (4, 32):
        for kind in CHOSEN:
            value = over(
                found,
                f"sticky {kind}, keepalive {keepalive}",
                f"{BESIDE[kind]}, keepalive {keepalive}",
            )
            limit = SHARED_OVER_HASH[kind] if keepalive == 4 else None
            what = f"{kind} behind nginx, keepalive {keepalive}, over nginx's hash"
            verdicts.append(Verdict(f"{what} before 4 {BESIDE[kind]}", value, limit))
    return section(
        "Behind nginx, 20 clients of whom 10 ask at a time, 4 workers",
        rows_of(found, "plain eventlet, keepalive 4", "plain uvicorn, keepalive 4"),
        verdicts,
    )


# -- Socket.IO ------------------------------------------------------------------------------------


def echo() -> str:
    """Messages of python-socketio over websockets, one at a time on each of ten.

    One worker: how many connections SO_REUSEPORT gives to each of two is chance, and with it how
    many messages share a wake-up.
    """
    lines = clients.own(10, 1)
    app = "echo"

    def cases(stack: contextlib.ExitStack, asking: Clients) -> dict[str, Case]:
        found = {}
        for name in [f"sticky {kind}" for kind in CHOSEN] + list(ECHO_BESIDE.values()):
            options = ["--proxy"] if name.startswith("sticky") else []
            it = stack.enter_context(rig(name, 1, *options, app=app))
            try:
                found[name] = _case(asking, name, [it.port], lines, ECHO, it)
            except RuntimeError as error:
                print(f"{name}, {app}: {error}", file=sys.stderr)
        return found

    found = measured(cases, 9, 300 if QUICK else 600)
    verdicts = [
        Verdict(
            f"{kind}, a message, over {ECHO_BESIDE[kind]}",
            over(found, f"sticky {kind}", ECHO_BESIDE[kind]),
            ECHO_OVER_PLAIN,
        )
        for kind in ECHO_BESIDE
        if f"sticky {kind}" in found
    ]
    return section(
        "Socket.IO over a websocket, echo, 10 clients, 1 worker",
        rows_of(found, "plain eventlet", "plain uvicorn"),
        verdicts,
    )


# -- memory ---------------------------------------------------------------------------------------


def memory() -> str:
    """What the workers hold for a connection on which nothing happens."""
    count = 300 if QUICK else 1000
    rows, verdicts = [], []
    with Clients() as asking:
        for kind in CHOSEN:
            name, plain = f"sticky {kind}", MEMORY_BESIDE[kind]
            # A thread for each websocket; the more threads, the fewer idle connections it keeps.
            threads = ("--threads", str(count)) if plain.endswith("gthread") else ()
            for what, app, how in (
                ("idle websocket", "silent", IDLE_WEBSOCKET),
                ("idle kept-alive", "numbered", KEPT),
            ):
                more = threads if how == IDLE_WEBSOCKET else ()
                beside = {}
                for server, options in ((name, ("--proxy",)), (plain, more)):
                    try:
                        beside[server] = _held(asking, server, options, app, how, count)
                    except RuntimeError as error:
                        print(f"{server}, {what}: {error}", file=sys.stderr)
                        break
                    rows.append({"": server, "what": what, **beside[server]})
                else:
                    said = f"{kind}, {what}, memory over {plain}"
                    value = beside[name]["KB each"] / beside[plain]["KB each"]
                    verdicts.append(Verdict(said, value, 1.0))
    title = f"Memory for each of {count:,} connections on which nothing happens"
    return section(title, rows, verdicts)


def _held(
    asking: Clients, name: str, options: Sequence[str], app: str, how: str, count: int
) -> dict[str, float | int | None]:
    """What is held for so many connections: by the workers, and by sticky's master in all."""
    with rig(name, 2, *options, app=app) as it:
        asking.prepare("few", [it.port], clients.own(20, 2), how, sticky=False)
        time.sleep(0.3)
        memory, master, fds = it.memory(), memory_of(it.master), fds_of(it.master)
        asking.prepare("many", [it.port], clients.own(count // 2, 2) * 2, how, sticky=False)
        time.sleep(0.5)
        found: dict[str, float | int | None] = {"KB each": (it.memory() - memory) / 1024 / count}
        ours = name.startswith("sticky")
        found["master, KB"] = (memory_of(it.master) - master) // 1024 if ours else None
        found["master, descriptors"] = fds_of(it.master) - fds if ours else None
        asking.forget("many")
        asking.forget("few")
    return found


PARTS = {part.__name__: part for part in (new, kept, shared, echo, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS))
    parser.add_argument("--results", action="store_true")
    asked = parser.parse_args()
    for name in asked.parts:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    begun = time.monotonic()
    page = [f"# System\n\n{machine()}\n"]
    print(page[0], flush=True)
    for name in asked.parts or PARTS:
        page.append(PARTS[name]())
        print(page[-1], flush=True)
    print(f"in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if asked.results:
        (ROOT / "bench" / "results" / "system.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
