"""``pid``: a file with the master's process id, from its start to its end, as gunicorn has it."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

from ..errors import StickyError
from .proc import age

_LATER = 10.0
"""Seconds by which a process must have started after the file was written not to be the one that it
names: clocks are set now and then."""


class PidFile:
    """The file, once it is written.

    Args:
        path: where it is.
        user, group: to whom it is to belong.

    Raises:
        StickyError: a process that it names is alive, or it cannot be written.
    """

    def __init__(self, path: str, user: int, group: int) -> None:
        self._path = Path(path)
        self._new = Path(f"{path}.{os.getpid()}")
        if _named(self._path) == os.getpid():
            return  # of us, before an upgrade in place; or of another process 1 of a container
        living = _living(self._path)
        if living is not None:
            raise StickyError(
                f"the pid file {path!r} names process {living}, which is alive: stop that server "
                "first, or remove the file if it is not one"
            )
        try:
            self._write(user, group)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._new.unlink()
            raise StickyError(
                f"the pid file {path!r} cannot be written: {error.strerror}"
            ) from None

    def _write(self, user: int, group: int) -> None:
        """A whole file takes the place of the old one: nobody reads half of it, and a link that
        somebody has put there is replaced, not followed."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            self._new.unlink()  # of one that had our number and was killed while it wrote
        with open(os.open(self._new, flags, 0o644), "w") as file:
            file.write(f"{os.getpid()}\n")
            os.fchmod(file.fileno(), 0o644)
            if (user, group) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), user, group)
        self._new.replace(self._path)

    def close(self) -> None:
        """Remove it, if it is still ours. Where whom we have become may not (a folder of root's),
        it is emptied, which names nobody."""
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.lstat(self._path).st_mode):
                return
            if _named(self._path) != os.getpid():
                return
            try:
                self._path.unlink()
            except PermissionError:
                os.truncate(self._path, 0)


def _named(path: Path) -> int:
    """The process that a file names; 0 where there is no such file, or it names none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _living(path: Path) -> int | None:
    """The process that a file names, if there is one and it can be the one that was meant."""
    pid = _named(path)
    if pid <= 0:
        return None
    try:
        written = path.stat().st_mtime
        os.kill(pid, 0)
    except FileNotFoundError:
        return None
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    except OverflowError:
        return None
    # Numbers come again: after a crash of the machine, and soon in a container.
    return None if time.time() - age(pid) > written + _LATER else pid
