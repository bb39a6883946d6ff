"""What a worker waits for: descriptors, deadlines and calls, without a worker around it."""

from __future__ import annotations

import gc
import logging
import math
import os
import random
import threading
import time
import weakref

import pytest

from sticky.worker.hub import _STEP, Deadlines, Hub, Watcher

SLACK = 2 * _STEP
"""How much later than they are deadlines may be told."""


class Member:
    """One that notes what it is told."""

    def __init__(self) -> None:
        self.due = math.inf
        self.slice = 0
        self.events: list[int] = []
        self.lates: list[float] = []

    def ready(self, events: int) -> None:
        self.events.append(events)

    def late(self, now: float) -> None:
        self.lates.append(now)


# -- deadlines -------------------------------------------------------------------------------------


def test_who_is_late_is_told_once_and_not_before() -> None:
    deadlines, member = Deadlines(), Member()
    deadlines.keep(member, 100.0)
    assert deadlines.due >= 100.0
    assert deadlines.late(99.99) == []
    assert deadlines.late(100.0 + SLACK) == [member]
    assert member.due == math.inf
    assert deadlines.late(1000.0) == []
    assert deadlines.due == math.inf


def test_a_deadline_that_comes_later_costs_nothing_until_its_old_time() -> None:
    deadlines, member = Deadlines(), Member()
    for due in (100.0, 200.0, 300.0):
        deadlines.keep(member, due)
    assert deadlines.late(200.0) == []  # it is laid to its new time
    assert deadlines.due > 299.0
    assert deadlines.late(299.9) == []
    assert deadlines.late(300.0 + SLACK) == [member]


def test_a_deadline_that_comes_earlier_counts_at_once_and_says_so() -> None:
    told: list[int] = []
    deadlines, member = Deadlines(lambda: told.append(1)), Member()
    deadlines.keep(member, 100.0)
    deadlines.keep(member, 50.0)
    assert len(told) == 2
    deadlines.keep(member, 60.0)
    assert len(told) == 2
    assert deadlines.late(60.0 + SLACK) == [member]
    assert deadlines.late(100.0 + SLACK) == []  # where it lay before it is nobody's any more


def test_who_comes_later_than_others_says_nothing() -> None:
    told: list[int] = []
    deadlines = Deadlines(lambda: told.append(1))
    members = [Member() for _ in range(3)]
    for member, due in zip(members, (100.0, 100.01, 200.0), strict=True):
        deadlines.keep(member, due)
    assert len(told) == 1
    assert set(deadlines.late(150.0)) == set(members[:2])


def test_who_has_ended_is_forgotten() -> None:
    deadlines, member = Deadlines(), Member()
    deadlines.keep(member, 100.0)
    deadlines.keep(member, 300.0)
    deadlines.forget(member)
    deadlines.forget(member)
    there = weakref.ref(member)
    del member
    gc.collect()
    assert there() is None
    assert deadlines.late(1000.0) == []


def test_who_waits_for_nothing_any_more_is_not_late() -> None:
    deadlines, member = Deadlines(), Member()
    deadlines.keep(member, 100.0)
    member.due = math.inf  # as it is set at each request
    assert deadlines.late(1000.0) == []
    deadlines.keep(member, 2000.0)
    assert deadlines.late(2000.0 + SLACK) == [member]


def test_any_order_of_deadlines_is_kept() -> None:
    """Against a plain dictionary, in steps of less than a slice."""
    chance = random.Random(5)
    deadlines, members, expected = Deadlines(), [Member() for _ in range(20)], {}
    now = 1000.0
    for _ in range(3000):
        member = chance.choice(members)
        match chance.randrange(4):
            case 0:
                deadlines.forget(member)
                expected.pop(member, None)
            case 1 | 2:
                expected[member] = now + chance.choice([0.01, 0.3, 2.0, 10.0])
                deadlines.keep(member, expected[member])
            case 3:
                now += chance.choice([0.001, 0.04, 0.5])
                late = set(deadlines.late(now))
                assert late <= {m for m, due in expected.items() if due <= now}
                for m in late:
                    del expected[m]
                # Who is not told yet is late by less than a slice.
                assert all(due > now - SLACK for due in expected.values())
        assert deadlines.due <= min(expected.values(), default=math.inf) + SLACK


# -- descriptors -----------------------------------------------------------------------------------


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub._epoll.close()
    os.close(hub._wake)


@pytest.fixture
def pipe():
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for fd in ends:
        os.close(fd)


def test_a_member_is_told_when_its_descriptor_is_ready_and_not_when_it_is_forgotten(
    hub: Hub, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    member = Member()
    hub.register(reader, member)
    hub.turn()
    assert member.events == []
    os.write(writer, b"x")
    hub.turn(20)
    assert len(member.events) == 1
    hub.unregister(reader)
    hub.unregister(reader)
    hub.turn()
    assert len(member.events) == 1


def test_a_descriptor_that_the_app_has_closed_can_be_forgotten(hub: Hub) -> None:
    reader, writer = os.pipe()
    hub.register(reader, Member())
    os.close(reader)
    os.close(writer)
    hub.unregister(reader)


def test_a_member_that_is_forgotten_in_the_same_turn_is_not_told(hub: Hub) -> None:
    """Its descriptor may be another's by then."""
    first, second = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
    told: list[int] = []

    def forget_other(mine: int, other: int) -> Watcher:
        return Watcher(lambda _: (told.append(mine), hub.unregister(other)))

    hub.register(first[0], forget_other(first[0], second[0]))
    hub.register(second[0], forget_other(second[0], first[0]))
    os.write(first[1], b"x")
    os.write(second[1], b"x")
    hub.turn(20)
    assert len(told) == 1
    for fd in (*first, *second):
        os.close(fd)


# -- calls and timers ------------------------------------------------------------------------------


def test_a_call_from_another_thread_ends_the_wait(hub: Hub) -> None:
    called = []
    thread = threading.Timer(0.05, lambda: hub.call(lambda: called.append(1)))
    thread.start()
    hub.turn(60)
    thread.join()
    assert called == [1]


def test_no_call_of_many_threads_is_lost(hub: Hub) -> None:
    called = []
    threads = [
        threading.Thread(target=lambda: [hub.call(lambda: called.append(1)) for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(called) < 4000 and time.monotonic() < deadline:
        hub.turn(1)
    for thread in threads:
        thread.join()
    hub.turn()
    assert len(called) == 4000


def test_deadlines_of_many_threads_are_all_kept(hub: Hub) -> None:
    members = [Member() for _ in range(800)]

    def keep(mine: list[Member]) -> None:
        for _ in range(10):
            for member in mine:
                hub.keep(member, time.monotonic() + 0.05)

    threads = [threading.Thread(target=keep, args=(members[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while any(thread.is_alive() for thread in threads):
        hub.turn(0.001)
    while not all(member.lates for member in members) and time.monotonic() < deadline:
        hub.turn(0.01)
    assert all(member.lates for member in members)


def test_a_call_that_calls_again_is_called_in_the_next_turn(hub: Hub) -> None:
    called = []

    def again() -> None:
        called.append(1)
        hub.call(again)

    hub.call(again)
    for turn in (1, 2, 3):
        hub.turn(20)
        assert len(called) == turn


def test_timers_ring_in_the_order_of_their_times(hub: Hub) -> None:
    rung: list[str] = []
    for seconds, name in ((0.03, "c"), (0.0, "a"), (0.01, "b")):
        hub.later(seconds, lambda name=name: rung.append(name))
    assert hub.due <= time.monotonic()
    deadline = time.monotonic() + 30
    while len(rung) < 3 and time.monotonic() < deadline:
        hub.turn(0.01)
    assert rung == ["a", "b", "c"]
    assert hub.due == math.inf


def test_a_timer_rings_without_a_look_at_the_descriptors(hub: Hub, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    member, rung = Member(), []
    hub.register(reader, member)
    os.write(writer, b"x")
    hub.later(0.0, lambda: rung.append(1))
    hub.ring()
    assert (rung, member.events) == ([1], [])
    hub.keep(Member(), time.monotonic() - 1)
    hub.ring()  # who has sent something is not late
    assert len(member.events) == 1
    hub.stop()
    hub.later(0.0, lambda: rung.append(2))
    hub.ring()
    assert rung == [1]


def test_an_event_loop_is_told_when_something_is_due_earlier(hub: Hub) -> None:
    told: list[float] = []
    hub.on_earlier = lambda: told.append(hub.due)
    hub.later(100, print)
    hub.later(50, print)
    hub.later(70, print)
    member = Member()
    hub.keep(member, time.monotonic() + 10)
    hub.keep(member, time.monotonic() + 20)
    assert len(told) == 3
    assert told == sorted(told, reverse=True)


# -- trouble ---------------------------------------------------------------------------------------


def test_the_trouble_of_one_does_not_stop_the_others(
    hub: Hub, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    other = os.dup(reader)
    told: list[str] = []

    def fail(what: str) -> None:
        told.append(what)
        raise LookupError(what)

    class Failing(Member):
        def late(self, now: float) -> None:
            fail("late")

    for fd in (reader, other):
        hub.register(fd, Watcher(lambda _: fail("ready")))
    for _ in range(2):
        hub.call(lambda: fail("call"))
        hub.later(0, lambda: fail("timer"))
        hub.keep(Failing(), time.monotonic() - 1)
    os.write(writer, b"x")
    with caplog.at_level(logging.ERROR, "sticky.worker"):
        hub.turn(20)
    os.close(other)
    assert sorted(told) == ["call"] * 2 + ["late"] * 2 + ["ready"] * 2 + ["timer"] * 2
    assert len(caplog.records) == 8
    assert all(record.exc_info for record in caplog.records)


def test_nothing_is_done_any_more_when_it_is_over(hub: Hub) -> None:
    stopped, called = [], []
    hub.on_stop = lambda: stopped.append(1)
    hub.stop()
    hub.call(lambda: called.append(1))
    hub.turn()
    assert (stopped, called) == ([1], [])
