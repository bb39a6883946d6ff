"""Each rule by itself about the connections that the master holds; what they come to together is in
tests/simulation."""

from __future__ import annotations

import pytest

from sticky.master.agenda import (
    RETRY,
    Accepting,
    Deliver,
    Drop,
    Place,
    ReadBack,
    Refuse,
    Watch,
)
from sticky.master.rounds import BACKOFF_FIRST
from sticky.master.waiting import LAST_HEAD, LINGER

from .ledger_kit import RULES, Book


@pytest.fixture
def book():
    return Book(timeout=0.0).serving()


# -- heads ----------------------------------------------------------------------------------------


def test_a_head_has_its_time_then_its_client_has_time_to_read_the_answer(book):
    book.waiting.awaiting("a", book.now)
    assert book.place("a") == "head"
    assert book.after(RULES.head_timeout - 0.25) == []
    assert book.after(0.25) == [Refuse("a", 408)]
    assert book.place("a") == "refused"
    assert book.after(LINGER - 0.25) == []
    assert book.after(0.25) == [Drop("a")]
    assert book.place("a") is None
    assert book.counters["head_timeouts"] == 1


def test_a_head_that_is_decided_is_nowhere_until_it_is_placed(book):
    book.waiting.awaiting("a", book.now)
    book.waiting.decided("a")
    assert book.place("a") is None
    book.queue(1, "a")
    assert book.place("a") == "queue"


def test_of_too_many_heads_the_oldest_makes_room(book):
    for name in "abcd":
        book.waiting.awaiting(name, book.now)
    assert book.take() == [Refuse("a", 408)]
    assert book.counters["heads_evicted"] == 1


def test_awaited_heads_have_one_more_second_in_a_stop(book):
    book.waiting.awaiting("a", book.now)
    book.stop()
    book.waiting.awaiting("b", book.now)
    assert Refuse("a", 408) not in book.after(LAST_HEAD - 0.25)
    assert {Refuse("a", 408), Refuse("b", 408)} <= set(book.after(0.25))


def test_a_client_that_leaves_is_dropped_wherever_it_was_and_once(book):
    book.waiting.awaiting("a", book.now)
    book.queue(0, "b")
    book.waiting.refuse("c", 400, book.now)
    book.take()
    for name in "abc":
        book.waiting.left(name)
        assert Drop(name) in book.take()
        assert book.place(name) is None
        book.waiting.left(name)
        assert book.take() == []
    assert book.counters["left"] == 3
    assert book.waiting.held == 0


# -- lines ----------------------------------------------------------------------------------------


def test_a_queue_keeps_its_order_and_belongs_to_one_slot(book):
    zero, one = book.line(0), book.line(1)
    assert book.queue(0, "a", "b") == [Watch(zero, True)]
    assert book.queue(1, "c") == [Watch(one, True)]
    assert zero.first == "a"
    book.waiting.delivered("a", zero)
    assert zero.first == "b"
    assert book.take() == []
    book.waiting.delivered("b", zero)
    assert book.take() == [Watch(zero, False)]
    assert zero.first is None
    assert one.first == "c"


def test_what_comes_may_be_sent_at_once_while_nobody_waits_and_somebody_reads():
    book = Book()
    book.take()
    free = book.waiting.free
    assert not free[0]
    book.ready("p0")
    assert list(free[:2]) == [1, 0]
    book.queue(0, "a")
    assert not free[0]
    book.queue(0, "r", rest=True)
    book.waiting.delivered("a", book.line(0))
    assert free[0]  # one at rest lets everybody pass
    book.ended("p0")
    assert not free[0]


def test_room_in_an_inbox_is_used_until_it_is_full_again(book):
    book.queue(0, "a")
    book.waiting.room(book.line(0))
    assert book.take() == [Deliver(book.line(0))]
    book.waiting.blocked(book.line(0), book.now)
    assert book.take() == [Watch(book.line(0), True)]


@pytest.mark.parametrize("rest", [False, True])
def test_what_nothing_announces_the_end_of_is_tried_again_soon(book, rest):
    zero = book.line(0)
    book.jump(0.0)
    assert book.queue(0, "a", starved=True, rest=rest) == []
    assert book.wait() == pytest.approx(RETRY)
    assert book.after(RETRY) == [Deliver(zero)]
    book.waiting.blocked(zero, book.now, starved=True)
    assert book.take() == [Watch(zero, False)]
    assert book.after(RETRY) == [Deliver(zero)]
    book.waiting.blocked(zero, book.now)
    assert book.take() == [Watch(zero, True)]
    assert book.after(1.0) == []


def test_who_can_be_sent_when_the_master_runs_again_is_not_refused_first(book):
    book.queue(0, "a", "b", starved=True)
    assert book.jump(100.0) == [Deliver(book.line(0))]
    book.waiting.delivered("a", book.line(0))
    book.waiting.blocked(book.line(0), book.now)
    assert Refuse("b", 503) in book.jump(0.0)


def test_a_connection_waits_in_its_queue_for_a_limited_time(book):
    book.queue(0, "a")
    book.after(1.0)
    book.queue(0, "b")
    assert book.after(RULES.queue_timeout - 1.0) == [Refuse("a", 503)]
    assert book.after(1.0)[:2] == [Watch(book.line(0), False), Refuse("b", 503)]
    assert book.counters["queue_timeouts"] == 2


# -- max_queued -----------------------------------------------------------------------------------


def test_when_too_many_wait_the_newest_of_the_longest_line_is_refused(book):
    book.queue(0, "a", "b", "c")
    book.queue(1, "d")
    assert Refuse("c", 503) in book.queue(1, "e")
    assert [book.place(name) for name in "abcde"] == ["queue", "queue", "refused", *["queue"] * 2]
    assert book.counters["shed"] == 1
    assert book.waiting.queued == RULES.max_queued


def test_a_flood_refuses_itself_and_nobody_else(book):
    book.queue(1, "quiet")
    done = book.queue(0, *range(100))
    refused = [action.connection for action in done if isinstance(action, Refuse)]
    assert len(refused) == 97
    assert book.place("quiet") == "queue"
    assert book.place(0) == "queue"
    assert not any(isinstance(action, Accepting) for action in done)


def test_it_is_said_whether_a_connection_waits_or_is_refused_itself(book):
    said = [book.waiting.queue(name, book.line(0), book.now) for name in "abcde"]
    assert said == [True] * 4 + [False]
    assert book.waiting.queue("f", book.line(1), book.now)  # for it, another is
    assert [book.place(name) for name in "def"] == ["refused", "refused", "queue"]


def test_the_own_line_of_a_process_may_be_the_longest(book):
    own = book.waiting.own("p0", 0)
    book.queue(own, "a", "b", "c")
    book.queue(0, "d")
    assert Refuse("c", 503) in book.queue(1, "e")


# -- a slot that nobody serves --------------------------------------------------------------------


def test_the_line_of_a_slot_without_a_process_is_shut_and_who_lay_in_its_inbox_comes_back(book):
    zero = book.line(0)
    book.queue(0, "c")
    book.after(1.0)
    done = book.ended("p0")
    assert done == [Watch(zero, False), ReadBack(zero)]
    assert not zero.is_idle
    sent = book.now - 2.0
    book.waiting.return_(
        zero, [("a", sent, False), ("b", sent, False), ("r", sent, True)], book.now
    )
    assert list(zero.queue) == ["a", "b", "c"]
    assert list(zero.resting) == ["r"]
    assert book.take() == []
    assert book.counters["returned"] == 3
    assert book.waiting.queued == 3
    # Its deadline is the one it had.
    due = {name: deadline for _, _, name, deadline in book.waiting.places()}
    assert due["a"] == due["b"] == pytest.approx(sent + RULES.queue_timeout)
    book.after(BACKOFF_FIRST)
    assert book.ready("p2") == [Deliver(zero)]


def test_who_comes_back_is_never_due_after_the_one_behind_it(book):
    zero = book.line(0)
    book.queue(0, "b")
    book.after(2.0)
    book.ended("p0")
    book.waiting.return_(zero, [("a", book.now, False)], book.now)
    due = {name: deadline for _, _, name, deadline in book.waiting.places()}
    assert due["a"] == due["b"]


def test_who_comes_back_too_late_is_refused_at_once_and_not_before(book):
    book.ended("p0")
    book.waiting.return_(book.line(0), [("a", book.now - 100.0, False)], book.now)
    assert book.place("a") == "queue"
    assert Refuse("a", 503) in book.jump(0.0)


def test_of_too_many_who_come_back_the_newest_of_the_longest_line_are_refused(book):
    zero, sent = book.line(0), book.now
    book.queue(0, "c")
    book.queue(1, "x", "y")
    book.ended("p0")
    book.waiting.return_(zero, [(name, sent, False) for name in "ab"], book.now)
    assert book.take() == [Refuse("c", 503)]
    assert list(zero.queue) == ["a", "b"]
    book.waiting.return_(zero, [(name, sent, False) for name in "123"], book.now)
    assert book.take() == [Refuse("b", 503), Refuse("a", 503), Refuse("3", 503)]
    assert list(zero.queue) == ["1", "2"]
    assert [book.place(name) for name in "xy"] == ["queue", "queue"]
    assert book.waiting.queued == RULES.max_queued
    assert book.counters["shed"] == 4


def test_who_waits_for_a_slot_that_cannot_start_is_refused_in_time(book):
    book.ended("p0")
    assert book.queue(0, "a") == []  # there is nothing to be watched
    assert Refuse("a", 503) not in book.after(RULES.queue_timeout - 0.25)
    assert Refuse("a", 503) in book.after(0.25)


def test_who_lies_in_the_inbox_of_a_busy_process_for_too_long_is_refused(book):
    book.waiting.overstayed("a", book.now)
    assert book.take() == [Refuse("a", 503)]
    assert book.counters["queue_timeouts"] == 1


# -- the own inbox of a process -------------------------------------------------------------------


def test_each_process_has_a_line_of_its_own(book):
    own = book.waiting.own("p0", 0)
    assert own is book.waiting.own("p0", 0)
    assert own.open
    assert book.queue(own, "a") == [Watch(own, True)]
    assert book.line(0).is_idle
    assert book.waiting.free[0]
    book.waiting.delivered("a", own)
    assert book.take() == [Watch(own, False)]


def test_who_waits_for_a_process_that_ends_is_placed_anew(book):
    own = book.waiting.own("p0", 0)
    book.queue(own, "a", "b")
    book.queue(0, "c")
    done = book.ended("p0")
    assert done[-4:] == [Watch(own, False), ReadBack(own), Place("a"), Place("b")]
    assert (book.place("a"), book.place("c")) == (None, "queue")
    assert book.waiting.own("p0", 0) is not own


def test_a_slot_that_is_none_any_more_gives_its_queue_to_the_others(book):
    one = book.line(1)
    book.queue(1, "a")
    book.queue(1, "r", rest=True)
    done = book.scale(1)
    assert done[:4] == [Watch(one, False), ReadBack(one), Place("a"), Place("r")]
    assert book.waiting.queued == 0


# -- want of descriptors --------------------------------------------------------------------------


def test_out_of_descriptors_the_one_that_was_refused_first_makes_room_then_the_oldest_head(book):
    book.waiting.awaiting("a", book.now)
    book.waiting.awaiting("b", book.now)
    book.waiting.refuse("c", 400, book.now)
    book.take()
    for name in "cab":
        book.waiting.starved(book.now)
        assert book.take() == [Drop(name)]
    book.waiting.starved(book.now)
    assert book.take() == [Accepting(False)]
    assert book.after(RETRY) == [Accepting(True)]


def test_who_has_least_to_lose_makes_room_for_what_is_handed_back(book):
    book.queue(0, "a", "b")
    book.after(0.1)
    book.queue(1, "c")
    book.waiting.awaiting("head", book.now)
    book.waiting.refuse("refused", 400, book.now)
    book.take()
    for name in ("refused", "head"):
        assert book.waiting.crowded(book.now)
        assert book.take() == [Drop(name)]
    for name in ("c", "b", "a"):  # the last to come is the first to go, with an answer
        assert book.waiting.crowded(book.now)
        assert Refuse(name, 503) in book.take()
        assert book.waiting.crowded(book.now)
        assert book.take() == [Drop(name)]
    assert not book.waiting.crowded(book.now)
    assert book.counters["crowded_out"] == 4  # the refused one has lost nothing


# -- connections at rest --------------------------------------------------------------------------


def test_a_connection_at_rest_waits_behind_those_with_a_request_and_counts_for_no_limit():
    book = Book(max_queued=2, timeout=0.0).serving()
    zero = book.line(0)
    assert book.queue(0, "r", "s", "t", rest=True) == [Watch(zero, True)]
    assert book.queue(0, "a") == []
    assert zero.first == "a"
    book.waiting.delivered("a", zero)
    assert book.take() == []  # the inbox is still waited for
    assert zero.first == "r"
    for connection in ("r", "s", "t"):
        book.waiting.delivered(connection, zero)
    assert book.take() == [Watch(zero, False)]
    assert book.counters["queued"] == 1


def test_a_connection_at_rest_that_cannot_be_placed_is_closed_or_answered_if_it_asks(book):
    book.queue(0, "r", rest=True)
    book.after(1.0)
    book.queue(0, "s", rest=True)
    assert Refuse("r", 503) in book.after(5.0)
    book.waiting.closed("r")  # nothing had come
    assert book.take() == [Drop("r")]
    assert book.place("s") == "rest"
    done = book.after(1.0)
    assert done == [Watch(book.line(0), False), Refuse("s", 503)]
    assert book.place("s") == "refused"  # it is to be read
    assert book.counters["rest_closed"] == 2
    assert book.counters["queue_timeouts"] == 0


@pytest.mark.parametrize("quick", [False, True])
def test_connections_at_rest_do_not_outlive_the_stop(book, quick):
    book.queue(0, "r", rest=True)
    book.queue(1, "s", rest=True)
    done = book.stop(quick=quick)
    given_up = [action for action in done if isinstance(action, Refuse)]
    assert given_up == [Refuse("r", 503), Refuse("s", 503)]


def test_one_that_lay_at_rest_in_an_inbox_is_given_up_in_a_stop(book):
    book.stop()
    book.ended("p0")
    lay = [("a", book.now, False), ("r", book.now, True)]
    book.waiting.return_(book.line(0), lay, book.now)
    assert book.take() == [Refuse("r", 503)]
    assert (book.place("a"), book.place("r")) == ("queue", "refused")


def test_a_client_that_leaves_at_rest_is_closed(book):
    book.queue(1, "r", rest=True)
    book.waiting.left("r")
    assert book.take() == [Watch(book.line(1), False), Drop("r")]
    assert book.counters["left"] == 1


def test_connections_at_rest_make_room_before_anybody_else(book):
    book.waiting.awaiting("head", book.now)
    book.queue(0, "a")
    book.queue(0, "r", "s", rest=True)
    assert book.waiting.crowded(book.now)
    assert book.take() == [Drop("r")]
    book.waiting.starved(book.now)
    assert book.take() == [Drop("s")]
    assert (book.place("head"), book.place("a")) == ("head", "queue")
    assert book.counters["crowded_out"] == 0


# -- time -----------------------------------------------------------------------------------------


def test_it_never_sleeps_past_what_is_due(book):
    book.jump(0.0)
    for seconds, decide in (
        (0.5, lambda: book.waiting.awaiting("a", book.now - RULES.head_timeout + 0.5)),
        (0.4, lambda: book.waiting.queue("b", book.line(0), book.now - RULES.queue_timeout + 0.4)),
        (0.3, lambda: book.waiting.refuse("c", 400, book.now - LINGER + 0.3)),
        (0.05, lambda: book.queue(1, "d", starved=True)),
    ):
        decide()
        book.take()
        assert book.wait() == pytest.approx(seconds)
