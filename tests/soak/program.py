"""What the programs of this package have in common."""

from __future__ import annotations

import logging
import resource
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _end(*_: Any) -> None:
    raise KeyboardInterrupt


def prepare(descriptors: int | None = None) -> None:
    """Before anything is started.

    Args:
        descriptors: how many this process may open, and those it starts; None: as many as allowed.
    """
    # TERM ends what was started, too, as INT does.
    signal.signal(signal.SIGTERM, _end)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if descriptors is None else max(soft, min(hard, descriptors))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # A client's library reports what the oracle hears of anyway.
    for name in ("socketio.client", "engineio.client", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def verdict(bad: Sequence[str], log: Path | str, folder: Path) -> int:
    """Say how it went; the exit status. What the server has written stays where something was bad.

    Args:
        bad: what was, a text each.
        log, folder: the server's log, and where everything is.
    """
    for text in bad:
        print(f"  {text}")
    if bad:
        print(f"FAILED; the log is {log}")
        return 1
    shutil.rmtree(folder)
    print("passed")
    return 0
