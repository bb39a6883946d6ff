"""Each rule by itself about worker processes and who serves a slot; what they come to together is
in tests/simulation."""

from __future__ import annotations

import pytest

from sticky.heartbeat import every
from sticky.master.agenda import (
    LONGEST_STEP,
    Abort,
    Announce,
    CloseListeners,
    Exit,
    Kill,
    Rescaled,
    Say,
    Spawn,
    Tell,
    Why,
)
from sticky.master.ends import ABORT_GRACE, QUIT_GRACE
from sticky.master.roster import _LIVES, _SLOTS, Process, Slot
from sticky.master.rounds import BACKOFF_FIRST, BACKOFF_LAST

from .ledger_kit import RULES, Book, kills, told


def calm(**rules):
    """Nobody is asked whether it lives."""
    return Book(**{"timeout": 0.0, **rules}).serving()


# -- starting -------------------------------------------------------------------------------------


def test_a_process_is_started_for_every_slot():
    assert Book(num=3).take() == [Spawn(0), Spawn(1), Spawn(2)]


def test_it_is_announced_once_when_all_workers_are_ready_and_not_before():
    book = Book()
    book.take()
    assert Announce() not in book.ready("p1")
    assert Announce() in book.ready("p0")
    book.ended("p0")
    book.after(BACKOFF_FIRST)
    assert Announce() not in book.ready("p2")


def test_one_that_ends_ready_does_not_count_for_the_announcement():
    book = Book()
    book.take()
    book.ready("p0")
    book.ended("p0")
    assert Announce() not in book.ready("p1")
    book.after(BACKOFF_FIRST)
    assert Announce() in book.ready("p2")


def test_a_start_that_fails_before_the_announcement_ends_everything_with_its_status():
    book = Book()
    book.take()
    book.ready("p0")
    done = book.ended("p1", status=4)
    assert done[:2] == [CloseListeners(drain=False), Say("p0", Tell.QUIT)]
    assert book.ended("p0", status=0)[-1] == Exit(4)
    assert book.lives.slot_state(1) is Slot.FATAL


def test_a_process_that_cannot_even_be_started_counts_as_a_start_that_fails():
    book = Book(num=1)
    assert book.decided() == [Spawn(0)]
    book.lives.not_started(0, book.now)
    book.ledger.tick(book.now)
    assert CloseListeners(drain=False) in book.take()
    assert book.ledger.status == 3


def test_if_no_process_can_be_started_at_all_that_is_the_end():
    book = Book(num=3)
    assert book.decided() == [Spawn(0), Spawn(1), Spawn(2)]
    for slot in range(3):
        book.lives.not_started(slot, book.now)
    book.ledger.listeners_closed()
    book.ledger.tick(book.now)
    assert Exit(3) in book.take()


def test_it_is_tried_again_once_everything_has_been_ready():
    book = Book().serving()
    book.ended("p0")
    book.now += 1.0
    book.ledger.tick(book.now)
    assert book.decided() == [Spawn(0)]
    book.lives.not_started(0, book.now)
    assert book.lives.slot_state(0) is Slot.BACKOFF
    assert book.lives.backoff(0) == 2 * BACKOFF_FIRST
    assert Spawn(0) in book.after(2 * BACKOFF_FIRST)


def test_a_worker_that_is_not_ready_in_time_is_killed():
    book = Book(num=1)
    book.take()
    assert kills(book.after(RULES.boot_timeout - 0.5)) == []
    assert book.after(0.5) == [Abort("p0", Why.NOT_READY)]
    assert book.after(ABORT_GRACE) == [Kill("p0", Why.NOT_READY)]


def test_a_worker_that_is_ready_after_it_was_killed_is_too_late():
    book = Book(num=1)
    book.take()
    book.after(RULES.boot_timeout)
    assert not book.lives.ready("p0", book.now)
    assert book.take() == []
    assert book.lives.state_of("p0") is Process.STARTING
    assert book.roster(0) == (None, None)
    assert book.ended("p0")[-1] == Exit(3)


def test_time_in_which_the_master_did_not_run_is_not_held_against_a_starting_worker():
    book = Book(num=1)
    book.take()
    book.after(RULES.boot_timeout / 2)
    assert kills(book.jump(1000.0)) == []
    assert kills(book.after(RULES.boot_timeout / 2 - LONGEST_STEP - 0.5)) == []
    assert kills(book.after(1.0)) == ["p0"]


# -- restarting -----------------------------------------------------------------------------------


def test_a_slot_outlives_its_process_and_its_successor_has_the_same_number():
    book = Book().serving()
    book.ended("p1")
    assert book.roster(1) == (None, None)
    assert book.lives.slot_state(1) is Slot.BACKOFF
    assert Spawn(1) in book.after(BACKOFF_FIRST)
    assert book.lives.slot_state(1) is Slot.UP
    assert book.counters["restarts"] == 1


def test_the_back_off_doubles_from_a_tenth_of_a_second_to_ten():
    book = Book(num=1).serving()
    waits = []
    for number in range(10):
        book.ended(f"p{number}")
        waits.append(book.lives.backoff(0))
        book.after(waits[-1])
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0])


def test_a_worker_that_was_ready_for_a_while_resets_the_back_off():
    book = calm(num=1)
    for number in range(4):
        book.ended(f"p{number}")
        book.after(BACKOFF_LAST)
    book.ready("p4")
    book.after(BACKOFF_LAST - 0.5)
    book.ended("p4")
    assert book.lives.backoff(0) == pytest.approx(1.6)
    book.after(2.0)
    book.ready("p5")
    book.after(BACKOFF_LAST)
    book.ended("p5")
    assert book.lives.backoff(0) == BACKOFF_FIRST


# -- the roster -----------------------------------------------------------------------------------


def test_the_roster_says_who_serves_a_slot_and_who_did_before():
    book = Book()
    book.take()
    assert book.roster(0) == (None, None)
    book.ready("p0", "p1")
    assert [book.roster(slot) for slot in (0, 1, 2)] == [("p0", None), ("p1", None), (None, None)]
    book.reload()
    assert book.roster(0) == ("p0", None)
    book.ready("p2")
    assert book.roster(0) == ("p2", "p0")
    book.ended("p0", 0)
    assert book.roster(0) == ("p2", None)


def test_each_change_of_the_roster_is_published():
    book = Book().serving()
    assert book.published == [0, 1]
    book.reload()
    book.published.clear()
    book.ready("p2")
    assert book.published == [0]
    book.ended("p0", 0)
    book.ended("p1")
    assert book.published == [0, 0, 1]


def test_a_process_that_was_killed_serves_nobody_any_more():
    book = Book(num=1).serving()
    book.published.clear()
    book.after(RULES.timeout + RULES.timeout / 4)
    assert book.lives.state_of("p0") is Process.READY
    assert book.roster(0) == (None, None)
    assert not book.line(0).open
    assert 0 in book.published


def test_a_successor_that_is_ready_too_late_leaves_the_roster_as_it_is():
    book = calm()
    book.reload()
    book.after(RULES.boot_timeout)
    assert not book.lives.ready("p2", book.now)
    assert book.roster(0) == ("p0", None)
    book.ended("p2")
    assert book.roster(0) == ("p0", None)
    assert book.line(0).open


def test_for_a_session_the_processes_of_its_slots_are_asked_one_after_another():
    book = calm()
    book.reload()
    book.ready("p2")
    lives = book.lives
    assert book.roster(0) == ("p2", "p0")
    assert lives.next_holder("p2", [0]) == "p0"
    assert lives.next_holder("p0", [0]) is None
    assert lives.next_holder("p2", [0, 1]) == "p0"
    assert lives.next_holder("p0", [0, 1]) == "p1"
    assert lives.next_holder("p1", [0, 1]) is None
    assert lives.next_holder("p1", [0]) == "p2"  # where it should not have come to
    assert lives.next_holder("p1", [5]) is None


# -- reloading ------------------------------------------------------------------------------------


def test_a_reload_replaces_slot_by_slot_and_ends_the_old_process_when_the_new_one_is_ready():
    book = Book().serving()
    assert book.reload() == [Spawn(0)]
    assert book.lives.state_of("p0") is Process.READY
    assert book.ready("p2") == [Say("p0", Tell.END), Spawn(1)]
    assert book.lives.state_of("p0") is Process.DRAINING
    assert book.lives.reloading
    assert book.ended("p0", 0) == []
    assert book.ready("p3") == [Say("p1", Tell.END)]
    assert book.ended("p1", 0) == []
    assert not book.lives.reloading
    assert book.lives.slot_state(0) is book.lives.slot_state(1) is Slot.UP
    assert book.counters["restarts"] == 0


@pytest.mark.parametrize("fails", ["dies", "cannot start", "hangs"])
def test_a_successor_that_does_not_become_ready_leaves_the_old_process_serving(fails):
    book = calm()
    book.lives.reload(book.now)
    if fails == "cannot start":
        assert book.decided() == [Spawn(0)]
        book.lives.not_started(0, book.now)
    elif fails == "dies":
        book.take()
        book.ended("p2")
    else:
        book.take()
        assert kills(book.after(RULES.boot_timeout)) == ["p2"]
        book.ended("p2")
    assert book.take() == book.after(10.0) == []
    assert book.roster(0) == ("p0", None)
    assert book.reload() == [Spawn(1)]  # and it can be tried again, with the next in turn


def test_a_successor_that_fails_ends_the_reload_that_it_was_for_and_not_those_after_it():
    book = calm(num=3)
    book.reload()
    book.reload()  # while the one before has only begun
    assert book.ready("p3")[-1] == Spawn(1)  # with the code of both
    assert book.ended("p4") == [Spawn(2)]
    assert book.ready("p5")[-1] == Spawn(0)
    assert book.ready("p6")[-1] == Say("p3", Tell.END)
    assert book.after(BACKOFF_FIRST) == [Spawn(1)]
    book.ready("p7")
    assert not book.lives.reloading


def test_each_reload_is_given_up_after_one_successor_that_fails():
    book = calm(num=3)
    for _ in range(3):
        book.reload()
    assert book.ended("p3") == [Spawn(1)]
    assert book.ended("p4") == [Spawn(2)]
    assert book.ended("p5") == book.after(10.0) == []
    assert not book.lives.reloading


def test_a_successor_that_was_for_something_else_ends_no_reload():
    book = calm(num=3)
    book.reload()
    assert book.ready("p3")[-1] == Spawn(1)
    assert book.leaving("p3") == [Spawn(0)]
    book.ended("p5")
    assert book.ready("p4")[-1] == Spawn(2)  # the reload goes on


def test_every_slot_has_its_turn_however_often_a_reload_is_asked_for():
    book = calm(num=4)
    spawned = []
    for step in range(40):
        for _ in range(3):
            spawned += book.reload()
        ready = book.ready(f"p{4 + step}")
        spawned += [action for action in ready if isinstance(action, Spawn)]
    slots = [action.slot for action in spawned]
    assert slots[:8] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert all(slots.count(slot) >= 10 for slot in range(4))


def test_a_reload_during_a_reload_comes_round_again_to_those_that_have_the_old_code():
    book = calm()
    assert book.reload() == [Spawn(0)]
    assert book.reload() == []
    assert book.ready("p2") == [Say("p0", Tell.END), Spawn(1)]  # p2's code may be the old one
    assert book.ready("p3") == [Say("p1", Tell.END), Spawn(0)]  # p3 was started afterwards
    # p0 is told once more: it is not to wait for its sessions, which nobody asks it for any more.
    assert book.ready("p4") == [Say("p0", Tell.END), Say("p2", Tell.END)]
    assert not book.lives.reloading


def test_a_reload_asked_for_while_a_successor_hangs_is_not_swallowed():
    book = calm()
    book.reload()
    book.after(RULES.boot_timeout / 2)
    assert book.reload() == []
    assert kills(book.after(RULES.boot_timeout / 2)) == ["p2"]
    assert book.ended("p2") == [Spawn(1)]
    assert book.ready("p3") == [Say("p1", Tell.END)]
    assert book.after(BACKOFF_FIRST) == [Spawn(0)]


def test_a_process_that_ends_while_its_successor_starts_has_its_successor():
    book = calm()
    book.reload()
    book.ended("p0")
    assert book.roster(0) == (None, None)
    book.ready("p2")
    assert book.roster(0) == ("p2", None)
    assert book.after(1.0) == []


def test_a_process_that_ends_when_its_successor_was_just_asked_for_has_that_one():
    book = calm(num=1)
    book.lives.reload(book.now)
    assert book.decided() == [Spawn(0)]  # and the shell is on its way
    book.ended("p0")
    book.lives.spawned("p1", 0, book.now)
    assert book.after(1.0) == []
    assert book.lives.slot_state(0) is Slot.UP
    book.ledger.ended("p1", book.now)
    assert book.after(1.0).count(Spawn(0)) == 1


def test_a_replaced_process_that_does_not_end_in_time_is_told_to_quit_then_shown_then_killed():
    book = calm(num=1)
    book.reload()
    book.ready("p1")
    assert book.after(RULES.graceful_timeout - 0.25) == []
    assert book.after(0.25) == [Say("p0", Tell.QUIT)]
    assert book.after(QUIT_GRACE - 0.25) == []
    assert book.after(0.25) == [Abort("p0", Why.NOT_ENDED)]
    assert book.after(ABORT_GRACE - 0.25) == []
    assert book.after(0.25) == [Kill("p0", Why.NOT_ENDED)]
    assert book.after(20.0) == []


def test_who_keeps_clients_has_so_much_longer_unless_it_is_replaced_once_more():
    book = calm(num=1, session_timeout=60.0)
    book.reload()
    book.ready("p1")
    assert book.after(80.0) == []
    book.reload()
    assert book.ready("p2") == [Say("p0", Tell.END), Say("p1", Tell.END)]
    assert book.after(10.0) == [Say("p0", Tell.QUIT)], "its own time is over"
    book.ended("p0", 0)
    book.reload()
    assert book.ready("p3") == [Say("p1", Tell.END), Say("p2", Tell.END)]
    assert book.after(RULES.graceful_timeout - 0.25) == []
    assert book.after(0.25) == [Say("p1", Tell.QUIT)], "not at the end of the 60 seconds"
    book.ended("p1", 0)
    assert book.after(60.0 - 0.25) == []
    assert book.after(0.25) == [Say("p2", Tell.QUIT)]


def test_who_keeps_clients_of_a_slot_that_went_has_so_much_longer():
    book = calm(num=2, session_timeout=60.0)
    book.scale(1)
    assert book.after(60.0 + RULES.graceful_timeout - 0.25) == []
    assert book.after(0.25) == [Say("p1", Tell.QUIT)]


def test_nothing_is_reloaded_in_a_stop():
    book = Book().serving()
    book.stop()
    assert not book.lives.reload(book.now)
    assert book.take() == []


def test_one_slot_can_be_replaced_by_itself():
    book = calm()
    book.lives.replace(1, book.now)
    assert book.take() == [Spawn(1)]
    assert book.ready("p2") == [Say("p1", Tell.END)]
    assert book.after(5.0) == []


def test_a_process_that_has_served_enough_is_replaced_once():
    book = calm()
    assert book.lives.worn("p1", book.now)
    assert book.take() == [Spawn(1)]
    assert not book.lives.worn("p1", book.now)
    assert not book.lives.worn("nobody", book.now)
    assert book.take() == []


def test_a_worn_process_is_replaced_though_its_successor_fails_at_first():
    book = calm()
    book.lives.worn("p1", book.now)
    book.take()
    book.ended("p2")
    assert book.roster(1) == ("p1", None)
    assert book.after(BACKOFF_FIRST) == [Spawn(1)]


# -- before everything has been ready -------------------------------------------------------------


def test_code_that_cannot_be_loaded_is_waited_for_with_reload():
    book = Book(reload=True, timeout=0.0)
    book.take()
    book.ready("p0")
    assert Spawn(1) not in book.ended("p1", 4)
    assert book.after(20.0) == []
    book.reload()
    assert Spawn(1) in book.after(0.25)
    assert Announce() in book.ready("p2")


def test_code_that_was_corrected_while_the_old_was_being_loaded_is_started():
    book = Book(num=1, reload=True, timeout=0.0)
    book.take()
    assert book.reload() == []  # p0 has read the old code already, and fails
    book.ended("p0", 4)
    assert book.after(0.25) == [Spawn(0)]
    book.ended("p1", 4)
    assert book.after(20.0) == []  # this is what there is


def test_the_first_worker_can_be_started_alone():
    book = Book(num=3, first_alone=True, timeout=0.0)
    assert book.take() == [Spawn(0)]
    assert book.after(1.0) == []
    book.ledger.ended("p0", book.now, 4, again=True)  # it said what has to be different
    assert book.after(0.25) == [Spawn(0)]
    book.ready("p1")
    assert book.after(0.25) == [Spawn(1), Spawn(2)]
    book.ready("p2")
    assert Announce() in book.ready("p3")


def test_a_first_worker_that_dies_while_the_others_start_is_replaced_alone():
    book = Book(num=2, first_alone=True, timeout=0.0)
    book.take()
    book.ready("p0")
    assert book.after(0.25) == [Spawn(1)]
    book.ended("p0")
    assert book.after(0.25) == [Spawn(0)]
    assert Announce() not in book.ready("p2")
    assert book.after(1.0) == []
    assert Announce() in book.ready("p1")


# -- a process that asks to be replaced -----------------------------------------------------------


def test_who_asks_to_be_replaced_serves_until_its_successor_is_ready():
    book = calm()
    assert book.leaving("p0") == [Spawn(0)]
    assert book.roster(0) == ("p0", None)
    assert book.line(0).open
    assert book.leaving("p0") == []
    assert book.ready("p2") == [Say("p0", Tell.END)]
    assert book.roster(0) == ("p2", "p0")


def test_who_asks_to_be_replaced_does_not_wait_for_a_reload():
    book = calm(num=3)
    assert book.reload() == [Spawn(0)]
    assert book.leaving("p2") == [Spawn(2)]
    assert book.leaving("p1") == [Spawn(1)]


def test_the_time_of_who_asks_begins_when_it_asks():
    book = calm(num=1)
    book.leaving("p0")
    book.after(RULES.boot_timeout - 1.0)
    book.ready("p1")
    assert book.after(RULES.graceful_timeout - RULES.boot_timeout + 0.75) == []
    assert book.after(0.25) == [Say("p0", Tell.QUIT)]


def test_who_asks_and_has_no_successor_in_time_ends_without():
    book = calm(num=1, boot_timeout=60.0)
    book.leaving("p0")
    assert book.after(RULES.graceful_timeout - 0.25) == []
    done = book.after(0.25)
    assert [action for action in done if isinstance(action, Say)] == [
        Say("p0", Tell.END),
        Say("p0", Tell.QUIT),
    ]
    assert book.roster(0) == (None, "p0")
    assert not book.line(0).open
    book.ended("p0", 0)
    book.ready("p1")
    assert book.roster(0) == ("p1", None)


def test_a_successor_that_fails_is_tried_again_for_who_asks():
    book = calm()
    book.leaving("p0")
    assert Spawn(0) not in book.ended("p2")
    assert book.after(BACKOFF_FIRST) == [Spawn(0)]
    book.ended("p3")
    assert book.after(2 * BACKOFF_FIRST) == [Spawn(0)]


def test_in_a_stop_who_asks_is_nothing_special():
    book = calm()
    book.stop()
    assert book.leaving("p0") == []
    book = calm()
    book.leaving("p0")
    book.stop()
    assert Say("p0", Tell.END) not in book.after(1.0)


# -- more and fewer slots -------------------------------------------------------------------------


def test_more_slots_count_when_all_of_them_are_ready():
    book = calm()
    book.scale(4)
    assert book.lives.target == 4
    assert [action.slot for action in book.after(0.25)] == [2, 3]
    book.ready("p2")
    assert book.topology.num == 2
    assert Rescaled(4, True) in book.ready("p3")
    assert book.topology.num == book.lives.target == 4
    assert [book.roster(slot)[0] for slot in range(4)] == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize("fails", ["says why", "cannot start", "hangs"])
def test_if_one_of_them_cannot_be_had_it_stays_as_it_was(fails):
    book = calm()
    book.ledger.scale(4, book.now)
    book.ledger.tick(book.now)
    if fails == "cannot start":
        assert book.decided() == [Spawn(2), Spawn(3)]
        book.lives.spawned("p2", 2, book.now)
        book.lives.not_started(3, book.now)
    else:
        book.take()
        if fails == "hangs":
            book.ready("p2")
            assert kills(book.after(RULES.boot_timeout)) == ["p3"]
        book.ended("p3", said_why=fails == "says why")
    book.take()
    assert (book.topology.num, book.lives.target) == (2, 2)
    book.ended("p2", 0)
    assert book.after(5.0) == []
    assert (book.roster(0), book.roster(1)) == (("p0", None), ("p1", None))
    book.scale(3)
    assert book.after(0.25) == [Spawn(2)]


def test_one_of_them_that_is_killed_while_it_starts_is_tried_again():
    book = calm()
    book.scale(4)
    book.after(0.25)
    book.ready("p2")
    assert book.ended("p3", -9) == []
    assert (book.topology.num, book.lives.target) == (2, 4)
    assert Spawn(3) in book.after(BACKOFF_FIRST)
    book.ended("p4", -9)
    assert book.lives.backoff(3) == 2 * BACKOFF_FIRST
    assert Spawn(3) in book.after(2 * BACKOFF_FIRST)
    assert Rescaled(4, True) in book.ready("p5")


def test_one_of_them_that_was_ready_and_says_why_it_ends_is_tried_again():
    book = calm()
    book.scale(4)
    book.after(0.25)
    book.ready("p2")
    book.ended("p2", said_why=True)
    assert book.lives.target == 4
    assert Spawn(2) in book.after(BACKOFF_FIRST)


def test_fewer_slots_count_at_once_and_their_processes_drain():
    book = calm(num=4)
    done = book.scale(2)
    assert book.topology.num == 2
    assert told(done) == ["p2", "p3"]
    assert Rescaled(2, True) in done
    assert (book.roster(2), book.roster(3)) == ((None, "p2"), (None, "p3"))
    assert book.after(RULES.graceful_timeout) == [Say("p2", Tell.QUIT), Say("p3", Tell.QUIT)]
    book.ended("p2", 0)
    assert book.after(1.0) == []


def test_a_slot_that_is_back_soon_has_a_new_process():
    book = calm()
    book.scale(1)
    book.scale(2)
    assert book.after(0.25) == [Spawn(1)]
    assert Rescaled(2, True) in book.ready("p2")
    assert book.roster(1) == ("p2", "p1")


def test_a_slot_that_went_while_its_process_was_being_replaced_can_come_back():
    book = calm()
    book.leaving("p1")
    assert kills(book.scale(1)) == ["p2"]
    book.ended("p2", -9)
    book.ended("p1", 0)
    book.scale(2)
    assert book.after(0.25) == [Spawn(1)]
    assert Rescaled(2, True) in book.ready("p3")


def test_a_slot_that_went_when_its_successor_was_just_asked_for_loses_nobody():
    book = calm()
    book.lives.leaving("p1", book.now)
    assert book.decided() == [Spawn(1)]  # and the shell is on its way
    book.ledger.scale(1, book.now)
    book.lives.spawned("late", 1, book.now)
    assert kills(book.take()) == ["late"]
    book.ended("late", -9)
    book.ended("p1", 0)
    assert book.after(1.0) == []
    book.scale(2)
    assert book.after(0.25) == [Spawn(1)]


def test_a_slot_that_went_when_its_successor_was_just_asked_for_does_not_hold_up_a_reload():
    book = calm(num=3)
    book.reload()
    book.ready("p3")
    book.lives.ready("p4", book.now)
    assert Spawn(2) in book.decided()  # and the shell is on its way
    book.ledger.scale(2, book.now)
    book.lives.reload(book.now)
    assert Spawn(0) not in book.decided()
    book.lives.spawned("late", 2, book.now)
    done = book.take()
    assert kills(done) == ["late"]
    assert Spawn(0) in done


def test_a_slot_that_went_and_came_back_when_its_successor_was_asked_for_holds_up_no_reload():
    book = calm(num=3)
    book.reload()
    book.ready("p3")
    book.lives.ready("p4", book.now)
    assert Spawn(2) in book.decided()
    book.ledger.scale(2, book.now)
    book.ledger.scale(3, book.now)
    book.lives.reload(book.now)
    assert Spawn(0) not in book.decided()
    book.lives.spawned("late", 2, book.now)  # the slot's only one now, and nobody's successor
    assert book.take() == [Spawn(0)]


def test_a_process_that_was_not_needed_any_more_and_is_again_is_started_at_once():
    book = calm()
    book.scale(3)
    book.after(0.25)
    assert kills(book.scale(2)) == ["p2"]
    book.scale(3)
    assert Spawn(2) not in book.take()
    book.ended("p2", -9)
    assert book.after(0.25) == [Spawn(2)]


@pytest.mark.parametrize("before", ["not all were ready", "it stops", "there are so many"])
def test_it_is_not_scaled_when(before):
    book = Book() if before == "not all were ready" else Book().serving()
    if before == "it stops":
        book.stop()
    book.take()
    assert not book.ledger.scale(2 if before == "there are so many" else 3, book.now)
    assert book.take() == []


def test_a_reload_goes_through_new_slots_too_and_not_through_those_that_go():
    book = calm()
    book.scale(3)
    book.after(0.25)
    book.ready("p2")
    assert book.reload() == [Spawn(0)]
    assert Spawn(1) in book.ready("p3")
    assert Spawn(2) in book.ready("p4")
    assert kills(book.scale(2)) == ["p5"]
    book.ended("p5", -9)
    assert not book.lives.reloading


# -- heartbeat ------------------------------------------------------------------------------------


class Pulse:
    """A process that beats."""

    def __init__(self, book, process="p0"):
        self.book, self.process, self.beats = book, process, 0

    def beat(self, times=1):
        self.beats += times
        self.seen()

    def seen(self):
        """The master looks."""
        self.book.lives.heard(self.process, self.beats, self.book.now)


def test_a_worker_is_not_killed_while_it_beats_and_nobody_tells_it_anything():
    book = Book(num=1).serving()
    pulse = Pulse(book)
    for _ in range(100):
        pulse.beat()
        assert book.after(RULES.timeout - 0.5) == []


def test_a_worker_that_does_not_beat_shows_where_it_hangs_and_is_killed():
    book = Book(num=1).serving()
    pulse = Pulse(book)
    book.after(RULES.timeout - 0.5)
    pulse.beat(3)
    for _ in range(int(RULES.timeout)):
        assert book.after(1.0) == []
        pulse.seen()  # the same number
    # What it does instead of the beat after the last one has had the whole timeout.
    patience = every(RULES.timeout)
    assert book.after(patience - 0.1) == []
    assert [one for one in book.after(0.1) if kills([one])] == [Abort("p0", Why.SILENT)]
    pulse.beat()  # too late
    assert book.after(ABORT_GRACE) == [Kill("p0", Why.SILENT)]
    assert book.after(20.0) == []


def test_no_beat_is_expected_of_a_process_that_boots():
    book = Book(num=1, timeout=1.0, boot_timeout=20.0)
    book.take()
    pulse = Pulse(book)
    pulse.seen()
    assert book.after(19.0) == []
    book.ready("p0")
    assert book.after(1.0) == []
    assert [one for one in book.after(0.1) if kills([one])] == [Abort("p0", Why.SILENT)]


def test_a_process_that_is_told_to_end_has_its_time_whether_it_beats_or_not():
    book = Book(num=1, timeout=1.0, graceful_timeout=10.0).serving()
    pulse = Pulse(book)
    pulse.beat()
    book.reload()
    book.ready("p1")
    other = Pulse(book, "p1")
    for _ in range(9):
        other.beat()
        assert kills(book.after(0.9)) == []


@pytest.mark.parametrize("timeout", [0.1, 0.5, 1.0])
def test_a_short_timeout_leaves_a_worker_its_whole_time_to_beat(timeout):
    book = Book(num=1, timeout=timeout).serving()
    pulse = Pulse(book)
    for _ in range(20):
        book.now = max(book.agenda.due, book.now)
        pulse.beat()
        book.ledger.tick(book.now)
        assert kills(book.take()) == []


def test_time_in_which_the_master_did_not_run_is_not_held_against_a_silent_worker():
    book = Book(num=1).serving()
    pulse = Pulse(book)
    book.after(RULES.timeout / 4)
    pulse.beat()
    assert kills(book.jump(1000.0)) == []
    assert kills(book.jump(1000.0)) == []
    assert set(kills(book.after(RULES.timeout + every(RULES.timeout)))) == {"p0"}


def test_a_worker_that_beats_while_the_master_does_not_run_has_its_whole_time_from_there():
    book = Book(num=1).serving()
    pulse = Pulse(book)
    pulse.beat()
    book.after(RULES.timeout - 0.5)
    book.now += 1000.0
    pulse.beat(500)
    book.ledger.tick(book.now)
    assert kills(book.take()) == []
    assert kills(book.after(RULES.timeout - LONGEST_STEP - 0.5)) == []


def test_without_a_timeout_nobody_has_to_beat():
    assert calm(num=1).after(200.0) == []


# -- a process that says how it is to be started --------------------------------------------------


def again(book, process):
    done = book.ledger.ended(process, book.now, 4, again=True)
    return done, book.take()


def test_a_process_that_says_how_is_started_once_more_at_once_and_not_a_third_time():
    book = Book(num=1, first_alone=True)
    book.take()
    done, actions = again(book, "p0")
    assert done
    assert Spawn(0) not in actions
    assert Spawn(0) in book.jump(0.0)
    done, actions = again(book, "p1")
    assert not done
    assert Exit(4) in actions


def test_a_successor_that_says_how_is_started_once_more_and_the_reload_goes_on():
    book = Book().serving()
    assert book.reload() == [Spawn(0)]
    assert again(book, "p2") == (True, [Spawn(0)])
    assert book.ready("p3") == [Say("p0", Tell.END), Spawn(1)]


def test_a_successor_that_says_how_for_the_second_time_ends_the_reload():
    book = Book().serving()
    book.reload()
    again(book, "p2")
    assert again(book, "p3") == (False, [])
    assert book.roster(0) == ("p0", None)
    assert book.reload() == [Spawn(1)]  # the next one begins anew
    assert again(book, "p4") == (True, [Spawn(1)])


def test_in_a_stop_nobody_is_started_once_more():
    book = Book().serving()
    book.ended("p0")
    book.after(BACKOFF_FIRST)
    book.stop()
    done, actions = again(book, "p2")
    assert not done
    assert Spawn(0) not in actions


# -- each kill has its reason ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("boots for too long", Why.NOT_READY),
        ("hangs", Why.SILENT),
        ("does not end", Why.NOT_ENDED),
        ("starts when the server stops", Why.STOPPED),
        ("starts for a slot that is none any more", Why.STOPPED),
    ],
)
def test_each_kill_has_its_reason(how, why):
    book = Book(num=1)
    book.take()
    if how == "boots for too long":
        done = book.after(21)
    elif how == "hangs":
        book.ready("p0")
        done = book.after(11)
    elif how == "does not end":
        book.ready("p0")
        book.reload()
        book.ready("p1")
        done = book.after(34)
    elif how == "starts when the server stops":
        done = book.stop(quick=True)
    else:
        book.ready("p0")
        book.scale(2)
        book.after(0.25)
        done = book.scale(1)
    assert why in [action.why for action in done if isinstance(action, Kill | Abort)]


# -- tables and time ------------------------------------------------------------------------------


def test_the_tables_say_what_can_follow_what():
    starting, ready, draining, gone = Process
    assert {
        starting: {ready, gone},
        ready: {draining, gone},
        draining: {gone},
        gone: set(),
    } == _LIVES
    up, backoff, fatal = Slot
    assert {up: {backoff, fatal}, backoff: {up, fatal}, fatal: set()} == _SLOTS


def test_a_process_cannot_be_ready_twice():
    book = Book().serving()
    with pytest.raises(AssertionError):
        book.lives.ready("p0", book.now)


def test_beats_and_boot_timeouts_are_due_to_the_moment():
    book = Book(num=1, timeout=1.0, boot_timeout=0.75)
    book.take()
    assert book.wait() <= 0.75
    book.ready("p0")
    book.jump(0.0)
    assert book.wait() == pytest.approx(0.1)  # to see beats, ten times in that time
    book.after(1.05)
    assert book.wait() == pytest.approx(0.05)


def test_a_start_and_the_end_of_who_asked_are_due_to_the_moment():
    book = calm(graceful_timeout=0.5)
    book.jump(0.0)
    book.ended("p0")
    assert book.wait() == pytest.approx(BACKOFF_FIRST)
    book.after(BACKOFF_FIRST)
    book.leaving("p1")
    book.jump(0.0)
    assert book.wait() == pytest.approx(0.5)
