"""Apps as objects, and factories that return them: everything that sticky says it can serve."""

from __future__ import annotations

import json
from typing import Any

import flask
import flask_socketio
import socketio

from tests.apps import Environ, StartResponse, process, worker_id


def wsgi_function(environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"worker": worker_id(), **process()}).encode()]


class _Application:
    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        return wsgi_function(environ, start_response)


wsgi_object = _Application()

flask_app = flask.Flask(__name__)
flask_app.add_url_rule("/", "index", lambda: {"worker": worker_id()})

socketio_server = socketio.Server()
socketio_wsgi = socketio.WSGIApp(socketio_server, wsgi_function)

flask_socketio_app = flask_socketio.SocketIO(flask_app)


def make_socketio_server() -> Any:
    return socketio_server


def make_gevent_server() -> Any:
    return socketio.Server(async_mode="gevent")


def make_flask_socketio_app() -> Any:
    return flask_socketio_app
