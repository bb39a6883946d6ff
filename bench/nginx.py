"""An nginx in front of some servers, with one port for each way to reach them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .rigs import cpu_of

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

_CONF = """
{user}
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 10000000;
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


@dataclass
class Nginx:
    """A running nginx, which is one process."""

    pid: int
    ports: dict[tuple[str, int], int]

    def cpu(self) -> dict[str, int]:
        return {"nginx": cpu_of(self.pid)}


def program() -> str | None:
    return shutil.which("nginx", path=PATH)


@contextlib.contextmanager
def nginx(upstreams: Mapping[str, Sequence[int]], keepalives: Sequence[int]) -> Iterator[Nginx]:
    """nginx before the servers at these ports, with so many idle connections kept (0: none).

    Where there are several ports it chooses by its own ``hash`` of the client's address.
    """
    ports, blocks = {}, []
    for name, servers in upstreams.items():
        for keepalive in keepalives:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = ports[name, keepalive] = free.getsockname()[1]
            kept = f"keepalive {keepalive}; keepalive_requests 10000000;"
            blocks.append(
                _BLOCK.format(
                    n=len(ports),
                    how="hash $http_x_forwarded_for;" if len(servers) > 1 else "",
                    servers=" ".join(f"server 127.0.0.1:{own};" for own in servers),
                    keepalive=kept if keepalive else "",
                    port=port,
                    connection="''" if keepalive else "close",
                )
            )
    if (nginx := program()) is None:
        raise FileNotFoundError("nginx")
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder, "nginx.conf")
        # The temporary folder is ours alone; started as root it would drop to nobody.
        user = "user root;" if os.getuid() == 0 else ""
        conf.write_text(_CONF.format(user=user, blocks="".join(blocks)))
        process = subprocess.Popen([nginx, "-p", folder, "-c", str(conf), "-e", "stderr"])
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
