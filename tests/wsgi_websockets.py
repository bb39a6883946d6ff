"""Every WebSocket that WSGI apps are known to use, in one app, by path; and apps that misbehave."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: test\r\nConnection: Upgrade\r\n\r\n"
_notes: list[str] = []


def _mode() -> str:
    import sticky

    worker = sticky.current_worker()
    assert worker is not None
    chosen = worker.options.worker_class
    return {"auto": "eventlet", "threads": "threading"}.get(chosen, chosen)


# -- libraries ---------------------------------------------------------------------------------


def _socketio(mode: str) -> App:
    import socketio

    server = socketio.Server(async_mode=mode)

    @server.event
    def echo(sid: str, data: Any) -> Any:
        return data

    @server.event
    def disconnect(sid: str, reason: str) -> None:
        _notes.append(f"socketio {reason}")

    app: App = socketio.WSGIApp(server, socketio_path="plain.io")
    return app


def _flask(mode: str) -> App:
    import flask
    import flask_sock
    import flask_socketio

    app = flask.Flask(__name__)
    sio = flask_socketio.SocketIO(app, async_mode=mode, path="flask.io")
    sock = flask_sock.Sock(app)

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    @sio.on("echo")
    def echo(data: Any) -> Any:
        return data

    @sock.route("/sock")
    def talk(ws: Any) -> None:
        try:
            while (message := ws.receive()) != "leave":
                ws.send(message)
        finally:
            _notes.append("flask_sock ends")

    return app


def _gevent(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """``wsgi.websocket``, in the way of gevent-websocket's README."""
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("400 Bad Request", [])
        return [b"no websocket"]
    handler = ws.handler
    while True:
        message = ws.receive()
        if message is None:
            break
        if message == "leave":
            return []
        if message == "raise":
            raise RuntimeError("the app raises behind the handshake")
        if message == "everybody":
            message = f"{len(handler.server.clients)} are here"
            for client in list(handler.server.clients.values()):
                client.ws.send(message)
            assert handler.active_client.ws is ws
        else:
            ws.send(message)
    _notes.append("wsgi.websocket ends")
    return []


def _refuses(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """What could take the socket, and does not."""
    if "eventlet.input" in environ:
        environ["eventlet.input"].get_socket()
    start_response("418 No", [("Content-Length", "2")])
    return [b"no"]


def _at_once(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Ends without a word."""
    assert environ["wsgi.websocket_version"] == "13"
    return []


def _resource() -> App:
    from geventwebsocket import Resource, WebSocketApplication

    class Echo(WebSocketApplication):  # type: ignore[misc]
        @classmethod
        def protocol_name(cls) -> str:
            return "echo.test"

        def on_open(self) -> None:
            self.ws.send("open")

        def on_message(self, message: Any) -> None:
            if message is not None:
                self.ws.send(message)

        def on_close(self, *_: Any) -> None:
            _notes.append("resource ends")

    app: App = Resource([("^/resource", Echo)])
    return app


# -- a socket and nothing else -----------------------------------------------------------------


def _socket(environ: Environ) -> Any:
    if "werkzeug.socket" in environ:
        return environ["werkzeug.socket"]
    return environ["eventlet.input"].get_socket()


def _raw(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Takes the socket, says what it read of the first ten bytes, and ends by ?QUERY."""
    sock = _socket(environ)
    end = environ["QUERY_STRING"]
    if end == "send":
        assert sock.send(_SWITCH) == len(_SWITCH)
    else:
        sock.sendall(_SWITCH)
    data = b""
    if end == "recv_into":
        buffer = bytearray(10)
        while len(data) < 10:
            size = sock.recv_into(buffer, 10 - len(data))
            assert size
            data += buffer[:size]
    elif end == "makefile":
        with sock.makefile("rb") as file:
            data = file.read(10)
    elif end == "peek":
        import socket

        data = sock.recv(1, socket.MSG_PEEK) + sock.recv(1, socket.MSG_PEEK)
    while len(data) < 10:
        more = sock.recv(3)
        assert more
        data += more
    sock.sendall(b"got " + data)
    match end:
        case "raise":
            raise RuntimeError("behind the end")
        case "exit":
            sys.exit(3)
        case "answer":
            write = start_response("200 OK", [("Content-Length", "4")])
            write(b"wrong")
            return [b"never"]
        case "twice":
            start_response("200 OK", [])
            start_response("200 OK", [])
        case "generate":
            return (block for block in (b"never", b"ever"))
        case "close":
            sock.close()
        case "keep":
            own = sock.dup()
            threading.Thread(target=_keep, args=(own,), daemon=True).start()
    return []


def _keep(sock: Any) -> None:
    """Goes on behind the request."""
    with sock:
        while data := sock.recv(100):
            sock.sendall(b"kept " + data)


def app() -> App:
    if os.environ.get("WITHOUT_GEVENT_WEBSOCKET"):
        sys.modules["geventwebsocket"] = None  # type: ignore[assignment]
    mode = _mode()
    sio, flask = _socketio(mode), _flask(mode)
    apps = {"plain.io": sio, "raw": _raw, "refuses": _refuses, "gevent": _gevent}
    apps["at-once"] = _at_once
    if mode == "gevent" and not os.environ.get("WITHOUT_GEVENT_WEBSOCKET"):
        apps["resource"] = _resource()

    def serve(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        first = environ["PATH_INFO"].split("/")[1]
        if first in ("stats", "notes"):
            import sticky

            worker = sticky.current_worker()
            assert worker is not None
            said: Any = worker.stats() if first == "stats" else _notes
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(said).encode()]
        return apps.get(first, flask)(environ, start_response)

    serve.app_protocol = getattr(apps.get("resource"), "app_protocol", None)  # type: ignore[attr-defined]
    if serve.app_protocol is None:  # type: ignore[attr-defined]
        del serve.app_protocol  # type: ignore[attr-defined]
    return serve
