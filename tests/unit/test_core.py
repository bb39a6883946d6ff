"""The routing contract, rule by rule, over both twins."""

import ipaddress
import subprocess
import sys

import pytest

from sticky.rules import MALFORMED, MISSING, NEED_MORE

from .core_kit import PEER, ROOT, SEED, TWINS, ask, request, router


@pytest.fixture(params=TWINS)
def twin(request):
    return TWINS[request.param]


def key(twin, head, **rules):
    """The key of a head that has one."""
    slot, found, why = ask(twin, head, **rules)
    assert 0 <= slot < 7, why
    return found


def refused(twin, head, **rules):
    """The verdict of a head that has none, and why."""
    verdict, found, why = ask(twin, head, **rules)
    assert found == b""
    return verdict, why


def xff(*values):
    return request(b"Host: a", *(b"X-Forwarded-For: " + value for value in values), b"Accept: */*")


# --- 1. where the key comes from -----------------------------------------------------------------


def test_without_proxy_the_peer_decides_and_the_bytes_are_ignored(twin):
    alone = ask(twin, b"", "203.0.113.7", proxy=False)
    assert alone == ask(twin, xff(b"198.51.100.1"), "203.0.113.7", proxy=False)
    assert alone == ask(twin, b"\0\r\r", "203.0.113.7", proxy=False)
    assert alone[1:] == (b"203.0.113.7", "peer address")


def test_with_proxy_the_header_decides_and_the_peer_does_not(twin):
    head = xff(b"203.0.113.7")
    assert ask(twin, head, "10.0.0.1") == ask(twin, head, "10.0.0.2")
    assert ask(twin, head)[1:] == (b"203.0.113.7", "leftmost address of 'x-forwarded-for'")


def test_a_client_has_one_key_as_a_peer_and_in_the_header(twin):
    for text in ("203.0.113.7", "2001:db8:1:2:3::4", "fe80::1%eth0", "::ffff:203.0.113.7"):
        as_peer = ask(twin, b"", text, proxy=False)
        in_header = ask(twin, xff(text.encode()))
        assert as_peer[:2] == in_header[:2]


def test_a_unix_socket_has_the_empty_bytes_as_its_key(twin):
    slot, found, why = ask(twin, b"", "", proxy=False)
    assert (found, why) == (b"", "peer address")
    assert slot == twin.pick(twin.siphash(SEED, b""), 7)


def test_a_peer_that_is_no_address_counts_with_its_bytes(twin):
    slot, found, _ = ask(twin, b"", "/run/ä.sock", proxy=False)
    assert found == "/run/ä.sock".encode()
    assert slot == twin.pick(twin.siphash(SEED, found), 7)


# --- 2. what the header is -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"X-Forwarded-For", b"x-forwarded-for", b"X-FORWARDED-FOR"])
def test_names_compare_without_regard_to_case(twin, name):
    assert key(twin, request(name + b": 203.0.113.7")) == b"203.0.113.7"
    assert key(twin, request(b"x-forwarded-for: 203.0.113.7"), header=name) == b"203.0.113.7"


def test_only_letters_have_a_case(twin):
    # One bit apart as well, but other characters.
    for name, near in ((b"x^a", b"x~a"), (b"@".replace(b"@", b"`"), b"@"), (b"x-a", b"x\ra")):
        head = request(near + b": 203.0.113.7")
        assert ask(twin, head, header=name)[0] in (MISSING, MALFORMED)


@pytest.mark.parametrize(
    "line",
    [
        b"X-Forwarded-Fo: 1.2.3.4",
        b"X-Forwarded-Form: 1.2.3.4",
        b"X-Forwarded-For-Real: 1.2.3.4",
        b"XX-Forwarded-For: 1.2.3.4",
        b"Referer: X-Forwarded-For: 1.2.3.4",
        b"Referer:\tX-Forwarded-For: 1.2.3.4",
    ],
)
def test_what_only_looks_like_the_header_is_not_it(twin, line):
    head = request(b"Host: a", line)
    assert refused(twin, head) == (MISSING, "'x-forwarded-for' is missing")


def test_the_request_line_is_never_the_header(twin):
    for line in (
        b"X-Forwarded-For: 1.2.3.4",
        b"GET /?X-Forwarded-For: 1.2.3.4 HTTP/1.1",
        b"\r\n\r\nX-Forwarded-For: 1.2.3.4",
    ):
        assert refused(twin, line + b"\r\nHost: a\r\n\r\n")[0] == MISSING


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n\r\n", b"\r\n" * 40])
def test_empty_lines_before_the_request_line_are_skipped(twin, empty):
    assert key(twin, empty + xff(b"203.0.113.7")) == b"203.0.113.7"
    assert refused(twin, empty)[0] == NEED_MORE
    assert refused(twin, empty + b"\r")[0] == NEED_MORE


@pytest.mark.parametrize("empty", [b"\n", b"\r\n\n", b"\n\r\n"])
def test_an_empty_line_is_crlf_and_nothing_else(twin, empty):
    why = "LF without CR in the head"
    assert refused(twin, empty + xff(b"203.0.113.7")) == (MALFORMED, why)
    assert refused(twin, empty) == (MALFORMED, why)


def test_the_body_is_never_looked_at(twin):
    head = request(b"Host: a")
    for body in (b"\nX-Forwarded-For: 1.2.3.4\r\n\r\n", b"\0", b"\r\r", b"x" * 500):
        assert refused(twin, head + body)[0] == MISSING
        assert ask(twin, xff(b"1.2.3.4") + body) == ask(twin, xff(b"1.2.3.4"))


def test_a_bare_lf_anywhere_in_the_head_is_malformed(twin):
    head = xff(b"203.0.113.7")
    for at in range(len(head) - 1):
        dirty = head[:at] + b"\n" + head[at + (head[at : at + 1] == b"\r") :]
        if head[at - 1 : at] == b"\r" and at:
            continue  # CR, LF, LF: the LF before this one is the end of a line
        assert refused(twin, dirty) == (MALFORMED, "LF without CR in the head")
        assert refused(twin, dirty[: at + 1])[0] == MALFORMED
        assert refused(twin, dirty[:at])[0] == NEED_MORE
    for end in (b"\n\n", b"\r\n\n", b"\n\r\n"):
        assert refused(twin, head[:-4] + end) == (MALFORMED, "LF without CR in the head")


def test_white_space_around_the_value_is_dropped(twin):
    for value in (b"203.0.113.7", b" \t 203.0.113.7 \t ", b"203.0.113.7 "):
        assert key(twin, request(b"X-Forwarded-For:" + value)) == b"203.0.113.7"


@pytest.mark.parametrize("space", [b" ", b"\t", b" \t "])
@pytest.mark.parametrize("line", [b"A: b", b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-For:"])
def test_a_folded_line_anywhere_is_malformed(twin, line, space):
    for rest in (b"10.0.0.1", b"X-Forwarded-For: 1.2.3.4", b"", b": x"):
        head = request(b"X-Forwarded-For: 203.0.113.7", line, space + rest)
        assert refused(twin, head) == (MALFORMED, "a line of the head is folded")
        assert refused(twin, head[: head.index(b"\r\n" + space) + 3])[0] == MALFORMED
        assert refused(twin, head[: head.index(b"\r\n" + space) + 2])[0] == NEED_MORE


@pytest.mark.parametrize("space", [b" ", b"\t", b"  \t"])
def test_white_space_before_the_colon_is_malformed(twin, space):
    head = request(b"X-Forwarded-For" + space + b": 203.0.113.7")
    why = "white space before the colon of 'x-forwarded-for'"
    assert refused(twin, head) == (MALFORMED, why)
    assert refused(twin, request(b"Host : a", b"X-Forwarded-For: unknown"))[0] == MISSING


def test_the_name_without_a_colon_is_malformed(twin):
    for rest in (b"", b" ", b"\t\r\nA: b"):
        head = request(b"X-Forwarded-For" + rest)
        assert refused(twin, head) == (MALFORMED, "no colon after 'x-forwarded-for'")
    assert refused(twin, request(b"X-Forwarded-For 203.0.113.7"))[0] == MISSING


def test_nul_anywhere_in_the_head_is_malformed(twin):
    head = xff(b"203.0.113.7")
    for at in range(len(head) - 1):
        dirty = head[:at] + b"\0" + head[at + 1 :]
        assert refused(twin, dirty)[0] == MALFORMED
        assert refused(twin, dirty[: at + 1])[0] == MALFORMED


def test_a_bare_cr_anywhere_in_the_head_is_malformed(twin):
    head = xff(b"203.0.113.7")
    for at in range(len(head) - 1):
        if head[at : at + 1] not in b"\r\n":
            dirty = head[:at] + b"\r" + head[at:]
            assert refused(twin, dirty) == (MALFORMED, "bare CR in the head")
            assert refused(twin, dirty[: at + 2])[0] == MALFORMED
            assert refused(twin, dirty[: at + 1])[0] == NEED_MORE


def test_a_continuation_line_of_the_request_line_is_malformed(twin):
    for space in (b" ", b"\t"):
        head = request(space + b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-For: 203.0.113.7")
        assert refused(twin, head) == (MALFORMED, "a line of the head is folded")


def test_what_is_wrong_first_in_the_bytes_is_the_reason(twin):
    assert refused(twin, b"GET /\0 HTTP/1.1\r\n fold\r\rX")[1] == "NUL in the head"
    assert refused(twin, b"GET / HTTP/1.1\r\n fold\r\r\0")[1] == "a line of the head is folded"
    assert refused(twin, b"GET / HTTP/1.1\n fold\r\r\0")[1] == "LF without CR in the head"
    assert refused(twin, b"GET / HTTP/1.1\r\nA\0\nB\r\r")[1] == "NUL in the head"
    assert refused(twin, request(b"A: \r\0", b"X-Forwarded-For :"))[1] == "bare CR in the head"
    name = b"X-Forwarded-For"
    assert refused(twin, request(name + b":\n"))[1] == "LF without CR in the head"
    assert refused(twin, request(name + b" \n"))[1] == "LF without CR in the head"
    assert refused(twin, request(name + b" \r:"))[1] == "bare CR in the head"


def test_malformed_is_malformed_whatever_is_ignored(twin):
    head = request(b"X-Forwarded-For : 203.0.113.7")
    assert refused(twin, head, ignore_missing_header=True)[0] == MALFORMED


# --- an incomplete head --------------------------------------------------------------------------


def test_a_head_without_its_end_needs_more(twin):
    head = xff(b"203.0.113.7")
    for at in range(len(head)):
        assert refused(twin, head[:at]) == (NEED_MORE, "the head is not complete")
        assert refused(twin, head[:at], ignore_missing_header=True)[0] == NEED_MORE


def test_bytes_beyond_the_length_do_not_count(twin):
    head = xff(b"203.0.113.7")
    asked = router(twin)
    for at in range(len(head)):
        assert asked.route(head, at, PEER) == NEED_MORE
    assert asked.route(head + b"\0", len(head), PEER) == asked.route(head, len(head), PEER)


# --- 3. the list ---------------------------------------------------------------------------------


def test_the_leftmost_valid_address_is_the_key(twin):
    assert key(twin, xff(b"203.0.113.7, 198.51.100.1, 10.0.0.1")) == b"203.0.113.7"
    assert key(twin, xff(b"unknown, _hidden, 1.2.3, ,203.0.113.7,10.0.0.1")) == b"203.0.113.7"


def test_several_lines_are_one_list_in_order(twin):
    assert key(twin, xff(b"unknown", b"garbage", b"203.0.113.7", b"10.0.0.1")) == b"203.0.113.7"
    assert key(twin, xff(b"203.0.113.7", b"10.0.0.1"), hops=1) == b"10.0.0.1"
    assert key(twin, xff(b"203.0.113.7", b"10.0.0.1"), hops=2) == b"203.0.113.7"


def test_hops_counts_every_element_that_is_not_empty_from_the_right(twin):
    head = xff(b"203.0.113.7, unknown,, ", b"10.0.0.2 , ,10.0.0.1,")
    assert ask(twin, head, hops=2)[1:] == (
        b"10.0.0.2",
        "element 2 from the right of 'x-forwarded-for'",
    )
    assert key(twin, head, hops=1) == b"10.0.0.1"
    assert key(twin, head, hops=4) == b"203.0.113.7"
    why = "element 3 from the right of 'x-forwarded-for' is no address"
    assert refused(twin, head, hops=3) == (MISSING, why)
    why = "fewer than 5 elements in 'x-forwarded-for'"
    assert refused(twin, head, hops=5) == (MISSING, why)


def test_a_comma_in_quotes_does_not_divide(twin):
    assert key(twin, xff(b'"1.2.3.4, 5.6.7.8", 203.0.113.7')) == b"203.0.113.7"
    assert key(twin, xff(b'203.0.113.7, "a, b"'), hops=2) == b"203.0.113.7"
    assert key(twin, xff(b'"a\\", b", 203.0.113.7')) == b"203.0.113.7"


def test_a_quote_that_is_never_closed_swallows_nothing(twin):
    for value in (b'", 203.0.113.7', b'for="x, 203.0.113.7', b'"a" "\\", 203.0.113.7, \\'):
        assert key(twin, xff(value)) == b"203.0.113.7"
    assert key(twin, xff(b'"', b"203.0.113.7"), hops=1) == b"203.0.113.7"
    assert key(twin, xff(b'", 203.0.113.7'), hops=1) == b"203.0.113.7"


def test_thousands_of_lines_and_elements_are_one_list(twin):
    lines = [b"X-Forwarded-For: garbage, unknown"] * 3000
    head = request(*lines, b"X-Forwarded-For: 203.0.113.7")
    assert key(twin, head) == b"203.0.113.7"
    assert key(twin, head, hops=1) == b"203.0.113.7"
    assert refused(twin, head, hops=6001)[1].endswith("is no address")
    assert refused(twin, head, hops=6002)[1].startswith("fewer than")
    assert key(twin, xff(b"garbage," * 8000 + b"203.0.113.7")) == b"203.0.113.7"


def test_hostile_values_take_time_in_proportion_to_their_length(twin):
    # A quadratic scan of any of these would take minutes.
    size = 65_000
    for unit in (
        b'"',
        b'\\"',
        b'"\\',
        b" ",
        b"\t ",
        b",",
        b'",',
        b';"',
        b"::",
    ):
        value = unit * (size // len(unit))
        for header in (b"x-forwarded-for", b"forwarded"):
            head = request(header + b": x" + value)
            assert ask(twin, head, header=header, hops=1)[0] >= MALFORMED
            assert ask(twin, head, header=header)[0] >= MALFORMED
    for line in (b"X-Forwarded-For:", b"X-Forwarded-For: a", b"X", b"\n", b"A:\r\n b", b"x\r"):
        assert ask(twin, request(b"A: b", *[line] * (size // len(line))))[0] >= MALFORMED


# --- 4. what an address is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"203.0.113.7",
        b"203.0.113.7:80",
        b"203.0.113.7:65535",
        b'"203.0.113.7"',
        b'"203.0.113.7:80"',
        b'"\\203.0.113.7"',
        b"::ffff:203.0.113.7",
        b"::FFFF:cb00:7107",
        b"[::ffff:203.0.113.7]:80",
        b"0:0:0:0:0:ffff:203.0.113.7",
        b"64:ff9b::203.0.113.7",
        b"64:FF9B:0::cb00:7107",
        b"::ffff:203.0.113.7%eth0",
    ],
)
def test_forms_of_one_ipv4_address(twin, text):
    assert key(twin, xff(text)) == b"203.0.113.7"


@pytest.mark.parametrize(
    "text",
    ["64:ff9b:1::102:304", "64:ff9b::1:102:304", "::1:ffff:102:304", "::fffe:102:304", "::102:304"],
)
def test_only_two_prefixes_of_96_bits_mean_ipv4(twin, text):
    assert key(twin, xff(text.encode()), ipv6_prefix=128).decode() == text


@pytest.mark.parametrize(
    "text",
    [
        b"2001:db8:1:2:3:4:5:6",
        b"2001:DB8:1:2:3:4:5:6",
        b"2001:0db8:0001:0002:0003:0004:0005:0006",
        b"[2001:db8:1:2:3:4:5:6]",
        b"[2001:db8:1:2:3:4:5:6]:443",
        b'"[2001:db8:1:2:3:4:5:6]:443"',
        b'"2001:db8:1:2:3:4:5:6"',
        b"2001:db8:1:2:3:4:5:6%eth0",
        b"[2001:db8:1:2:3:4:5:6%25eth0]:443",
        b"2001:db8:1:2:3:4:0.5.0.6",
    ],
)
def test_forms_of_one_ipv6_address(twin, text):
    assert key(twin, xff(text), ipv6_prefix=128) == b"2001:db8:1:2:3:4:5:6"
    assert key(twin, xff(text)) == b"2001:db8:1:2::/64"


def test_zero_compression_may_stand_anywhere(twin):
    for text in ("::", "::1", "1::", "1::8", "1:2::7:8", "1::3:4:5:6:7:8", "1:2:3:4:5:6:7::"):
        expected = str(ipaddress.IPv6Address(text)).encode()
        assert key(twin, xff(text.encode()), ipv6_prefix=128) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"unknown",
        b"_hidden",
        b"1.2.3",
        b"1.2.3.4.5",
        b"1.2.3.256",
        b"010.1.1.1",
        b"1.2.3.00",
        b"0x1.2.3.4",
        b"1.2.3.4:",
        b"1.2.3.4:123456",
        b"1.2.3.4:8a",
        b"1.2.3.4/24",
        b"1.2.3.4%eth0",
        b"1 .2.3.4",
        b"[1.2.3.4]",
        b'"1.2.3.4',
        b'1.2.3.4"',
        b'"1.2.3.4":80',
        b'" 1.2.3.4"',
        b'""',
        b":",
        b":::",
        b"1:2:3:4:5:6:7",
        b"1:2:3:4:5:6:7:8:9",
        b"1:2:3:4::5:6:7:8",
        b"1::2::3",
        b"1:2:3:4:5:6:7:8:",
        b":1:2:3:4:5:6:7",
        b"12345::",
        b"g::",
        b"::1.2.3",
        b"::1.2.3.04",
        b"1:2:3:4:5:6:7:1.2.3.4",
        b"::1.2.3.4:5",
        b"fe80::1%",
        b"[fe80::1%]",
        b"[::1",
        b"::1]",
        b"[::1]x",
        b"[::1]:",
        b"[[::1]]",
        b"[]",
        b"%eth0",
        b"::1%" + b"z" * 125,
        b"\xd9\xa1.2.3.4",
    ],
)
def test_what_is_no_address_is_skipped(twin, text):
    assert key(twin, xff(text + b", 203.0.113.7")) == b"203.0.113.7"
    assert refused(twin, xff(text), hops=1)[0] == MISSING


def test_a_long_zone_is_dropped_up_to_the_limit_of_an_address(twin):
    assert key(twin, xff(b"1::2%" + b"z" * 123), ipv6_prefix=128) == b"1::2"


def test_forwarded_reads_for(twin):
    def forwarded(*values, **rules):
        lines = [b"Forwarded: " + value for value in values]
        return key(twin, request(*lines), header=b"forwarded", **rules)

    assert forwarded(b"for=203.0.113.7") == b"203.0.113.7"
    assert forwarded(b"FOR=203.0.113.7;proto=http;by=10.0.0.1") == b"203.0.113.7"
    assert forwarded(b'proto=http ; For="203.0.113.7:47011"') == b"203.0.113.7"
    assert forwarded(b'for="[2001:db8:cafe::17]:4711"', ipv6_prefix=128) == b"2001:db8:cafe::17"
    assert forwarded(b"for=[2001:db8:cafe::17]", ipv6_prefix=128) == b"2001:db8:cafe::17"
    assert forwarded(b'for="_gazonk", by=1.2.3.4, for=203.0.113.7, for=10.0.0.1') == b"203.0.113.7"
    assert forwarded(b'by="a;for=1.2.3.4, for=5.6.7.8";for=203.0.113.7') == b"203.0.113.7"
    assert forwarded(b'for="\\2\\03.0.113.7"') == b"203.0.113.7"
    assert forwarded(b"for=203.0.113.7, proto=https, for=10.0.0.1", hops=3) == b"203.0.113.7"
    assert forwarded(b"for=unknown", b"for=203.0.113.7") == b"203.0.113.7"


def test_forwarded_takes_nothing_but_for(twin):
    for value in (b"by=1.2.3.4", b"1.2.3.4", b"xfor=1.2.3.4", b"for =1.2.3.4", b"for= 1.2.3.4"):
        head = request(b"Forwarded: " + value)
        assert key(twin, head, header=b"forwarded") == value
        assert refused(twin, head, header=b"forwarded", hops=1)[0] == MISSING


def test_the_first_for_of_an_element_counts(twin):
    head = request(b"Forwarded: for=_a;for=1.2.3.4, for=203.0.113.7")
    assert key(twin, head, header=b"forwarded") == b"203.0.113.7"


# --- 5. prefixes ---------------------------------------------------------------------------------


def test_the_key_is_the_ipv4_address_and_the_ipv6_64(twin):
    assert key(twin, xff(b"203.0.113.7")) != key(twin, xff(b"203.0.113.8"))
    one = ask(twin, xff(b"2001:db8:1:2:aaaa::1"))
    assert one == ask(twin, xff(b"2001:db8:1:2:bbbb::2"))
    assert one[1] == b"2001:db8:1:2::/64"
    assert key(twin, xff(b"2001:db8:1:3::1")) == b"2001:db8:1:3::/64"


def test_link_local_addresses_count_whole_and_without_their_zone(twin):
    one = ask(twin, xff(b"fe80::1%eth0"))
    assert one == ask(twin, xff(b"[fe80::1%wlan0]:80"))
    assert one[1] == b"fe80::1"
    assert key(twin, xff(b"febf::2:3")) == b"febf::2:3"
    assert key(twin, xff(b"fec0::2:3")) == b"fec0::/64"


@pytest.mark.parametrize("prefix", [0, 1, 8, 23, 24, 31, 32])
def test_ipv4_prefix_says_how_many_bits_count(twin, prefix):
    network = ipaddress.ip_network(("203.0.113.7", prefix), strict=False)
    expected = str(network).encode() if prefix < 32 else b"203.0.113.7"
    assert key(twin, xff(b"203.0.113.7"), ipv4_prefix=prefix) == expected


@pytest.mark.parametrize("prefix", [0, 1, 31, 32, 33, 48, 56, 64, 65, 96, 127, 128])
def test_ipv6_prefix_says_how_many_bits_count(twin, prefix):
    text = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"
    network = ipaddress.ip_network((text, prefix), strict=False)
    expected = str(network).encode() if prefix < 128 else text.encode()
    assert key(twin, xff(text.encode()), ipv6_prefix=prefix) == expected
    assert key(twin, xff(b"::ffff:1.2.3.4"), ipv6_prefix=prefix) == b"1.2.3.4"


def test_addresses_of_one_prefix_have_one_slot(twin):
    slots = {
        ask(twin, xff(b"198.51.100.%d" % last), ipv4_prefix=24, n=64)[0] for last in range(256)
    }
    assert len(slots) == 1


# --- 6. no address, or no header -----------------------------------------------------------------


def test_a_value_without_an_address_counts_with_its_bytes(twin):
    head = request(b"X-Session:  3f2a 91c0  ")
    slot, found, why = ask(twin, head, header=b"x-session")
    assert (found, why) == (b"3f2a 91c0", "no address in 'x-session', so its bytes")
    assert slot == twin.pick(twin.siphash(SEED, b"3f2a 91c0"), 7)


def test_the_bytes_of_several_lines_are_joined_as_a_list(twin):
    slot, found, _ = ask(twin, xff(b"one ", b"", b" two\tthree", b"unknown"))
    assert found == b"one, two\tthree, unknown"
    assert slot == twin.pick(twin.siphash(SEED, found), 7)


def test_a_short_name_with_many_short_lines_has_room_for_its_key(twin):
    slot, found, _ = ask(twin, request(*[b"x:y"] * 500), header=b"x")
    assert found == b", ".join([b"y"] * 500)
    assert slot == twin.pick(twin.siphash(SEED, found), 7)


def test_bytes_of_any_length_and_kind_are_a_key(twin):
    for value in (b"y", b"\x80\xff", b"a" * 60_000, b"\x0b", b'"', b"a\x7fb", b'"unknown'):
        slot, found, _ = ask(twin, xff(value))
        assert found == value
        assert slot == twin.pick(twin.siphash(SEED, value), 7)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "'x-forwarded-for' is missing"),
        ([b"X-Forwarded-For:"], "'x-forwarded-for' is empty"),
        ([b"X-Forwarded-For: \t "], "'x-forwarded-for' is empty"),
        ([b"X-Forwarded-For: , ,,"], "'x-forwarded-for' is empty"),
        ([b"X-Forwarded-For: unknown"], "nothing but 'unknown' in 'x-forwarded-for'"),
        (
            [b"X-Forwarded-For: UNKNOWN, ,Unknown", b'X-Forwarded-For: "unknown"'],
            "nothing but 'unknown' in 'x-forwarded-for'",
        ),
    ],
)
def test_without_anything_to_route_by_the_header_is_missing(twin, lines, why):
    head = request(b"Host: a", *lines)
    assert refused(twin, head) == (MISSING, why)
    slot, found, text = ask(twin, head, ignore_missing_header=True)
    assert (found, text) == (PEER.encode(), f"peer address, because {why}")
    assert slot == ask(twin, b"", proxy=False)[0]


def test_forwarded_with_nothing_but_unknown_is_missing(twin):
    head = request(b'Forwarded: for=unknown;proto=http, for="Unknown"')
    assert refused(twin, head, header=b"forwarded")[0] == MISSING


def test_a_list_shorter_than_hops_goes_by_the_peer_where_that_is_allowed(twin):
    head = xff(b"203.0.113.7")
    slot, found, why = ask(twin, head, hops=2, ignore_missing_header=True)
    assert found == PEER.encode()
    assert why == "peer address, because fewer than 2 elements in 'x-forwarded-for'"
    assert slot == ask(twin, b"", proxy=False)[0]


# --- the interface -------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, "text", memoryview(b"x"), [1], 3])
def test_data_must_be_bytes_or_a_bytearray(twin, data):
    for ask_it in (router(twin).route, router(twin).explain):
        with pytest.raises(TypeError, match="data must be bytes or bytearray"):
            ask_it(data, 0, PEER)


@pytest.mark.parametrize("length", [-1, 4, 1 << 40])
def test_the_length_must_lie_within_the_data(twin, length):
    for ask_it in (router(twin).route, router(twin).explain):
        with pytest.raises(ValueError, match="length must be 0 to 3"):
            ask_it(b"abc", length, PEER)


@pytest.mark.parametrize("peer", [None, b"::1", ("::1", 80)])
def test_the_peer_must_be_a_str(twin, peer):
    with pytest.raises(TypeError):
        router(twin).route(b"", 0, peer)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": 1025},
        {"n": -1},
        {"n": 1 << 40},
        {"seed": b"1234567"},
        {"seed": b"123456789"},
        {"header": b""},
        {"header": b"x y"},
        {"header": b"x:"},
        {"header": "xä".encode()},
        {"hops": -1},
        {"hops": 65536},
        {"ipv4_prefix": 33},
        {"ipv4_prefix": -1},
        {"ipv6_prefix": 129},
    ],
)
def test_bad_rules_are_refused_by_name(twin, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be "):
        router(twin, **wrong)


def test_a_router_cannot_be_made_without_its_rules(twin):
    with pytest.raises(TypeError):
        twin.Router()
    with pytest.raises(TypeError):
        twin.Router(2, SEED)
    with pytest.raises(TypeError):
        twin.Router(2, "12345678", proxy=True)


def test_the_same_rules_give_the_same_slot_in_every_router(twin):
    head = xff(b"203.0.113.7")
    assert len({ask(twin, head, n=64)[0] for _ in range(10)}) == 1


def test_the_chooser_takes_the_twin_that_is_asked_for():
    code = "from sticky import core; print(core.TWIN, core.Router.__module__)"
    for env, expected in (({}, "c sticky._core"), ({"STICKY_PURE": "1"}, "py sticky._pycore")):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected, done.stderr


def test_a_missing_extension_is_an_error_that_says_what_to_do():
    code = "import sys; sys.modules['sticky._core'] = None; import sticky.core"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={}, capture_output=True, text=True
    )
    assert done.returncode == 1
    for hint in ("ImportError", "Reinstall", "build_ext --inplace", "STICKY_PURE=1"):
        assert hint in done.stderr
