"""The handshake of a websocket as a WSGI app is given it (RFC 6455, 4.2): whether it is one."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

VERSION: Final = "13"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def refusal(environ: Mapping[str, Any]) -> int:
    """The status that a request for a websocket is to be refused with: 426 for another version, 400
    for a key that is none; 0: with none.

    Websockets of WSGI apps are made from the environ, and what makes them raises where that is no
    handshake: a traceback for whatever a client likes to send.
    """
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != VERSION:
        return 426
    try:
        key = base64.b64decode(environ.get("HTTP_SEC_WEBSOCKET_KEY", ""), validate=True)
    except (binascii.Error, ValueError):
        return 400
    return 0 if len(key) == 16 else 400


def accept(environ: Mapping[str, Any]) -> bytes:
    """Sec-WebSocket-Accept for a handshake that is not to be refused."""
    key = environ["HTTP_SEC_WEBSOCKET_KEY"].encode("ascii")
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def refuse(status: int) -> Callable[..., list[bytes]]:
    """A WSGI app that answers so, and says what would be right."""
    said = {
        400: ("400 Bad Request", b"The Sec-WebSocket-Key of the handshake is none.\n"),
        426: ("426 Upgrade Required", b"This server speaks version 13 of the protocol.\n"),
    }
    line, text = said[status]

    def app(_: Any, start_response: Callable[..., Any]) -> list[bytes]:
        fields = [("Content-Type", "text/plain"), ("Sec-WebSocket-Version", VERSION)]
        start_response(line, fields)
        return [text]

    return app
