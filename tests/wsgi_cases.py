# ruff: noqa: SIM115 - a file is closed by the server that sends it
"""One WSGI app that does something else for each path, and notes what has become of it.

``/case/NAME`` is the case of that name, ``/valid/NAME`` the same behind ``wsgiref.validate``;
``/notes?of=`` has what was noted under that key since, ``/open?gate=`` lets whoever waits there go.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs
from wsgiref.validate import validator

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

TEXT = ("Content-Type", "text/plain")
FILE = b"".join(b"%07d\n" % number for number in range(40_000))

_notes: dict[str, list[Any]] = defaultdict(list)
_gates: dict[str, threading.Event] = {}
_cases: dict[str, App] = {}


def case(app: App) -> App:
    _cases[app.__name__] = app
    return app


def _asked(environ: Environ) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}


def _gate(name: str) -> threading.Event:
    return _gates.setdefault(name, threading.Event())


class Closed:
    """Blocks of a body, and a note each time ``close`` is called."""

    def __init__(self, key: str, blocks: Iterable[bytes]) -> None:
        self.key = key
        self.blocks = iter(blocks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self.blocks)

    def close(self) -> None:
        _notes[self.key].append("closed")
        if "bad-close" in self.key:
            raise RuntimeError("close failed")


# -- how an answer is given --------------------------------------------------------------------


@case
def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    return [b"hello"]


@case
def status(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """?of= it is, and a body that it may not have."""
    start_response(_asked(environ)["of"], [])
    return [b"hello"]


@case
def two_blocks(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    return [b"hel", b"lo"]


@case
def writes(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", [TEXT])
    write(b"hel")
    write(b"")
    write(b"lo")
    return [b" there"]


@case
def generator(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    yield b""
    yield b"hel"
    yield b"lo"


@case
def iterator(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Called once, iterated by ``__getitem__``'s protocol or ``__iter__``: an iterable it is."""
    start_response("200 OK", [TEXT, ("Content-Length", "5")])
    return iter([b"hel", b"lo"])


@case
def nothing(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    return []


@case
def closes(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """?key= is where it is noted; ?raise=: at which block; ?length="""
    asked = _asked(environ)
    fields = [TEXT]
    if "length" in asked:
        fields.append(("Content-Length", asked["length"]))
    start_response("200 OK", fields)

    def blocks() -> Iterator[bytes]:
        for number in range(4):
            if asked.get("raise") == str(number):
                raise RuntimeError("the app raises in the iteration")
            yield b"block"

    return Closed(asked["key"], blocks())


@case
def endless(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Blocks until somebody has enough of it; ?size="""
    asked = _asked(environ)
    start_response("200 OK", [TEXT])

    def blocks() -> Iterator[bytes]:
        while True:
            yield b"x" * int(asked.get("size", "1000"))
            time.sleep(0.01)

    return Closed(asked["key"], blocks())


@case
def gated(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Each further block once the gate ?gate= followed by its number is open."""
    asked = _asked(environ)
    start_response("200 OK", [TEXT, *([("Content-Length", "12")] if "length" in asked else [])])
    yield b"one;"
    assert _gate(asked["gate"] + "1").wait(60)
    yield b"two;"
    assert _gate(asked["gate"] + "2").wait(60)
    yield b"end;"


@case
def late_start(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """In the first ``next``."""
    start_response("202 Accepted", [TEXT])
    yield b"late"


@case
def later_start(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """In the second, behind an empty block."""
    yield b""
    start_response("202 Accepted", [TEXT])
    yield b"late"


@case
def twice(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    start_response("200 OK", [TEXT])
    return [b"twice"]


@case
def never(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return [b"never"]


@case
def never_empty(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return []


@case
def returns_none(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", [TEXT])


@case
def text(environ: Environ, start_response: StartResponse) -> Any:
    start_response("200 OK", [TEXT])
    return ["text"]


@case
def exc_info_before(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT, ("X-First", "1")])
    try:
        raise ValueError("first")
    except ValueError:
        start_response("503 Sorry", [TEXT, ("X-Second", "2")], sys.exc_info())
    return [b"sorry"]


@case
def exc_info_after(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", [TEXT])
    write(b"begun")
    try:
        raise ValueError("the first error")
    except ValueError:
        try:
            start_response("503 Sorry", [TEXT], sys.exc_info())
        except ValueError as error:
            _notes["exc_info_after"].append(str(error))
            raise
    return [b"not reached"]


@case
def raises(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise RuntimeError("the app is to blame")


@case
def exits(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    sys.exit(3)


@case
def interrupts(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise KeyboardInterrupt


@case
def exits_later(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    yield b"begun"
    sys.exit(3)


@case
def fields(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Status and fields as the body has them, as JSON."""
    what = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    start_response(what.get("status", "200 OK"), [tuple(pair) for pair in what["fields"]])
    return [b"hello"]


@case
def lengths(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """?length= is said, ?blocks= blocks of five bytes come, as a list or one by one."""
    asked = _asked(environ)
    start_response("200 OK", [TEXT, ("Content-Length", asked["length"])])
    blocks = [b"12345"] * int(asked["blocks"])
    return iter(blocks) if "iter" in asked else blocks


# -- files -------------------------------------------------------------------------------------


def _path() -> str:
    return os.environ["WSGI_CASES_FILE"]


class Noted:
    """A file of its own kind: no descriptor, and what is called is noted."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.file = io.BytesIO(FILE)

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        _notes[self.key].append(len(data))
        return data

    def close(self) -> None:
        _notes[self.key].append("closed")


def _at(at: int, whence: int = io.SEEK_SET, file: Any = None) -> Any:
    """A file that stands there; the file of the cases, if none is given."""
    file = file or open(_path(), "rb")
    file.seek(at, whence)
    return file


def _written(file: Any) -> Any:
    file.write(FILE)
    return _at(0, file=file)


def _piped() -> Any:
    reader, writer = os.pipe()
    with open(writer, "wb") as end:  # (gevent's os.close closes later)
        end.write(b"through a pipe")
    return open(reader, "rb")


_FILES: dict[str, Callable[[], Any]] = {
    "real": lambda: open(_path(), "rb"),
    "huge": lambda: open(_path() + ".huge", "rb"),
    "raw": lambda: open(_path(), "rb", buffering=0),
    "random": lambda: open(_path(), "r+b"),
    "offset": lambda: _at(8000),
    "end": lambda: _at(0, io.SEEK_END),
    "bytes": lambda: io.BytesIO(FILE),
    "text": lambda: open(_path()),
    "gzip": lambda: gzip.open(_path() + ".gz"),
    "bz2": lambda: bz2.open(_path() + ".bz2"),
    "xz": lambda: lzma.open(_path() + ".xz"),
    "temporary": lambda: _written(tempfile.NamedTemporaryFile()),
    "spooled": lambda: _written(tempfile.SpooledTemporaryFile(max_size=1)),
    "pipe": _piped,
}


def _begun() -> Any:
    file = open(_path(), "rb")
    file.read(16)
    return file


_FILES["begun"] = _begun


@case
def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """?kind= of file; ?length= that is said; ?key= notes its end."""
    asked = _asked(environ)
    told = [TEXT]
    if "length" in asked:
        told.append(("Content-Length", asked["length"]))
    start_response("200 OK", told)
    if asked["kind"] == "noted":
        opened: Any = Noted(asked["key"])
    else:
        opened = _FILES[asked["kind"]]()
        if "key" in asked:
            opened = _Watched(opened, asked["key"])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](opened, 8192)
    return wrapped


class _Watched(io.BufferedReader):
    """A real file whose end is noted."""

    def __init__(self, file: Any, key: str) -> None:
        super().__init__(file.detach())
        self.key = key

    def close(self) -> None:
        if not self.closed:
            _notes[self.key].append("closed")
        super().close()


# -- what the app is told ----------------------------------------------------------------------


@case
def environ(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """JSON: what is text in it, and of the rest what it is."""
    start_response("200 OK", [("Content-Type", "application/json")])
    told: dict[str, Any] = {}
    for name, value in environ.items():
        plain = isinstance(value, str | bool | int | tuple)
        told[name] = value if plain else type(value).__name__
    return [json.dumps(told).encode()]


@case
def reads(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """JSON: what the calls of ?do= (name, or name-size, by commas) return, one after another."""
    body = environ["wsgi.input"]
    said: list[Any] = []
    for call in _asked(environ)["do"].split(","):
        name, _, size = call.partition("-")
        if name == "iterate":
            got: Any = list(body)
        elif size == "none":
            got = getattr(body, name)(None)
        elif size == "minus":
            got = getattr(body, name)(-1)
        else:
            got = getattr(body, name)(*([int(size)] if size else []))
        if isinstance(got, bytes):
            said.append(got.decode("latin-1"))
        else:
            said.append([line.decode("latin-1") for line in got])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(said).encode()]


@case
def reads_late(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The body once the gate ?gate= is open; a note when it waits there."""
    gate = _asked(environ)["gate"]
    _notes[gate].append("waits")
    assert _gate(gate).wait(60)
    data = environ["wsgi.input"].read()
    start_response("200 OK", [TEXT])
    return [data]


@case
def catches(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Goes on although the body cannot be read; notes why it cannot."""
    try:
        environ["wsgi.input"].read()
    except OSError as error:
        _notes[_asked(environ)["key"]].append(str(error))
    start_response("200 OK", [TEXT])
    return [b"as if nothing had been"]


@case
def unread(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    return [b"unread"]


@case
def big(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """More than a client's buffers hold, in one block; ?key= notes its end."""
    start_response("200 OK", [TEXT])
    return Closed(_asked(environ)["key"], [b"x" * 30_000_000])


@case
def errors(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    environ["wsgi.errors"].write("written to wsgi.errors\n")
    environ["wsgi.errors"].writelines(["and lines\n"])
    environ["wsgi.errors"].flush()
    start_response("200 OK", [TEXT])
    return [b"hello"]


# -- frameworks --------------------------------------------------------------------------------


def _flask() -> App:
    import flask

    app = flask.Flask(__name__)

    @app.route("/flask/echo", methods=["GET", "POST"])
    def echo() -> Any:
        request = flask.request
        return {
            "data": request.get_data(as_text=True),
            "args": dict(request.args),
            "url": request.url,
            "cookies": dict(request.cookies),
        }

    @app.post("/flask/form")
    def form() -> Any:
        sent = flask.request.files["file"]
        return {"name": sent.filename, "size": len(sent.read()), **flask.request.form}

    @app.get("/flask/stream")
    def stream() -> Any:
        return flask.Response((str(number) for number in range(5)), mimetype="text/plain")

    @app.get("/flask/file")
    def send_file() -> Any:
        return flask.send_file(_path(), mimetype="text/plain", conditional=True)

    @app.get("/flask/raise")
    def fail() -> Any:
        raise RuntimeError("the view is to blame")

    valid = validator(app)

    def either(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Werkzeug reads to the end of a body, which the validator does not know can be done."""
        chosen: App = valid if environ["REQUEST_METHOD"] in ("GET", "HEAD") else app
        return chosen(environ, start_response)

    return either


def _django() -> App:
    from django.conf import settings

    settings.configure(
        ROOT_URLCONF="tests.wsgi_cases", ALLOWED_HOSTS=["*"], SECRET_KEY="x", DEBUG=False
    )
    from django.core.wsgi import get_wsgi_application

    return validator(get_wsgi_application())


def django_echo(request: Any) -> Any:
    from django.http import JsonResponse

    return JsonResponse({"data": request.body.decode(), "url": request.build_absolute_uri()})


def django_file(request: Any) -> Any:
    from django.http import FileResponse

    return FileResponse(open(_path(), "rb"))


def django_stream(request: Any) -> Any:
    from django.http import StreamingHttpResponse

    return StreamingHttpResponse(str(number) for number in range(5))


def __getattr__(name: str) -> Any:
    if name == "urlpatterns":
        from django.urls import path

        return [
            path("django/echo", django_echo),
            path("django/file", django_file),
            path("django/stream", django_stream),
        ]
    raise AttributeError(name)


# -- all of them -------------------------------------------------------------------------------


def app() -> App:
    valid = {name: validator(own) for name, own in _cases.items()}
    frameworks = {"flask": _flask(), "django": _django()}

    def control(environ: Environ, start_response: StartResponse) -> list[bytes]:
        asked = _asked(environ)
        if environ["PATH_INFO"] == "/open":
            _gate(asked["gate"]).set()
            said: Any = None
        elif environ["PATH_INFO"] == "/stats":
            import sticky

            worker = sticky.current_worker()
            said = worker.stats() if worker else {}
        else:
            said = _notes[asked["of"]]
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(said).encode()]

    def serve(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        first, _, name = environ["PATH_INFO"][1:].partition("/")
        if first in frameworks:
            return frameworks[first](environ, start_response)
        if first in ("any", ""):
            return _cases["environ"](environ, start_response)
        found = {"case": _cases, "valid": valid}.get(first, {}).get(name, control)
        return found(environ, start_response)

    return serve
