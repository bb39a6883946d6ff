"""Lines for a reader that may have stopped reading: nobody ever waits, and nothing is lost in
silence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tty

import pytest

from sticky import outlet
from sticky.outlet import MOST, Outlet

LINE = b"x" * 99 + b"\n"


def refuse(fd):
    raise PermissionError(errno.EACCES, "it is another user's")


def unknown(*_):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.fixture(params=["pipe", "refused pipe", "old kernel", "socket", "packets", "terminal"])
def ends(request, monkeypatch):
    """What is read from, and what is written to: all that a standard error can be, but a file."""
    if request.param == "terminal":
        reader, writer = pty.openpty()
        tty.setraw(writer)
    elif request.param in ("socket", "packets"):
        kind = socket.SOCK_STREAM if request.param == "socket" else socket.SOCK_SEQPACKET
        pair = socket.socketpair(socket.AF_UNIX, kind)
        pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reader, writer = (end.detach() for end in pair)
    else:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16384)
        if request.param != "pipe":
            monkeypatch.setattr(outlet, "_open_again", refuse)
        if request.param == "old kernel":
            monkeypatch.setattr(outlet, "pwritev", unknown)
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


@pytest.fixture
def told():
    return []


@pytest.fixture
def out(ends, told):
    found = Outlet(ends[1], lambda number, why: told.append((number, why)))
    yield found
    found.close()


def read(fd):
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(fd, 65536):
            data += more
    return data


def read_all(out, fd):
    """Everything, for a reader who has begun to read again."""
    data = read(fd)
    while not out.flush():
        data += read(fd)
    return data + read(fd)


def test_a_line_is_there_at_once(out, ends):
    out.write(b"hello\n")
    out.write(b"and on\n")
    assert read(ends[0]) == b"hello\nand on\n"
    assert not outlet.pending()


def test_nobody_reads_and_nobody_waits(out, ends, told):
    number = 2 * MOST // 100
    for index in range(number):
        out.write(b"%099d\n" % index)
    assert os.get_blocking(ends[1])  # it is shared with others, and stays as it was
    assert outlet.pending()
    assert not told
    first = read_all(out, ends[0]).splitlines()
    assert first == [b"%099d" % index for index in range(len(first))]
    assert MOST // 100 <= len(first) < number
    assert told == [(number - len(first), "nobody read them")]
    assert not outlet.pending()
    out.write(b"again\n")
    assert read(ends[0]) == b"again\n"
    assert len(told) == 1


def test_what_is_kept_comes_before_what_is_written_next(out, ends, told):
    sent = [b"%099d\n" % index for index in range(1000)]
    for line in sent:
        out.write(line)
    got = b""
    while len(got) < 100 * 1000:
        got += read(ends[0])
        outlet.flush()
    assert got == b"".join(sent)
    assert not told


def test_lines_are_lost_until_what_was_kept_is_written(ends):
    told = []

    def on_lost(number, why):
        told.append(number)
        out.write(b"lost %d\n" % number)

    out = Outlet(ends[1], on_lost)
    for _ in range(MOST // 100 + 1000):
        out.write(LINE)
    read(ends[0])  # there is room for some, and not for all that is kept
    out.write(b"in between\n")
    before = read_all(out, ends[0])
    assert b"in between" not in before
    assert before.splitlines()[-1] == b"lost %d" % told[0]
    assert len(told) == 1
    out.close()


def test_threads_do_not_mix_their_lines(out, ends):
    done = threading.Event()
    got = []

    def reading():
        while not done.is_set():
            got.append(read(ends[0]))

    def writing(letter):
        for _ in range(500):
            out.write(letter * 99 + b"\n")

    threads = [threading.Thread(target=writing, args=(letter,)) for letter in (b"a", b"b", b"c")]
    reader = threading.Thread(target=reading)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    lines = (b"".join(got) + read_all(out, ends[0])).splitlines()
    assert sorted(lines) == sorted(letter * 99 for letter in (b"a", b"b", b"c") for _ in range(500))


def test_the_end_waits_for_a_reader_but_not_for_ever(out, ends):
    number = 1000
    for _ in range(number):
        out.write(LINE)
    got = []

    def reading():
        while sum(map(len, got)) < number * 100:
            got.append(read(ends[0]))

    reader = threading.Thread(target=reading)
    reader.start()
    outlet.finish(60)
    reader.join()
    assert b"".join(got) == LINE * number
    for _ in range(number):
        out.write(LINE)
    outlet.finish(0.01)  # nobody reads any more
    assert outlet.pending()


def test_an_exit_waits_for_a_reader():
    code = f"""
        import sys, types
        from sticky import outlet
        outlet.time = types.SimpleNamespace(monotonic=lambda: 0.0)  # so long a second lasts
        out = outlet.Outlet(1, print)
        for _ in range(2000):
            out.write({LINE!r})
        """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, timeout=60
    )
    assert ended.stdout == LINE * 2000


def test_a_reader_that_is_gone_is_no_error_and_nobody_to_wait_for(out, ends):
    os.close(ends[0])
    for _ in range(2 * MOST // 100):
        out.write(LINE)
    outlet.finish(3600)
    out.close()
    assert not outlet.pending()


@pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning")  # of eventlet, if it is here
def test_a_child_does_not_write_what_its_parent_has_kept(out, ends):
    for _ in range(500):
        out.write(LINE)
    assert outlet.pending()
    pid = os.fork()
    if not pid:
        os._exit(outlet.pending() or not out.flush())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read_all(out, ends[0]) == LINE * 500


@pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning")  # of eventlet, if it is here
def test_a_child_can_write_even_if_a_thread_of_its_parent_was_writing(out, ends):
    held, go = threading.Event(), threading.Event()

    def hold():
        with out._lock:
            held.set()
            go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    pid = os.fork()
    if not pid:
        out.write(b"the child\n")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go.set()
    holder.join()
    assert read(ends[0]) == b"the child\n"


def test_none_keeps_a_descriptor_open_that_is_its_own(ends):
    before = os.listdir("/proc/self/fd")
    Outlet(ends[1], print).close()
    dropped = Outlet(ends[1], print)
    dropped.write(b"x\n")
    del dropped
    assert os.listdir("/proc/self/fd") == before


def test_what_is_written_after_the_end_goes_nowhere(out, ends):
    out.close()
    out.write(b"late\n")
    out.close()
    assert read(ends[0]) == b""


# -- one kind each -----------------------------------------------------------------------------


def test_a_line_larger_than_all_that_is_kept_is_cut_off(told):
    reader, writer = os.pipe()
    out = Outlet(writer, lambda number, why: told.append((number, why)))
    out.write(b"y" * 3 * MOST + b"\n")
    out.write(b"next\n")
    os.set_blocking(reader, False)
    lines = read_all(out, reader).splitlines()
    assert set(lines[0]) == set(b"y.")
    assert MOST < len(lines[0]) < 2 * MOST
    assert lines[0].endswith(b"...")
    assert lines[1:] == []
    assert told == [(1, "nobody read them")]  # "next" found no room behind it
    for fd in (reader, writer):
        os.close(fd)
    out.close()


def test_a_line_that_is_too_long_for_a_packet_is_lost_alone(told):
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reader, writer:
        writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        out = Outlet(writer.fileno(), lambda number, why: told.append((number, why)))
        out.write(b"y" * 100_000 + b"\n")
        out.write(b"next\n")
        assert reader.recv(1 << 20) == b"next\n"
        assert told == [(1, os.strerror(errno.EMSGSIZE))]
        out.close()


def test_a_default_timeout_does_not_make_a_shared_socket_non_blocking():
    reader, writer = socket.socketpair()
    with reader, writer:
        socket.setdefaulttimeout(5)
        try:
            Outlet(writer.fileno(), print).write(b"hello\n")
            assert socket.getdefaulttimeout() == 5
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(writer.fileno())
        assert reader.recv(100) == b"hello\n"


@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["> file", ">> file"])
def test_a_file_that_others_write_to_as_well_is_not_written_over(flags, tmp_path):
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | flags)
    out = Outlet(fd, print)
    os.write(fd, b"one\n")
    out.write(b"two\n")
    os.write(fd, b"three\n")
    out.write(b"four\n")
    os.close(fd)
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\nfour\n"


def test_a_device_that_is_no_terminal_takes_everything():
    fd = os.open(os.devnull, os.O_WRONLY)
    out = Outlet(fd, print)
    for _ in range(2 * MOST // 100):
        out.write(LINE)
    assert not outlet.pending()
    out.close()
    os.close(fd)


def test_a_full_disk_is_told_when_there_is_room_again(tmp_path, told):
    fd = os.open("/dev/full", os.O_WRONLY | os.O_NONBLOCK)
    out = Outlet(fd, lambda number, why: told.append((number, why)), own=True)
    for _ in range(MOST // 100 + 50):
        out.write(LINE)
    assert not told
    began = time.monotonic()
    outlet.finish(3600)  # a disk is not waited for
    assert time.monotonic() - began < 1800
    out.replace(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))
    out.write(b"room again\n")
    assert told == [(50, os.strerror(errno.ENOSPC))]
    assert (tmp_path / "log").read_bytes() == LINE * (MOST // 100) + b"room again\n"
    out.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_descriptor_that_was_closed_is_no_error():
    fd = os.open(os.devnull, os.O_WRONLY)
    os.close(fd)
    out = Outlet(fd, print)
    out.write(b"to nobody\n")
    out.close()


def test_what_was_put_in_a_descriptors_place_is_found_when_it_is_opened_anew(tmp_path):
    reader, writer = os.pipe()
    out = Outlet(writer, print)
    out.write(b"one\n")
    before = len(os.listdir("/proc/self/fd"))
    outlet.reopen()
    out.write(b"two\n")
    assert len(os.listdir("/proc/self/fd")) == before
    other = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(other, writer)
    outlet.reopen()
    out.write(b"three\n")
    os.set_blocking(reader, False)
    assert os.read(reader, 100) == b"one\ntwo\n"
    assert os.read(reader, 100) == b""  # we are none of its writers any more
    assert (tmp_path / "log").read_text() == "three\n"
    out.close()
    for fd in (reader, writer, other):
        os.close(fd)
