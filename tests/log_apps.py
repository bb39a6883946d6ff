"""Apps that write a lot, as ``tests.log_apps:wsgi`` and ``tests.log_apps:asgi``.

/N logs N lines of 500 characters; /print writes to the standard output and error, by all ways that
there are. The answer is JSON: what has been counted, by whom, and what the descriptors 0 to 2 are.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import sticky

log = logging.getLogger("gunicorn.error")  # comes out where sticky's own lines do


def _act(path: str) -> bytes:
    what = path.strip("/")
    if what.isdecimal():
        for number in range(int(what)):
            log.warning("%d %s", number, "x" * 500)
    elif what == "print":
        print("printed", "x" * 2000, flush=True)
        print("printed", "x" * 2000, flush=True, file=sys.stderr)
        for fd in (1, 2):  # not by os.write: eventlet's fails with what cannot be waited for
            with open(fd, "wb", buffering=0, closefd=False) as file:
                file.write(b"\xff" * 20_000)
    files = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]
    found = {"pid": os.getpid(), "stats": sticky.stats(), "files": files}
    return json.dumps(found).encode()


def _answer(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]
) -> Iterable[bytes]:
    body = _act(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def wsgi() -> Any:
    return _answer


async def _answer_asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = _act(scope["path"])
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def asgi() -> Any:
    return _answer_asgi


if __name__ == "__main__":
    sticky.listen(wsgi, int(sys.argv[1]), 2, worker_class=sys.argv[2])
