"""The call: ``sticky.listen`` in scripts, modules and strings, and what the processes are like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

import sticky
from tests.harness import KINDS, LISTENING, ROOT, Kind, Running, request, serve, wait_until

from .clients import SEED, XFF, addresses_of, slot_of
from .test_options import run

PRELUDE = """
import os, json, sys
import sticky
from {apps} import lab, process

def record(*words):
    with open(os.environ["RECORD"], "a") as file:  # short appends do not mix
        file.write(" ".join(map(str, words)) + f" {os.getpid()}\\n")

record("script")

def factory():
    record("factory")
    return lab()

def on_listening(addresses):
    record("listening", *addresses[0])
"""


class Script:
    """A script in a folder of its own, for a kind of server; what its processes recorded."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.kind = kind
        self.prelude = PRELUDE.replace("{apps}", kind.apps)
        self.folder = folder
        self.path = folder / "serve.py"
        self.record = folder / "record"
        self.env = {**kind.env, "PYTHONPATH": str(ROOT), "RECORD": str(self.record)}

    def write(self, source: str, *, first: str = "") -> str:
        self.path.write_text(first + self.prelude + textwrap.dedent(source))
        return str(self.path)

    def serve(self, source: str, num: int, *, first: str = "", **options: Any) -> Running:
        env = {**self.env, **options.pop("env", {})}
        target = self.write(source, first=first)
        return serve(target, script=True, num=num, env=env, **options)

    def recorded(self) -> dict[str, list[int]]:
        """What was recorded -> by which processes, in order."""
        found: dict[str, list[int]] = {}
        for line in self.record.read_text().splitlines():
            what, pid = line.rsplit(" ", 1)
            found.setdefault(what, []).append(int(pid))
        return found


@pytest.fixture
def script(tmp_path: Path, kind: Kind) -> Script:
    return Script(tmp_path, kind)


@pytest.fixture
def green_script(tmp_path: Path) -> Script:
    """For what is told about monkey-patching: that is eventlet's alone."""
    return Script(tmp_path, KINDS["eventlet"])


CALLS = {
    "with_two_arguments": "sticky.listen(factory, 0)",
    "with_three_arguments": "sticky.listen(factory, 0, 2)",
    "with_options_by_name": """
        sticky.listen(factory, 0, proxy=True, header="x-forwarded-for", num=2,
                      ignore_missing_header=False)
        """,
    "with_a_mapping": 'sticky.listen(factory, 0, {"num": 2, "proxy": True})',
    "with_an_Options_object": """
        worker_class = os.environ.get("STICKY_WORKER_CLASS", "auto")  # no other is looked for
        sticky.listen(factory, 0, sticky.Options(num=2, proxy=True, worker_class=worker_class))
        """,
    "with_a_closure": """
        def serve(greeting):
            def closure():
                assert greeting == "hello"
                return factory()
            sticky.listen(closure, 0, 2)
        serve("hello")
        """,
    "with_a_lambda": "sticky.listen(lambda: factory(), 0, 2)",
    "with_a_guard": """
        def main():
            sticky.listen(factory, 0, 2)
        if __name__ == "__main__":
            main()
        """,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_listen_can_be_called(script: Script, call: str) -> None:
    check_call(script, call)


def test_listen_can_be_called_in_a_script_that_is_monkey_patched_first_of_all(
    green_script: Script,
) -> None:
    first = "import eventlet; eventlet.monkey_patch()"
    check_call(green_script, CALLS["with_a_guard"], first=first)


def check_call(script: Script, call: str, *, first: str = "") -> None:
    """The factory runs once in each worker and nowhere else, what follows only in the launcher."""
    source = textwrap.dedent(call) + '\nrecord("after")\n'
    with script.serve(source, 2, first=first, env={"WEB_CONCURRENCY": "2"}) as running:
        workers = running.worker_pids()
        assert sorted(workers) == [0, 1]
        for number in range(10):
            answer = running.get("/", {XFF: f"10.0.0.{number}"}).json()
            assert answer["pid"] == workers[answer["worker"]]  # it is $STICKY_WORKER_ID
        assert len({running.pid, running.master_pid, *workers.values()}) == 4
        assert "after" not in script.recorded()
        assert running.stop() == 0
    recorded = script.recorded()
    assert sorted(recorded["factory"]) == sorted(workers.values())
    assert sorted(recorded["script"]) == sorted([running.pid, *workers.values()])
    assert recorded["after"] == [running.pid]


def test_a_string_is_imported_in_the_workers_and_the_script_is_not_run_again(
    script: Script,
) -> None:
    (script.folder / "project.py").write_text(script.prelude.replace('"script"', '"module"'))
    call = 'sticky.listen("project:factory", 0, 2)\nrecord("after")'
    with script.serve(call, 2) as running:
        workers = sorted(running.worker_pids().values())
        assert running.get().status == 200
        assert running.stop() == 0
    recorded = script.recorded()
    assert recorded["script"] == recorded["after"] == [running.pid]
    assert sorted(recorded["module"]) == sorted(recorded["factory"]) == workers


def test_a_module_that_calls_listen_itself_can_be_named_too(script: Script) -> None:
    call = 'sticky.listen(factory, 0, 2)\nrecord("after")'
    script.write(call)
    with serve("serve:factory", num=2, env=script.env, cwd=script.folder) as running:
        workers = sorted(running.worker_pids().values())
        assert running.get().status == 200
        assert running.stop() == 0
    recorded = script.recorded()
    assert sorted(recorded["script"]) == sorted(recorded["factory"]) == workers


@pytest.mark.parametrize("form", ["module", "package", "folder"])
def test_a_module_can_be_the_script(script: Script, form: str) -> None:
    call = 'sticky.listen(factory, 0, 2)\nrecord("after")'
    source = Path(script.write(call))
    if form == "module":
        arguments = ["-m", "serve"]
    else:
        project = script.folder / "project"
        project.mkdir()
        source.rename(project / "__main__.py")
        (project / "beside.py").write_text("")
        if form == "package":
            (project / "__init__.py").write_text("")
            arguments = ["-m", "project"]
        else:
            (project / "__main__.py").write_text("import beside\n" + script.prelude + call)
            arguments = ["project"]
    command = [sys.executable, *arguments, "an argument"]
    with Running(command, num=2, env=script.env, cwd=script.folder) as running:
        workers = running.worker_pids()
        seen = running.get("/process").json()
        assert seen["argv"][1:] == ["an argument"]
        assert running.stop() == 0
    recorded = script.recorded()
    assert sorted(recorded["factory"]) == sorted(workers.values())
    assert sorted(recorded["script"]) == sorted([running.pid, *workers.values()])
    assert recorded["after"] == [running.pid]


def test_on_listening_is_called_once_in_the_launcher_with_the_chosen_port(script: Script) -> None:
    with script.serve("sticky.listen(factory, 0, 2, on_listening=on_listening)", 2) as running:
        told = f"listening 127.0.0.1 {running.port}"
        wait_until(lambda: told in script.recorded())
        pid = running.kill_worker(0)
        running.wait_for_successor(0, pid)
        assert running.get().status == 200
        assert running.stop() == 0
    assert script.recorded()[told] == [running.pid]
    assert sum(what.startswith("listening") for what in script.recorded()) == 1


def test_an_error_in_on_listening_ends_everything_and_is_seen(script: Script) -> None:
    script.write(
        """
        def on_listening(addresses):
            raise RuntimeError("not this port, please")
        sticky.listen(factory, 0, 2, on_listening=on_listening)
        """
    )
    ended = run(str(script.path), **script.env)
    assert ended.returncode == 1
    assert "RuntimeError: not this port, please" in ended.stderr
    assert ended.stderr.count("Traceback") == 1


def test_current_worker_is_known_in_workers_and_nowhere_else(script: Script) -> None:
    call = """
        def say():
            worker = sticky.current_worker()
            record("id", worker and worker.id, os.environ.get("STICKY_WORKER_ID"),
                   worker and worker.pid == os.getpid())
        say()
        sticky.listen(factory, 0, 2)
        say()
        """
    with script.serve(call, 2) as running:
        workers = running.worker_pids()
        assert running.stop() == 0
    recorded = script.recorded()
    assert recorded["id None None None"] == [running.pid] * 2
    for slot, pid in workers.items():
        assert recorded[f"id {slot} {slot} True"] == [pid]


def test_two_servers_can_follow_each_other(script: Script) -> None:
    call = """
        def other():
            record("other")
            return lab()
        sticky.listen(factory, 0, 1)
        record("between")
        sticky.listen(other, 0, 2)
        record("after")
        """
    with script.serve(call, 1) as running:
        first = running.worker_pids()[0]
        assert running.get().json()["pid"] == first
        mark = len(running.log())
        running.send_signal(signal.SIGTERM)
        port = int(running.wait_for(LISTENING, 60, after=mark)[1].rsplit(":", 1)[1].rstrip(","))
        workers = sorted(running.worker_pids().values())
        assert first not in workers
        assert len(workers) == 2
        assert request(port).json()["pid"] in workers
        assert running.stop() == 0
    recorded = script.recorded()
    assert recorded["factory"] == [first]
    assert sorted(recorded["other"]) == workers
    # The workers of the second server run the script up to its call: past the first one.
    assert sorted(recorded["between"]) == sorted([running.pid, *workers])
    assert recorded["after"] == [running.pid]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_the_scripts_own_signal_handlers_are_back_afterwards(script: Script, sig: int) -> None:
    call = f"""
        import signal
        signal.signal({int(sig)}, lambda *_: record("mine"))
        sticky.listen(factory, 0, 1)
        signal.raise_signal({int(sig)})
        """
    with script.serve(call, 1) as running:
        assert running.stop(sig) == 0
    assert script.recorded()["mine"] == [running.pid]


# -- what a worker's process is like ---------------------------------------------------------------


def test_a_worker_sees_what_the_script_sees(script: Script, tmp_path: Path) -> None:
    """Path, arguments, folder and interpreter flags; and nothing that is ours."""
    call = """
        sys.path.append("relative")
        if sticky.current_worker() is None:
            record("process", json.dumps(process()))
        sticky.listen(factory, 0, 1)
        """
    flags = ["-OB", "-Xfaulthandler", "-Xutf8", "-Wignore:::nothing", "-Wdefault"]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    command = [sys.executable, *flags, script.write(call), "one", "--two=3"]
    with Running(command, num=1, env=script.env, cwd=folder) as running:
        there = running.get("/process").json()
    line = next(what for what in script.recorded() if what.startswith("process"))
    here = json.loads(line.removeprefix("process "))
    assert there["argv"] == here["argv"] == [str(script.path), "one", "--two=3"]
    assert there["cwd"] == here["cwd"] == str(folder)
    assert there["warnoptions"] == here["warnoptions"]
    assert there["xoptions"] == here["xoptions"]
    # Absolute; and the script was run again, so that what it adds may be there twice.
    for seen in (here, there):
        seen["path"] = list(dict.fromkeys(str(Path(folder, entry)) for entry in seen["path"]))
    assert there["path"] == here["path"]
    assert str(ROOT / "sticky") not in there["path"]
    # -P is how sticky keeps its own folder off the path; the path itself is the script's.
    assert {**there["flags"], "safe_path": 0} == {**here["flags"], "safe_path": 0}
    assert there["flags"]["optimize"] == 1
    own = {"STICKY_WORKER_ID": "0"}
    assert there["environ"] == {**here["environ"], **own}


def test_a_worker_has_no_stdin_and_no_descriptor_that_is_not_its_own(script: Script) -> None:
    secret = script.folder / "secret"
    secret.write_text("a file that somebody left open for their children\n")
    call = f"""
        if sticky.current_worker() is None:
            fd = os.open({str(secret)!r}, os.O_RDONLY)
            os.set_inheritable(fd, True)
            os.dup2(fd, 50)
        sticky.listen(factory, 0, 2)
        """
    with script.serve(call, 2) as running:
        fds = running.get("/process").json()["fds"]
        open_in_master = _targets(running.master_pid)
        assert str(secret) in _targets(running.pid)
        workers = running.worker_pids().values()
        for pid in workers:
            # Nor the listener. (The connection of the request above may still be closing.)
            wait_until(lambda pid=pid: not psutil.Process(pid).net_connections())
    assert fds.pop("0") == "/dev/null"
    assert fds.pop("1").startswith("pipe:")
    assert fds.pop("2").startswith("pipe:")
    own = {"socket", "anon_inode", "/memfd", "pipe"}  # the pipe is for signals
    if script.kind.interface == "asgi":
        own |= {"/dev/null"}  # uvloop's
    assert {target.split(":")[0] for target in fds.values()} <= own, fds
    assert str(secret) not in open_in_master


def test_the_workers_of_a_command_have_no_descriptor_that_is_not_their_own(script: Script) -> None:
    secret = script.folder / "secret"
    secret.write_text("left open by a shell\n")
    shell = script.folder / "start.sh"
    shell.write_text(
        f'exec 7<"{secret}" 9<"{secret}"\n'
        f'exec "{sys.executable}" -m sticky {script.kind.app("lab")} -b 127.0.0.1:0 -w 1\n'
    )
    with script.kind.serve(str(shell), python="/bin/sh", script=True, num=1) as running:
        assert str(secret) in _targets(running.master_pid)
        assert str(secret) not in _targets(running.worker_pids()[0])


def _targets(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(link) for link in folder.iterdir()]


def test_the_seed_is_in_nobodys_environment_or_command_line(script: Script) -> None:
    with script.serve(f'sticky.listen(factory, 0, 3, seed="{SEED}", proxy=True)', 3) as running:
        address = addresses_of(1, 3, 1)[0]
        assert running.get("/", {XFF: address}).json()["worker"] == 1  # it is the one in use
        processes = running.processes()
        assert len(processes) == 5
        for process in processes:
            for name in ("environ", "cmdline"):
                assert SEED.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes()


@pytest.mark.parametrize("how", ["script", "command"])
def test_files_named_like_the_standard_librarys_do_not_break_the_start(
    script: Script, how: str
) -> None:
    folder = script.folder / "project"
    folder.mkdir()
    for name in ("colorsys", "json", "logging", "selectors", "socket", "struct", "token"):
        (folder / f"{name}.py").write_text('raise ImportError("the wrong module")\n')
    source = script.write("sticky.listen(factory, 0, 1)")
    if how == "script":
        command = [sys.executable, source]
    else:
        lab = script.kind.app("lab")
        command = [sys.executable, "-P", "-m", "sticky", lab, "-b", ":0", "-w", "1"]
    with Running(command, num=1, env=script.env, cwd=folder) as running:
        answer = running.get("/process").json()
        assert answer["cwd"] == str(folder)
        assert (str(folder) in answer["path"]) == (how == "command")


# -- where there is nothing to run again -----------------------------------------------------------


def test_a_script_that_ends_without_listen_in_the_workers_says_what_to_do(script: Script) -> None:
    script.write('if "STICKY_WORKER_ID" not in os.environ: sticky.listen(factory, 0, 2)')
    ended = run(str(script.path), **script.env)
    assert ended.returncode == 4
    assert ended.stderr.count("ended without calling sticky.listen") == 1
    assert "sticky.listen('module:factory', ...)" in ended.stderr
    assert "Traceback" not in ended.stderr


CALL = "import sticky\nsticky.listen(lambda: None, 0)\n"


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [(["-c", CALL], ""), (["-i"], CALL), (["-"], CALL), ([], CALL)],
    ids=["python -c", "python -i", "python -", "a pipe"],
)
def test_without_a_script_the_error_names_the_alternative(arguments: list[str], stdin: str) -> None:
    ended = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "StickyError: sticky.listen was called with a function, but" in ended.stderr
    assert "sticky.listen('module:factory', ...)" in ended.stderr
    assert "sticky module:factory" in ended.stderr


def test_in_a_test_run_the_error_names_the_alternative() -> None:
    with pytest.raises(sticky.StickyError, match="sticky module:factory"):
        sticky.listen(lambda: None, 0)


# -- patching --------------------------------------------------------------------------------------

GREEN = """
from socket import socket
from threading import Lock
from time import sleep
import eventlet.greenio

LOCK = Lock()

def green():
    def app(environ, start_response):
        with LOCK:
            sleep(0.05)
        start_response("200 OK", [])
        return [str(issubclass(socket, eventlet.greenio.GreenSocket)).encode()]
    return app
"""


@pytest.mark.parametrize("how", ["script", "string", "command"])
def test_patching_comes_before_everything_the_user_imports(green_script: Script, how: str) -> None:
    """What is imported by name is green, and a lock made at import time does not hang."""
    (green_script.folder / "project.py").write_text(GREEN)
    if how == "command":
        command = ["-m", "sticky", "project:green", "-b", "127.0.0.1:0", "-w", "1"]
    else:
        given = "green" if how == "script" else '"project:green"'
        command = [green_script.write(f"sticky.listen({given}, 0, 1)", first=GREEN)]
    with Running(
        [sys.executable, *command], num=1, env=green_script.env, cwd=green_script.folder
    ) as running:
        answers: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: answers.append(running.get().body)) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert answers == [b"True"] * 20


# -- what can be served ----------------------------------------------------------------------------

OBJECTS = {
    "wsgi_function": "/",
    "wsgi_object": "/",
    "flask_app": "/",
    "socketio_server": "/socket.io/?transport=polling&EIO=4",
    "socketio_wsgi": "/socket.io/?transport=polling&EIO=4",
    "flask_socketio_app": "/socket.io/?transport=polling&EIO=4",
}
ASGI_OBJECTS = {
    "asgi_function": "/",
    "asgi_object": "/",
    "fastapi_app": "/",
    "socketio_server": "/socket.io/?transport=polling&EIO=4",
    "socketio_asgi": "/socket.io/?transport=polling&EIO=4",
}


def check_object(target: str, path: str) -> None:
    with serve(target, num=1) as running:
        answer = running.get(path)
        assert answer.status == 200
        if b"worker" in answer.body:
            assert answer.json()["worker"] == 0
        else:
            assert answer.body.startswith(b'0{"sid"')
        if "flask" in target:
            assert running.get("/").json() == {"worker": 0}
        assert running.stop() == 0
        assert "Traceback" not in running.log()


@pytest.mark.parametrize("name", [*OBJECTS, "make_socketio_server", "make_flask_socketio_app"])
def test_an_object_can_be_served_as_well_as_what_a_factory_makes(name: str) -> None:
    check_object(f"tests.process.objects:{name}", OBJECTS[name.removeprefix("make_")])


@pytest.mark.parametrize("name", [*ASGI_OBJECTS, "make_socketio_server", "make_fastapi_app"])
def test_an_asgi_object_can_be_served_as_well_as_what_a_factory_makes(name: str) -> None:
    check_object(f"tests.process.asgi_objects:{name}", ASGI_OBJECTS[name.removeprefix("make_")])


def test_an_object_can_be_given_to_listen_in_a_script(script: Script) -> None:
    what = {"wsgi": "objects import flask_app", "asgi": "asgi_objects import fastapi_app"}
    call = f"""
        from tests.process.{what[script.kind.interface]} as app
        sticky.listen(app, 0, 2)
        """
    with script.serve(call, 2) as running:
        assert running.get().json()["worker"] in (0, 1)


def test_the_command_routes_as_explain_says(kind: Kind) -> None:
    with kind.serve("whoami", num=3, proxy=True, options=["--seed", SEED]) as running:
        for number in range(30):
            address = f"203.0.113.{number}"
            served = running.get("/", {XFF: address}).json()["worker"]
            assert served == slot_of(address, 3)
