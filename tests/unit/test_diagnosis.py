"""What the first requests tell about the configuration."""

from __future__ import annotations

import pytest

from sticky.master.diagnosis import ENOUGH, Survey
from sticky.options import Options
from sticky.topology import Topology


class Told:
    def __init__(self, **options):
        self.lines = []
        settings = Options(seed=bytes(8), **{"num": 4, **options})
        self.survey = Survey(settings, Topology(settings), self.tell)
        self.over = False

    def tell(self, subject, text):
        self.lines.append((subject, text))

    def request(self, peer="192.0.2.1", *lines):
        head = bytearray("\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode())
        length = len(head)
        assert not self.over, "it is asked no more once it is over"
        self.over = self.survey.note(head + b"what was there before", length, peer)


def other(number):
    return f"10.0.{number // 200}.{number % 200 + 1}"


def test_one_address_without_a_proxy_looks_like_a_proxy():
    told = Told()
    for number in range(ENOUGH):
        told.request("192.0.2.1" if number % 50 else other(number))
    assert told.over
    ((subject, text),) = told.lines
    assert subject == "one address"
    assert "you seem to be behind a proxy" in text
    assert "--proxy" in text
    assert "192.0.2.1" in text
    assert f"{ENOUGH - 4} of the first {ENOUGH}" in text


def test_many_addresses_are_fine():
    told = Told()
    for number in range(ENOUGH):
        told.request("192.0.2.1" if number % 10 else other(number))
    assert told.over
    assert told.lines == []


def test_it_says_nothing_before_it_has_seen_enough():
    told = Told()
    for _ in range(ENOUGH - 1):
        told.request()
    assert not told.over
    assert told.lines == []


@pytest.mark.parametrize("proxy", [True, False])
def test_with_one_worker_it_does_not_matter(proxy):
    told = Told(num=1, proxy=proxy)
    for _ in range(ENOUGH):
        told.request("192.0.2.1", "X-Forwarded-For: 10.0.0.1")
    assert told.over
    assert told.lines == []


def test_one_key_behind_a_proxy_names_the_header_that_would_do():
    told = Told(proxy=True)
    for number in range(ENOUGH):
        lines = [f"x-real-ip: {other(number)}", "X-FORWARDED-FOR: 10.9.9.9", "Forwarded-For: x"]
        told.request("192.0.2.1", *lines)
    ((subject, text),) = told.lines
    assert subject == "one key"
    assert "10.9.9.9" in text
    assert "'x-forwarded-for'" in text
    assert "--proxy-header; these headers are there too: x-real-ip" in text


def test_one_key_without_another_header_says_only_that():
    told = Told(proxy=True, header="cf-connecting-ip")
    for _ in range(ENOUGH):
        told.request("192.0.2.1", "CF-Connecting-IP: 10.9.9.9", "Host: x-real-ip: no")
    ((subject, text),) = told.lines
    assert subject == "one key"
    assert "these headers" not in text


@pytest.mark.parametrize(("share", "says"), [(0.5, True), (0.1, True), (0.01, False), (1, False)])
def test_a_header_that_arrives_only_on_some_requests_is_named(share, says):
    """Health probes are few, and without any header something else is wrong."""
    told = Told(proxy=True, ignore_missing_header=True)
    for number in range(ENOUGH):
        missing = number < share * ENOUGH
        told.request(other(number), *([] if missing else [f"X-Forwarded-For: {other(number)}"]))
    assert [subject for subject, _ in told.lines] == (["some without"] if says else [])
    if says:
        text = told.lines[0][1]
        assert f"{int(share * ENOUGH)} of the first {ENOUGH} requests" in text
        assert "'x-forwarded-for'" in text


def test_a_key_that_is_no_text_is_shown_readably():
    told = Told(proxy=True)
    for _ in range(ENOUGH):
        head = bytearray(b"GET / HTTP/1.1\r\nX-Forwarded-For: \xff\xfekey\r\n\r\n")
        told.survey.note(head, len(head), "192.0.2.1")
    ((_, text),) = told.lines
    assert "\\xff\\xfekey" in text


def test_a_key_is_shown_without_its_control_characters_and_not_for_ever():
    told = Told(proxy=True)
    for _ in range(ENOUGH):
        value = b"\x1b[31m\x85" + b"k" * 50_000
        head = bytearray(b"GET / HTTP/1.1\r\nX-Forwarded-For: " + value + b"\r\n\r\n")
        told.survey.note(head, len(head), "192.0.2.1")
    ((_, text),) = told.lines
    assert "\\x1b[31m\\x85kkk" in text
    assert text.isprintable()
    assert len(text) < 1000
