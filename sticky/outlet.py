"""Lines for a descriptor that somebody else reads, or does not: nothing here ever waits for it.

Whether a write waits is a property of the open file description, which is shared with the shell
and with all other programs that write there, so O_NONBLOCK is not ours to set on one that we were
given (open(2), fcntl(2)). What it is decides what is done instead:

    regular file     write(2) waits for no reader. A description of our own would have a place in
                     the file of its own, and write over what others write.
    socket           send(2) with MSG_DONTWAIT
    pipe, terminal   a description of our own of the same file: /proc/self/fd/N, opened with
                     O_NONBLOCK. Where that is refused (it belongs to another user, there is no
                     /proc): pwritev2(2) with RWF_NOWAIT, which newer kernels know for pipes.
                     Where that is not, either: poll(2), then write(2), which still waits if
                     another process fills the room between the two calls.

What cannot be written is kept, within a bound. What does not fit is counted, and the count is told
when what was kept is written. Kept lines are written by the next ``write``, by ``flush``, which
whoever has a loop calls now and then, and at the exit, for which a second is waited at most.

To be imported before anything is monkey-patched: eventlet's ``os.write`` waits.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import stat
import time
import weakref
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, getdefaulttimeout, setdefaulttimeout
from _socket import socket as Socket  # noqa: N812 - a class
from _thread import RLock
from collections import deque
from collections.abc import Callable
from functools import partial
from os import pwritev, write

with contextlib.suppress(ImportError):  # eventlet has it taken away from a launcher, without a log
    from select import POLLOUT, poll

MOST = 1 << 18
"""Bytes that are kept of what cannot be written: some 1,500 lines."""
_PIPE_BUF = 4096
"""A pipe that polls as writable takes this much without blocking (pipe(7))."""
_NOBODY = "nobody read them"
_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""The answers of kernels that do not know RWF_NOWAIT, or not for this kind of file."""

OnLost = Callable[[int, str], object]


class Outlet:
    """A way for whole lines into a descriptor; to be used from any thread.

    Args:
        fd: the descriptor.
        on_lost: called with a number of lines and the reason, when they were lost and writing works
            again. It may write here itself.
        own: the description is nobody else's, and non-blocking: opened for this. It is closed with
            the outlet.
    """

    def __init__(self, fd: int, on_lost: OnLost, *, own: bool = False) -> None:
        self._fd = fd
        self._on_lost = on_lost
        self._own = own
        self._opened = -1  # the description of our own of what is not
        self._sock: Socket | None = None
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._why = ""
        # Re-entrant, as a signal handler may log, too. No greenlet is ever switched away from while
        # it is held.
        self._lock = RLock()
        self._file = _identity(fd)
        self._put = self._way()
        _all.add(self)

    def write(self, line: bytes) -> None:
        """Write this now, or keep it, or count it as lost; never wait, never raise OSError."""
        if self._kept or self._lost:
            self.flush()
        with self._lock:
            if self._kept:
                if self._lost or self._size + len(line) > MOST:
                    self._lost += 1
                else:
                    self._kept.append(line)
                    self._size += len(line)
                return
            try:
                done = self._put(line)
            except OSError:
                done = 0  # it is tried once more below, which finds the reason
            if done == len(line):  # as nearly always
                return
            if rest := self._push(line[done:]):
                if len(rest) > MOST:
                    rest = rest[: MOST - 4] + b"...\n"
                self._kept.append(rest)
                self._size = len(rest)
                _behind.add(self)

    def flush(self) -> bool:
        """Write what is kept as far as it can be; whether all of it is written."""
        with self._lock:
            while self._kept:
                line = self._kept[0]
                rest = self._push(line)
                self._size -= len(line) - len(rest)
                if rest:
                    self._kept[0] = rest
                    return False
                self._kept.popleft()
            _behind.discard(self)
            lost, self._lost = self._lost, 0
        if lost:
            self._on_lost(lost, self._why)
        return not self._kept

    def _push(self, line: bytes) -> bytes:
        """Write it as far as it can be written; the rest."""
        try:
            while line:
                line = line[self._put(line) :]
        except BlockingIOError:
            self._why = _NOBODY
        except OSError as error:
            self._why = error.strerror or str(error)
            if error.errno == errno.EMSGSIZE:  # in no packet of this socket there is room for it
                self._lost += 1
                _behind.add(self)
                return b""
        return line

    def wait(self, until: float) -> None:
        """Write what is kept, and wait for whoever reads it."""
        poller = poll()
        poller.register(self._opened if self._opened >= 0 else self._fd, POLLOUT)
        while not self.flush() and self._why == _NOBODY:
            left = until - time.monotonic()
            if left <= 0:
                return
            poller.poll(left * 1000)

    def reopen(self) -> None:
        """Look what the descriptor is by now: somebody may have put another file in its place."""
        with self._lock:
            if not self._own and (file := _identity(self._fd)) != self._file:
                self._file = file
                self._close()
                self._put = self._way()

    def replace(self, fd: int) -> None:
        """Write to this file instead, under the same number. Args: fd: as with ``own``; it is
        closed."""
        with self._lock:
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
            self._file = _identity(self._fd)

    def close(self) -> None:
        """Write what can be written at once, and close what is ours."""
        with self._lock:
            if self._fd < 0:
                return
            self.flush()
            self._close()
            if self._own:
                os.close(self._fd)
            self._fd = -1
            self._put = _closed
            self._kept.clear()
            self._lost = self._size = 0
            _behind.discard(self)

    __del__ = close

    def _close(self) -> None:
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    # -- how it is written --------------------------------------------------------------------

    def _way(self) -> Callable[[bytes], int]:
        """A function that writes some of what it is given, and returns how much; or raises."""
        fd = self._fd
        try:
            kind = os.fstat(fd).st_mode
        except OSError:  # it is closed: every write will say so
            return partial(write, fd)
        if self._own or stat.S_ISREG(kind):
            return partial(write, fd)
        if stat.S_ISSOCK(kind):
            return self._sender()
        try:
            self._opened = _open_again(fd)
        except OSError:
            return self._write_nowait
        return partial(write, self._opened)

    def _sender(self) -> Callable[[bytes], int]:
        default = getdefaulttimeout()
        setdefaulttimeout(None)  # with one, a socket object sets O_NONBLOCK, which others would see
        try:
            self._sock = sock = Socket(fileno=os.dup(self._fd))
        finally:
            setdefaulttimeout(default)
        flags = MSG_DONTWAIT | MSG_NOSIGNAL
        return lambda data: sock.send(data, flags)

    def _write_nowait(self, data: bytes) -> int:
        try:
            return pwritev(self._fd, [data], -1, os.RWF_NOWAIT)
        except (NotImplementedError, AttributeError):  # a C library that does not know it
            pass
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
        self._put = self._write_if_ready
        return self._put(data)

    def _write_if_ready(self, data: bytes) -> int:
        poller = poll()
        poller.register(self._fd, POLLOUT)
        ready = poller.poll(0)
        if not ready or not ready[0][1] & POLLOUT:
            if not ready:
                raise BlockingIOError(errno.EAGAIN, _NOBODY)
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return write(self._fd, data[:_PIPE_BUF])

    def forget(self) -> None:
        """In a forked child: what is kept is the parent's to write, and whoever held the lock is
        not here."""
        self._lock = RLock()
        self._kept.clear()
        self._lost = self._size = 0


_all: weakref.WeakSet[Outlet] = weakref.WeakSet()
_behind: set[Outlet] = set()
"""Those that have something to write, or to tell."""


def _closed(data: bytes) -> int:
    return len(data)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_again(fd: int) -> int:
    """A description of our own of the same file.

    Raises:
        OSError: it cannot be had; for a named pipe also: nobody reads it.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    opened = os.open(f"/proc/self/fd/{fd}", flags)
    if _identity(opened) != _identity(fd):  # /dev/ptmx makes a new terminal each time
        os.close(opened)
        raise OSError(errno.ENOTSUP, "it is another file")
    return opened


def pending() -> bool:
    """Whether there are lines that could not be written yet."""
    return bool(_behind)


def flush() -> None:
    """Write what is kept, as far as it can be written at once. To be called now and then; costs
    nothing where nothing is kept."""
    for outlet in tuple(_behind):
        outlet.flush()


def finish(seconds: float = 1.0) -> None:
    """The process ends: write what is kept, and wait for the readers, at most so long."""
    until = time.monotonic() + seconds
    for outlet in tuple(_behind):
        outlet.wait(until)


def reopen() -> None:
    """Look what the descriptors are by now."""
    for outlet in tuple(_all):
        outlet.reopen()


def _forked() -> None:
    _behind.clear()
    for outlet in tuple(_all):
        outlet.forget()


atexit.register(finish)
os.register_at_fork(after_in_child=_forked)
