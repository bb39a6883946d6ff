"""Threads: nothing is patched, each request is served in a thread of the operating system.

A thread belongs to a request and not to a connection: those that rest hold none.
"""

from __future__ import annotations

import contextlib
import select
import socket
from _thread import get_ident
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ... import board
from ...core import Head
from ..crew import Crew
from ..hub import Hub
from ..taking import Offer

if TYPE_CHECKING:
    from ..wsgi import Behind, WsgiService
    from ..wsgi_http import WsgiWire

_RETRY = 0.5
"""Seconds until it is tried again to start a thread."""


class _Socket(socket.socket):
    """One whose objects take attributes."""


class ThreadsLoop:
    """The hub is run by one thread at a time."""

    threads = True
    multithread = True
    cancelled: tuple[type[BaseException], ...] = ()
    checks_handshakes = True

    def __init__(self, service: WsgiService) -> None:
        options = service.options
        most = options.threads or options.max_connections
        self._service = service
        self._crew = Crew(service.hub, most, self._starve, self._freed)
        self._retries = False
        self.enter = self._crew.enter
        self.leave = self._crew.leave

    def run(self, hub: Hub) -> None:
        self._crew.run()

    def start(self, call: Callable[..., object], *arguments: Any) -> None:
        self._crew.put(call, arguments)

    @property
    def here(self) -> bool:
        return self._crew.has_loop

    @property
    def can_start(self) -> bool:
        """What there is no thread for stays in the inbox."""
        can = self._crew.can_take
        self._service.cells[board.THREADS] = self._crew.alive
        return can

    def _starve(self, error: RuntimeError) -> None:
        service = self._service
        service.count(board.THREAD_STARVED)
        service.tell_once(
            "threads",
            f"no thread could be started ({error}): connections wait until one is free; raise the "
            "limit (ulimit -u, TasksMax=, pids.max) or set --threads",
        )
        if not self._retries:
            self._retries = True
            service.hub.call(lambda: service.hub.later(_RETRY, self._try_again))

    def _try_again(self) -> None:
        self._retries = False
        self._service.link.room()

    def _freed(self) -> None:
        if self._service.link.paused:
            self._service.hub.call(self._service.link.room)

    # -- what is started ----------------------------------------------------------------------

    def wait(self, fd: int, *, writing: bool, seconds: float) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLOUT if writing else select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def offer(self, wire: WsgiWire, environ: dict[str, Any], head: Head) -> Behind | None:
        """``werkzeug.socket``, which simple-websocket looks for first."""
        if not head.upgrade:
            return None
        offer = Offer(wire, _Socket, get_ident)
        environ["werkzeug.socket"] = offer.get_socket()
        return offer.over

    def cancel(self) -> None:
        """Nothing can be thrown into a thread: it sees that its client is gone when it next reads
        or writes."""
        for exchange in tuple(self._service.exchanges):
            with contextlib.suppress(OSError):  # it may be over by now
                exchange.wire.sock.shutdown(socket.SHUT_RDWR)

    def after_fork(self) -> None:
        self._crew.forget()
