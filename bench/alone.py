"""One server alone under one kind of load, for profilers.

    python -m bench.alone "sticky eventlet" kept 16 20

The kinds are new, kept, moved and echo, with so many connections, for so many seconds.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import clients
from .clients import ECHO, KEPT, NEW, Clients
from .measure import Case
from .rigs import ROOT, Rig, rig

KINDS = ("new", "kept", "moved", "echo")


@dataclass
class Alone:
    rig: Rig
    case: Case


@contextlib.contextmanager
def alone(name: str, kind: str, connections: int, *, tree: Path = ROOT) -> Iterator[Alone]:
    """A server of two workers (``rigs``), ready to be asked."""
    options = ["--proxy"] if name.startswith("sticky") else []
    how = {"new": NEW, "echo": ECHO}.get(kind, KEPT)
    lines = (clients.moving if kind == "moved" else clients.own)(connections, 2)
    app = "echo" if kind == "echo" else "numbered"
    with rig(name, 2, *options, app=app, tree=tree) as it, Clients() as asking:
        asking.prepare("it", [it.port], lines, how, sticky=bool(options))
        yield Alone(it, Case(lambda requests: asking.ask("it", requests), [it]))


def main(name: str, kind: str, connections: int, seconds: float) -> None:
    with alone(name, kind, connections) as it:
        print(f"master {it.rig.master}, workers {it.rig.workers}", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            it.case.turn(1000)
            parts = it.case.samples.pop()
            print(", ".join(f"{part} {spent:.1f} us" for part, spent in parts.items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
