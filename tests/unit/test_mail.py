"""Mail between processes, which are all in this one: over real mailboxes and a master's side."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading

import pytest

from sticky import board as counters
from sticky import channel
from sticky.mailbox import VERSION, Sender, bit_of
from tests.harness import wait_until

from .mail_kit import Office, heard, raw

TOPIC = b"news"


@pytest.fixture
def office():
    before = len(os.listdir("/proc/self/fd"))
    made = Office()
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the memory of the board


def test_a_message_reaches_all_others_that_want_it_and_nobody_else(office):
    first, second, third, fourth = (office.join(slot) for slot in range(4))
    got = [heard(mail, TOPIC) for mail in (first, second, third)]
    other = heard(fourth, b"else")
    assert first.post(TOPIC, b"hello")
    wait_until(lambda: got[1] and got[2])
    assert got == [[], [b"hello"], [b"hello"]]
    assert other == []


def test_who_has_sent_it_is_known(office):
    first, second = office.join(3), office.join(4)
    found = []
    second.subscribe(TOPIC, lambda payload, sender: found.append(sender))
    first.post(TOPIC, b"")
    wait_until(lambda: found)
    assert found == [first.sender] == [Sender(first.sender.row, 3, os.getpid())]


def test_what_nobody_wants_is_sent_to_nobody(office):
    first, second = office.join(0), office.join(1, attend=False)
    assert not first.post(TOPIC, b"hello")
    heard(second, b"else")
    assert not first.is_wanted(TOPIC)
    assert not first.post(TOPIC, b"hello")
    assert raw(second) == []


def test_who_does_not_want_it_any_more_gets_nothing(office):
    first, second = office.join(0), office.join(1)
    found = []

    def handler(payload, sender):
        found.append(payload)

    second.subscribe(TOPIC, handler)
    second.unsubscribe(TOPIC, handler)
    assert not first.post(TOPIC, b"hello")


def test_topics_that_share_a_bit_are_told_apart(office):
    number, bit = 0, bit_of(TOPIC)
    while bit_of(b"%d" % number) != bit:
        number += 1
    first, second = office.join(0), office.join(1)
    got, other = heard(second, TOPIC), heard(second, b"end")
    first.post(b"%d" % number, b"not meant")
    first.post(TOPIC, b"meant")
    first.post(b"end", b"")
    wait_until(lambda: other)
    assert got == [b"meant"]


def test_a_message_for_one_process_reaches_no_other(office):
    first, second, third = (office.join(slot) for slot in range(3))
    got = heard(second, TOPIC), heard(third, TOPIC)
    for number in range(100):  # some go at once, others together
        first.post(TOPIC, b"%d" % number, only=third.sender.row)
        first.post(TOPIC, b"all")
    wait_until(lambda: len(got[0]) == 100 and len(got[1]) == 200)
    assert got[0] == [b"all"] * 100
    assert got[1][::2] == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("size", [0, 1, 50_000, 59_999, 60_000, 200_000, 5_000_000])
def test_a_message_of_any_size_arrives_whole_and_in_order(office, size):
    first, second, third = (office.join(slot) for slot in range(3))
    got = heard(second, TOPIC), heard(third, TOPIC)
    content = os.urandom(min(size, 1000)).ljust(size, b"x")
    for payload in (b"before", content, b"after"):
        first.post(TOPIC, payload)
    wait_until(lambda: all(len(one) == 3 for one in got))
    assert got[0] == got[1] == [b"before", content, b"after"]


def test_a_mailbox_with_little_room_takes_everything(office):
    first, second = office.join(0), office.join(1)
    got = heard(second, TOPIC)
    office.post.boxes[second.sender.row].mailbox.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, 8192
    )
    for number in range(50):
        first.post(TOPIC, b"%d " % number + b"x" * 30_000)
    wait_until(lambda: len(got) == 50)
    assert [int(payload.partition(b" ")[0]) for payload in got] == list(range(50))
    assert first.dropped == {}


def test_what_is_sent_in_one_turn_travels_together(office):
    first, second = office.join(0, attend=False), office.join(1, attend=False)
    heard(second, TOPIC)
    calls = []

    class Waiter:
        asynchronous = False

        def call(self, call):
            calls.append(call)

        soon = call

        def watch(self, fd, call, *, writing=False):
            pass

        def unwatch(self, fd):
            pass

    first.attend(Waiter())
    for number in range(100):
        first.post(TOPIC, b"%d" % number)
    assert len(calls) == 1
    calls.pop()()
    datagrams = raw(second)
    assert len(datagrams) == 2  # the first at once
    office.attend(second)
    first.post(TOPIC, b"in the next turn at once again")
    assert calls == []


def test_the_order_of_each_sender_is_kept(office):
    receiver = office.join(0)
    got = heard(receiver, TOPIC)
    senders = [office.join(slot) for slot in range(1, 4)]

    def send(mail):
        for number in range(3000):
            mail.post(TOPIC, b"%d %d" % (mail.sender.slot, number))
            if number % 700 == 0:
                mail.post(TOPIC, b"%d %d " % (mail.sender.slot, -1) + b"x" * 70_000)

    threads = [threading.Thread(target=send, args=(mail,)) for mail in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(got) == 3 * 3005)
    for slot in (1, 2, 3):
        numbers = [int(p.split()[1]) for p in got if int(p.split()[0]) == slot]
        assert [number for number in numbers if number >= 0] == list(range(3000))


def test_who_does_not_read_costs_a_bounded_queue_and_holds_nobody(office, caplog, monkeypatch):
    monkeypatch.setattr("sticky.outgoing._QUIET", math.inf)
    first, slow, quick = office.join(0, limit=100_000), office.join(1, attend=False), office.join(2)
    kept, got = heard(slow, TOPIC), heard(quick, TOPIC)
    with caplog.at_level(logging.WARNING, "sticky.mail"):
        for number in range(2000):
            first.post(TOPIC, b"%d " % number + b"x" * 1000)
            wait_until(lambda number=number: len(got) > number, interval=0.0001)
    dropped = first.dropped
    assert dropped.keys() == {1}
    assert 1000 < dropped[1] < 2000
    assert office.board.process(first.sender.row)["mail_dropped"] == dropped[1]
    assert len([r for r in caplog.records if "worker 1" in r.message]) == 1
    # What was kept is the oldest, and it arrives once it is read.
    office.attend(slow)
    wait_until(lambda: len(kept) == 2000 - dropped[1])
    assert [int(payload.partition(b" ")[0]) for payload in kept] == list(range(2000 - dropped[1]))


def test_a_message_too_large_for_the_queue_is_kept_if_the_queue_is_empty(office):
    first, slow = office.join(0, limit=10), office.join(1, attend=False)
    kept = heard(slow, TOPIC)
    for _ in range(2000):
        first.post(TOPIC, b"x" * 1000)
    assert first.dropped[1] > 0
    office.attend(slow)
    wait_until(lambda: len(kept) == 2000 - first.dropped[1])


# -- coming and going -----------------------------------------------------------------------------


def test_a_process_that_comes_is_known_to_whoever_sends_next(office):
    first = office.join(0, attend=False)  # nothing tells it: it is busy
    for number in range(1, 4):
        got = heard(office.join(number), TOPIC)
        assert first.post(TOPIC, b"%d" % number)
        wait_until(lambda got=got: got)
        assert got == [b"%d" % number]  # and nothing of what was before it was there


def test_both_processes_of_a_slot_hear(office):
    first, before = office.join(0), office.join(1)
    got = heard(before, TOPIC)
    successor = office.join(1)
    later = heard(successor, TOPIC)
    first.post(TOPIC, b"both")
    wait_until(lambda: got and later)
    before.post(TOPIC, b"from the one")
    successor.post(TOPIC, b"from the other")
    wait_until(lambda: len(got) == len(later) == 2)
    assert (got, later) == ([b"both", b"from the other"], [b"both", b"from the one"])


def test_who_has_gone_gets_nothing_and_leaves_nothing_open(office):
    first, second = office.join(0), office.join(1)
    heard(second, TOPIC)
    gone = []
    heard(first, TOPIC)
    first.gone = gone.append
    row = second.sender.row
    wait_until(lambda: len(first.descriptors()) == 3, what="it knows the other one")
    office.leave(second)
    wait_until(lambda: gone)
    assert gone == [row]
    assert len(first.descriptors()) == 2
    assert not first.post(TOPIC, b"hello")


def test_who_has_just_died_holds_nobody(office):
    first, second, third = office.join(0), office.join(1, attend=False), office.join(2)
    heard(second, TOPIC)
    got = heard(third, TOPIC)
    office.mails.remove(second)
    second.close()  # the master has not noticed
    for _ in range(10):
        first.post(TOPIC, b"hello")
    wait_until(lambda: len(got) == 10)
    assert first.dropped == {}
    office.post.close(second.sender.row)


def test_what_waits_for_who_goes_is_forgotten(office):
    first, slow = office.join(0), office.join(1, attend=False)
    heard(slow, TOPIC)
    for _ in range(3000):
        first.post(TOPIC, b"x" * 1000)
    office.leave(slow)
    successor = office.join(1)
    assert successor.sender.row == slow.sender.row  # it is used again
    got = heard(successor, TOPIC)
    first.post(TOPIC, b"new")
    wait_until(lambda: got)
    assert got == [b"new"]


def test_what_was_sent_before_a_process_came_does_not_come_to_it(office):
    """Not even what is to go together, at the end of this turn."""
    first, other = office.join(0, attend=False), office.join(1)
    calls = []

    class Turn:
        asynchronous = here = False
        watch = unwatch = later = staticmethod(lambda *_, **__: None)
        call = soon = staticmethod(calls.append)

    first.attend(Turn)
    earlier = heard(other, TOPIC)
    for number in range(3):
        first.post(TOPIC, b"%d" % number)
    wait_until(lambda: earlier)
    assert earlier == [b"0"]
    office.leave(other)
    successor = office.join(1)
    assert successor.sender.row == other.sender.row
    got = heard(successor, TOPIC)
    first.post(TOPIC, b"new")
    for call in calls:
        call()
    wait_until(lambda: b"new" in got)
    assert got == [b"new"]


def test_for_who_stands_still_the_news_wait(office):
    first = office.join(0, attend=False)
    for _ in range(600):  # more than there is room for
        office.leave(office.join(1, attend=False))
    last = office.join(2)
    got = heard(last, TOPIC)
    assert office.post.boxes[first.sender.row].unsaid
    assert not first.post(TOPIC, b"hello")  # it has not heard all
    office.post.catch_up()
    for _ in range(10):
        first.meet()
        office.post.catch_up()
    assert not office.post.boxes[first.sender.row].unsaid
    assert first.post(TOPIC, b"hello")
    wait_until(lambda: got)


# -- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\xff{",
        bytes([VERSION + 1]) + bytes(11),
        bytes([VERSION, 0]) + bytes(10) + b"\xff\xff\xff\xff\x01",
    ],
)
def test_what_is_no_mail_is_passed_over(office, data, caplog):
    first, second = office.join(0), office.join(1)
    got = heard(second, TOPIC)
    office.post.boxes[second.sender.row].mailbox.send(data)
    first.post(TOPIC, b"hello")
    wait_until(lambda: got)
    assert "cannot be read" in caplog.text


def test_a_subscriber_that_fails_costs_the_others_nothing(office, caplog):
    first, second = office.join(0), office.join(1)

    def fail(payload, sender):
        raise ValueError("no")

    second.subscribe(TOPIC, fail)
    got = heard(second, TOPIC)
    first.post(TOPIC, b"hello")
    wait_until(lambda: got)
    assert "a subscriber failed" in caplog.text


def test_for_itself_a_process_has_mail_too_but_never_within_the_call(office):
    mail = office.join(0)
    found = []

    def answer(payload, sender):
        found.append((payload, sender))
        if payload == b"first":
            mail.post_here(TOPIC, b"second")
            assert len(found) == 1

    mail.subscribe(TOPIC, answer)
    mail.post_here(TOPIC, b"first")
    wait_until(lambda: len(found) == 2)
    assert found == [(b"first", mail.sender), (b"second", mail.sender)]


def test_before_there_is_a_loop_mail_waits_and_is_sent_at_once(office):
    first, second = office.join(0, attend=False), office.join(1, attend=False)
    got = heard(second, TOPIC)
    here = heard(first, TOPIC)
    for number in range(10):
        first.post(TOPIC, b"%d" % number)
    first.post_here(TOPIC, b"here")
    assert got == here == []
    office.attend(second)
    office.attend(first)
    wait_until(lambda: len(got) == 10 and here)


def test_at_its_end_a_process_sends_what_is_left_and_waits_for_nobody_long(office):
    first = office.join(0, attend=False)
    slow, dead = office.join(1, attend=False), office.join(2, attend=False)
    kept, _ = heard(slow, TOPIC), heard(dead, TOPIC)
    for number in range(3000):
        first.post(TOPIC, b"%d " % number + b"x" * 1000)
    office.attend(slow)
    first.finish(2.0)
    wait_until(lambda: len(kept) == 3000)


def test_counters_say_what_was_sent_and_received(office):
    first, second, third = (office.join(slot) for slot in range(3))
    got = heard(second, TOPIC), heard(third, TOPIC)
    for _ in range(50):
        first.post(TOPIC, b"hello")
    wait_until(lambda: len(got[0]) == len(got[1]) == 50)
    process = office.board.process
    assert process(first.sender.row)["mail_sent"] == 100
    wait_until(lambda: process(second.sender.row)["mail_received"] == 50)
    assert set(counters.WORKER) >= {"mail_sent", "mail_received", "mail_dropped"}


def test_what_is_closed_changes_nothing_of_what_its_process_wants(office):
    """A child that the app has forked closes it; the parent goes on."""
    first, second = office.join(0), office.join(1, attend=False)
    heard(second, TOPIC)
    second.close()
    heard(second, b"else")
    first.meet()
    assert first.is_wanted(TOPIC)
    assert not first.is_wanted(b"else") or bit_of(b"else") == bit_of(TOPIC)
    assert second.descriptors() == [-1, -1]
    assert not second.post(TOPIC, b"hello")


def test_the_messages_about_presence_survive_the_way():
    assert channel.unpack_presence(channel.pack_presence(1 << 40, 70_000, 249)) == (
        1 << 40,
        70_000,
        249,
    )
