"""Each rule of the ledger by itself; what they come to together is in tests/simulation."""

from __future__ import annotations

import pytest

from sticky.master.ledger import (
    _LIVES,
    _SLOTS,
    BACKOFF_FIRST,
    BACKOFF_LAST,
    LAST_HEAD,
    LINGER,
    LONGEST_STEP,
    QUIT_GRACE,
    RETRY,
    Accepting,
    Announce,
    CloseListeners,
    Deliver,
    Drop,
    Exit,
    Kill,
    Ledger,
    Process,
    Refuse,
    Rules,
    Say,
    Slot,
    Spawn,
    Stage,
    Tell,
    WatchInbox,
    Why,
)

RULES = Rules(
    num=2,
    head_timeout=5.0,
    max_pending_heads=3,
    max_queued=4,
    queue_timeout=6.0,
    boot_timeout=20.0,
    timeout=8.0,
    graceful_timeout=30.0,
)


class Book:
    """A ledger, the time, and a shell that starts a process for each Spawn: p0, p1, p2 ..."""

    def __init__(self, **rules) -> None:
        self.ledger = Ledger(RULES._replace(**rules))
        self.now = 100.0
        self.started = 0
        self.ledger.start(self.now)

    def take(self):
        """What was decided, carried out as far as it is about starting."""
        done = []
        while actions := self.ledger.take():
            for action in actions:
                done.append(action)
                if isinstance(action, Spawn):
                    self.ledger.spawned(f"p{self.started}", action.slot, self.now)
                    self.started += 1
        return done

    def ready(self, *processes):
        for process in processes:
            self.ledger.ready(process, self.now)
        return self.take()

    def serving(self):
        """Every worker is ready."""
        self.take()
        self.ready(*(f"p{number}" for number in range(self.ledger.rules.num)))
        return self

    def after(self, seconds):
        """Time passes, in steps in which nothing is missed."""
        done = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + LONGEST_STEP / 4)
            self.ledger.tick(self.now)
            done += self.take()
        return done

    def jump(self, seconds):
        """The master does not run for this long."""
        self.now += seconds
        self.ledger.tick(self.now)
        return self.take()

    def ended(self, process, status=3):
        self.ledger.ended(process, self.now, status)
        return self.take()

    def queue(self, slot, *connections, starved=False):
        for connection in connections:
            self.ledger.queue(connection, slot, self.now, starved=starved)
        return self.take()

    def place(self, connection):
        """Where a connection is; None when not here."""
        book = self.ledger
        places = {"head": [book._heads], "refused": [book._refused]}
        places |= {"queue": book.queues, "rest": book.resting}
        found = [name for name, within in places.items() if any(connection in p for p in within)]
        assert len(found) <= 1
        return found[0] if found else None

    def wait(self):
        """Seconds until something is due."""
        return self.ledger.due - self.now

    def stop(self, *, quick=False):
        self.ledger.stop(self.now, quick=quick)
        done = self.take()
        self.ledger.listeners_closed()
        return done + self.take()


def kills(actions):
    return [action.process for action in actions if isinstance(action, Kill)]


# -- starting -------------------------------------------------------------------------------------


def test_a_process_is_started_for_every_slot():
    assert Book(num=3).take() == [Spawn(0), Spawn(1), Spawn(2)]


def test_it_is_announced_once_when_all_workers_are_ready_and_not_before():
    book = Book()
    book.take()
    assert book.ready("p1") == []
    assert book.ready("p0") == [Announce()]
    book.ended("p0")
    book.after(BACKOFF_FIRST)
    assert book.ready("p2") == []


def test_one_that_ends_ready_does_not_count_for_the_announcement():
    book = Book()
    book.take()
    book.ready("p0")
    book.ended("p0")
    assert book.ready("p1") == []
    book.after(BACKOFF_FIRST)
    assert book.ready("p2") == [Announce()]


def test_a_start_that_fails_before_the_announcement_ends_everything_with_its_status():
    book = Book()
    book.take()
    book.ready("p0")
    done = book.ended("p1", status=4)
    assert done == [CloseListeners(drain=False), Say("p0", Tell.QUIT)]
    assert book.ended("p0", status=0) == [Exit(4)]
    assert book.ledger.slot_state(1) is Slot.FATAL


def test_a_process_that_cannot_even_be_started_counts_as_a_start_that_fails():
    book = Book(num=1)
    assert book.ledger.take() == [Spawn(0)]
    book.ledger.not_started(0, book.now)
    assert book.take() == [CloseListeners(drain=False), Exit(3)]


def test_it_is_tried_again_once_everything_has_been_ready():
    book = Book().serving()
    book.ended("p0")
    book.now += 1.0
    book.ledger.tick(book.now)
    assert book.ledger.take() == [Spawn(0)]
    book.ledger.not_started(0, book.now)
    assert book.ledger.slot_state(0) is Slot.BACKOFF
    assert book.ledger.backoff(0) == 2 * BACKOFF_FIRST
    assert Spawn(0) in book.after(2 * BACKOFF_FIRST)


def test_a_worker_that_is_not_ready_in_time_is_killed():
    book = Book(num=1)
    book.take()
    assert kills(book.after(RULES.boot_timeout - 0.5)) == []
    assert kills(book.after(0.5)) == ["p0"]


def test_a_worker_that_is_ready_after_it_was_killed_is_too_late():
    book = Book(num=1)
    book.take()
    book.after(RULES.boot_timeout)
    assert book.ready("p0") == []
    assert book.ledger.state_of("p0") is Process.STARTING
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
    assert book.ended("p1") == []
    assert book.ledger.slot_state(1) is Slot.BACKOFF
    assert book.after(BACKOFF_FIRST) == [Spawn(1)]
    assert book.ledger.slot_state(1) is Slot.UP
    assert book.ledger.counters["restarts"] == 1


def test_the_back_off_doubles_from_a_tenth_of_a_second_to_ten():
    book = Book(num=1).serving()
    waits = []
    for number in range(10):
        book.ended(f"p{number}")
        waits.append(book.ledger.backoff(0))
        book.after(waits[-1])
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0])


def test_a_worker_that_was_ready_for_a_while_resets_the_back_off():
    book = Book(num=1, timeout=0.0).serving()
    for number in range(4):
        book.ended(f"p{number}")
        book.after(BACKOFF_LAST)
    book.ready("p4")
    book.after(BACKOFF_LAST - 0.5)
    book.ended("p4")
    assert book.ledger.backoff(0) == pytest.approx(1.6)
    book.after(2.0)
    book.ready("p5")
    book.after(BACKOFF_LAST)
    book.ended("p5")
    assert book.ledger.backoff(0) == BACKOFF_FIRST


# -- reloading ------------------------------------------------------------------------------------


def test_a_reload_replaces_slot_by_slot_and_ends_the_old_process_when_the_new_one_is_ready():
    book = Book().serving()
    book.ledger.reload(book.now)
    assert book.take() == [Spawn(0)]
    assert book.ledger.state_of("p0") is Process.READY
    assert book.ready("p2") == [Say("p0", Tell.END), Spawn(1)]
    assert book.ledger.state_of("p0") is Process.DRAINING
    assert book.ended("p0", 0) == []
    assert book.ready("p3") == [Say("p1", Tell.END)]
    assert book.ended("p1", 0) == []
    assert book.ledger.slot_state(0) is book.ledger.slot_state(1) is Slot.UP
    assert book.ledger.counters["restarts"] == 0


@pytest.mark.parametrize("fails", ["dies", "cannot start", "hangs"])
def test_a_successor_that_does_not_become_ready_leaves_the_old_process_serving(fails):
    book = Book(timeout=0.0).serving()
    book.ledger.reload(book.now)
    if fails == "cannot start":
        assert book.ledger.take() == [Spawn(0)]
        book.ledger.not_started(0, book.now)
    elif fails == "dies":
        book.take()
        book.ended("p2")
    else:
        book.take()
        assert kills(book.after(RULES.boot_timeout)) == ["p2"]
        book.ended("p2")
    assert book.take() == book.after(10.0) == []
    assert book.ledger.state_of("p0") is Process.READY
    book.ledger.reload(book.now)
    assert Spawn(0) in book.take()  # and it can be tried again


def test_a_process_that_ends_while_its_successor_starts_has_its_successor():
    book = Book(timeout=0.0).serving()
    book.ledger.reload(book.now)
    book.take()
    assert book.ended("p0") == [Spawn(1)]
    assert book.ready("p2") == []
    assert book.after(1.0) == []
    assert book.ended("p2") == []
    assert book.after(1.0) == [Spawn(0)]


def test_a_replaced_process_that_does_not_end_in_time_is_killed():
    book = Book(num=1, timeout=0.0).serving()
    book.ledger.reload(book.now)
    book.take()
    book.ready("p1")
    assert kills(book.after(RULES.graceful_timeout - 0.25)) == []
    assert kills(book.after(0.25)) == ["p0"]


def test_a_reload_during_a_reload_begins_again_when_its_turn_comes():
    book = Book(timeout=0.0).serving()
    for _ in range(3):
        book.ledger.reload(book.now)
    assert book.take() == [Spawn(0)]
    book.ledger.reload(book.now)
    assert book.take() == []
    assert book.ready("p2") == [Say("p0", Tell.END), Spawn(0)]  # its code may be the old one
    # p0 is told once more: it is not to wait for its sessions, which nobody asks it for any more.
    assert book.ready("p3") == [Say("p0", Tell.END), Say("p2", Tell.END), Spawn(1)]
    assert book.ready("p4") == [Say("p1", Tell.END)]


def test_a_process_that_ends_when_its_successor_was_just_asked_for_has_that_one():
    book = Book(num=1, timeout=0.0).serving()
    book.ledger.reload(book.now)
    assert book.ledger.take() == [Spawn(0)]  # and the shell is on its way
    assert book.ended("p0") == []
    book.ledger.spawned("p1", 0, book.now)
    assert book.after(1.0) == []
    assert book.ledger.slot_state(0) is Slot.UP
    book.ledger.ended("p1", book.now)
    assert book.after(1.0).count(Spawn(0)) == 1


def test_nothing_is_reloaded_before_the_announcement_or_in_a_stop():
    book = Book()
    book.take()
    book.ledger.reload(book.now)
    assert book.take() == []
    book.ready("p0", "p1")
    book.stop()
    book.ledger.reload(book.now)
    assert book.take() == []


def test_a_stop_waits_for_a_process_that_was_replaced_too():
    book = Book(num=1, timeout=0.0).serving()
    book.ledger.reload(book.now)
    book.take()
    book.ready("p1")
    book.stop()
    book.ledger.inboxes(set())
    assert book.take() == [Say("p0", Tell.END), Say("p1", Tell.END)]  # p0: whatever it waits for
    assert book.ended("p1", 0) == []
    assert book.ended("p0", 0) == [Exit(0)]


def test_the_first_worker_can_be_started_alone():
    book = Book(num=3, first_alone=True, timeout=0.0)
    assert book.take() == [Spawn(0)]
    assert book.after(1.0) == []
    book.ledger.ended("p0", book.now, 4, again=True)  # it said what has to be different
    assert book.after(0.25) == [Spawn(0)]
    book.ready("p1")
    assert book.after(0.25) == [Spawn(1), Spawn(2)]
    book.ready("p2")
    assert book.ready("p3") == [Announce()]


def test_a_first_worker_that_dies_while_the_others_start_is_replaced_alone():
    book = Book(num=2, first_alone=True, timeout=0.0)
    book.take()
    book.ready("p0")
    assert book.after(0.25) == [Spawn(1)]
    book.ended("p0")
    assert book.after(0.25) == [Spawn(0)]
    assert book.ready("p2") == []
    assert book.after(1.0) == []
    assert book.ready("p1") == [Announce()]


# -- heartbeat ------------------------------------------------------------------------------------


def test_a_worker_is_asked_four_times_within_its_timeout_and_not_killed_while_it_answers():
    book = Book(num=1).serving()
    asked = 0
    for _ in range(100):
        for action in book.after(0.5):
            assert action == Say("p0", Tell.PING)
            asked += 1
            book.ledger.heard("p0")
    assert asked == 50.0 / (RULES.timeout / 4)


def test_a_worker_that_does_not_answer_is_killed_once_after_its_timeout():
    book = Book(num=1).serving()
    done = book.after(RULES.timeout / 4)
    assert done == [Say("p0", Tell.PING)]
    assert kills(book.after(RULES.timeout - 0.5)) == []
    assert kills(book.after(0.5)) == ["p0"]
    assert book.after(20.0) == []


@pytest.mark.parametrize("timeout", [0.1, 0.5, 1.0])
def test_a_short_timeout_leaves_a_worker_its_whole_time_to_answer(timeout):
    book = Book(num=1, timeout=timeout).serving()
    for _ in range(20):
        book.now = max(book.ledger.due, book.now)
        book.ledger.tick(book.now)
        assert kills(book.take()) == []
        book.ledger.heard("p0")


def test_time_in_which_the_master_did_not_run_is_not_held_against_a_silent_worker():
    book = Book(num=1).serving()
    book.after(RULES.timeout / 4)
    assert kills(book.jump(1000.0)) == []
    assert kills(book.jump(1000.0)) == []
    assert kills(book.after(RULES.timeout)) == ["p0"]


def test_without_a_timeout_nobody_is_asked():
    assert Book(num=1, timeout=0.0).serving().after(200.0) == []


# -- heads ----------------------------------------------------------------------------------------


def test_a_head_has_its_time_then_its_client_has_time_to_read_the_answer():
    book = Book(timeout=0.0).serving()
    book.ledger.awaiting("a", book.now)
    assert book.place("a") == "head"
    assert book.after(RULES.head_timeout - 0.25) == []
    assert book.after(0.25) == [Refuse("a", 408)]
    assert book.place("a") == "refused"
    assert book.after(LINGER - 0.25) == []
    assert book.after(0.25) == [Drop("a")]
    assert book.place("a") is None


def test_a_head_that_is_decided_is_nowhere_until_it_is_placed():
    book = Book().serving()
    book.ledger.awaiting("a", book.now)
    book.ledger.decided("a")
    assert book.place("a") is None
    book.queue(1, "a")
    assert book.place("a") == "queue"


def test_of_too_many_heads_the_oldest_makes_room():
    book = Book().serving()
    for name in "abcd":
        book.ledger.awaiting(name, book.now)
    assert book.take() == [Refuse("a", 408)]
    assert book.ledger.counters["heads_evicted"] == 1


def test_a_client_that_leaves_is_dropped_wherever_it_was_and_once():
    book = Book().serving()
    book.ledger.awaiting("a", book.now)
    book.queue(0, "b")
    book.ledger.refuse("c", 400, book.now)
    book.take()
    for name in "abc":
        book.ledger.left(name)
        assert Drop(name) in book.take()
        assert book.place(name) is None
        book.ledger.left(name)
        assert book.take() == []
    assert book.ledger.counters["left"] == 3


# -- queues ---------------------------------------------------------------------------------------


def test_a_queue_keeps_its_order_and_belongs_to_one_slot():
    book = Book().serving()
    assert book.queue(0, "a", "b") == [WatchInbox(0, True)]
    assert book.queue(1, "c") == [WatchInbox(1, True)]
    assert book.ledger.first(0) == "a"
    book.ledger.delivered("a", 0)
    assert book.ledger.first(0) == "b"
    assert book.take() == []
    book.ledger.delivered("b", 0)
    assert book.take() == [WatchInbox(0, False)]
    assert book.ledger.first(0) is None
    assert book.ledger.first(1) == "c"


def test_room_in_an_inbox_is_used_until_it_is_full_again():
    book = Book().serving()
    book.queue(0, "a")
    book.ledger.room(0)
    assert book.take() == [Deliver(0)]
    book.ledger.blocked(0, book.now)
    assert book.take() == [WatchInbox(0, True)]


def test_what_nothing_announces_the_end_of_is_tried_again_soon():
    book = Book(timeout=0.0).serving()
    book.jump(0.0)
    assert book.queue(0, "a", starved=True) == []
    assert book.wait() == pytest.approx(RETRY)
    assert book.after(RETRY) == [Deliver(0)]
    book.ledger.blocked(0, book.now, starved=True)
    assert book.take() == [WatchInbox(0, False)]
    assert book.after(RETRY) == [Deliver(0)]
    book.ledger.blocked(0, book.now)
    assert book.take() == [WatchInbox(0, True)]
    assert book.after(1.0) == []


def test_who_can_be_sent_when_the_master_runs_again_is_not_refused_first():
    book = Book(timeout=0.0).serving()
    book.queue(0, "a", "b", starved=True)
    assert book.jump(100.0) == [Deliver(0)]
    book.ledger.delivered("a", 0)
    book.ledger.blocked(0, book.now)
    assert Refuse("b", 503) in book.jump(0.0)


def test_a_connection_waits_in_its_queue_for_a_limited_time():
    book = Book(timeout=0.0).serving()
    book.queue(0, "a")
    book.after(1.0)
    book.queue(0, "b")
    assert book.after(RULES.queue_timeout - 1.0) == [Refuse("a", 503)]
    assert book.after(1.0)[:2] == [WatchInbox(0, False), Refuse("b", 503)]
    assert book.ledger.counters["queue_timeouts"] == 2


def test_accepting_pauses_at_the_limit_of_all_queues_and_is_resumed_at_half_of_it():
    book = Book().serving()
    book.queue(0, "a", "b", "c")
    assert book.queue(1, "d") == [WatchInbox(1, True), Accepting(False)]
    book.ledger.delivered("a", 0)
    assert book.take() == []
    book.ledger.left("d")
    assert Accepting(True) in book.take()


def test_out_of_descriptors_the_one_that_was_refused_first_makes_room_then_the_oldest_head():
    book = Book().serving()
    book.ledger.awaiting("a", book.now)
    book.ledger.awaiting("b", book.now)
    book.ledger.refuse("c", 400, book.now)
    book.take()
    for name in "cab":
        book.ledger.starved(book.now)
        assert book.take() == [Drop(name)]
    book.ledger.starved(book.now)
    assert book.take() == [Accepting(False)]
    assert book.after(RETRY) == [Accepting(True)]


def test_who_has_least_to_lose_makes_room_for_what_is_handed_back():
    book = Book(timeout=0.0).serving()
    book.queue(0, "a", "b")
    book.after(0.1)
    book.queue(1, "c")
    book.ledger.awaiting("head", book.now)
    book.ledger.refuse("refused", 400, book.now)
    book.take()
    for name in ("refused", "head"):
        assert book.ledger.crowded(book.now)
        assert book.take() == [Drop(name)]
    for name in ("c", "b", "a"):  # the last to come is the first to go, with an answer
        assert book.ledger.crowded(book.now)
        assert Refuse(name, 503) in book.take()
        assert book.ledger.crowded(book.now)
        assert book.take() == [Drop(name)]
    assert not book.ledger.crowded(book.now)
    assert book.ledger.counters["crowded_out"] == 4  # the refused one has lost nothing


def test_accepting_is_not_resumed_after_starvation_while_the_queues_are_full():
    book = Book(timeout=0.0).serving()
    book.ledger.starved(book.now)
    book.queue(0, "a", "b", "c", "d")
    assert book.after(RETRY) == []
    book.ledger.delivered("a", 0)
    book.ledger.delivered("b", 0)
    assert Accepting(True) in book.take()


# -- stopping -------------------------------------------------------------------------------------


def test_workers_are_told_to_close_first_and_to_end_only_when_nothing_waits():
    book = Book().serving()
    book.ledger.awaiting("a", book.now)
    done = book.stop()
    assert done == [CloseListeners(drain=True), Say("p0", Tell.CLOSING), Say("p1", Tell.CLOSING)]
    book.ledger.inboxes(set())
    assert book.take() == []  # a head is awaited
    book.ledger.decided("a")
    book.queue(0, "a")
    book.ledger.inboxes({0})
    assert book.take() == []  # one is queued
    book.ledger.delivered("a", 0)
    book.ledger.inboxes({0})
    assert Say("p0", Tell.END) not in book.take()  # one lies in an inbox
    book.ledger.inboxes(set())
    assert book.take() == [Say("p0", Tell.END), Say("p1", Tell.END)]
    assert book.ledger.state_of("p0") is Process.DRAINING
    assert book.ended("p0", 0) == []
    assert book.ended("p1", 0) == [Exit(0)]
    assert book.ledger.stage is Stage.OVER


def test_nobody_is_told_to_end_before_the_listeners_are_closed():
    book = Book().serving()
    book.ledger.stop(book.now)
    book.take()
    book.ledger.inboxes(set())
    assert book.take() == []
    assert book.ledger.stage is Stage.LISTENING


def test_awaited_heads_have_one_more_second_in_a_stop():
    book = Book(timeout=0.0).serving()
    book.ledger.awaiting("a", book.now)
    book.stop()
    book.ledger.awaiting("b", book.now)
    assert Refuse("a", 408) not in book.after(LAST_HEAD - 0.25)
    assert {Refuse("a", 408), Refuse("b", 408)} <= set(book.after(0.25))


def test_a_worker_that_dies_in_a_stop_is_replaced_only_if_something_waits_for_it():
    book = Book().serving()
    book.queue(0, "a")
    book.stop()
    book.ended("p0")
    book.ended("p1")
    book.ledger.inboxes(set())
    assert book.after(1.0).count(Spawn(0)) == 1
    assert book.ledger.slot_state(1) is Slot.BACKOFF
    book.ledger.inboxes({0, 1})  # a head that was awaited went there since
    assert book.after(0.25) == [Spawn(1)]


def test_a_worker_that_becomes_ready_in_a_stop_is_told_to_close():
    book = Book()
    book.take()
    book.stop()
    assert book.ready("p0") == [Say("p0", Tell.CLOSING)]
    book.ledger.inboxes(set())
    done = book.take()
    assert Say("p0", Tell.END) in done
    assert kills(done) == ["p1"]  # it reads no messages yet


def test_when_the_time_for_stopping_is_over_everyone_is_refused_and_killed():
    book = Book(queue_timeout=100.0, timeout=0.0).serving()
    book.queue(0, "a")
    book.stop()
    assert book.after(RULES.graceful_timeout - 0.25) == []
    done = book.after(0.25)
    assert Refuse("a", 503) in done
    assert kills(done) == ["p0", "p1"]


def test_a_quick_stop_refuses_everyone_and_leaves_workers_a_second():
    book = Book().serving()
    book.ledger.awaiting("a", book.now)
    book.queue(0, "b")
    done = book.stop(quick=True)
    assert done[0] == CloseListeners(drain=False)
    assert {Refuse("a", 503), Refuse("b", 503)} <= set(done)
    assert {Say("p0", Tell.QUIT), Say("p1", Tell.QUIT)} <= set(done)
    assert kills(book.after(QUIT_GRACE - 0.25)) == []
    assert kills(book.after(0.25)) == ["p0", "p1"]


def test_a_quick_stop_overtakes_a_graceful_one_and_more_of_them_do_not_put_it_off():
    book = Book().serving()
    book.stop()
    assert Say("p0", Tell.QUIT) in book.stop(quick=True)
    book.after(QUIT_GRACE / 2)
    book.stop(quick=True)
    assert kills(book.after(QUIT_GRACE / 2)) == ["p0", "p1"]


def test_a_quick_stop_does_not_put_off_the_end_of_a_graceful_one():
    book = Book(graceful_timeout=0.5).serving()
    book.stop()
    book.after(0.25)
    book.stop(quick=True)
    assert kills(book.after(0.25)) == ["p0", "p1"]


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
    assert book.ledger.take() == [Spawn(0)]  # and the shell is on its way
    book.ledger.stop(book.now, quick=True)
    book.ledger.spawned("late", 0, book.now)
    assert "late" in kills(book.take())
    book.ended("p1", 0)
    assert book.ended("late", -9) == [Exit(0)]


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
        book.ledger.ready("p0", book.now)


def test_it_never_sleeps_past_what_is_due():
    book = Book(timeout=0.0).serving()
    book.jump(0.0)
    assert book.wait() == LONGEST_STEP
    for seconds, decide in (
        (0.5, lambda: book.ledger.awaiting("a", book.now - RULES.head_timeout + 0.5)),
        (0.4, lambda: book.ledger.queue("b", 0, book.now - RULES.queue_timeout + 0.4)),
        (0.3, lambda: book.ledger.refuse("c", 400, book.now - LINGER + 0.3)),
        (0.1, lambda: book.ledger.ended("p0", book.now)),
        (0.05, lambda: book.queue(1, "d", starved=True)),
    ):
        decide()
        book.take()
        assert book.wait() == pytest.approx(seconds)


def test_pings_and_boot_timeouts_are_due_to_the_moment():
    book = Book(num=1, timeout=1.0, boot_timeout=0.75)
    book.take()
    assert book.wait() <= 0.75
    book.ready("p0")
    book.jump(0.0)
    assert book.wait() == pytest.approx(0.25)


# -- connections at rest --------------------------------------------------------------------------


def rest(book, slot, *connections, starved=False):
    for connection in connections:
        book.ledger.queue(connection, slot, book.now, starved=starved, rest=True)
    return book.take()


def test_a_connection_at_rest_waits_behind_those_with_a_request_and_counts_for_no_limit():
    book = Book(max_queued=2).serving()
    assert rest(book, 0, "r", "s", "t") == [WatchInbox(0, True)]
    assert book.queue(0, "a") == []
    assert book.ledger.first(0) == "a"
    book.ledger.delivered("a", 0)
    assert book.take() == []  # the inbox is still waited for
    assert book.ledger.first(0) == "r"
    for connection in ("r", "s", "t"):
        book.ledger.delivered(connection, 0)
    assert book.take() == [WatchInbox(0, False)]
    assert book.ledger.counters["queued"] == 1


def test_a_connection_at_rest_that_cannot_be_placed_is_closed_and_never_answered():
    book = Book().serving()
    rest(book, 0, "r")
    book.after(1.0)
    rest(book, 0, "s")
    assert Drop("r") in book.after(5.0)
    assert book.place("s") == "rest"
    done = book.after(1.0)
    assert done == [WatchInbox(0, False), Drop("s")]
    assert book.ledger.counters["rest_closed"] == 2
    assert book.ledger.counters["queue_timeouts"] == 0


@pytest.mark.parametrize("quick", [False, True])
def test_connections_at_rest_do_not_outlive_the_stop(quick):
    book = Book().serving()
    rest(book, 0, "r")
    rest(book, 1, "s")
    done = book.stop(quick=quick)
    assert [action for action in done if isinstance(action, Drop)] == [Drop("r"), Drop("s")]
    assert not any(isinstance(action, Refuse) for action in done)


def test_a_client_that_leaves_at_rest_is_closed():
    book = Book().serving()
    rest(book, 1, "r")
    book.ledger.left("r")
    assert book.take() == [WatchInbox(1, False), Drop("r")]
    assert book.ledger.counters["left"] == 1


def test_connections_at_rest_make_room_before_anybody_else():
    book = Book().serving()
    book.ledger.awaiting("head", book.now)
    book.queue(0, "a")
    rest(book, 0, "r", "s")
    assert book.ledger.crowded(book.now)
    assert book.take() == [Drop("r")]
    book.ledger.starved(book.now)
    assert book.take() == [Drop("s")]
    assert (book.place("head"), book.place("a")) == ("head", "queue")
    assert book.ledger.counters["crowded_out"] == 0


def test_starved_of_descriptors_in_flight_it_is_tried_again():
    book = Book().serving()
    assert rest(book, 0, "r", starved=True) == []
    assert Deliver(0) in book.after(RETRY)


# -- a process that says how it is to be started ------------------------------------------------


def again(book, process):
    done = book.ledger.ended(process, book.now, 4, again=True)
    return done, book.take()


def test_a_process_that_says_how_is_started_once_more_at_once_and_not_a_third_time():
    book = Book(num=1, first_alone=True)
    book.take()
    assert again(book, "p0") == (True, [])
    book.ledger.tick(book.now)
    assert book.take() == [Spawn(0)]
    done, actions = again(book, "p1")
    assert not done
    assert Exit(4) in actions


def test_a_successor_that_says_how_is_started_once_more_and_the_reload_goes_on():
    book = Book().serving()
    book.ledger.reload(book.now)
    assert book.take() == [Spawn(0)]
    assert again(book, "p2") == (True, [Spawn(0)])
    assert book.ready("p3") == [Say("p0", Tell.END), Spawn(1)]


def test_a_successor_that_says_how_for_the_second_time_ends_the_reload():
    book = Book().serving()
    book.ledger.reload(book.now)
    book.take()
    again(book, "p2")
    assert again(book, "p3") == (False, [])
    assert book.ledger.state_of("p0") is Process.READY
    book.ledger.reload(book.now)  # the next one begins anew
    assert book.take() == [Spawn(0)]
    assert again(book, "p4") == (True, [Spawn(0)])


def test_in_a_stop_nobody_is_started_once_more():
    book = Book().serving()
    book.ended("p0")
    book.after(BACKOFF_FIRST)
    book.stop()
    done, actions = again(book, "p2")
    assert not done
    assert Spawn(0) not in actions


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("boots for too long", Why.NOT_READY),
        ("hangs", Why.SILENT),
        ("does not end", Why.NOT_ENDED),
        ("is replaced before it is ready", Why.REPLACED),
        ("starts when the server stops", Why.STOPPED),
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
        book.ledger.reload(book.now)
        book.take()
        book.ready("p1")
        done = book.after(31)
    elif how == "starts when the server stops":
        done = book.stop(quick=True)
    else:
        book.ready("p0")
        book.ended("p0")
        book.after(BACKOFF_FIRST)
        book.ledger.reload(book.now)
        book.take()
        done = book.ready("p2")
    assert why in [action.why for action in done if isinstance(action, Kill)]
