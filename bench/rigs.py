"""The things that are compared, each as processes of their own, and what loads and measures them.

``proxy`` and ``direct`` are sticky's CLI with and without ``--proxy``. ``bare`` is the floor for
the master: a Python loop of accept, send_fds and close, with the same flags on its listener, that
feeds the very same workers in turn. ``shared`` is the floor for the whole tree: eventlet's own
server in every process, each with its own SO_REUSEPORT listener; nothing is sticky.

    python -m bench.rigs proxy 2 300        one rig alone, loaded until interrupted: for profilers
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
SEED = "0123456789abcdef"
KINDS = ("proxy", "direct", "bare", "shared")
PLAIN = ("eventlet", "uvicorn")
"""Servers of their own that know nothing of each other, each on its own port."""
GENERATORS = 2
CLIENTS = 64
"""Addresses per generator: the connections come from them, and the routing header names as many."""


# -- the machine ----------------------------------------------------------------------------------


def machine() -> str:
    """One line about what the figures were measured on."""
    cpu = "unknown CPU"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    packages = ", ".join(f"{name} {version(name)}" for name in ("Cython", "eventlet", "uvicorn"))
    return (
        f"Linux {platform.release()}, {len(os.sched_getaffinity(0))} x {cpu}, "
        f"Python {platform.python_version()}, {packages}"
    )


def cpu_of(pid: int) -> int:
    """Nanoseconds that a process with one thread has spent on a CPU (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def sleeps_of(pid: int) -> int:
    """How often a process has given up its CPU to wait for something, and so was woken up."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def memory_of(pid: int) -> tuple[int, int]:
    """(resident, proportional) memory in KB: proportional divides shared pages by their users."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0])
    return fields["Rss"], fields["Pss"]


def fds_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# -- the rigs -------------------------------------------------------------------------------------


@dataclass
class Rig:
    """A running server: its port (or one for each worker), and the processes whose CPU counts."""

    ports: list[int]
    master: int
    workers: list[int]

    @property
    def port(self) -> int:
        return self.ports[0]

    def cpu(self) -> tuple[int, int]:
        """Nanoseconds of CPU used so far: (by the master, by all processes)."""
        master = cpu_of(self.master)
        return master, master + sum(map(cpu_of, self.workers))


@contextlib.contextmanager
def rig(kind: str, workers: int, *options: str, app: str = "bench.apps:tiny") -> Iterator[Rig]:
    """Start one of KINDS or PLAIN with this many workers, and stop it at the end."""
    if kind in ("bare", "shared", *PLAIN):
        command = ["-m", "bench.rigs", kind, str(workers)]
    else:
        command = ["-m", "sticky", app, "-b", "127.0.0.1:0", "-w", str(workers), "--seed", SEED]
        command += ["--proxy"] if kind == "proxy" else []
        command += options
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C is for us to pass on, when nothing is measured any more
    )
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if "Listening at: http://127.0.0.1:" in line:
                ports = [int(port) for port in re.findall(r"http://127.0.0.1:(\d+)", line)]
                break
        else:
            raise RuntimeError(f"{kind} did not start:\n" + "".join(said))
        children = children_of(process.pid)
        if len(children) != workers:
            raise RuntimeError(f"{kind} has the processes {children}, not {workers} workers")
        yield Rig(ports, process.pid, children)
        if children_of(process.pid) != children:
            raise RuntimeError(f"a worker of {kind} was replaced while it was measured")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()


def _bare(workers: int) -> None:
    """sticky's own workers behind the plainest loop that can feed them."""
    from sticky import channel, spawn
    from sticky.master import dispatcher, master
    from sticky.options import Options

    class Bare(dispatcher.Dispatcher):
        """With the first connection the master stops being one, until it is interrupted."""

        def accept(self, listener: socket.socket, _: int = 0) -> int:
            listener.setblocking(True)
            header = channel.pack_header(channel.CONNECTION, ("127.0.0.1", 1))
            inboxes = list(self._inboxes)
            for inbox in inboxes:
                inbox.setblocking(True)
            handler = signal.signal(signal.SIGINT, signal.default_int_handler)
            turn = 0
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    connection, _ = listener.accept()
                    turn = (turn + 1) % workers
                    socket.send_fds(inboxes[turn], [header], [connection.fileno()])
                    connection.close()
            signal.signal(signal.SIGINT, handler)
            listener.setblocking(False)
            os.kill(os.getpid(), signal.SIGINT)
            return 0

    master.Dispatcher = Bare
    program = spawn.Program(target="bench.apps:tiny", path=[str(ROOT), *sys.path])
    sys.exit(master.run(Options.make(port=0, num=workers), program))


def _forked(kind: str, workers: int) -> None:
    """A server in every process, with its own listener: all on the same port, if it is shared."""
    listeners = []
    port = 0
    for _ in range(workers):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
        port = listener.getsockname()[1] if kind == "shared" else 0
        listeners.append(listener)
    # The port is announced when all workers serve: each closes its copy of this pipe's end.
    serving, ready = os.pipe()
    children = []
    for number, own in enumerate(listeners):
        if child := os.fork():
            children.append(child)
            continue
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for listener in listeners:
            if listener is not own:
                listener.close()
        os.environ["STICKY_WORKER_ID"] = str(number)
        (_uvicorn if kind == "uvicorn" else _eventlet)(
            own, "tiny" if kind == "shared" else "numbered", lambda: os.close(ready)
        )
        os._exit(0)
    os.close(ready)
    os.read(serving, 1)
    ports = dict.fromkeys(listener.getsockname()[1] for listener in listeners)
    for listener in listeners:
        listener.close()
    urls = ", ".join(f"http://127.0.0.1:{port}" for port in ports)
    sys.stderr.write(f"Listening at: {urls} ({kind})\n")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    for child in children:
        os.kill(child, signal.SIGKILL)


def _eventlet(listener: socket.socket, app: str, ready: Callable[[], None]) -> None:
    import eventlet

    eventlet.monkey_patch()
    import eventlet.wsgi
    from eventlet.greenio import GreenSocket

    from bench import apps

    factory = getattr(apps, app)
    made = factory()
    ready()
    eventlet.wsgi.server(GreenSocket(listener), made, log_output=False, keepalive=75)


def _uvicorn(listener: socket.socket, app: str, ready: Callable[[], None]) -> None:
    """With the settings of sticky's workers."""
    import uvicorn

    from bench import apps

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        getattr(apps, app + "_asgi")(),
        log_config=None,
        log_level="info",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    Server(config).run([listener])


# -- the load -------------------------------------------------------------------------------------


def head(size: int, client: str, *, header: bool = True) -> bytes:
    """A request head of exactly this many bytes; the routing header is its last line."""
    start = b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n"
    end = f"X-Forwarded-For: {client}\r\n\r\n".encode() if header else b"\r\n"
    left = size - len(start) - len(end)
    filler = b""
    while left:
        room = left if left < 200 else 160
        filler += b"X-Filler: " + b"f" * (room - 12) + b"\r\n"
        left -= room
    return start + filler + end


class Helpers:
    """Processes that are clients, started with numbers as arguments, told what to do in lines."""

    def __init__(self, module: str, what: str, *arguments: Sequence[int]) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, what, *map(str, numbers)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for numbers in arguments
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait(60)
            process.stdout.close()

    def _wait(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        for process in processes:
            if process.stdout.readline() != "done\n":
                raise RuntimeError("a client failed")


class Load(Helpers):
    """Opens new connections, one request on each, from processes that are not counted.

    They are started once and wait between rounds, so that a round measures nothing of theirs.
    """

    def __init__(self) -> None:
        super().__init__("bench.rigs", "load", *([part] for part in range(GENERATORS)))

    def run(self, port: int, connections: int, size: int, at_once: int, header: bool) -> None:
        """Open so many connections, ``at_once`` at a time in each generator.

        With 1 at a time a single generator works, so that they come singly: the next connection
        is opened when the one before was answered and closed.
        """
        using = self._processes[:1] if at_once == 1 else self._processes
        for process in using:
            order = (port, connections // len(using), size, at_once, int(header))
            process.stdin.write(" ".join(map(str, order)) + "\n")
            process.stdin.flush()
        self._wait(using)


class Websockets(Helpers):
    """Idle websockets, opened here and closed at the end."""

    def __init__(self, port: int, count: int, processes: int = 5) -> None:
        super().__init__(
            "bench.rigs",
            "websockets",
            *([port, count // processes, part] for part in range(processes)),
        )
        self._wait(self._processes)


def _load(part: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of its input ends it
    for line in sys.stdin:
        port, connections, size, at_once, header = map(int, line.split())
        heads = [head(size, f"192.0.{part}.{i}", header=bool(header)) for i in range(CLIENTS)]
        # As many source addresses: by them connections are routed where there is no header.
        sources = [(f"127.0.{1 + part}.{1 + i}", 0) for i in range(CLIENTS)]
        open_ones: deque[socket.socket] = deque()
        for number in range(connections):
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            sock.bind(sources[number % CLIENTS])
            sock.connect(("127.0.0.1", port))
            sock.sendall(heads[number % CLIENTS])
            open_ones.append(sock)
            if len(open_ones) == at_once:
                _answer(open_ones.popleft())
        while open_ones:
            _answer(open_ones.popleft())
        print("done", flush=True)


def _websockets(port: int, count: int, part: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks = []
    for number in range(count):
        sock = socket.create_connection(("127.0.0.1", port), 30, (f"127.0.0.{10 + part}", 0))
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"X-Forwarded-For: 198.51.%d.%d\r\n\r\n" % (part, number % 256)
        )
        answer = sock.recv(4096)
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise RuntimeError(f"an answer began with {answer[:100]!r}")
        socks.append(sock)
    print("done", flush=True)
    sys.stdin.read()


def _answer(sock: socket.socket) -> None:
    answer = b""
    while data := sock.recv(4096):
        answer += data
    sock.close()
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"an answer began with {answer[:100]!r}")


def _alone(kind: str, arguments: Sequence[str]) -> None:
    workers, size, at_once = (*map(int, arguments), *(2, 300, 1)[len(arguments) :])
    with rig(kind, workers) as it, Load() as load, contextlib.suppress(KeyboardInterrupt):
        print(f"the pid of the master is {it.master}", flush=True)
        while True:
            before, count = it.cpu(), 2000
            load.run(it.port, count, size, at_once, kind != "direct")
            master, tree = (
                (after - then) / count / 1000 for after, then in zip(it.cpu(), before, strict=True)
            )
            print(f"a connection: master {master:.1f} us, tree {tree:.1f} us", flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "bare" and len(rest) == 1:
        _bare(int(rest[0]))
    elif what in ("shared", *PLAIN) and len(rest) == 1:
        _forked(what, int(rest[0]))
    elif what == "load":
        _load(int(rest[0]))
    elif what == "websockets":
        _websockets(*map(int, rest))
    else:
        _alone(what, rest)
