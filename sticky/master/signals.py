"""Signals and the ends of child processes, as things that an epoll loop can wait for.

A handler only records (STYLE: handlers record, the loop acts); the wake-up descriptor makes the
loop look. Children are watched through pidfds, so nothing here ever waits for a child that is not
ours.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable, Mapping


class Signals:
    """The signals of this process, as bytes on a socket.

    Args:
        numbers: the signals to receive. Their previous handlers are put back by ``close``.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        # Both ends are kept: a garbage-collected end would make every signal an error message.
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._woken = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _recorded) for number in numbers}

    def fileno(self) -> int:
        """The descriptor that becomes readable when a signal has arrived."""
        return self._reader.fileno()

    def arrived(self) -> list[signal.Signals]:
        """The signals since the last call, in order."""
        try:
            return [signal.Signals(number) for number in self._reader.recv(4096)]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Put things back as they were."""
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()


def _recorded(number: int, frame: object) -> None:
    """The wake-up descriptor already has it."""


class Terminal:
    """The terminal that this process was started from, if there was one.

    Who closes it means that the program is to end, and the system says so with SIGHUP; which people
    send to a server to have it reload, too. A shell passes its own SIGHUP on to its children, so
    who has sent it says nothing.

    Args:
        packed: what a master before knew of it (``pack``); None: there was none.

    Attributes:
        nohup: that signal was ignored then, as nohup(1) has it.
    """

    def __init__(self, packed: Mapping[str, bool] | None = None) -> None:
        if packed is None:
            self.nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            self._had_one = not self.nohup and _can_be_opened()
        else:
            self.nohup, self._had_one = packed["nohup"], packed["had_one"]

    def pack(self) -> dict[str, bool]:
        """What is to be known of it behind an upgrade in place."""
        return {"nohup": self.nohup, "had_one": self._had_one}

    def is_closed(self) -> bool:
        """Whether there was one and is none any more. With nohup(1) there never was."""
        return self._had_one and not _can_be_opened()


def _can_be_opened() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def reap(pid: int) -> int:
    """Collect a child that has ended; its exit status, or minus the signal that ended it."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0  # collected already (as PID 1, by reap_orphans)
    return os.waitstatus_to_exitcode(status)


def reap_orphans(ours: set[int]) -> None:
    """As PID 1: collect the processes that other processes left behind, but not our own."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in ours:
            return  # ours first: its pidfd is readable, and the next signal continues here
        os.waitpid(ended.si_pid, 0)


def describe(status: int) -> str:
    """How a process ended, for people."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
