"""Messages between the master and its workers: one header, a payload and file descriptors.

A message is one packet on an AF_UNIX SOCK_SEQPACKET pair, so its boundaries are kept. Three kinds
of pair carry them: the inbox of a slot and the own one of a process (connections only, master to
worker), and the control pair of a process (everything else, both ways). A fourth kind says who has
come and gone, to be read by whoever is about to send mail (mail.py).

    header (32 bytes)                payload                     descriptors (SCM_RIGHTS)
    version kind moves family        of a connection: the        of a connection: its socket,
    scope port flags address         bytes already read from     then the memfd that holds a
    since                            it (the prefix)             prefix too large for a packet

``since`` is when the master accepted a connection or got it back: milliseconds of the monotonic
clock, the lowest 32 bits of them.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from _socket import socket as Socket  # noqa: N812 - what socket.socket is made from, too

from .errors import ChannelError

VERSION = 4
SPOKEN = frozenset((VERSION,))
"""The versions that this code can speak with a process that was started by an earlier one."""

# Kinds of message, and who sends them.
CONNECTION = 1  # master -> worker: serve this one
HAND_BACK = 2  # worker -> master: its next request belongs elsewhere
REST = 13  # both ways: a connection at a boundary, of whose next request nothing was read
SPEC = 3  # master -> worker, first of all: what to run (JSON)
READY = 4  # worker -> master: the app is loaded
FAILED = 5  # worker -> master: it is not, and why (JSON)
# 6 and 7 were PING and PONG, up to version 3: beats are counted in the board
CLOSING = 8  # master -> worker: answer with Connection: close from now on
END = 9  # master -> worker: nothing more will come; finish what you have, then end
QUIT = 10  # master -> worker: end now
CHANGED = 11  # watcher -> master: these files have changed (JSON)
NOTICE = 12  # worker -> master: something that should be in the log once (JSON)
REOPEN = 14  # master -> worker: open log files anew, they have been renamed
LEAVING = 15  # worker -> master: it asks to be replaced, and serves until it is told END
CAME = 16  # master -> worker: another process is there; with its mailbox
WENT = 18  # master -> worker: another process has ended
RESCALED = 17  # master -> worker: there are more slots now, or fewer

_CONNECTIONS = frozenset((CONNECTION, HAND_BACK, REST))

_HEADER = struct.Struct("!BBBBIHH16sI")
_IPV4_HEADER = struct.Struct("!BBBBxxxxHH4s12xI")  # the same, where the address is of that family
_IPV4_CONNECTION = struct.Struct("!BBxBxxxxHxx4s12xI")  # and moves and flags are 0
HEADER_SIZE = _HEADER.size
_PRESENCE = struct.Struct("!QIi")
_CLOCK = 0xFFFFFFFF  # what of a time is sent
_FD = struct.Struct("i")
_PREFIX_IN_MEMFD = 1
_UNHELD = 2  # the process that served it last does not hold its session

# A packet may be 212,960 bytes at the default buffer sizes.
MAX_INLINE = 60_000
_INBOX_BUFFER = 8192  # about 20 messages: what a dead worker leaves behind stays small
# Past this a prefix goes in a memfd: no packet is larger than the buffer, and one must not fill it.
_MAX_PREFIX = _INBOX_BUFFER // 4
_MAX_FDS = 253  # SCM_MAX_FD
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
"""Why a connection cannot be sent just now: a memfd for its prefix, or its descriptor in flight,
would be one too many. Nothing announces when that is over, and nothing was sent."""
# As numbers: what is done with the enums of the socket module, for each message, takes longer than
# the system call.
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_WAIT = int(socket.MSG_CMSG_CLOEXEC)
_PEEK = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)
_CUT_OFF = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)
_RIGHTS = _SOL_SOCKET, _SCM_RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
_unpack_ipv4, _unpack_fd, _ntoa = _IPV4_HEADER.unpack_from, _FD.unpack, socket.inet_ntoa

Address = tuple[str, int] | tuple[str, int, int, int] | str


class Message:
    """One message as it was received. ``fds`` belong to whoever holds the message."""

    __slots__ = ("address", "fds", "kind", "moves", "payload", "since", "unheld")

    def __init__(
        self,
        kind: int,
        payload: bytes,
        fds: list[int],
        address: Address,
        moves: int = 0,
        unheld: bool = False,
        since: int = 0,
    ) -> None:
        self.kind = kind
        self.payload = payload
        self.fds = fds
        self.address = address
        self.moves = moves
        self.unheld = unheld
        self.since = since

    def __repr__(self) -> str:
        return f"<message of kind {self.kind}, {len(self.payload)} bytes, {self.fds}>"


def pair(send_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a new channel, not inheritable, non-blocking."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        if send_buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    return ends


def socket_family(address: Address) -> socket.AddressFamily:
    """The family of a connection's socket, from its client's address."""
    if not address:
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def inbox() -> tuple[socket.socket, socket.socket]:
    """The pair of a slot: (where the master writes, where the worker reads)."""
    return pair(_INBOX_BUFFER)


def stamp(now: float) -> int:
    """A time on the monotonic clock, in seconds, as a message carries it."""
    return int(now * 1000) & _CLOCK


def age(since: int, now: float) -> float:
    """Seconds that have passed since a stamp; up to 49 days."""
    return (stamp(now) - since & _CLOCK) / 1000


def pack_header(
    kind: int, address: Address = "", *, moves: int = 0, flags: int = 0, since: int = 0
) -> bytes:
    """The 32 bytes in front of every message.

    Args:
        kind: one of the constants above.
        address: the client's, as ``accept()`` gives it; "" for a unix socket's client.
        since: of ``stamp``.
    """
    scope = port = 0
    family, packed = 0, b""
    if address:
        host, port = address[0], address[1]  # type: ignore[assignment]
        if ":" in host:
            family, packed = 6, socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
            scope = address[3]  # type: ignore[assignment,misc]
        else:
            family, packed = 4, socket.inet_aton(host)
    return _HEADER.pack(VERSION, kind, moves, family, scope, port, flags, packed, since)


def pack_presence(epoch: int, row: int, slot: int) -> bytes:
    """What CAME and WENT say: of whom, and how often somebody has come or gone by then."""
    return _PRESENCE.pack(epoch, row, slot)


def unpack_presence(payload: bytes) -> tuple[int, int, int]:
    """The same: the epoch, the row and the slot."""
    epoch, row, slot = _PRESENCE.unpack(payload)
    return epoch, row, slot


def send(channel: Socket, header: bytes, payload: bytes = b"", *fds: int) -> None:
    """Send one message, without ever waiting.

    Raises:
        BlockingIOError: there is no room; nothing was sent.
        OSError: the other end is gone (EPIPE), or too many descriptors are in flight
            (ETOOMANYREFS, to be treated as no room).
    """
    parts = (header, payload) if payload else (header,)
    if fds:
        rights = _FD.pack(*fds) if len(fds) == 1 else array.array("i", fds).tobytes()
        channel.sendmsg(parts, ((*_RIGHTS, rights),), _FLAGS)
    else:
        channel.sendmsg(parts, (), _FLAGS)


def hand_over(channel: Socket, fd: int, address: Address, since: int) -> None:
    """Send a connection of which nothing was read: the common case, once for every connection.

    The same message as ``send_connection`` makes, in one step; raises as ``send`` does.
    """
    if address and ":" not in address[0]:
        header = _IPV4_CONNECTION.pack(
            VERSION, CONNECTION, 4, address[1], socket.inet_aton(address[0]), since
        )
    else:
        header = pack_header(CONNECTION, address, since=since)
    channel.sendmsg((header,), ((*_RIGHTS, _FD.pack(fd)),), _FLAGS)


def send_connection(
    channel: Socket,
    kind: int,
    fd: int,
    address: Address,
    prefix: bytes = b"",
    *,
    moves: int = 0,
    unheld: bool = False,
    since: int = 0,
) -> None:
    """Send a connection with the bytes already read from it; raises as ``send`` does, and what
    keeps a memfd from being made (see ``PASSING``).

    Args:
        unheld: a process that could have held the session of its next request does not.
    """
    flags = _UNHELD if unheld else 0
    if len(prefix) <= _MAX_PREFIX:
        header = pack_header(kind, address, moves=moves, flags=flags, since=since)
        send(channel, header, prefix, fd)
        return
    memfd = os.memfd_create("sticky-prefix", os.MFD_CLOEXEC)
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(prefix)
        flags |= _PREFIX_IN_MEMFD
        header = pack_header(kind, address, moves=moves, flags=flags, since=since)
        send(channel, header, b"", fd, memfd)
    finally:
        os.close(memfd)


def oldest(channel: Socket) -> int | None:
    """``since`` of the first message that waits here, which stays there; None: there is none."""
    try:
        header = channel.recv(HEADER_SIZE, _PEEK)
    except BlockingIOError:
        return None
    return int(_HEADER.unpack(header)[-1]) if len(header) == HEADER_SIZE else None


class Reader:
    """Receives messages, with one buffer that is used again (a large one made for each
    message would be mapped and unmapped each time).

    Args:
        connections: for an inbox: what comes is a connection each time, and small.
    """

    def __init__(self, *, connections: bool = False) -> None:
        self._buffer = bytearray(_INBOX_BUFFER if connections else 256 * 1024)
        self._buffers = (self._buffer,)
        self._room = socket.CMSG_SPACE((2 if connections else _MAX_FDS) * _FD.size)

    def receive(self, channel: Socket, *, wait: bool = False) -> Message | None:
        """The next message, or None when the other end is closed.

        Args:
            wait: as long as it takes, where the channel is a blocking one.

        Raises:
            BlockingIOError: there is none yet.
            ChannelError: it cannot be read, or its descriptors did not fit in this process.
        """
        size, ancillary, cut, _ = channel.recvmsg_into(
            self._buffers, self._room, _WAIT if wait else _RECEIVE
        )
        if size == HEADER_SIZE and len(ancillary) == 1 and not cut & _CUT_OFF:
            # A connection of which nothing was read, from an IPv4 client: nearly all are.
            level, what, data = ancillary[0]
            version, kind, moves, family, port, bits, packed, since = _unpack_ipv4(self._buffer)
            if (
                family == 4
                and len(data) == 4
                and not bits & _PREFIX_IN_MEMFD
                and version == VERSION
                and what == _SCM_RIGHTS
                and level == _SOL_SOCKET
            ):
                address = _ntoa(packed), port
                return Message(
                    kind, b"", [*_unpack_fd(data)], address, moves, bits == _UNHELD, since
                )
        return self._receive(size, ancillary, cut)

    def _receive(
        self, size: int, ancillary: list[tuple[int, int, bytes]], cut: int
    ) -> Message | None:
        """Every kind of message."""
        fds: list[int] = []
        for level, kind, data in ancillary:
            if (level, kind) == _RIGHTS:
                usable = len(data) - len(data) % _FD.size
                fds.extend(fd for (fd,) in _FD.iter_unpack(data[:usable]))
        if not size and not fds:
            return None
        try:
            return self._decode(size, fds, cut)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def _decode(self, size: int, fds: list[int], cut: int) -> Message:
        if cut & _CUT_OFF:
            raise ChannelError("a message was cut off: this process has no file descriptor free")
        if size < HEADER_SIZE or self._buffer[0] != VERSION:
            raise ChannelError(f"a message of {size} bytes is not of version {VERSION}")
        _, kind, moves, family, scope, port, bits, packed, since = _HEADER.unpack_from(self._buffer)
        if kind in _CONNECTIONS and len(fds) != 1 + bool(bits & _PREFIX_IN_MEMFD):
            raise ChannelError(f"a connection came with {len(fds)} descriptors")
        payload = b""
        if bits & _PREFIX_IN_MEMFD:
            with open(fds.pop(), "rb") as file:
                file.seek(0)
                payload = file.read()
        elif size > HEADER_SIZE:
            payload = bytes(memoryview(self._buffer)[HEADER_SIZE:size])
        address: Address = ""
        if family == 4:
            address = _ntoa(packed[:4]), port
        elif family == 6:
            address = socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope
        return Message(kind, payload, fds, address, moves, bool(bits & _UNHELD), since)
