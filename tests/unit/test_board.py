"""Counters in shared memory, and the page that names them."""

from __future__ import annotations

import mmap
import os
import re

import pytest

import sticky.board
from sticky.board import MASTER, WORKER, Board, private
from tests.harness import ROOT


@pytest.fixture
def board():
    board = Board()
    yield board
    board.close()


def test_what_one_process_counts_others_read(board):
    other = Board(os.dup(board.fd))
    row = board.give()
    board.show(row, 1, 4711)
    board.master["accepted"] += 3
    other.process(row)["looked"] += 2
    other.process(row)["open"] = 7
    other.close()
    stats = board.stats()
    assert stats["accepted"] == 3
    assert stats["workers"] == {
        1: {"pid": 4711, **dict.fromkeys(WORKER, 0), "looked": 2, "open": 7}
    }


def test_the_beats_of_a_process_are_its_own_and_no_counter(board):
    other = Board(os.dup(board.fd))
    row, next_row = board.give(), board.give()
    board.show(row, 0, 4711)
    other.beat(row)
    other.beat(row)
    other.beat(next_row)
    other.close()
    assert (board.beats(row), board.beats(next_row)) == (2, 1)
    assert board.stats()["workers"] == {0: {"pid": 4711, **dict.fromkeys(WORKER, 0)}}
    board.take_back(row)
    assert board.give() == row
    assert board.beats(row) == 0


def test_a_process_without_a_row_beats_for_nobody(board):
    board.beat(0)
    assert not any(board.master.values())
    assert board.beats(0) == 0


def test_a_process_is_shown_from_when_it_serves_until_it_has_ended(board):
    assert set(board.stats()) == {*MASTER, "workers"}
    first = board.give()
    assert board.stats()["workers"] == {}
    board.show(first, 0, 1)
    successor = board.give()
    board.process(successor)["adopted"] += 1
    assert board.stats()["workers"][0]["pid"] == 1
    board.show(successor, 0, 2)
    board.take_back(first)
    assert board.stats()["workers"] == {0: {"pid": 2, **dict.fromkeys(WORKER, 0), "adopted": 1}}
    board.take_back(successor)
    assert board.stats()["workers"] == {}


def test_a_process_knows_whether_its_slot_has_another(board):
    first, successor = board.give(), board.give()
    assert board.has_others(first)  # nobody has said yet that there is none
    assert not board.is_replaced(first)
    board.show(first, 1, 1)
    assert not board.has_others(first)
    assert board.has_others(successor)
    board.previous(successor, True)
    board.show(successor, 1, 2)
    assert board.has_others(first)
    assert board.is_replaced(first)
    assert board.has_others(successor)
    assert not board.is_replaced(successor)
    board.previous(successor, False)
    assert not board.has_others(successor)
    assert board.has_others(0)  # without a row it cannot be known
    assert not board.is_replaced(0)
    assert board.process(0) == dict.fromkeys(WORKER, 0)


def test_a_row_that_is_given_again_begins_with_zeros(board):
    row = board.give()
    board.process(row)["looked"] = 5
    board.take_back(row)
    assert board.give() == row
    assert board.process(row)["looked"] == 0


def test_there_are_rows_for_many_more_processes_than_slots(board):
    rows = [board.give() for _ in range(5000)]
    assert len({0, *rows}) == 5001
    other = Board(os.dup(board.fd))
    other.process(rows[-1])["requests"] += 1
    board.show(rows[-1], 3, 4711)
    assert other.stats()["workers"][3]["pid"] == 4711
    assert board.stats()["workers"][3]["requests"] == 1
    assert list(other.loads()) == [(3, 0)]
    other.close()
    for row in rows:
        board.take_back(row)
    assert board.give() == 1


def test_the_memory_of_rows_that_nobody_has_is_not_there(board):
    board.show(board.give(), 0, 1)
    board.stats()
    list(board.loads())
    assert os.fstat(board.fd).st_blocks * 512 <= mmap.PAGESIZE


def test_without_a_row_left_no_process_is_started(board, monkeypatch):
    monkeypatch.setattr("sticky.board._ROWS", 3)
    assert [board.give(), board.give()] == [1, 2]
    with pytest.raises(OSError, match="no row left"):
        board.give()
    board.take_back(1)
    assert board.give() == 1


def test_the_slot_is_never_empty_while_one_process_takes_it_from_another(board, monkeypatch):
    old, new = board.give(), board.give()
    board.show(old, 0, 1)
    seen = []

    class Cells:
        def __init__(self, cells):
            self.cells = cells

        def __getitem__(self, at):
            return self.cells[at]

        def __setitem__(self, at, value):
            self.cells[at] = value
            seen.append(other.stats()["workers"][0]["pid"])

    other = Board(os.dup(board.fd))
    other.close()
    monkeypatch.setattr(board, "_cells", Cells(board._cells))
    board.show(new, 0, 2)
    assert (seen[0], seen[-1]) == (1, 2)


def test_the_loads_are_of_those_that_serve(board):
    first, second, third = board.give(), board.give(), board.give()
    board.show(first, 1, 1)
    board.show(third, 0, 3)
    for row, sessions in ((first, 3), (second, 5), (third, 7)):
        board.process(row).update(sessions=sessions, not_begun=2)
    assert sorted(board.loads()) == [(0, 9), (1, 5)]
    assert [board.load(row) for row in (first, second, third, 0)] == [5, 7, 9, 0]


def test_each_counter_of_a_worker_is_known_by_its_cell_too(board):
    assert [getattr(sticky.board, name.upper()) for name in WORKER] == [*range(len(WORKER))]
    row = board.process(board.give())
    for name in WORKER:
        row.cells[getattr(sticky.board, name.upper())] += 1
    assert dict(row) == dict.fromkeys(WORKER, 1)
    row = private()
    row.cells[sticky.board.THREAD_STARVED] += 2
    assert row["thread_starved"] == 2


def test_the_rows_have_room_for_all_counters_beside_what_else_is_in_them():
    assert len(MASTER) <= sticky.board._USED
    assert len(WORKER) <= sticky.board._CELLS - sticky.board._BEFORE


def test_counters_are_a_mapping_of_names_that_stay():
    row = private(("one", "two"))
    row["two"] += 1
    assert (dict(row), len(row)) == ({"one": 0, "two": 1}, 2)
    with pytest.raises(KeyError):
        row["three"]
    with pytest.raises(TypeError):
        del row["one"]


def test_without_a_server_there_is_nothing_to_say(monkeypatch):
    monkeypatch.setattr("sticky.server._last", None)  # whatever ran before in this process
    with pytest.raises(sticky.StickyError, match="no server to ask"):
        sticky.stats()
    with pytest.raises(sticky.StickyError, match="was not started"):
        sticky.Server("tests.apps:lab").stats()


def test_the_page_names_each_of_them():
    page = (ROOT / "docs" / "stats.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)`", page, re.M)) == MASTER + WORKER


def test_a_row_has_room_for_all_counters_and_for_what_a_process_wants(board):
    row = board.give()
    board.wanted[row] = 5
    process = board.process(row)
    for name in WORKER:
        process[name] = 7
    assert board.wanted[row] == 5
    assert board.came_or_went() == 1
    for name in MASTER:
        board.master[name] = 7
    assert board.presence[0] == 1
    board.take_back(row)
    assert board.wanted[row] == 0
