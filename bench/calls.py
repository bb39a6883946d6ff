"""System calls per request: a new connection, an own request, a move, a Socket.IO message.

    python -m bench.calls                              all of sticky's worker classes, and the plain
    python -m bench.calls "sticky asgi" "plain uvicorn"

They are counted by strace, under which everything is many times slower: more is ready at each turn
of an event loop than usual, so a wait is shared by more requests, and threads meet at locks more
often. One connection at a time is the upper bound of the waits; sixteen are near the lower.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .alone import Alone, alone
from .measure import section
from .rigs import CLASSES, machine

REQUESTS = 400
LOADS = (("new", 8), ("new", 1), ("kept", 16), ("kept", 1), ("moved", 16), ("moved", 1))
ECHO = (("echo", 10),)
SERVERS = [f"sticky {kind}" for kind in CLASSES] + ["plain eventlet", "plain uvicorn"]
_LINE = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", re.MULTILINE)


def calls_of(it: Alone, requests: int) -> dict[str, Counter[str]]:
    """How often each system call is made for so many requests, by part of the server."""
    found: dict[str, Counter[str]] = {}
    for part, pids in (("master", [it.rig.master]), ("workers", it.rig.workers)):
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder, "calls")
            command = ["strace", "-f", "-c", "-o", str(page)]
            for pid in pids:
                command += ["-p", str(pid)]
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            for _ in pids:
                assert "attached" in tracer.stderr.readline()
            time.sleep(0.2)
            it.case.ask(requests)
            time.sleep(0.05)
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=20)
            found[part] = Counter({name: int(n) for n, name in _LINE.findall(page.read_text())})
    return found


def shown(calls: Counter[str], requests: int) -> str:
    """Those that are made at least once in 20 requests, most often first."""
    each = [(name, count / requests) for name, count in calls.most_common() if name != "total"]
    return ", ".join(f"{name} {count:.2g}" for name, count in each if count >= 0.05) or "-"


def total(calls: Counter[str], requests: int) -> float:
    return sum(count for name, count in calls.items() if name != "total") / requests


def main(names: Sequence[str]) -> None:
    print(f"# System calls per request\n\n{machine()}\n", flush=True)
    for kind, connections in (*LOADS, *ECHO):
        rows = []
        for name in names or SERVERS:
            if kind == "moved" and not name.startswith("sticky"):
                continue
            try:
                with alone(name, kind, connections) as it:
                    it.case.ask(REQUESTS)
                    calls = calls_of(it, REQUESTS)
            except RuntimeError as error:
                print(f"{name}, {kind}: {error}", file=sys.stderr)
                continue
            row: dict[str, object] = {"": name}
            for part, counted in calls.items():
                if part == "workers" or name.startswith("sticky"):
                    row[f"{part}, calls"] = total(counted, REQUESTS)
                    row[part] = shown(counted, REQUESTS)
                else:
                    row |= {f"{part}, calls": None, part: None}
            rows.append(row)
        title = f"{kind}, {connections} at a time"
        print(section(title, rows, ()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
