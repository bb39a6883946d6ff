"""The things that are compared: sticky, and what it is measured against, each as processes.

``bare`` is the floor for the master: a Python loop of accept, send_fds, close, with the listener's
flags, that feeds the very same workers. ``shared`` is the floor for the whole tree: the workers
accept for themselves, nothing is sticky.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
SEED = "0123456789abcdef"
AT_ONCE = 16
"""Connections that each of the two load generators keeps open at a time."""


def head(size: int, client: str, *, header: bool = True) -> bytes:
    """A request head of this many bytes; the routing header is its last line."""
    start = b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n"
    end = f"X-Forwarded-For: {client}\r\n\r\n".encode() if header else b"\r\n"
    filler = b""
    while (room := size - len(start) - len(end) - len(filler)) > 0:
        line = b"X-Filler: " + b"f" * max(1, min(room - 12, 150)) + b"\r\n"
        filler += line
    return start + filler + end


def app():
    """The smallest app: what is measured is what is around it."""

    def answer(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    return answer


@dataclass
class Rig:
    """A running server: its port, and the processes whose CPU is counted."""

    port: int
    master: psutil.Process
    tree: list[psutil.Process] = field(default_factory=list)

    def cpu(self) -> tuple[float, float]:
        """Seconds of CPU used so far: (by the master, by all processes)."""
        spent = [sum(process.cpu_times()[:2]) for process in (self.master, *self.tree)]
        return spent[0], sum(spent)


@contextlib.contextmanager
def rig(kind: str, workers: int, *, proxy: bool = True) -> Iterator[Rig]:
    """Start ``sticky``, ``bare`` or ``shared`` with this many workers."""
    module = {
        "sticky": ["-m", "sticky", "bench.rigs:app", "-b", "127.0.0.1:0", "-w", str(workers)],
        "bare": ["-m", "bench.rigs", "bare", str(workers)],
        "shared": ["-m", "bench.rigs", "shared", str(workers)],
    }[kind]
    if kind == "sticky":
        module += ["--seed", SEED, *(["--proxy"] if proxy else [])]
    process = subprocess.Popen(
        [sys.executable, *module], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "Listening at: http://127.0.0.1:" in line:
                port = int(line.split("http://127.0.0.1:")[1].split()[0])
                break
        else:
            raise RuntimeError("".join(lines))
        master = psutil.Process(process.pid)
        yield Rig(port, master, master.children(recursive=True))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        process.stderr.close()


def load(port: int, connections: int, size: int, *, clients: int = 64, header: bool = True) -> None:
    """New connections, one request each, from two processes that are not counted."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.rigs",
                "load",
                *map(str, (port, connections // 2, size, clients, int(header), part)),
            ],
            cwd=ROOT,
        )
        for part in range(2)
    ]
    for process in processes:
        if process.wait(120):
            raise RuntimeError("the load generator failed")


def _load(
    port: int, connections: int, size: int, clients: int, header: int, part: int
) -> None:
    heads = [head(size, f"192.0.{part}.{i}", header=bool(header)) for i in range(clients)]
    address = ("127.0.0.1", port)
    for start in range(0, connections, AT_ONCE):
        socks = []
        for number in range(start, min(start + AT_ONCE, connections)):
            sock = socket.create_connection(address)
            sock.sendall(heads[number % clients])
            socks.append(sock)
        for sock in socks:
            answer = b""
            while data := sock.recv(4096):
                answer += data
            sock.close()
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(answer[:200])


def _bare(workers: int) -> None:
    """sticky's own workers behind the plainest loop that can feed them."""
    from sticky import channel, ledger, spawn
    from sticky.master import Master
    from sticky.options import Options

    class Bare(Master):
        def _announce(self) -> None:
            super()._announce()
            listener = self._listeners[0]
            listener.setblocking(True)
            header = channel.pack_header(channel.CONNECTION, ("127.0.0.1", 1))
            inboxes = [slot.inbox for slot in self._slots]
            for inbox in inboxes:
                inbox.setblocking(True)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with contextlib.suppress(KeyboardInterrupt):
                turn = 0
                while True:
                    connection, _ = listener.accept()
                    turn = (turn + 1) % workers
                    socket.send_fds(inboxes[turn], [header], [connection.fileno()])
                    connection.close()
            self._ledger.stop(0.0, quick=True)

    from sticky import logs

    logs.set_up("info", patient=True)
    options = Options.make(port=0, num=workers)
    program = spawn.Program(target="bench.rigs:app", path=[str(ROOT), *sys.path])
    assert ledger
    Bare(options, program).run()


def _shared(workers: int) -> None:
    """eventlet's own server in every process, on one listener."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    for _ in range(workers):
        if os.fork():
            continue
        import eventlet
        import eventlet.wsgi
        from eventlet.greenio import GreenSocket

        eventlet.wsgi.server(GreenSocket(listener), app(), log_output=False)
        os._exit(0)
    sys.stderr.write(f"Listening at: http://127.0.0.1:{listener.getsockname()[1]} (shared)\n")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    for child in psutil.Process().children():
        child.kill()


if __name__ == "__main__":
    {"load": _load, "bare": _bare, "shared": _shared}[sys.argv[1]](*map(int, sys.argv[2:]))
