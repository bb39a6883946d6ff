"""The same clients through a real nginx."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Start, requires
from tests.e2e.proxies import nginx
from tests.e2e.test_clients import CLIENTS, ECHOES, MODES, addresses, check, recorded
from tests.harness import Kind

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
