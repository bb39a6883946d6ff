"""Factories of small apps for tests, as ``tests.apps:whoami``; for ASGI as ``tests.asgi_apps``.

Each says which worker served; -1 when it runs outside of one.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


def worker_id() -> int:
    return int(os.environ.get("STICKY_WORKER_ID", "-1"))


def _identity(environ: Environ) -> dict[str, Any]:
    return {
        "worker": worker_id(),
        "pid": os.getpid(),
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ.get("QUERY_STRING", ""),
        "remote_addr": environ.get("REMOTE_ADDR"),
        "xff": environ.get("HTTP_X_FORWARDED_FOR"),
    }


def _answer(
    start_response: StartResponse, body: bytes, kind: str = "application/json"
) -> list[bytes]:
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("X-Worker", str(worker_id())),
    ]
    start_response("200 OK", headers)
    return [body]


def _seconds(environ: Environ) -> float:
    return float(parse_qs(environ.get("QUERY_STRING", "")).get("seconds", ["0"])[0])


def whoami() -> App:
    """JSON: who serves this request, and what it looks like from inside."""

    return _whoami


def slow() -> App:
    """As whoami, after ``?seconds=``; the other requests of the worker go on meanwhile."""

    return _slow


def stuck() -> App:
    """As slow, but the whole process stands still: no monkey patch reaches this system call."""

    return _stuck


def echo() -> App:
    """The body of the request, as it came; which worker is in the header X-Worker."""

    return _body


def says(what: Callable[[], object]) -> App:
    """What the function returns, as it is if that is text, else as JSON."""

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        return _answer(start_response, as_bytes(what()))

    return app


def as_bytes(what: object) -> bytes:
    return (what if isinstance(what, str) else json.dumps(what)).encode()


def _async_mode() -> str:
    """The one that goes with the worker class."""
    import sticky

    worker = sticky.current_worker()
    chosen = worker.options.worker_class if worker else "auto"
    return {"gevent": "gevent", "threads": "threading"}.get(chosen, "eventlet")


def _echo_server(**options: Any) -> Any:
    import socketio

    sio = socketio.Server(async_mode=_async_mode(), cors_allowed_origins="*", **options)

    def about(sid: str) -> dict[str, Any]:
        return {"worker": worker_id(), "pid": os.getpid(), "transport": sio.transport(sid)}

    @sio.event
    def connect(sid: str, environ: Environ) -> None:
        sio.emit("welcome", about(sid), to=sid)

    @sio.event
    def echo(sid: str, data: Any) -> dict[str, Any]:
        answer = {**about(sid), "data": data}
        sio.emit("echo", answer, to=sid)
        return answer

    @sio.event
    def shout(sid: str, data: Any) -> None:
        """To every client; of all workers, if the server has a manager that reaches them."""
        sio.emit("shout", {**about(sid), "data": data})

    return sio


def socketio_server() -> Any:
    """A socketio.Server, to be wrapped by whoever serves it: events echo (with ack) and shout."""
    return _echo_server()


def socketio_app() -> App:
    """The same as a WSGI app that writes each request to the file $REQUEST_RECORD.

    One line of JSON per request: worker, transport, sid (None in the first request of a session),
    and the client's address as its header has it. Other paths answer as whoami.
    """
    import socketio

    app = socketio.WSGIApp(_echo_server(), whoami())
    record = recorder()

    def recorded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        query, address = environ.get("QUERY_STRING", ""), environ.get("HTTP_X_FORWARDED_FOR")
        record(environ["PATH_INFO"], query, address)
        return app(environ, start_response)

    return recorded


def tab() -> App:
    """A page for a browser that talks to socketio_server over polling alone."""
    import socketio

    return socketio.WSGIApp(socketio_server(), static_files=TAB)


TAB = {
    "/": {"filename": "tests/e2e/tab.html", "content_type": "text/html"},
    "/socket.io.min.js": "examples/chat/socket.io.min.js",
}


class Keeper:
    """Sessions of a protocol of its own: /new makes one and says its id, /count?id= (or the id in a
    header or a cookie) counts its requests, /end ends it. Whose session is not here gets 404."""

    def __init__(self) -> None:
        import sticky

        self.counts: dict[str, int] = {}
        self.holds = sticky.holds(self.counts.__contains__)

    def answer(
        self, path: str, query: str, header: str | None, cookie: str | None
    ) -> tuple[int, bytes]:
        import sticky

        in_cookie = cookie.partition("id=")[2] if cookie else None
        session = parse_qs(query).get("id", [header or in_cookie or ""])[0]
        if path == "/new":
            make = (lambda: uuid.uuid4().hex) if "make" in query else None
            session = sticky.mint(make)
            self.counts[session] = 0
        elif session not in self.counts:
            return 404, as_bytes({"worker": worker_id(), "pid": os.getpid()})
        self.counts[session] += 1
        said = {
            "worker": worker_id(),
            "pid": os.getpid(),
            "id": session,
            "count": self.counts[session],
        }
        if path == "/end":
            del self.counts[session]
        return 200, as_bytes(said)


def keeper() -> App:
    kept = Keeper()

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        status, body = kept.answer(
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
            environ.get("HTTP_X_ID"),
            environ.get("HTTP_COOKIE"),
        )
        start_response(f"{status} Whatever", [("Content-Length", str(len(body)))])
        return [body]

    return app


def socketio_cluster() -> Any:
    """A socketio.Server whose events reach the clients of every worker."""
    from sticky.cluster import Manager

    return _echo_server(client_manager=Manager())


def recorder() -> Callable[[str, str, str | None], None]:
    """What notes a request, by its path, query and address, if it is one of Socket.IO."""
    # Appending less than a page is atomic, so that the workers can share the file.
    file = os.environ.get("REQUEST_RECORD")
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if file else None

    def record(path: str, query: str, address: str | None) -> None:
        if fd is not None and path.startswith("/socket.io"):
            asked = parse_qs(query)
            line = {
                "worker": worker_id(),
                "transport": asked.get("transport", [None])[0],
                "sid": asked.get("sid", [None])[0],
                "xff": address,
            }
            os.write(fd, json.dumps(line).encode() + b"\n")

    return record


def lab() -> App:
    """What the process tests need, by path: / and the paths of _LAB; else as whoami."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        action = _LAB.get(environ["PATH_INFO"], _whoami)
        return action(environ, start_response)

    return app


def lab_without_gc() -> App:
    """As lab, in a process in which no garbage is ever collected."""
    gc.disable()
    return lab()


def echo_websocket() -> App:
    """A websocket that says everything twice, by what is usual for the worker class."""
    import sticky

    worker = sticky.current_worker()
    if worker is None or worker.options.worker_class == "eventlet":
        from eventlet.websocket import WebSocketWSGI

        def talk(ws: Any) -> None:
            while (message := ws.wait()) is not None:
                ws.send(message)

        websocket: App = WebSocketWSGI(talk)
        return websocket

    import simple_websocket

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with contextlib.suppress(simple_websocket.ConnectionClosed):
            ws = simple_websocket.Server.accept(environ)
            while True:
                ws.send(ws.receive())
        return []

    return app


def websocket_echo() -> App:
    """A websocket that says everything twice, without Socket.IO; other paths as lab."""
    websocket, other = echo_websocket(), lab()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        chosen = websocket if environ["PATH_INFO"] == "/ws" else other
        return chosen(environ, start_response)

    return app


# -- connections that clients share --------------------------------------------------------------


def shared_answer(
    method: str, path: str, query: str, address: str, body: bytes | None
) -> tuple[int, list[tuple[str, str]], list[bytes]]:
    """Status, headers and body for a request of whose body this much was read (None: nothing)."""
    asked = {name: values[0] for name, values in parse_qs(query).items()}
    headers = [("X-Worker", str(worker_id()))]
    if path == "/blob":
        size = int(asked["size"])
        if "streamed" not in asked:
            headers.append(("Content-Length", str(size)))
        return 200, headers, list(blob(size))
    if path == "/stats":
        import sticky

        worker = sticky.current_worker()
        seen: Any = worker.stats() if worker else {}
    elif path == "/all-stats":
        import sticky

        seen = sticky.stats()
    elif path == "/forge":
        seen = _forge(int(asked["moves"]), asked["client"])
    else:
        seen = {"worker": worker_id(), "pid": os.getpid(), "method": method, "path": path}
        seen |= {"query": query, "client": address}
        seen["body"] = body if body is None else body.decode("latin-1")
    text = json.dumps(seen).encode()
    status = int(asked.get("status", "200"))
    if "nothing" in asked:
        text = b""
    if "length" in asked:
        headers.append(("Content-Length", str(len(text))))
    return status, headers, [text]


def _forge(moves: int, address: str) -> str:
    """What a connection is answered that comes back to the master after so many moves."""
    import socket

    import sticky
    from sticky import channel

    worker = sticky.current_worker()
    assert worker is not None
    assert worker.service is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 20)
        ours, peer = listener.accept()
    head = f"GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: {address}\r\nConnection: close\r\n\r\n"
    with client, ours:
        channel.send_connection(
            worker.service.link.control,
            channel.HAND_BACK,
            ours.fileno(),
            peer,
            head.encode(),
            moves=moves,
        )
        ours.close()
        answer = b""
        while more := client.recv(65536):
            answer += more
    return answer.decode()


def to_read(path: str, query: str) -> int | None:
    """How much of the body the app reads: nothing, so many bytes, or all (-1)."""
    if path == "/body":
        return -1
    if path == "/part":
        return int(parse_qs(query)["read"][0])
    return None


def shared_lab() -> App:
    """For connections that clients share, by path: /body reads the body, /part?read= as much of
    it, others nothing; /blob?size=&streamed=, /stats, /ws; ?status=&nothing=&length= of others."""
    websocket = echo_websocket()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path == "/ws":
            return websocket(environ, start_response)
        size, body = to_read(path, query), None
        if size is not None:
            body = environ["wsgi.input"].read(*(() if size < 0 else (size,)))
        status, headers, pieces = shared_answer(
            environ["REQUEST_METHOD"], path, query, environ.get("HTTP_X_FORWARDED_FOR", ""), body
        )
        if path == "/slow":
            time.sleep(_seconds(environ))
        start_response(f"{status} Whatever", headers)
        # Without a length the server finds it out itself, unless it does not see all of the body.
        return iter(pieces) if "streamed" in query else pieces

    return app


def blind() -> None:
    """Have this worker look at no further request: a negative control."""
    from sticky.worker import placing

    make = placing.Placing.__init__

    def make_blind(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self.looking = False

    placing.Placing.__init__ = make_blind  # type: ignore[method-assign]


def disagree() -> None:
    """Have this worker take every request for another's, already the first of a connection."""
    from sticky.worker import placing

    placing.Placing.asks_first = lambda *_: True  # type: ignore[method-assign]
    placing.Placing.look_first = lambda *_: placing.ELSEWHERE  # type: ignore[method-assign]


def shift() -> None:
    """Have this worker take one byte too many where a request ends: a negative control."""
    from sticky.worker import http1

    end = http1.Http1.end

    def end_late(self: Any) -> None:
        end(self)
        self.buffer = self.buffer[1:]

    http1.Http1.end = end_late  # type: ignore[method-assign]


def shared_lab_shifted() -> App:
    """As shared_lab, in a worker whose boundaries are one byte off."""
    shift()
    return shared_lab()


def shared_lab_disagreeing() -> App:
    """As shared_lab, in a worker that never agrees with the master."""
    disagree()
    return shared_lab()


def shared_lab_blind() -> App:
    """As shared_lab, in a worker that does not look."""
    blind()
    return shared_lab()


def socketio_app_blind() -> App:
    """As socketio_app, in a worker that does not look."""
    blind()
    return socketio_app()


def broken() -> App:
    """A factory that fails."""
    raise RuntimeError("the database is not there")


def dies() -> App:
    """A factory that takes its whole process with it."""
    os._exit(7)


def never_ready() -> App:
    """A factory that takes longer than anybody waits."""
    while True:
        time.sleep(60)


def no_app() -> int:
    """A factory that makes something else."""
    return 42


def crashes_later() -> App:
    """As lab; but once the file $CRASH_LOOP is there, slot 0 cannot start any more."""
    if worker_id() == 0 and os.path.exists(os.environ["CRASH_LOOP"]):
        os._exit(9)
    return lab()


def _whoami(environ: Environ, start_response: StartResponse) -> list[bytes]:
    return _answer(start_response, json.dumps(_identity(environ)).encode())


def _slow(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """?seconds=, while others are served."""
    time.sleep(_seconds(environ))
    return _whoami(environ, start_response)


def _stuck(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """?seconds= in a system call, and nobody else is served."""
    stand_still(_seconds(environ))
    return _whoami(environ, start_response)


def _spin(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """?seconds= of CPU, and nobody else is served."""
    compute(_seconds(environ))
    return _whoami(environ, start_response)


def stand_still(seconds: float) -> None:
    """The whole process: no monkey patch and no event loop reaches this system call."""
    if seconds:
        print("standing still", flush=True)  # for those who wait for it
        signal.sigtimedwait([], seconds)


def compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _raise(environ: Environ, start_response: StartResponse) -> list[bytes]:
    raise RuntimeError("the app is to blame")


def _blob(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """?size= bytes, in pieces."""
    size = int(parse_qs(environ["QUERY_STRING"])["size"][0])
    start_response("200 OK", [("Content-Length", str(size))])
    yield from blob(size)


def blob(size: int) -> Iterator[bytes]:
    """So many bytes, in pieces."""
    for start in range(0, size, 65536):
        yield b"x" * min(65536, size - start)


def _forever(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """An answer without an end."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    while True:
        yield b"x" * 8192
        time.sleep(0.05)


def _body(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """The body of the request, as it came."""
    return _answer(start_response, environ["wsgi.input"].read(), "application/octet-stream")


def _process(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """JSON: what the process sees of itself."""
    return _answer(start_response, json.dumps(process()).encode())


def process() -> dict[str, Any]:
    """What this process sees of itself, to be compared with another."""
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            fds[name] = os.readlink(f"/proc/self/fd/{name}")
    return {
        "path": sys.path,
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "flags": {name: getattr(sys.flags, name) for name in sys.flags.__match_args__},
        "warnoptions": sys.warnoptions,
        "xoptions": sys._xoptions,
        "fds": fds,
        "environ": dict(os.environ),
    }


def _undelayed(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """JSON: TCP_NODELAY of each connection of this process."""
    return _answer(start_response, json.dumps(undelayed()).encode())


def undelayed() -> list[int]:
    """TCP_NODELAY of each connection of this process."""
    import socket

    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            sock.getpeername()
            if sock.family == socket.AF_INET:
                found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return found


_LAB: dict[str, Callable[[Environ, StartResponse], Iterable[bytes]]] = {
    "/slow": _slow,
    "/stuck": _stuck,
    "/spin": _spin,
    "/raise": _raise,
    "/blob": _blob,
    "/forever": _forever,
    "/body": _body,
    "/process": _process,
    "/undelayed": _undelayed,
}
