"""The old code's side of an upgrade in place (SIGUSR2); ``upgraded`` is the new code's.

A process of the new code is started first, with a copy of the state, and says whether it could
take over (``Trial``). The master serves meanwhile, and goes on as before if it says no. If it says
yes, the state is packed once more, as it is then, and the master replaces itself (``become``):
execve(2) keeps the process, its children, and what is open of descriptors.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .. import logs, spawn
from .loop import Loop
from .signals import describe, reap
from .state import Packing

LONGEST = 30.0
"""Seconds for the new code to say whether it can take over."""
QUIET = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1),
    *(signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD, signal.SIGALRM),
)
"""Signals that wait until the new code can hear them; and that a trial does not hear, since the
whole group may get them."""

log = logging.getLogger("sticky.master")


class Trial:
    """A process that tries the new code, if there is one.

    Args:
        loop: tells what it says.
        on_answer: called with the reason why not; None: it could take over.

    Attributes:
        pid: of the process; 0 while there is none.
    """

    def __init__(self, loop: Loop, on_answer: Callable[[str | None], object]) -> None:
        self._loop = loop
        self._on_answer = on_answer
        self._answer = -1
        self._said = b""
        self._until = 0.0
        self.pid = 0

    def start(self, packing: Packing, content: Mapping[str, Any], now: float) -> None:
        """Start one.

        Raises:
            OSError: there is no room for it, or no descriptor.
            StickyError: there is no interpreter.
        """
        command = spawn.interpreter("trial")
        opened = [packing.write(content)]
        try:
            opened += os.pipe()
            for fd in (state := opened[0]), (theirs := opened[2]):
                os.set_inheritable(fd, True)
            self.pid = os.posix_spawn(
                command[0],
                [*command, str(state), str(theirs)],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsigmask=QUIET,
            )
            self._answer = opened.pop(1)
        finally:
            for fd in opened:
                os.close(fd)
        self._said, self._until = b"", now + LONGEST
        self._loop.register(self._answer, select.EPOLLIN, self._heard)

    def tick(self, now: float) -> None:
        """To be called about once in a second."""
        if self.pid and now >= self._until:
            self.stop()
            self._on_answer(f"the new code was not ready within {LONGEST:g} s")

    def stop(self) -> int:
        """End it, if there is one; its exit status, or minus the signal that ended it."""
        if not self.pid:
            return 0
        self._loop.unregister(self._answer)
        os.close(self._answer)
        # It is our child, and not collected yet: the number is still its own.
        os.kill(self.pid, signal.SIGKILL)
        status, self.pid = reap(self.pid), 0
        return status

    def _heard(self, _: int) -> None:
        piece = os.read(self._answer, 1 << 16)
        self._said += piece
        if piece:
            return
        status = self.stop()  # it has said all, or has ended
        try:
            said = json.loads(self._said)
            why = said.get("no")
        except (ValueError, AttributeError):
            self._on_answer(f"the new code {describe(status)}; what it wrote may say more")
            return
        self._on_answer(None if why is None else logs.printable(why))


def hold() -> list[int]:
    """Have signals wait; those that had been blocked before (``release``)."""
    return [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, QUIET)]


def release(before: list[int]) -> None:
    """What ``hold`` has kept back comes now."""
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become(packing: Packing, content: Mapping[str, Any]) -> None:
    """Replace the code of this process by the new one, which finds the state.

    Returns only by raising; everything is as before then.

    Raises:
        OSError: the system refuses.
        StickyError: there is no interpreter.
    """
    memfd = packing.write(content)
    fds = [memfd, *packing.fds]
    try:
        command = spawn.interpreter("upgraded", str(memfd))
        logs.finish(0.2)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for fd in fds:
            os.set_inheritable(fd, True)
        os.execve(command[0], command, os.environ)  # noqa: S606 - it is this very program
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)
        os.close(memfd)


def cannot(reason: object) -> str:
    """What the log says when nothing comes of it."""
    text = reason.strerror if isinstance(reason, OSError) else reason
    return f"the upgrade was given up: {text}"
