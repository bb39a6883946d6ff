"""eventlet: green threads over a monkey-patched standard library.

Whatever waits here is switched away from by eventlet's own hub, which also waits for ours: a
listener on our epoll is called in the hub's greenlet, and what is started there runs at once, until
it waits for something itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import eventlet
import eventlet.event
import eventlet.hubs
from eventlet.greenio import GreenSocket

from ...core import Head
from ..hub import Hub
from ..taking import Offer
from .greenlets import GreenLoop

if TYPE_CHECKING:
    from ..wsgi import Behind, WsgiService
    from ..wsgi_http import WsgiWire


class _Late(Exception):  # noqa: N818
    """What was waited for has not come."""


def _ignore(*_: Any) -> None:
    """What eventlet wants to be called when a descriptor is closed: ours is not, while it is
    listened to."""


class _Offer(Offer):
    """With hooks that are called behind the request."""

    __slots__ = ("hooks",)

    def __init__(
        self, wire: WsgiWire, make: Callable[..., Any], current: Callable[[], object]
    ) -> None:
        super().__init__(wire, make, current)
        self.hooks: list[tuple[Callable[..., object], Any, Any]] = []

    def over(self, environ: dict[str, Any]) -> None:
        super().over(environ)
        for hook, arguments, options in self.hooks:
            hook(environ, *arguments, **options)


class EventletLoop(GreenLoop):
    """eventlet's hub."""

    checks_handshakes = False

    def __init__(self, service: WsgiService) -> None:
        super().__init__(service.hub, eventlet.hubs.get_hub().greenlet)
        self._over = eventlet.event.Event()

    def run(self, hub: Hub) -> None:
        hub.on_stop, hub.on_earlier = self._stop, self._arm
        loop = eventlet.hubs.get_hub()
        self._listener = loop.add(loop.READ, hub.fileno(), self._turn, _ignore, _ignore)
        self._arm()
        self._over.wait()
        loop.remove(self._listener)

    def _turn(self, _: int = 0) -> None:
        self._hub.turn()

    def _set_timer(self, seconds: float) -> Any:
        return eventlet.hubs.get_hub().schedule_call_global(seconds, self._ring)

    def _end_timer(self, timer: Any) -> None:
        timer.cancel()

    def _stop(self) -> None:
        if not self._over.ready():
            self._over.send()

    def wait(self, fd: int, *, writing: bool, seconds: float) -> bool:
        try:
            eventlet.hubs.trampoline(
                fd, read=not writing, write=writing, timeout=seconds, timeout_exc=_Late
            )
        except _Late:
            return False
        return True

    def offer(self, wire: WsgiWire, environ: dict[str, Any], head: Head) -> Behind | None:
        """What eventlet's own server gives: an input with ``get_socket``, hooks that are called
        behind the request, and what a websocket says before it waits."""
        offer = _Offer(wire, GreenSocket, eventlet.getcurrent)
        environ["eventlet.input"] = offer
        environ["eventlet.posthooks"] = offer.hooks
        environ["eventlet.set_idle"] = _ignore
        return offer.over

    def after_fork(self) -> None:
        """The hub's epoll is the parent's, too: the child gets a new one."""
        eventlet.hubs.use_hub()
