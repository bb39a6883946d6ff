"""Servers that know nothing of each other, as processes that share a port without stickiness.

    python -m bench.plain eventlet 2 numbered

Each process also listens on a port of its own, for a proxy that chooses among them. The listeners
have what sticky's have: accepted sockets inherit TCP_NODELAY from theirs, and without it two writes
of an answer wait for each other.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
from collections.abc import Callable

Ready = Callable[[], None]


def main(kind: str, workers: int, app: str) -> None:
    """Fork so many servers, say where they listen, and end them when interrupted."""
    shared, own = [], []
    for _ in range(workers):
        shared.append(_listen(shared[0].getsockname()[1] if shared else 0, reuse=True))
        own.append(_listen(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    # The ports are announced when all workers serve: each closes its copy of this pipe's end.
    serving, ready = os.pipe()
    children = []
    for number, mine in enumerate(zip(shared, own, strict=True)):
        if child := os.fork():
            children.append(child)
            continue
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for listener in (*shared, *own):
            if listener not in mine:
                listener.close()
        os.environ["STICKY_WORKER_ID"] = str(number)
        SERVERS[kind](list(mine), app, lambda: os.close(ready))
        os._exit(0)
    os.close(ready)
    os.read(serving, 1)
    urls = [f"http://127.0.0.1:{it.getsockname()[1]}" for it in (shared[0], *own)]
    for listener in (*shared, *own):
        listener.close()
    sys.stderr.write(f"Listening at: {', '.join(urls)} ({kind})\n")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    for child in children:
        os.kill(child, signal.SIGKILL)


def _listen(port: int, *, reuse: bool = False) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    return listener


def _make(app: str) -> Callable[..., object]:
    from bench import apps

    return getattr(apps, app)()


def _eventlet(listeners: list[socket.socket], app: str, ready: Ready) -> None:
    import eventlet

    eventlet.monkey_patch()
    import eventlet.wsgi
    from eventlet.greenio import GreenSocket

    made = _make(app)
    ready()
    first, second = (GreenSocket(listener) for listener in listeners)
    eventlet.spawn(eventlet.wsgi.server, second, made, log_output=False)
    eventlet.wsgi.server(first, made, log_output=False)


def _gevent(listeners: list[socket.socket], app: str, ready: Ready) -> None:
    from gevent import monkey

    monkey.patch_all()
    import gevent
    from gevent.pywsgi import WSGIServer
    from gevent.socket import socket as green

    options = {}
    if app != "numbered":
        from geventwebsocket.handler import WebSocketHandler

        options["handler_class"] = WebSocketHandler
    made = _make(app)
    ready()
    for listener in listeners:
        listener = green(listener.family, listener.type, 0, listener.detach())
        WSGIServer(listener, made, log=None, **options).start()
    gevent.get_hub().join()


def _uvicorn(
    listeners: list[socket.socket], app: str, ready: Ready, *, proxy_headers: bool = True
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        _make(app),
        loop="uvloop",
        http="httptools",
        log_config=None,
        log_level="info",
        access_log=False,
        proxy_headers=proxy_headers,
        timeout_keep_alive=75,
        ws_ping_interval=None,
    )
    Server(config).run(listeners)


SERVERS = {
    "eventlet": _eventlet,
    "gevent": _gevent,
    "uvicorn": _uvicorn,
    "uvicorn-direct": functools.partial(_uvicorn, proxy_headers=False),
}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
