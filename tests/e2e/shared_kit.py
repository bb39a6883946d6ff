"""Many clients whose requests a reverse proxy sends over a few connections."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Sequence

import sticky

SEED = "0123456789abcdef"
NUM = 4


def slot_of(address: str) -> int:
    """Where this client's requests have to be served."""
    head = f"GET / HTTP/1.1\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
    slot = sticky.explain(head, "127.0.0.1", num=NUM, seed=SEED, proxy=True).slot
    assert slot is not None
    return slot


class Clients:
    """Clients of a proxy, each with a connection to it and an address of its own, who all ask
    again and again until together they have asked ``requests`` times."""

    def __init__(self, port: int, addresses: Sequence[str], requests: int) -> None:
        self.port = port
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self.served = 0
        self._left = requests
        self._lock = threading.Lock()
        self._queues = [addresses[start::20] for start in range(20)]
        threads = [threading.Thread(target=self._run, args=(it,)) for it in self._queues]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100 + requests / 50)
        assert not any(thread.is_alive() for thread in threads)

    def _run(self, addresses: Sequence[str]) -> None:
        rng = random.Random(addresses[0])
        connections = [
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=30) for _ in addresses
        ]
        try:
            while True:
                for address, connection in zip(addresses, connections, strict=True):
                    with self._lock:
                        self._left -= 1
                        if self._left < 0:
                            return
                    self._ask(connection, address, rng)
        finally:
            for connection in connections:
                connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, address: str, rng: random.Random
    ) -> None:
        path = rng.choice(("/", "/body", "/unread", "/blob?size=20000", "/?status=304"))
        body = b"x" * rng.choice((1, 1000, 20_000)) if path in ("/body", "/unread") else None
        method = "POST" if body else rng.choice(("GET", "HEAD"))
        try:
            connection.request(method, path, body, {"X-Forwarded-For": address})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            with self._lock:
                self.failed.append(f"{address} {method} {path}: {error!r}")
            return
        with self._lock:
            if response.status not in (200, 304):
                self.failed.append(
                    f"{address} {method} {path}: {response.status} {content[:100]!r}"
                )
            elif response.headers["X-Worker"] != str(slot_of(address)):
                self.wrong.append(f"{address} {method} {path}: {response.headers['X-Worker']}")
            elif path == "/body" and content.count(b"x") < len(body or b""):
                self.failed.append(f"{address} {method} {path}: {len(content)} bytes came back")
            else:
                self.served += 1
