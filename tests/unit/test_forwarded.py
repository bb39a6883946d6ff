"""Which peers are believed, and what they say of the client."""

from __future__ import annotations

import random
import time

import pytest
from uvicorn.middleware.proxy_headers import _TrustedHosts

from sticky.forwarded import Trusted, client_of, scheme_of

DEFAULT = "127.0.0.1,::1,unix"

PEERS = {
    DEFAULT: (
        ["127.0.0.1", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", ""],
        ["127.0.0.2", "::2", "10.0.0.1", "unix", "*", "x", "127.0.0.1:80"],
    ),
    "": ([], ["127.0.0.1", "", "::1"]),
    " , ": ([], ["127.0.0.1", ""]),
    "*": (["127.0.0.1", "", "2001:db8::1", "x"], []),
    "127.0.0.1, *": (["203.0.113.7", ""], []),
    "unix": ([""], ["127.0.0.1", "::1"]),
    " 10.0.0.0/8 , 192.0.2.1,2001:db8::/32": (
        [
            "10.0.0.0",
            "10.255.255.255",
            "192.0.2.1",
            "2001:db8::1",
            "2001:db8:ffff::",
            "::ffff:10.1.1.1",
        ],
        ["11.0.0.0", "9.255.255.255", "192.0.2.2", "2001:db9::", "", "::1", "::a00:1"],
    ),
    "0.0.0.0/0": (["1.2.3.4", "255.255.255.255", "::ffff:1.2.3.4"], ["::1", ""]),
    "fe80::/10": (["fe80::1", "fe80::1%eth0"], ["fec0::1", "fe7f::1%eth0"]),
}


@pytest.mark.parametrize("text", PEERS)
def test_a_peer_is_believed_if_it_is_named_or_in_a_named_network(text):
    trusted = Trusted(text)
    believed, others = PEERS[text]
    for _ in range(2):  # what is remembered is what was found
        assert [host for host in believed if host not in trusted] == []
        assert [host for host in others if host in trusted] == []
    assert bool(trusted) == bool(believed)


@pytest.mark.parametrize("text", ["x", "10.0.0.1/8", "127.0.0.1;::1", "1.2.3", "10.0.0.0/33", "**"])
def test_what_is_no_address_is_an_error(text):
    with pytest.raises(ValueError, match=r"\S"):
        Trusted(text)


def test_what_is_remembered_of_peers_is_bounded():
    trusted = Trusted("10.0.0.0/8,unix")
    for number in range(20_000):
        assert f"10.0.{number >> 8}.{number & 255}" in trusted
        assert "" in trusted
        assert client_of(f"{number >> 8}.{number & 255}.0.1", trusted)
        assert client_of("1" * 1000 + str(number), trusted) == ""
    assert len(trusted._known) < 10_000
    assert len(trusted._clients) < 10_000
    assert max(map(len, trusted._clients)) < 100


CLIENTS = [
    ("203.0.113.7", "203.0.113.7"),
    (" 203.0.113.7\t", "203.0.113.7"),
    ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
    ("198.51.100.1, 203.0.113.7, 10.0.0.1, 10.0.0.2", "203.0.113.7"),
    ("198.51.100.1,,203.0.113.7, ,10.0.0.1,", "203.0.113.7"),
    ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
    ("203.0.113.7:4711, 10.0.0.1:80", "203.0.113.7"),
    ("[2001:db8::7]:4711", "2001:db8::7"),
    ("[2001:db8::7]", "2001:db8::7"),
    ("2001:db8::7, 10.0.0.1", "2001:db8::7"),
    ("fe80::7%eth0", "fe80::7"),
    ('"[2001:db8::7]:4711"', "2001:db8::7"),
    ("unknown", ""),
    ("203.0.113.7, unknown", ""),
    ("203.0.113.7, unknown, 10.0.0.1", "10.0.0.1"),
    ("203.0.113.7\x85", ""),
    ("203.0.113.7\xa0, 10.0.0.1", "10.0.0.1"),
    ("203.0.113.7 203.0.113.8", ""),
    ("[", ""),
    ("]:[", ""),
    (":", ""),
    ("", ""),
    (" , ", ""),
    ("1" * 70_000, ""),
    ("\x00", ""),
]


@pytest.mark.parametrize(("value", "client"), CLIENTS, ids=lambda text: repr(text[:30]))
def test_the_client_is_the_first_from_the_right_that_is_no_trusted_proxy(value, client):
    assert client_of(value, Trusted("10.0.0.0/8")) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("203.0.113.7, 10.0.0.1", "203.0.113.7"),
        (", 203.0.113.7:80,", "203.0.113.7"),
        ("unknown, 203.0.113.7", ""),
        ("", ""),
    ],
)
def test_where_everybody_is_trusted_it_is_the_leftmost(value, client):
    assert client_of(value, Trusted("*")) == client


def test_uvicorn_finds_the_same_client():
    rng = random.Random(1)
    elements = [
        "10.0.0.1",
        "10.9.9.9",
        "203.0.113.7",
        "2001:db8::7",
        "[2001:db8::8]:80",
        "192.0.2.1:5",
    ]
    for text in ("10.0.0.0/8", "10.0.0.1,2001:db8::/32", "*", "192.0.2.1"):
        foil, trusted = _TrustedHosts(text), Trusted(text)
        for _ in range(300):
            value = ", ".join(rng.choices(elements, k=rng.randrange(1, 6)))
            assert client_of(value, trusted) == foil.get_trusted_client_address(value)[0], value


def test_a_head_full_of_addresses_takes_no_time():
    trusted = Trusted("0.0.0.0/0")
    value = ",".join(f"{n >> 8 & 255}.{n & 255}.1.1" for n in range(5000))
    began = time.process_time()
    for _ in range(100):
        client_of(value, trusted)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("https", "https"),
        (" HTTPS ", "https"),
        ("http", "http"),
        ("wss", "https"),
        ("ws", "http"),
        ("https, http", "https"),
        ("http,https", "http"),
        ("", ""),
        ("ftp", ""),
        ("https\r\n", ""),
        ("javascript", ""),
    ],
)
def test_the_scheme_is_one_of_two(value, scheme):
    assert scheme_of(value) == scheme
