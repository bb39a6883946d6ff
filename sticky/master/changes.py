"""``--reload``: a child that says when files change (``watcher`` is what it does)."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from .. import channel, spawn
from ..options import Options
from ..program import Program
from . import systemd
from .children import Child
from .loop import Loop
from .signals import describe, reap

log = logging.getLogger("sticky.master")


class Changes:
    """That child, if there is to be one.

    Args:
        options: the settings.
        program: what the workers run.
        loop: tells what it says.
        reader: reads messages.
        serving: whether the server is to go on.
        on_change: called when files have changed.
        on_failure: called when it cannot watch.
    """

    def __init__(
        self,
        options: Options,
        program: Program,
        loop: Loop,
        reader: channel.Reader,
        *,
        serving: Callable[[], bool],
        on_change: Callable[[], object],
        on_failure: Callable[[], object],
    ) -> None:
        self._options = options
        self._program = program
        self._loop = loop
        self._reader = reader
        self._serving = serving
        self._on_change = on_change
        self._on_failure = on_failure
        self._watcher: Child | None = None

    def start(self) -> None:
        """Begin to watch, if that is wanted."""
        if not self._options.reload:
            return
        folders = {self._options.app_dir or str(Path.cwd())}
        if self._program.script:
            folders.add(str(Path(self._program.script).parent))
        spec = {
            "role": "watcher",
            "master": os.getpid(),
            "path": list(self._program.path),
            "watch": sorted(folders),
        }
        environment = systemd.without(os.environ)
        try:
            pid, control = spawn.start("watcher", spec, environment=environment, stdin=os.devnull)
        except OSError as error:
            log.error("changes are not noticed: no watcher can be started: %s", error.strerror)
            return
        self._watcher = Child(-1, pid, control)
        self._loop.register(control.fileno(), select.EPOLLIN, self._on_watcher)

    def stop(self) -> None:
        """Watch no more."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            self._loop.unregister(watcher.control.fileno())
            watcher.send(signal.SIGKILL)
            reap(watcher.pid)
            watcher.close()

    def _on_watcher(self, _: int) -> None:
        watcher = self._watcher
        assert watcher is not None
        try:
            message = self._reader.receive(watcher.control)
        except (BlockingIOError, ConnectionResetError):
            message = None
        if message is None:
            self._loop.unregister(watcher.control.fileno())
            how = describe(reap(watcher.pid))
            if self._serving():
                log.error("the watcher for --reload %s: changes are no longer noticed", how)
            watcher.close()
            self._watcher = None
        elif message.kind == channel.CHANGED:
            log.info("Changed: %s", ", ".join(json.loads(message.payload)))
            self._on_change()
        elif message.kind == channel.FAILED:
            log.error("%s", json.loads(message.payload)["reason"])
            # That was all; it is collected at the end.
            self._loop.unregister(watcher.control.fileno())
            self._on_failure()
