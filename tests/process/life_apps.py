"""Apps whose processes can be made to behave."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

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
