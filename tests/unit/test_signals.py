"""Signals as bytes on a descriptor, and how children are collected."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from sticky.master.signals import Signals, describe, reap

NUMBERS = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def signals():
    ours = Signals(NUMBERS)
    yield ours
    ours.close()


def readable(signals, timeout=5.0):
    return bool(select.select([signals.fileno()], [], [], timeout)[0])


def test_a_signal_makes_the_descriptor_readable_and_is_reported_once(signals):
    assert not readable(signals, 0)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert readable(signals)
    assert signals.arrived() == [signal.SIGUSR1]
    assert signals.arrived() == []


def test_signals_are_reported_in_the_order_in_which_they_came(signals):
    for number in (*NUMBERS, *NUMBERS):
        os.kill(os.getpid(), number)
    assert signals.arrived() == [*NUMBERS, *NUMBERS]


def test_more_signals_than_fit_neither_block_nor_fail(signals):
    for _ in range(2000):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.arrived()


def test_it_works_after_a_garbage_collection(signals):
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.arrived() == [signal.SIGUSR2]


def test_closing_puts_handlers_and_the_wake_up_descriptor_back():
    def mine(number, frame):
        """Somebody's handler."""

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGUSR1, mine)
    wakeup = signal.set_wakeup_fd(writer.fileno())
    try:
        Signals(NUMBERS).close()
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == writer.fileno()
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGUSR1, before)
        reader.close()
        writer.close()


def child(code):
    return os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", code], os.environ)


def test_an_exit_status_is_collected():
    assert reap(child("raise SystemExit(7)")) == 7


def test_the_signal_that_ended_a_child_is_collected_as_its_negative():
    assert reap(child("import os; os.kill(os.getpid(), 9)")) == -9


def test_a_child_that_was_collected_already_counts_as_ended_well():
    pid = child("")
    os.waitpid(pid, 0)
    assert reap(pid) == 0


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-9, "was killed by SIGKILL"),
        (-11, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
    ],
)
def test_how_a_process_ended_is_said_in_words(status, text):
    assert describe(status) == text


def test_orphans_are_collected_and_our_own_children_are_left_for_their_pidfds():
    # In a process of its own: it collects whatever has ended.
    code = """
        import os, signal, time
        from sticky.master.signals import reap, reap_orphans

        def ended(pid):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        def spawn():
            pid = os.fork()
            if not pid:
                os._exit(5)
            ended(pid)
            return pid

        orphans = [spawn(), spawn()]
        reap_orphans({1})
        for pid in orphans:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue
            raise SystemExit("an orphan was left")
        ours = spawn()
        reap_orphans({ours})
        assert reap(ours) == 5
        reap_orphans(set())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
