"""The stages of a stop, in which connections and processes both have their part; what they come to
together is in tests/simulation."""

from __future__ import annotations

import pytest

from sticky.master.agenda import (
    LONGEST_STEP,
    RETRY,
    Abort,
    CloseListeners,
    Exit,
    Kill,
    Refuse,
    Say,
    Spawn,
    Stage,
    Tell,
    Why,
)
from sticky.master.ends import ABORT_GRACE, QUIT_GRACE
from sticky.master.roster import Process, Slot

from .ledger_kit import RULES, Book, kills, told


def calm(**rules):
    """Nobody is asked whether it lives."""
    return Book(**{"timeout": 0.0, **rules}).serving()


# -- the stages -----------------------------------------------------------------------------------


def test_workers_are_told_to_close_first_and_to_end_only_when_nothing_waits():
    book = Book().serving()
    book.waiting.awaiting("a", book.now)
    done = book.stop()
    assert done == [CloseListeners(drain=True), Say("p0", Tell.CLOSING), Say("p1", Tell.CLOSING)]
    book.ledger.inboxes(set())
    assert book.take() == []  # a head is awaited
    book.waiting.decided("a")
    book.queue(0, "a")
    book.ledger.inboxes({0})
    assert book.take() == []  # one is queued
    book.waiting.delivered("a", book.line(0))
    book.ledger.inboxes({0})
    assert told(book.take()) == []  # one lies in an inbox
    book.ledger.inboxes(set())
    assert book.take() == [Say("p0", Tell.END), Say("p1", Tell.END)]
    assert book.lives.state_of("p0") is Process.DRAINING
    assert Exit(0) not in book.ended("p0", 0)
    assert book.ended("p1", 0)[-1] == Exit(0)
    assert book.ledger.stage is Stage.OVER


def test_nobody_is_told_to_end_before_the_listeners_are_closed():
    book = Book().serving()
    book.ledger.stop(book.now)
    book.take()
    book.ledger.inboxes(set())
    assert book.take() == []
    assert book.ledger.stage is Stage.LISTENING


def test_who_waits_for_the_own_inbox_of_a_process_is_waited_for_too():
    book = Book().serving()
    own = book.waiting.own("p0", 0)
    book.queue(own, "a")
    book.stop()
    book.ledger.inboxes(set())
    assert told(book.take()) == []
    book.waiting.delivered("a", own)
    book.ledger.inboxes(set())
    assert told(book.take()) == ["p0", "p1"]


def test_while_inboxes_are_not_empty_they_are_looked_at_soon():
    book = calm()
    book.stop()
    book.jump(0.0)
    assert book.wait() <= RETRY


def test_a_worker_that_dies_in_a_stop_is_replaced_only_if_something_waits_for_it():
    book = Book().serving()
    book.queue(0, "a")
    book.stop()
    book.ended("p0")
    book.ended("p1")
    book.ledger.inboxes(set())
    assert book.after(1.0).count(Spawn(0)) == 1
    assert book.lives.slot_state(1) is Slot.BACKOFF
    book.ledger.inboxes({0, 1})  # a head that was awaited went there since
    assert book.after(0.25) == [Spawn(1)]


def test_a_worker_that_becomes_ready_in_a_stop_is_told_to_close():
    book = Book()
    book.take()
    book.stop()
    assert book.ready("p0") == [Say("p0", Tell.CLOSING)]
    book.ledger.inboxes(set())
    done = book.take()
    assert told(done) == ["p0"]
    assert kills(done) == ["p1"]  # it reads no messages yet


def test_a_stop_waits_for_a_process_that_was_replaced_too():
    book = calm(num=1)
    book.reload()
    book.ready("p1")
    book.stop()
    book.ledger.inboxes(set())
    assert book.take() == [Say("p0", Tell.END), Say("p1", Tell.END)]  # p0: whatever it waits for
    assert Exit(0) not in book.ended("p1", 0)
    assert book.ended("p0", 0)[-1] == Exit(0)


def test_a_stop_ends_what_was_under_way():
    book = calm()
    book.scale(3)
    book.after(0.25)
    book.reload()
    done = book.stop()
    assert kills(done) == ["p3"]  # the successor; p2 may be needed, for all that is known
    assert book.lives.target == 2
    book.ledger.inboxes(set())
    assert set(kills(book.take())) == {"p2"}


# -- when the time is over ------------------------------------------------------------------------


def test_when_the_time_for_stopping_is_over_everyone_is_refused_and_told_to_quit():
    book = calm(queue_timeout=100.0)
    book.queue(0, "a")
    book.stop()
    assert book.after(RULES.graceful_timeout - 0.25) == []
    done = book.after(0.25)
    assert Refuse("a", 503) in done
    assert told(done, Tell.QUIT) == ["p0", "p1"]
    assert kills(book.after(QUIT_GRACE - 0.25)) == []
    done = book.after(0.25)
    assert {Abort("p0", Why.NOT_ENDED), Abort("p1", Why.NOT_ENDED)} <= set(done)
    assert book.after(ABORT_GRACE) == [Kill("p0", Why.NOT_ENDED), Kill("p1", Why.NOT_ENDED)]


def test_a_quick_stop_refuses_everyone_and_leaves_workers_a_moment():
    book = calm()
    book.waiting.awaiting("a", book.now)
    book.queue(0, "b")
    done = book.stop(quick=True)
    assert done[0] == CloseListeners(drain=False)
    assert {Refuse("a", 503), Refuse("b", 503)} <= set(done)
    assert told(done, Tell.QUIT) == ["p0", "p1"]
    assert kills(book.after(QUIT_GRACE - 0.25)) == []
    assert kills(book.after(0.25)) == ["p0", "p1"]


def test_a_quick_stop_overtakes_a_graceful_one_and_more_of_them_do_not_put_it_off():
    book = calm()
    book.stop()
    assert told(book.stop(quick=True), Tell.QUIT) == ["p0", "p1"]
    book.after(QUIT_GRACE / 2)
    assert told(book.stop(quick=True), Tell.QUIT) == []
    assert kills(book.after(QUIT_GRACE / 2)) == ["p0", "p1"]


def test_a_quick_stop_does_not_put_off_the_end_of_a_graceful_one():
    book = calm(graceful_timeout=0.5)
    book.stop()
    book.after(0.5)
    book.after(0.5)
    book.stop(quick=True)
    assert kills(book.after(QUIT_GRACE - 0.5)) == ["p0", "p1"]


def test_a_graceful_stop_does_not_overtake_anything():
    book = Book().serving()
    book.stop(quick=True)
    assert book.stop() == []
    assert book.stop() == []


def test_a_process_that_is_started_while_all_others_are_told_to_end_is_killed():
    book = Book().serving()
    book.ended("p0")
    book.now += 1.0
    book.ledger.tick(book.now)
    assert book.decided() == [Spawn(0)]  # and the shell is on its way
    book.ledger.stop(book.now, quick=True)
    book.lives.spawned("late", 0, book.now)
    assert "late" in kills(book.take())
    book.ended("p1", 0)
    assert book.ended("late", -9)[-1] == Exit(0)


def test_what_cannot_be_done_without_ends_everything_with_its_status():
    book = Book().serving()
    book.ledger.fail(book.now, 1)
    assert told(book.take(), Tell.QUIT) == ["p0", "p1"]
    book.ended("p0", 0)
    assert book.ended("p1", 0)[-1] == Exit(1)


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graceful_timeout", [0.0, 0.5])
def test_the_end_of_the_time_is_due_to_the_moment(graceful_timeout):
    book = calm(graceful_timeout=graceful_timeout, queue_timeout=100.0)
    book.queue(0, "a")
    book.stop()
    assert book.wait() <= graceful_timeout
    done = book.after(max(graceful_timeout, 0.25))
    assert Refuse("a", 503) in done


def test_with_nothing_to_do_it_looks_again_after_the_longest_step():
    book = calm()
    book.jump(0.0)
    assert book.wait() == LONGEST_STEP
