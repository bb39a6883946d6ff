"""sd_notify(3) and sd_listen_fds(3), against a socket of our own; the whole of it is in
tests/process/test_systemd.py."""

from __future__ import annotations

import itertools
import os
import socket

import pytest

from sticky.master import listeners, systemd
from sticky.master.listeners import Listeners
from sticky.master.systemd import Notifier
from sticky.options import Options


@pytest.fixture(params=["path", "abstract"])
def supervisor(request, tmp_path):
    """A socket as systemd's; its ``name`` is what NOTIFY_SOCKET is then."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(path if request.param == "path" else "\0" + path)
        yield sock, path if request.param == "path" else "@" + path


def said(sock):
    """What has come: the lines of each message, and its descriptors."""
    found = []
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(sock, 4096, 10)
        except BlockingIOError:
            return found
        found.append((data.decode().split("\n"), fds))


def lines(sock):
    return [line for message, _ in said(sock) for line in message]


def test_it_is_told_what_happens(supervisor):
    sock, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert notifier.listens
    notifier.ready("4 workers")
    assert lines(sock) == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=4 workers"]
    notifier.reloading("Reloading")
    message = lines(sock)
    assert message[0] == "RELOADING=1"
    assert message[1].startswith("MONOTONIC_USEC=")
    assert message[1].partition("=")[2].isdecimal()
    notifier.stopping("Stopping")
    assert lines(sock) == ["STOPPING=1", "STATUS=Stopping"]
    notifier.close()
    notifier.ready("no more")
    assert lines(sock) == []


def test_a_status_is_told_once(supervisor):
    sock, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for status in ("a", "a", "b"):
        notifier.status(status)
    assert lines(sock) == ["STATUS=a", "STATUS=b"]
    notifier.close()


def test_the_main_process_is_the_one_that_it_has_started(supervisor):
    sock, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name}, started_by=4711)
    notifier.ready("")
    assert "MAINPID=4711" in lines(sock)
    notifier.close()


@pytest.mark.parametrize("name", ["", "relative", "/no/such/socket", "@nobody listens", "@"])
def test_nobody_who_listens_is_no_error(name):
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    for call in (notifier.ready, notifier.reloading, notifier.stopping, notifier.status):
        call("text")
    notifier.alive(1.0)
    notifier.close()


def test_signs_of_life_come_as_often_as_it_wants_them(supervisor):
    sock, name = supervisor
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ)
    assert notifier.interval == 10.0
    told = []
    for now in range(100, 121):  # the loop looks once in a second
        notifier.alive(float(now))
        told += [now] * len(lines(sock))
    gaps = [after - before for before, after in itertools.pairwise(told)]
    assert set(gaps) == {4}  # half of it, and a second for whoever is late
    notifier.close()


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}]
)
def test_without_a_watchdog_there_are_none(supervisor, environ):
    sock, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name, **environ})
    notifier.alive(1.0)
    assert lines(sock) == []
    notifier.close()


def test_it_keeps_what_is_new_and_forgets_what_is_not_used(supervisor):
    sock, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name, "FDSTORE": "8"})
    assert notifier.keeps_files
    with (
        socket.create_server(("127.0.0.1", 0)) as new,
        socket.create_server(("127.0.0.1", 0)) as old,
    ):
        names = [systemd.name_of(it.getsockname()) for it in (new, old)]
        notifier.keep([new, old], ["sticky-gone", names[1]], [old])
        messages = said(sock)
        texts = [message for message, _ in messages]
        assert texts == [
            ["FDSTOREREMOVE=1", "FDNAME=sticky-gone"],
            ["FDSTORE=1", f"FDNAME={names[0]}"],
        ]
        with socket.socket(fileno=messages[1][1][0]) as kept:
            assert kept.getsockname() == new.getsockname()
    notifier.close()


@pytest.mark.parametrize(
    "address",
    [("127.0.0.1", 3000), ("::1", 3000, 0, 0), "/run/app/ä:b", "/" + "ä" * 53],
    ids=str,
)
def test_a_name_in_the_store_is_one_that_may_be(address):
    name = systemd.name_of(address)
    assert systemd.is_kept(name)
    assert len(name) <= 255
    assert name.isascii()
    assert name.isprintable()
    assert ":" not in name


def test_what_is_for_the_server_is_not_passed_on():
    environ = {"PATH": "/bin", **dict.fromkeys(systemd.VARIABLES, "x")}
    assert systemd.without(environ) == {"PATH": "/bin"}


# -- sockets that were kept -----------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch):
    """Pass these sockets as systemd does: they are closed, and descriptors of them are there."""

    def give(*socks, pid=None):
        # Numbers are counted from 3 there; here they are others, and said to be.
        descriptors = {3 + at: os.dup(sock.fileno()) for at, sock in enumerate(socks)}
        names = ":".join(systemd.name_of(sock.getsockname()) for sock in socks)
        monkeypatch.setenv("LISTEN_FDS", str(len(socks)))
        monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
        monkeypatch.setenv("LISTEN_FDNAMES", names)
        return descriptors

    return give


def identity(sock):
    return os.fstat(sock.fileno()).st_ino


def test_a_listener_that_was_kept_is_the_same_socket(kept):
    with socket.create_server(("127.0.0.1", 0)) as before:
        port = before.getsockname()[1]
        waiting = socket.create_connection(("127.0.0.1", port))
        found = Listeners(Options(bind=f"127.0.0.1:{port}"), kept(before))
        assert identity(found.sockets[0]) == identity(before)
        assert found.again == found.made == found.sockets
        assert found.kept_names == [systemd.name_of(("127.0.0.1", port))]
        accepted, _ = before.accept()  # whoever had waited waits still
        accepted.close()
        waiting.close()
        found.close()


def test_a_port_that_the_system_chose_stays(kept):
    with socket.create_server(("127.0.0.1", 0)) as before:
        found = Listeners(Options(port=0), kept(before))
        assert found.addresses == [before.getsockname()]
        found.close()


def test_what_nobody_wants_to_listen_on_any_more_is_closed(kept):
    with socket.create_server(("127.0.0.1", 0)) as before:
        descriptors = kept(before)
        found = Listeners(Options(bind="127.0.0.2:0"), descriptors)
        assert not found.again
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptors[3])
        found.close()


def test_a_unix_socket_whose_file_is_gone_is_made_anew(kept, tmp_path):
    path = str(tmp_path / "socket")
    options = Options(bind=f"unix:{path}", proxy=True)
    with socket.socket(socket.AF_UNIX) as before:
        before.bind(path)
        before.listen()
        found = Listeners(options, kept(before))
        assert identity(found.sockets[0]) == identity(before)
        found.leave_files()
        found.close()
        assert os.path.exists(path)
        os.unlink(path)
        found = Listeners(options, kept(before))
        assert identity(found.sockets[0]) != identity(before)
        assert not found.again
        found.close()


def test_what_was_passed_to_somebody_else_is_not_ours(kept):
    with socket.create_server(("127.0.0.1", 0)) as before:
        descriptors = kept(before, pid=1)
        found = Listeners(Options(port=0), descriptors)
        assert found.addresses != [before.getsockname()]
        found.close()
        os.close(descriptors[3])


def test_names_are_shown(kept, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as before:
        descriptors = kept(before)
        monkeypatch.setenv("LISTEN_FDNAMES", "web")
        assert listeners.from_systemd(os.environ) == ["fd://3"]
        found = Listeners(Options(bind="fd://3"), descriptors)
        port = before.getsockname()[1]
        assert found.urls == [f"http://127.0.0.1:{port} (web)"]
        assert found.made == []  # it is systemd's already
        found.close()
