"""What the tests of life and death share."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil

from tests.harness import Running, stop_process, wait_until

from .clients import SEED, XFF, Client, addresses_of, head

NUM = 3


ROUTED = ("--seed", SEED)


def ask(running: Running, slot: int, path: str = "/", *lines: str) -> Client:
    """A client of a slot who has asked, and has yet to read."""
    address = addresses_of(slot, running.num, 1)[0]
    return Client(running.port, head(f"{XFF}: {address}", *lines, target=path))


def served_by(running: Running, slot: int) -> int:
    """The process that serves a new client of this slot."""
    with ask(running, slot) as client:
        answer = client.answer()
    assert answer.status == 200, answer
    found = answer.json()
    assert found["worker"] == slot
    pid = found["pid"]
    assert isinstance(pid, int)
    return pid


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still meanwhile (if it lives)."""
    stop_process(pid)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def wait_until_it_computes(pid: int) -> None:
    process = psutil.Process(pid)
    used = process.cpu_times().user
    wait_until(lambda: process.cpu_times().user > used + 0.3, what="it computes")


def wait_for_none(running: Running, timeout: float) -> None:
    wait_until(lambda: not running.processes(), timeout, "no process is left")
