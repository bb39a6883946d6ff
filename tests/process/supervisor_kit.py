"""A supervisor as systemd is to a service: it is told what becomes of it, keeps descriptors, and
passes them to whoever it starts next."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.harness import ROOT, Running

# Gets the descriptors, has them from 3 on, says so as sd_listen_fds(3) has it, becomes the service.
_STARTER = """
import os, socket, sys
path, *command = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(path)
    names, fds, _, _ = socket.recv_fds(sock, 65536, 200)
for at, fd in enumerate(fds):
    os.dup2(fd, 500 + at)
    os.close(fd)
for at in range(len(fds)):
    os.dup2(500 + at, 3 + at, inheritable=True)
    os.close(500 + at)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names.decode()[1:])
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *command])
"""


class Supervisor:
    """Use it as a context manager, and start services with ``start``.

    Attributes:
        messages: what it was told, one dictionary for each message.
        store: the descriptors that it keeps, by name; several may have one.
    """

    def __init__(self, folder: Path, *, stores: bool = True) -> None:
        self.folder = folder
        self.stores = stores
        self.messages: list[dict[str, str]] = []
        self.store: list[tuple[str, int]] = []
        self._starter = folder / "starter.py"
        self._starter.write_text(_STARTER)
        self._seen = 0

    def __enter__(self) -> Self:
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.folder / "notify"))
        return self

    def __exit__(self, *_: object) -> None:
        self._notify.close()
        for _, fd in self.store:
            os.close(fd)

    def start(self, *words: str, env: dict[str, str] | None = None, **more: Any) -> Running:
        """A service, and what it is given; ``words`` as for the interpreter."""
        environ = {"NOTIFY_SOCKET": str(self.folder / "notify"), "PYTHONPATH": str(ROOT)}
        if self.stores:
            environ["FDSTORE"] = "16"
        environ |= env or {}
        if not self.store:
            return Running([sys.executable, *words], env=environ, **more)
        gate = str(self.folder / f"gate{len(self.messages)}-{time.monotonic_ns()}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(gate)
        listener.listen()
        names = ":".join(name for name, _ in self.store)
        command = [sys.executable, str(self._starter), gate, *words]
        return _Given(command, listener, names, [fd for _, fd in self.store], env=environ, **more)

    def wait_for(self, name: str, timeout: float = 30.0) -> dict[str, str]:
        """The next message (since the last that was waited for) that says something by this name,
        as ``READY``."""
        deadline = time.monotonic() + timeout
        while True:
            while self._seen < len(self.messages):
                message = self.messages[self._seen]
                self._seen += 1
                if name in message:
                    return message
            self._notify.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._receive()
            except TimeoutError:
                raise TimeoutError(f"{name} was not told; {self.messages}") from None

    def catch_up(self) -> None:
        """Read what has come."""
        self._notify.setblocking(False)
        try:
            while True:
                self._receive()
        except BlockingIOError:
            pass

    def _receive(self) -> None:
        data, fds, _, _ = socket.recv_fds(self._notify, 65536, 16)
        message = dict(line.partition("=")[::2] for line in data.decode().split("\n"))
        self.messages.append(message)
        if "FDSTORE" in message and self.stores:
            self.store += [(message["FDNAME"], fd) for fd in fds]
        else:
            for fd in fds:
                os.close(fd)
        if "FDSTOREREMOVE" in message:
            for name, fd in [it for it in self.store if it[0] == message["FDNAME"]]:
                self.store.remove((name, fd))
                os.close(fd)


class _Given(Running):
    """A service that is given descriptors before it begins."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        names: str,
        fds: list[int],
        **more: Any,
    ) -> None:
        super().__init__(command, **more)
        self._gate, self._names, self._fds = listener, names, fds
        self._wanted, self.ready = self.ready, False

    def __enter__(self) -> Self:
        super().__enter__()
        with self._gate:
            self._gate.settimeout(30)
            client, _ = self._gate.accept()
            with client:
                socket.send_fds(client, [b":" + self._names.encode()], self._fds)
        if self._wanted:
            self.wait_for(r"Listening at: ", self.boot_timeout)
        return self
