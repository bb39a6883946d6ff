"""Workers are replaced while the server serves: by newer code, because they have served enough, and
by processes that wait for it."""

from __future__ import annotations

import re
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.harness import ROOT, Kind, Running, wait_until

from .life_apps import FOLDER
from .life_kit import NUM, ROUTED, ask, served_by

APP = "tests.process.life_apps:versioned"


class Code:
    """What the workers run, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {FOLDER: str(folder)}
        self.write("0")

    def write(self, version: str) -> None:
        new = self.folder / "new"
        new.write_text(version)
        new.rename(self.folder / "version")


@pytest.fixture
def code(tmp_path: Path) -> Code:
    return Code(tmp_path)


def said(running: Running, slot: int, path: str = "/") -> dict[str, str]:
    with ask(running, slot, path) as client:
        answer = client.answer()
    assert answer.status == 200
    found: dict[str, str] = answer.json()
    return found


def versions(running: Running) -> set[str]:
    return {said(running, slot)["version"] for slot in range(running.num)}


def test_every_slot_has_its_turn_however_often_a_reload_is_asked_for(
    kind: Kind, code: Code
) -> None:
    with kind.serve(APP, num=NUM, proxy=True, options=ROUTED, env=code.env) as running:
        mark = len(running.log())
        for number in range(1, 13):
            code.write(str(number))
            at = len(running.log())
            running.send_signal(signal.SIGHUP)
            running.wait_for(r"worker \d+ ready", after=at)
        wait_until(lambda: versions(running) == {"12"}, 60, what="all have the newest code")
        slots = re.findall(r"worker (\d+) ready", running.log()[mark:])
        turns = Counter(map(int, slots))
        assert max(turns.values()) - min(turns.values()) <= 1, turns


def test_a_reload_asked_for_while_one_hangs_is_not_forgotten(kind: Kind, code: Code) -> None:
    options = (*ROUTED, "--boot-timeout", "4")
    with kind.serve(APP, num=NUM, proxy=True, options=options, env=code.env) as running:
        (code.folder / "hangs").touch()
        code.write("1")
        running.send_signal(signal.SIGHUP)
        wait_until((code.folder / "hung").exists, what="a successor hangs")
        (code.folder / "hangs").unlink()
        code.write("2")
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: versions(running) == {"2"}, 60, what="all have the newest code")
        assert running.log().count("is killed: it was not ready within 4 s") == 1


def test_code_that_cannot_start_ends_a_reload_and_the_next_one_is_as_any_other(
    kind: Kind, code: Code
) -> None:
    with kind.serve(APP, num=NUM, proxy=True, options=ROUTED, env=code.env) as running:
        (code.folder / "version").rename(code.folder / "away")
        before = running.worker_pids()
        running.send_signal(signal.SIGHUP)
        running.wait_for("FileNotFoundError")
        assert {slot: served_by(running, slot) for slot in range(NUM)} == before
        code.write("1")
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: versions(running) == {"1"}, 60, what="all have the newest code")


def test_code_that_cannot_start_at_first_is_waited_for_where_files_are_watched(
    kind: Kind, tmp_path: Path
) -> None:
    module = tmp_path / "shop.py"
    module.write_text("def factory(:\n")
    env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    server = kind.serve("shop:factory", cwd=tmp_path, options=["--reload"], env=env, ready=False)
    with server as running:
        running.wait_for("SyntaxError")

        def corrected() -> bool:
            module.write_text(f"from {kind.apps} import lab as factory\n")
            return "Listening at" in running.log()

        wait_until(corrected, 60, what="it serves")
        assert running.get().status == 200


def test_a_worker_is_replaced_when_it_has_served_enough(kind: Kind, code: Code) -> None:
    options = (*ROUTED, "--max-requests", "20")
    with kind.serve(APP, num=2, proxy=True, options=options, env=code.env) as running:
        first = served_by(running, 0)
        pids = set()

        def another() -> bool:
            pids.add(served_by(running, 0))  # not one of them fails
            return len(pids) > 2

        wait_until(another, 60, what="it was replaced twice")
        assert first in pids
        running.wait_for(rf"worker 0 \(pid {first}\) has served \d+ requests: it is replaced")
        running.wait_for(rf"worker 0 \(pid {first}\) ended")
        assert "worker 1 (pid" not in running.log().partition("Listening")[2]


def test_a_worker_is_replaced_when_it_takes_too_much_memory(kind: Kind, code: Code) -> None:
    options = (*ROUTED, "--max-memory", "300M")
    with kind.serve(APP, num=2, proxy=True, options=options, env=code.env) as running:
        pid = said(running, 1, "/hoard?megabytes=300")["pid"]
        running.wait_for(rf"worker 1 \(pid {pid}\) has \d+ MB of memory: it is replaced")
        wait_until(lambda: served_by(running, 1) != pid, what="it was replaced")
        assert served_by(running, 0) == running.worker_pids()[0]


def spares(running: Running, count: int, mark: int = 0) -> set[int]:
    """The processes that wait for a slot, once there have been so many since then."""
    wait_until(lambda: len(waiting(running, mark)) >= count, what="there are spares")
    return waiting(running, mark)


def waiting(running: Running, mark: int) -> set[int]:
    found = re.findall(r"a spare \(pid (\d+)\) waits for a slot", running.log()[mark:])
    return set(map(int, found))


def test_a_spare_takes_the_slot_of_a_process_that_dies(kind: Kind, code: Code) -> None:
    options = (*ROUTED, "--spares", "1", "--log-level", "debug")
    with kind.serve(APP, num=2, proxy=True, options=options, env=code.env) as running:
        (spare,) = spares(running, 1)
        assert psutil.Process(spare).cmdline()[-2:] == ["spare", "waiting"]
        mark = len(running.log())
        killed = running.kill_worker(0)
        assert running.wait_for_successor(0, killed) == spare == served_by(running, 0)
        assert " ".join(psutil.Process(spare).cmdline()).rstrip().endswith("_boot.py worker 0")
        assert spares(running, 1, mark) != {spare}
    assert not running.processes()


def test_a_reload_begins_with_spares_of_its_own(kind: Kind, code: Code) -> None:
    options = (*ROUTED, "--spares", "2", "--log-level", "debug")
    with kind.serve(APP, num=2, proxy=True, options=options, env=code.env) as running:
        old = spares(running, 2)
        mark = len(running.log())
        code.write("1")
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: versions(running) == {"1"}, 60, what="all have the newest code")
        assert not spares(running, 2, mark) & old
        assert not any(psutil.pid_exists(pid) for pid in old)
