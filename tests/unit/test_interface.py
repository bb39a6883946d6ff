"""What kind of thing is this: a factory, a WSGI app, an ASGI app?"""

from __future__ import annotations

import functools
import subprocess
import sys

import fastapi
import flask
import flask_socketio
import pytest
import socketio
import starlette.applications
from werkzeug.local import LocalProxy
from werkzeug.middleware.proxy_fix import ProxyFix

from sticky.errors import WorkerError
from sticky.worker.interface import ASGI, FACTORY, WSGI, kind_of, make_app


def wsgi(environ, start_response):
    start_response("200 OK", [])
    return []


async def asgi(scope, receive, send):
    pass


def factory():
    return wsgi


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def undecorated(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class WsgiObject:
    def __call__(self, environ, start_response):
        return wsgi(environ, start_response)

    def method(self, environ, start_response):
        return wsgi(environ, start_response)

    @staticmethod
    def static(environ, start_response):
        return wsgi(environ, start_response)

    @classmethod
    def of_class(cls, environ, start_response):
        return wsgi(environ, start_response)

    def make(self):
        return wsgi


class AsgiObject:
    async def __call__(self, scope, receive, send):
        pass

    async def method(self, scope, receive, send):
        pass


class SyncAsgiObject:
    """As middleware is often written: it returns what the app behind it returns."""

    def __call__(self, scope, receive, send):
        return asgi(scope, receive, send)


class FactoryObject:
    def __call__(self):
        return wsgi


class WsgiClass:
    """PEP 3333's other form: the class is the app, its instance the response."""

    def __init__(self, environ, start_response):
        pass

    def __iter__(self):
        return iter([])


class AsgiClass:
    def __init__(self, scope, receive, send):
        pass

    def __await__(self):
        return iter([])


class NoArguments:
    """Calling it makes an app."""

    def __call__(self, environ, start_response):
        return []


class Endless:
    """Says yes to everything it is asked for, as lazy proxies do."""

    def __getattr__(self, name):
        return self

    def __call__(self, environ, start_response):
        return []


def with_defaults(config=None, *, debug=False):
    return wsgi


def wsgi_with_default(environ, start_response, extra=None):
    return []


async def coroutine_factory():
    return asgi


FLASK = flask.Flask(__name__)
SERVER = socketio.Server(async_mode="threading")
ASYNC_SERVER = socketio.AsyncServer(async_mode="asgi")

CASES = {
    # factories
    "a function without parameters": (factory, FACTORY),
    "a lambda without parameters": (lambda: wsgi, FACTORY),
    "a function with defaults": (with_defaults, FACTORY),
    "a function with keywords only": (lambda **settings: wsgi, FACTORY),
    "a partial that needs nothing more": (functools.partial(with_defaults, "production"), FACTORY),
    "a partial with everything given": (functools.partial(wsgi, {}, None), FACTORY),
    "a decorated factory": (decorated(factory), FACTORY),
    "a method that makes an app": (WsgiObject().make, FACTORY),
    "an object whose call makes an app": (FactoryObject(), FACTORY),
    "a class without parameters": (NoArguments, FACTORY),
    "a coroutine function without parameters": (coroutine_factory, FACTORY),
    # WSGI
    "a WSGI function": (wsgi, WSGI),
    "a WSGI lambda": (lambda environ, start_response: [], WSGI),
    "a WSGI function with a default": (wsgi_with_default, WSGI),
    "a decorated WSGI function": (decorated(wsgi), WSGI),
    "a WSGI function twice decorated": (decorated(decorated(wsgi)), WSGI),
    "a function of any arguments": (undecorated(wsgi), WSGI),
    "a partial WSGI function": (functools.partial(lambda app, e, s: [], wsgi), WSGI),
    "a partial of a partial": (
        functools.partial(functools.partial(lambda a, b, e, s: [], 1), 2),
        WSGI,
    ),
    "a WSGI object": (WsgiObject(), WSGI),
    "a WSGI method": (WsgiObject().method, WSGI),
    "a WSGI static method": (WsgiObject.static, WSGI),
    "a WSGI class method": (WsgiObject.of_class, WSGI),
    "a WSGI class": (WsgiClass, WSGI),
    "a Flask app": (FLASK, WSGI),
    "a Flask app's wsgi_app": (FLASK.wsgi_app, WSGI),
    "a lazy Flask app": (LocalProxy(lambda: FLASK), WSGI),
    "a Flask app behind ProxyFix": (ProxyFix(FLASK), WSGI),
    "a Flask-SocketIO object": (flask_socketio.SocketIO(FLASK, async_mode="threading"), WSGI),
    "a socketio.Server": (SERVER, WSGI),
    "a socketio.WSGIApp": (socketio.WSGIApp(SERVER), WSGI),
    "a socketio.WSGIApp around another": (socketio.WSGIApp(SERVER, wsgi), WSGI),
    "an object that has every attribute": (Endless(), WSGI),
    # ASGI
    "an ASGI coroutine function": (asgi, ASGI),
    "a decorated ASGI function": (decorated(asgi), ASGI),
    "a partial ASGI function": (functools.partial(asgi), ASGI),
    "a partial of a decorated ASGI function": (functools.partial(decorated(asgi)), ASGI),
    "an ASGI function that is no coroutine function": (lambda scope, receive, send: None, ASGI),
    "an ASGI object": (AsgiObject(), ASGI),
    "an ASGI method": (AsgiObject().method, ASGI),
    "a partial of an ASGI object": (functools.partial(AsgiObject()), ASGI),
    "an ASGI object that is no coroutine function": (SyncAsgiObject(), ASGI),
    "an ASGI class": (AsgiClass, ASGI),
    "a FastAPI app": (fastapi.FastAPI(), ASGI),
    "a Starlette app": (starlette.applications.Starlette(), ASGI),
    "a socketio.AsyncServer": (ASYNC_SERVER, ASGI),
    "a socketio.ASGIApp": (socketio.ASGIApp(ASYNC_SERVER), ASGI),
    "a socketio.ASGIApp around FastAPI": (
        socketio.ASGIApp(ASYNC_SERVER, fastapi.FastAPI()),
        ASGI,
    ),
    # neither
    "a number": (42, None),
    "nothing": (None, None),
    "a text": ("module:factory", None),
    "a function of one argument": (lambda app: app, None),
    "a function of four arguments": (lambda a, b, c, d: None, None),
    "the class Flask": (flask.Flask, None),
}


@pytest.mark.parametrize(("thing", "kind"), CASES.values(), ids=CASES)
def test_this_is(thing, kind):
    assert kind_of(thing) == kind


def test_a_factory_of_any_arguments_is_taken_for_an_app_and_can_be_named():
    """The one case that cannot be told apart; ``interface`` decides it."""
    assert kind_of(undecorated(factory)) == WSGI
    assert make_app(undecorated(factory), FACTORY) == (wsgi, WSGI)


@pytest.mark.parametrize(
    ("thing", "kind"), [(c, k) for c, k in CASES.values() if k in (WSGI, ASGI)][:4]
)
def test_an_app_is_served_as_it_is_and_not_called(thing, kind):
    assert make_app(thing) == (thing, kind)


@pytest.mark.parametrize("made", [wsgi, FLASK, SERVER, asgi, ASYNC_SERVER])
def test_what_a_factory_makes_is_asked_for_its_kind(made):
    app, kind = make_app(lambda: made)
    assert app is made
    assert kind == kind_of(made)


def test_the_interface_overrides_what_it_looks_like():
    def looks_like_nothing(one):
        return one

    for interface in (WSGI, ASGI):
        assert make_app(looks_like_nothing, interface) == (looks_like_nothing, interface)
        assert make_app(lambda: looks_like_nothing, interface) == (looks_like_nothing, interface)
    assert make_app(wsgi, ASGI) == (wsgi, ASGI)


@pytest.mark.parametrize(
    ("thing", "interface", "says"),
    [
        (42, "auto", "the app is 42, which cannot be served"),
        (lambda: 42, "auto", "the factory returned 42, which cannot be served"),
        (lambda: None, "auto", "the factory returned None"),
        (42, "factory", "42 is not a factory: it cannot be called"),
        (coroutine_factory, "auto", "is a coroutine function, and a factory cannot be one"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line_with_status_4(thing, interface, says):
    with pytest.raises(WorkerError) as raised:
        make_app(thing, interface)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_status == 4


def test_what_the_factory_raises_passes():
    def fails():
        raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        make_app(fails)


def test_telling_kinds_apart_loads_no_framework():
    """A known class is looked for only in modules that are there already."""
    code = (
        "import sys, sticky.worker.interface as i\n"
        "assert i.kind_of(lambda: 1) == 'factory'\n"
        "assert i.kind_of(lambda e, s: 1) == 'wsgi'\n"
        "loaded = {m for m, _, _ in i._KNOWN if m in sys.modules}\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
