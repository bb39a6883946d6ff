"""Real proxies in front of a server; ``PROXIES`` share their connections between clients."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.e2e.conftest import requires
from tests.harness import request, wait_until

NGINX = """
{user}
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        ''      {connection};
    }}
    upstream app {{
        server 127.0.0.1:{upstream};
        {keepalive}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_buffering off;
        }}
    }}
}}
"""

HAPROXY = """
global
    maxconn 2000
    nbthread 1
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
    # Never again what was sent already: a request that fails is to be seen.
    retries 0
frontend in
    bind 127.0.0.1:{port}
    default_backend app
backend app
    http-reuse {reuse}
    {keepalive}
    server app 127.0.0.1:{upstream} pool-max-conn {pool}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def is_up(port: int) -> bool:
    try:
        return request(port, headers={"X-Forwarded-For": "192.0.2.1"}).status == 200
    except OSError:
        return False


@contextmanager
def nginx(folder: Path, upstream: int, *, connection: str, keepalive: str) -> Iterator[int]:
    """An nginx in front of the port ``upstream``; yields its own port."""
    program = requires("nginx")
    port = free_port()
    conf = folder / "nginx.conf"
    errors = folder / "error.log"
    errors.touch()
    conf.write_text(
        NGINX.format(
            # The temporary folder is ours alone; started as root it would drop to nobody.
            user="user root;" if os.getuid() == 0 else "",
            folder=folder,
            upstream=upstream,
            port=port,
            connection=connection,
            keepalive=keepalive,
        )
    )
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(conf), "-e", str(errors)])
    try:
        wait_until(lambda: process.poll() is not None or is_up(port), what="nginx listens")
        assert process.poll() is None, errors.read_text()
        yield port
    except BaseException as error:
        error.add_note(errors.read_text()[-5000:])
        raise
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def haproxy(
    folder: Path,
    upstream: int,
    *,
    reuse: str = "always",
    keepalive: str = "option http-keep-alive",
    pool: int = 4,
) -> Iterator[int]:
    """An HAProxy in front of the port ``upstream``; yields its own port."""
    program = requires("haproxy")
    port = free_port()
    conf, log = folder / "haproxy.cfg", folder / "haproxy.log"
    conf.write_text(
        HAPROXY.format(port=port, upstream=upstream, reuse=reuse, keepalive=keepalive, pool=pool)
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-db", "-f", str(conf)], stdout=output, stderr=output, cwd=folder
        )
    try:
        wait_until(lambda: process.poll() is not None or is_up(port), what="haproxy listens")
        assert process.poll() is None, log.read_text()
        yield port
    except BaseException as error:
        error.add_note(log.read_text()[-5000:])
        raise
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def nginx_that_shares(folder: Path, upstream: int) -> Iterator[int]:
    """An nginx that keeps four connections."""
    with nginx(folder, upstream, connection="''", keepalive="keepalive 4;") as port:
        yield port


Proxy = Callable[[Path, int], AbstractContextManager[int]]
PROXIES: dict[str, Proxy] = {"nginx": nginx_that_shares, "haproxy": haproxy}
"""By name: given a folder and the port of a server, what yields the port of a proxy before it."""
