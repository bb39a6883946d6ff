"""Start the real thing, watch it from outside, and make sure that nothing of it is left.

with kind.serve("whoami", num=4, proxy=True) as running:
    answer = running.get("/", {"X-Forwarded-For": "192.0.2.7"})
    os.kill(running.worker_pids()[answer.json()["worker"]], signal.SIGKILL)
    running.wait_for(r"worker \\d+ ready")
    assert running.stop() == 0
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

ROOT = Path(__file__).resolve().parent.parent
LISTENING = re.compile(r"Listening at: (\S+)(?:, \S+)* \(pid (\d+)\)")
WORKER_READY = re.compile(r"worker (\d+) ready \(pid (\d+)\)")
MARK = "HARNESS_RUN"  # in the environment of everything a run starts, however deep

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], timeout: float = 20.0, what: str = "", interval: float = 0.02
) -> T:
    """The first true value of ``condition()``, looked for until ``timeout`` seconds have passed."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {timeout} s: {what or condition}")
        time.sleep(interval)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    port: int,
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes | None = None,
    timeout: float = 20.0,
    host: str = "127.0.0.1",
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def stop_process(pid: int) -> None:
    """Send SIGSTOP, and wait until all of its threads stand still: they go on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")

    def stands() -> bool:
        try:
            stats = [(task / "stat").read_text() for task in tasks.iterdir()]
        except OSError:  # a thread has ended
            return False
        return all(stat.rpartition(")")[2].split()[0] in "TtZX" for stat in stats)

    wait_until(stands, what=f"process {pid} stands still")


def marked(mark: str) -> list[psutil.Process]:
    """Every process of this run that is still alive, orphans included; a zombie has ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # ended meanwhile, or somebody else's
    return found


class Running:
    """A server in processes of its own. Use ``serve``; start and end it with ``with``."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        num: int = 2,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = ROOT,
        ready: bool = True,
        boot_timeout: float = 60.0,
        end_timeout: float = 45.0,
    ) -> None:
        self.command = list(command)
        self.num = num
        self.env = {**os.environ, **(env or {})}
        # With it each argument of ``print`` is written by itself, and what several processes print
        # is mixed within a line.
        self.env.pop("PYTHONUNBUFFERED", None)
        self.env[MARK] = self.mark = uuid.uuid4().hex
        self.cwd = cwd
        self.ready = ready
        self.boot_timeout = boot_timeout
        self.end_timeout = end_timeout
        self._text, self._rest = "", b""  # what was read, and the beginning of the next line
        self._news = threading.Condition()
        self._ended = False  # the log has ended: nothing that could write to it is alive

    def __enter__(self) -> Self:
        # A session of its own: a signal for the terminal's group does not reach the test run.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.env,
            cwd=self.cwd,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._reader = threading.Thread(target=self._read, name="harness-log", daemon=True)
        self._reader.start()
        try:
            if self.ready:
                self.wait_for(LISTENING, self.boot_timeout)
                self._wait(lambda: len(self.worker_pids()) >= self.num, self.boot_timeout, "ready")
        except BaseException as error:
            self._clean_up()
            error.add_note(self._evidence())
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        problems = self._clean_up()
        if error is not None:
            for problem in problems:
                error.add_note(problem)
            error.add_note(self._evidence())
        elif problems:
            raise AssertionError("\n".join([*problems, self._evidence()]))

    # The log

    def _read(self) -> None:
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        with self.process.stdout:
            while not self._ended:
                poll.poll()
                with self._news:
                    self._take()

    def _take(self) -> None:
        """Have all lines that were written by now; with ``_news`` held."""
        with contextlib.suppress(BlockingIOError):
            while not self._ended:
                data = os.read(self._output, 65536)
                self._ended = not data
                whole, end, rest = (self._rest + data).rpartition(b"\n")
                if self._ended:
                    whole, end, rest = self._rest, b"", b""
                self._text += (whole + end).decode(errors="replace")
                self._rest = rest
                self._news.notify_all()

    def _wait(self, condition: Callable[[], T], timeout: float, what: str) -> T:
        """Wait for a condition that only a new line of the log can make true."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not (value := condition()):
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the server has ended" if self._ended else f"{timeout} s have passed"
                    raise TimeoutError(f"never in the log: {what} ({why})")
                self._news.wait(left)
            return value

    def log(self) -> str:
        """Standard output and standard error of all its processes: the lines so far."""
        with self._news:
            self._take()
            return self._text

    def wait_for(
        self, pattern: str | re.Pattern[str], timeout: float = 20.0, *, after: int = 0
    ) -> re.Match[str]:
        """Wait until ``pattern`` is found in the log, from its character ``after`` on.

        For what shall come next: ``mark = len(running.log())``, act, ``wait_for(..., after=mark)``.
        """
        compiled = pattern if isinstance(pattern, re.Pattern) else re.compile(pattern, re.MULTILINE)
        return self._wait(lambda: compiled.search(self.log(), after), timeout, compiled.pattern)

    def _evidence(self) -> str:
        status = self.process.returncode
        return (
            f"--- {' '.join(self.command)}\n--- exit status {status}, log:\n{self.log()[-20_000:]}"
        )

    # What runs

    @property
    def pid(self) -> int:
        """The process that was started: the master, or a script that called ``listen``."""
        return self.process.pid

    @property
    def master_pid(self) -> int:
        return int(self.wait_for(LISTENING)[2])

    @property
    def url(self) -> str:
        return self.wait_for(LISTENING)[1].rstrip(",/")

    @property
    def port(self) -> int:
        port = urllib.parse.urlsplit(self.url).port
        assert port, self.url
        return port

    def worker_pids(self) -> dict[int, int]:
        """Slot -> pid of the process that was the last to become ready in it."""
        found = {int(slot): int(pid) for slot, pid in WORKER_READY.findall(self.log())}
        return dict(sorted(found.items()))

    def processes(self) -> list[psutil.Process]:
        """Everything of this run that is alive."""
        return marked(self.mark)

    def fds(self) -> dict[int, int]:
        """Pid -> number of open fds, of the master and each worker."""
        pids = [self.master_pid, *self.worker_pids().values()]
        return {pid: psutil.Process(pid).num_fds() for pid in pids}

    def stats(self) -> dict[str, Any]:
        """What the server has counted."""
        words = ["ctl", "--pid", str(self.master_pid), "--json", "stats"]
        command = [sys.executable, "-m", "sticky", *words]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=True, cwd=ROOT)
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    def get(
        self, path: str = "/", headers: Mapping[str, str] | None = None, **options: Any
    ) -> Answer:
        """A request on a new connection; ``options`` as of ``request``."""
        return request(self.port, path, headers, **options)

    def kill_worker(self, slot: int, sig: int = signal.SIGKILL) -> int:
        """Send ``sig`` to the process of ``slot``; its pid."""
        pid = self.worker_pids()[slot]
        try:
            os.kill(pid, sig)
        except ProcessLookupError as error:
            error.add_note(self._evidence())
            raise
        return pid

    def wait_for_successor(self, slot: int, pid: int, timeout: float = 30.0) -> int:
        """Wait until another process than ``pid`` is ready in ``slot``; its pid."""
        self._wait(lambda: self.worker_pids().get(slot) != pid, timeout, f"a new worker {slot}")
        return self.worker_pids()[slot]

    # Ending

    def send_signal(self, sig: int) -> None:
        self.process.send_signal(sig)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the started process; its exit status."""
        return self.process.wait(self.end_timeout if timeout is None else timeout)

    def stop(self, sig: int = signal.SIGTERM, timeout: float | None = None) -> int:
        """Send ``sig`` to the started process and wait for its end; its exit status."""
        self.send_signal(sig)
        return self.wait(timeout)

    def _clean_up(self) -> list[str]:
        """End everything; what was not as it should be."""
        problems = []
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                problems.append(f"not ended {self.end_timeout} s after TERM: pid {self.pid}")
        if not problems:
            try:
                wait_until(lambda: not self.processes(), 15, "no process is left")
            except TimeoutError:
                problems += [f"left behind: {process}" for process in self.processes()]
        for process in self.processes():
            process.kill()
        if problems:
            self.process.wait(10)
        self._reader.join(10)
        return problems


def serve(
    target: str,
    *,
    num: int = 2,
    proxy: bool = False,
    python: str = sys.executable,
    script: bool = False,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    cwd: str | os.PathLike[str] = ROOT,
    ready: bool = True,
    boot_timeout: float = 60.0,
    end_timeout: float = 45.0,
) -> Running:
    """``python -m sticky target`` on a free port of 127.0.0.1, as a context manager.

    script: ``target`` is the path of a script that calls ``sticky.listen`` itself; ``num`` then
    says for how many workers to wait, ``options`` are the script's arguments.
    ready: wait until it listens and every worker is ready. Without, wait for what you expect.
    """
    if script:
        command = [python, target, *options]
    else:
        command = [python, "-m", "sticky", target, "-b", "127.0.0.1:0", "-w", str(num)]
        command += ["--proxy"] * proxy + list(options)
    return Running(
        command,
        num=num,
        env=env,
        cwd=cwd,
        ready=ready,
        boot_timeout=boot_timeout,
        end_timeout=end_timeout,
    )


@dataclass(frozen=True)
class Kind:
    """One kind of server. Its apps have the names, and the answers, of every other kind's.

    Attributes:
        interface: of its apps: "wsgi" or "asgi".
        apps: the module of its apps.
        env: what makes a server of this kind, besides the app.
    """

    name: str
    interface: str
    apps: str
    env: Mapping[str, str]

    def app(self, name: str) -> str:
        """The app of this name, as ``module:factory``."""
        return f"{self.apps}:{name}"

    def serve(
        self, target: str, *, env: Mapping[str, str] | None = None, **options: Any
    ) -> Running:
        """``serve`` with this kind's app of that name, or with a target of one's own."""
        own = ":" in target or options.get("script")
        return serve(
            target if own else self.app(target), env={**self.env, **(env or {})}, **options
        )


_ASGI = {"STICKY_WORKER_CLASS": "asgi"}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("eventlet", "wsgi", "tests.apps", {"STICKY_WORKER_CLASS": "eventlet"}),
        Kind("gevent", "wsgi", "tests.apps", {"STICKY_WORKER_CLASS": "gevent"}),
        Kind("threads", "wsgi", "tests.apps", {"STICKY_WORKER_CLASS": "threads"}),
        Kind("asgi", "asgi", "tests.asgi_apps", _ASGI),
    )
}
