"""What is around a server: the supervisor that wants to know how it is, the pid file, who it runs
as, ``sticky ctl``, the metrics. The master tells it what happens, in a few words, and it does the
rest.

The order at the start matters, and is here: umask, log files (as the user), ports, metrics and pid
file (as root, if that is what we are), then the user for good, then the socket of ``sticky ctl``,
and only then anything that runs the user's code.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import StickyError
from ..options import Options
from . import identity, systemd
from .control import Control, Operations
from .desk import Register, Unregister
from .listeners import Listeners, url
from .metrics import Metrics
from .pidfile import PidFile
from .state import Packed, Packing

log = logging.getLogger("sticky.master")


class Surroundings:
    """All of that for one server; without options, and so in tests, it is nothing and does nothing.

    Args:
        options: the settings; None for nothing.
        environ: the environment.
        launched: a script has started this process, and not the supervisor itself.

    Raises:
        OptionError: there is no such user or group, or only root may become it.
    """

    def __init__(
        self,
        options: Options | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        launched: bool = False,
    ) -> None:
        self._options = options
        self._started_by = os.getppid() if launched else None
        self._notifier = systemd.Notifier(environ or {}, self._started_by)
        self._identity = identity.find(options) if options else None
        self._pid_file: PidFile | None = None
        self._control: Control | None = None
        self._metrics: Metrics | None = None
        self._ready = self._reloading = self._stopping = False
        self._text = ""
        if options is not None and options.umask is not None:
            os.umask(int(options.umask, 8))

    # -- the start, in this order ---------------------------------------------------------------

    @contextlib.contextmanager
    def as_user(self) -> Iterator[None]:
        """In the body, be who the server will run as: what is made belongs to that user."""
        with self._identity.assumed() if self._identity else contextlib.nullcontext():
            yield

    def settle(self, operations: Operations, listeners: Listeners) -> None:
        """The ports are open. Afterwards this process is who it is to be.

        Args:
            operations: what ``sticky ctl`` can have done.
            listeners: the ports.

        Raises:
            StickyError: something of it cannot be had; why.
        """
        options, who = self._options, self._identity
        if options is None or who is None:
            return
        try:
            if options.metrics is not None:
                self._metrics = Metrics(options.metrics, operations.stats, time.monotonic)
                log.info("Metrics at: %s/metrics", url(self._metrics.address))
            if options.pid is not None:
                self._pid_file = PidFile(options.pid, who.user, who.group)
            self._become(who, listeners)
            self._open_control(options, operations)
        except BaseException:
            self.close()
            raise
        for name in systemd.PASSED:
            os.environ.pop(name, None)
        if self._notifier.listens:
            self._notifier.keep(listeners.made, listeners.kept_names, listeners.again)
            if self._notifier.keeps_files:
                listeners.leave_files()
            if 0 < self._notifier.interval < 2:
                log.warning("WatchdogSec= is too short: a sign of life comes once in a second")

    def _become(self, who: identity.Identity, listeners: Listeners) -> None:
        if not who.changes:
            return
        try:
            listeners.give_to(who.user, who.group)
            if self._metrics is not None:
                self._metrics.give_to(who.user, who.group)
            who.take()
        except OSError as error:
            raise StickyError(
                f"this process cannot become user {who.user}, group {who.group}: {error.strerror}"
            ) from None
        log.debug("running as user %d, group %d", who.user, who.group)

    def _open_control(self, options: Options, operations: Operations) -> None:
        if not options.ctl:
            return
        try:
            self._control = Control(options.ctl, operations, time.monotonic)
        except StickyError as error:
            if options.ctl != "auto":
                raise StickyError(f"option 'ctl': {error}") from None
            # Nobody has asked for it: a file system that cannot be written to is no fault.
            log.info("sticky ctl cannot be used with this server: %s", error)

    # -- an upgrade in place: instead of that start ---------------------------------------------

    def pack(self, packing: Packing) -> dict[str, Any]:
        """What another process of ours needs to have the same around it."""
        return {
            "control": self._control and self._control.pack(packing),
            "metrics": self._metrics and self._metrics.pack(packing),
            "ready": self._ready,
            "reloading": self._reloading,
            "text": self._text,
        }

    def restore(self, operations: Operations, packed: Packed) -> None:
        """A master before has settled, and has become who the server runs as.

        Raises:
            StickyError: this code cannot have what that one had.
        """
        options, known = self._options, packed.content["around"]
        if options is None:
            return
        if known["control"]:
            self._control = Control(options.ctl, operations, time.monotonic, packed)
        if known["metrics"] and options.metrics is not None:
            self._metrics = Metrics(options.metrics, operations.stats, time.monotonic, packed)
        self._ready, self._reloading = known["ready"], known["reloading"]
        self._text = known["text"]

    def resume(self) -> None:
        """It has taken the place of that master."""
        options, who = self._options, self._identity
        if options is not None and who is not None and options.pid is not None:
            try:
                self._pid_file = PidFile(options.pid, who.user, who.group)
            except StickyError as error:  # somebody has removed it, and only root may write there
                log.warning("%s", error)

    # -- the loop ------------------------------------------------------------------------------

    def attend(self, register: Register, unregister: Unregister) -> None:
        """The loop begins: answer whoever asks."""
        for desk in (self._control, self._metrics):
            if desk is not None:
                desk.open(register, unregister)

    # -- what happens ----------------------------------------------------------------------------

    def ready(self, status: str) -> None:
        """All workers are ready, for the first time.

        Args:
            status: what the server is, in one line.
        """
        self._ready, self._text = True, status
        self._notifier.ready(status)

    def status(self, status: str) -> None:
        """That line is another one now."""
        self._text = status
        if self._ready and not (self._reloading or self._stopping):
            self._notifier.status(status)

    def reloading(self) -> None:
        """A reload was asked for."""
        if self._ready and not self._stopping:
            self._reloading = True
            self._notifier.reloading("Reloading: the workers are replaced one after another")

    def tick(self, now: float, *, serving: bool, reloading: bool) -> None:
        """The loop has come round; to be called at least once in a second.

        Args:
            now: the monotonic time, in seconds.
            serving: no stop has begun.
            reloading: a reload is under way.
        """
        if not serving and not self._stopping:
            self._stopping = True
            self._reloading = False
            self._notifier.stopping("Stopping")
        elif self._reloading and not reloading:
            self._reloading = False
            self._notifier.ready(self._text)
        self._notifier.alive(now)
        for desk in (self._control, self._metrics):
            if desk is not None:
                desk.tick(now)

    def close(self) -> None:
        """The end."""
        if not self._stopping:
            self._stopping = True
            self._notifier.stopping("Stopping")
        for part in (self._control, self._metrics, self._pid_file, self._notifier):
            if part is not None:
                part.close()
