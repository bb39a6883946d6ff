"""Starting our own processes: a new interpreter each, with one descriptor and one message.

A new interpreter (not a bare fork) is what makes monkey-patching come first, reload mean new code,
and the app start in a process without threads or locks of somebody else's. The new process runs
``_boot.py`` by its path with ``-P``, so that neither the working directory nor sticky's own folder
gets on its ``sys.path``; everything it needs to know comes in the first message on descriptor 3.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import channel
from .errors import StickyError

BOOT = str(Path(__file__).with_name("_boot.py"))
CONTROL_FD = 3
SPARE = "spare waiting"
"""The label of a process without a slot: not shorter than that of a worker."""
_ARG_START = 48 - 3  # of /proc/PID/stat, behind pid and name
_PR_SET_PDEATHSIG = 1


def interpreter(*arguments: str) -> list[str]:
    """The command line for another interpreter like this one, that runs ``_boot.py``."""
    if not sys.executable:
        raise StickyError("sys.executable is empty: there is no interpreter to start workers with")
    # What multiprocessing uses for the same purpose; there is no public form of it.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if "-P" not in flags:
        flags.append("-P")
    return [sys.executable, *flags, BOOT, *arguments]


def start(
    label: str,
    spec: Mapping[str, Any],
    fds: Sequence[int] = (),
    *,
    environment: Mapping[str, str],
    stdin: str | None = None,
) -> tuple[int, socket.socket]:
    """Start a process of ours.

    Args:
        label: what ``ps`` shows behind the interpreter's own arguments.
        spec: what it has to know, as JSON can carry it.
        fds: descriptors to send along with the spec.
        environment: its whole environment.
        stdin: a file to read its standard input from, instead of ours.

    Returns:
        Its pid, and our end of its control pair.

    Raises:
        OSError: the process could not be started.
    """
    ours, theirs = channel.pair()
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD)]
    if stdin is not None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0))
    try:
        channel.send(ours, channel.pack_header(channel.SPEC), json.dumps(spec).encode(), *fds)
        pid = os.posix_spawn(
            sys.executable,
            interpreter(*label.split()),
            environment,
            file_actions=actions,
            setsigmask=(),
            setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return pid, ours


def rename(label: str, new: str) -> None:
    """In a child: have ``ps`` show another label than the one that it was started with.

    What is shown is what the arguments are in memory (proc(5)); Python has copied them long ago.
    Nothing happens where the new one is longer, or the system does not say where they are.
    """
    before, after = _arguments(label), _arguments(new)
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        shown = Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return
    start, end = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    if start and shown.endswith(before) and end - start == len(shown) and len(after) <= len(before):
        ctypes.memmove(end - len(before), after.ljust(len(before), b"\0"), len(before))


def _arguments(label: str) -> bytes:
    return b"".join(word.encode() + b"\0" for word in label.split())


def die_with(master: int) -> None:
    """In a child: have the kernel kill this process when the master dies (prctl(2)).

    A closed control pair says the same to a worker that looks at it; one in a CPU loop does not.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != master:
        os._exit(1)  # it died before
