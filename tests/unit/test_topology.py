"""How many slots there are: one number, which all processes of a server read in the same memory."""

from __future__ import annotations

import os

import pytest

from sticky.board import Board
from sticky.options import Options
from sticky.rules import MAX_SLOTS
from sticky.topology import Topology

from .core_kit import TWINS, router

OPTIONS = Options(num=3, seed=bytes(range(8)), session="query:id")


@pytest.fixture(params=TWINS)
def twin(request):
    return TWINS[request.param]


@pytest.fixture
def boards():
    """The same memory, in two processes."""
    one = Board()
    other = Board(os.dup(one.fd))
    yield one, other
    one.close()
    other.close()


def leads_to(topology, number):
    """A session id of that slot."""
    owner = topology.router.owner
    return next(text.encode() for text in map(str, range(1000)) if owner(text.encode()) == number)


# -- one number -----------------------------------------------------------------------------------


def test_the_number_changes_for_every_process_at_the_same_moment(boards):
    master, worker = (Topology(OPTIONS, board.topology) for board in boards)
    assert (master.num, worker.num, worker.epoch) == (3, 3, 0)
    master.change(8)
    assert (master.num, worker.num, worker.epoch) == (8, 8, 1)
    assert {worker.router.owner(b"%d" % number) for number in range(500)} == set(range(8))
    master.change(2)
    assert (worker.num, worker.epoch, worker.router.n) == (2, 2, 2)
    assert {worker.router.owner(b"%d" % number) for number in range(500)} == {0, 1}


def test_who_comes_later_takes_the_number_that_there_is(boards):
    Topology(OPTIONS, boards[0].topology).change(5)
    assert Topology(OPTIONS, boards[1].topology).num == 5


def test_without_shared_memory_it_has_its_own():
    one, other = Topology(OPTIONS), Topology(OPTIONS)
    one.change(7)
    assert (one.num, other.num) == (7, 3)


def test_of_the_clients_only_those_move_that_the_new_slot_gets():
    topology = Topology(OPTIONS)
    ids = [b"%d" % number for number in range(3000)]
    before = [topology.router.owner(one) for one in ids]
    topology.change(4)
    after = [topology.router.owner(one) for one in ids]
    moved = [new for old, new in zip(before, after, strict=True) if new != old]
    assert set(moved) == {3}
    assert 600 < len(moved) < 900  # a quarter
    topology.change(3)
    assert [topology.router.owner(one) for one in ids] == before


# -- where a session may be -----------------------------------------------------------------------


def test_a_session_may_be_where_its_id_has_led_before():
    topology = Topology(OPTIONS)
    assert topology.owners(leads_to(topology, 2)) == [2]
    topology.change(4)
    session = leads_to(topology, 3)
    before = topology.router.owner(session, 3)
    assert topology.owners(session) == [3, before]
    topology.change(5)
    now = topology.router.owner(session)
    assert topology.owners(session) == list(dict.fromkeys([now, 3, before]))


def test_numbers_are_remembered_once_latest_first_and_not_for_ever():
    topology = Topology(OPTIONS)
    for num in (4, 3, 4, 3):
        topology.change(num)
    asked = []
    topology.router = type("", (), {"owner": lambda _, session, num: asked.append(num) or num})()
    topology.owners(b"")
    assert asked == [3, 4]
    for num in range(10, 30):
        topology.change(num)
    assert topology.owners(b"") == [29, 28, 27, 26, 25, 24, 23, 22, 21]


def test_what_is_remembered_passes_to_the_next_master(boards):
    old = Topology(OPTIONS, boards[0].topology)
    for num in (4, 2, 6):
        old.change(num)
    new = Topology(OPTIONS, boards[1].topology)
    new.restore(old.pack())
    for number in range(50):
        assert new.owners(b"%d" % number) == old.owners(b"%d" % number)


def test_nothing_remembered_is_nothing_packed():
    topology = Topology(OPTIONS)
    topology.restore(Topology(OPTIONS).pack())
    assert topology.owners(leads_to(topology, 1)) == [1]


# -- the router that reads it, over both twins ----------------------------------------------------


def test_a_router_reads_the_number_at_each_call(twin):
    cells = memoryview(bytearray(16)).cast("Q")
    asked = router(twin, n=3, proxy=False)
    assert asked.n == 3
    cells[0] = 5
    asked.follow(cells)
    peers = [f"10.0.0.{number}" for number in range(250)]
    for num in (5, 1, 64, 5):
        cells[0] = num
        assert asked.n == num
        fixed = router(twin, n=num, proxy=False)
        for peer in peers:
            slot = asked.route(b"", 0, peer)
            assert slot == fixed.route(b"", 0, peer) == asked.explain(b"", 0, peer)[0]
            assert asked.owner(peer.encode()) == fixed.owner(peer.encode())


@pytest.mark.parametrize(("number", "slots"), [(0, 1), (MAX_SLOTS + 1, MAX_SLOTS), (1 << 63, 1024)])
def test_whatever_lies_there_a_slot_is_one(twin, number, slots):
    cells = memoryview(bytearray(8)).cast("Q")
    cells[0] = number
    asked = router(twin, n=3, proxy=False)
    asked.follow(cells)
    assert asked.n == min(slots, MAX_SLOTS)
    assert 0 <= asked.route(b"", 0, "10.0.0.1") < asked.n


def test_memory_that_is_too_small_is_refused_and_one_is_enough(twin):
    asked = router(twin, n=3)
    with pytest.raises(ValueError, match="8 bytes"):
        asked.follow(memoryview(bytearray(7)))
    asked.follow(memoryview(bytearray(8)))
    with pytest.raises(ValueError, match="other memory already"):
        asked.follow(memoryview(bytearray(8)))


def test_an_owner_among_another_number_of_slots(twin):
    asked = router(twin, n=3)
    for number in range(100):
        session = b"%d" % number
        assert asked.owner(session) == asked.owner(session, 3) == asked.owner(session, 0)
        for num in (1, 2, 7, MAX_SLOTS):
            assert asked.owner(session, num) == router(twin, n=num).owner(session)
        assert asked.owner(session, MAX_SLOTS + 5) == asked.owner(session, MAX_SLOTS)
        assert asked.owner(session, -1) == asked.owner(session)


def test_both_twins_say_the_same_of_the_same_memory():
    cells = memoryview(bytearray(8)).cast("Q")
    pair = [router(twin, n=2) for twin in TWINS.values()]
    for one in pair:
        one.follow(cells)
    for num in (0, 1, 2, 3, 100, MAX_SLOTS, 1 << 40):
        cells[0] = num
        assert len({one.n for one in pair}) == 1
        for number in range(50):
            assert len({one.owner(b"%d" % number) for one in pair}) == 1
            assert len({one.owner(b"%d" % number, num % 2000) for one in pair}) == 1
