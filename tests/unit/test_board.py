"""Counters in shared memory, and the page that names them."""

from __future__ import annotations

import os
import re

import pytest

import sticky
from sticky.board import MASTER, WORKER, Board, private
from tests.harness import ROOT


@pytest.fixture
def board():
    board = Board(2)
    yield board
    board.close()


def test_what_one_process_counts_others_read(board):
    other = Board(2, os.dup(board.fd))
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


def test_a_row_that_is_given_again_begins_with_zeros(board):
    row = board.give()
    board.process(row)["looked"] = 5
    board.take_back(row)
    assert board.give() == row
    assert board.process(row)["looked"] == 0


def test_without_a_row_left_a_process_counts_for_itself(board):
    rows = []
    while row := board.give():
        rows.append(row)
    assert len(set(rows)) == len(rows) == 8
    board.show(0, 0, 1)
    board.process(0)["looked"] += 1
    board.take_back(0)
    assert board.stats()["workers"] == {}
    assert board.give() == 0


def test_counters_are_a_mapping_of_names_that_stay():
    row = private(("one", "two"))
    row["two"] += 1
    assert (dict(row), len(row)) == ({"one": 0, "two": 1}, 2)
    with pytest.raises(KeyError):
        row["three"]
    with pytest.raises(TypeError):
        del row["one"]


def test_without_a_server_there_is_nothing_to_say():
    with pytest.raises(sticky.StickyError, match="no server to ask"):
        sticky.stats()
    with pytest.raises(sticky.StickyError, match="was not started"):
        sticky.Server("tests.apps:lab").stats()


def test_the_page_names_each_of_them():
    page = (ROOT / "docs" / "stats.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)`", page, re.M)) == MASTER + WORKER
