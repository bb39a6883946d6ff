"""Messages over real SEQPACKET pairs: what goes in comes out, or nothing is left of it."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import struct

import pytest

from sticky import channel
from sticky.errors import ChannelError

KINDS = {
    name: value
    for name, value in vars(channel).items()
    if name.isupper() and type(value) is int and name[0] != "_" and "SIZE" not in name
    if name not in ("VERSION", "MAX_INLINE")
}
SINCE = 0xFFFFFFFE
CONNECTIONS = (channel.CONNECTION, channel.HAND_BACK, channel.REST)
ADDRESSES = {
    "IPv4": ("192.0.2.7", 65535),
    "IPv4 lowest": ("0.0.0.0", 0),
    "IPv6": ("2001:db8::1", 443, 0, 0),
    "IPv6 with a scope": ("fe80::1", 80, 0, 3),
    "IPv4 in IPv6": ("::ffff:192.0.2.7", 80, 0, 0),
    "unix": "",
}


@pytest.fixture
def ends():
    pair = channel.pair()
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def inbox():
    pair = channel.inbox()
    yield pair
    for end in pair:
        end.close()


@pytest.fixture(params=[False, True], ids=["control", "inbox"])
def reader(request):
    return channel.Reader(connections=request.param)


@pytest.fixture
def pipe():
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def open_fds():
    return len(os.listdir("/proc/self/fd"))


def close(message):
    for fd in message.fds:
        os.close(fd)


def test_both_ends_are_nonblocking_and_not_inherited(ends):
    for end in ends:
        assert not end.getblocking()
        assert not os.get_inheritable(end.fileno())
        assert end.type == socket.SOCK_SEQPACKET


@pytest.mark.parametrize("kind", sorted(KINDS.values()))
def test_every_kind_makes_the_round_trip(kind, ends, reader, pipe):
    fds = pipe[:1] if kind in CONNECTIONS else ()
    channel.send(ends[0], channel.pack_header(kind, moves=3), b"payload", *fds)
    message = reader.receive(ends[1])
    assert (message.kind, message.payload, message.moves) == (kind, b"payload", 3)
    assert len(message.fds) == len(fds)
    close(message)


def test_the_kinds_differ():
    assert len(set(KINDS.values())) == len(KINDS) > 5


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_every_address_makes_the_round_trip(address, ends, reader, pipe):
    channel.send_connection(ends[0], channel.CONNECTION, pipe[0], address)
    channel.hand_over(ends[0], pipe[0], address, 7)
    for since in (0, 7):
        message = reader.receive(ends[1])
        close(message)
        assert message.since == since
        assert message.address == address
        assert message.kind == channel.CONNECTION
        assert (message.payload, message.moves, message.unheld) == (b"", 0, False)


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
@pytest.mark.parametrize("kind", CONNECTIONS)
@pytest.mark.parametrize("prefix", [b"", b"GET / HTTP/1.1\r\n"])
@pytest.mark.parametrize("unheld", [False, True])
def test_what_is_said_of_a_connection_arrives_with_it(
    unheld, prefix, kind, address, ends, reader, pipe
):
    told = {"moves": 255, "unheld": unheld, "since": SINCE}
    channel.send_connection(ends[0], kind, pipe[0], address, prefix, **told)
    message = reader.receive(ends[1])
    close(message)
    assert (message.kind, message.address, message.payload) == (kind, address, prefix)
    assert (message.moves, message.unheld, message.since) == (255, unheld, SINCE)


def test_a_zone_in_an_address_does_no_harm(ends, reader, pipe):
    channel.hand_over(ends[0], pipe[0], ("fe80::1%lo", 80, 0, 1), 0)
    message = reader.receive(ends[1])
    close(message)
    assert message.address == ("fe80::1", 80, 0, 1)


def test_messages_keep_their_boundaries_and_order(ends, reader):
    for number in range(20):
        channel.send(ends[0], channel.pack_header(channel.NOTICE), b"x" * number)
    assert [len(reader.receive(ends[1]).payload) for _ in range(20)] == list(range(20))


def test_a_received_descriptor_is_the_same_file_and_is_not_inherited(ends, reader, pipe):
    channel.send_connection(ends[0], channel.CONNECTION, pipe[1], ("192.0.2.7", 1))
    message = reader.receive(ends[1])
    assert not os.get_inheritable(message.fds[0])
    os.write(message.fds[0], b"hello")
    assert os.read(pipe[0], 10) == b"hello"
    close(message)


@pytest.mark.parametrize("size", [1, 1000, 2048, 2049, 4097, 60_000, 60_001, 1_000_000])
@pytest.mark.parametrize("kind", ["control", "inbox"])
def test_a_prefix_of_any_size_arrives_whole_through_either_pair(kind, size, reader, pipe):
    sender, receiver = channel.inbox() if kind == "inbox" else channel.pair()
    with sender, receiver:
        before = open_fds()
        prefix = os.urandom(size)
        channel.send_connection(
            sender, channel.HAND_BACK, pipe[0], ("::1", 5, 0, 0), prefix, moves=255
        )
        assert open_fds() == before
        message = reader.receive(receiver)
        assert message.payload == prefix
        assert (message.moves, len(message.fds)) == (255, 1)
        close(message)
        assert open_fds() == before


def test_nothing_to_receive_is_not_the_end_and_the_end_is_none(ends, reader):
    with pytest.raises(BlockingIOError):
        reader.receive(ends[1])
    channel.send(ends[0], channel.pack_header(channel.END))
    ends[0].close()
    assert reader.receive(ends[1]).kind == channel.END
    assert reader.receive(ends[1]) is None


def test_sending_to_a_closed_end_says_so(ends):
    ends[1].close()
    with pytest.raises(BrokenPipeError):
        channel.send(ends[0], channel.pack_header(channel.CLOSING))


def test_an_inbox_holds_about_twenty_connections_and_then_has_no_room(inbox, reader, pipe):
    held = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            channel.hand_over(inbox[0], pipe[0], ("192.0.2.7", 1), 0)
            held += 1
    assert 10 <= held <= 40
    close(reader.receive(inbox[1]))
    channel.hand_over(inbox[0], pipe[0], ("192.0.2.7", 1), 0)  # one read, room for one
    with pytest.raises(BlockingIOError):
        channel.hand_over(inbox[0], pipe[0], ("192.0.2.7", 1), 0)


def test_what_lies_in_an_inbox_survives_the_reader_that_read_half_of_it(inbox, pipe):
    for port in range(4):
        channel.hand_over(inbox[0], pipe[0], ("192.0.2.7", port), 0)
    ports = []
    for reader in (channel.Reader(), channel.Reader()):
        for _ in range(2):
            message = reader.receive(inbox[1])
            ports.append(message.address[1])
            close(message)
    assert ports == [0, 1, 2, 3]


@pytest.mark.parametrize("free", [0, 1])
def test_without_a_free_descriptor_the_message_is_an_error_and_nothing_leaks(
    free, ends, reader, pipe
):
    # Two descriptors: the connection's, and that of the memfd with its prefix.
    channel.send_connection(ends[0], channel.HAND_BACK, pipe[0], "", b"x" * 100_000)
    channel.send(ends[0], channel.pack_header(channel.CLOSING))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    lowest = next(number for number in range(10_000) if number not in used)
    filler = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
        while True:
            try:
                filler.append(os.dup(pipe[0]))
            except OSError:
                break
        for _ in range(free):
            os.close(filler.pop())
        with pytest.raises(ChannelError, match="no file descriptor free"):
            reader.receive(ends[1])
        assert reader.receive(ends[1]).kind == channel.CLOSING
        for _ in range(free):
            filler.append(os.dup(pipe[0]))  # as many are free as before
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(pipe[0])
    finally:
        for fd in filler:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    again = os.dup(pipe[0])
    os.close(again)
    assert again <= lowest + 1


def raw(kind=channel.CLOSING, version=channel.VERSION, size=None, fds=()):
    header = bytearray(channel.pack_header(kind))
    header[0] = version
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return bytes(header[:size]), rights


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"version": channel.VERSION + 1}, "version"),
        ({"version": 0}, "version"),
        ({"size": 31}, "31 bytes"),
        ({"size": 1}, "1 bytes"),
        ({"kind": channel.CONNECTION}, "0 descriptors"),
        ({"kind": channel.CONNECTION, "count": 2}, "2 descriptors"),
        ({"kind": channel.REST}, "0 descriptors"),
        ({"kind": channel.CONNECTION, "version": 9, "count": 1}, "version"),
        ({"kind": channel.CLOSING, "version": 9, "count": 2}, "version"),
    ],
)
def test_a_message_that_cannot_be_read_is_an_error_and_leaves_nothing_open(
    what, says, ends, reader, pipe
):
    fds = [pipe[0]] * what.get("count", 0)
    data, rights = raw(**{name: what[name] for name in what if name != "count"}, fds=fds)
    before = open_fds()
    ends[0].sendmsg([data], rights)
    with pytest.raises(ChannelError, match=says):
        reader.receive(ends[1])
    assert open_fds() == before
    channel.send(ends[0], channel.pack_header(channel.CLOSING))
    assert reader.receive(ends[1]).kind == channel.CLOSING


def test_a_packet_larger_than_the_buffer_is_an_error(ends, reader):
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if ends[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 300_000:
        pytest.skip("the system does not allow packets that large")
    channel.send(ends[0], channel.pack_header(channel.NOTICE), b"x" * 270_000)
    with pytest.raises(ChannelError):
        reader.receive(ends[1])


def test_the_header_is_what_the_documentation_says():
    header = channel.pack_header(channel.CONNECTION, ("1.2.3.4", 0x1234), moves=2, since=99)
    assert channel.HEADER_SIZE == len(header) == 32
    assert struct.unpack("!BBBBIHH16sI", header) == (
        channel.VERSION,
        channel.CONNECTION,
        2,
        4,
        0,
        0x1234,
        0,
        bytes([1, 2, 3, 4]) + bytes(12),
        99,
    )


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
@pytest.mark.parametrize("prefix", [b"", b"GET / HTTP/1.1\r\n", b"x" * 5000])
def test_since_when_the_oldest_waits_can_be_seen_without_taking_it(prefix, address, inbox, pipe):
    assert channel.oldest(inbox[1]) is None
    for since in (5, 4):
        how = {"since": since}
        channel.send_connection(inbox[0], channel.CONNECTION, pipe[0], address, prefix, **how)
    before = open_fds()
    assert [channel.oldest(inbox[1]) for _ in range(3)] == [5, 5, 5]
    assert open_fds() == before
    for since in (5, 4):
        message = channel.Reader(connections=True).receive(inbox[1])
        assert (message.since, message.payload) == (since, prefix)
        close(message)
    assert channel.oldest(inbox[1]) is None
    inbox[0].close()
    assert channel.oldest(inbox[1]) is None


@pytest.mark.parametrize("now", [0.0, 1000.25, 4_294_967.0, 4_294_967.296, 1e7])
@pytest.mark.parametrize("passed", [0.0, 0.004, 9.5, 86_400.0])
def test_the_age_of_a_stamp_is_the_time_that_has_passed(now, passed):
    assert channel.age(channel.stamp(now), now + passed) == pytest.approx(passed, abs=0.002)
