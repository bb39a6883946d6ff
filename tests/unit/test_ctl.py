"""``sticky ctl`` at the side of people: from words to a question, from an answer to a table."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from sticky import ctl
from sticky.ctlprotocol import pack, unpack
from sticky.errors import StickyError


def process(pid, **more):
    return {
        "pid": pid,
        "state": "ready",
        "serves": True,
        "worker_class": "asgi",
        "age": 3.2,
        "rss": 61 << 20,
        "open": 12,
        "load": 9,
        "sessions": 9,
        "requests": 40123,
        "requests_per_second": 11.25,
        "moves": 17,
        **more,
    }


STATUS = {
    "version": "0.1.0",
    "pid": 4711,
    "stage": "serving",
    "n": 2,
    "reloading": True,
    "age": 200_000.0,
    "rss": 3 << 30,
    "listening": ["http://127.0.0.1:3000", "unix:/run/\x1bx"],
    "held": 1,
    "accepted": 90210,
    "slots": [
        {
            "slot": 0,
            "state": "up",
            "queued": 3,
            "resting": 1,
            "processes": [process(11), process(10, state="draining", serves=False, age=7300)],
        },
        {"slot": 1, "state": "backoff", "queued": 2, "resting": 0, "processes": []},
    ],
}


def test_a_status_is_a_table():
    lines = ctl.status_text(STATUS).splitlines()
    assert lines[0] == "sticky 0.1.0, pid 4711: serving, reloading, 2 slots, up 2d, master 3.0G"
    assert lines[1] == "at http://127.0.0.1:3000, unix:/run/\\x1bx"  # no escapes for the terminal
    assert lines[2] == "held 1, accepted 90210"
    rows = [line.split() for line in lines[4:]]
    counted = ["12", "9", "11.2", "40123", "17"]
    assert len(rows[0]) == len(rows[1]) == 12
    assert rows[1] == ["0", "11", "ready", "asgi", "3s", "61M", *counted, "4"]
    assert rows[2] == ["0", "10", "draining", "asgi", "2h", "61M", *counted]
    assert rows[3] == ["1", "-", "backoff", "-", "-", "-", "-", "-", "-", "-", "-", "2"]


@pytest.fixture
def server(tmp_path):
    """Answers one question with what a test says; ``asked`` is what the question was."""

    class Server:
        path = str(tmp_path / "socket")
        reply = pack(answer={})
        asked = None

        def serve(self, listener):
            client, _ = listener.accept()
            with client:
                self.asked = unpack(client.makefile("rb").readline())
                with contextlib.suppress(BrokenPipeError):  # it has read enough to know better
                    client.sendall(self.reply)

    server = Server()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(server.path)
        listener.listen()
        thread = threading.Thread(target=server.serve, args=(listener,))
        thread.start()
        yield server
        thread.join()


def run(server, *words):
    return ctl.main(["--ctl", server.path, *words], prog="sticky ctl")


@pytest.mark.parametrize(
    ("words", "command", "arguments"),
    [
        (["status"], "status", {}),
        (["stats"], "stats", {}),
        (["reload"], "reload", {}),
        (["scale", "8"], "scale", {"n": 8}),
        (["drain", "3"], "drain", {"slot": 3}),
        (["kill", "0"], "kill", {"slot": 0}),
        (["stop"], "stop", {"quick": False}),
        (["stop", "--quick"], "stop", {"quick": True}),
        (["why", "10.0.0.1"], "why", {"text": "10.0.0.1"}),
    ],
    ids=str,
)
def test_each_command_asks_for_itself(server, capsys, words, command, arguments):
    assert run(server, *words, "--json") == 0
    assert server.asked == {"sticky": 1, "command": command, "arguments": arguments}
    assert json.loads(capsys.readouterr().out) == {}


def test_what_was_begun_and_what_is_done_is_told_apart(server, capsys):
    assert run(server, "scale", "3") == 0
    assert capsys.readouterr().out == "begun\n"


def test_a_refusal_is_for_people_and_the_status_is_one(server, capsys):
    server.reply = pack(error="there is no slot 9\x1b[2J")
    assert run(server, "kill", "9") == 1
    assert capsys.readouterr().err == "sticky ctl: there is no slot 9\\x1b[2J\n"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"", "not what sticky ctl says"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "not what sticky ctl says"),
        (b'{"sticky": 2, "answer": {}}\n', "the sticky ctl of the server's own installation"),
        (b'{"sticky": 1, "answer": []}\n', "gave no answer"),
        (b'{"sticky": 1}\n', "gave no answer"),
        (b"x" * 1_100_000, "too long"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_answer_that_is_none_is_said_so(server, capsys, reply, says):
    server.reply = reply
    try:
        assert run(server, "status") == 1
    finally:
        out, err = capsys.readouterr()
    assert says in err
    assert out == ""


def test_nobody_at_the_other_end_is_said_so(tmp_path):
    with pytest.raises(StickyError, match=r"no server answers at .*No such file"):
        ctl.ask(tmp_path / "none", "status")
