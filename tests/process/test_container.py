"""As in a container: process 1, no terminal, nothing writable but /tmp, another user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness import ROOT, Kind, Running, wait_until

from .clients import Client, head

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True, timeout=30).returncode == 0


pid_1 = pytest.mark.skipif(
    os.getuid() != 0 or not works(*UNSHARE), reason="a pid namespace needs root"
)


def contained(prepare: str, *words: str, num: int = 2, target: str = "tests.apps:lab") -> Running:
    """A server that is process 1 of a pid namespace of its own. ``prepare``: a line of shell."""
    command = [sys.executable, "-m", "sticky", target, "-b", "127.0.0.1:0", "-w", str(num), *words]
    shell = f'{prepare}\nexec "$0" "$@"'
    # --mount-proc shows the namespace's own processes, so the harness cannot follow their pids.
    return Running([*UNSHARE, "sh", "-c", shell, *command], num=num)


def inside(running: Running) -> psutil.Process:
    """The process that is number 1 in there."""
    (child,) = psutil.Process(running.pid).children()
    return child


def end(running: Running, sig: int = signal.SIGTERM) -> int:
    """As ``docker stop`` does: the signal goes to process 1."""
    inside(running).send_signal(sig)
    return running.wait()


@pid_1
def test_as_process_1_it_serves_collects_orphans_and_stops_at_a_signal(tmp_path: Path) -> None:
    orphans = tmp_path / "orphans.py"
    orphans.write_text(
        "import os\n"
        "def make():\n"
        "    def app(environ, start_response):\n"
        "        if environ['PATH_INFO'] == '/orphan':\n"
        "            if not os.fork():\n"
        "                if not os.fork():\n"
        "                    os._exit(3)\n"
        "                os._exit(0)\n"
        "            os.wait()\n"
        "        start_response('200 OK', [])\n"
        "        return [str(os.getpid()).encode()]\n"
        "    return app\n"
    )
    words = ["--app-dir", str(tmp_path)]
    with contained("", *words, target="orphans:make") as running:
        assert running.master_pid == 1
        master = inside(running)
        workers = {process.pid for process in master.children()}
        assert len(workers) == 2
        for _ in range(5):
            assert running.get("/orphan").status == 200
        wait_until(
            lambda: {process.pid for process in master.children()} == workers,
            what="no zombie is left",
        )
        assert end(running) == 0
        assert "Traceback" not in running.log()


@pid_1
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_process_1_gets_no_default_actions_and_ends_all_the_same(sig: int) -> None:
    with contained("", num=1) as running:
        assert end(running, sig) == 0


@pid_1
def test_process_1_replaces_a_worker_that_is_killed() -> None:
    with contained("", num=2) as running:
        master = inside(running)
        before = {process.pid for process in master.children()}
        master.children()[0].kill()
        wait_until(lambda: len({p.pid for p in master.children()} - before) == 1)
        running.wait_for(r"was killed by SIGKILL")
        running.wait_for(r"worker \d ready(.|\n)*worker \d ready(.|\n)*worker \d ready")
        assert running.get().status == 200
        assert end(running) == 0


@pid_1
def test_process_1_is_upgraded_in_place() -> None:
    with contained("", num=2) as running:
        master = inside(running)
        before = {process.pid for process in master.children()}
        for _ in range(2):
            mark = len(running.log())
            master.send_signal(signal.SIGUSR2)
            mark = running.wait_for("Upgraded in place", after=mark).end()
            running.wait_for(r"worker 1 ready", after=mark)
            wait_until(lambda: len(master.children()) == 2, what="no zombie is left")
        assert not before & {process.pid for process in master.children()}
        assert running.get().status == 200
        assert end(running) == 0


# The checkout is mounted once more: it may itself be somewhere in /tmp.
READ_ONLY = f"""
mount --make-rprivate /
mount --rbind / /mnt && mount -o remount,bind,ro /mnt && mount -t tmpfs none /mnt/tmp
mkdir -p /mnt{ROOT} && mount --bind {ROOT} /mnt{ROOT} && mount -o remount,bind,ro /mnt{ROOT}
"""


def read_only_works() -> bool:
    test = "mount --make-rprivate / && mount --bind / /mnt && mount -o remount,bind,ro /mnt"
    return works("unshare", "--mount", "sh", "-c", test)


@pid_1
@pytest.mark.skipif(
    os.getuid() != 0 or not read_only_works(), reason="read-only mounts are not allowed here"
)
def test_on_a_file_system_where_only_tmp_can_be_written(kind: Kind) -> None:
    """And without a home, a terminal, or anything in the environment."""
    command = [sys.executable, "-m", "sticky", kind.app("lab"), "-b", "127.0.0.1:0", "-w", "2"]
    shell = (
        f"{READ_ONLY}\n"
        f'exec env -i HARNESS_RUN="$HARNESS_RUN" PATH="$PATH" PYTHONUNBUFFERED=1 '
        f'chroot /mnt sh -c \'mount -t proc proc /proc; cd {ROOT}; exec "$0" "$@"\' "$@"'
    )
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", shell, "sh"]
    with Running([*words, *command], num=2) as running:
        assert running.master_pid == 1
        with pytest.raises(OSError, match="Read-only"):
            Path(f"/proc/{inside(running).pid}/root{ROOT}/written").touch()
        assert running.get().status == 200
        body = b"x" * 1_000_000
        answer = running.get("/body", method="POST", body=body)
        assert answer.body == body
        assert end(running) == 0
        assert "Traceback" not in running.log()


def test_without_a_terminal_home_or_standard_streams(tmp_path: Path) -> None:
    """As a service manager may start it: all three standard descriptors closed."""
    port_file = tmp_path / "port"
    script = tmp_path / "serve.py"
    script.write_text(
        "import sticky\n"
        "from tests.apps import lab\n"
        "def on_listening(addresses):\n"
        f"    open({str(port_file)!r}, 'w').write(str(addresses[0][1]) + '\\n')\n"
        "sticky.listen(lab, 0, 1, on_listening=on_listening)\n"
    )
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, str(script)],
        env={"PYTHONPATH": str(ROOT)},
        cwd="/",
        start_new_session=True,
    )
    try:
        wait_until(lambda: port_file.exists() and port_file.read_text().endswith("\n"), 60)
        with Client(int(port_file.read_text()), head()) as client:
            assert client.answer().status == 200
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
