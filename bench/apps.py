"""What the measured servers serve: as little as possible, for what is around it is measured.

Each is a factory. The name of a kind of server at its end says whose way to a websocket it uses.
"""

from __future__ import annotations

import os


def _number() -> bytes:
    """Which worker answers: two digits."""
    return b"%02d" % (int(os.environ.get("STICKY_WORKER_ID", os.getpid())) % 100)


def numbered():
    """Two bytes to everyone: which worker it is."""
    number = _number()

    def answer(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [number]

    return answer


def numbered_asgi():
    """The same for ASGI."""
    number = _number()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]

    async def answer(scope, receive, send):
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": number})

    return answer


# -- Socket.IO: what comes as "echo" goes back ----------------------------------------------------

_PATIENT = {"ping_interval": 3600, "ping_timeout": 3600, "cors_allowed_origins": "*"}


def _echo(mode):
    import socketio

    server = socketio.Server(async_mode=mode, **_PATIENT)

    @server.event
    def echo(sid, data):
        server.emit("echo", data, to=sid)

    return socketio.WSGIApp(server)


def echo_eventlet():
    return _echo("eventlet")


def echo_gevent():
    return _echo("gevent")


def echo_threads():
    return _echo("threading")


def echo_asgi():
    import socketio

    server = socketio.AsyncServer(async_mode="asgi", **_PATIENT)

    @server.event
    async def echo(sid, data):
        await server.emit("echo", data, to=sid)

    return socketio.ASGIApp(server)


# -- a websocket that waits for its client; two bytes to everyone else ----------------------------


def silent_eventlet():
    from eventlet import websocket

    @websocket.WebSocketWSGI
    def wait(socket):
        while socket.wait() is not None:
            pass

    return _either(wait)


def silent_gevent():
    def wait(environ, start_response):
        socket = environ["wsgi.websocket"]
        while socket.receive() is not None:
            pass
        return []

    return _either(wait)


def silent_threads():
    import simple_websocket

    def wait(environ, start_response):
        socket = simple_websocket.Server.accept(environ)
        try:
            while True:
                socket.receive()
        except simple_websocket.ConnectionClosed:
            return []

    return _either(wait)


def _either(wait):
    short = numbered()

    def app(environ, start_response):
        serve = wait if environ.get("HTTP_UPGRADE") == "websocket" else short
        return serve(environ, start_response)

    return app


def silent_asgi():
    short = numbered_asgi()

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            await short(scope, receive, send)
            return
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})

    return app
