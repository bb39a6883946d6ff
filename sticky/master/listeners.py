"""The listening sockets: addresses of both families, unix sockets, descriptors we were given."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StickyError
from ..options import Options, parse_bind


def inherited(options: Options) -> list[int]:
    """The descriptors that the options name (fd://N)."""
    return [number for kind, _, number in map(parse_bind, options.bind) if kind == "fd"]


def from_systemd(environ: Mapping[str, str]) -> list[str]:
    """The sockets that systemd passed to this process (sd_listen_fds(3)), as ``bind`` says them."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    return [f"fd://{3 + number}" for number in range(int(count))]


def url(address: Any) -> str:
    """A bound address as people write it."""
    if not isinstance(address, tuple | list):
        return f"unix:{address}"
    host, port = address[0], address[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Listeners:
    """All sockets of one server, open from the start: a port in use shows before anything runs.

    Args:
        options: the settings.
        descriptors: for each N of an fd://N, the descriptor it has in this process.

    Raises:
        StickyError: one of them cannot be had; the reason in one line. None stays open.
    """

    def __init__(self, options: Options, descriptors: Mapping[int, int]) -> None:
        self.sockets: list[socket.socket] = []
        self._paths: dict[str, tuple[int, int]] = {}  # what we made, by device and inode
        self._options = options
        binds = [parse_bind(bind) for bind in options.bind]
        try:
            for kind, where, number in binds or [("tcp", options.host, options.port)]:
                if kind == "unix":
                    self._open_unix(where)
                elif kind == "fd":
                    self._take(number, descriptors.get(number, number))
                else:
                    self._open_tcp(where, number)
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> list[Any]:
        """The bound addresses, as ``getsockname`` gives them."""
        return [sock.getsockname() for sock in self.sockets]

    def close(self) -> None:
        """Close all, and remove the files of unix sockets that are still ours."""
        for sock in self.sockets:
            sock.close()
        for path, ours in self._paths.items():
            with contextlib.suppress(OSError):
                if _identity(path) == ours:
                    Path(path).unlink()
        self._paths.clear()

    def _open_tcp(self, host: str, port: int) -> None:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise StickyError(f"cannot listen on {where}: {error.strerror}") from None
        opened = 0
        for family, _, _, _, address in dict.fromkeys(found):
            if opened and not port:  # the same port for all addresses of one name
                bound = self.sockets[-opened].getsockname()[1]
                address = (address[0], bound, *address[2:])
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:  # a kernel without IPv6
                if len(found) > 1:
                    continue
                raise StickyError(f"cannot listen on {where}: {_reason(error)}") from None
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    # All of IPv6 is all of IPv4 too, unless that has a listener of its own.
                    both = host == "::" and not self._has_ipv4(port)
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
                sock.bind(address)
                self._listen(sock)
            except OSError as error:
                sock.close()
                if error.errno == errno.EADDRNOTAVAIL and (opened or len(found) > 1):
                    continue  # a name may stand for an address that this machine lacks
                raise StickyError(f"cannot listen on {where}: {_reason(error)}") from None
            opened += 1
        if not opened:
            raise StickyError(f"cannot listen on {where}: this machine has no such address")

    def _has_ipv4(self, port: int) -> bool:
        binds = [parse_bind(bind) for bind in self._options.bind] if port else []
        return any(kind == "tcp" and ":" not in host and p == port for kind, host, p in binds)

    def _open_unix(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(path)
            sock.bind(path)
            self._paths[path] = _identity(path)
            self._listen(sock)
        except OSError as error:
            sock.close()
            reason = "permission denied" if error.errno == errno.EACCES else _reason(error)
            raise StickyError(f"cannot listen on unix:{path}: {reason}") from None

    def _take(self, number: int, descriptor: int) -> None:
        sock = None
        try:
            sock = socket.socket(fileno=descriptor)
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise OSError(errno.EINVAL, "it is not a listening socket")
            if sock.family == socket.AF_UNIX and not self._options.proxy:
                raise OSError(
                    errno.EINVAL,
                    "the clients of a unix socket have no address to route by (use proxy)",
                )
            sock.set_inheritable(False)
            self._listen(sock)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise StickyError(f"cannot listen on fd://{number}: {_reason(error)}") from None

    def _listen(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            # Connections inherit it: what an app sends in pieces is not to wait for the client's
            # word that the piece before has come (RFC 896, RFC 1122, 4.2.3.4).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._options.defer_accept:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        sock.listen(self._options.backlog)
        self.sockets.append(sock)


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket that a server which was killed left behind; nothing else, ever."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "there is a file of this name that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # or one that does not accept would keep us here
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, "another program listens on it") from None
        else:
            raise OSError(errno.EADDRINUSE, "another program listens on it")


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE and error.strerror == os.strerror(errno.EADDRINUSE):
        return "the port is in use by another program"
    if error.errno == errno.EACCES:
        return "permission denied (ports below 1024 need privileges)"
    return error.strerror or str(error)
