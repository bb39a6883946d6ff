"""From SIGKILL of a worker to the next answer of its slot, in turn with and without a spare, and
beside gunicorn for the same app.

    python -m bench.respawn

Each server has one worker, so that nobody else can answer. The app is one of python-socketio's:
what it takes to import that is what a spare saves.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from .measure import QUICK
from .rigs import ROOT, children_of, command_of

TURNS = 5 if QUICK else 15
SPARE, NONE = "sticky {}, a spare", "sticky {}"
SERVERS = [
    *((NONE.format(kind), f"sticky {kind}", ()) for kind in ("eventlet", "threads", "asgi")),
    *(
        (SPARE.format(kind), f"sticky {kind}", ("--spares", "1"))
        for kind in ("eventlet", "threads", "asgi")
    ),
    ("gunicorn gthread", "gunicorn gthread", ()),
    ("gunicorn gevent", "gunicorn gevent", ()),
]
LIMITS = {SPARE: 0.3, NONE: 1.0}


@contextlib.contextmanager
def served(name: str, options: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """A server of this kind: its pid and its port."""
    process = subprocess.Popen(
        [sys.executable, *command_of(name, 1, "echo", options)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"Listening at: http://127.0.0.1:(\d+)", line):
                break
        else:
            raise RuntimeError(f"{name} did not start")
        os.set_blocking(process.stderr.fileno(), False)  # and nobody reads on: it is little
        yield process.pid, int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        if process.stderr is not None:
            process.stderr.close()


def answer(port: int) -> bool:
    """Whether somebody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/socket.io/?EIO=4&transport=polling")
        return connection.getresponse().status == 200
    except OSError:
        return False
    except http.client.HTTPException:
        return False
    finally:
        connection.close()


def worker_of(master: int) -> int:
    """The process that serves: the oldest one."""
    return min(children_of(master))


def once(master: int, port: int) -> float:
    """Seconds from SIGKILL to the next answer."""
    while not answer(port):
        pass
    time.sleep(2.5)  # a spare has its time to import what it needs
    children = children_of(master)
    serving = [pid for pid in children if os.path.exists(f"/proc/{pid}")]
    began = time.monotonic()
    os.kill(min(serving), signal.SIGKILL)
    while not answer(port):
        time.sleep(0.002)
    return time.monotonic() - began


def main() -> None:
    """Print a table."""
    with contextlib.ExitStack() as stack:
        servers = {
            shown: stack.enter_context(served(name, options)) for shown, name, options in SERVERS
        }
        found: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(TURNS):
            for name, (master, port) in servers.items():
                found[name].append(once(master, port))
    print("| | median | longest |\n| --- | --- | --- |")
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |")
    for wanted, limit in LIMITS.items():
        for kind in ("eventlet", "threads", "asgi"):
            median = statistics.median(found[wanted.format(kind)])
            verdict = "reached" if median <= limit else "MISSED"
            print(f"{wanted.format(kind)}: {median:.2f} s, at most {limit} s: {verdict}")


if __name__ == "__main__":
    main()
