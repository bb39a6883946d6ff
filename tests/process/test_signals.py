"""Signals that a server gets, alone or with all its processes, and the terminal that it has."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, Kind, wait_until

from .life_kit import NUM, ROUTED, ask, served_by


@pytest.mark.parametrize("name", ["SIGALRM"])
def test_a_signal_that_means_nothing_says_so(kind: Kind, name: str) -> None:
    with kind.serve("lab") as running:
        running.send_signal(signal.Signals[name])
        running.wait_for(f"{name} means nothing here")
        assert running.get().status == 200


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGTTIN", "SIGUSR2", "SIGWINCH"])
def test_what_the_whole_group_gets_is_the_masters_business(kind: Kind, name: str) -> None:
    """kill(1) with a minus sign, or what a terminal does."""
    number = signal.Signals[name]
    with (
        kind.serve("lab", num=NUM, proxy=True, options=ROUTED) as running,
        contextlib.ExitStack() as opened,
    ):
        pids = running.worker_pids()
        slots = range(NUM)
        clients = [opened.enter_context(ask(running, slot, "/slow?seconds=1")) for slot in slots]
        assert [served_by(running, slot) for slot in range(NUM)] == list(pids.values())  # begun
        for pid in (*pids.values(), running.master_pid):
            os.kill(pid, number)
        answers = [client.answer() for client in clients]
        assert [(a.status, a.json()["pid"]) for a in answers] == [(200, p) for p in pids.values()]
        assert served_by(running, 0) > 0
        assert "killed by" not in running.log()


def test_a_stop_of_the_whole_group_is_a_clean_one(kind: Kind) -> None:
    with (
        kind.serve("lab", num=NUM, proxy=True, options=ROUTED) as running,
        contextlib.ExitStack() as opened,
    ):
        pids = running.worker_pids()
        slots = [number % NUM for number in range(30)]
        clients = [opened.enter_context(ask(running, slot, "/slow?seconds=1")) for slot in slots]
        waiting = [served_by(running, slot) for slot in range(NUM)]
        assert waiting == list(pids.values())  # all of them are there
        for pid in (*pids.values(), running.master_pid):
            os.kill(pid, signal.SIGTERM)
        assert [client.answer().status for client in clients] == [200] * 30
        assert running.wait() == 0
        assert not re.search("killed|Traceback|starting it again", running.log())


# The first terminal that the leader of a session opens is the session's. (A fork in the tests' own
# process would take along whatever other tests have loaded.)
IN_TERMINAL = """
import os, sys
tty = os.open(sys.argv[1], os.O_RDWR)
os.dup2(tty, 0)
os.dup2(tty, 1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Terminal:
    """A server in the foreground of a terminal of its own."""

    def __init__(self, log: Path, *before: str) -> None:
        self.log = log
        self.fd, other = pty.openpty()
        served = [sys.executable, "-m", "sticky", "tests.apps:lab", "-b", "127.0.0.1:0", "-w", "2"]
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", IN_TERMINAL, os.ttyname(other), *before, *served],
                cwd=log.parent,  # where nohup writes to
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
        os.close(other)
        self.pid = self.process.pid
        self.wait_for("Listening at")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text(), 60, what=text)

    def close(self) -> None:
        """The window is closed."""
        os.close(self.fd)

    def status(self) -> int:
        """How the server ended."""
        return self.process.wait(60)


def test_a_server_ends_with_its_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "log")
    terminal.close()
    assert terminal.status() == 0
    terminal.wait_for("the terminal was closed: stopping gracefully")


def test_in_an_open_terminal_the_same_signal_reloads(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "log")
    os.killpg(terminal.pid, signal.SIGHUP)
    terminal.wait_for("Reloading")
    wait_until(lambda: terminal.log.read_text().count("ready (pid") == 4, 60, what="it reloads")
    terminal.close()
    assert terminal.status() == 0


def test_nohup_is_respected(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "log", "nohup")
    terminal.close()
    os.kill(terminal.pid, signal.SIGHUP)
    terminal.wait_for("Reloading")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.status() == 0


def test_ctrl_c_in_a_terminal_ends_everything_without_a_traceback(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "log")
    os.write(terminal.fd, b"\x03")
    assert terminal.status() == 0
    text = terminal.log.read_text()
    assert "SIGINT: stopping" in text
    assert "Traceback" not in text
    terminal.close()
