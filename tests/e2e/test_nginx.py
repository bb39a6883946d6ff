"""The same clients through a real nginx."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Start, requires
from tests.e2e.shared_kit import NUM, SEED, Clients
from tests.e2e.test_clients import CLIENTS, ECHOES, MODES, addresses, check, recorded
from tests.harness import Kind, request, wait_until

CONF = """
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
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_buffering off;
        }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def nginx(folder: Path, upstream: int, *, connection: str, keepalive: str) -> Iterator[int]:
    """An nginx in front of the port ``upstream``; yields its own port."""
    program = requires("nginx")
    port = free_port()
    conf = folder / "nginx.conf"
    errors = folder / "error.log"
    errors.touch()
    conf.write_text(
        CONF.format(
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


def is_up(port: int) -> bool:
    try:
        return request(port, headers={"X-Forwarded-For": "192.0.2.1"}).status == 200
    except OSError:
        return False


# What nginx asks of us between two requests of the same connection. Since 1.29.7 it keeps
# connections unless told otherwise, and one connection then carries the requests of many clients.
CONNECTIONS = {
    "a connection for each request": ("close", ""),
    "no keep-alive pool": ("''", ""),
    "shared connections": ("''", "keepalive 4;"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("connections", CONNECTIONS)
def test_behind_nginx_every_request_of_a_client_reaches_one_worker(
    kind: Kind, tmp_path: Path, script: Start, connections: str, mode: str
) -> None:
    connection, keepalive = CONNECTIONS[connections]
    requires("nginx")
    server, record = recorded(kind, tmp_path)
    with (
        server as running,
        nginx(tmp_path, running.port, connection=connection, keepalive=keepalive) as port,
    ):
        clients = script(
            "clients.js",
            url=f"http://127.0.0.1:{port}",
            addresses=addresses(CLIENTS),
            mode=mode,
            echoes=ECHOES,
        )
        check(clients.answer(), record, mode)
        clients.end()


@pytest.mark.parametrize("count", [20, 200])
def test_behind_nginx_every_request_is_answered_by_its_own_worker(
    tmp_path: Path, kind: Kind, count: int
) -> None:
    requires("nginx")
    with (
        kind.serve("shared_lab", num=NUM, proxy=True, options=["--seed", SEED]) as running,
        nginx(tmp_path, running.port, connection="''", keepalive="keepalive 4;") as port,
    ):
        requests = int(os.environ.get("STICKY_REQUESTS", "5000"))
        clients = Clients(port, addresses(count), requests)
        assert (clients.wrong, clients.failed, clients.served) == ([], [], requests)
        assert "Traceback" not in running.log()


def test_without_looking_many_are_answered_by_another_worker(kind: Kind, tmp_path: Path) -> None:
    """The negative control: the test above can fail."""
    requires("nginx")
    with (
        kind.serve("shared_lab_blind", num=NUM, proxy=True, options=["--seed", SEED]) as running,
        nginx(tmp_path, running.port, connection="''", keepalive="keepalive 4;") as port,
    ):
        clients = Clients(port, addresses(20), 1000)
        assert len(clients.wrong) > 100
