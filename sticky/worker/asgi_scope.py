"""What an ASGI app is told about a request: its scope (ASGI 3, HTTP & WebSocket format 2.3, 2.4).

https://asgi.readthedocs.io/en/latest/specs/www.html, as uvicorn fills it in.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes

from ..core import Head
from ..forwarded import scheme_of

if TYPE_CHECKING:
    from .asgi import AsgiService
    from .wire import AsgiWire

Fields = list[tuple[bytes, bytes]]

_AUTHORITY = re.compile(rb"(?i:https?)://([^/?]*)")


def scope_of(service: AsgiService, wire: AsgiWire, head: Head) -> dict[str, Any]:
    """The scope of a request.

    Args:
        service: what serves it.
        wire: the connection that it came on.
        head: of the request.
    """
    target, authority = head.target, b""
    if target[:1] != b"/":
        target, authority = _origin_form(target)
    raw_path, _, query = target.partition(b"?")
    local = wire.local
    if local is None:
        local = wire.local = _local(wire)
    address = wire.address
    fields = head.fields()
    if authority:  # it comes before the Host field (RFC 9112, 3.2.2)
        fields = [(b"host", authority), *(field for field in fields if field[0] != b"host")]
    client = (address[0], int(address[1])) if address else None
    scheme = "http"
    if wire.peer in service.trusted:
        scheme, client = _forwarded(service, fields, client)
    root = service.options.root_path
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1" if head.minor else "1.0",
        "server": local,
        "client": client,
        "scheme": scheme,
        "method": head.method,
        "root_path": root,
        "path": root + _path(raw_path),
        "raw_path": root.encode("utf-8") + raw_path if root else raw_path,
        "query_string": query,
        "headers": fields,
        "state": service.state.copy(),
    }


def websocket_scope_of(service: AsgiService, wire: AsgiWire, head: Head) -> dict[str, Any]:
    """The same for an opening handshake of a WebSocket."""
    scope = scope_of(service, wire, head)
    del scope["method"]
    scope["type"] = "websocket"
    scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
    scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
    scope["subprotocols"] = [
        name.strip()
        for field, value in scope["headers"]
        if field == b"sec-websocket-protocol"
        for name in value.decode("latin-1").split(",")
    ]
    scope["extensions"] = {"websocket.http.response": {}}
    return scope


def _path(raw: bytes) -> str:
    if raw.isascii():
        path = raw.decode("ascii")
        return unquote(path) if "%" in path else path
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _origin_form(target: bytes) -> tuple[bytes, bytes]:
    """The path and the query of a target that does not begin with its path (RFC 9112, 3.2), and the
    host that it names."""
    authority = _AUTHORITY.match(target)
    if authority is None:
        return target, b""  # "*"
    rest = target[authority.end() :]
    return rest if rest[:1] == b"/" else b"/" + rest, authority[1]


def _local(wire: AsgiWire) -> tuple[str, int | None]:
    """Our side of the connection, as uvicorn says it."""
    if wire.address:
        return wire.service.local(wire) or ("", None)
    try:
        name = wire.sock.getsockname()
    except OSError:  # its client is gone
        return "", None
    return (name if isinstance(name, str) else name.decode("utf-8", "replace")), None


def _forwarded(
    service: AsgiService, fields: Fields, client: tuple[str, int] | None
) -> tuple[str, tuple[str, int] | None]:
    """Scheme and client as a trusted proxy says them; its port is nobody's."""
    scheme = "http"
    addresses: list[bytes] = []
    for name, value in fields:
        if name == b"x-forwarded-for":
            addresses.append(value)
        elif name == b"x-forwarded-proto":
            scheme = scheme_of(value.decode("latin-1")) or scheme
    if addresses:
        host = service.trusted.client_of(b",".join(addresses).decode("latin-1"))
        if host:
            client = host, 0
    return scheme, client
