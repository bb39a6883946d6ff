"""Chunked bodies (RFC 9112, section 7.1), rule by rule, over both twins.

The vectors with a comment "llhttp" or "h11" are after the public tests of these parsers
(nodejs/llhttp, test/request/transfer-encoding.md; python-hyper/h11, h11/tests/test_io.py).
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky import rules

from .core_kit import COMPILED, TWINS, examples, randoms
from .http_kit import body, fed, spoiled


@pytest.fixture(params=TWINS)
def twin(request):
    return TWINS[request.param]


def read(twin, data, behind=b"GET"):
    """The payload of a whole body, which is the same in pieces of any size."""
    for size in (1, 2, 3, 7, 1 << 30):
        at, payload, over = fed(twin, data + behind, size)
        assert (at, over) == (len(data), True)
    for size in range(len(data)):
        assert fed(twin, data[:size]) == (size, payload[: len(fed(twin, data[:size])[1])], False)
    return payload


def wrong(twin, data):
    """What is wrong with a body, however it is cut."""
    found = fed(twin, data)
    assert isinstance(found, str), "it is in order"
    assert fed(twin, data, 1) == fed(twin, data, 3) == found
    return found


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"0\r\n\r\n", b""),  # h11
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),  # llhttp
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),  # llhttp
        (b"5\r\nhello\r\n6\r\n world\r\n000\r\n\r\n", b"hello world"),  # llhttp
        (b"aA\r\n" + b"x" * 0xAA + b"\r\n0\r\n\r\n", b"x" * 0xAA),  # h11
        (b"5\r\n01234\r\n10\r\n0123456789abcdef\r\n0\r\nSome: header\r\n\r\n", None),  # h11
        (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
        (b"1\r\n\0\r\n1\r\n\n\r\n0\r\n\r\n", b"\0\n"),
    ],
)
def test_the_payload_of_the_chunks_is_the_body(twin, data, payload):
    assert read(twin, data) == (b"012340123456789abcdef" if payload is None else payload)


def test_each_size_is_a_number_of_hexadecimal_digits(twin):
    for size in (1, 9, 10, 15, 16, 255, 256, 4096, 65537):
        for form in (b"%x", b"%X", b"0%x"):
            assert (
                read_quickly(twin, form % size + b"\r\n" + b"a" * size + b"\r\n0\r\n\r\n") == size
            )


def read_quickly(twin, data):
    at, payload, over = fed(twin, data)
    assert (at, over) == (len(data), True)
    return len(payload)


BAD_SIZES = [
    b"",
    b"g",
    b"-1",
    b"+1",
    b"0x5",
    b" 5",
    b"\t5",
    b"5g",
    b"5.",
    b"5,",
    b"5h",
    b"x",
    b'"5"',
]
BAD_SIZES += [b"10\0", b"5\x0b", b"5\x80", b"\xff", b"5\x7f", b"_5"]  # the first: h11


@pytest.mark.parametrize("size", BAD_SIZES)
def test_a_size_that_is_no_number_is_refused(twin, size):
    assert wrong(twin, size + b"\r\nhello\r\n0\r\n\r\n").startswith("a chunk does not begin with")


def test_a_size_is_below_2_to_the_62_and_has_at_most_16_digits(twin):
    for size in (b"3" + b"f" * 15, b"0" * 15 + b"5", b"3fffffffffffffff;a"):
        assert fed(twin, size + b"\r\nhello")[0] == len(size) + 7
    for size in (b"4" + b"0" * 15, b"f" * 16, b"0" * 17, b"9" * 100, b"1" + b"0" * 16):
        assert wrong(twin, size + b"\r\nhello") == rules.LONG_SIZE


@pytest.mark.parametrize("size", [b"5 ", b"5\t", b"5   \t "])  # h11 takes the last one
def test_white_space_behind_a_size_is_refused(twin, size):
    assert "white space behind the size" in wrong(twin, size + b"\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\r", b"\r\r\n", b"\n\r\n", b"\r ", b"\0\r\n"])
def test_crlf_alone_ends_a_line(twin, end):
    wrong(twin, b"5" + end + b"hello\r\n0\r\n\r\n")
    wrong(twin, b"5;a" + end + b"hello\r\n0\r\n\r\n")
    wrong(twin, b"5\r\nhello\r\n0" + end + b"\r\n")
    wrong(twin, b"5\r\nhello\r\n0\r\n" + end + b"x")
    wrong(twin, b"5\r\nhello\r\n0\r\nA: b" + end + b"\r\n")
    wrong(twin, b"5\r\nhello" + end + b"0\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"3\r\nxxx__1a\r\n",  # h11
        b"3\r\nxxx\r_1a\r\n",  # h11
        b"3\r\nxxx_\n1a\r\n",  # h11
        b"5\r\r;ABCD\r\n34\r\nE\r\n0\r\n\r\n",  # llhttp
        b"1\r\nAB\r\n0\r\n\r\n",
        b"1\r\nA\n0\r\n\r\n",
        b"1\r\nA0\r\n\r\n",
    ],
)
def test_data_behind_a_chunk_that_is_not_crlf_is_refused(twin, data):
    wrong(twin, data)


EXTENSIONS = [
    b";a",
    b";a=b",
    b' ; a = "b"',
    b";a;b=c;d",
    b"\t;\ta\t=\tb\t;c",
    b';a=""',
    b';a="\\""',
]
EXTENSIONS += [
    b';a="\\\\"',
    b';a=" \t!#[]~\x80\xff;=,"',
    b';a="\\\x80\\ \\\t"',
    b";!#$%&'*+-.^_`|~=~",
]
EXTENSIONS += [b";ilovew3;somuchlove=aretheseparametersfor;another=withvalue"]  # llhttp
EXTENSIONS += [b';ilovew3="I \\"love\\"; \\\\extensions\\\\";blah;foo=bar']  # llhttp
EXTENSIONS += [b'; random="junk"; some=more; canbe=lonnnnngg']  # h11


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extensions_are_read_over(twin, extension):
    line = extension + b"\r\n"
    assert read(twin, b"5" + line + b"hello\r\n00" + line + b"\r\n") == b"hello"


BAD_EXTENSIONS = [
    b";",
    b";;",
    b"; ",
    b";a;",
    b";a=",
    b";a= ",
    b";=b",
    b";a=b=c",
    b";a b",
    b";a=b c",
    b";a ",
]
BAD_EXTENSIONS += [
    b";a=b ",
    b';a="b" ',
    b';a="b',
    b';a="b"c',
    b';a="b""c"',
    b';a="\\',
    b';"a"',
    b";a,b",
]
BAD_EXTENSIONS += [
    b";a\0",
    b";a=\0",
    b';a="\0"',
    b';a="\\\0"',
    b';a="\x7f"',
    b';a="\n"',
    b";\x80",
    b";a=\x80",
]
BAD_EXTENSIONS += [b" erfrferferf", b" a;b", b";a\x0b;b"]  # the first: llhttp
BAD_EXTENSIONS += [b';ilovew3="abc";somuchlove="def; ghi']  # llhttp


@pytest.mark.parametrize("extension", BAD_EXTENSIONS)
def test_an_extension_out_of_its_grammar_is_refused(twin, extension):
    wrong(twin, b"5" + extension + b"\r\nhello\r\n0\r\n\r\n")


def test_a_line_with_a_size_has_at_most_4096_bytes(twin):
    room = rules.MAX_CHUNK_LINE - 3
    for extension in (b"a" * room, b'a="' + b"b" * (room - 4) + b'"', b" " * (room - 1) + b"a"):
        read_quickly(twin, b"05;" + extension + b"\r\nhello\r\n0\r\n\r\n")
        longer = extension.replace(b"a", b"aa", 1)
        data = b"05;" + longer + b"\r\nhello\r\n0\r\n\r\n"
        assert wrong(twin, data) == rules.LONG_EXTENSIONS


def test_extensions_may_exceed_the_payload_before_them_by_16_kb(twin):
    line = b"1;" + b"a" * 63 + b"\r\nx\r\n"  # 64 bytes of extensions, one of payload
    count = rules.MAX_EXTENSIONS // 63
    assert fed(twin, line * count)[2] is False
    assert wrong(twin, line * (count + 2)) == rules.LONG_EXTENSIONS
    # One in proportion to the payload, as a signature of each chunk is, never ends.
    line = b"100;" + b"a" * 100 + b"\r\n" + b"x" * 256 + b"\r\n"
    assert fed(twin, line * 1000)[0] == len(line) * 1000


@pytest.mark.parametrize(
    "trailers",
    [
        b"Vary: *\r\nContent-Type: text/plain\r\n",  # llhttp
        b"A:\r\n",
        b"A: \t b \xff\t\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: x\r\n",
    ],
)
def test_trailers_are_dropped(twin, trailers):
    assert read(twin, b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n") == b"hello"


@pytest.mark.parametrize(
    "trailers",
    [
        *(b"A\r\n", b"A : b\r\n", b" A: b\r\n", b"A: b\r\n c\r\n", b": b\r\n", b"A: \0\r\n"),
        *(b"A: \x7f\r\n", b"A: b\n", b"A: b\rB: c\r\n", b"\x80: b\r\n", b"A\0: b\r\n", b"\t\r\n"),
    ],
)
def test_a_trailer_is_a_field_like_those_of_a_head(twin, trailers):
    assert wrong(twin, b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n") == rules.CHUNK_ERRORS[-3]


def test_all_trailers_have_at_most_16_kb_together(twin):
    line = b"A: b\r\n"
    count = (rules.MAX_TRAILERS - 2) // len(line)
    rest = rules.MAX_TRAILERS - 2 - count * len(line)
    last = b"A:" + b"b" * (rest + 2) + b"\r\n"
    read_quickly(twin, b"0\r\n" + line * (count - 1) + last + b"\r\n")
    longer = b"0\r\n" + line * (count - 1) + b"b" + last + b"\r\n"
    assert wrong(twin, longer) == rules.LONG_TRAILERS
    assert wrong(twin, b"0\r\nA: " + b"b" * (1 << 15)) == rules.LONG_TRAILERS


def test_nothing_behind_the_end_is_read(twin):
    chunks = twin.Chunks()
    assert chunks.over is False
    data = b"??5\r\nhello\r\n0\r\n\r\n\0\0"
    assert chunks.feed(data, 2, len(data)) == (len(data) - 2, b"hello")
    assert chunks.over is True
    assert chunks.feed(b"\0\0", 1, 2) == (1, b"")
    assert chunks.over is True


def test_a_refused_body_stays_refused(twin):
    chunks = twin.Chunks()
    with pytest.raises(twin.ChunkError, match="does not begin with its size"):
        chunks.feed(b"g", 0, 1)
    for data in (b"5\r\n", b"", b"\r\n"):
        if data:
            with pytest.raises(twin.ChunkError, match="refused before"):
                chunks.feed(data, 0, len(data))
    assert chunks.over is False
    assert issubclass(twin.ChunkError, ValueError)


def test_only_what_lies_between_start_and_end_is_read(twin):
    data = bytearray(b"55\r\nhello\r\n")
    chunks = twin.Chunks()
    assert chunks.feed(data, 1, 6) == (6, b"he")
    assert chunks.feed(data, 6, 6) == (6, b"")
    at, payload = chunks.feed(data, 6, 9)
    data[:] = b"\0" * len(data)
    assert (at, payload) == (9, b"llo")


def test_places_must_lie_within_the_data_and_in_order(twin):
    chunks = twin.Chunks()
    for start, end in ((-1, 0), (2, 1), (0, 4), (0, -1), (4, 4), (0, 1 << 40)):
        with pytest.raises(ValueError, match="must be 0 to"):
            chunks.feed(b"5\r\n", start, end)


def test_a_large_chunk_is_one_slice_and_many_small_ones_are_put_together(twin):
    payload = bytes(range(256)) * 4096
    assert fed(twin, b"100000\r\n" + payload + b"\r\n0\r\n\r\n")[1] == payload
    small = b"".join(b"1\r\n%c\r\n" % byte for byte in payload[:50_000])
    assert fed(twin, small + b"0\r\n\r\n")[1] == payload[:50_000]


# --- properties ----------------------------------------------------------------------------------

_BLANK, _WORD = rb"[ \t]*", rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT = rb"[\t -~\x80-\xff]"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\' + _TEXT + rb')*"'
_EXTENSION = rb"(?:%b;%b%b(?:%b=%b(?:%b|%b))?)*" % (
    *(_BLANK, _BLANK, _WORD, _BLANK, _BLANK, _WORD),
    _QUOTED,
)
_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})" + _EXTENSION + rb"\r\n")
_TRAILERS = re.compile(rb"(?:%b:%b*\r\n)*\r\n" % (_WORD, _TEXT))


def by_grammar(data):
    """(how far, payload) of a whole body by the grammar of the RFC, or None."""
    at, payload = 0, b""
    while line := _LINE.match(data, at):
        size, at = int(line[1], 16), line.end()
        if not size:
            trailers = _TRAILERS.match(data, at)
            return trailers and (trailers.end(), payload)
        if data[at + size : at + size + 2] != b"\r\n":
            return None
        payload += data[at : at + size]
        at += size + 2
    return None


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
@examples(1500)
@given(draw=randoms, spoil=st.integers(0, 3))
def test_a_body_is_what_the_grammar_says(twin, draw, spoil):
    data = spoiled(draw, body(draw), spoil)
    found, expected = fed(twin, data), by_grammar(data)
    if expected:
        assert found == (*expected, True)
    else:
        assert isinstance(found, str) or not found[2]


@examples(1500)
@given(draw=randoms, spoil=st.integers(0, 2), size=st.integers(1, 30))
def test_both_twins_read_the_same_however_a_body_is_cut(draw, spoil, size):
    data = spoiled(draw, body(draw), spoil)
    whole = fed(COMPILED, data)
    for twin in TWINS.values():
        assert fed(twin, data) == fed(twin, data, size) == whole


@examples(500)
@given(st.binary(max_size=60))
def test_both_twins_read_the_same_of_any_bytes(data):
    for begin in (b"", b"5\r\nhello\r\n", b"0\r\n", b"0;a=", b'0;a="'):
        assert len({fed(twin, begin + data) for twin in TWINS.values()}) == 1
