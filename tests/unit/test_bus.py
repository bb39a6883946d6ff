"""sticky.bus and its kinds of subscriber, over the mail of processes that are all in this one."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading

import pytest

from sticky import bus
from sticky.bus import Message, Subscription
from sticky.errors import StickyError
from sticky.mailbox import Sender
from sticky.mailqueue import Queue
from sticky.outgoing import OVERHEAD
from tests.harness import ROOT, wait_until

from .mail_kit import Office

SENDER = Sender(1, 0, 4711)


@pytest.fixture
def office():
    made = Office()
    yield made
    made.close()


@pytest.fixture
def worker(office, monkeypatch):
    """This process is a worker, as far as sticky.bus can see."""
    mail = office.join(3)

    class Worker:
        pass

    Worker.mail = mail
    monkeypatch.setattr(bus, "current_worker", lambda: Worker)
    return mail


def test_a_callback_is_called_with_each_message_in_order(office, worker):
    other = office.join(1)
    found: list[Message] = []
    bus.subscribe("news", found.append)
    for number in range(300):
        other.post(b"news", b"%d" % number)
    wait_until(lambda: len(found) == 300)
    assert [int(message.data) for message in found] == list(range(300))
    assert found[0] == Message("news", b"0", 1, other.sender.pid)


def test_who_publishes_hears_it_too(office, worker):
    other = office.join(1)
    there = Subscription(other, "news")
    here = bus.subscribe("news")
    bus.publish("news", b"hello")
    bus.publish("other", b"else")
    assert here.get(10) == there.get(10) == Message("news", b"hello", 3, worker.sender.pid)
    with pytest.raises(TimeoutError, match="'news'"):
        here.get(0.01)


def test_what_can_be_read_as_bytes_can_be_published(worker):
    with bus.subscribe("news") as got:
        bus.publish("news", bytearray(b"one"))
        bus.publish("news", memoryview(b"two"))
        assert [got.get(10).data, got.get(10).data] == [b"one", b"two"]
    with pytest.raises(TypeError, match="bytes, and not str"):
        bus.publish("news", "text")


@pytest.mark.parametrize("topic", ["", "\0news", "x" * 256])
def test_a_topic_that_is_none_is_refused(worker, topic):
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        bus.publish(topic, b"")
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        bus.subscribe(topic)
    with pytest.raises(TypeError, match="a topic is a str"):
        bus.publish(b"news", b"")


def test_a_blocking_iterator_waits_and_ends_with_the_subscription(worker):
    subscription = bus.subscribe("news")
    found = []

    def read():
        found.extend(message.data for message in subscription)
        found.append("end")

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(3):
        bus.publish("news", b"%d" % number)
        wait_until(lambda number=number: len(found) == number + 1)
    subscription.close()
    thread.join(10)
    assert found == [b"0", b"1", b"2", "end"]
    with pytest.raises(StickyError, match="closed"):
        subscription.get()
    assert not worker.is_wanted(b"news")


def test_an_asynchronous_iterator(office, monkeypatch):
    async def main():
        mail, other = office.join(0, attend=False), office.join(1)
        office.attend_in_asyncio(mail)
        found = []

        async def read():
            async for message in subscription:
                found.append(message.data)

        subscription = Subscription(mail, "news")
        task = asyncio.create_task(read())
        for number in range(500):
            other.post(b"news", b"%d" % number)
            if number % 100 == 0:
                await asyncio.sleep(0)
        while len(found) < 500:
            await asyncio.sleep(0.001)
        assert found == [b"%d" % number for number in range(500)]
        with pytest.raises(StickyError, match="async for"):
            subscription.get()
        subscription.close()
        await asyncio.wait_for(task, 10)
        office.leave(mail)

    asyncio.run(main())


def test_in_asyncio_a_callback_may_be_a_coroutine_function_and_keeps_the_order(office, caplog):
    async def main():
        mail, other = office.join(0, attend=False), office.join(1)
        found = []

        async def callback(message):
            await asyncio.sleep(0)
            found.append(message.data)
            if len(found) == 2:
                raise ValueError("no")

        subscription = Subscription(mail, "news", callback)
        other.post(b"news", b"before there is a loop")
        office.attend_in_asyncio(mail)
        for number in range(10):
            other.post(b"news", b"%d" % number)
        while len(found) < 11:
            await asyncio.sleep(0.001)
        assert found[1:] == [b"%d" % number for number in range(10)]
        subscription.close()
        await subscription._task
        office.leave(mail)

    asyncio.run(main())
    assert "a subscriber of 'news' failed" in caplog.text


def test_a_callback_that_fails_or_waits_costs_others_nothing(worker, caplog):
    hold = threading.Event()

    def slow(message):
        hold.wait(10)
        raise ValueError("no")

    found = []
    bus.subscribe("news", slow)
    bus.subscribe("news", found.append)
    bus.publish("news", b"one")
    bus.publish("news", b"two")
    wait_until(lambda: len(found) == 2)
    hold.set()
    wait_until(lambda: caplog.text.count("a subscriber of 'news' failed") == 2)


def test_a_subscriber_that_does_not_keep_up_loses_the_newest(worker, caplog):
    with caplog.at_level(logging.WARNING, "sticky.mail"):
        slow = bus.subscribe("news", limit=10 * (OVERHEAD + 1))
        quick = bus.subscribe("news")
        for number in range(100):
            bus.publish("news", b"%d" % (number % 10))
        for _ in range(100):
            quick.get(10)
    assert slow.dropped == 90
    assert [int(slow.get(10).data) for _ in range(10)] == list(range(10))
    assert len([r for r in caplog.records if "a subscriber of 'news'" in r.message]) == 1
    bus.publish("news", b"next")
    assert slow.get(10).data == b"next"


def test_outside_a_worker_it_says_what_to_do():
    for call in (lambda: bus.publish("news", b""), lambda: bus.subscribe("news")):
        with pytest.raises(StickyError, match=r"sticky\.listen"):
            call()


# -- the queue of a subscriber --------------------------------------------------------------------


def test_taking_waits_as_long_as_it_is_told():
    queue = Queue(1000, lambda count: None, "a test")
    assert queue.take(0.01) == []
    queue.put(b"one", SENDER)
    queue.put(b"two", SENDER)
    assert queue.take(0, most=1) == [(b"one", SENDER)]
    assert queue.take() == [(b"two", SENDER)]

    async def main():
        assert await queue.take_async(0.01) == []
        asyncio.get_running_loop().call_later(0.01, queue.put, b"three", SENDER)
        assert await queue.take_async(10) == [(b"three", SENDER)]
        threading.Timer(0.01, queue.put, (b"four", SENDER)).start()
        assert await queue.take_async(10) == [(b"four", SENDER)]
        queue.close()
        assert await queue.take_async() == []

    asyncio.run(main())
    assert queue.take() == []


def test_nothing_is_lost_or_doubled_between_two_threads():
    queue = Queue(1 << 40, lambda count: None, "a test")
    found = []

    def read():
        while items := queue.take(most=7):
            found.extend(int(payload) for payload, _ in items)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(20_000):
        queue.put(b"%d" % number, SENDER)
    wait_until(lambda: len(found) == 20_000)
    queue.close()
    thread.join(10)
    assert found == list(range(20_000))


PATCHED = """
import warnings
warnings.simplefilter("ignore")
{patch}
import threading, time
from sticky.mailbox import Sender
from sticky.mailqueue import Queue
from sticky.outgoing import OVERHEAD
queue = Queue(1 << 20, print, "a test")
ticks, got = [], []
def tick():
    while True:
        ticks.append(1)
        time.sleep(0.002)
def read():
    while items := queue.take():
        got.extend(items)
{mode}.spawn(tick)
{mode}.spawn(read)
while len(ticks) < 10:  # for ever, if nothing else had its turn meanwhile
    assert Queue(1 << 20, print, "another").take(0.01) == []
for number in range(10):
    queue.put(b"%d" % number, Sender(1, 0, 1))
    {mode}.sleep(0.001)
while len(got) < 10:
    {mode}.sleep(0.001)
print("READY")
"""
PATCHES = {
    "eventlet": "import eventlet; eventlet.monkey_patch()",
    "gevent": "import gevent.monkey; gevent.monkey.patch_all(); import gevent",
}


@pytest.mark.parametrize("mode", PATCHES)
def test_in_a_patched_process_waiting_is_cooperative(mode):
    pytest.importorskip(mode)
    program = PATCHED.format(mode=mode, patch=PATCHES[mode])
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "READY\n"), ended.stderr
