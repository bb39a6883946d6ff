"""Requests on connections that are kept, and an nginx that shares them between clients.

One kind of request alone, until interrupted (for profilers), on so many connections; the kinds are
own, moved, close (a new connection for each, answered so), blind (own, not looked at), and nginx4
(through an nginx that keeps 4 idle connections):

    python -m bench.asking eventlet moved 16
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import sticky

from .rigs import SEED, Helpers, Rig, cpu_of, rig

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
WORKERS = 4
APPS = {
    "eventlet": ("bench.apps:numbered", "bench.apps:blind"),
    "uvicorn": ("bench.apps:numbered_asgi", "bench.apps:blind_asgi"),
}


def slot_of(address: str) -> int:
    head = f"GET / HTTP/1.1\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
    slot = sticky.explain(head, "127.0.0.1", num=WORKERS, seed=SEED, proxy=True).slot
    assert slot is not None
    return slot


def clients_by_slot(each: int) -> list[list[str]]:
    """For each slot so many addresses of clients that belong there."""
    found: list[list[str]] = [[] for _ in range(WORKERS)]
    number = 0
    while any(len(addresses) < each for addresses in found):
        number += 1
        address = f"203.0.{number // 250}.{number % 250 + 1}"
        addresses = found[slot_of(address)]
        if len(addresses) < each:
            addresses.append(address)
    return found


def moves_of(it: Rig) -> int:
    """How many connections the workers have handed back so far."""
    total = 0
    for (client,) in clients_by_slot(1):
        connection = http.client.HTTPConnection("127.0.0.1", it.port, timeout=20)
        connection.request("GET", "/moves", headers={"X-Forwarded-For": client})
        total += int(connection.getresponse().read())
        connection.close()
    return total


class Asking(Helpers):
    """Asks again and again on several connections at once, one request at a time on each, from a
    process that is not counted. It makes sure that every client is answered by one worker only."""

    def __init__(self) -> None:
        super().__init__("bench.asking", "ask", [])

    def run(
        self, port: int, lines: Sequence[Sequence[str]], requests: int, *, keep: bool = True
    ) -> None:
        """Ask so often in total.

        Args:
            lines: for each connection its clients, whose requests come in turn.
            keep: all requests of a line on one connection; else each on a new one.
        """
        (process,) = self._processes
        process.stdin.write(json.dumps([port, lines, requests, keep]) + "\n")
        process.stdin.flush()
        self._wait([process])


class _Line:
    """One connection: which clients ask on it, and what has come of the answer."""

    def __init__(self, port: int, clients: Sequence[str]) -> None:
        head = "GET / HTTP/1.1\r\nHost: example.org\r\nX-Forwarded-For: {}\r\n\r\n"
        self._heads = [head.format(client).encode() for client in clients]
        self._clients = clients
        self._port = port
        self._asked = 0
        self._answer = b""
        self._sock: socket.socket | None = None

    def ask(self, epoll: select.epoll, lines: dict[int, _Line]) -> None:
        if self._sock is None:
            self._sock = socket.create_connection(("127.0.0.1", self._port), 30)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lines[self._sock.fileno()] = self
            epoll.register(self._sock.fileno(), select.EPOLLIN)
        self._answer = b""
        self._asked += 1
        self._sock.send(self._heads[self._asked % len(self._heads)])

    def hear(self, known: dict[str, bytes]) -> bool:
        """Read; whether the answer is complete."""
        data = self._sock.recv(65536)
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if data and (not end or len(body) < 2):
            return False
        client = self._clients[self._asked % len(self._heads)]
        if not head.startswith(b"HTTP/1.1 200 ") or known.setdefault(client, body) != body:
            raise RuntimeError(f"{client} was answered {self._answer[:300]!r} after {known}")
        return True

    def close(self, lines: dict[int, _Line]) -> None:
        if self._sock is not None:
            del lines[self._sock.fileno()]
            self._sock.close()
            self._sock = None


def _ask() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of its input ends it
    for order in sys.stdin:
        port, clients, requests, keep = json.loads(order)
        known: dict[str, bytes] = {}
        epoll, lines = select.epoll(), dict[int, _Line]()
        mine = [_Line(port, them) for them in clients]
        left, busy = requests, 0
        for line in mine[:requests]:
            line.ask(epoll, lines)
            left, busy = left - 1, busy + 1
        while busy:
            for fd, _ in epoll.poll():
                line = lines[fd]
                if not line.hear(known):
                    continue
                if not keep:
                    line.close(lines)
                if left:
                    line.ask(epoll, lines)
                    left -= 1
                else:
                    busy -= 1
        for line in mine:
            line.close(lines)
        epoll.close()
        print("done", flush=True)


# -- nginx ----------------------------------------------------------------------------------------

_CONF = """
{user}
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
{blocks}
}}
"""
_BLOCK = """
    upstream app{n} {{
        {how}
        {servers}
        {keepalive}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app{n};
            proxy_set_header Connection {connection};
        }}
    }}
"""


class Nginx:
    """A running nginx, with one port for each way to reach a server."""

    def __init__(self, pid: int, ports: dict[tuple[str, int], int]) -> None:
        self.pid = pid
        self.ports = ports

    def cpu(self) -> int:
        return cpu_of(self.pid)


@contextlib.contextmanager
def nginx(upstreams: dict[str, Rig], keepalives: Sequence[int]) -> Iterator[Nginx]:
    """nginx in front of several rigs, with so many idle connections kept (0: none, ``close``).

    In front of a rig with several ports it chooses by its own ``hash`` of the client's address.
    """
    ports, blocks = {}, []
    for name, it in upstreams.items():
        for keepalive in keepalives:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = ports[name, keepalive] = free.getsockname()[1]
            blocks.append(
                _BLOCK.format(
                    n=len(ports),
                    how="hash $http_x_forwarded_for;" if len(it.ports) > 1 else "",
                    servers=" ".join(f"server 127.0.0.1:{own};" for own in it.ports),
                    keepalive=f"keepalive {keepalive}; keepalive_requests 1000000;"
                    if keepalive
                    else "",
                    port=port,
                    connection="''" if keepalive else "close",
                )
            )
    program = shutil.which("nginx", path=PATH)
    if program is None:
        raise FileNotFoundError("nginx")
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder, "nginx.conf")
        # The temporary folder is ours alone; started as root it would drop to nobody.
        user = "user root;" if os.getuid() == 0 else ""
        conf.write_text(_CONF.format(user=user, blocks="".join(blocks)))
        process = subprocess.Popen([program, "-p", folder, "-c", str(conf), "-e", "stderr"])
        try:
            for port in ports.values():
                _wait_for(port, process)
            yield Nginx(process.pid, ports)
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 10).close()
            return
        time.sleep(0.02)
    raise RuntimeError("nginx did not start")


# -- alone ----------------------------------------------------------------------------------------


def lines(what: str, connections: int) -> list[list[str]]:
    """The clients of each connection: one each (own), or two of different workers (moved)."""
    by_slot = clients_by_slot(connections)
    if what == "own":
        return [[by_slot[i % WORKERS][i]] for i in range(connections)]
    return [[by_slot[i % WORKERS][i], by_slot[(i + 1) % WORKERS][i]] for i in range(connections)]


def _alone(kind: str, what: str, connections: int) -> None:
    ours, blind = APPS[kind]
    with contextlib.ExitStack() as stack:
        options = ["--keep-alive", "0"] if what == "close" else []
        app = blind if what == "blind" else ours
        it = stack.enter_context(rig("proxy", WORKERS, *options, app=app))
        asking = stack.enter_context(Asking())
        port, keep = it.port, what != "close"
        them = lines("own" if what in ("own", "blind") else "moved", connections)
        front = None
        if what.startswith("nginx"):
            keepalive = int(what.removeprefix("nginx"))
            front = stack.enter_context(nginx({"it": it}, [keepalive]))
            port = front.ports["it", keepalive]
            them = [[f"198.51.100.{i}"] for i in range(connections)]
        print(f"master {it.master}, workers {it.workers}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                count, (master, tree) = 2000, it.cpu()
                asking.run(port, them, count, keep=keep)
                after = it.cpu()
                each = ((after[0] - master) / count / 1000, (after[1] - tree) / count / 1000)
                print(f"a request: master {each[0]:.1f} us, tree {each[1]:.1f} us", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["ask"]:
        _ask()
    else:
        _alone(sys.argv[1], sys.argv[2], int(sys.argv[3]))
