"""Apps whose processes can be made to behave."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import sticky
from tests.apps import App, Environ, StartResponse, lab

BROKEN = "STICKY_TEST_BROKEN"
"""The environment's name for a file: while it is there no worker can start."""


def breakable() -> App:
    """As lab; /all-stats says what was counted. Not while it is broken."""
    if os.path.exists(os.environ.get(BROKEN, "/nowhere")):
        os._exit(1)
    other = lab()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/all-stats":
            return other(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(sticky.stats()).encode()]

    return app


FOLDER = "STICKY_TEST_FOLDER"
"""The environment's name for a folder: of ``versioned``."""
_hoard: list[bytes] = []


def versioned() -> App:
    """As lab, but / says what was in the file "version" when this process began. While there is a
    file "hangs" no worker becomes ready, and the first that does not says so with a file "hung".
    /hoard takes ?megabytes= of memory."""
    folder = Path(os.environ[FOLDER])
    version = (folder / "version").read_text()
    if (folder / "hangs").exists():
        (folder / "hung").touch()
        time.sleep(600)
    other = lab()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/hoard":
            _hoard.append(os.urandom(int(environ["QUERY_STRING"].partition("=")[2]) << 20))
        elif path != "/":
            return other(environ, start_response)
        worker = sticky.current_worker()
        said = {"worker": worker and worker.id, "pid": os.getpid(), "version": version}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(said).encode()]

    return app
