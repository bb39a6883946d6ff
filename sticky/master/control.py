"""The master's side of ``sticky ctl``: a socket that only the server's own user (and root) can
reach, and what can be asked there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .. import private
from ..ctlprotocol import LONGEST, pack, peer_of, unpack
from ..errors import StickyError
from ..options import MAX_WORKERS
from .desk import Desk, Register, Unregister
from .state import Packed, Packing

log = logging.getLogger("sticky.master")


class Operations(Protocol):
    """What an operator can have done. Each returns at once: what it begins goes on afterwards.

    All of them raise StickyError where that cannot be done now, with a message for people.
    """

    def status(self) -> Mapping[str, Any]:
        """What there is, slot by slot; report.py says in which words."""

    def stats(self) -> Mapping[str, Any]:
        """The counters, as ``sticky.stats()`` gives them."""

    def why(self, text: str) -> Mapping[str, Any]:
        """Where an address or a session id goes; as ``inquiry.why``, and the "pid" there."""

    def mail(self) -> tuple[Mapping[str, Any], list[int]]:
        """The workers' mailboxes, for an emitter, and the descriptors that belong to them; as
        ``Post.mailboxes``, and the "pid" of the master."""

    def reload(self) -> None:
        """Replace all processes by new ones."""

    def upgrade(self) -> None:
        """Have new code for the master, too, in its place."""

    def scale(self, n: int) -> None:
        """Have so many slots."""

    def drain(self, slot: int) -> None:
        """Replace the process of a slot by a new one, gracefully."""

    def kill(self, slot: int) -> None:
        """SIGKILL to the process of a slot, which then gets another."""

    def stop(self, *, quick: bool = False) -> None:
        """End the server: requests in hand are finished, or at once."""


Command = Callable[[Operations, Mapping[str, Any]], Mapping[str, Any] | None]


def _whole(arguments: Mapping[str, Any], name: str, lowest: int, highest: int) -> int:
    value = arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise StickyError(f"{name} is {value!r}: it must be a number from {lowest} to {highest}")
    return value


def _scale(operations: Operations, arguments: Mapping[str, Any]) -> None:
    operations.scale(_whole(arguments, "n", 1, MAX_WORKERS))


def _drain(operations: Operations, arguments: Mapping[str, Any]) -> None:
    operations.drain(_whole(arguments, "slot", 0, MAX_WORKERS - 1))


def _kill(operations: Operations, arguments: Mapping[str, Any]) -> None:
    operations.kill(_whole(arguments, "slot", 0, MAX_WORKERS - 1))


def _why(operations: Operations, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    text = arguments.get("text")
    if not isinstance(text, str) or not text:
        raise StickyError("why needs an address or a session id")
    return operations.why(text)


_COMMANDS: Mapping[str, Command] = {
    "status": lambda operations, _: operations.status(),
    "stats": lambda operations, _: operations.stats(),
    "why": _why,
    "reload": lambda operations, _: operations.reload(),
    "upgrade": lambda operations, _: operations.upgrade(),
    "scale": _scale,
    "drain": _drain,
    "kill": _kill,
    "stop": lambda operations, given: operations.stop(quick=given.get("quick") is True),
}
_MOST_FDS = 250
_CHANGES = ("reload", "upgrade", "scale", "drain", "kill", "stop")
"""Commands that the log mentions."""


class Control:
    """The socket, and who asks there.

    Args:
        path: where it is; "auto" for the usual place.
        operations: what is done.
        clock: the monotonic time, in seconds.
        packed: of a master before ("control" there), which has it open.

    Attributes:
        path: where it is.

    Raises:
        StickyError: it cannot be there.
    """

    def __init__(
        self,
        path: str,
        operations: Operations,
        clock: Callable[[], float],
        packed: Packed | None = None,
    ) -> None:
        self._user = os.geteuid()
        self._operations = operations
        self.path = Path(path)
        if packed is not None:
            path, fd, *self._identity = packed.content["around"]["control"]
            self.path, listener = Path(path), packed.socket(fd)
        else:
            if path == "auto":
                self.path = private.socket_of(private.default(os.environ, self._user), os.getpid())
            listener = private.listener(self.path, self._user)
            if path == "auto":
                private.sweep(self.path.parent)
            there = os.lstat(self.path)
            self._identity = [there.st_dev, there.st_ino]
        overlong = pack(error=f"a question has at most {LONGEST} bytes")
        self._desk = Desk(listener, self._answer, clock, overlong)

    def pack(self, packing: Packing) -> list[Any]:
        """What another process of ours needs to have the same."""
        return [str(self.path), packing.fd(self._desk.fileno()), *self._identity]

    def open(self, register: Register, unregister: Unregister) -> None:
        """Begin to answer: in the loop that these belong to."""
        self._desk.open(register, unregister)

    def tick(self, now: float) -> None:
        """To be called about once in a second."""
        self._desk.tick(now)

    def close(self) -> None:
        """Answer nobody any more; the socket is removed if it is still ours."""
        self._desk.close()
        device, inode = self._identity
        private.remove(self.path, (device, inode))

    def _answer(self, asked: bytes, sock: socket.socket) -> bytes | None:
        line, end, _ = asked.partition(b"\n")
        if peer_of(sock) not in (0, self._user):
            return pack(error="this server answers its own user, and root")
        if not end:
            return None if len(asked) < LONGEST else pack(error="that is too long")
        try:
            content = unpack(line)
            if content.get("command") == "mail":
                return self._give_mail(sock)
            return pack(answer=self._do(content))
        except StickyError as error:
            return pack(error=str(error))
        except Exception as error:  # whatever is wrong with a question, the server goes on
            log.exception("sticky ctl was asked something that it cannot answer")
            return pack(error=f"the server has a fault, its log says more: {error!r}")

    def _give_mail(self, sock: socket.socket) -> bytes:
        """Descriptors go with spaces in front of the answer, so many at a time as the system lets
        pass."""
        answer, fds = self._operations.mail()
        try:
            for at in range(0, len(fds), _MOST_FDS):
                socket.send_fds(sock, [b" "], fds[at : at + _MOST_FDS])
        except OSError as error:
            raise StickyError(f"the mailboxes cannot be sent: {error.strerror}") from None
        return pack(answer=answer)

    def _do(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        name, arguments = content.get("command"), content.get("arguments", {})
        command = _COMMANDS.get(name) if isinstance(name, str) else None
        if command is None or not isinstance(arguments, dict):
            raise StickyError(f"there is no command {name!r}: there are {', '.join(_COMMANDS)}")
        if name in _CHANGES:
            given = "".join(f" {key}={value!r}" for key, value in arguments.items())
            log.info("sticky ctl: %s%s", name, given[:100])
        return command(self._operations, arguments) or {}
