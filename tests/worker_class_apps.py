"""Apps that show what they are served by: a factory for each kind that has to be told apart."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.apps import App, Environ, StartResponse


def tell(*servers: Any) -> dict[str, Any]:
    """What this process is like. servers: of Socket.IO or Engine.IO."""
    import threading

    import sticky

    worker = sticky.current_worker()
    return {
        "class": worker.options.worker_class if worker else None,
        "loaded": sorted({"eventlet", "gevent", "uvloop"} & sys.modules.keys()),
        "modes": [getattr(server, "eio", server).async_mode for server in servers],
        "thread": threading.current_thread().name.partition("-")[0],
    }


def _wsgi(*servers: Any) -> App:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [json.dumps(tell(*servers)).encode()]

    return app


def _asgi(*servers: Any) -> Any:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(tell(*servers)).encode()})

    return app


def plain() -> App:
    return _wsgi()


def server(**options: Any) -> Any:
    """A plain Socket.IO server, in an app."""
    import socketio

    made = socketio.Server(**options)
    return socketio.WSGIApp(made, _wsgi(made))


def server_threading() -> Any:
    return server(async_mode="threading")


def engine_threading() -> Any:
    import engineio

    made = engineio.Server(async_mode="threading")
    return engineio.WSGIApp(made, _wsgi(made))


def async_server() -> Any:
    import socketio

    made = socketio.AsyncServer(async_mode="asgi")
    return socketio.ASGIApp(made, _asgi(made))


def fastapi() -> Any:
    import fastapi

    app = fastapi.FastAPI()
    app.get("/")(lambda: tell())
    return app


def flask(**options: Any) -> Any:
    """Flask, with Flask-SocketIO; the object of that is returned, as its users do."""
    import flask
    import flask_socketio

    app = flask.Flask(__name__)
    sio = flask_socketio.SocketIO(app, **options)
    app.get("/")(lambda: tell(sio.server))
    return sio


def flask_eventlet() -> Any:
    return flask(async_mode="eventlet")


def flask_threading() -> Any:
    return flask(async_mode="threading")


def flask_gevent() -> Any:
    return flask(async_mode="gevent")


def flask_async() -> Any:
    import flask

    app = flask.Flask(__name__)

    @app.get("/")
    async def view() -> Any:
        return tell()

    return app


def flask_async_in_a_blueprint() -> Any:
    import flask

    app, part = flask.Flask(__name__), flask.Blueprint("part", __name__)

    @part.get("/")
    async def view() -> Any:
        return tell()

    app.register_blueprint(part)
    return app


def django() -> Any:
    from django.conf import settings
    from django.http import JsonResponse
    from django.urls import path

    def view(request: Any) -> Any:
        return JsonResponse(tell())

    urls = type("urls", (), {"urlpatterns": [path("", view)]})
    settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()
