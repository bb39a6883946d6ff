"""The master's side of ``sticky ctl``, without a master: what is asked, done, and refused."""

from __future__ import annotations

import json
import os
import re
import socket
import struct

import pytest

from sticky import ctlprotocol
from sticky.errors import StickyError
from sticky.master.control import Control

from .desk_kit import Loop


class Fake:
    """Does nothing, and remembers what it was told to do."""

    def __init__(self):
        self.done = []

    def status(self):
        return {"n": 2}

    def stats(self):
        return {"accepted": 3}

    def why(self, text):
        if text == "nobody":
            raise StickyError("'nobody' is no address")
        return {"key": text, "why": "peer address", "slot": 1, "n": 2, "pid": 7}

    def reload(self):
        self.done.append("reload")

    def scale(self, n):
        self.done.append(("scale", n))

    def drain(self, slot):
        self.done.append(("drain", slot))

    def kill(self, slot):
        raise RuntimeError("a fault of ours")

    def stop(self, *, quick=False):
        self.done.append(("stop", quick))


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def operations():
    return Fake()


@pytest.fixture
def control(loop, operations, tmp_path):
    control = Control(str(tmp_path / "sticky" / "socket"), operations, loop.clock)
    control.open(loop.register, loop.unregister)
    yield control
    control.close()
    assert not loop.handlers
    assert not control.path.exists()


@pytest.fixture
def say(loop, control):
    """Send bytes, get what the answer says."""

    def exchange(data):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control.path))
            return json.loads(loop.exchange(client, data))

    return exchange


@pytest.fixture
def ask(say):
    def exchange(command, **arguments):
        return say(ctlprotocol.pack(command=command, arguments=arguments))

    return exchange


@pytest.mark.parametrize(
    ("command", "arguments", "done"),
    [
        ("reload", {}, "reload"),
        ("scale", {"n": 8}, ("scale", 8)),
        ("drain", {"slot": 0}, ("drain", 0)),
        ("stop", {}, ("stop", False)),
        ("stop", {"quick": True}, ("stop", True)),
    ],
)
def test_each_command_is_done_once_and_answered(ask, operations, command, arguments, done):
    assert ask(command, **arguments) == {"sticky": 1, "answer": {}}
    assert operations.done == [done]


def test_what_is_asked_is_answered(ask):
    assert ask("status") == {"sticky": 1, "answer": {"n": 2}}
    assert ask("stats")["answer"] == {"accepted": 3}
    assert ask("why", text="10.0.0.1")["answer"]["slot"] == 1


def test_what_cannot_be_done_is_said_as_the_master_says_it(ask):
    assert ask("why", text="nobody") == {"sticky": 1, "error": "'nobody' is no address"}


def test_a_fault_of_ours_does_not_end_the_server(ask):
    assert "a fault of ours" in ask("kill", slot=0)["error"]
    assert ask("status")["answer"]


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("scale", {}, "n is None: it must be a number from 1 to 250"),
        ("scale", {"n": 0}, "n is 0"),
        ("scale", {"n": 251}, "n is 251"),
        ("scale", {"n": True}, "n is True"),
        ("scale", {"n": "3"}, "n is '3'"),
        ("drain", {"slot": -1}, "slot is -1"),
        ("kill", {"slot": 1.5}, "slot is 1.5"),
        ("why", {"text": ""}, "needs an address or a session id"),
        ("why", {"text": 3}, "needs an address or a session id"),
        ("restart", {}, "there is no command 'restart': there are status, "),
        (["status"], {}, "there is no command"),
        (None, {}, "there is no command None"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(ask, operations, command, arguments, says):
    assert says in ask(command, **arguments)["error"]
    assert not operations.done


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"\n", "this is not what sticky ctl says"),
        (b"GET / HTTP/1.1\r\n\r\n", "this is not"),
        (b"[]\n", "this is not"),
        (b"{}\n", "this is not"),
        (b"\xff\n", "this is not"),
        (b"[" * 3000 + b"\n", "this is not"),
        (b'{"sticky": 2, "command": "status"}\n', "speaks version 1 .* and not 2"),
        (b'{"sticky": 1, "command": "status", "arguments": 3}\n', "there is no command"),
        (b"x" * 4096, "too long"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_question_is_refused_in_our_own_form(say, line, says):
    answer = say(line)
    assert answer["sticky"] == 1
    assert re.search(says, answer["error"])


def test_a_command_comes_in_pieces_too(loop, control, operations):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control.path))
        line = ctlprotocol.pack(command="reload", arguments={})
        for byte in line[:-1]:
            client.sendall(bytes([byte]))
            loop.settle()
        assert not operations.done
        assert json.loads(loop.exchange(client, line[-1:]))["answer"] == {}
    assert operations.done == ["reload"]


def test_another_user_is_refused(ask, operations, monkeypatch):
    """Who gets as far as that: the directory keeps others out already."""
    monkeypatch.setattr(ctlprotocol, "_UCRED", Stranger())
    assert "its own user, and root" in ask("reload")["error"]
    assert not operations.done


class Stranger:
    """Reads the credentials of somebody else."""

    size = struct.calcsize("3i")

    def unpack(self, data):
        pid, _, group = struct.unpack("3i", data)
        return pid, os.geteuid() + 4242, group


def test_the_usual_place_is_named_after_the_process(loop, operations, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    control = Control("auto", operations, loop.clock)
    assert control.path == tmp_path / "sticky" / f"{os.getpid()}.sock"
    control.close()
