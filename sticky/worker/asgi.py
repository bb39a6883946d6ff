"""asyncio: ASGI apps, FastAPI, socketio.AsyncServer, on asyncio or uvloop.

The hub is one descriptor of the event loop; what it says about connections becomes tasks that run
the app, and everything else happens within its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import channel
from ..board import APP_ERRORS
from ..core import Head
from ..errors import WorkerError
from .asgi_http import Exchange, Request
from .asgi_lifespan import Lifespan
from .asgi_websocket import WebSocket
from .boundary import TAKEN, Wire
from .mailing import AsyncioWaiter
from .server_object import server_object
from .service import Service
from .sessions import end, of_engineio
from .signals import nothing
from .sync import Connection
from .wire import AsgiWire

if TYPE_CHECKING:
    from .main import Worker

log = logging.getLogger("sticky.worker")

_CANCELLED = 0.5
"""Seconds for requests that are cancelled at the end: the app's lifespan is to have its turn."""
_LAST = 0.2
"""Seconds for tasks of the app's, at least."""
_EARLY = 0.001
"""Seconds by which a loop's timer may be early."""


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes an event loop.

    Args:
        name: the option ``loop``: "asyncio", "uvloop", or "auto" for uvloop where it is installed.

    Raises:
        WorkerError: uvloop is asked for, and not installed.
    """
    if name != "asyncio":
        try:
            import uvloop
        except ModuleNotFoundError:
            if name == "uvloop":
                raise WorkerError(
                    "option 'loop' is 'uvloop', which is not installed: "
                    "pip install 'socketio-sticky[asgi]'"
                ) from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


class AsgiService(Service):
    """Serves an ASGI app; see ``Service``.

    Attributes:
        loop: the event loop, once it runs.
        state: what the app's lifespan keeps for its requests.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        worker: Worker,
        app: Any,
        control: socket.socket,
        inbox: socket.socket,
        own_inbox: socket.socket,
    ) -> None:
        super().__init__(worker, as_asgi(app), control, inbox, own_inbox)
        self.exchanges: set[Exchange] = set()  # type: ignore[assignment]
        self.state: dict[str, Any] = {}
        self._lifespan = Lifespan(self.app)
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fresh: list[Exchange] = []
        self._turning = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf

    def mail_waiter(self) -> AsyncioWaiter:
        return AsyncioWaiter(self.loop)

    def run(self) -> None:
        self.loop = loop_factory(self.options.loop)()
        try:
            self._drive(self._serve())
        finally:
            self._wind_up()

    def _drive(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run the loop until this has ended."""
        main = self.loop.create_task(work)
        while True:
            try:
                self.loop.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt):
                # Of a task that the app has made: asyncio raises them here, and the loop is
                # as good as before.
                if main.done():
                    raise
                log.exception("a task of the app's has ended with this")
            else:
                return

    def _wind_up(self) -> None:
        """What ``asyncio.run`` does at its end, but within a bound: an executor's threads, too, are
        waited for later (``ending``)."""
        loop = self.loop
        try:
            by = max(self.draining.by, time.monotonic() + _LAST)
            self._drive(_all_cancelled(min(by, time.monotonic() + _CANCELLED)))
        finally:
            loop.close()
            signal.signal(signal.SIGTERM, nothing)  # it has put the usual action in its place

    async def _serve(self) -> None:
        loop = self.loop
        self._server_object = server_object(self.app)
        await self._lifespan.start()
        self.state = self._lifespan.state
        stopped = loop.create_future()
        self.hub.on_stop = lambda: None if stopped.done() else stopped.set_result(None)
        self.hub.on_earlier = self._set_timer
        loop.add_signal_handler(signal.SIGTERM, self.link.ask_to_leave)
        loop.add_reader(self.hub.fileno(), self._turn, self.hub.turn)
        self.begin()
        self._set_timer()
        await stopped
        loop.remove_reader(self.hub.fileno())
        if self.draining.cancelling:
            await self._cancel()
        await self._lifespan.stop(max(_LAST, self.draining.by - time.monotonic()))

    def cancel(self) -> None:
        self.hub.stop()

    async def _cancel(self) -> None:
        """Cancel what is in hand."""
        by = min(self.draining.by, time.monotonic() + _CANCELLED)
        for wire in list(self.wires):
            if wire.state == TAKEN:
                self.end_upgraded(wire)
        tasks = {exchange.task for exchange in self.exchanges if exchange.task is not None}
        for task in tasks | self._tasks:
            task.cancel()
        self.end_sessions(of_engineio())
        while (left := self._undone()) and by > time.monotonic():
            await asyncio.wait(left, timeout=by - time.monotonic())
        for wire in list(self.wires):
            wire.close()

    def _undone(self) -> set[asyncio.Task[None]]:
        tasks = {exchange.task for exchange in self.exchanges if exchange.task is not None}
        return {task for task in tasks | self._tasks if not task.done()}

    # -- the loop -----------------------------------------------------------------------------

    def watch_inbox(self, fd: int, call: Callable[[int], None]) -> None:
        # By the loop itself: a connection in its inbox is the commonest thing that wakes a worker,
        # and this saves it a turn of the hub.
        self.loop.add_reader(fd, self._turn, partial(call, 0))

    def leave_inbox(self, fd: int) -> None:
        self.loop.remove_reader(fd)

    def _turn(self, work: Callable[[], object]) -> None:
        """There is something to do."""
        self._turning = True
        try:
            work()
        except Exception:
            log.exception("an error in the worker's loop")
        finally:
            self._turning = False
            if self._fresh:
                self.loop.call_soon(self._settle)

    def _settle(self) -> None:
        fresh, self._fresh = self._fresh, []
        for exchange in fresh:
            exchange.settle()

    def _set_timer(self) -> None:
        """Have the hub's turn come when the next deadline has passed."""
        due = self.hub.due
        if due >= self._timer_due:
            return  # too early rather than too late: what is not late is laid aside again
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        seconds = max(0.0, due - time.monotonic()) + _EARLY
        self._timer = self.loop.call_later(seconds, self._timer_rings)

    def _timer_rings(self) -> None:
        self._timer, self._timer_due = None, math.inf
        if not self.hub.over:
            self._turn(self.hub.ring)
            self._set_timer()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._check()

    # -- what is served -----------------------------------------------------------------------

    def make_wire(
        self, fd: int, address: channel.Address, moves: int = 0, *, asks: bool = False
    ) -> Wire:
        return AsgiWire(self, fd, address, moves, asks=asks)

    def start(self, wire: AsgiWire, head: Head) -> Exchange:
        """Have the app serve this request, in a task of its own."""
        exchange: Exchange
        exchange = WebSocket(self, wire, head) if head.websocket else Request(self, wire, head)
        # Not in the context of whoever runs now: it may be the request before this one.
        exchange.task = self.loop.create_task(exchange.run(), context=self._context.copy())
        self.exchanges.add(exchange)
        self._fresh.append(exchange)
        if not self._turning and len(self._fresh) == 1:
            self.loop.call_soon(self._settle)
        return exchange

    def forked(self) -> None:
        super().forked()
        for exchange in self.exchanges:
            exchange.left = True
        self.ended = lambda _: self.end_child(None)  # type: ignore[assignment,method-assign]

    def ended(self, exchange: Exchange) -> None:
        """The app is done with it."""
        exchange.task = None
        self.exchanges.discard(exchange)
        if exchange.marking is not None:
            exchange.marking.end()
        if self.draining.finishing:
            self._check()

    @property
    def busy(self) -> bool:
        return bool(self.wires or self.exchanges or self._tasks)

    def _check(self) -> None:
        if self.draining.finishing and not self.busy:
            self.hub.call(self.draining.check)

    def app_misbehaved(self, head: Head, text: str) -> None:
        """Say that the app has broken the rules of ASGI, without an exception."""
        self.count(APP_ERRORS)
        target = head.target[:500].decode("latin-1").encode("unicode_escape").decode("ascii")
        log.error("%s %s: %s", head.method, target, text)

    # -- events, and the end ------------------------------------------------------------------

    def introduce(self, wire: Wire, connection: Connection) -> None:
        self._start_task(self._introduce(wire, connection))

    async def _introduce(self, wire: Wire, connection: Connection) -> None:
        try:
            for handler in tuple(self.worker.handlers):
                pending = handler(connection)
                if inspect.isawaitable(pending):
                    await pending
        except GeneratorExit:
            raise
        except BaseException:
            self.handler_failed(connection)
            self.sync.introduced(wire, failed=True)
        else:
            self.sync.introduced(wire)

    def end_upgraded(self, wire: Wire) -> None:
        assert isinstance(wire, AsgiWire)
        if isinstance(wire.exchange, WebSocket):
            wire.exchange.restart()
        else:
            wire.close()

    def end_sessions(self, sessions: list[Any]) -> None:
        for session in sessions:
            self.ended_sessions.add(session.sid)
            pending = end(session)
            if pending is not None:  # of an asynchronous server
                self._start_task(pending)


async def _all_cancelled(by: float) -> None:
    """Cancel all other tasks, and close the asynchronous generators that nobody goes on with."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=by - time.monotonic())
    for task in tasks:
        if task.done() and not task.cancelled() and task.exception() is not None:
            log.error("a task of the app's failed as it was cancelled: %r", task.exception())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(by - time.monotonic()):
            await loop.shutdown_asyncgens()


def as_asgi(app: Any) -> Any:
    """The ASGI callable in what a factory returned."""
    socketio = sys.modules.get("socketio")
    if socketio is not None and isinstance(app, socketio.AsyncServer):
        return socketio.ASGIApp(app)
    return app
