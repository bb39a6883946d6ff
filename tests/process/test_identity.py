"""``user``, ``group``, ``umask`` and ``pid``: root opens the ports, somebody else serves."""

from __future__ import annotations

import functools
import grp
import json
import os
import pwd
import random
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.harness import ROOT, Running, wait_until

from .clients import XFF
from .test_bind import ask
from .test_options import assert_one_line, run

APP = """
import json, os, sys
IMPORTED_AS = os.getresuid()
def make():
    def app(environ, start_response):
        umask = os.umask(0); os.umask(umask)
        start_response("200 OK", [])
        return [json.dumps({
            "worker": 0, "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
            "imported": IMPORTED_AS, "umask": umask,
        }).encode()]
    return app
"""
NOBODY = pwd.getpwnam("nobody")
DAEMON = grp.getgrnam("daemon").gr_gid
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@functools.cache
def python_for_nobody() -> tuple[str, str]:
    """An interpreter that nobody can run as well, and the PYTHONPATH that it needs."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_paths()["purelib"]])
    code = "import sys, sticky.core; print(sys.version_info[:2])"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            ended = subprocess.run(
                [python, "-c", code],
                capture_output=True,
                text=True,
                user="nobody",
                group=NOBODY.pw_gid,
                extra_groups=[],
                env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
                cwd="/",
            )
        except OSError:
            continue
        if ended.stdout.strip() == str(sys.version_info[:2]):
            return python, path
    pytest.skip("there is no interpreter here that the user nobody can run")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place that everybody can look into, and only root can write to."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "identified.py").write_text(APP)
    for place in (tmp_path, *tmp_path.parents):
        if place.is_relative_to("/tmp") and place != Path("/tmp"):
            place.chmod(0o755)
    app.chmod(0o755)
    return app


def start(folder: Path, *options: str, ready: bool = True, **more: str) -> Running:
    python, path = python_for_nobody()
    words = [python, "-m", "sticky", "identified:make", "-w", "1", "-k", "threads"]
    words += ["--app-dir", str(folder), *options]
    environ = {"PYTHONPATH": path, "XDG_RUNTIME_DIR": "/run/user/0", **more}
    return Running(words, num=1, env=environ, cwd="/", ready=ready)


@root
def test_a_port_below_1024_is_opened_by_root_and_served_by_somebody_else(folder: Path) -> None:
    port = free_port_below_1024()
    with start(folder, "-b", f"127.0.0.1:{port}", "--user", "nobody") as running:
        seen = ask(("127.0.0.1", port))
        assert seen["uid"] == [NOBODY.pw_uid] * 3
        assert seen["gid"] == [NOBODY.pw_gid] * 3
        assert seen["groups"] == os.getgrouplist("nobody", NOBODY.pw_gid)
        assert seen["imported"] == [NOBODY.pw_uid] * 3
        for pid in (running.master_pid, *running.worker_pids().values()):
            status = Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}" in status
        # It can do all that it has to.
        before = running.worker_pids()[0]
        running.send_signal(signal.SIGHUP)
        after = running.wait_for_successor(0, before)
        running.kill_worker(0)
        running.wait_for_successor(0, after)
        assert ask(("127.0.0.1", port))["uid"] == [NOBODY.pw_uid] * 3
        assert running.stop() == 0


@root
def test_an_upgrade_in_place_leaves_it_at_that(folder: Path) -> None:
    port, pid_file = free_port_below_1024(), folder / "pid"
    options = ("-b", f"127.0.0.1:{port}", "--user", "nobody", "--umask", "027")
    with start(folder, *options, "--pid", str(pid_file)) as running:
        for _ in range(2):
            before = running.worker_pids()[0]
            mark = len(running.log())
            running.send_signal(signal.SIGUSR2)
            running.wait_for("Upgraded in place", after=mark)
            running.wait_for_successor(0, before)
            seen = ask(("127.0.0.1", port))
            assert seen["uid"] == [NOBODY.pw_uid] * 3
            assert seen["groups"] == os.getgrouplist("nobody", NOBODY.pw_gid)
            assert seen["umask"] == 0o027
            assert pid_file.read_text() == f"{running.master_pid}\n"
        assert "WARNING" not in running.log()
        assert running.stop() == 0


def free_port_below_1024() -> int:
    # Not from the top, where programs of the system look for theirs (bindresvport(3)).
    for port in random.sample(range(600, 900), 300):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no port is free")


@root
@pytest.mark.parametrize("group", ["daemon", str(DAEMON)])
def test_a_group_counts_more_than_that_of_the_user(folder: Path, group: str) -> None:
    with start(folder, "-b", "127.0.0.1:0", "-u", str(NOBODY.pw_uid), "-g", group) as running:
        seen = ask(("127.0.0.1", running.port))
        assert seen["uid"] == [NOBODY.pw_uid] * 3
        assert seen["gid"] == [DAEMON] * 3
        assert seen["groups"] == os.getgrouplist("nobody", DAEMON)


@root
def test_a_group_alone_leaves_the_user(folder: Path) -> None:
    with start(folder, "-b", "127.0.0.1:0", "--group", "daemon") as running:
        seen = ask(("127.0.0.1", running.port))
        assert (seen["uid"], seen["gid"], seen["groups"]) == ([0] * 3, [DAEMON] * 3, [DAEMON])


@root
def test_what_is_written_belongs_to_that_user(folder: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    os.chown(logs, NOBODY.pw_uid, NOBODY.pw_gid)
    config = {
        "version": 1,
        "handlers": {"f": {"class": "logging.FileHandler", "filename": str(logs / "error.log")}},
        "loggers": {"sticky": {"handlers": ["f"], "level": "INFO"}},
    }
    log_config = tmp_path / "log.json"
    log_config.write_text(json.dumps(config))
    log_config.chmod(0o644)
    path, metrics, pid = logs / "http", logs / "metrics", tmp_path / "app.pid"
    with start(
        folder,
        *("-b", f"unix:{path}", "--proxy", "--user", "nobody", "--umask", "027"),
        *("--log-config", str(log_config)),
        *("--metrics", f"unix:{metrics}", "--pid", str(pid)),
        ready=False,
    ) as running:
        wait_until(lambda: "Listening at" in text(logs / "error.log"))
        assert pid.read_text() == f"{running.pid}\n"
        seen = ask(str(path), f"{XFF}: 10.0.0.1")
        assert seen["umask"] == 0o027
        for made in (path, metrics, logs / "error.log", pid):
            found = made.lstat()
            assert (found.st_uid, found.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid), made
        assert stat.S_IMODE(path.lstat().st_mode) == 0o750  # 0777 without the umask
        assert stat.S_IMODE((logs / "error.log").stat().st_mode) == 0o640
        ctl = Path(f"/tmp/sticky-{NOBODY.pw_uid}")
        assert (ctl / f"{running.pid}.sock").is_socket()
        assert ctl.stat().st_uid == NOBODY.pw_uid
        # Root may ask, too.
        words = ["-m", "sticky", "ctl", "--ctl", str(ctl / f"{running.pid}.sock"), "status"]
        assert f"pid {running.pid}: serving" in run(*words).stdout
        (logs / "error.log").rename(logs / "error.log.1")
        running.send_signal(signal.SIGUSR1)
        wait_until(lambda: (logs / "error.log").exists())
        assert running.stop() == 0
    assert not path.exists()
    assert not metrics.exists()
    assert text(pid) == ""  # in a folder of root's, it cannot be removed by then


@root
def test_the_access_log_belongs_to_that_user(folder: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    os.chown(logs, NOBODY.pw_uid, NOBODY.pw_gid)
    options = ("-b", "127.0.0.1:0", "--user", "nobody", "--access-logfile", f"{logs}/access.log")
    with start(folder, *options, "--no-ctl") as running:
        ask(("127.0.0.1", running.port))
        wait_until(lambda: text(logs / "access.log"))
        assert (logs / "access.log").stat().st_uid == NOBODY.pw_uid


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--user", "no-such-user"], "'user' is 'no-such-user', and this machine has no user"),
        (["--group", "no-such-group"], "'group' is 'no-such-group', and this machine has no"),
    ],
)
def test_who_is_not_there_is_said_so(options: list[str], says: str) -> None:
    ended = run("-m", "sticky", "tests.apps:lab", "-b", "127.0.0.1:0", *options)
    assert ended.returncode == 2
    assert_one_line(ended.stderr, says)


@root
@pytest.mark.parametrize(
    ("options", "says"),
    [(["--user", "root"], "'user' is 'root'"), (["--group", "daemon"], "'group' is 'daemon'")],
)
def test_only_root_may_become_another(folder: Path, options: list[str], says: str) -> None:
    python, path = python_for_nobody()
    ended = subprocess.run(
        [python, "-m", "sticky", "identified:make", "-b", "127.0.0.1:0", *options],
        capture_output=True,
        text=True,
        timeout=60,
        user="nobody",
        group=NOBODY.pw_gid,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
    )
    assert ended.returncode == 2
    assert_one_line(ended.stderr, says + ", but only root can become another")


@root
def test_whoever_one_is_already_one_may_be(folder: Path) -> None:
    python, path = python_for_nobody()
    words = [python, "-m", "sticky", "identified:make", "-w", "1", "-k", "threads", "--no-ctl"]
    words += ["--app-dir", str(folder), "-b", "127.0.0.1:0", "--user", "nobody"]
    wrapper = "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); "
    wrapper += "os.setuid(int(sys.argv[1])); os.execv(sys.argv[3], sys.argv[3:])"
    numbers = [str(NOBODY.pw_uid), str(NOBODY.pw_gid)]
    command = [sys.executable, "-c", wrapper, *numbers, *words]
    with Running(command, num=1, env={"PYTHONPATH": path}, cwd="/") as running:
        assert ask(("127.0.0.1", running.port))["uid"] == [NOBODY.pw_uid] * 3


# -- the pid file ---------------------------------------------------------------------------------


def test_the_pid_file_names_the_master_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    words = [sys.executable, "-m", "sticky", "tests.apps:lab", "-b", "127.0.0.1:0", "-w", "1"]
    words += ["--pid", str(path), "--no-ctl"]
    with Running(words, num=1) as running:
        assert path.read_text() == f"{running.master_pid}\n"
        ended = run(*words[1:])
        assert ended.returncode == 1
        assert_one_line(ended.stderr, f"names process {running.master_pid}, which is alive")
        assert path.read_text() == f"{running.master_pid}\n"
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert path.exists()
    with Running(words, num=1) as running:  # what it left is no obstacle
        assert path.read_text() == f"{running.master_pid}\n"
        assert running.stop() == 0
    assert not path.exists()


def test_a_server_that_cannot_start_leaves_no_pid_file(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    words = ["-m", "sticky", "tests.apps:no_such_app", "-b", "127.0.0.1:0", "-w", "1"]
    ended = run(*words, "--pid", str(path), "--no-ctl")
    assert ended.returncode == 4
    assert not path.exists()


def test_the_umask_is_that_of_all_processes(tmp_path: Path) -> None:
    (tmp_path / "identified.py").write_text(APP)
    words = [sys.executable, "-m", "sticky", "identified:make", "-b", "127.0.0.1:0", "-w", "1"]
    words += ["--app-dir", str(tmp_path), "--umask", "0077", "-k", "threads", "--no-ctl"]
    with Running(words, num=1) as running:
        assert ask(("127.0.0.1", running.port))["umask"] == 0o077
