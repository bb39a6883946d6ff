"""The socket of a connection as an app may take it, for a websocket or any protocol of its own.

Taken is it with the first use of the object, not with the getting of it: python-engineio's driver
for eventlet gets it and may still answer by ``start_response``. From then on nothing of ours reads
or writes there, and what the app returns or raises is dropped. One thing is added: the mark of a
client that has none, to the 101 that the app writes.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .http1 import retell

if TYPE_CHECKING:
    from .affinity import Marking
    from .wsgi_http import WsgiWire

_READING = ("recv", "recv_into")
_WRITING = ("send", "sendall")
"""What a 101 is written with."""
_KEEPING = ("dup", "detach")
"""What is used to go on with the connection behind the request."""
_TAKING = (
    *_WRITING,
    *("sendmsg", "sendto", "sendfile"),
    *_READING,
    *("recvmsg", "recvfrom", "recvfrom_into", "recvmsg_into", "makefile", "fileno"),
    *_KEEPING,
)
_PEEK = int(socket.MSG_PEEK)


class Offer:
    """One request's offer of its connection's socket.

    Args:
        wire: the connection.
        make: makes the socket object, of (family, type, protocol, descriptor). Its objects take
            attributes.
        current: says which thread, or green thread, runs.
    """

    __slots__ = (
        *("_ahead", "_current", "_file", "_kept", "_make", "_marking", "_methods", "_reader"),
        *("_sock", "_wire"),
    )

    def __init__(
        self, wire: WsgiWire, make: Callable[..., Any], current: Callable[[], object]
    ) -> None:
        self._wire: WsgiWire | None = wire
        self._make = make
        self._current = current
        self._reader: object = None  # who has read last
        self._sock: Any = None
        self._marking: Marking | None = None
        self._methods: dict[str, Any] = {}
        self._ahead: bytes | memoryview = b""
        self._kept = False
        self._file: Any = None

    def get_socket(self) -> Any:
        """The socket, which is the app's from its first use on."""
        if self._sock is None and self._wire is not None:
            wire = self._wire
            own = wire.sock
            self._sock = sock = self._make(own.family, own.type, own.proto, wire.fd)
            for name in _TAKING:
                self._methods[name] = getattr(sock, name)
                setattr(sock, name, self._taking(name))
        return self._sock

    def _taking(self, name: str) -> Callable[..., Any]:
        def use(*arguments: Any, **options: Any) -> Any:
            self._take()
            return getattr(self._sock, name)(*arguments, **options)

        def keep() -> Any:
            self._take()
            self._kept = True
            return self._methods[name]()

        return keep if name in _KEEPING else use

    def _take(self) -> None:
        wire, self._wire = self._wire, None
        if wire is None:
            return
        for method, original in self._methods.items():
            if method not in _KEEPING:
                setattr(self._sock, method, original)
        wire.offer = self
        self._ahead = memoryview(wire.take())
        self._sock.recv = self._recv
        if self._ahead:
            self._sock.recv_into = self._recv_into
        self._marking = wire.marking
        if self._marking is not None:
            self._sock.send, self._sock.sendall = self._send, self._sendall
        wire.sock.detach()  # one owner of the descriptor
        # As with other servers, whose own files keep it open: one green thread may close the socket
        # while another waits for it, and that one would never wake up if the descriptor were gone.
        self._file = self._methods["makefile"]("rb", 0)
        self._sock.settimeout(None)

    def _recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """What was read ahead comes first."""
        if not self._ahead:
            return int(self._methods["recv_into"](buffer, nbytes, flags))
        view = memoryview(buffer).cast("B")
        size = min(len(self._ahead), nbytes or len(view), len(view))
        view[:size] = self._ahead[:size]
        if not flags & _PEEK:
            self._ahead = self._ahead[size:]
        return size

    def _recv(self, bufsize: int, flags: int = 0) -> Any:
        self._reader = self._current()
        if not self._ahead:
            return self._methods["recv"](bufsize, flags)
        data = bytearray(min(bufsize, len(self._ahead)))
        self._recv_into(data, 0, flags)
        return bytes(data)

    def _send(self, data: Any, flags: int = 0) -> int:
        """What is sent first."""
        marked = self._marked(data)
        if marked is data:
            return int(self._sock.send(data, flags))
        self._sock.sendall(marked, flags)
        return len(data)

    def _sendall(self, data: Any, flags: int = 0) -> None:
        self._sock.sendall(self._marked(data), flags)

    def _marked(self, data: Any) -> Any:
        """What is sent first, as its client gets it."""
        for method in _WRITING:
            setattr(self._sock, method, self._methods[method])
        marking, self._marking = self._marking, None
        return data if marking is None else retell(data, partial(marking.answer, 101))

    def end(self) -> None:
        """Let whoever has taken it see its end."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def over(self, environ: dict[str, Any]) -> None:
        """The request is over. A socket that was taken is closed, unless the app goes on with it;
        one that was not is the connection's, as before."""
        sock, wire = self._sock, self._wire
        self._wire = None
        if sock is None:
            return
        if wire is not None:
            self._methods["detach"]()
            return
        if self._reader not in (None, self._current()):
            # simple-websocket reads in a thread of its own, which has the answer to a closing
            # handshake yet to send, perhaps. It sees the end now, and closes.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
            self._file.close()
            return
        if not self._kept:
            self.end()
        with contextlib.suppress(OSError):
            sock.close()
            self._file.close()
