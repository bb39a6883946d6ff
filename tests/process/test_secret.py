"""``sticky.secret``: the same in all workers of a server, and nowhere else."""

from __future__ import annotations

import pytest

import sticky
from tests.harness import Running, serve

from .clients import XFF
from .session_kit import replace
from .upgrade_kit import upgrade

APP = "tests.contract.affinity_apps:secret"


def secrets_of(running: Running, name: str = "cookies") -> dict[int, str]:
    """What each worker says, by its slot."""
    found: dict[int, str] = {}
    for number in range(200):
        said = running.get(f"/?{name}", {XFF: f"192.0.2.{number}"}).json()
        assert not said["told"], "in the environment or on the command line"
        found[said["id"]] = said["secret"]
        if len(found) == running.num:
            return found
    raise AssertionError(found)


def test_it_is_one_for_all_workers_over_reload_respawn_spares_and_upgrade() -> None:
    options = ["-k", "threads", "--spares", "1"]
    with serve(APP, num=3, proxy=True, options=options) as running:
        first = secrets_of(running)
        assert len(set(first.values())) == 1
        assert len(bytes.fromhex(first[0])) == 32
        assert secrets_of(running, "tokens")[0] != first[0]
        running.wait_for_successor(1, running.kill_worker(1))
        assert secrets_of(running) == first
        replace(running)
        assert secrets_of(running) == first
        mark = upgrade(running)
        for slot in range(running.num):
            running.wait_for(rf"worker {slot} ready", 60, after=mark)
        assert secrets_of(running) == first
    with serve(APP, num=1, options=["-k", "threads"]) as other:
        assert secrets_of(other) != {0: first[0]}


def test_without_sticky_it_is_the_process_s_own() -> None:
    assert sticky.secret("a") == sticky.secret("a") != sticky.secret("b")
    with pytest.raises(TypeError, match="must be a str, not bytes"):
        sticky.secret(b"a")  # type: ignore[arg-type]
