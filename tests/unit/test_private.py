"""Where a server and ``sticky ctl`` meet: a directory that is the user's own, or nothing."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from sticky import private
from sticky.errors import StickyError

ME = os.geteuid()
root = pytest.mark.skipif(ME != 0, reason="only root can give something away")


def test_the_socket_is_in_a_new_directory_with_nobody_elses_rights(tmp_path):
    path = tmp_path / "sticky" / "1.sock"
    before = os.umask(0)
    try:
        with private.listener(path, ME):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert private.answers(path)
    finally:
        os.umask(before)


def test_the_usual_place_is_the_first_that_is_the_users(tmp_path, monkeypatch):
    assert private.default({"XDG_RUNTIME_DIR": str(tmp_path)}, ME) == tmp_path / "sticky"
    for wrong in ("", "relative", str(tmp_path / "none")):
        found = private.default({"XDG_RUNTIME_DIR": wrong}, 4242)
        assert found == Path("/tmp/sticky-4242")
    # root's variable, in a server that has become somebody else
    assert private.default({"XDG_RUNTIME_DIR": str(tmp_path)}, 4242) == Path("/tmp/sticky-4242")


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o777, 0o1777])
def test_a_directory_that_is_open_to_others_is_refused(tmp_path, mode):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StickyError, match=r"open to others.*must have 0700"):
        private.listener(folder / "1.sock", ME)
    assert not list(folder.iterdir())


@root
def test_another_users_directory_is_refused(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir(0o700)
    os.chown(folder, 4242, 4242)
    with pytest.raises(StickyError, match="belongs to user 4242, and not to"):
        private.listener(folder / "1.sock", ME)


def test_a_link_is_refused_even_to_a_directory_that_would_do(tmp_path):
    good = tmp_path / "good"
    good.mkdir(0o700)
    link = tmp_path / "link"
    link.symlink_to(good)
    with pytest.raises(StickyError, match="a link or no directory"):
        private.listener(link / "1.sock", ME)
    assert not list(good.iterdir())


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StickyError, match="Not a directory"):
        private.listener(tmp_path / "file" / "1.sock", ME)


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(StickyError, match="longer than 107 bytes"):
        private.listener(tmp_path / ("x" * 100) / "1.sock", ME)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_server_left_is_replaced_and_what_listens_is_not(tmp_path):
    path = tmp_path / "sticky" / "1.sock"
    private.listener(path, ME).close()
    assert path.is_socket()
    with private.listener(path, ME), pytest.raises(StickyError, match="another server listens"):
        private.listener(path, ME)
    assert path.is_socket()


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_is_no_socket_is_never_removed(tmp_path, what):
    folder = tmp_path / "sticky"
    folder.mkdir(0o700)
    path = folder / "1.sock"
    path.write_text("data") if what == "file" else path.symlink_to("/etc/passwd")
    with pytest.raises(StickyError, match="no socket"):
        private.listener(path, ME)
    assert path.is_symlink() or path.read_text() == "data"


def test_servers_are_found_by_their_process_ids_and_dead_ones_forgotten(tmp_path):
    folder = tmp_path / "sticky"
    private.listener(folder / "7.sock", ME).close()
    for name in ("x.sock", "9", "8.sock.old"):
        (folder / name).touch()
    with private.listener(folder / "12.sock", ME), private.listener(folder / "3.sock", ME):
        assert set(private.found(folder)) == {3, 12}
    assert not (folder / "7.sock").exists()
    assert private.found(tmp_path / "none") == {}


def test_what_killed_servers_left_is_swept_and_nothing_else(tmp_path):
    folder = tmp_path / "sticky"
    dead, alive, me = 2**22 + 1, 2**22 + 2, os.getpid()
    for pid in (dead, me):
        private.listener(folder / f"{pid}.sock", ME).close()
    (folder / "app.sock").touch()
    with private.listener(folder / f"{alive}.sock", ME):  # in another container
        private.sweep(folder)
    left = {path.name for path in folder.iterdir()}
    assert left == {f"{alive}.sock", f"{me}.sock", "app.sock"}
    private.sweep(tmp_path / "none")


def test_a_socket_is_removed_only_if_it_is_still_the_same(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(path))
        there = os.lstat(path)
        path.rename(tmp_path / "moved")
        other.bind(str(path))
        private.remove(path, (there.st_dev, there.st_ino))
        assert path.is_socket()
        there = os.lstat(path)
        private.remove(path, (there.st_dev, there.st_ino))
        assert not path.exists()
