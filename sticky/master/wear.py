"""Processes that have served, or grown, as much as one may (``max_requests``, ``max_memory``)."""

from __future__ import annotations

import logging
from typing import Any

from . import proc
from .parts import Parts

log = logging.getLogger("sticky.master")


def look(parts: Parts, now: float) -> None:
    """Have those replaced.

    Args:
        parts: what the master consists of.
        now: the time, in seconds.
    """
    options, lives, board = parts.options, parts.ledger.lives, parts.board
    if not (options.max_requests or options.max_memory):
        return
    for number in range(parts.topology.num):
        key: Any = lives.current(number)
        if key is None:
            continue
        child = parts.children.by_key[key]
        served, memory = board.process(child.row)["requests"], 0
        if options.max_memory:
            memory = proc.rss(child.pid)
        if child.limit and served >= child.limit:
            why = f"has served {served} requests"
        elif options.max_memory and memory > options.max_memory:
            why = f"has {memory >> 20} MB of memory"
        else:
            continue
        if lives.worn(key, now):
            log.info("worker %d (pid %d) %s: it is replaced", number, child.pid, why)
