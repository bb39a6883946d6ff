"""Heads of requests, rule by rule, over both twins.

The vectors with a comment "llhttp" or "h11" are after the public tests of these parsers
(nodejs/llhttp, test/request/*.md; python-hyper/h11, h11/tests/test_io.py): their bytes, and what
RFC 9112 wants of them, which is often stricter than what they expect.
"""

import pytest

from sticky import rules

from .core_kit import TWINS
from .http_kit import LIMIT, said


@pytest.fixture(params=TWINS)
def twin(request):
    return TWINS[request.param]


def get(*lines, start=b"GET / HTTP/1.1", host=b"Host: a"):
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])


def accepted(twin, data):
    """The Head of data that is one whole head, which every cut of it is not yet."""
    head = twin.parse(data, 0, LIMIT)
    assert isinstance(head, twin.Head), rules.refusal(head) if head else "not complete"
    assert head.end == len(data)
    assert said(twin, b"x" * 7 + data + b"rest", 7) == (len(data) + 7, *said(twin, data)[1:])
    for size in range(len(data)):
        assert twin.parse(data[:size], 0, LIMIT) == 0
    return head


def refused(twin, data):
    """(status, reason) of data that is refused, and refused for the same reason however cut."""
    reason = twin.parse(data, 0, LIMIT)
    assert isinstance(reason, int), "it is accepted"
    assert reason > 0, "not complete"
    known = False
    for size in range(len(data)):
        early = twin.parse(data[:size], 0, LIMIT)
        assert early in (0, reason)
        assert early or not known
        known = bool(early)
    return rules.status(reason), reason


# --- the request line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        *(
            "GET",
            "POST",
            "HEAD",
            "DELETE",
            "REPORT",
            "M-SEARCH",
            "PURGE",
            "LINK",
            "QUERY",
        ),  # llhttp
        *("get", "G", "!#$%&'*+-.^_`|~09azAZ", "x" * 64),
    ],
)
def test_a_method_is_any_token(twin, method):
    assert accepted(twin, get(start=method.encode() + b" / HTTP/1.1")).method == method


def test_a_method_of_65_characters_is_one_that_nobody_has(twin):
    assert refused(twin, get(start=b"x" * 65 + b" / HTTP/1.1")) == (400, rules.LONG_METHOD)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"/"),
        (b"GET", b"//evil/x"),
        (b"GET", b"/test.cgi?foo=bar?baz"),  # llhttp
        (b"GET", b"/test.cgi?query=|"),  # llhttp
        (b"GET", b'/with_"lovely"_quotes?foo=\\"bar\\"'),  # llhttp
        (b"GET", "/δ¶/δt/pope?q=1".encode()),  # llhttp, there without UTF-8
        (b"GET", b"/\x80\xff" + bytes(range(0x24, 0x7F))),
        (b"GET", b"http://hypnotoad.org?hail=all"),  # llhttp
        (b"GET", b"http://hypnotoad.org:1234?hail=all"),  # llhttp
        (b"GET", b"http://hypnotoad.org:1234"),  # llhttp
        (b"POST", b"HTTPS://a/b?c"),
        (b"GET", b"http://[::1]:80/"),
        (b"GET", b"http://a/?u@b"),
        (b"CONNECT", b"0-home0.netscape.com:443"),  # llhttp
        (b"CONNECT", b"home_0.netscape.com:443"),  # llhttp
        (b"CONNECT", b"[::1]:443"),
        (b"OPTIONS", b"*"),
        (b"OPTIONS", b"/"),
        (b"OPTIONS", b"http://a"),
    ],
)
def test_a_target_has_one_of_four_forms(twin, method, target):
    assert accepted(twin, get(start=method + b" " + target + b" HTTP/1.1")).target == target


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"*"),
        (b"OPTIONS", b"**"),
        (b"options", b"*"),
        (b"GET", b"a:80"),
        (b"GET", b"a"),
        (b"GET", b"?a"),
        (b"GET", b"ftp://a/"),
        (b"GET", b"ws://a/"),
        (b"GET", b"http:/a"),
        (b"GET", b"http://"),
        (b"GET", b"http:///a"),
        (b"GET", b"http://?a"),
        (b"GET", b"https:"),
        (b"GET", b"http://u@a/"),
        (b"GET", b"http://a%12:b!&*$@hypnotoad.org:1234/toto"),  # llhttp
        (b"GET", b"http://a:x/"),
        (b"GET", b"http://a:65536/"),
        (b"GET", b"http://a,b/"),
        (b"CONNECT", b"/"),
        (b"CONNECT", b"a"),
        (b"CONNECT", b"a:"),
        (b"CONNECT", b":80"),
        (b"CONNECT", b"http://a:80"),
        (b"CONNECT", b"*"),
        (b"GET", b"/#"),
        (b"GET", b"/forums/1/topics/2375?page=1#posts-17408"),  # llhttp
    ],
)
def test_no_other_target_will_do(twin, method, target):
    assert refused(twin, get(start=method + b" " + target + b" HTTP/1.1")) == (
        400,
        rules.BAD_TARGET,
    )


@pytest.mark.parametrize(
    "line",
    [
        b"GET",
        b"GET ",
        b"GET /",  # llhttp
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET /foo bar/ HTTP/1.1",  # llhttp
        b"G@T / HTTP/1.1",
        b"(GET) / HTTP/1.1",
        b" / HTTP/1.1",
    ],
)
def test_a_request_line_is_three_parts_with_one_space_between_them(twin, line):
    assert refused(twin, get(start=line)) in (
        (400, rules.REQUEST_LINE),
        (400, rules.NO_VERSION),
    )


def test_a_tab_is_no_space(twin):
    for line in (b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b"GET / HTTP/1.1\t", b"\tGET / HTTP/1.1"):
        assert refused(twin, get(start=line)) == (400, rules.CONTROL)


@pytest.mark.parametrize(("version", "minor"), [(b"1.1", 1), (b"1.0", 0), (b"1.2", 1), (b"1.9", 1)])
def test_a_later_version_of_http_1_counts_as_1_1(twin, version, minor):
    assert accepted(twin, get(start=b"GET / HTTP/" + version)).minor == minor


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"5.6", b"9.9", b"0.0"])  # 5.6: llhttp
def test_another_version_is_505(twin, version):
    assert refused(twin, get(start=b"GET / HTTP/" + version)) == (505, rules.OTHER_VERSION)
    # Whatever its targets and fields may be.
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert refused(twin, preface) == (505, rules.OTHER_VERSION)


@pytest.mark.parametrize(
    "version",
    [
        *(b"http/1.1", b"Http/1.1", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/a.1", b"HTTP1.1"),
        *(b"HTTP", b"ICE/1.0", b"IHTTP/1.0", b"RTSP/1.0"),  # llhttp, but the first
    ],
)
def test_what_is_no_version_is_400(twin, version):
    assert refused(twin, get(start=b"GET / " + version)) == (400, rules.NO_VERSION)


@pytest.mark.parametrize("version", [b"HTTP/1.10", b"HTTP/1.1.", b"HTTP/1.1 x", b"HTTP/1.1;"])
def test_nothing_comes_behind_the_version(twin, version):
    assert refused(twin, get(start=b"GET / " + version)) == (400, rules.REQUEST_LINE)


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n" * 2, b"\r\n" * 9])
def test_empty_lines_may_come_before_the_request_line(twin, empty):
    accepted(twin, empty + get())
    assert twin.parse(empty, 0, LIMIT) == 0
    assert twin.parse(empty + b"\r", 0, LIMIT) == 0
    assert refused(twin, empty + b"\n" + get()) == (400, rules.BARE_LF)
    assert refused(twin, empty + b"\rG") == (400, rules.BARE_CR)
    assert refused(twin, empty + b"\0") == (400, rules.NUL)


def test_tls_on_a_plain_port_is_refused_by_its_first_bytes(twin):
    assert refused(twin, b"\x16\x03\x01\x02\x00\x01")[0] == 400


# --- bytes that no head may have -----------------------------------------------------------------


def test_a_bare_cr_or_lf_a_nul_or_a_control_character_is_refused_anywhere(twin):
    head = get(b"A: b, c", b"Content-Type: \xe4")
    for bad in [*range(0x20), 0x7F]:
        for at in range(len(head)):
            data = head[:at] + bytes([bad]) + head[at:]
            if head[at - 1 : at] == b"\r":
                continue  # between CR and LF it is the CR that is wrong
            reason = twin.parse(data, 0, LIMIT)
            if bad == 0x09 and isinstance(reason, twin.Head):
                assert b":" in data[data.rindex(b"\r\n", 0, at) : at]  # it is within a value
                continue
            expected = {0: rules.NUL, 9: reason, 10: rules.BARE_LF, 13: rules.BARE_CR}
            assert reason == expected.get(bad, rules.CONTROL)
            assert refused(twin, data)[0] == 400


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"Foo: 1\rBar: 2"], rules.BARE_CR),  # llhttp
        ([b"x:x\nTransfer-Encoding: chunked"], rules.BARE_LF),  # llhttp
        ([b"x:\nTransfer-Encoding: chunked"], rules.BARE_LF),  # llhttp
        ([b"x:\rTransfer-Encoding: chunked"], rules.BARE_CR),  # llhttp
        ([b"\rZGET /evil: HTTP/1.1", b"Host: a"], rules.BARE_CR),  # llhttp
        ([b"Connection: keep\ralive"], rules.BARE_CR),  # llhttp
        ([b"Connection\r\x1b5\xd5eep-Alive"], rules.BARE_CR),  # llhttp
        ([b"Header1: \f"], rules.CONTROL),  # llhttp
        ([b"Foo\1test: Bar"], rules.CONTROL),  # llhttp
        ([b"Foo: bar", b" Content-Length: 38"], rules.FOLDED),  # llhttp
        ([b"Transfer-Encoding: chunked", b"  abc"], rules.FOLDED),  # llhttp
        ([b"Connection: keep-alive, ", b" upgrade"], rules.FOLDED),  # llhttp
        ([b"Some: multi-line", b" header", b"\tnonsense"], rules.FOLDED),  # h11
        ([b"A:", b"\t"], rules.FOLDED),
        ([b" ", b"A: b"], rules.FOLDED),
        ([b"SomeHeader1: val1\nSomeHeader2: val2\n"], rules.BARE_LF),  # h11
        ([b"a: b\0"], rules.NUL),
        ([b"\0: b"], rules.NUL),
    ],
)
def test_lines_end_with_crlf_alone_and_are_not_folded(twin, lines, reason):
    assert refused(twin, get(*lines)) == (400, reason)


@pytest.mark.parametrize("host", [b" Host: foo", b"  folded: line", b"\tHost: a"])
def test_the_first_field_line_is_not_folded_either(twin, host):
    assert refused(twin, get(host=host)) == (400, rules.FOLDED)  # llhttp, h11


def test_the_first_wrong_thing_in_the_bytes_is_the_reason(twin):
    for lines, reason in (
        ([b"A : b", b"B"], rules.NAME_SPACE),
        ([b"B", b"A : b"], rules.LINE_WITHOUT_COLON),
        ([b"Content-Length: x", b"Content-Length: 1\0"], rules.BAD_LENGTH),
        ([b"Content-Length: x\0"], rules.NUL),
        ([b"Content-Length: x\n"], rules.BARE_LF),
        ([b"A: b\0\n\r"], rules.NUL),
        ([b"A: b\r\0"], rules.BARE_CR),
    ):
        assert refused(twin, get(*lines)) == (400, reason)
        assert refused(twin, get(*lines, host=b"")) == (400, reason)


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"Fo@: Failure", rules.BAD_NAME),  # llhttp
        (b": Bar", rules.BAD_NAME),  # llhttp, h11
        (b"F\xe4: a", rules.BAD_NAME),
        (b'"a": b', rules.BAD_NAME),
        (b"a/b: c", rules.BAD_NAME),
        (b"\xff", rules.BAD_NAME),
        (b"foo  : line", rules.NAME_SPACE),  # h11
        (b"foo\t: line", rules.NAME_SPACE),  # h11
        (b"Connection : upgrade", rules.NAME_SPACE),  # llhttp
        (b"Host foo: a", rules.NAME_SPACE),
        (b"name ", rules.NAME_SPACE),
        (b"name", rules.LINE_WITHOUT_COLON),  # llhttp
        (b"GET/", rules.BAD_NAME),
    ],
)
def test_a_field_is_a_token_and_a_colon_at_once(twin, line, reason):
    assert refused(twin, get(line)) == (400, reason)
    assert refused(twin, get(line, host=b"")) == (400, reason)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"x:", b""),  # h11
        (b"x: \t \t ", b""),  # h11
        (b"x: a a a a a ", b"a a a a a"),  # h11
        (b"x:\t Value2", b"Value2"),  # llhttp
        (b"x:a\tb\t", b"a\tb"),
        (b"x: \xffValue2", b"\xffValue2"),  # llhttp
        (b"x: D\xc3\xbcsseldorf", b"D\xc3\xbcsseldorf"),  # llhttp
        (b"x::", b":"),
        (b"x: : b", b": b"),
        (b"x:" + bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)]), None),
    ],
)
def test_a_value_may_hold_what_is_no_control_character(twin, line, value):
    head = accepted(twin, get(line, b"y: z"))
    expected = line[2:].strip(b" \t") if value is None else value
    assert head.fields() == [(b"host", b"a"), (b"x", expected), (b"y", b"z")]


@pytest.mark.parametrize("size", [*range(40), 1000])
def test_a_value_of_any_length_is_read_to_its_end(twin, size):
    head = accepted(twin, get(b"X: " + b"v" * size))
    assert head.fields()[1:] == [(b"x", b"v" * size)]
    for bad in (b"\0", b"\x1f", b"\x7f", b"\r", b"\n"):
        assert refused(twin, get(b"X: " + b"v" * size + bad + b"v"))[0] == 400


def test_every_name_is_given_in_lower_case(twin):
    names = [*rules.KNOWN_NAMES, b"!#$%&'*+-.^_`|~", b"x", b"x-forwarded-fox", b"hosu", b"Az09"]
    skipped = (b"transfer-encoding", b"content-length", b"host", b"cookie")
    names = [name for name in names if name not in skipped]
    for form in (bytes.lower, bytes.upper, bytes.title):
        head = accepted(twin, get(*(form(name) + b": 1" for name in names)))
        assert head.fields()[1:] == [(name.lower(), b"1") for name in names]


def test_names_that_differ_by_one_bit_are_other_names(twin):
    for name in rules.KNOWN_NAMES:
        for at in range(len(name)):
            for bit in range(8):
                near = name[:at] + bytes([name[at] ^ 1 << bit]) + name[at + 1 :]
                if not rules.TOKEN.issuperset(near) or near.lower() in rules.KNOWN_NAMES:
                    continue
                assert twin.parse(get(near + b": a"), 0, LIMIT).fields()[1] == (near.lower(), b"a")


def test_several_cookie_fields_are_one_in_the_place_of_the_first(twin):
    lines = [b"A: 1", b"Cookie: a=b", b"B: 2", b"cookie: c=d; e=f", b"A: 3", b"COOKIE: g"]
    head = accepted(twin, get(*lines))
    assert head.fields() == [
        *((b"host", b"a"), (b"a", b"1"), (b"cookie", b"a=b; c=d; e=f; g")),
        *((b"b", b"2"), (b"a", b"3")),
    ]
    assert accepted(twin, get(b"Cookie: a")).fields()[1:] == [(b"cookie", b"a")]


def environ(twin, *lines, **more):
    into = {"before": "kept"}
    accepted(twin, get(*lines, **more)).environ(into)
    assert into.pop("before") == "kept"
    return into


def test_a_wsgi_environ_has_the_fields_under_their_names(twin):
    assert environ(
        twin,
        b"Content-Type: text/plain",
        b"Content-Length: 007",
        b"X-A.b: \xe4",
        b"Cookie: a",
        b"Cookie: b",
        b"X-Forwarded-For: 192.0.2.1",
        b"x-forwarded-FOR:10.0.0.1",
        b"New-Name: 1",
        b"new-name:",
        b"new-name: 3",
    ) == {
        "HTTP_HOST": "a",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "007",
        "HTTP_X_A.B": "ä",
        "HTTP_COOKIE": "a; b",
        "HTTP_X_FORWARDED_FOR": "192.0.2.1,10.0.0.1",
        "HTTP_NEW_NAME": "1,,3",
    }


def test_names_with_an_underscore_do_not_meet_those_with_a_hyphen(twin):
    for line in (b"X_Forwarded_For: 1", b"Content_Length: 1", b"Content_Type: 1", b"_: 1"):
        assert environ(twin, line, b"X-B: 2") == {"HTTP_HOST": "a", "HTTP_X_B": "2"}
    assert (b"x_forwarded_for", b"1") in accepted(twin, get(b"X_Forwarded_For: 1")).fields()


def test_what_an_environ_had_before_is_replaced_and_not_joined(twin):
    into = {"HTTP_A": "old", "HTTP_ACCEPT": "old", "HTTP_B": "kept"}
    accepted(twin, get(b"A: 1", b"Accept: 2")).environ(into)
    assert into == {"HTTP_HOST": "a", "HTTP_A": "1", "HTTP_ACCEPT": "2", "HTTP_B": "kept"}


def test_a_chunked_request_has_no_content_length_in_its_environ(twin):
    found = environ(twin, b"Transfer-Encoding: chunked")
    assert found == {"HTTP_HOST": "a", "HTTP_TRANSFER_ENCODING": "chunked"}


def test_thousands_of_fields_are_read(twin):
    lines = [b"A: b", b"Cookie: c", b"X-%d: d", b"Via: e"] * 2000
    lines = [line % at if b"%" in line else line for at, line in enumerate(lines)]
    head = twin.parse(get(*lines), 0, 1 << 20)
    assert len(head.fields()) == 1 + 3 * 2000 + 1
    into = {}
    head.environ(into)
    assert into["HTTP_A"] == ",".join("b" * 2000)
    assert into["HTTP_VIA"] == ",".join("e" * 2000)
    assert into["HTTP_COOKIE"] == "; ".join("c" * 2000)
    assert len(into) == 2000 + 4


# --- Host ----------------------------------------------------------------------------------------

HOSTS = [b"a", b"example.com", b"example.com:80", b"example.com:", b"a:0", b"a:65535", b"a:0080"]
HOSTS += [
    b"127.0.0.1:8000",
    b"[::1]",
    b"[2001:DB8::1]:443",
    b"[::ffff:1.2.3.4]:",
    b"a_b",
    b"xn--a-b",
]
HOSTS += [b"a%20b", b"!$&'()*+;=~", b"-", b"0.0.0.0=5000"]  # the last one: llhttp


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_a_name_or_an_address_with_a_port_or_without(twin, host):
    assert accepted(twin, get(host=b"Host: " + host)).host == host
    assert accepted(twin, get(host=b"", start=b"GET http://" + host + b"/ HTTP/1.0")).host == b""


BAD_HOSTS = [
    b"a b",
    b"a,b",
    b"a, a",
    b"u@a",
    b"http://a",
    b"a/",
    b"a/b",
    b"a?",
    b"a#",
    b":80",
    b":",
]
BAD_HOSTS += [
    b"a:b",
    b"a:80a",
    b"a:-1",
    b"a:65536",
    b"a:99999999999999999999",
    b"a:80:80",
    b"a::",
    b"::1",
]
BAD_HOSTS += [
    b"[",
    b"[]",
    b"[::1",
    b"::1]",
    b"[::1]80",
    b"[::1]]",
    b"[g::]",
    b"[1.2.3.4]",
    b"[::1%eth0]",
]
BAD_HOSTS += [
    b"[v1.a]",
    b"a%",
    b"a%2",
    b"a%2g",
    b"a%g2",
    b"\xe4",
    b"a\\",
    b"a\xff",
    b"<a>",
    b'"a"',
    b"a|b",
]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_host_that_is_none_is_refused(twin, host):
    assert refused(twin, get(host=b"Host: " + host)) == (400, rules.BAD_HOST)
    assert refused(twin, get(host=b"Host: " + host, start=b"GET / HTTP/1.0"))[0] == 400


def test_http_1_1_has_one_host_and_http_1_0_may_have_none(twin):
    assert refused(twin, get(host=b"")) == (400, rules.NO_HOST)
    assert refused(twin, get(b"Hosts: a", b"X: Host: a", host=b"")) == (400, rules.NO_HOST)
    assert accepted(twin, get(host=b"", start=b"GET / HTTP/1.0")).host == b""
    assert accepted(twin, get(host=b"Host:")).host == b""
    for second in (b"Host: a", b"host: b", b"HOST:", b"Host: a b"):
        assert refused(twin, get(second)) == (400, rules.HOST_TWICE)
        assert refused(twin, get(second, start=b"GET / HTTP/1.0")) == (400, rules.HOST_TWICE)
    assert refused(twin, get(b"Host: a", host=b"Host:")) == (400, rules.HOST_TWICE)


def test_the_target_may_name_another_host_than_the_field(twin):
    head = accepted(twin, get(start=b"GET http://b/ HTTP/1.1"))
    assert (head.target, head.host) == (b"http://b/", b"a")


# --- the length of the body ----------------------------------------------------------------------


@pytest.mark.parametrize("digits", [b"0", b"5", b"0000", b"00005", b"9" * 18, b"0" * 17 + b"1"])
def test_a_length_is_one_number_of_up_to_18_digits(twin, digits):
    assert accepted(twin, get(b"Content-Length: " + digits)).length == int(digits)


def test_without_a_length_there_is_no_body(twin):
    assert accepted(twin, get()).length == 0
    assert accepted(twin, get(start=b"POST / HTTP/1.0")).length == 0


BAD_LENGTHS = [
    b"",
    b"-1",
    b"+1",
    b"0x5",
    b"5 5",
    b"5,5",
    b"5, 5",
    b"5;",
    b"1e3",
    b"1.0",
    b"five",
    b"1_0",
]
BAD_LENGTHS += [
    b"9" * 19,
    b"0" * 19,
    b"18446744073709551616",
    b"9" * 400,
    b"\xb2",
    b'"5"',
    b"5\xa0",
]


@pytest.mark.parametrize("value", BAD_LENGTHS)
def test_a_length_that_is_no_number_is_refused(twin, value):
    assert refused(twin, get(b"Content-Length: " + value)) == (400, rules.BAD_LENGTH)


@pytest.mark.parametrize("second", [b"5", b"6", b"", b"x"])
def test_two_lengths_are_refused_equal_or_not(twin, second):
    lines = [b"Content-Length: 5", b"content-length: " + second]
    assert refused(twin, get(*lines)) == (400, rules.LENGTH_TWICE)


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"CHUNKED", b"\tchunked "])
def test_a_body_may_be_chunked(twin, coding):
    assert accepted(twin, get(b"Transfer-Encoding:" + coding)).length == rules.CHUNKED


BAD_CODINGS = [
    b"",
    b"identity",
    b"gzip",
    b"pigeons",
    b"chunkedchunked",
    b"chunked, chunked",
]  # llhttp
BAD_CODINGS += [b"chunked, deflate", b"chunked,", b",chunked", b", chunked", b"gzip,,chunked"]
BAD_CODINGS += [b'"chunked"', b"chunked;a=b", b"chunked;", b"chunked x", b"xchunked", b"x chunked"]
BAD_CODINGS += [b"chunked, gzip, chunked", b"gzip;a, chunked", b"gzip;=b, chunked", b"(a), chunked"]
BAD_CODINGS += [
    b'gzip;a="b, chunked',
    b'gzip;a="b"c, chunked',
    b"gzip;a=, chunked",
    b"gzip; , chunked",
]
BAD_CODINGS += [
    b"chunked\xa0",
    b"chunke",
    b"chunked, identity",
    b"gzip chunked",
    b"chunked chunked",
]


@pytest.mark.parametrize("coding", BAD_CODINGS)
def test_a_coding_that_does_not_end_in_one_chunked_is_400(twin, coding):
    assert refused(twin, get(b"Transfer-Encoding: " + coding)) == (400, rules.BAD_CODING)


@pytest.mark.parametrize(
    "coding",
    [
        *(b"gzip, chunked", b"deflate,chunked", b"identity, chunked", b"a, b ,chunked"),
        *(b"a;b=c, chunked", b'a ; b = "c, d" ;e=f, chunked', b'a;b="\\"", Chunked'),
        b"chunked;a=b, chunked",
    ],
)
def test_other_codings_before_one_chunked_are_501(twin, coding):
    assert refused(twin, get(b"Transfer-Encoding: " + coding)) == (501, rules.OTHER_CODING)


def test_a_coding_comes_once_with_http_1_1_and_without_a_length(twin):
    chunked, length = b"Transfer-Encoding: chunked", b"Content-Length: 5"
    assert refused(twin, get(chunked, chunked)) == (400, rules.CODING_TWICE)
    assert refused(twin, get(chunked, b"Transfer-Encoding: x")) == (400, rules.CODING_TWICE)
    assert refused(twin, get(chunked, length)) == (400, rules.LENGTH_AND_CODING)
    assert refused(twin, get(length, chunked)) == (400, rules.LENGTH_AND_CODING)
    assert refused(twin, get(chunked, b"Content-Length: x")) == (400, rules.LENGTH_AND_CODING)
    old = get(chunked, start=b"POST / HTTP/1.0")
    assert refused(twin, old) == (400, rules.OLD_CODING)
    assert accepted(twin, get(chunked, start=b"POST / HTTP/1.7")).length == rules.CHUNKED


# --- the connection ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "new", "old"),
    [
        ([], True, False),
        ([b"Connection: close"], False, False),
        ([b"Connection: Close\t"], False, False),  # llhttp
        ([b"Connection: keep-alive"], True, True),
        ([b"Connection: Keep-Alive"], True, True),
        ([b"Connection: keep-alive, close"], False, False),
        ([b"Connection: keep-alive", b"Connection: close"], False, False),
        ([b"Connection: x", b"Connection: keep-alive"], True, True),
        ([b"Connection: close, token, upgrade, token, keep-alive"], False, False),  # llhttp
        ([b"Connection: ,, x ,close"], False, False),
        ([b"Connection: closed, x-close, close x, clos"], True, False),
        ([b'Connection: "close"'], True, False),
        ([b"Connection:"], True, False),
        ([b"Keep-Alive: 300"], True, False),
        ([b"Proxy-Connection: keep-alive"], True, False),
    ],
)
def test_a_connection_stays_open_as_version_and_client_want(twin, lines, new, old):
    assert accepted(twin, get(*lines)).keep_alive is new
    assert accepted(twin, get(*lines, start=b"GET / HTTP/1.0")).keep_alive is old


def test_an_expectation_of_100_continue_is_known_and_no_other(twin):
    for value in (b"100-continue", b"100-Continue", b"a, 100-continue"):
        assert accepted(twin, get(b"Expect: " + value)).expects is True
        assert accepted(twin, get(b"Expect: " + value, start=b"GET / HTTP/1.0")).expects is False
    for value in (b"", b"200-ok", b"100-continues", b"100"):
        assert accepted(twin, get(b"Expect: " + value)).expects is False
    assert accepted(twin, get()).expects is False


ASKED = (b"Connection: Upgrade", b"Upgrade: websocket")


@pytest.mark.parametrize(
    ("lines", "start", "upgrade", "websocket"),
    [
        (ASKED, b"GET / HTTP/1.1", True, True),
        (
            (b"Connection: keep-alive, upgrade", b"Upgrade: WebSocket"),
            b"GET / HTTP/1.1",
            True,
            True,
        ),
        ((b"Connection: upgrade", b"Upgrade: h2c, websocket"), b"GET / HTTP/1.1", True, True),
        ((*ASKED, b"Content-Length: 0"), b"GET / HTTP/1.1", True, True),
        ((*ASKED, b"Content-Length: 1"), b"GET / HTTP/1.1", True, False),
        ((*ASKED, b"Transfer-Encoding: chunked"), b"GET / HTTP/1.1", True, False),
        (ASKED, b"POST / HTTP/1.1", True, False),
        (ASKED, b"get / HTTP/1.1", True, False),
        (ASKED, b"GET / HTTP/1.0", False, False),
        ((b"Connection: upgrade", b"Upgrade: h2c"), b"GET / HTTP/1.1", True, False),
        ((b"Connection: upgrade", b"Upgrade: websocket/13"), b"GET / HTTP/1.1", True, False),
        ((b"Connection: upgrade", b"Upgrade:"), b"GET / HTTP/1.1", False, False),
        ((b"Connection: upgrades", b"Upgrade: websocket"), b"GET / HTTP/1.1", False, False),
        ((b"Upgrade: websocket",), b"GET / HTTP/1.1", False, False),
        ((b"Connection: upgrade",), b"GET / HTTP/1.1", False, False),
    ],
)
def test_an_upgrade_is_offered_by_two_fields_together(twin, lines, start, upgrade, websocket):
    head = accepted(twin, get(*lines, start=start))
    assert (head.upgrade, head.websocket) == (upgrade, websocket)


# --- limits, and the end of a head ---------------------------------------------------------------


def test_a_head_larger_than_the_limit_is_431(twin):
    head = b"\r\n" + get(b"A: b")
    for limit in range(len(head)):
        assert twin.parse(head, 0, limit) == rules.TOO_LARGE
        assert twin.parse(head[:limit], 0, limit) == rules.TOO_LARGE
        if limit:
            assert twin.parse(head[: limit - 1], 0, limit) == 0
    for limit in (len(head), len(head) + 1, 1 << 62):
        assert twin.parse(head, 0, limit).end == len(head)
        assert twin.parse(head + b"\0" * 100, 0, limit).end == len(head)
    assert rules.status(rules.TOO_LARGE) == 431


def test_what_is_wrong_within_the_limit_is_told_before_the_limit(twin):
    data = b"GET / HTTP/1.1\r\nA\n" + b"a" * 100
    assert twin.parse(data, 0, 18) == rules.BARE_LF
    assert twin.parse(data, 0, 17) == rules.TOO_LARGE


def test_the_end_of_a_head_that_dribbles_is_found_in_what_is_new(twin):
    data = b"xx\r\n\r\n" + get(b"A: b") + b"\r\n\r\nGET"
    start, end = 2, len(data) - 7
    for size in range(start, len(data) + 1):
        for seen in range(start, min(size, end - 1) + 1):
            assert twin.end_of_head(data[:size], start, seen) == (end if size >= end else 0)
    assert twin.parse(data, start, LIMIT).end == end


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"\r\n", 0),
        (b"\r\n\r\n\r\n\r\n", 0),
        (b"\n", 1),
        (b"\r\n\n", 3),
        (b"G\n", 2),
        (b"G\r\n\n", 4),
        (b"G\r\nA\nB", 5),
        (b"G\r\n\r\n", 5),
        (b"\r\nG\r\n\r\n", 7),
        (b"\r\n\r\n\r\nG\r\n\r\nX", 11),
        (b"G\r\r\n\r\n", 6),
        (b"\r\r\n", 0),
        (b"\r\r\n\r\n", 5),
    ],
)
def test_a_bare_lf_is_something_to_decide_and_an_empty_line_before_a_request_is_not(
    twin, data, expected
):
    assert twin.end_of_head(data, 0, 0) == expected
    assert twin.end_of_head(b"\r" + data, 1, 0) == (expected and expected + 1)
    # A dribble comes to the same.
    for size in range(len(data) + 1):
        found = twin.end_of_head(data[:size], 0, max(0, size - 1))
        assert found == (expected if size == expected else 0) or size > expected > 0


# --- the interface -------------------------------------------------------------------------------


def test_a_head_keeps_nothing_of_the_data(twin):
    data = bytearray(get(b"A: b"))
    head = twin.parse(data, 0, LIMIT)
    before = head.fields()
    data[:] = b"\0" * len(data)
    del data[5:]
    assert head.fields() == before == [(b"host", b"a"), (b"a", b"b")]


def test_a_head_is_made_by_parse_alone(twin):
    with pytest.raises(TypeError, match="made by parse"):
        twin.Head()


@pytest.mark.parametrize("data", [None, "GET", memoryview(b"GET"), 3])
def test_data_must_be_bytes_or_a_bytearray(twin, data):
    for ask in (twin.parse, twin.end_of_head, twin.Chunks().feed):
        with pytest.raises(TypeError, match="data must be bytes or bytearray"):
            ask(data, 0, 0)


def test_places_must_lie_within_the_data(twin):
    for start in (-1, 4, 1 << 40):
        with pytest.raises(ValueError, match=r"start must be 0 to 3"):
            twin.parse(b"abc", start, 9)
        with pytest.raises(ValueError, match=r"start must be 0 to 3"):
            twin.end_of_head(b"abc", start, 0)
        with pytest.raises(ValueError, match=r"seen must be 0 to 3"):
            twin.end_of_head(b"abc", 0, start)
    with pytest.raises(ValueError, match="limit must not be negative"):
        twin.parse(b"abc", 0, -1)


def test_every_reason_has_a_status_and_a_sentence():
    shared = (rules.NUL, rules.BARE_CR, rules.BARE_LF, rules.FOLDED)
    for reason in (*shared, *range(rules.CONTROL, rules.TOO_LARGE + 1)):
        assert rules.status(reason) in (400, 431, 501, 505)
        assert rules.refusal(reason).endswith(".")
