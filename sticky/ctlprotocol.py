"""What ``sticky ctl`` and a server say to each other: one line of JSON each way, then the end.

    {"sticky": 1, "command": "scale", "arguments": {"n": 8}}
    {"sticky": 1, "answer": {...}}
    {"sticky": 1, "error": "..."}

The number is the version of this. It changes when a command means something else, not when there is
one more; a server that does not know it says so, in the same form.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from .errors import StickyError

VERSION = 1
LONGEST = 4096
"""Bytes of a question."""

_UCRED = struct.Struct("3i")


def pack(**content: Any) -> bytes:
    """A line."""
    return json.dumps({"sticky": VERSION, **content}).encode() + b"\n"


def unpack(line: bytes) -> dict[str, Any]:
    """What a line says.

    Raises:
        StickyError: it is none, or of another version.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "sticky" not in content:
        raise StickyError("this is not what sticky ctl says")
    if content["sticky"] != VERSION:
        raise StickyError(
            f"this sticky speaks version {VERSION} of the protocol of sticky ctl, and not "
            f"{content['sticky']!r}: use the sticky ctl of the server's own installation"
        )
    return content


def peer_of(sock: socket.socket) -> int:
    """The user at the other end (SO_PEERCRED of unix(7))."""
    _, user, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(user)
