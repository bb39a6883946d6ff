"""Room for the descriptor of a connection."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest

from sticky.worker.descriptors import Margin


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_process_far_from_its_limit_is_not_watched():
    margin = Margin(100)
    margin.seen(49)
    assert not margin.watched
    margin.seen(50)
    assert margin.watched
    margin.seen(3)
    assert margin.watched  # a hole among many


def test_without_a_limit_nothing_is_watched():
    margin = Margin(resource.RLIM_INFINITY)
    margin.seen(1_000_000)
    assert not margin.watched


def test_what_is_kept_is_free_while_something_is_received():
    before = opened()
    margin = Margin(100)
    assert margin.put_back()
    assert opened() == before + 2
    assert margin.take()
    assert opened() == before
    assert margin.put_back()
    margin.let_go()
    assert opened() == before


@pytest.fixture
def few():
    """A limit that is soon reached."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened() + 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_a_descriptor_there_is_no_room_until_there_is_one(few):
    margin = Margin()
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        assert not margin.take()
        os.close(taken.pop())
        assert not margin.take()  # a message may bring two
        os.close(taken.pop())
        assert margin.take()
    finally:
        margin.let_go()
        for fd in taken:
            os.close(fd)
