"""A chat over four worker processes. Run it and open http://127.0.0.1:3000

All tabs of a browser share one address, so behind a rule for addresses they would all meet the same
worker. This demo routes by the Host header instead (`header` may name any header): every
http://<name>.localhost:3000 is a client of its own, and browsers find *.localhost by themselves.
"""

import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import socketio

import sticky
from sticky.cluster import Manager, UnansweredError

FILES = Path(__file__).resolve().parent


def is_local(origin):
    """The robots of a page connect from its own name to other ones."""
    host = urlsplit(origin or "").hostname or ""
    return host == "127.0.0.1" or host == "localhost" or host.endswith(".localhost")


def factory():
    worker = sticky.current_worker()
    me = {"slot": worker.id, "pid": worker.pid}
    users = {}  # session id -> user; only those of this process
    sio = socketio.Server(
        async_mode="eventlet", client_manager=Manager(), cors_allowed_origins=is_local
    )

    def participants():
        """How many clients there are, on all workers: each is asked, and says what it knows."""
        try:
            return sio.manager.participants(timeout=1)
        except UnansweredError as error:  # somebody has just been killed
            return len(users) + sum(error.answers.values())

    def announce():
        """Who is here, to all clients of all workers.

        Told again and again and never taken back: a process that was killed cannot say that its
        users have left. Pages forget a process that has been silent for a few seconds.
        """
        sio.emit("here", {**me, "of": worker.options.num, "users": list(users.values())})

    def heartbeat():
        while True:
            announce()
            if users:
                sio.emit("participants", participants())
            sio.sleep(1)

    @sio.event
    def connect(sid, environ, auth=None):
        auth = auth if isinstance(auth, dict) else {}
        name = str(auth.get("name") or "somebody")[:20]
        users[sid] = {"id": sid, "name": name, "robot": bool(auth.get("robot"))}
        sio.emit("hello", {**me, "id": sid}, to=sid)
        announce()

    @sio.event
    def disconnect(sid, reason=None):
        users.pop(sid, None)
        announce()

    @sio.event
    def say(sid, text):
        sio.emit("said", {**me, **users[sid], "text": str(text)[:500]})
        return True  # the acknowledgement

    @sio.event
    def crash(sid):
        """What the button of the page does: the worst that can happen to this process."""
        os.kill(os.getpid(), signal.SIGKILL)

    sio.start_background_task(heartbeat)
    return socketio.WSGIApp(
        sio,
        static_files={
            "/": {"filename": str(FILES / "index.html"), "content_type": "text/html"},
            "/socket.io.min.js": str(FILES / "socket.io.min.js"),
        },
    )


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    sticky.listen(factory, port, num=4, proxy=True, header="host")
