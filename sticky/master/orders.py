"""What signals mean, and the end of whoever started the server."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable

from .. import channel, logs
from ..errors import StickyError
from .operations import Operator
from .parts import Parts
from .signals import reap_orphans
from .succession import Succession

log = logging.getLogger("sticky.master")


class Orders:
    """Has them obeyed.

    Args:
        parts: what the master consists of.
        operator: does what they ask for.
        succession: whose trial is a process of ours, too.
    """

    def __init__(self, parts: Parts, operator: Operator, succession: Succession) -> None:
        self._launcher = parts.launcher
        self._signals = parts.signals
        self._terminal = parts.terminal
        self._loop = parts.loop
        self._ledger, self._lives = parts.ledger, parts.ledger.lives
        self._children = parts.children
        self._operator = operator
        self._succession = succession

    def on_signal(self, _: int) -> None:
        """Some have arrived."""
        self.obey(self._signals.arrived())

    def on_launcher(self, _: int) -> None:
        """Nothing is ever sent from there: it has ended, and we with it."""
        assert self._launcher is not None
        self._loop.unregister(self._launcher.fileno())
        self._ledger.stop(time.monotonic(), quick=True)

    def obey(self, numbers: Iterable[signal.Signals]) -> None:
        """These have."""
        for number in numbers:
            if number == signal.SIGCHLD:
                if os.getpid() == 1:
                    ours = {child.pid for child in self._children.by_key.values()}
                    reap_orphans(ours | {self._succession.trial.pid})
            else:
                self._obey(number)

    def _obey(self, number: signal.Signals) -> None:
        now = time.monotonic()
        match number:
            case signal.SIGHUP if self._terminal.is_closed():
                self._operator.stop_because("the terminal was closed", now, quick=False)
            case signal.SIGHUP:
                self._operator.renew()
            case signal.SIGUSR1:
                self._reopen_logs()
            case signal.SIGUSR2:
                self._attempt(self._operator.upgrade)
            case signal.SIGTTIN | signal.SIGTTOU:
                step = 1 if number is signal.SIGTTIN else -1
                self._attempt(lambda: self._operator.scale(self._lives.target + step))
            case signal.SIGTERM:
                self._operator.stop_because("SIGTERM", now, quick=False)
            case signal.SIGINT | signal.SIGQUIT:
                self._operator.stop_because(number.name, now, quick=True)
            case _:
                log.warning("%s means nothing here", number.name)

    def _attempt(self, operation: Callable[[], None]) -> None:
        """Do what a signal asks for; if that is not possible the log says why."""
        try:
            operation()
        except StickyError as error:
            log.warning("%s", error)

    def _reopen_logs(self) -> None:
        """Have all processes open their log files anew: they have been renamed."""
        logs.reopen()
        for child in self._children.by_key.values():
            self._children.say(child, channel.REOPEN)
