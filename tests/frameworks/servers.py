"""The servers that are compared: sticky, and uvicorn as what does not know of sessions."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.proxies import free_port
from tests.frameworks.environments import Environment
from tests.frameworks.presets import Preset
from tests.harness import WORKER_READY, Running

APPS = Path(__file__).with_name("apps")
WORKERS = 4
_STARTED = re.compile(rf"(?:Application startup complete.*?){{{WORKERS}}}", re.DOTALL)
_REPLACED = re.compile(rf"(?:{WORKER_READY.pattern}.*?){{{WORKERS}}}", re.DOTALL)


class Server:
    """One that runs.

    Attributes:
        port: of 127.0.0.1.
    """

    def __init__(self, running: Running, port: int) -> None:
        self.running = running
        self.port = port

    def reload(self) -> list[int]:
        """Have all workers replaced; the pids of the new ones."""
        running = self.running
        before = len(running.log())
        running.send_signal(signal.SIGHUP)
        running.wait_for(_REPLACED, 120, after=before)
        return [int(pid) for _, pid in WORKER_READY.findall(running.log()[before:])]


@contextmanager
def sticky(preset: Preset, environment: Environment, folder: Path) -> Iterator[Server]:
    """``sticky --workers 4``, with the options of the preset, for direct clients and a proxy."""
    port = free_port()
    command = [str(environment.python), "-m", "sticky", "-k", "asgi", preset.target]
    command += ["-b", f"127.0.0.1:{port}", "-w", str(WORKERS), *preset.options]
    command += ["--proxy", "--ignore-missing-header", "--app-dir", str(APPS)]
    with Running(command, num=WORKERS, env=_env(preset), cwd=folder, boot_timeout=120) as running:
        yield Server(running, port)


@contextmanager
def uvicorn(preset: Preset, environment: Environment, folder: Path) -> Iterator[Server]:
    """``uvicorn --workers 4``: the control, which has to fail."""
    port = free_port()
    command = [str(environment.python), "-m", "uvicorn", preset.target, "--port", str(port)]
    command += ["--workers", str(WORKERS), "--app-dir", str(APPS)]
    # Streams that are open are nobody's concern here.
    command += ["--timeout-graceful-shutdown", "1"]
    with Running(command, env=_env(preset), cwd=folder, ready=False) as running:
        running.wait_for(_STARTED, 120)
        yield Server(running, port)


SERVERS = {"sticky": sticky, "uvicorn": uvicorn}


def _env(preset: Preset) -> dict[str, str]:
    return {"PYTHONWARNINGS": "ignore", **preset.env}


def told(pids: list[int]) -> str:
    """A line for the driver."""
    return json.dumps(pids) + "\n"
