"""What a server says about itself to ``sticky ctl``: processes, ages, memory, requests per second.

    {"version": "0.1.0", "pid": 4711, "stage": "serving", "n": 2, "reloading": false, "age": 3600.1,
     "rss": 26345472, "listening": ["http://127.0.0.1:3000"], "held": 0, "accepted": 90210, ...
     "slots": [{"slot": 0, "state": "up", "queued": 0, "resting": 0, "processes": [
         {"pid": 4712, "state": "ready", "serves": true, "worker_class": "asgi", "age": 3599.8,
          "rss": 61345792, "open": 12, "load": 9, "sessions": 9, "requests": 40123,
          "requests_per_second": 11.2, "moves": 17}]}]}

Ages are in seconds and ``rss`` in bytes, both from proc(5), so that nobody has to keep them.
``load`` is what ``balance`` goes by.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .. import __version__
from ..board import Board
from .proc import age, rss

_SHORTEST = 1.0
"""Seconds over which requests are counted at least."""
_OF_MASTER = ("accepted", "refused", "queued", "moved", "restarts", "starved")


class Seen(NamedTuple):
    """A process as its master sees it."""

    slot: int
    pid: int
    row: int
    state: str
    serves: bool
    worker_class: str


class Rates:
    """Requests per second of each process, from what it had counted when it was asked last."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[float, int, float]] = {}

    def rate(self, pid: int, requests: int, age: float, now: float) -> float:
        """Requests per second since the last time; since the start for one that is seen first.

        Args:
            pid: the process.
            requests: what it has counted.
            age: since its start, in seconds.
            now: the monotonic time, in seconds.
        """
        before = self._at.get(pid)
        if before is None:
            before = (now - max(age, _SHORTEST), 0, 0.0)
        when, counted, last = before
        if now - when < _SHORTEST:  # another one has just asked
            return last
        rate = max(0, requests - counted) / (now - when)
        self._at[pid] = now, requests, rate
        return rate

    def forget(self, pids: Iterable[int]) -> None:
        """Keep nothing but what belongs to these processes."""
        there = set(pids)
        self._at = {pid: seen for pid, seen in self._at.items() if pid in there}


class Reporter:
    """Puts it together.

    Args:
        board: where the processes count.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._rates = Rates()

    def status(
        self,
        processes: Iterable[Seen],
        slots: Sequence[tuple[str, int, int]],
        now: float,
        **more: Any,
    ) -> dict[str, Any]:
        """The whole of it.

        Args:
            processes: all that there are.
            slots: of each slot its state, and how many are queued and at rest in its queue.
            now: the monotonic time, in seconds.
            **more: what else the master knows.
        """
        places: list[dict[str, Any]] = [
            {"slot": number, "state": state, "queued": queued, "resting": resting, "processes": []}
            for number, (state, queued, resting) in enumerate(slots)
        ]
        seen = sorted(processes, key=lambda process: (process.slot, not process.serves))
        self._rates.forget(process.pid for process in seen)
        for process in seen:
            if process.slot < len(places):
                places[process.slot]["processes"].append(self._process(process, now))
        own = os.getpid()
        return {
            "version": __version__,
            "pid": own,
            "age": age(own),
            "rss": rss(own),
            "n": len(slots),
            **more,
            **{name: self._board.master[name] for name in _OF_MASTER},
            "slots": places,
        }

    def _process(self, process: Seen, now: float) -> Mapping[str, Any]:
        counted = self._board.process(process.row)
        old = age(process.pid)
        return {
            "pid": process.pid,
            "state": process.state,
            "serves": process.serves,
            "worker_class": process.worker_class,
            "age": old,
            "rss": rss(process.pid),
            "open": counted["open"],
            "load": self._board.load(process.row),
            "sessions": counted["sessions"],
            "requests": counted["requests"],
            "requests_per_second": round(
                self._rates.rate(process.pid, counted["requests"], old, now), 2
            ),
            "moves": counted["handed_back"],
        }
