"""Where the next session goes."""

from __future__ import annotations

import random

import pytest

from sticky.master.balance import Balance
from sticky.options import Options
from sticky.topology import Topology


def topology(num):
    return Topology(Options(num=num))


def test_one_after_the_other():
    balance = Balance("round-robin", topology(3), lambda _: 0)
    assert [balance.next() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_least_and_in_turn_where_several_are():
    loads = [2, 0, 0]
    balance = Balance("least", topology(3), loads.__getitem__)
    seen = []
    for _ in range(7):
        slot = balance.next()
        seen.append(slot)
        loads[slot] += 1
    assert seen[:4] == [1, 2, 1, 2]
    assert sorted(seen[4:]) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["least", "round-robin"])
def test_a_slot_that_nobody_serves_is_left_out_while_there_are_others(kind):
    loads = [None, 5, 5]
    balance = Balance(kind, topology(3), loads.__getitem__)
    assert [balance.next() for _ in range(4)] == [1, 2, 1, 2]
    loads[:] = [None, None, None]
    assert balance.next() in (0, 1, 2)
    loads[0] = 0
    assert balance.next() == 0


def test_sessions_that_end_make_room():
    draw, loads = random.Random(1), [0, 0, 0, 0]
    balance = Balance("least", topology(4), loads.__getitem__)
    for _ in range(1000):
        loads[balance.next()] += 1
        if draw.random() < 0.4:
            loads[draw.choice([slot for slot in range(4) if loads[slot]])] -= 1
        assert max(loads) - min(loads) <= 8


def test_slots_that_come_are_used_and_those_that_go_are_not():
    slots = topology(2)
    balance = Balance("round-robin", slots, lambda _: 0)
    assert [balance.next() for _ in range(3)] == [0, 1, 0]
    slots.change(4)
    assert [balance.next() for _ in range(3)] == [1, 2, 3]
    slots.change(2)
    assert [balance.next() for _ in range(3)] == [0, 1, 0]
