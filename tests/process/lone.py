"""One real worker, whose master is the test: it hands over connections, gives orders, and sees what
the worker says, message by message."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sticky import Options, channel, spawn
from sticky.board import Board
from sticky.master.post import Post
from tests.harness import Kind, wait_until

from .clients import Client


@contextlib.contextmanager
def _log_into(path: Path) -> Iterator[None]:
    """What is started meanwhile writes there."""
    kept = [os.dup(fd) for fd in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        for fd in (1, 2):
            os.dup2(file, fd)
        yield
    finally:
        os.close(file)
        for fd, before in zip((1, 2), kept, strict=True):
            os.dup2(before, fd)
            os.close(before)


class Lone:
    """A worker; ready when the body of ``with`` begins.

    Args:
        kind: its worker class.
        target: its app, as "module:factory".
        folder: for its log.
    """

    def __init__(
        self,
        kind: Kind,
        target: str,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._target = target
        self._options = Options.make(
            {"num": 1, "worker_class": kind.env["STICKY_WORKER_CLASS"], **options}
        )
        self._env = {**os.environ, **(env or {})}
        self._log = folder / "log"
        self._reader = channel.Reader()
        self._status: int | None = None
        self._waiting: deque[tuple[socket.socket, Any]] = deque()

    def __enter__(self) -> Lone:
        with contextlib.ExitStack() as opened:
            self._listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.port: int = self._listener.getsockname()[1]
            self._inbox, inbox = map(opened.enter_context, channel.inbox())
            self._own_inbox, own_inbox = map(opened.enter_context, channel.inbox())
            self._board = board = Board()
            opened.callback(board.close)
            post, row = Post(board), board.give()
            self._row = row
            opened.callback(post.close_all)
            given = post.open(row, 0)
            opened.callback(given.close)
            spec = {
                "role": "worker",
                "slot": 0,
                "master": os.getpid(),
                "options": self._options.to_json(),
                "target": self._target,
                "script": None,
                "module": None,
                "call": 0,
                "argv": ["lone"],
                "path": sys.path,
                "row": row,
                **given.spec,
                "secret": bytes(32).hex(),
            }
            ends = [inbox, own_inbox, given.mailbox, given.news]
            fds = [*(end.fileno() for end in ends), board.fd]
            with _log_into(self._log):
                self.pid, self.control = spawn.start(
                    "worker 0", spec, fds, environment=self._env, stdin=os.devnull
                )
            opened.callback(self._end)
            self.expect(channel.READY, 60)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._status is None:
                os.kill(self.pid, signal.SIGKILL)
                self.ended()
        self.control.close()
        for connection, _ in self._waiting:
            connection.close()

    # -- what the master does ---------------------------------------------------------------------

    def say(self, kind: int) -> None:
        """Give an order."""
        channel.send(self.control, channel.pack_header(kind))

    def client(self, data: bytes = b"") -> Client:
        """A client, whose connection lies in the inbox, or will when there is room (``place``)."""
        client = Client(self.port, data)
        self._waiting.append(self._listener.accept())
        self.place()
        return client

    def place(self) -> None:
        """Put into the inbox what there is room for."""
        while self._waiting:
            connection, address = self._waiting[0]
            try:
                since = channel.stamp(time.monotonic())
                channel.hand_over(self._inbox, connection.fileno(), address, since)
            except BlockingIOError:
                return
            connection.close()
            self._waiting.popleft()

    def expect(self, kind: int, timeout: float = 20.0) -> channel.Message:
        """The next message of this kind; those before it are of no interest."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"no message of kind {kind}; log:\n{self.log()}"
            if select.select([self.control], [], [], left)[0]:
                message = self._reader.receive(self.control)
                assert message is not None, f"it has ended; log:\n{self.log()}"
                self._forget(message)
                if message.kind == kind:
                    return message

    def said(self) -> list[int]:
        """The kinds of all messages that are there."""
        kinds = []
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while message := self._reader.receive(self.control):
                self._forget(message)
                kinds.append(message.kind)
        return kinds

    def beats(self) -> int:
        """How often it has said that its loop turns."""
        return self._board.beats(self._row)

    def _forget(self, message: channel.Message) -> None:
        for fd in message.fds:  # of connections: their clients see them closed
            os.close(fd)

    # -- what is seen of it -----------------------------------------------------------------------

    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log(), what=f"{text!r} in the log")

    def ended(self, timeout: float = 20.0) -> int:
        """Its exit status, or minus the signal that has ended it, once it has ended."""

        def look() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            return bool(pid)

        if self._status is None:
            wait_until(look, timeout, f"the worker has ended; log:\n{self.log()}")
        assert self._status is not None
        return self._status
