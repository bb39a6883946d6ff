"""What a server says about itself."""

from __future__ import annotations

import json
import os

from sticky import __version__
from sticky.board import Board
from sticky.master.proc import age, rss
from sticky.master.report import Rates, Reporter, Seen


def test_a_process_has_an_age_and_memory_and_one_that_ended_has_none():
    assert 0 < age(os.getpid()) < 86400
    assert rss(os.getpid()) > 1 << 20
    assert (age(2**22 + 1), rss(2**22 + 1)) == (0.0, 0)


def test_requests_per_second_are_those_since_it_was_asked_last():
    rates = Rates()
    assert rates.rate(7, 50, age=10.0, now=100.0) == 5.0  # since its start
    assert rates.rate(7, 60, age=10.5, now=100.5) == 5.0  # another one has just asked
    assert rates.rate(7, 90, age=14.0, now=104.0) == 10.0
    assert rates.rate(7, 90, age=20.0, now=110.0) == 0.0
    rates.forget([8])
    assert rates.rate(7, 90, age=30.0, now=120.0) == 3.0
    assert rates.rate(9, 3, age=0.0, now=120.0) == 3.0


def test_a_status_has_the_slots_and_their_processes_whoever_serves_first():
    board = Board()
    rows = [board.give() for _ in range(3)]
    for row, requests in zip(rows, (10, 20, 30), strict=True):
        board.process(row)["requests"] = requests
    board.process(rows[1])["sessions"] = 4
    board.master["accepted"] = 5
    own = os.getpid()
    found = Reporter(board).status(
        [
            Seen(0, 2**22 + 1, rows[0], "draining", False, "asgi"),
            Seen(0, own, rows[1], "ready", True, "asgi"),
            Seen(9, own, rows[2], "ready", True, "asgi"),  # of a slot that is no more
        ],
        [("up", 3, 1), ("backoff", 0, 0)],
        1000.0,
        stage="serving",
        reloading=False,
        listening=["http://127.0.0.1:1"],
        held=4,
    )
    json.dumps(found)
    board.close()
    assert (found["version"], found["pid"], found["n"]) == (__version__, own, 2)
    assert (found["accepted"], found["held"], found["stage"]) == (5, 4, "serving")
    first, second = found["slots"]
    assert (first["queued"], first["resting"], first["state"]) == (3, 1, "up")
    assert [process["serves"] for process in first["processes"]] == [True, False]
    serving, draining = first["processes"]
    assert (serving["requests"], serving["load"], serving["sessions"]) == (20, 4, 4)
    assert serving["rss"] > 0
    assert (draining["requests"], draining["rss"], draining["age"]) == (10, 0, 0.0)
    assert second == {"slot": 1, "state": "backoff", "queued": 0, "resting": 0, "processes": []}
