"""Emitting from a process that is no worker: a cron job, a Celery task, a shell.

    events = sticky.emitter()                  # the one server that this user runs
    events.emit("news", {"a": 1}, room="readers")

It asks the server for its workers' mailboxes, over the socket of ``sticky ctl`` (so it has to be of
the same user, or root), and sends to them itself. Whether workers have come or gone it sees in the
memory that the server's processes share; it asks again then.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import socketio

from . import ctl, events
from .board import Board
from .errors import StickyError
from .mail import Mail
from .mailbox import EVENTS, Sender

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Emitter", "emitter"]

_LAST = 1.0
"""Seconds for what workers that are slow have not taken, when this process ends."""
_LOOK = 1.0
"""Seconds between two looks whether the server is still the same."""


def emitter(server: int | str | Path | Server | None = None, *, json: Any = None) -> Emitter:
    """What emits to the clients of a running server.

    Args:
        server: its process id, the path of its ``ctl`` socket, an address that it listens at
            ("127.0.0.1:3000"), or a ``sticky.Server``; None: the one that this user runs.
        json: the module that the server's socketio.Server uses, if that is not the usual one.

    Raises:
        StickyError: there is no such server, or it is another user's.
    """
    return Emitter(server, json=json)


class Emitter(socketio.PubSubManager):  # type: ignore[misc]  # it is not typed
    """A write-only manager, as ``socketio.RedisManager(write_only=True)`` is one: ``emit``,
    ``disconnect``, ``enter_room``, ``leave_room``, ``close_room``. None of them waits for a worker.

    When the server has been started anew, it goes on with the new one; while there is none they
    raise StickyError.

    Args:
        server, json: as for ``emitter``.
    """

    name = "sticky"

    def __init__(
        self, server: int | str | Path | Server | None = None, *, json: Any = None
    ) -> None:
        super().__init__(write_only=True, json=json)
        self._server = server
        self._mail: Mail | None = None
        self._born: dict[int, int] = {}
        self._epoch = self._master = -1
        self._pidfd = -1
        self._looked = 0.0
        self._lock = threading.Lock()
        self._finish: weakref.finalize[..., Any] | None = None
        self._ask()

    # -- the server ---------------------------------------------------------------------------

    def _ask(self) -> bool:
        """Know the workers that there are now; whether they are those of another server."""
        answer, fds = ctl.ask_for_mail(ctl.find(self._server))
        memory, *mailboxes = fds
        if answer["pid"] != self._master:
            self._leave()
            board = Board(memory)
            board.close()
            self._mail = mail = Mail(Sender(0, -1, os.getpid()), board)
            self._finish = weakref.finalize(self, _end, mail)
            self._master = answer["pid"]
            try:
                self._pidfd = os.pidfd_open(self._master)
            except OSError:  # it is in another container
                self._pidfd = -1
            other = True
        else:
            os.close(memory)
            other = False
        self._learn(answer, mailboxes)
        return other

    def _learn(self, answer: Mapping[str, Any], mailboxes: list[int]) -> None:
        assert self._mail is not None
        self._epoch = answer["epoch"]
        there = {row: born for row, _, born in answer["workers"]}
        for row in [row for row, born in self._born.items() if there.get(row) != born]:
            self._mail.went(row, self._epoch)
            del self._born[row]
        for (row, slot, born), fd in zip(answer["workers"], mailboxes, strict=True):
            if row in self._born:
                os.close(fd)
            else:
                self._mail.came(row, slot, fd, self._epoch)
                self._born[row] = born

    def _leave(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._finish is not None:
            self._finish()
        self._born.clear()
        self._epoch = self._master = -1

    def _is_stale(self, mail: Mail) -> bool:
        if mail.memory.presence[0] != self._epoch:
            return True
        if (now := time.monotonic()) < self._looked + _LOOK:
            return False
        self._looked = now
        return self._pidfd >= 0 and bool(select.select([self._pidfd], [], [], 0)[0])

    def _publish(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._send(message)

    def _send(self, message: dict[str, Any]) -> None:
        if self._mail is None:
            raise StickyError("this emitter is closed")
        if self._is_stale(self._mail):
            self._ask()
        data = events.pack(message, self.json)
        self._mail.post(EVENTS, data)
        if self._mail.out.broken:  # a worker has ended, or all of them have
            self._mail.out.broken = False
            if self._ask():
                self._mail.post(EVENTS, data)

    # -- what python-socketio would do here, too ------------------------------------------------

    def disconnect(self, sid: str, namespace: str | None = None, **_: Any) -> None:
        """Disconnect a client."""
        self._publish(
            {
                "method": "disconnect",
                "sid": sid,
                "namespace": namespace or "/",
                "host_id": self.host_id,
            }
        )

    def close(self) -> None:
        """Send what is left, for a second at most, and be of no use any more."""
        self._leave()
        self._mail = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _end(mail: Mail) -> None:
    mail.finish(_LAST)
    mail.close()
