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


def numbered():
    """Two bytes to everyone: which worker it is. At /moves: how many connections it handed back."""
    worker, number = _worker_and_number()

    def answer(environ, start_response):
        body = _moves(worker) if environ["PATH_INFO"] == "/moves" else number
        length = str(len(body))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", length)])
        return [body]

    return answer


def numbered_asgi():
    """The same for ASGI."""
    worker, number = _worker_and_number()

    async def answer(scope, receive, send):
        if scope["type"] != "http":
            return
        body = _moves(worker) if scope["path"] == "/moves" else number
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def blind():
    """``numbered`` in a worker that does not look at further requests of a connection."""
    _do_not_look()
    return numbered()


def blind_asgi():
    _do_not_look()
    return numbered_asgi()


def _worker_and_number():
    import os

    import sticky

    return sticky.current_worker(), b"%02d" % int(os.environ["STICKY_WORKER_ID"])


def _moves(worker):
    return b"%d" % (worker.stats()["handed_back"] if worker else 0)


def _do_not_look():
    from sticky.worker import base

    make = base.Adapter.__init__

    def make_blind(self, *arguments, **options):
        make(self, *arguments, **options)
        self.looking = False

    base.Adapter.__init__ = make_blind
