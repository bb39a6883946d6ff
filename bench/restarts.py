"""What clients see of a master that is killed and started anew, with and without a supervisor that
keeps the ports (systemd's descriptor store; docs/operations.md has the figures).

    python -m bench.restarts [KILLS]
"""

from __future__ import annotations

import collections
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.process.supervisor_kit import Supervisor

CLIENTS = 8
PAUSE = 0.005
"""Seconds between two requests of a client."""
LIFE = 1.5
"""Seconds from ready to the next kill."""
RESTART = 0.1
"""Seconds from the end to the next start: RestartSec= of systemd, its default."""
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Clients:
    """Ask again and again, and count what becomes of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: collections.Counter[str] = collections.Counter()
        self.longest = 0.0
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def _run(self) -> None:
        while not self.over.wait(PAUSE):
            begun = time.monotonic()
            self.seen[self._ask()] += 1
            self.longest = max(self.longest, time.monotonic() - begun)

    def _ask(self) -> str:
        try:
            sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        except ConnectionRefusedError:
            return "refused"
        with sock:
            try:
                sock.sendall(REQUEST)
                return "answered" if sock.recv(65536).startswith(b"HTTP/1.1 200") else "lost"
            except OSError:
                return "lost"


def measure(kills: int, *, stores: bool) -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["-m", "sticky", "tests.apps:whoami", "-w", "2", "-k", "threads", "--no-ctl"]
    words += ["-b", f"127.0.0.1:{port}", "--log-level", "warning"]
    clients, starts = Clients(port), []
    with tempfile.TemporaryDirectory() as folder, Supervisor(Path(folder), stores=stores) as it:
        for turn in range(kills + 1):
            begun = time.monotonic()
            with it.start(*words, num=2, ready=False) as running:
                it.wait_for("READY")
                starts.append(time.monotonic() - begun)
                it.catch_up()
                if not turn:
                    for thread in clients.threads:
                        thread.start()
                time.sleep(LIFE)
                if turn == kills:
                    clients.over.set()
                    for thread in clients.threads:
                        thread.join()
                    break
                running.send_signal(signal.SIGKILL)
                running.wait()
            time.sleep(RESTART)
    seen = ", ".join(f"{what} {clients.seen[what]}" for what in ("refused", "lost", "answered"))
    return f"{seen}, longest {clients.longest:.2f} s, ready in {statistics.median(starts):.2f} s"


if __name__ == "__main__":
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for stores in (False, True):
        print("with   " if stores else "without", measure(kills, stores=stores), flush=True)
