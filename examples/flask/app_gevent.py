"""Flask-SocketIO in gevent mode, on two workers. It needs `pip install flask-socketio gevent`:

    python examples/flask/app_gevent.py

Open http://127.0.0.1:3000 in two tabs: each is a session, and new ones go to the less busy worker.

A client costs a greenlet, not a thread. The workers have called `gevent.monkey.patch_all()` before
anything here is imported, so no line here does, and what waits (`time.sleep`, a socket) lets the
others run.
"""

import sys
import time
from pathlib import Path

import flask
import flask_socketio

import sticky
from sticky.cluster import Manager

FILES = Path(__file__).resolve().parent


def create_app():
    worker = sticky.current_worker().id
    app = flask.Flask(__name__, static_folder=FILES.parent / "chat", static_url_path="/static")
    sio = flask_socketio.SocketIO(app, async_mode="gevent", client_manager=Manager())

    @app.get("/")
    def page():
        return flask.send_file(FILES / "index.html")

    @app.get("/slow")
    def slow():
        time.sleep(0.1)  # this greenlet waits, and no other
        return {"worker": worker}

    @sio.on("connect")
    def connect():
        flask_socketio.emit("hello", {"worker": worker})

    @sio.on("say")
    def say(text):
        flask_socketio.emit("said", {"worker": worker, "text": str(text)[:500]}, broadcast=True)

    return sio


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    # The mode says which worker class is needed: worker_class="gevent" could be left out.
    sticky.listen(create_app, port, 2, worker_class="gevent", session="sid", balance="least")
