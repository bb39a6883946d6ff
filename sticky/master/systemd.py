"""What systemd and a service say to each other: readiness, its watchdog, sockets that it passes or
keeps. Written from sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3),
sd_watchdog_enabled(3) and systemd.service(5); nothing of systemd's is needed for it.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

PASSED = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
"""What says which descriptors were passed. True at the start only: later they have other numbers,
or others have theirs, also in a program that takes our place."""
VARIABLES = (
    *PASSED,
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE"),
)
"""What is for the server itself, and not for the processes that it starts."""

_KEPT = "sticky-"
"""How the names of our sockets in the descriptor store begin."""
_LONGEST_NAME = 255
EARLY = 1.0
"""Seconds by which a sign of life may come too late: the loop looks once in a second."""


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for the processes that we start: without what was for us."""
    return {name: value for name, value in environ.items() if name not in VARIABLES}


def passed(environ: Mapping[str, str], *, to_parent: bool = False) -> dict[int, str]:
    """The sockets that were passed to this process: their numbers, and their names ("" without).

    Args:
        environ: the environment.
        to_parent: also those that were passed to the process that started this one.
    """
    count = environ.get("LISTEN_FDS", "")
    ours = (str(os.getpid()), str(os.getppid()) if to_parent else "")
    if environ.get("LISTEN_PID") not in ours or not count.isdecimal():
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * int(count)
    return {3 + number: names[number] for number in range(int(count))}


def is_kept(name: str) -> bool:
    """Whether a socket of this name is from the descriptor store, where we had put it."""
    return name.startswith(_KEPT)


def name_of(address: Any) -> str:
    """The name of a listener in the store. Of what names may be made of, a part (no colon)."""
    text = address if isinstance(address, str) else f"{address[0]}-{address[1]}"
    return (_KEPT + quote(text, safe=""))[:_LONGEST_NAME]


class Notifier:
    """Tells the supervisor that started us, if it wants to know, what becomes of us.

    Nothing here waits, and nothing fails: a supervisor that does not listen is not our business.

    Args:
        environ: the environment.
        started_by: the process that the supervisor has started, if it is not this one but the
            script that called ``listen``; it has to allow that (``NotifyAccess=all``).
    """

    def __init__(self, environ: Mapping[str, str], started_by: int | None = None) -> None:
        self._main = started_by or os.getpid()
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._sock: socket.socket | None = None
        if self._address[:1] in ("/", "@"):
            with contextlib.suppress(OSError):
                self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._sock.setblocking(False)
        self.keeps_files = self._sock is not None and environ.get("FDSTORE", "").isdecimal()
        """Whether it has room for our listeners, as far as it says so (systemd 254 and later)."""
        self.interval = self._watchdog(environ)
        """Seconds within which it wants a sign of life each time; 0: it wants none."""
        self._next = 0.0
        self._said = ""

    @property
    def listens(self) -> bool:
        """Whether there is anybody to tell."""
        return self._sock is not None

    def _watchdog(self, environ: Mapping[str, str]) -> float:
        usec = environ.get("WATCHDOG_USEC", "")
        pid = environ.get("WATCHDOG_PID", str(self._main))
        if self._sock is None or not usec.isdecimal() or pid != str(self._main):
            return 0.0
        return int(usec) / 1e6

    def ready(self, status: str) -> None:
        """The server serves, for the first time or again after a reload."""
        self._said = status
        self._send(f"READY=1\nMAINPID={self._main}\nSTATUS={status}")

    def reloading(self, status: str) -> None:
        """A reload begins; it is over with ``ready``."""
        self._said = status
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        """The server stops."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``, if it is another one than the last."""
        if status != self._said:
            self._said = status
            self._send(f"STATUS={status}")

    def alive(self, now: float) -> None:
        """The loop runs: to be called at least once in a second.

        Args:
            now: the monotonic time, in seconds.
        """
        if self.interval and now >= self._next:
            self._next = now + max(0.0, self.interval / 2 - EARLY)
            self._send("WATCHDOG=1")

    def keep(
        self,
        listeners: Sequence[socket.socket],
        before: Sequence[str] = (),
        again: Sequence[socket.socket] = (),
    ) -> None:
        """Have it keep these sockets, and pass them to whoever is started in our place
        (``FileDescriptorStoreMax=`` says how many it takes).

        Args:
            listeners: the sockets.
            before: the names of those that it has kept until now. It forgets what is not used.
            again: of the listeners, those that are used again.
        """
        used = {name_of(sock.getsockname()) for sock in again}
        for name in sorted(set(before) - used):
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        for sock in listeners:
            if sock not in again:  # those it has
                self._send(f"FDSTORE=1\nFDNAME={name_of(sock.getsockname())}", sock.fileno())

    def close(self) -> None:
        """Say no more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, text: str, *fds: int) -> None:
        if self._sock is None:
            return
        # An abstract address begins with NUL, which no variable can hold.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            self._sock.sendmsg([text.encode(errors="replace")], rights, 0, address)
