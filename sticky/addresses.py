"""Addresses to listen on, as they are written."""

from __future__ import annotations

import os
import re

from .errors import OptionError

MAX_UNIX_PATH = 107
"""Bytes of a socket's path (sun_path of unix(7), without the closing NUL)."""

# What systemd allows in the name of a descriptor (sd_pid_notify_with_fds(3)), and a URL as well.
_FD_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.@\\-]{0,254}")


def wrong(name: str, value: object, allowed: str) -> OptionError:
    """The error for a value that an option cannot have."""
    return OptionError(f"option {name!r} is {value!r}: it must be {allowed}")


def parse_bind(bind: object) -> tuple[str, str, int]:
    """What an address to listen on says: (kind, host, path or name, port or descriptor).

    HOST:PORT, [V6]:PORT, :PORT (all IPv4 addresses), HOST (port 8000), unix:PATH and fd://N, as
    gunicorn writes them; and fd://NAME, as systemd names the sockets that it passes
    (FileDescriptorName= of systemd.socket(5)), which is descriptor 0 here.

    Raises:
        OptionError: it is none of these.
    """
    text = bind if isinstance(bind, str) else ""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if 0 < len(os.fsencode(path)) <= MAX_UNIX_PATH and "\0" not in path:
            return "unix", path, 0
        raise wrong("bind", bind, f"a path of 1 to {MAX_UNIX_PATH} bytes behind 'unix:'")
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if number.isdecimal() and int(number) > 2:
            return "fd", "", int(number)
        if _FD_NAME.fullmatch(number) and not number.isdecimal():
            return "fd", number, 0
        raise wrong(
            "bind",
            bind,
            "'fd://' and the number of an open descriptor, from 3, or the name of one that systemd "
            "passes",
        )
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^\s:/\[\]]*))(?::(\d{1,5}))?", text)
    if match is None or not text or int(match[3] or 0) > 65535:
        raise wrong(
            "bind",
            bind,
            "HOST:PORT, [IPV6]:PORT, :PORT, unix:PATH or fd://N with a port from 0 to 65535, "
            "for example '127.0.0.1:3000'",
        )
    return "tcp", match[1] or match[2] or "0.0.0.0", int(match[3]) if match[3] else 8000


def parse_metrics(metrics: object) -> tuple[str, str, int]:
    """Where the metrics are served: (kind, host or path, port), as ``parse_bind`` gives it. A port
    alone is one of this machine only: they are nobody else's business.

    Raises:
        OptionError: it is no such address.
    """
    text = metrics if isinstance(metrics, str) else ""
    port = text.removeprefix(":")
    if port.isdecimal() and port.isascii():
        text = f"127.0.0.1:{port}"
    try:
        kind, where, number = parse_bind(text)
        if kind == "fd" or (kind == "tcp" and not re.search(r":\d+$", text)):
            raise wrong("metrics", metrics, "")
    except OptionError:
        raise wrong(
            "metrics",
            metrics,
            "PORT (on 127.0.0.1), HOST:PORT, [IPV6]:PORT or unix:PATH, for example ':9100'",
        ) from None
    return kind, where, number
