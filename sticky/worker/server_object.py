"""What apps look for that want to stop their server: an object of the class ``uvicorn.Server``.

NiceGUI's ``app.shutdown()``, behind ``ui.run_with``, looks among all objects for the one whose
``config.loaded_app`` is its app, and sets its ``should_exit``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

log = logging.getLogger("sticky.worker")


class _ShouldExit:
    """An attribute that is False, until it is set: then the whole server stops, gracefully."""

    def __init__(self) -> None:
        self._asked = False
        self._master = os.getppid()  # not in a child that the app has forked

    def __get__(self, server: Any, kind: type | None = None) -> bool:
        return self._asked

    def __set__(self, server: Any, value: object) -> None:
        if value and not self._asked:
            self._asked = True
            log.info("the app has asked for the end of the server")
            os.kill(self._master, signal.SIGTERM)


def server_object(app: Any) -> Any:
    """Such an object for this app, where uvicorn is loaded; else nobody looks for one: None.

    Nothing of uvicorn's runs.
    """
    uvicorn = sys.modules.get("uvicorn")
    if uvicorn is None:
        return None
    members = {"__init__": lambda self: None, "should_exit": _ShouldExit(), "started": True}
    server = type("Server", (uvicorn.Server,), members)()
    server.config = SimpleNamespace(app=app, loaded_app=app, should_reload=False, workers=1)
    return server
