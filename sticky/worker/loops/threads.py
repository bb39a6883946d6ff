"""Threads: nothing is patched, each request is served in a thread of the operating system.

A thread belongs to a request and not to a connection: those that rest hold none. The loop itself is
the process's main thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ... import board
from ...core import Head
from ..hub import Hub
from ..taking import Offer

if TYPE_CHECKING:
    from ..wsgi import Behind, WsgiService, WsgiWire

log = logging.getLogger("sticky.worker")

_IDLE = 30.0
"""Seconds after which a thread that has nothing to do ends."""
_RETRY = 0.5
"""Seconds until it is tried again to start one."""


class _Socket(socket.socket):
    """One whose objects take attributes."""


class ThreadsLoop:
    """Threads of our own, started as they are needed: daemons, so that one that never returns does
    not keep the process from ending (ThreadPoolExecutor joins its threads at exit)."""

    threads = True
    multithread = True

    def __init__(self, service: WsgiService) -> None:
        self._service = service
        self._most = service.options.threads or service.options.max_connections
        self._work: queue.SimpleQueue[tuple[Callable[..., object], Any] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._alive = 0
        self._free = 0  # threads that wait for work, less the work that waits for threads
        self._started = 0
        self._retries = False

    def run(self, hub: Hub) -> None:
        main = threading.get_ident()

        def earlier() -> None:
            if threading.get_ident() != main:
                hub.wake()

        hub.on_earlier = earlier
        while not hub.over:
            hub.turn(min(max(0.0, hub.due - time.monotonic()), 3600.0))

    # -- starting -----------------------------------------------------------------------------

    def start(self, call: Callable[..., object], *arguments: Any) -> None:
        with self._lock:
            self._free -= 1
            wanted = self._free < 0
        if wanted:
            self._add()
        self._work.put((call, arguments))

    @property
    def can_start(self) -> bool:
        """There is a thread for one more request: started now, if none is free. A connection that
        there can be none for stays in the inbox."""
        return self._free > 0 or self._add()

    def _add(self) -> bool:
        """Start one more thread, if there may be one more and the system grants it."""
        with self._lock:
            if self._alive >= self._most:
                return False
            self._alive += 1
            self._free += 1
            self._started += 1
            name = f"sticky-{self._started}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._alive -= 1
                self._free -= 1
            self._starve(error)
            return False
        self._service.count(board.THREADS)
        return True

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
        if self._free < 0 and not self._alive:
            self._add()
        self._service.link.room()

    def _serve(self) -> None:
        """A thread's life."""
        service, link = self._service, self._service.link
        while True:
            try:
                call, arguments = self._work.get(timeout=_IDLE)  # type: ignore[misc]
            except queue.Empty:
                with self._lock:
                    if self._free > 0:
                        self._alive -= 1
                        self._free -= 1
                        break
                continue
            try:
                call(*arguments)
            except Exception:
                log.exception("an error outside the app")
            del call, arguments  # an idle thread keeps nothing of its last request
            with self._lock:
                self._free += 1
            if link.paused:
                service.hub.call(link.room)
        service.count(board.THREADS, -1)

    # -- what is started ----------------------------------------------------------------------

    def wait(self, fd: int, *, writing: bool, seconds: float) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLOUT if writing else select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def offer(self, wire: WsgiWire, environ: dict[str, Any], head: Head) -> Behind | None:
        """``werkzeug.socket``, which simple-websocket looks for first."""
        if not head.upgrade:
            return None
        offer = Offer(wire, _Socket, threading.get_ident)
        environ["werkzeug.socket"] = offer.get_socket()
        return offer.over

    def after_fork(self) -> None:
        """The child has none of the threads, and no work."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._work.get_nowait()
