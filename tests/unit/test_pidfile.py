"""``pid``: a file that names the master, and no other process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sticky.errors import StickyError
from sticky.master.pidfile import PidFile

ME = os.geteuid(), os.getegid()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "app.pid"


@pytest.fixture
def other():
    """A process that is alive."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.stdin.close()


def test_it_is_there_from_the_beginning_to_the_end(path):
    file = PidFile(str(path), *ME)
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    file.close()
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("content", ["", "garbage", "0", "-1", "4194305\n", "9" * 30])
def test_what_names_no_living_process_is_replaced(path, content):
    path.write_text(content)
    PidFile(str(path), *ME)
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_living_one_is_an_error_that_says_so(path, other):
    path.write_text(f"{other}\n")
    with pytest.raises(StickyError, match=rf"names process {other}, which is alive: stop that"):
        PidFile(str(path), *ME)
    assert path.read_text() == f"{other}\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["app.pid"]


def test_a_process_that_is_younger_than_the_file_is_not_the_one_that_was_meant(path, other):
    path.write_text(f"{other}\n")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    PidFile(str(path), *ME)
    assert path.read_text() == f"{os.getpid()}\n"


def test_our_own_number_is_no_other_server(path):
    """Process 1 of a container, or this one before it upgraded itself."""
    path.write_text(f"{os.getpid()}\n")
    PidFile(str(path), *ME).close()
    assert not path.exists()


def test_at_the_end_it_is_removed_only_if_it_is_still_ours(path):
    file = PidFile(str(path), *ME)
    path.write_text("1\n")
    file.close()
    assert path.read_text() == "1\n"
    path.unlink()
    file.close()


def test_a_link_is_replaced_and_not_followed(path, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("data")
    path.symlink_to(precious)
    file = PidFile(str(path), *ME)
    assert not path.is_symlink()
    assert precious.read_text() == "data"
    file.close()


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(StickyError, match="cannot be written: No such file or directory"):
        PidFile(str(tmp_path / "no" / "app.pid"), *ME)
