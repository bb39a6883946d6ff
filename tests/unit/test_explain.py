"""``sticky explain``: key, reason and slot."""

from __future__ import annotations

import io
import sys

import pytest

from sticky import cli, routing

SEED = "0123456789abcdef"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    import os

    for name in [n for n in os.environ if n.startswith(("STICKY_", "WEB_CON"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def explain(capsys, monkeypatch):
    def run(*words, head=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(head)))
        with pytest.raises(SystemExit) as raised:
            cli.main(["explain", "-w", "4", "--seed", SEED, *words])
        out, err = capsys.readouterr()
        return raised.value.code, out, err

    return run


def answer(key, why, head, peer, **options):
    slot = routing.explain(head, peer, num=4, seed=SEED, **options).slot
    return f"key   {key}\nwhy   {why}\nslot  {slot} of 4\n"


def test_an_address_goes_where_its_connections_go(explain):
    expected = answer("203.0.113.7", "peer address", b"", "203.0.113.7")
    assert explain("203.0.113.7") == (0, expected, "")


def test_with_session_an_address_goes_where_its_requests_without_an_id_go(explain):
    expected = answer("203.0.113.7", "peer address", b"", "203.0.113.7")
    assert explain("--session", "sid", "203.0.113.7") == (0, expected, "")
    status, out, _ = explain("--session", "sid", "--balance", "least", "203.0.113.7")
    assert (status, out.splitlines()[1]) == (0, "slot  any of 4")


def test_a_request_with_a_session_id_goes_where_that_leads(explain):
    head = b"GET /socket.io/?EIO=4&sid=abc HTTP/1.1\r\n\r\n"
    why = "session id in the query parameter 'sid'"
    expected = answer("abc", why, head, "127.0.0.1", session="sid")
    assert explain("--session", "sid", head=head) == (0, expected, "")


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ([], b"X-Forwarded-For: 203.0.113.7"),
        (["--proxy-header", "cf-connecting-ip"], b"CF-Connecting-IP: 203.0.113.7"),
        (["--proxy-header", "forwarded"], b"Forwarded: for=203.0.113.7"),
    ],
)
def test_behind_a_proxy_an_address_goes_where_its_requests_go(explain, words, field):
    status, out, _ = explain("--proxy", *words, "203.0.113.7")
    header = words[1] if words else "x-forwarded-for"
    head = b"GET / HTTP/1.1\r\n" + field + b"\r\n\r\n"
    why = f"leftmost address of '{header}'"
    assert (status, out) == (
        0,
        answer("203.0.113.7", why, head, "127.0.0.1", proxy=True, header=header),
    )


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_an_ipv6_address_stands_for_its_64(explain, header):
    status, out, _ = explain("--proxy", "--proxy-header", header, "2001:db8:1:2:3:4:5:6")
    assert status == 0
    assert out.startswith("key   2001:db8:1:2::/64\n")
    assert explain("2001:db8:1:2::99")[1].splitlines()[2] == out.splitlines()[2]


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.7, 10.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        HEAD + b"body",
        HEAD.replace(b"\r\n", b"\n"),
        HEAD.rstrip(),  # as people keep it in a file
        HEAD.replace(b"\r\n", b"\n").rstrip() + b"\n",
    ],
    ids=["whole", "with a body", "LF", "without its end", "with one LF"],
)
def test_a_head_from_the_standard_input_goes_where_the_request_goes(explain, head):
    why = "leftmost address of 'x-forwarded-for'"
    expected = answer("203.0.113.7", why, HEAD, "127.0.0.1", proxy=True)
    assert explain("--proxy", head=head) == (0, expected, "")


def test_the_options_of_routing_are_known(explain):
    _, out, _ = explain("--proxy", "--hops", "1", head=HEAD)
    assert out.startswith("key   10.0.0.1\nwhy   element 1 from the right of 'x-forwarded-for'\n")
    _, out, _ = explain("--proxy", "--ipv4-prefix", "24", head=HEAD)
    assert out.startswith("key   203.0.113.0/24\n")
    _, out, _ = explain("--ipv6-prefix", "48", "2001:db8:1:2::1")
    assert out.startswith("key   2001:db8:1::/48\n")
    _, out, _ = explain("--proxy", "--proxy-header", "host", head=HEAD)
    assert out.startswith("key   x\nwhy   no address in 'host', so its bytes\n")


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "'x-forwarded-for' is missing (400)"),
        (b"GET / HTTP/1.1\r\nX-Forwarded-For : 10.0.0.1\r\n\r\n", "white space before the colon"),
        (b"GET / HTTP/1.1\r\nX-Forwarded-For: unknown\r\n\r\n", "nothing but 'unknown'"),
        (b"", "the head is not complete"),
    ],
)
def test_a_request_that_is_refused_has_no_slot_and_status_1(explain, head, says):
    status, out, _ = explain("--proxy", head=head)
    assert status == 1
    assert out.startswith("no slot: ")
    assert says in out
    assert out.count("\n") == 1


def test_without_its_header_a_request_goes_by_its_peer_where_that_is_allowed(explain):
    words = ["--proxy", "--ignore-missing-header", "--peer", "203.0.113.7"]
    status, out, _ = explain(*words, head=b"GET / HTTP/1.1\r\n\r\n")
    assert status == 0
    assert out.splitlines()[:2] == [
        "key   203.0.113.7",
        "why   peer address, because 'x-forwarded-for' is missing",
    ]
    assert out.splitlines()[2] == explain("203.0.113.7")[1].splitlines()[2]


@pytest.mark.parametrize("words", [["203.0.113.777"], ["localhost"], ["--peer", "x"]])
def test_what_is_no_address_is_said_so(explain, words):
    status, out, err = explain(*words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"the client's address is {words[-1]!r}: it must be" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hops", "1"], "'hops' is 1, but 'proxy' is False"),
        (["-w", "0"], "'num' is 0"),
        (["--proxi"], "there is no option --proxi; did you mean --proxy?"),
        (["1.2.3.4", "5.6.7.8"], "this is too much: 5.6.7.8"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(explain, words, says):
    status, out, err = explain(*words)
    assert (status, out) == (2, "")
    assert err.startswith("sticky")
    assert err.count("\n") == 1
    assert says in err


def test_options_come_from_the_file_and_the_environment_too(explain, tmp_path, monkeypatch):
    path = tmp_path / "sticky.toml"
    path.write_text("proxy = true\nheader = 'x-real-ip'\nmax_head_size = 2048\n")
    monkeypatch.setenv("STICKY_HOPS", "1")
    head = b"GET / HTTP/1.1\r\nX-Real-IP: 10.0.0.1, 10.0.0.2\r\n\r\n"
    assert explain("-c", str(path), head=head)[1].startswith("key   10.0.0.2\n")


def test_without_a_seed_the_answer_is_always_the_same(capsys):
    answers = set()
    for _ in range(3):
        with pytest.raises(SystemExit):
            cli.main(["explain", "-w", "100", "203.0.113.7"])
        answers.add(capsys.readouterr().out)
    assert len(answers) == 1


def test_help_says_what_it_is_for(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["explain", "--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert "usage: sticky explain" in text
    assert "standard input" in text
    assert "--seed" in text
