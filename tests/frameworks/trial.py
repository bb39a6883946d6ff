"""What of a framework works behind a server, as Chromium sees it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.conftest import requires
from tests.e2e.proxies import nginx_that_shares
from tests.frameworks import presets
from tests.frameworks.environments import PLACE, Environment
from tests.frameworks.presets import Preset
from tests.frameworks.servers import SERVERS, Server, told

DRIVER = Path(__file__).with_name("drive.mjs")
PATIENCE = {"sticky": 30_000, "uvicorn": 12_000}
"""Milliseconds for one step. The control waits for what never comes."""

DIRECT, NGINX = "direct", "nginx"
WAYS = (DIRECT, NGINX)


@dataclass
class Seen:
    """What one framework's checks said: whether each passed, and what was seen."""

    preset: Preset
    version: str
    passed: dict[tuple[str, str, str], bool] = field(default_factory=dict)
    """By server, way and check."""
    socket: str = "-"

    def failed(self, server: str, way: str) -> list[str]:
        return [
            check
            for (by, through, check), passed in self.passed.items()
            if (by, through) == (server, way) and not passed
        ]

    def ran(self, server: str, way: str) -> bool:
        return any((by, through) == (server, way) for by, through, _ in self.passed)

    @property
    def is_right(self) -> bool:
        """Everything works with sticky, and something fails with the control: which process it is
        that gets a connection there is chance, and with a quiet machine often the same."""
        ours = [self.failed("sticky", way) for way in WAYS if self.ran("sticky", way)]
        theirs = [self.failed("uvicorn", way) for way in WAYS if self.ran("uvicorn", way)]
        return not any(ours) and (any(theirs) or not theirs)


Report = Callable[[str], None]


def drive(
    preset: Preset, server: Server, port: int, checks: Sequence[str], name: str, thorough: bool
) -> list[dict[str, str]]:
    """The answers of the driver's checks, of pages at this port."""
    config = {
        "name": preset.name,
        "url": f"http://127.0.0.1:{port}",
        "chromium": requires("chromium"),
        "checks": list(checks),
        "timeout": PATIENCE[name],
        "spread": name == "sticky",
        "stop": name != "sticky" and not thorough,
    }
    answers: list[dict[str, str]] = []
    with subprocess.Popen(
        [requires("node"), str(DRIVER), json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        try:
            for line in driver.stdout:
                said = json.loads(line)
                if said.get("ask") == "reload":
                    driver.stdin.write(told(server.reload()))
                    driver.stdin.flush()
                else:
                    answers.append(said)
        finally:
            driver.stdin.close()
            if driver.wait(30):
                raise RuntimeError(f"the driver ended with {driver.returncode}")
    return answers


def run(
    preset: Preset,
    environment: Environment,
    report: Report,
    *,
    servers: Sequence[str] = tuple(SERVERS),
    ways: Sequence[str] = WAYS,
    checks: Sequence[str] = presets.ALL,
    thorough: bool = False,
) -> Seen:
    """Try all of it, and say what was seen as it is.

    Args:
        thorough: not only what of the control fails first.
    """
    seen = Seen(preset, environment.version(preset.package))
    for name in servers:
        chosen = [check for check in preset.checks if check in checks]
        if name == "uvicorn":
            chosen = [check for check in chosen if check != presets.RELOAD]
        with tempfile.TemporaryDirectory(prefix="sticky-frameworks-") as folder:
            _run_one(seen, name, environment, Path(folder), chosen, ways, thorough, report)
    return seen


def _run_one(
    seen: Seen,
    name: str,
    environment: Environment,
    folder: Path,
    checks: Sequence[str],
    ways: Sequence[str],
    thorough: bool,
    report: Report,
) -> None:
    preset = seen.preset
    log = PLACE / "logs" / f"{preset.name}-{name}.log"
    log.parent.mkdir(exist_ok=True)
    with SERVERS[name](preset, environment, folder) as server:
        try:
            for way in ways:
                if way == DIRECT:
                    answers = drive(preset, server, server.port, checks, name, thorough)
                else:
                    with nginx_that_shares(folder, server.port) as port:
                        answers = drive(preset, server, port, checks, name, thorough)
                for answer in answers:
                    check, passed = answer["check"], bool(answer["ok"])
                    seen.passed[name, way, check] = passed
                    if check == presets.SOCKET and passed:
                        seen.socket = answer["seen"]
                    word = "ok" if passed else "FAILED"
                    report(f"{preset.name:10} {name:8} {way:7} {check:9} {word:7} {answer['seen']}")
        finally:
            log.write_text(server.running.log())
