"""Room for the descriptor of a connection."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest

from sticky.worker.descriptors import Reserve


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_process_far_from_its_limit_is_not_watched():
    reserve = Reserve(100)
    reserve.seen(49)
    assert not reserve.watched
    reserve.seen(50)
    assert reserve.watched
    reserve.seen(3)
    assert reserve.watched  # a hole among many


def test_without_a_limit_nothing_is_watched():
    reserve = Reserve(resource.RLIM_INFINITY)
    reserve.seen(1_000_000)
    assert not reserve.watched


def test_what_is_kept_is_free_while_something_is_received():
    before = opened()
    reserve = Reserve(100)
    assert reserve.put_back()
    assert opened() == before + 2
    assert reserve.take()
    assert opened() == before
    assert reserve.put_back()
    reserve.let_go()
    assert opened() == before


@pytest.fixture
def few():
    """A limit that is soon reached."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened() + 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_a_descriptor_there_is_no_room_until_there_is_one(few):
    reserve = Reserve()
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        assert not reserve.take()
        os.close(taken.pop())
        assert not reserve.take()  # a message may bring two
        os.close(taken.pop())
        assert reserve.take()
    finally:
        reserve.let_go()
        for fd in taken:
            os.close(fd)
