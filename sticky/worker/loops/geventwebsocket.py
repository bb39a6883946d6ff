"""``wsgi.websocket``, as apps of gevent-websocket know it: its classes, over a socket of ours.

Its handler sends the 101 before it calls the app, which can then refuse nothing any more. Here it
is sent in front of the first byte that the app reads or writes, so that an app may also answer by
``start_response``. All else is as there: the app's way out is the end of the websocket, and what it
returns is nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from geventwebsocket.handler import Client
from geventwebsocket.websocket import WebSocket

from ...core import Head
from .. import handshake
from ..http1 import date_line, switch
from ..taking import Offer

if TYPE_CHECKING:
    from ..wsgi import Behind
    from ..wsgi_http import WsgiWire

_READ = 8192


class Server:
    """What ``websocket.handler.server`` has for apps: the WSGI app, and who is connected."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.clients: dict[Any, Client] = {}
        self.logger = logging.getLogger("geventwebsocket")

    def offer(
        self, wire: WsgiWire, environ: dict[str, Any], head: Head, offer: Offer
    ) -> Behind | None:
        """Put a websocket into the environ, if this is a handshake.

        Returns:
            What is to be called behind the request, in the place of the offer's own; or None.
        """
        if not head.websocket:
            return None
        fields = [(b"Sec-WebSocket-Accept", handshake.accept(environ))]
        protocol = self._protocol(environ)
        if protocol:
            fields.append((b"Sec-WebSocket-Protocol", protocol.encode("latin-1")))
        handler = Handler(self, wire, environ, offer, switch(fields, date_line(time.time())))
        environ["wsgi.websocket"] = handler.websocket
        environ["wsgi.websocket_version"] = handshake.VERSION
        return handler.over

    def _protocol(self, environ: dict[str, Any]) -> str:
        """The subprotocol, if the app has one for this path and the client offers it."""
        if not hasattr(self.application, "app_protocol"):
            return ""
        protocol: str = self.application.app_protocol(environ["PATH_INFO"]) or ""
        offered = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "").split(",")
        return protocol if protocol in (name.strip() for name in offered) else ""


class Handler:
    """What ``websocket.handler`` has for apps, and where the websocket's bytes come and go.

    Args:
        answer: the 101.
    """

    def __init__(
        self,
        server: Server,
        wire: WsgiWire,
        environ: dict[str, Any],
        offer: Offer,
        answer: bytes,
    ) -> None:
        self.server = server
        self.logger = server.logger
        self.client_address = wire.address or wire.fd
        self._offer = offer
        self._answer = answer
        self._data = bytearray()
        self._sock: Any = None
        self.websocket = WebSocket(environ, self, self)

    @property
    def socket(self) -> Any:
        """The socket, which is the app's now."""
        if self._sock is None:
            self._sock = self._offer.get_socket()
            self.server.clients[self.client_address] = Client(self.client_address, self.websocket)
            self._sock.sendall(self._answer)
        return self._sock

    @property
    def active_client(self) -> Client:
        """This one, of the server's clients."""
        return self.server.clients[self.client_address]

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        sock, data = self.socket, self._data
        while len(data) < size and (more := sock.recv(max(size - len(data), _READ))):
            data += more
        found = bytes(data[:size])
        del data[:size]
        return found

    def write(self, data: bytes) -> None:
        """Send all of this."""
        self.socket.sendall(data)

    def over(self, environ: dict[str, Any]) -> None:
        """The request is over, and with it the websocket."""
        websocket, self.websocket = self.websocket, None
        environ["wsgi.websocket"] = None  # it refers to this environ
        if self._sock is None:
            websocket.closed = True  # it would close itself once nobody has it any more
        else:
            with contextlib.suppress(OSError):
                if not websocket.closed:
                    websocket.close()
            del self.server.clients[self.client_address]
        self._offer.over(environ)
