"""What the measured servers serve: as little as possible, for what is around it is measured."""

from __future__ import annotations


def tiny():
    """Two bytes to everyone."""

    def answer(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    return answer


def silent():
    """A websocket that waits for its client; two bytes to everyone else."""
    from eventlet import websocket

    short = tiny()

    @websocket.WebSocketWSGI
    def wait(socket):
        while socket.wait() is not None:
            pass

    def app(environ, start_response):
        serve = wait if environ.get("HTTP_UPGRADE") == "websocket" else short
        return serve(environ, start_response)

    return app
