"""Apps whose views start processes: children that stay until there is a file "go" in $FOLDER.

For WSGI ``app``, for ASGI ``asgi``: /fork, /multiprocessing, /subprocess, /exits (by ``sys.exit``
in a forked child), /returns (a forked child that answers, too), /ended?PID has waited for its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


def _folder() -> Path:
    return Path(os.environ["FOLDER"])


def _sockets() -> list[str]:
    """The sockets that this process has open, by name."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if name.startswith("socket:"):
            found.append(name)
    return found


def _ours() -> list[str]:
    """Those of them that are the server's."""
    import sticky

    worker = sticky.current_worker()
    assert worker is not None
    assert worker.service is not None
    service, link = worker.service, worker.service.link
    inboxes = [link.inbox.sock, link.own_inbox.sock]
    fds = [end.fileno() for end in (link.control, *inboxes)]
    fds += worker.mail.descriptors()
    fds += [wire.fd for wire in service.wires]
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]


def _live() -> None:
    """A child's life: say what it has of its parent, wait."""
    report = _folder() / f"{os.getpid()}.tmp"
    report.write_text(json.dumps(_sockets()))
    report.rename(_folder() / str(os.getpid()))
    while not (_folder() / "go").exists():
        time.sleep(0.01)


_SHELL = """
cd "$FOLDER"; for fd in /proc/$$/fd/*; do readlink $fd; done | sed 's/.*/"&"/' | paste -sd, > $$.tmp
(echo [; cat $$.tmp; echo ]) > $$.all; mv $$.all $$; while [ ! -e go ]; do sleep 0.05; done
"""


def start(how: str) -> int:
    """The pid of the child."""
    if how == "/multiprocessing":
        import multiprocessing

        process = multiprocessing.get_context("fork").Process(target=_live)
        process.start()
        assert process.pid
        return process.pid
    if how == "/subprocess":
        return subprocess.Popen(["sh", "-c", _SHELL], stdout=subprocess.DEVNULL).pid
    pid = os.fork()
    if pid:
        return pid
    _live()
    if how == "/fork":
        os._exit(0)
    if how == "/exits":
        sys.exit(7)
    return 0


def ended(pid: int) -> int | None:
    """The exit status of a child that has ended."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def waits(how: str) -> int:
    """The exit status of a child that waits, by what its standard library has become."""
    if how == "multiprocessing":
        import multiprocessing

        child = multiprocessing.get_context("fork").Process(target=_waits)
        child.start()
        child.join(20)
        assert child.exitcode is not None
        return child.exitcode
    pid = os.fork()
    if not pid:
        _waits()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _waits() -> None:
    for _ in range(20):
        os.pipe()  # takes the numbers of descriptors that were the server's
    time.sleep(0.1)


def first() -> None:
    """In the factory of the first process: start a child in the way that $FIRST says."""
    if (how := os.environ.get("FIRST")) and not (_folder() / "first").exists():
        pid = start(how)
        if pid:
            (_folder() / "first").write_text(str(pid))


def answer(path: str, query: str) -> Any:
    if path == "/":
        return os.getpid()
    if path == "/ours":
        return _ours()
    if path == "/waits":
        return waits(query)
    if path == "/ended":
        return ended(int(query))
    return start(path)


def app() -> Any:
    first()

    def serve(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        said = json.dumps(answer(environ["PATH_INFO"], environ["QUERY_STRING"])).encode()
        start_response("200 OK", [("Content-Length", str(len(said)))])
        return [said]

    return serve


def asgi() -> Any:
    first()

    async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        said = json.dumps(answer(scope["path"], scope["query_string"].decode())).encode()
        length = [(b"content-length", str(len(said)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": said})

    return serve
