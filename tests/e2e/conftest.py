"""Real clients, a real proxy, a real browser: programs that need not be there on every machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import MARK, ROOT, marked, wait_until

HERE = Path(__file__).resolve().parent
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
HOW_TO_INSTALL = {
    "node": "install Node.js 18 or later (apt install nodejs npm)",
    "node_modules": "run `make test`, or `npm ci` in tests/e2e",
    "nginx": "apt install nginx-light",
    "haproxy": "apt install haproxy",
    "chromium": "apt install chromium, or name another one in $CHROMIUM",
}


def requires(name: str) -> str:
    """The path of what a test needs. Without it the test is skipped, but fails where CI=true."""
    if name == "node_modules":
        found = str(HERE / name) if (HERE / name / "socket.io-client").is_dir() else None
    else:
        found = shutil.which(os.environ.get(name.upper(), name), path=PATH)
    if found is None:
        message = f"needs {name}: {HOW_TO_INSTALL[name]}"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return found


class Script:
    """A script of this directory, as a process: configuration in argv, one JSON line as answer."""

    def __init__(self, name: str, **config: Any) -> None:
        if name.endswith(".js"):
            program = [requires("node")]
            requires("node_modules")
        else:
            program = [sys.executable]
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [*program, str(HERE / name), json.dumps(config)],
            cwd=HERE,
            env={**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def answer(self) -> Any:
        """The line it prints when it has done its work; it may then hold what it opened."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"no answer: {self.process.communicate(timeout=10)[1][-5000:]}")
        return json.loads(line)

    def end(self, timeout: float = 20) -> None:
        """Close its standard input, which ends it."""
        try:
            error = self.process.communicate(timeout=timeout)[1]
        finally:
            self.kill()
        assert self.process.returncode == 0, error[-5000:]

    def kill(self) -> None:
        for process in marked(self.mark):
            process.kill()
        self.process.communicate(timeout=10)
        wait_until(lambda: not marked(self.mark), 10, "no process of the script is left")


@pytest.fixture
def script() -> Any:
    """Start a script of this directory; whatever happens, none of it survives the test."""
    started: list[Script] = []

    def start(name: str, **config: Any) -> Script:
        started.append(Script(name, **config))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None or marked(one.mark):
            one.kill()
        for stream in (one.process.stdin, one.process.stdout, one.process.stderr):
            assert stream is not None
            stream.close()


Start = Callable[..., Script]
