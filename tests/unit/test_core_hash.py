"""Hash and pick: published vectors, an independent HalfSipHash, and what rendezvous promises."""

import ipaddress
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky import _pycore
from sticky.rules import MAX_SLOTS, SLOT_SALTS

from .core_kit import COMPILED, SEED, TWINS, ask

# Inputs of 0, 1, 2 .. bytes, each byte its own index; the key is 00 01 .. 07.
# HalfSipHash-2-4: the authors' reference implementation. 1-3: the Linux kernel's self-test.
HALF_SIP_24 = ["a9359f5b", "27475ab8", "fa62a603", "8afee704", "2a6e4689"]
HALF_SIP_13 = [0x5814C896, 0xE7E864CA, 0xBC4B0E30, 0x01539939, 0x7E059EA6, 0x88E3D89B, 0xA0080B65]


def half_siphash(key, data, c, d):
    """Straight from the paper, one operation at a time."""
    k0, k1 = struct.unpack("<II", key)
    v = [k0, k1, k0 ^ 0x6C796765, k1 ^ 0x74656462]

    def add(a, b):
        v[a] = (v[a] + v[b]) % 2**32

    def turn(a, bits):
        v[a] = (v[a] << bits | v[a] >> (32 - bits)) % 2**32

    def rounds(count):
        for _ in range(count):
            for a, b, bits, half in ((0, 1, 5, True), (2, 3, 8, False)):
                add(a, b)
                turn(b, bits)
                v[b] ^= v[a]
                if half:
                    turn(a, 16)
            for a, b, bits, half in ((0, 3, 7, False), (2, 1, 13, True)):
                add(a, b)
                turn(b, bits)
                v[b] ^= v[a]
                if half:
                    turn(a, 16)

    padded = data + bytes(3 - len(data) % 4) + bytes([len(data) % 256])
    for (word,) in struct.iter_unpack("<I", padded):
        v[3] ^= word
        rounds(c)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(d)
    return v[1] ^ v[3]


@pytest.fixture(params=TWINS)
def twin(request):
    return TWINS[request.param]


def test_the_independent_hash_gives_the_published_vectors():
    for size, expected in enumerate(HALF_SIP_24):
        found = half_siphash(SEED, bytes(range(size)), 2, 4)
        assert struct.pack("<I", found).hex() == expected
    for size, expected in enumerate(HALF_SIP_13):
        assert half_siphash(SEED, bytes(range(size)), 1, 3) == expected


def test_siphash_gives_the_published_vectors(twin):
    for size, expected in enumerate(HALF_SIP_13):
        assert twin.siphash(SEED, bytes(range(size))) == expected


@given(key=st.binary(min_size=8, max_size=8), data=st.binary(max_size=300))
def test_both_twins_hash_as_the_independent_one(key, data):
    expected = half_siphash(key, data, 1, 3)
    assert COMPILED.siphash(key, data) == expected
    assert _pycore.siphash(key, data) == expected


def test_siphash_takes_a_key_of_eight_bytes(twin):
    for key in (b"", b"1234567", b"123456789"):
        with pytest.raises(ValueError, match="key8 must be exactly 8 bytes"):
            twin.siphash(key, b"")
    for arguments in (("12345678", b""), (b"12345678", "x"), (None, b"")):
        with pytest.raises(TypeError):
            twin.siphash(*arguments)


@pytest.mark.parametrize("text", ["203.0.113.7", "0.0.0.0", "2001:db8:1:2:3:4:5:6", "fe80::1"])
def test_an_address_is_hashed_as_its_big_endian_words(twin, text):
    packed = ipaddress.ip_address(text).packed
    # The hash reads bytes as little-endian words: the same bytes, turned around four by four.
    turned = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
    expected = twin.pick(half_siphash(SEED, turned, 1, 3), 1024)
    assert ask(twin, b"", text, proxy=False, ipv6_prefix=128, n=1024)[0] == expected


def test_the_seed_moves_the_clients(twin):
    slots = {
        ask(twin, b"", "203.0.113.7", proxy=False, n=64, seed=bytes([i] * 8))[0] for i in range(40)
    }
    assert len(slots) > 20


def test_no_two_slots_have_the_same_salt():
    assert len(set(SLOT_SALTS)) == MAX_SLOTS


@pytest.mark.parametrize("arguments", [(0, 0), (0, 1025), (0, -1), (-1, 2), (1 << 32, 2)])
def test_pick_refuses_what_is_out_of_range(twin, arguments):
    with pytest.raises(ValueError, match="must be"):
        twin.pick(*arguments)


@given(hash32=st.integers(0, 2**32 - 1), n=st.integers(1, 1024))
def test_both_twins_pick_the_same_slot(hash32, n):
    slot = COMPILED.pick(hash32, n)
    assert 0 <= slot < n
    assert slot == _pycore.pick(hash32, n)


@given(hash32=st.integers(0, 2**32 - 1), n=st.integers(1, 1023))
def test_one_slot_more_moves_keys_only_to_the_new_slot(hash32, n):
    assert COMPILED.pick(hash32, n + 1) in (COMPILED.pick(hash32, n), n)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 63])
def test_one_slot_more_moves_one_in_n_plus_one(n):
    draw = random.Random(n)
    count = 40_000
    hashes = [draw.getrandbits(32) for _ in range(count)]
    moved = sum(COMPILED.pick(h, n + 1) != COMPILED.pick(h, n) for h in hashes)
    expected = count / (n + 1)
    assert abs(moved - expected) < 5 * expected**0.5


@pytest.mark.parametrize("n", [2, 3, 5, 8, 64])
def test_addresses_that_follow_each_other_spread_evenly(n):
    counts = [0] * n
    total = 0
    for network in range(64):
        for host in range(256):
            packed = struct.pack("<I", 0x0A000000 | network << 8 | host)
            counts[COMPILED.pick(COMPILED.siphash(SEED, packed), n)] += 1
            total += 1
    expected = total / n
    chi_squared = sum((count - expected) ** 2 / expected for count in counts)
    # Its mean is n-1 and its variance 2(n-1): six deviations are no accident.
    assert chi_squared < n - 1 + 6 * (2 * (n - 1)) ** 0.5
