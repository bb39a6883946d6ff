"""The end of a worker's process, when nothing is served any more.

Threads that are no daemons are waited for by the interpreter, for ever; here they have a moment.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

from .. import logs
from .sessions import instances

THREADS = 2.0
"""Seconds for threads of the app's to end."""


def leave(by: float) -> NoReturn:
    """End this process, with all that the app has registered for that (``atexit``).

    Args:
        by: until when it may take, on the monotonic clock.
    """
    if _threads_end(min(by, time.monotonic() + THREADS)):
        sys.exit(0)
    # What the interpreter would do, but for waiting. There is no public form of it.
    atexit._run_exitfuncs()
    flush()
    os._exit(0)


def _threads_end(by: float) -> bool:
    """Whether all threads that the interpreter waits for have ended by then."""
    pools = sys.modules.get("concurrent.futures.thread")
    if pools is not None:
        for pool in instances(pools.ThreadPoolExecutor):
            pool.shutdown(wait=False)  # its threads wait for work until they are told
    ours = threading.main_thread(), threading.current_thread()
    for thread in threading.enumerate():
        if not thread.daemon and thread not in ours:
            thread.join(max(0.0, by - time.monotonic()))
            if thread.is_alive():
                return False
    return True


def flush() -> None:
    """Have everything that was printed come out."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started us
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def end_child(error: BaseException | None) -> NoReturn:
    """End a child that the app has forked, as ``sys.exit`` would, but without what is the parent's
    to do.

    Args:
        error: what the app has raised, ``SystemExit`` for example.
    """
    code = error.code if isinstance(error, SystemExit) else error and 1
    flush()
    logs.finish()
    os._exit(code if isinstance(code, int) else code is not None)
