"""Signals in a worker: what a terminal sends, or ``kill`` to the group, is the master's business.

They are not ignored (SIG_IGN), which would outlive an exec: whatever the app starts is to have the
usual actions. A handler of Python's that does nothing is gone behind an exec, and a child that the
app has forked gets the usual actions by ``give_back``.
"""

from __future__ import annotations

import signal
from typing import Any

OF_THE_MASTER = (
    *(signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTTIN, signal.SIGTTOU),
)


def nothing(*_: Any) -> None:
    """A signal has come."""


def leave_to_master(*, nohup: bool = False) -> None:
    """Have these signals do nothing here. One that the app handles is the app's, from then on.

    Args:
        nohup: HUP was ignored when the server was started: what the app starts is to outlive the
            terminal, too. (The same if it is ignored in this process.)
    """
    if nohup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in OF_THE_MASTER:
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        signal.signal(number, nothing)
        signal.siginterrupt(number, False)  # no system call of anybody's fails for their sake


def give_back() -> None:
    """In a child that the app has forked: the usual actions, where the app has set no others."""
    for number in (*OF_THE_MASTER, signal.SIGTERM):
        if signal.getsignal(number) is nothing:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
