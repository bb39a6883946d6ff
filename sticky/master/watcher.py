"""``--reload``: a process of its own that watches files, because the master loads nobody's code."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .. import channel, spawn

MISSING = "the option 'reload' needs 'watchfiles', which is not installed: "
MISSING += "pip install 'socketio-sticky[reload]'"


def main(spec: Mapping[str, Any]) -> NoReturn:
    """Tell the master about each change of a Python file below the watched folders."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spawn.die_with(spec["master"])
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, spawn.CONTROL_FD)
    try:
        import watchfiles
    except ModuleNotFoundError:
        payload = json.dumps({"reason": MISSING, "status": 1})
        channel.send(control, channel.pack_header(channel.FAILED), payload.encode())
        sys.exit(1)
    channel.send(control, channel.pack_header(channel.READY))
    for changes in watchfiles.watch(*spec["watch"], watch_filter=watchfiles.PythonFilter()):
        names = sorted({Path(path).name for _, path in changes})
        payload = json.dumps(names[:10])
        channel.send(control, channel.pack_header(channel.CHANGED), payload.encode())
    sys.exit(0)
