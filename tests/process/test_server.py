"""``Server``: started, stopped and waited for, from any thread; ``on_listening`` and ``env``."""

from __future__ import annotations

import gc
import os
import signal
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import sticky
from tests.harness import LISTENING, MARK, ROOT, Kind, marked, request, wait_until

from .clients import SEED, XFF, slot_of
from .test_options import run

SMALL = {"port": 0, "num": 1, "app_dir": ROOT}


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a test no process of its servers runs, and no child is a zombie."""
    mark = os.urandom(16).hex()
    monkeypatch.setenv(MARK, mark)
    yield
    wait_until(lambda: not marked(mark), what="no process is left")
    assert psutil.Process().children() == []


@pytest.fixture
def app(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> str:
    """The lab, and whatever is started has workers of its kind."""
    for name, value in kind.env.items():
        monkeypatch.setenv(name, value)
    return kind.app("lab")


def test_it_is_started_and_stopped_and_the_host_notices_nothing_of_it(app: str) -> None:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    threads = threading.enumerate()
    server = sticky.Server(app, {**SMALL, "num": 2, "proxy": True, "seed": SEED})
    assert (server.addresses, server.pid) == ([], None)
    assert server.start() is server
    try:
        (address,) = server.addresses
        assert address[0] == "127.0.0.1"
        assert psutil.Process().children() == [psutil.Process(server.pid)]
        for number in range(6):
            client = f"10.0.0.{number}"
            seen = request(address[1], "/", {XFF: client}).json()
            assert seen["worker"] == slot_of(client, 2)
        assert threading.enumerate() == threads
    finally:
        assert server.stop() == 0
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    assert server.wait() == server.stop() == 0  # again and again


def test_as_a_context_manager_it_is_stopped_at_the_end_of_the_body(app: str) -> None:
    with sticky.Server(app, sticky.Options(**SMALL)) as server:
        port = server.addresses[0][1]
        assert request(port).json()["worker"] == 0
    with pytest.raises(ConnectionRefusedError):
        request(port)
    with pytest.raises(LookupError), sticky.Server(app, SMALL) as server:
        raise LookupError
    assert server.wait() == 0


def test_two_servers_run_at_once_and_are_stopped_from_another_thread(app: str, kind: Kind) -> None:
    """Each started by a thread of its own, waited for by others, stopped by this one."""
    servers = [sticky.Server(app, SMALL), sticky.Server(kind.app("echo"), SMALL)]
    statuses: list[int] = []
    starting = [threading.Thread(target=server.start) for server in servers]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join(60)
    waiting = [
        threading.Thread(target=lambda server=server: statuses.append(server.wait()))
        for server in servers
        for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    lab, echo = (server.addresses[0][1] for server in servers)
    assert request(lab).json()["worker"] == 0
    assert request(echo, method="POST", body=b"hello").body == b"hello"
    assert servers[0].stop() == 0
    assert request(echo, method="POST", body=b"still there").body == b"still there"
    assert servers[1].stop(quick=True) == 0
    for thread in waiting:
        thread.join(20)
    assert statuses == [0] * 4


def test_nothing_stays_open_of_servers_that_ended(app: str) -> None:
    sticky.Server(app, SMALL).start().stop()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        sticky.Server(app, SMALL).start().stop()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [("broken", 3, "the database is not there"), ("nothing", 4, "has no attribute 'nothing'")],
)
def test_a_start_that_fails_raises_and_the_log_says_why(
    kind: Kind, name: str, status: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server = sticky.Server(kind.app(name), SMALL)
    with pytest.raises(sticky.WorkerError, match="its log says why") as raised:
        server.start()
    assert raised.value.exit_status == server.wait() == status
    assert says in capfd.readouterr().err


def test_a_master_that_is_killed_has_the_status_of_a_shell(app: str) -> None:
    server = sticky.Server(app, SMALL).start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait() == 128 + signal.SIGKILL


def test_it_is_started_once_and_wrong_options_are_seen_before(app: str) -> None:
    with pytest.raises(sticky.OptionError, match="'nun'; did you mean 'num'"):
        sticky.Server(app, {"nun": 1})
    with pytest.raises(sticky.OptionError, match="module:factory"):
        sticky.Server("no module", SMALL)
    server = sticky.Server(app, SMALL)
    assert server.wait() == server.stop() == 0  # it never ran
    with (
        server,
        pytest.raises(sticky.StickyError, match="make a new Server for another"),
    ):
        server.start()


def test_the_environment_of_the_workers_has_what_was_added(
    app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERRIDDEN", "theirs")
    added = {"ADDED": "1", "OVERRIDDEN": "ours"}
    with sticky.Server(app, SMALL, env=added) as server:
        environ = request(server.addresses[0][1], "/process").json()["environ"]
    assert environ.items() >= added.items()
    assert environ["STICKY_WORKER_ID"] == "0"
    assert os.environ["OVERRIDDEN"] == "theirs"


# -- scripts with functions ------------------------------------------------------------------------


def script(folder: Path, source: str) -> str:
    path = folder / "serve.py"
    path.write_text("import sticky, sys, threading, urllib.request\n" + textwrap.dedent(source))
    return str(path)


def says(kind: Kind, text: str) -> str:
    """A factory of this name, whose app says it and the worker."""
    return f"""
        from {kind.apps} import says
        def {text}():
            return says(lambda: "{text} %d" % sticky.current_worker().id)
        """


def test_two_servers_of_one_script_each_with_a_function(kind: Kind, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        textwrap.dedent(says(kind, "first"))
        + textwrap.dedent(says(kind, "second"))
        + textwrap.dedent(
            """
            one = sticky.Server(first, port=0, num=1)
            two = sticky.Server(second, {"port": 0, "num": 1})
            with one, two:
                print("ports", one.addresses[0][1], two.addresses[0][1], flush=True)
                sys.stdin.read()
                one.wait()
            print("both have ended", one.wait(), two.wait(), flush=True)
            """
        ),
    )
    with kind.serve(path, script=True, num=1, env={"PYTHONPATH": str(ROOT)}) as running:
        found = running.wait_for(r"^ports (\d+) (\d+)$", 60)
        assert request(int(found[1])).body == b"first 0"
        assert request(int(found[2])).body == b"second 0"
        first_master = int(LISTENING.findall(running.log())[0][1])
        os.kill(first_master, signal.SIGTERM)
        running.wait_for(r"^both have ended 0 0$", 30)
        assert running.wait() == 0


def test_a_function_in_a_thread_is_answered_with_what_to_do(kind: Kind, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        textwrap.dedent(says(kind, "app"))
        + textwrap.dedent(
            """
            def serve():
                try:
                    with sticky.Server(app, port=0, num=1, worker_class="asgi"):
                        pass
                except sticky.WorkerError as error:
                    print(error.exit_status, flush=True)
            thread = threading.Thread(target=serve)
            thread.start()
            thread.join()
            """
        ),
    )
    ended = run(path)
    assert ended.stdout == "4\n"
    assert "start it in the main thread, or name the factory" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_on_listening_gets_the_chosen_port_when_everyone_is_ready(
    kind: Kind, tmp_path: Path
) -> None:
    path = script(
        tmp_path,
        textwrap.dedent(says(kind, "app"))
        + textwrap.dedent(
            """
            from urllib.request import urlopen

            def on_listening(addresses):
                (host, port), = addresses
                print("asked", host, urlopen(f"http://{host}:{port}").read(), flush=True)

            sticky.listen(app, 0, 3, on_listening=on_listening)
            """
        ),
    )
    with kind.serve(path, script=True, num=3, env={"PYTHONPATH": str(ROOT)}) as running:
        running.wait_for(r"^asked 127\.0\.0\.1 b'app \d'$")


def test_a_server_has_its_options_in_the_workers_too(kind: Kind, tmp_path: Path) -> None:
    """A script may ask for them, and workers run it up to the call of ``start``."""
    path = script(
        tmp_path,
        f"""
        from {kind.apps} import says
        server = sticky.Server(lambda: says(lambda: server.options.num), {{"port": 0, "num": 2}})
        print(f"workers: {{server.options.num}}", flush=True)
        with server:
            host, port = server.addresses[0]
            print("asked", urllib.request.urlopen(f"http://{{host}}:{{port}}/").read(), flush=True)
        """,
    )
    with kind.serve(path, script=True, num=2, env={"PYTHONPATH": str(ROOT)}) as running:
        running.wait_for(r"^asked b'2'$")
        assert running.log().count("workers: 2") == 3  # in the launcher, and in each of them


def test_a_worker_counts_what_it_does(kind: Kind, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        f"""
        from {kind.apps} import says
        def factory():
            worker = sticky.current_worker()
            return says(lambda: [worker.stats(), worker.id, worker.pid, worker.options.num])
        sticky.listen(factory, 0, 1)
        """,
    )
    with kind.serve(path, script=True, num=1, env={"PYTHONPATH": str(ROOT)}) as running:
        for number in range(1, 4):
            stats, slot, pid, num = running.get().json()
            assert stats["adopted"] == number
            assert (stats["not_begun"], stats["lost"]) == (0, 0)
            assert stats["open"] >= 1
            assert (slot, pid, num) == (0, running.worker_pids()[0], 1)
