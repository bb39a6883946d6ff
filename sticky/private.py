"""The directory in which a server and ``sticky ctl`` meet: nobody else's, and no link to elsewhere.

Whoever could put a socket of their own there would be taken for the server, and whoever could
replace it would receive its commands. So it belongs to the user, with the rights 0700, and what
does not is refused and never repaired.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from .addresses import MAX_UNIX_PATH
from .errors import StickyError

_SUFFIX = ".sock"


def default(environ: Mapping[str, str], user: int) -> Path:
    """Where the sockets of a user's servers are, one for each, by the master's process id:
    ``$XDG_RUNTIME_DIR/sticky``, else ``/run/user/UID/sticky``, else ``/tmp/sticky-UID``.

    The first two count where the directory above belongs to the user: a server that was root has
    root's variable still.
    """
    for above in (environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"):
        with contextlib.suppress(OSError):
            if above.startswith("/") and Path(above).stat().st_uid == user:
                return Path(above) / "sticky"
    return Path(f"/tmp/sticky-{user}")  # noqa: S108 (it is checked, and only ours)


def socket_of(directory: Path, pid: int) -> Path:
    """The socket of the server with this master."""
    return directory / f"{pid}{_SUFFIX}"


def check(directory: Path, user: int) -> None:
    """Make sure that a directory is this user's alone.

    Raises:
        StickyError: it is not, or there is none; what is wrong with it.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StickyError(f"the directory {str(directory)!r} does not exist") from None
    except OSError as error:
        reason = "it is a link or no directory" if directory.is_symlink() else error.strerror
        raise StickyError(f"the directory {str(directory)!r} cannot be used: {reason}") from None
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if found.st_uid != user:
        raise StickyError(
            f"the directory {str(directory)!r} cannot be used: it belongs to user "
            f"{found.st_uid}, and not to {user}"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise StickyError(
            f"the directory {str(directory)!r} cannot be used: it is open to others (mode "
            f"{stat.S_IMODE(found.st_mode):04o}); it must have 0700"
        )


def listener(path: Path, user: int) -> socket.socket:
    """A listener at this path, in a directory that is made if it is not there.

    Raises:
        StickyError: it cannot be had; why.
    """
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise StickyError(f"the path {str(path)!r} is longer than {MAX_UNIX_PATH} bytes")
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(0o700)
    except OSError as error:
        raise StickyError(
            f"the directory {str(path.parent)!r} cannot be made: {error.strerror}"
        ) from None
    check(path.parent, user)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        if answers(path):
            raise StickyError(f"another server listens on {str(path)!r}")
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise StickyError(f"the socket {str(path)!r} cannot be made: {error.strerror}") from None
    except StickyError:
        sock.close()
        raise
    return sock


def answers(path: Path) -> bool:
    """Whether somebody listens there. A socket that a killed server left is removed.

    Raises:
        OSError: something else than a socket is there, or it cannot be reached.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(17, "there is a file of this name that is no socket")
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return False
        except BlockingIOError:
            return True  # it has a queue, so somebody listens
    return True


def found(directory: Path) -> dict[int, Path]:
    """The servers that listen in a directory, by the process ids of their masters."""
    servers = {}
    with contextlib.suppress(OSError):
        for path in sorted(directory.iterdir()):
            name = path.name.removesuffix(_SUFFIX)
            if name != path.name and name.isdecimal():
                with contextlib.suppress(OSError):
                    if answers(path):
                        servers[int(name)] = path
    return servers


def sweep(directory: Path) -> None:
    """Remove the sockets of servers that were killed."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            name = path.name.removesuffix(_SUFFIX)
            if name == path.name or not name.isdecimal():
                continue
            try:
                os.kill(int(name), 0)
            except ProcessLookupError:  # here; it may be alive in another container
                with contextlib.suppress(OSError):
                    answers(path)
            except (OSError, OverflowError):
                continue


def remove(path: Path, identity: tuple[int, int]) -> None:
    """Remove a socket that is still the one with this device and inode."""
    with contextlib.suppress(OSError):
        there = os.lstat(path)
        if (there.st_dev, there.st_ino) == identity:
            path.unlink()
