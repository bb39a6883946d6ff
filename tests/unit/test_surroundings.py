"""What a supervisor is told of the life of a server, and what the master gets without one."""

from __future__ import annotations

import os
import socket

import pytest

from sticky.master.surroundings import Surroundings


@pytest.fixture
def told(tmp_path):
    """The Surroundings of a server with a supervisor; called, it says what that was told."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)
        around = Surroundings(None, {"NOTIFY_SOCKET": path})

        def heard():
            found = []
            try:
                while True:
                    found.append(sock.recv(4096).decode().partition("\n")[0])
            except BlockingIOError:
                return found

        yield around, heard
        around.close()


def test_a_reload_is_over_when_the_master_says_so(told):
    around, heard = told
    around.ready("4 workers")
    around.tick(1.0, serving=True, reloading=False)
    assert heard() == ["READY=1"]
    around.reloading()
    around.tick(2.0, serving=True, reloading=True)
    around.reloading()  # once more, in the middle of it
    around.tick(3.0, serving=True, reloading=True)
    assert heard() == ["RELOADING=1", "RELOADING=1"]
    around.tick(4.0, serving=True, reloading=False)
    around.tick(5.0, serving=True, reloading=False)
    assert heard() == ["READY=1"]


def test_before_it_is_ready_there_is_nothing_to_reload(told):
    around, heard = told
    around.reloading()
    around.status("3 of 4 workers")
    around.tick(1.0, serving=True, reloading=False)
    assert heard() == []


def test_a_stop_is_told_once_and_ends_a_reload_without_a_word(told):
    around, heard = told
    around.ready("4 workers")
    around.reloading()
    heard()
    around.tick(1.0, serving=False, reloading=False)
    around.tick(2.0, serving=False, reloading=False)
    around.close()
    assert heard() == ["STOPPING=1"]


def test_a_status_is_told_as_it_changes(told):
    around, heard = told
    around.ready("4 workers")
    around.status("4 workers")
    around.status("5 workers")
    assert heard() == ["READY=1", "STATUS=5 workers"]


def test_without_options_it_is_nothing_and_does_nothing(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody")
    before = os.umask(0o022)
    os.umask(before)
    around = Surroundings()
    around.settle(None, None)
    around.attend(None, None)
    around.ready("")
    around.reloading()
    around.tick(1.0, serving=True, reloading=False)
    with around.as_user():
        pass
    around.close()
    after = os.umask(before)
    assert after == before
