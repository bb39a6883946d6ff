"""The counters for Prometheus, in its text format 0.0.4
(https://prometheus.io/docs/instrumenting/exposition_formats/).

    curl http://127.0.0.1:9100/metrics

The master's own are ``sticky_accepted_total`` and so on, those of the processes
``sticky_worker_requests_total{slot="0"}``: the only label is the slot, and nothing is said of
clients. What a new process in a slot counts begins with 0, which ``rate()`` understands.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..addresses import parse_metrics
from ..board import MASTER, WORKER
from ..errors import StickyError
from .desk import Desk, Register, Unregister
from .listeners import remove_stale
from .state import Packed, Packing

GAUGES = ("open", "not_begun", "resting", "sessions", "threads")
"""Of what is counted, that which also becomes less."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HELP = {
    "accepted": "Connections.",
    "refused": "Connections that the master answered itself: 400, 408, 431, 503.",
    "head_timeouts": "Refused: the head was not complete within head_timeout.",
    "heads_evicted": "Refused: more than max_pending_heads heads were awaited.",
    "queued": "Connections that waited in the master, because their worker had enough in hand.",
    "queue_timeouts": "Refused: still waiting after queue_timeout.",
    "left": "Connections that their clients closed while the master held them.",
    "crowded_out": "Connections closed to make room for others that moved.",
    "starved": "Times that no connection could be accepted for want of file descriptors.",
    "moved": "Connections that went from one worker to another for a further request.",
    "bytes_carried": "Bytes of further requests that went with them.",
    "moved_too_often": "Refused at max_moves.",
    "restarts": "Processes started in place of one that had ended.",
    "passed_on": "Idle connections of a worker that ends, given to its successor.",
    "rest_closed": "Idle connections given up because no worker could take them.",
    "returned": "Connections taken back from an inbox that no process read any more.",
    "shed": "Refused: more than max_queued waited, and it was the newest of the longest queue.",
}
HELP_WORKER = {
    "open": "Connections that are open now.",
    "not_begun": "Connections picked up and not yet given to the app.",
    "resting": "Connections that wait for their next request.",
    "adopted": "Connections taken from the master.",
    "lost": "Connections that came without their descriptor: the process had none free.",
    "sessions": "Sessions that the app holds now, as far as it can be known.",
    "requests": "Requests that the app has answered.",
    "looked": "Further requests on a connection that were looked at.",
    "handed_back": "Connections given back: their next request belongs to another worker.",
    "passed_on": "Idle connections given to the successor of this process.",
    "unheld": "Connections given back because their session is not held here.",
    "refused_heads": "Requests refused before the app saw them: 400, 431, 501, 505.",
    "head_timeouts": "Connections whose next head was not complete within head_timeout.",
    "keep_alive_ended": "Idle connections closed after keep_alive.",
    "body_timeouts": "Requests whose body did not come for body_timeout.",
    "write_timeouts": "Answers that their client did not read for write_timeout.",
    "client_left": "Answers that could not be finished because their client had left.",
    "app_errors": "Requests answered 500 because the app raised.",
    "handler_errors": "Handlers of connection that failed; answered 500.",
    "sync_timeouts": "Connections that were not released within sync_timeout; answered 503.",
    "left_unreleased": "Connections that their clients closed before they were released.",
    "threads": "Threads of worker class threads that there are now.",
    "thread_starved": "Times that no thread could be started.",
    "marks_forgotten": "Ids of ours that were held, and made room.",
    "mail_sent": "Messages for other workers, once for each of them.",
    "mail_received": "Messages of other workers that somebody here has subscribed to.",
    "mail_dropped": "Messages that a worker or a subscriber was too slow for.",
}


def exposition(stats: Mapping[str, Any]) -> str:
    """The counters as text.

    Args:
        stats: as ``sticky.stats()`` gives them.
    """
    workers = stats["workers"]
    lines = [
        "# HELP sticky_workers Slots that a process serves now.",
        "# TYPE sticky_workers gauge",
        f"sticky_workers {len(workers)}",
    ]
    for name in MASTER:
        lines += _family(f"sticky_{name}", name, HELP, {"": stats[name]})
    for name in WORKER:
        values = {f'{{slot="{slot}"}}': counted[name] for slot, counted in workers.items()}
        lines += _family(f"sticky_worker_{name}", name, HELP_WORKER, values)
    return "\n".join(lines) + "\n"


def _family(full: str, name: str, texts: Mapping[str, str], values: Mapping[str, int]) -> list[str]:
    kind = "gauge" if name in GAUGES else "counter"
    full += "" if kind == "gauge" else "_total"
    head = [f"# HELP {full} {texts.get(name, name)}", f"# TYPE {full} {kind}"]
    return head + [f"{full}{label} {value}" for label, value in values.items()]


class Metrics:
    """The listener, and who asks there: GET /metrics is answered, all else is 404.

    Args:
        address: where; as the option ``metrics``.
        stats: gives the counters.
        clock: the monotonic time, in seconds.
        packed: of a master before ("metrics" there), which has it open.

    Attributes:
        address: what it is bound to, as ``getsockname`` gives it.

    Raises:
        StickyError: it cannot listen there.
    """

    def __init__(
        self,
        address: str,
        stats: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float],
        packed: Packed | None = None,
    ) -> None:
        self._stats = stats
        kind, where, port = parse_metrics(address)
        self._path = where if kind == "unix" else ""
        if packed is not None:
            fd, *identity = packed.content["around"]["metrics"]
            listener = packed.socket(fd)
        else:
            try:
                listener = _unix(where) if kind == "unix" else _tcp(where, port)
            except OSError as error:
                raise StickyError(
                    f"cannot serve the metrics on {address}: {error.strerror or error}"
                ) from None
            identity = _identity(self._path)
        self.address: Any = listener.getsockname()
        self._identity = identity
        self._desk = Desk(listener, self._answer, clock, _response("431 Too Large"))

    def pack(self, packing: Packing) -> list[int]:
        """What another process of ours needs to have the same."""
        return [packing.fd(self._desk.fileno()), *self._identity]

    def open(self, register: Register, unregister: Unregister) -> None:
        """Begin to answer: in the loop that these belong to."""
        self._desk.open(register, unregister)

    def give_to(self, user: int, group: int) -> None:
        """Have the file of a unix socket belong to a user."""
        if self._path:
            os.chown(self._path, user, group, follow_symlinks=False)

    def tick(self, now: float) -> None:
        """To be called about once in a second."""
        self._desk.tick(now)

    def close(self) -> None:
        """Answer nobody any more; the file of a unix socket is removed if it is still ours."""
        self._desk.close()
        if self._path and _identity(self._path) == self._identity:
            with contextlib.suppress(OSError):
                Path(self._path).unlink()

    def _answer(self, asked: bytes, _client: socket.socket) -> bytes | None:
        if b"\r\n\r\n" not in asked and b"\n\n" not in asked:
            return None
        method, _, rest = asked.partition(b"\n")[0].partition(b" ")
        path = rest.split(b" ")[0].partition(b"?")[0]
        if method != b"GET" or path != b"/metrics":
            return _response("404 Not Found")
        return _response("200 OK", exposition(self._stats()))


def _response(status: str, body: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


def _tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock


def _unix(path: str) -> socket.socket:
    remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock


def _identity(path: str) -> list[int]:
    """Device and inode; nothing where nothing is."""
    try:
        found = os.lstat(path)
    except OSError:
        return []
    return [found.st_dev, found.st_ino]
