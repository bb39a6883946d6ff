"""The servers that are compared, each a tree of processes whose CPU time is counted.

sticky eventlet     the ``sticky`` command with this worker class; also gevent, threads, asgi
plain eventlet      eventlet's own server on SO_REUSEPORT; also gevent, uvicorn (``plain.py``)
gunicorn gthread    gunicorn with this worker class; also gevent
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEED = "0123456789abcdef"
CLASSES = ("eventlet", "gevent", "threads", "asgi")
"""Worker classes."""
PACKAGES = (
    *("Cython", "eventlet", "gevent", "gunicorn", "uvicorn", "uvloop", "httptools"),
    *("websockets", "python-socketio", "python-engineio"),
)


def machine() -> str:
    """What the figures were measured on."""
    cpu = "unknown CPU"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Linux {platform.release()}, {len(os.sched_getaffinity(0))} x {cpu}, "
        f"Python {platform.python_version()}, {packages}"
    )


def cpu_of(pid: int) -> int:
    """Nanoseconds that a process has spent on a CPU, with threads that have ended.

    Its clock, as ``clock_getcpuclockid()`` makes it.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def memory_of(pid: int) -> int:
    """Resident memory in bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("\nRss:")[2].split()[0]) * 1024


def fds_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for task in os.listdir(f"/proc/{pid}/task")
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    ]


@dataclass
class Rig:
    """A running server.

    Attributes:
        port: which all workers serve.
        own: for each worker a port of its own, if it has one.
        master: the process that may not serve, but supervises (and, of sticky, routes).
        workers: the processes that serve.
    """

    port: int
    own: list[int]
    master: int
    workers: list[int]

    def cpu(self) -> dict[str, int]:
        """Nanoseconds of CPU used so far, by part."""
        return {"master": cpu_of(self.master), "workers": sum(map(cpu_of, self.workers))}

    def memory(self) -> int:
        """Resident bytes of the workers."""
        return sum(map(memory_of, self.workers))


def command_of(name: str, workers: int, app: str, options: tuple[str, ...]) -> list[str]:
    """How a rig is started; of apps the kind is added (``echo``: ``echo_asgi``)."""
    whose, kind = name.split()
    if app == "numbered":
        made = "numbered_asgi" if kind in ("asgi", "uvicorn", "uvicorn-direct") else "numbered"
    else:
        made = f"{app}_{ {'uvicorn': 'asgi', 'gthread': 'threads'}.get(kind, kind) }"
    if whose == "plain":
        return ["-m", "bench.plain", kind, str(workers), made]
    if whose == "gunicorn":
        with socket.create_server(("127.0.0.1", 0)) as free:
            bind = f"127.0.0.1:{free.getsockname()[1]}"
        more = ["--threads", "16"] if kind == "gthread" else []
        return [
            *("-m", "gunicorn", f"bench.apps:{made}()", "-b", bind, "-w", str(workers)),
            *("-k", kind, "--keep-alive", "75", "--no-control-socket", *more, *options),
        ]
    return [
        *("-m", "sticky", f"bench.apps:{made}", "-b", "127.0.0.1:0", "-w", str(workers)),
        *("-k", kind, "--seed", SEED, "--ws-ping-interval", "0", *options),
    ]


@contextlib.contextmanager
def rig(
    name: str, workers: int, *options: str, app: str = "numbered", tree: Path = ROOT
) -> Iterator[Rig]:
    """Start a server with this many workers, and stop it at the end.

    Args:
        tree: where the server's code lies.
    """
    process = subprocess.Popen(
        [sys.executable, *command_of(name, workers, app, options)],
        cwd=tree,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C is for us to pass on, when nothing is measured any more
    )
    said, children = [], []
    try:
        for line in process.stderr:
            said.append(line)
            if "Listening at: http://127.0.0.1:" in line:
                ports = [int(port) for port in re.findall(r"http://127.0.0.1:(\d+)", line)]
                break
        else:
            raise RuntimeError(f"{name} did not start:\n" + "".join(said))
        children = _children(process.pid, workers, name)
        yield Rig(ports[0], ports[1:], process.pid, children)
        if children_of(process.pid) != children:
            raise RuntimeError(f"a worker of {name} was replaced while it was measured")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        process.stderr.close()


def _children(master: int, workers: int, name: str) -> list[int]:
    """The workers' processes. gunicorn listens before it has any; they import the app then."""
    deadline = time.monotonic() + 20
    while len(children := children_of(master)) != workers:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} has the processes {children}, not {workers} workers")
        time.sleep(0.05)
    return children
