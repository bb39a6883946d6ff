"""The listening sockets: addresses of both families, unix sockets, descriptors we were given."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..addresses import parse_bind
from ..errors import StickyError
from ..options import Options
from . import systemd
from .state import Packed, Packing


def inherited(options: Options) -> list[int]:
    """The descriptors that the options name (fd://N), and those that systemd kept for us."""
    named = [number for kind, _, number in map(parse_bind, options.bind) if kind == "fd"]
    kept = [n for n, name in systemd.passed(os.environ).items() if systemd.is_kept(name)]
    return [number for number in dict.fromkeys([*named, *kept]) if number]


def from_systemd(environ: Mapping[str, str]) -> list[str]:
    """The sockets that systemd passed to this process (sd_listen_fds(3)), as ``bind`` says them;
    but those that it only keeps for us count where their address is what ``bind`` says."""
    passed = systemd.passed(environ).items()
    return [f"fd://{number}" for number, name in passed if not systemd.is_kept(name)]


def resolved(binds: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """The same, with the numbers of the descriptors that are named (fd://NAME), where there are
    such: several may have one name (FileDescriptorName= of systemd.socket(5))."""
    passed = systemd.passed(environ)
    found = []
    for bind in binds:
        kind, name, _ = parse_bind(bind)
        named = kind == "fd" and name
        numbers = [n for n, other in passed.items() if named and other == name]
        found += [f"fd://{number}" for number in numbers] or [bind]
    return found


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
        packed: those of a master before (its ``pack`` is the "listeners" there), instead of all
            that.

    Attributes:
        sockets: all of them.
        made: of these, those that this server made, now or before systemd started it anew.
        again: of these, those that were made before.
        kept_names: what systemd calls those that it has kept for us, used again or not.
        names: of those that systemd has passed, the names, by place in ``sockets``.

    Raises:
        StickyError: one of them cannot be had; the reason in one line. None stays open.
    """

    def __init__(
        self, options: Options, descriptors: Mapping[int, int], packed: Packed | None = None
    ) -> None:
        self.sockets: list[socket.socket] = []
        self.made: list[socket.socket] = []
        self.names: dict[int, str] = {}  # of those that systemd has passed, by place
        self._paths: dict[str, tuple[int, int]] = {}  # what we made, by device and inode
        self._options = options
        self.again: list[socket.socket] = []
        self._kept: list[socket.socket] = []
        if packed is not None:
            self._restore(packed.content["listeners"], packed)
            return
        self.kept_names = [name for name in _passed().values() if systemd.is_kept(name)]
        self._kept = _kept(descriptors)
        binds = [parse_bind(bind) for bind in options.bind]
        try:
            for kind, where, number in binds or [("tcp", options.host, options.port)]:
                if kind == "unix":
                    self._open_unix(where)
                elif kind == "fd" and where:
                    raise StickyError(f"cannot listen on fd://{where}: {_nameless()}")
                elif kind == "fd":
                    self._take(number, descriptors.get(number, number))
                else:
                    self._open_tcp(where, number)
        except BaseException:
            self.close()
            raise
        finally:
            for sock in self._kept:  # nobody wants to listen there any more
                sock.close()
            self._kept.clear()

    def pack(self, packing: Packing) -> dict[str, Any]:
        """What another process of ours needs to have the same."""
        sockets = self.sockets
        return {
            "sockets": [packing.fd(sock.fileno()) for sock in sockets],
            "made": [sockets.index(sock) for sock in self.made],
            "again": [sockets.index(sock) for sock in self.again],
            "kept_names": self.kept_names,
            "names": [[at, name] for at, name in self.names.items()],
            "paths": [[path, *ours] for path, ours in self._paths.items()],
        }

    def _restore(self, known: Mapping[str, Any], packed: Packed) -> None:
        self.sockets = [packed.socket(fd) for fd in known["sockets"]]
        self.made = [self.sockets[at] for at in known["made"]]
        self.again = [self.sockets[at] for at in known["again"]]
        self.kept_names = known["kept_names"]
        self.names = dict(known["names"])
        self._paths = {path: (device, inode) for path, device, inode in known["paths"]}

    @property
    def addresses(self) -> list[Any]:
        """The bound addresses, as ``getsockname`` gives them."""
        return [sock.getsockname() for sock in self.sockets]

    @property
    def urls(self) -> list[str]:
        """The same as people write them, with the names that systemd gave them."""
        urls = [url(address) for address in self.addresses]
        names = [f" ({self.names[at]})" if at in self.names else "" for at in range(len(urls))]
        return [one + name for one, name in zip(urls, names, strict=True)]

    def give_to(self, user: int, group: int) -> None:
        """Have the files of unix sockets belong to a user, who is to remove them at the end.

        Raises:
            OSError: they cannot be given away.
        """
        for path, ours in self._paths.items():
            if _identity(path) == ours:
                os.chown(path, user, group, follow_symlinks=False)

    def leave_files(self) -> None:
        """Do not remove the files of unix sockets at the end: somebody else keeps the sockets, and
        a successor gets them again."""
        self._paths.clear()

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
            if kept := self._find(family, address):
                self._listen(kept)
                self.made.append(kept)
                opened += 1
                continue
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
                self.made.append(sock)
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

    def _find(self, family: int, address: Any) -> socket.socket | None:
        """A listener for this address that we made before, and that systemd has kept."""
        for sock in self._kept:
            bound = sock.getsockname()
            same = bound == address
            if family != socket.AF_UNIX and sock.family == family:
                same = bound[0] == address[0] and address[1] in (0, bound[1])
            if same and sock.family == family:
                self._kept.remove(sock)
                self.again.append(sock)
                return sock
        return None

    def _open_unix(self, path: str) -> None:
        if Path(path).is_socket() and (kept := self._find(socket.AF_UNIX, path)):
            self._listen(kept)
            self._paths[path] = _identity(path)
            self.made.append(kept)
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            remove_stale(path)
            sock.bind(path)
            self._paths[path] = _identity(path)
            self._listen(sock)
            self.made.append(sock)
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
            if name := _passed().get(number):
                self.names[len(self.sockets) - 1] = name
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


def _passed() -> dict[int, str]:
    """What systemd passed to this process or, if that was a script, to the one before it."""
    return systemd.passed(os.environ, to_parent=True)


def _kept(descriptors: Mapping[int, int]) -> list[socket.socket]:
    """The listeners that systemd kept for us, whoever of us made them."""
    found = []
    for number, name in _passed().items():
        ours = number in systemd.passed(os.environ)
        here = descriptors.get(number, number if ours else -1)
        if not systemd.is_kept(name) or here < 0:
            continue
        with contextlib.suppress(OSError):  # what is none is not ours to judge
            sock = socket.socket(fileno=here)
            sock.set_inheritable(False)
            found.append(sock)
    return found


def _nameless() -> str:
    """What is said where a name names nothing."""
    names = sorted(set(_passed().values()) - {""})
    known = f"; there are {', '.join(names)}" if names else ", and none at all"
    return f"systemd has passed no socket of this name (FileDescriptorName=){known}"


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def remove_stale(path: str) -> None:
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
