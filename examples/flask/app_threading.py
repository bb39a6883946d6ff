"""Flask-SocketIO in threading mode, on two workers. It needs `pip install flask-socketio`:

    python examples/flask/app_threading.py

Open http://127.0.0.1:3000 in two tabs: each is a session, and new ones go to the less busy worker.

Nothing is monkey-patched, so what needs real threads works: asyncio in a view, drivers written in
C, subprocesses. Each client that polls or has a websocket open takes a thread.
"""

import asyncio
import sys
from pathlib import Path

import flask
import flask_socketio

import sticky
from sticky.cluster import Manager

FILES = Path(__file__).resolve().parent


def create_app():
    worker = sticky.current_worker().id
    app = flask.Flask(__name__, static_folder=FILES.parent / "chat", static_url_path="/static")
    sio = flask_socketio.SocketIO(app, async_mode="threading", client_manager=Manager())

    @app.get("/")
    def page():
        return flask.send_file(FILES / "index.html")

    @app.get("/slow")
    async def slow():
        await asyncio.sleep(0.1)  # an event loop of its own, which eventlet could not give it
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
    # The mode says which worker class is needed: worker_class="threads" could be left out.
    sticky.listen(create_app, port, 2, worker_class="threads", session="sid", balance="least")
