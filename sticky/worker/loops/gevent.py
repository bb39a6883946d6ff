"""gevent: greenlets over a monkey-patched standard library. A watcher of gevent's loop waits for
our epoll."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import gevent
import gevent.event
import gevent.socket

from ...core import Head
from ..hub import Hub
from ..taking import Offer
from .greenlets import GreenLoop

if TYPE_CHECKING:
    from ..wsgi import Behind, WsgiService
    from ..wsgi_http import WsgiWire

_READ = 1


class _Late(Exception):  # noqa: N818
    """What was waited for has not come."""


class _Socket(gevent.socket.socket):  # type: ignore[misc]
    """One whose objects take attributes."""


class GeventLoop(GreenLoop):
    """gevent's hub."""

    checks_handshakes = True

    def __init__(self, service: WsgiService) -> None:
        super().__init__(service.hub, gevent.get_hub())
        self._over = gevent.event.Event()
        self._app = service.wsgi
        self._loop = gevent.get_hub().loop
        self._watcher: Any = None

    def run(self, hub: Hub) -> None:
        hub.on_stop, hub.on_earlier = self._over.set, self._arm
        self._watcher = self._loop.io(hub.fileno(), _READ)
        self._watcher.start(self._turn)
        self._arm()
        self._over.wait()
        self._watcher.stop()
        self._watcher.close()

    def _turn(self) -> None:
        self._hub.turn()

    def _set_timer(self, seconds: float) -> Any:
        timer = self._loop.timer(seconds)
        timer.start(self._ring)
        return timer

    def _end_timer(self, timer: Any) -> None:
        timer.close()

    def wait(self, fd: int, *, writing: bool, seconds: float) -> bool:
        wait = gevent.socket.wait_write if writing else gevent.socket.wait_read
        try:
            wait(fd, timeout=seconds, timeout_exc=_Late())
        except _Late:
            return False
        return True

    def offer(self, wire: WsgiWire, environ: dict[str, Any], head: Head) -> Behind | None:
        """``werkzeug.socket`` for simple-websocket; for gevent-websocket, where that is there, its
        ``wsgi.websocket``."""
        if not head.upgrade:
            return None
        offer = Offer(wire, _Socket, gevent.getcurrent)
        environ["werkzeug.socket"] = offer.get_socket()
        over: Behind | None = self.websockets and self.websockets.offer(wire, environ, head, offer)
        return over or offer.over

    @functools.cached_property
    def websockets(self) -> Any:
        """What gives out ``wsgi.websocket``; None where gevent-websocket is not there."""
        try:
            from .geventwebsocket import Server
        except ImportError:
            return None
        return Server(self._app)

    def after_fork(self) -> None:
        """gevent has made a new loop, in which ours is watched: not in the child."""
        if self._watcher is not None:
            self._watcher.stop()
