"""Processes that have imported the app's module and wait for a slot.

When a worker dies its successor then needs no more time than the factory does. They serve nobody,
and what they have imported is as old as they are: a reload begins with new ones.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .. import channel
from ..errors import ChannelError
from .loop import Loop
from .signals import reap

if TYPE_CHECKING:
    from .children import Child

log = logging.getLogger("sticky.master")


class Spares:
    """Those of one server.

    Args:
        most: how many there are to be.
        loop: tells what they say, and of their ends.
    """

    def __init__(self, most: int, loop: Loop) -> None:
        self._most = most
        self._loop = loop
        self._reader = channel.Reader()
        self._waiting: list[Child] = []  # ready
        self._starting: list[Child] = []
        self._futile = False  # the module cannot be imported: not before the next reload

    def fill(self, begin: Callable[[], Child]) -> None:
        """Have as many as there are to be.

        Args:
            begin: starts one more.
        """
        while not self._futile and len(self._waiting) + len(self._starting) < self._most:
            try:
                child = begin()
            except OSError as error:  # it may pass; nothing is lost meanwhile
                log.debug("no spare could be started: %s", error)
                return
            self._starting.append(child)
            register = self._loop.register
            register(child.control.fileno(), select.EPOLLIN, partial(self._heard, child))
            register(child.pidfd, select.EPOLLIN, partial(self._ended, child))

    def take(self, worker_class: str, place: bytes, fds: Sequence[int]) -> Child | None:
        """Make one that is ready a worker; None: there is none.

        Args:
            worker_class: what it is to be.
            place, fds: what is different for each worker.
        """
        for child in [one for one in self._waiting if one.worker_class == worker_class]:
            try:
                channel.send(child.control, channel.pack_header(channel.SPEC), place, *fds)
            except OSError:  # it has just ended
                continue
            self._waiting.remove(child)
            self._forget(child)
            return child
        return None

    def drop(self) -> None:
        """End all of them."""
        for child in [*self._waiting, *self._starting]:
            child.send(signal.SIGKILL)
            self._end(child)
        self._futile = False

    def _heard(self, child: Child, _: int) -> None:
        try:
            message = self._reader.receive(child.control)
        except (BlockingIOError, ChannelError):
            return
        except ConnectionResetError:
            message = None
        if message is None:
            self._loop.unregister(child.control.fileno())  # its end is told by the pidfd
        elif message.kind == channel.READY and child in self._starting:
            self._starting.remove(child)
            self._waiting.append(child)
            log.debug("a spare (pid %d) waits for a slot", child.pid)
        elif message.kind == channel.FAILED:
            self._futile = True
            log.warning("no spare can be kept: the app's module cannot be imported by itself")

    def _ended(self, child: Child, _: int) -> None:
        self._futile = self._futile or child in self._starting
        log.debug("a spare (pid %d) has ended", child.pid)
        self._end(child)

    def _end(self, child: Child) -> None:
        for place in (self._waiting, self._starting):
            with contextlib.suppress(ValueError):
                place.remove(child)
        self._forget(child)
        reap(child.pid)
        child.close()

    def _forget(self, child: Child) -> None:
        self._loop.unregister(child.control.fileno())
        self._loop.unregister(child.pidfd)
