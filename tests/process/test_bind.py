"""Where a server listens: addresses of both families, unix sockets, descriptors it is given."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sticky
from tests.harness import ROOT, Kind, Running, serve

from .clients import SEED, XFF, Client, head, parse, slot_of
from .test_options import assert_one_line, run

APP = "tests.apps:whoami"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def command(kind: Kind, *arguments: str, num: int = 1) -> Running:
    words = [sys.executable, "-m", "sticky", kind.app("whoami"), "-w", str(num), *arguments]
    return Running(words, num=num, env=kind.env)


def addresses(running: Running) -> list[str]:
    found = re.search(r"Listening at: (.*) \(pid", running.log())
    assert found
    return found[1].split(", ")


def ask(address: str | tuple[str, int], *lines: str) -> sticky.Explanation | dict[str, object]:
    """What the app says when it is asked there."""
    if isinstance(address, str):
        family, where = socket.AF_UNIX, address
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        where = address
    with socket.socket(family) as sock:
        sock.settimeout(20)
        sock.connect(where)
        sock.sendall(head("Connection: close", *lines))
        answer = parse(b"".join(iter(lambda: sock.recv(65536), b"")))
    assert answer.status == 200, answer
    return answer.json()


@ipv6
def test_several_addresses_of_all_kinds_are_one_server(kind: Kind, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    binds = ["-b", "127.0.0.1:0", "-b", "[::1]:0", "-b", f"unix:{path}"]
    with command(kind, *binds, "--proxy", "--seed", SEED, num=2) as running:
        first, second, third = addresses(running)
        ports = [int(url.rpartition(":")[2]) for url in (first, second)]
        assert (first, second) == (f"http://127.0.0.1:{ports[0]}", f"http://[::1]:{ports[1]}")
        assert third == f"unix:{path}"
        for number in range(10):
            client = f"203.0.113.{number}"
            for where in (("127.0.0.1", ports[0]), ("::1", ports[1]), path):
                assert ask(where, f"{XFF}: {client}")["worker"] == slot_of(client, 2)
        assert running.stop() == 0
    assert not os.path.exists(path)


@ipv6
def test_all_of_ipv6_is_all_of_ipv4_too_and_the_client_is_the_same(kind: Kind) -> None:
    with command(kind, "-b", "[::]:0", "--seed", SEED, num=2) as running:
        port = int(addresses(running)[0].rpartition(":")[2])
        four, six = ask(("127.0.0.1", port)), ask(("::1", port))
        assert four["worker"] == slot_of("127.0.0.1", 2)
        assert six["worker"] == slot_of("::1", 2)


@ipv6
def test_both_families_can_have_a_listener_on_the_same_port(kind: Kind) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with command(kind, "-b", f"0.0.0.0:{port}", "-b", f"[::]:{port}") as running:
        assert addresses(running) == [f"http://0.0.0.0:{port}", f"http://[::]:{port}"]
        assert ask(("127.0.0.1", port))["remote_addr"] == "127.0.0.1"
        assert ask(("::1", port))["remote_addr"] == "::1"


@ipv6
def test_a_name_stands_for_all_its_addresses(kind: Kind) -> None:
    found = {at[4][0] for at in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with command(kind, "-b", "localhost:0") as running:
        bound = addresses(running)
        assert len(bound) == len(found)
        assert len({url.rpartition(":")[2] for url in bound}) == 1
        for host in found:
            ask((host, int(bound[0].rpartition(":")[2])))


def test_one_address_that_cannot_be_had_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        binds = ["-b", f"unix:{path}", "-b", f"127.0.0.1:{port}"]
        ended = run("-m", "sticky", APP, "--proxy", *binds)
    assert ended.returncode == 1
    assert_one_line(ended.stderr, f"cannot listen on 127.0.0.1:{port}: the port is in use")
    assert not path.exists()


def test_a_name_that_does_not_exist_is_one_line() -> None:
    ended = run("-m", "sticky", APP, "-b", "no-such-host.invalid:3000")
    assert ended.returncode == 1
    assert_one_line(ended.stderr, "cannot listen on no-such-host.invalid:3000: ")


# -- unix sockets ----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


def test_a_unix_socket_needs_a_proxy_because_its_clients_have_no_address(path: str) -> None:
    with pytest.raises(sticky.OptionError, match="no address to route by") as raised:
        sticky.listen(APP, bind=f"unix:{path}")
    assert "proxy=True" in str(raised.value)
    ended = run("-m", "sticky", APP, "-b", f"unix:{path}")
    assert ended.returncode == 2
    assert_one_line(ended.stderr, "'bind'.*'proxy' is False")
    assert not os.path.exists(path)


def test_without_its_header_a_client_of_a_unix_socket_is_refused_or_goes_to_one_worker(
    kind: Kind, path: str
) -> None:
    with command(kind, "-b", f"unix:{path}", "--proxy") as running:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(path)
            sock.sendall(head())
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
        assert running.stop() == 0
    with command(kind, "-b", f"unix:{path}", "--proxy", "--ignore-missing-header", num=2):
        assert len({ask(path)["worker"] for _ in range(5)}) == 1


def test_the_file_of_a_server_that_was_killed_is_replaced(kind: Kind, path: str) -> None:
    with command(kind, "-b", f"unix:{path}", "--proxy") as running:
        os.kill(running.master_pid, signal.SIGKILL)
        running.wait()
    assert stat.S_ISSOCK(os.lstat(path).st_mode)
    with command(kind, "-b", f"unix:{path}", "--proxy"):
        assert ask(path, f"{XFF}: 10.0.0.1")
    assert not os.path.exists(path)


def test_the_file_of_a_server_that_runs_is_never_taken(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(0)
        with socket.socket(socket.AF_UNIX) as full:  # even if it does not accept just now
            full.connect(path)
            ended = run("-m", "sticky", APP, "--proxy", "-b", f"unix:{path}")
        assert ended.returncode == 1
        assert_one_line(ended.stderr, f"cannot listen on unix:{path}: another program listens")
        assert os.path.exists(path)


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_a_file_that_is_no_socket_is_never_removed(path: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    if what == "file":
        Path(path).write_text("data")
    elif what == "folder":
        os.mkdir(path)
    else:
        os.symlink(tmp_path / "precious", path)
    before = os.lstat(path)
    ended = run("-m", "sticky", APP, "--proxy", "-b", f"unix:{path}")
    assert ended.returncode == 1
    assert_one_line(ended.stderr, f"cannot listen on unix:{path}: there is a file of this name")
    assert os.path.samestat(os.lstat(path), before)
    assert (tmp_path / "precious").read_text() == "data"


def test_at_the_end_the_file_is_removed_only_if_it_is_still_ours(kind: Kind, path: str) -> None:
    with command(kind, "-b", f"unix:{path}", "--proxy") as running:
        os.rename(path, path + ".moved")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            assert running.stop() == 0
            assert os.path.exists(path)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ended = run("-m", "sticky", APP, "--proxy", "-b", f"unix:{tmp_path}/no/socket")
    assert ended.returncode == 1
    assert_one_line(ended.stderr, "cannot listen on unix:.*No such file or directory")


# -- descriptors -----------------------------------------------------------------------------------

# Listens at descriptors from 3, tells so as systemd does, and becomes sticky.
ACTIVATION = """
import os, socket, sys
count, pid, *command = sys.argv[1:]
held = []
for number in range(int(count)):
    sock = socket.create_server(("127.0.0.1", 0))
    os.dup2(sock.fileno(), 103 + number, inheritable=True)
    held.append(sock)
for sock in held:
    sock.close()
for number in range(int(count)):
    os.dup2(103 + number, 3 + number, inheritable=True)
    os.close(103 + number)
if pid != "-":
    os.environ.update(LISTEN_FDS=count, LISTEN_PID=str(os.getpid()) if pid == "own" else pid)
os.execv(sys.executable, [sys.executable, *command])
"""


@contextlib.contextmanager
def activated(
    tmp_path: Path, *words: str, count: int = 1, pid: str = "own", num: int = 1
) -> Iterator[Running]:
    script = tmp_path / "activate.py"
    script.write_text(ACTIVATION)
    command = [sys.executable, str(script), str(count), pid, *words]
    with Running(command, num=num, env={"PYTHONPATH": str(ROOT)}) as running:
        yield running


def test_the_command_takes_the_descriptors_that_systemd_passes(tmp_path: Path) -> None:
    words = ["-m", "sticky", "tests.apps:lab", "-w", "1"]
    with activated(tmp_path, *words, count=2) as running:
        bound = addresses(running)
        assert len(bound) == 2
        for url in bound:
            seen = ask(("127.0.0.1", int(url.rpartition(":")[2])))
            assert seen["worker"] == 0
        environ = running.get("/process").json()["environ"]
        assert not [name for name in environ if name.startswith("LISTEN_")]


def test_what_was_said_counts_more_than_what_systemd_passes(tmp_path: Path) -> None:
    words = ["-m", "sticky", "tests.apps:lab", "-w", "1", "-b", "127.0.0.2:0"]
    with activated(tmp_path, *words) as running:
        assert addresses(running)[0].startswith("http://127.0.0.2:")


@pytest.mark.parametrize("how", ["command", "script"])
def test_a_descriptor_can_be_named(tmp_path: Path, how: str) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import json, sticky\n"
        "from tests.apps import lab\n"
        "def say(addresses): print(json.dumps(addresses), flush=True)\n"
        "sticky.listen(lab, num=1, bind='fd://3', on_listening=say)\n"
    )
    words = ["-m", "sticky", "tests.apps:lab", "-w", "1", "-b", "fd://3"]
    words = words if how == "command" else [str(script)]
    with activated(tmp_path, *words, pid="-") as running:
        port = int(addresses(running)[0].rpartition(":")[2])
        assert ask(("127.0.0.1", port))["worker"] == 0
        if how == "script":
            found = running.wait_for(r"^\[\[.*\]\]$")[0]
            assert json.loads(found) == [["127.0.0.1", port]]


def test_a_script_takes_the_descriptors_that_systemd_passes(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text("import sticky, tests.apps\nsticky.listen(tests.apps.lab, num=1)\n")
    with activated(tmp_path, str(script)) as running:
        assert running.get().json()["worker"] == 0


@pytest.mark.parametrize(
    ("number", "why"),
    [
        ("99", "Bad file descriptor"),
        ("0", "'fd://' and the number"),
        ("x", "cannot listen on fd://x: systemd has passed no socket of this name.*none at all"),
    ],
)
def test_a_descriptor_that_is_none_is_one_line(number: str, why: str) -> None:
    ended = run("-m", "sticky", APP, "-b", f"fd://{number}")
    assert ended.returncode in (1, 2)
    assert_one_line(ended.stderr, why)


def test_a_descriptor_that_does_not_listen_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text(f'exec 3<"{script}"\nexec "{sys.executable}" "$@"\n')
    ended = subprocess.run(
        ["/bin/sh", str(script), "-m", "sticky", APP, "-b", "fd://3"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert ended.returncode == 1
    assert_one_line(ended.stderr, "cannot listen on fd://3: Socket operation on non-socket")


def test_a_unix_socket_that_was_passed_needs_a_proxy_too(path: str, tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text(
        "import os, socket, sys\n"
        f"sock = socket.socket(socket.AF_UNIX); sock.bind({path!r}); sock.listen()\n"
        "os.dup2(sock.fileno(), 9)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    words = ["-m", "sticky", APP, "-w", "1", "-b", "fd://9"]
    ended = run(str(script), *words)
    assert ended.returncode == 1
    assert_one_line(ended.stderr, "no address to route by")
    os.unlink(path)
    with Running([sys.executable, str(script), *words, "--proxy"], num=1):
        assert ask(path, f"{XFF}: 10.0.0.1")["worker"] == 0
    assert os.path.exists(path)  # whoever made it removes it


def test_on_listening_is_told_the_path_of_a_unix_socket(path: str, tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import json, sticky\n"
        "from tests.apps import whoami\n"
        "def say(addresses): print(json.dumps(addresses), flush=True)\n"
        f"sticky.listen(whoami, num=1, bind=['unix:{path}', '127.0.0.1:0'], proxy=True,\n"
        "              on_listening=say)\n"
    )
    with serve(str(script), script=True, num=1, env={"PYTHONPATH": str(ROOT)}) as running:
        told = json.loads(running.wait_for(r"^\[.*\]$")[0])
        assert told[0] == path
        with Client(told[1][1], head(f"{XFF}: 10.0.0.1")) as client:
            assert client.answer().status == 200
