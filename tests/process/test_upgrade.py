"""SIGUSR2: the master goes on with new code in the same process; nobody who is served notices."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sticky.errors import StickyError
from tests.harness import ROOT, Kind, Running, request, wait_until

from .clients import XFF, Client, addresses_of, head
from .life_kit import ROUTED, ask, stopped
from .session_kit import Shared, connect, of, open_session
from .test_listen import Script
from .test_signals import Terminal
from .test_wsgi_websockets import Socket
from .upgrade_kit import (
    DONE,
    Copied,
    Ctl,
    Load,
    children,
    has_no_trial,
    open_files,
    targets,
    upgrade,
    wait_for_new_workers,
)

NUM = 2
EVERY = pytest.mark.parametrize("kind", ["eventlet", "gevent", "threads", "asgi"], indirect=True)

KEPT = """
import os
from {apps} import {name}
def make():
    if os.path.exists({flag!r}):
        os._exit(9)  # no new worker can start: who serves goes on
    return {name}()
"""


class Kept:
    """A server whose workers are not replaced: from a moment on no new one can start."""

    def __init__(self, folder: Path, kind: Kind, name: str, *options: str) -> None:
        self.flag, self.ctl = folder / "no-more", Ctl(folder / "ctl")
        text = KEPT.format(apps=kind.apps, name=name, flag=str(self.flag))
        (folder / "kept.py").write_text(text)
        self.running = kind.serve(
            "kept:make",
            num=NUM,
            proxy=True,
            cwd=folder,
            env={"PYTHONPATH": str(ROOT)},
            options=(*ROUTED, *options, *self.ctl.options),
        )

    @contextlib.contextmanager
    def serving(self) -> Iterator[Running]:
        with self.running as running:
            self.flag.touch()
            yield running
            self.flag.unlink()

    def upgrade(self) -> None:
        """Upgrade it, and wait until the reload behind that has been given up."""
        mark = upgrade(self.running)
        self.running.wait_for(r"exited with status 9", 60, after=mark)
        wait_until(lambda: not self.ctl.ask("status")["reloading"], what="it was given up")


# -- nobody notices --------------------------------------------------------------------------------


@EVERY
def test_no_request_fails_and_all_workers_are_replaced(kind: Kind) -> None:
    options = (*ROUTED, "--timeout", "60")
    with kind.serve("lab", num=NUM, proxy=True, options=options) as running:
        master = running.master_pid
        with Load(running) as load, ask(running, 0, "/slow?seconds=3") as poll:
            for _ in range(3):
                before = set(running.worker_pids().values())
                mark = upgrade(running)
                load.goes_on()
                for slot in range(NUM):
                    running.wait_for(rf"worker {slot} ready", 60, after=mark)
                assert not before & set(running.worker_pids().values())
            load.goes_on()
            assert poll.answer().status == 200
        assert load.failures == []
        assert running.master_pid == master == running.pid
        assert psutil.Process(master).is_running()
        assert running.stop() == 0
        assert "Traceback" not in running.log()


def test_what_the_master_holds_waits_on(kind: Kind, tmp_path: Path) -> None:
    """A head of which a half has come, those that are queued, one that is being refused."""
    limits = ("--timeout", "80", "--queue-timeout", "60", "--head-timeout", "60")
    kept = Kept(tmp_path, kind, "lab", *limits)
    with kept.serving() as running, contextlib.ExitStack() as clients:
        address = addresses_of(0, NUM, 1)[0]
        whole = head(f"{XFF}: {address}")
        half = clients.enter_context(Client(running.port, whole[:25]))
        wait_until(lambda: kept.ctl.ask("status")["held"] == 1, what="the head is awaited")
        with stopped(running.worker_pids()[1]):
            crowd = [clients.enter_context(ask(running, 1)) for _ in range(60)]
            wait_until(lambda: kept.ctl.ask("status")["slots"][1]["queued"] > 20)
            refused = clients.enter_context(Client(running.port, head()))  # without that header
            assert refused.answer().status == 400
            held = kept.ctl.ask("status")["held"]
            for _ in range(3):
                mark = upgrade(running)
                running.wait_for(r"exited with status 9", 60, after=mark)
                status = kept.ctl.ask("status")
                assert status["held"] in (held, held - 1)  # the refused one lingers, or is gone
                assert status["slots"][1]["queued"] > 20
            half.send(whole[25:])
            assert half.answer().json()["worker"] == 0
        assert refused.rest() == b""
        for client in crowd:
            answer = client.answer()
            assert answer.status == 200
            assert answer.json()["pid"] == running.worker_pids()[1]
        wait_until(lambda: kept.ctl.ask("status")["held"] == 0, what="nobody waits")


def test_what_was_read_from_a_connection_goes_with_it(kind: Kind, tmp_path: Path) -> None:
    """It waits here for a worker that stands still, and the one that read it has given it away."""
    kept = Kept(tmp_path, kind, "lab", "--timeout", "80", "--queue-timeout", "60")
    zero, one = (addresses_of(slot, NUM, 1)[0] for slot in range(NUM))
    body = os.urandom(200_000)
    with kept.serving() as running, contextlib.ExitStack() as clients:
        shared = clients.enter_context(Client(running.port, head(f"{XFF}: {zero}")))
        assert shared.answer().json()["worker"] == 0
        with stopped(running.worker_pids()[1]):
            crowd = [clients.enter_context(ask(running, 1)) for _ in range(60)]
            wait_until(lambda: kept.ctl.ask("status")["slots"][1]["queued"] > 20)
            before = kept.ctl.ask("status")["slots"][1]["queued"]
            length = f"Content-Length: {len(body)}"
            lines = (f"{XFF}: {one}", length, f"X-Long: {'x' * 20_000}")
            shared.send(head(*lines, target="/body", method="POST") + body[:50_000])
            wait_until(lambda: kept.ctl.ask("status")["slots"][1]["queued"] > before)
            kept.upgrade()
            kept.upgrade()
        shared.send(body[50_000:])
        answer = shared.answer()
        assert (answer.status, answer.body == body) == (200, True)
        assert [client.answer().status for client in crowd] == [200] * 60


def test_deadlines_go_on(kind: Kind, tmp_path: Path) -> None:
    """The time that somebody has waited before counts."""
    kept = Kept(tmp_path, kind, "lab", "--head-timeout", "4", "--queue-timeout", "4")
    with kept.serving() as running, Client(running.port, b"GET / HTTP/1.1\r\n") as half:
        wait_until(lambda: kept.ctl.ask("status")["held"] == 1, what="the head is awaited")
        kept.upgrade()
        answer = half.answer()
        assert answer.status == 408
        assert kept.ctl.ask("stats")["head_timeouts"] == 1


def test_who_leaves_while_the_code_is_replaced_is_noticed(kind: Kind, tmp_path: Path) -> None:
    kept = Kept(tmp_path, kind, "lab", "--timeout", "80", "--queue-timeout", "60")
    with kept.serving() as running, stopped(running.worker_pids()[1]):
        crowd = [ask(running, 1) for _ in range(60)]
        half = Client(running.port, b"GET / HTTP/1.1\r\n")
        wait_until(lambda: kept.ctl.ask("status")["slots"][1]["queued"] > 20)
        mark = len(running.log())
        with stopped(running.master_pid):
            os.kill(running.master_pid, signal.SIGUSR2)
            for client in (*crowd, half):
                client.reset()
        running.wait_for(DONE, after=mark)
        wait_until(lambda: kept.ctl.ask("status")["held"] == 0, what="nobody is held")


def test_a_websocket_lives(kind: Kind, tmp_path: Path) -> None:
    kept = Kept(tmp_path, kind, "websocket_echo")
    with kept.serving() as running:
        address = addresses_of(1, NUM, 1)[0]
        ws = Socket(running, "/ws", f"{XFF}: {address}")
        for number in range(3):
            ws.say(f"hello {number}")
            assert ws.text() == f"hello {number}"
            kept.upgrade()
        ws.say("bye")
        assert ws.text() == "bye"
        ws.close()


@pytest.mark.parametrize("kind", ["eventlet", "asgi"], indirect=True)
def test_sessions_stay_where_they_are(kind: Kind, tmp_path: Path) -> None:
    kept = Kept(tmp_path, kind, "socketio_app", "--session", "sid", "--balance", "round-robin")
    with kept.serving() as running:
        shared = Shared(running.port)
        before = {sid: connect(shared, sid) for sid in [open_session(shared) for _ in range(8)]}
        assert set(before.values()) == set(range(NUM))
        for _ in range(2):
            kept.upgrade()
            for sid, worker in before.items():
                assert shared.ask(of(sid), "POST", '42["echo",{}]').status == 200
                said = b""
                while b'"echo"' not in said:
                    answer = shared.ask(of(sid))
                    assert answer.status == 200
                    said += answer.body
                assert b'"worker":%d' % worker in said
        new = open_session(shared)
        assert connect(shared, new) in range(NUM)
        shared.close()


@pytest.mark.parametrize("kind", ["eventlet", "asgi"], indirect=True)
def test_sessions_end_as_in_a_reload(kind: Kind) -> None:
    """Until their process ends it holds them; afterwards their client is told."""
    options = ("--session", "sid", "--drain-spread", "2")
    with kind.serve("socketio_app", num=NUM, proxy=True, options=options) as running:
        shared = Shared(running.port)
        sessions = [open_session(shared) for _ in range(8)]
        for sid in sessions:
            connect(shared, sid)
        mark = upgrade(running)
        wait_for_new_workers(running, mark)
        for sid in sessions:
            assert shared.ask(of(sid)).status == 400
        assert connect(shared, open_session(shared)) in range(NUM)
        shared.close()


# -- what is around it -----------------------------------------------------------------------------


def test_nothing_grows(kind: Kind, tmp_path: Path) -> None:
    """Ten upgrades leave no descriptor and no process behind."""
    ctl = Ctl(tmp_path / "ctl")
    with kind.serve("lab", num=NUM, options=(*ctl.options, "--spares", "0")) as running:
        assert running.get().status == 200
        wait_for_new_workers(running, upgrade(running))
        before = open_files(running.master_pid)
        for _ in range(10):
            wait_for_new_workers(running, upgrade(running))
            assert running.get().status == 200
        wait_until(lambda: open_files(running.master_pid) == before, what="no descriptor is left")
        assert set(children(running)) == set(running.worker_pids().values())
        assert psutil.STATUS_ZOMBIE not in children(running).values()


def test_what_is_around_the_server_stays(kind: Kind, tmp_path: Path) -> None:
    ctl, pid_file, path = Ctl(tmp_path / "ctl"), tmp_path / "pid", tmp_path / "listener"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(30)
        options = ("-b", f"unix:{path}", "--pid", str(pid_file), "--metrics", "127.0.0.1:0")
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        options = (*options, *ctl.options)
        with kind.serve("lab", num=NUM, proxy=True, options=options, env=env) as running:
            port = int(running.wait_for(r"Metrics at: http://127.0.0.1:(\d+)")[1])
            for _ in range(2):
                supervisor.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while supervisor.recv(4096):
                        pass
                supervisor.settimeout(30)
                mark = upgrade(running)
                while not (said := supervisor.recv(4096)).startswith(b"READY=1"):
                    pass
                assert b"MAINPID=%d\n" % running.master_pid in said
                wait_for_new_workers(running, mark)
                assert pid_file.read_text() == f"{running.master_pid}\n"
                assert b"sticky_accepted_total" in request(port, "/metrics").body
                assert running.get(headers={XFF: "192.0.2.1"}).status == 200
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    client.sendall(head(f"{XFF}: 192.0.2.1", "Connection: close"))
                    assert client.recv(65536).startswith(b"HTTP/1.1 200")
                assert ctl.ask("status")["listening"][1] == f"unix:{path}"
            assert running.stop() == 0
        assert not path.exists()
        assert not pid_file.exists()
        assert not ctl.path.exists()


def test_the_number_of_workers_and_the_counters_stay(kind: Kind, tmp_path: Path) -> None:
    ctl = Ctl(tmp_path / "ctl")
    with kind.serve("lab", num=NUM, options=ctl.options) as running:
        running.get()
        running.send_signal(signal.SIGTTIN)
        running.wait_for("There are 3 workers now")
        before = ctl.ask("stats")["accepted"]
        running.num = 3
        wait_for_new_workers(running, upgrade(running))
        status = ctl.ask("status")
        assert status["n"] == 3
        assert status["accepted"] >= before
        running.send_signal(signal.SIGTTOU)
        running.wait_for("There are 2 workers now")
        assert running.get().status == 200


def test_files_are_watched_and_spares_kept_as_before(kind: Kind, tmp_path: Path) -> None:
    from .test_reload import ENV, change, version

    module = tmp_path / "app.py"
    module.write_text(version(kind, 1))
    options = ("--reload", "--spares", "1")
    with kind.serve("app:make", num=1, cwd=tmp_path, env=ENV, options=options) as running:
        wait_until(lambda: len(children(running)) == 3, what="a worker, a watcher and a spare")
        mark = upgrade(running)
        running.wait_for("worker 0 ready", 60, after=mark)
        wait_until(lambda: len(children(running)) == 3, what="a worker, a watcher and a spare")
        change(running, module, version(kind, 2))
        wait_until(lambda: running.get().body == b"version 2", 60)
        assert psutil.STATUS_ZOMBIE not in children(running).values()


def test_a_script_s_server_is_upgraded_too(kind: Kind, tmp_path: Path) -> None:
    script = Script(tmp_path, kind)
    source = "sticky.listen(factory, 0, 2)\nrecord('over')"
    with script.serve(source, NUM) as running:
        assert running.master_pid != running.pid
        with Load(running) as load:
            for pid in (running.pid, running.master_pid, running.pid):  # it is passed on
                mark = upgrade(running, pid)
                wait_for_new_workers(running, mark)
            load.goes_on()
        running.send_signal(signal.SIGTTIN)
        running.wait_for("There are 3 workers now")
        running.send_signal(signal.SIGTTOU)
        running.wait_for("There are 2 workers now")
        assert running.stop() == 0
        assert load.failures == []
    assert len(script.recorded()["over"]) == 1


def test_a_launcher_that_ends_still_ends_the_server(kind: Kind, tmp_path: Path) -> None:
    script = Script(tmp_path, kind)
    with script.serve("sticky.listen(factory, 0, 2)", NUM) as running:
        upgrade(running)
        running.process.kill()
        wait_until(lambda: not running.processes(), 30, "no process is left")


# -- new code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["command", "script"])
def test_other_code_serves_afterwards(kind: Kind, tmp_path: Path, how: str) -> None:
    copied, ctl = Copied(tmp_path), Ctl(tmp_path / "ctl")
    says = f"import sticky\nfrom {kind.apps} import says\n"
    says += "def make():\n    return says(lambda: sticky.__version__)\n"
    (tmp_path / "app.py").write_text(says)
    if how == "command":
        server = copied.serve(kind, "app:make", num=NUM, options=ctl.options)
    else:
        script = tmp_path / "serve.py"
        call = f"sticky.listen(app.make, 0, {NUM}, ctl={str(ctl.path)!r})"
        script.write_text(f"import app, sticky\n{call}\n")
        server = copied.serve(kind, str(script), num=NUM, script=True)
    with server as running, Load(running) as load:
        old = ctl.ask("status")["version"]
        assert running.get().body.decode() == old
        copied.change("__init__.py", f'__version__ = "{old}"', '__version__ = "9.9.9"')
        mark = upgrade(running)
        assert running.wait_for(DONE).groups()[:2] == (old, "9.9.9")
        assert ctl.ask("status")["version"] == "9.9.9"
        wait_for_new_workers(running, mark)
        assert running.get().body == b"9.9.9"
        load.goes_on()
    assert load.failures == []


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Copied:
    return Copied(tmp_path_factory.mktemp("copied"))


@pytest.fixture(scope="module")
def old(kind: Kind, copied: Copied) -> Iterator[Running]:
    """A server of that copy, which waits less long for a new one."""
    copied.change("master/upgrade.py", "LONGEST = 30.0", "LONGEST = 10.0")
    with copied.serve(kind, "lab", num=NUM) as running:
        running.get()
        wait_for_new_workers(running, upgrade(running))
        yield running


BROKEN = {
    "a syntax error in the master": ("master/lives.py", "class Lives", "class (", "SyntaxError: "),
    "a syntax error in the worker": ("worker/wsgi.py", "import", "import (", "SyntaxError: "),
    "a module that cannot be imported": (
        *("master/waiting.py", "import math", "import math, no_such_module_anywhere"),
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "another format": (
        *("master/state.py", "FORMAT = 2", "FORMAT = 3"),
        "the state is of format 2, and this code reads 3",
    ),
    "other messages": (
        *("channel.py", "VERSION = 4", "VERSION = 5"),
        "the messages under way are of version 4, and this code speaks 5: it has to be started",
    ),
    "other counters": ("board.py", "_CELLS = 32", "_CELLS = 64", "laid out differently"),
    "an option that is gone": (
        *("options.py", "    drain_spread: float", "    spread_of_the_drain: float"),
        "there is no option 'drain_spread'",
    ),
    "a field that is gone": (
        *("master/queues.py", "line.open, line.retry, queue, resting = known", "queue, = known"),
        "ValueError: ",
    ),
    "a start that fails": (
        *("_boot.py", "def main() -> None:", "sys.exit(7)\ndef main() -> None:"),
        "the new code exited with status 7",
    ),
    "a start that never ends": (
        *("master/upgraded.py", "_compile_all()\n", "import signal; signal.pause()\n"),
        "the new code was not ready within 10 s",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_code_that_cannot_take_over_changes_nothing(
    old: Running, copied: Copied, broken: str
) -> None:
    name, before, after, reason = BROKEN[broken]
    wait_until(lambda: has_no_trial(old), what="only workers are there")
    workers, files = old.worker_pids(), open_files(old.master_pid)
    mark = len(old.log())
    with Load(old) as load:
        with copied.changed(name, before, after):
            os.kill(old.master_pid, signal.SIGUSR2)
            old.wait_for(r"the upgrade was given up: .*" + re.escape(reason), 60, after=mark)
        load.goes_on()
    assert load.failures == []
    assert old.worker_pids() == workers
    assert has_no_trial(old)
    wait_until(lambda: open_files(old.master_pid) == files, what="no descriptor is left")


@contextlib.contextmanager
def endless(running: Running, copied: Copied) -> Iterator[psutil.Process]:
    """A trial that says nothing, in the body."""
    with copied.changed(
        "master/upgraded.py", "_compile_all()\n", "import signal; signal.pause()\n"
    ):
        mark = len(running.log())
        os.kill(running.master_pid, signal.SIGUSR2)
        running.wait_for("trying the new code", after=mark)
        workers = set(running.worker_pids().values())
        (trial,) = set(children(running)) - workers
        yield psutil.Process(trial)


def test_a_trial_that_is_killed_is_a_no(old: Running, copied: Copied) -> None:
    mark = len(old.log())
    with endless(old, copied) as trial:
        trial.kill()
        old.wait_for("the upgrade was given up: the new code was killed by SIGKILL", after=mark)
    assert has_no_trial(old)
    assert old.get().status == 200


def test_one_at_a_time(old: Running, copied: Copied) -> None:
    mark = len(old.log())
    with endless(old, copied) as trial:
        os.kill(old.master_pid, signal.SIGUSR2)
        old.wait_for("the upgrade was given up: another one is under way", after=mark)
        trial.kill()
        old.wait_for("killed by SIGKILL", after=mark)
    assert old.log()[mark:].count("trying the new code") == 1
    wait_for_new_workers(old, upgrade(old))


def test_without_a_descriptor_for_it_everything_goes_on(old: Running) -> None:
    wait_until(lambda: has_no_trial(old), what="only workers are there")
    mark, master = len(old.log()), old.master_pid
    limits = resource.prlimit(master, resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir(f"/proc/{master}/fd")))
    lowest = min(set(range(len(taken) + 1)) - taken)  # each new one is to be less than the limit
    resource.prlimit(master, resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        os.kill(master, signal.SIGUSR2)
        old.wait_for("the upgrade was given up: Too many open files", after=mark)
    finally:
        resource.prlimit(master, resource.RLIMIT_NOFILE, limits)
    assert old.get().status == 200
    wait_for_new_workers(old, upgrade(old))


def test_a_system_that_refuses_leaves_the_old_code_serving(kind: Kind, tmp_path: Path) -> None:
    copied = Copied(tmp_path)
    copied.change("master/upgrade.py", "os.execve(command[0]", 'os.execve("/nowhere"')
    options = ("--reload", "--spares", "1")
    with copied.serve(kind, "lab", num=NUM, options=options) as running:
        running.get()
        wait_until(lambda: len(children(running)) == NUM + 2, what="a watcher and a spare")
        master = running.master_pid
        wait_until(lambda: targets(master).count("anon_inode:[pidfd]") == NUM + 2)
        files = open_files(master)
        with Load(running) as load:
            for _ in range(3):
                mark = len(running.log())
                os.kill(running.master_pid, signal.SIGUSR2)
                running.wait_for("given up: No such file or directory", 60, after=mark)
                load.goes_on()
                wait_until(lambda: len(children(running)) == NUM + 2, what="a watcher and a spare")
        assert load.failures == []
        wait_until(lambda: open_files(running.master_pid) == files, what="no descriptor is left")
        mark = len(running.log())
        running.send_signal(signal.SIGHUP)  # signals arrive as before
        running.wait_for("worker 1 ready", 60, after=mark)
        assert running.stop() == 0


def test_a_server_that_starts_is_not_upgraded(kind: Kind) -> None:
    with kind.serve("never_ready", num=1, ready=False) as running:
        wait_until(lambda: len(running.processes()) == 2, what="a master and a worker")
        running.send_signal(signal.SIGUSR2)
        running.wait_for("the upgrade was given up: the server is starting")
        running.stop(signal.SIGINT)


# -- signals ---------------------------------------------------------------------------------------


def arguments(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["at once", "during the trial", "between the codes", "behind it"])
def test_a_stop_is_a_stop_at_any_moment(kind: Kind, when: str, sig: signal.Signals) -> None:
    with kind.serve("lab", num=NUM) as running:
        running.get()
        with Client(running.port, head(target="/slow?seconds=2")) as client:
            wait_until(lambda: running.get("/process").status == 200)
            running.send_signal(signal.SIGUSR2)
            if when == "during the trial":
                running.wait_for("trying the new code")
            elif when == "between the codes":
                wait_until(lambda: "upgraded" in arguments(running.pid), interval=0.001)
            elif when == "behind it":
                running.wait_for(DONE)
            running.send_signal(sig)
            if sig == signal.SIGTERM:
                assert client.answer().status == 200
            assert running.wait() == 0
    assert "Traceback" not in running.log()


def test_every_signal_that_comes_meanwhile_counts(kind: Kind, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with kind.serve("lab", num=NUM, options=("--access-logfile", str(log))) as running:
        log.rename(f"{log}.1")
        running.send_signal(signal.SIGUSR2)
        wait_until(lambda: "upgraded" in arguments(running.pid), interval=0.001)
        for number in (signal.SIGUSR1, signal.SIGTTIN, signal.SIGHUP, signal.SIGUSR2):
            running.send_signal(number)
        mark = running.wait_for(DONE).end()
        wait_until(log.exists)
        running.wait_for("There are 3 workers now", 60, after=mark)
        running.wait_for(DONE, 60, after=mark)
        assert running.get().status == 200


def test_a_signal_that_has_arrived_and_was_not_read_counts(kind: Kind, tmp_path: Path) -> None:
    copied = Copied(tmp_path)
    before = "before = upgrade.hold()\n"
    copied.change("master/succession.py", before, f"os.kill(os.getpid(), signal.SIGTTIN); {before}")
    with copied.serve(kind, "lab", num=NUM) as running:
        upgrade(running)
        running.wait_for("There are 3 workers now")


def test_a_worker_that_dies_while_the_code_is_replaced_is_replaced(kind: Kind) -> None:
    with kind.serve("lab", num=NUM) as running:
        worker = running.worker_pids()[0]
        running.send_signal(signal.SIGUSR2)
        wait_until(lambda: "upgraded" in arguments(running.pid), interval=0.001)
        os.kill(worker, signal.SIGKILL)
        mark = running.wait_for(DONE).end()
        running.wait_for(rf"worker 0 \(pid {worker}\) was killed by SIGKILL", after=mark)
        running.wait_for_successor(0, worker)
        wait_until(lambda: psutil.STATUS_ZOMBIE not in children(running).values())
        assert running.get().status == 200


@pytest.mark.parametrize("nohup", [False, True])
def test_the_terminal_of_the_start_counts(tmp_path: Path, nohup: bool) -> None:
    terminal = Terminal(tmp_path / "log", *["nohup"] * nohup)
    os.kill(terminal.pid, signal.SIGUSR2)
    terminal.wait_for("Upgraded in place")
    before = terminal.log.read_text().count("Reloading")
    terminal.close()
    if nohup:
        os.kill(terminal.pid, signal.SIGHUP)
        wait_until(lambda: terminal.log.read_text().count("Reloading") > before, what="a reload")
        os.kill(terminal.pid, signal.SIGTERM)
    else:
        terminal.wait_for("the terminal was closed: stopping gracefully")
    assert terminal.status() == 0


def test_an_upgrade_by_ctl(kind: Kind, tmp_path: Path) -> None:
    ctl = Ctl(tmp_path / "ctl")
    with kind.serve("lab", num=NUM, options=ctl.options) as running:
        command = [sys.executable, "-m", "sticky", "ctl", *ctl.options, "upgrade"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "begun\n", "")
        running.wait_for(DONE)
        with ask(running, 0, "/slow?seconds=5") as client:
            wait_until(lambda: ctl.ask("stats")["accepted"] >= 1, what="it is served")
            running.send_signal(signal.SIGTERM)
            running.wait_for("SIGTERM: stopping")
            with pytest.raises(StickyError, match="the upgrade was given up: the server stops"):
                ctl.ask("upgrade")
            assert client.answer().status == 200
        assert running.wait() == 0
