"""A stream of messages between workers that are killed and replaced meanwhile: nothing comes twice,
each publisher's order is kept, and only what the killed had is lost.

$STICKY_EVENTS says how many are published at least (``make events``: 100,000).
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.events_apps import RECORD
from tests.harness import Kind, Running, wait_until

WORKERS = 3
EVENTS = int(os.environ.get("STICKY_EVENTS", "6000"))


class Folder:
    """What the processes have written down."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sent(self) -> dict[int, int]:
        """Process -> how many it has published."""
        return {
            int(path.stem): int.from_bytes(path.read_bytes(), "little")
            for path in self._path.glob("*.sent")
        }

    def heard(self) -> dict[int, dict[int, list[int]]]:
        """Process -> by publishing process, the numbers it has heard, as they came."""
        found: dict[int, dict[int, list[int]]] = {}
        for path in self._path.glob("*.heard"):
            by_sender: dict[int, list[int]] = defaultdict(list)
            for sender, number in RECORD.iter_unpack(path.read_bytes()):
                by_sender[sender].append(number)
            found[int(path.stem)] = by_sender
        return found


def disturb(running: Running, folder: Folder, published: int) -> set[int]:
    """Kills and reloads in turn, until so many have been published; who was killed."""
    killed, turn = set(), 0
    while sum(folder.sent().values()) < published or turn < 3:
        if turn % 3 == 2:
            before = running.worker_pids()
            running.send_signal(signal.SIGHUP)
            wait_until(
                lambda before=before: (
                    not set(before.values()) & set(running.worker_pids().values())
                ),
                60,
                "all workers are new",
            )
        else:
            slot = turn % WORKERS
            pid = running.kill_worker(slot)
            killed.add(pid)
            running.wait_for_successor(slot, pid)
        there = sum(folder.sent().values())
        wait_until(lambda there=there: sum(folder.sent().values()) > there + published // 10, 60)
        turn += 1
    return killed


def test_nothing_comes_twice_and_only_what_the_killed_had_is_lost(
    kind: Kind, tmp_path: Path
) -> None:
    app = "tests.events_apps:stream" + ("_async" if kind.interface == "asgi" else "")
    options: dict[str, Any] = {"options": ["--max-mail", str(1 << 28), "--timeout", "120"]}
    folder = Folder(tmp_path)
    with kind.serve(
        app, num=WORKERS, proxy=True, env={"FOLDER": str(tmp_path)}, **options
    ) as running:
        killed = disturb(running, folder, EVENTS)
        alive = set(running.worker_pids().values())
        ended = folder.sent().keys() - alive
        sent = folder.sent()

        def all_came() -> bool:
            heard = folder.heard()
            return all(
                heard[pid][sender][-1:] == [sent[sender] - 1]
                for pid in alive
                for sender in ended - killed
                if heard[pid][sender]
            )

        wait_until(all_came, 30, "the last of those who have ended have come")
    assert sum(sent.values()) >= EVENTS
    pairs = 0
    for pid, by_sender in folder.heard().items():
        for sender, numbers in by_sender.items():
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), (pid, sender)
            pairs += pid != sender
    assert pairs > WORKERS * WORKERS
