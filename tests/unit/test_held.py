"""Which tagged ids a process holds."""

from __future__ import annotations

import sys
import threading

import pytest

from sticky.worker.held import Held


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def held(clock):
    return Held(10.0, clock, most=3)


def test_an_id_is_held_while_a_request_has_it_and_some_seconds_behind_the_last(held, clock):
    assert not held.holds(b"a")
    held.begin(b"a")
    held.begin(b"a")
    clock.now += 1000
    assert held.holds(b"a")
    held.end(b"a")
    clock.now += 1000
    assert held.holds(b"a")
    held.end(b"a")
    clock.now += 9.9
    assert held.holds(b"a")
    clock.now += 0.2
    assert not held.holds(b"a")
    assert len(held) == 0


def test_each_request_prolongs_it(held, clock):
    for _ in range(5):
        held.begin(b"a")
        held.end(b"a")
        clock.now += 8
        assert held.holds(b"a")
        assert len(held) == 1
    clock.now += 3
    assert not held.holds(b"a")


def test_the_oldest_make_room_but_never_one_in_hand(held):
    held.begin(b"in hand")
    for id in (b"1", b"2", b"3", b"4"):
        held.begin(id)
        held.end(id)
    assert held.crowded_out == 2
    assert [held.holds(id) for id in (b"in hand", b"1", b"2", b"3", b"4")] == [1, 0, 0, 1, 1]
    held.begin(b"5")
    held.begin(b"6")
    held.begin(b"7")
    assert held.crowded_out == 4
    assert len(held) == 4, "those in hand have no limit of ours"


def test_threads_do_not_lose_count():
    held = Held(10.0)

    def work() -> None:
        for _ in range(3000):
            held.begin(b"a")
            held.end(b"a")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not held._open
