"""Wrong options and a port that cannot be had: one clear line, before anything is bound."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sticky
from tests.harness import MARK, ROOT, marked

WRONG: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "num of 0": ({"num": 0}, ["-w", "0"], "'num'.* 0.*1 to"),
    "num of -1": ({"num": -1}, ["-w=-1"], "'num'.* -1"),
    "num that is a word": ({"num": "many"}, ["--num", "many"], "'num'.*'many'"),
    "port of 70000": ({"port": 70000}, ["-b", "127.0.0.1:70000"], "'(port|bind)'.*70000.*65535"),
    "port that is a word": ({"port": "http"}, ["-b", "127.0.0.1:http"], "'(port|bind)'.*http'"),
    "header with a space": (
        {"header": "x forwarded for", "proxy": True},
        ["--proxy", "--proxy-header", "x forwarded for"],
        "'header'.*'x forwarded for'.*no spaces",
    ),
    "header with a colon": (
        {"header": "x-real-ip:", "proxy": True},
        ["--proxy", "--proxy-header", "x-real-ip:"],
        "'header'.*'x-real-ip:'.*no colon",
    ),
    "header that is empty": (
        {"header": "", "proxy": True},
        ["--proxy", "--proxy-header", ""],
        "'header'.*''",
    ),
    "hops without proxy": ({"hops": 1}, ["--hops", "1"], "'hops'.*'proxy'"),
    "hops of 0": ({"hops": 0, "proxy": True}, ["--proxy", "--hops", "0"], "'hops'.* 0"),
    "host with a space": ({"host": "my host"}, ["-b", "my host:1"], "'(host|bind)'.*'my host"),
    "worker class nobody has": (
        {"worker_class": "magic"},
        ["-k", "magic"],
        "'worker_class'.*magic",
    ),
    "log level nobody has": ({"log_level": "loud"}, ["--log-level", "loud"], "'log_level'.*loud"),
    "timeout that is negative": ({"timeout": -1}, ["--timeout=-1"], "'timeout'.* -1"),
    "timeout that is not a number": (
        {"head_timeout": float("nan")},
        ["--head-timeout", "nan"],
        "'head_timeout'.*nan",
    ),
    "seed that is too short": ({"seed": "abc"}, ["--seed", "abc"], "'seed'.*abc"),
}
IDS = [name.replace(" ", "-") for name in WRONG]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that is to end by itself, and to leave nothing."""
    mark = os.urandom(16).hex()
    ended = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT), **environment},
    )
    left = marked(mark)
    for process in left:
        process.kill()
    assert not left
    return ended


def assert_one_line(text: str, pattern: str) -> None:
    assert text.count("\n") == 1, text
    assert re.search(pattern, text), text


@pytest.mark.parametrize(("options", "_arguments", "pattern"), WRONG.values(), ids=IDS)
def test_a_wrong_option_raises_an_error_that_names_it(
    options: dict[str, Any], _arguments: list[str], pattern: str
) -> None:
    with pytest.raises(sticky.OptionError) as raised:
        sticky.Options.make(options)
    assert_one_line(f"{raised.value}\n", pattern)


def test_an_unknown_option_raises_an_error_that_names_the_one_that_was_meant() -> None:
    with pytest.raises(sticky.OptionError, match="'headr'; did you mean 'header'"):
        sticky.Options.make(headr="x-real-ip")
    with pytest.raises(sticky.OptionError, match="'workers'"):
        sticky.Options.make({"workers": 3})


@pytest.mark.parametrize(("options", "_arguments", "pattern"), WRONG.values(), ids=IDS)
def test_listen_raises_it_before_anything_is_bound(
    taken: int, options: dict[str, Any], _arguments: list[str], pattern: str
) -> None:
    # It would complain about the port if it came that far.
    with pytest.raises(sticky.OptionError) as raised:
        sticky.listen("tests.apps:whoami", **{"port": taken, **options})
    assert_one_line(f"{raised.value}\n", pattern)


def test_listen_refuses_an_unknown_option_in_a_script(tmp_path: Path, taken: int) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import sticky\n"
        "try:\n"
        f"    sticky.listen(lambda: 1, {taken}, nun=3)\n"
        "except sticky.OptionError as error:\n"
        "    print(error)\n"
    )
    ended = run(str(script))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_one_line(ended.stdout, "'nun'; did you mean 'num'")


@pytest.mark.parametrize(("_options", "arguments", "pattern"), WRONG.values(), ids=IDS)
def test_the_command_says_it_in_one_line_and_exits_2(
    taken: int, _options: dict[str, Any], arguments: list[str], pattern: str
) -> None:
    where = [] if "-b" in arguments else ["-b", f"127.0.0.1:{taken}"]
    ended = run("-m", "sticky", "tests.apps:whoami", *where, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_one_line(ended.stderr, pattern)


def test_the_command_says_so_when_an_option_does_not_exist() -> None:
    ended = run("-m", "sticky", "tests.apps:whoami", "--nun", "3")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    assert "--nun" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("app", ["tests.apps", "tests/apps.py:whoami", "tests.apps:", ":whoami"])
def test_the_command_says_how_an_app_is_written(app: str) -> None:
    ended = run("-m", "sticky", app)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_one_line(ended.stderr, "module:factory")


def test_a_wrong_web_concurrency_is_named() -> None:
    ended = run("-m", "sticky", "tests.apps:whoami", WEB_CONCURRENCY="lots")
    assert ended.returncode == 2
    assert_one_line(ended.stderr, "WEB_CONCURRENCY.*'lots'")


def test_a_port_in_use_is_one_line_and_exit_1_from_the_command(taken: int) -> None:
    ended = run("-m", "sticky", "tests.apps:whoami", "-b", f"127.0.0.1:{taken}")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert_one_line(ended.stderr, f"cannot listen on 127.0.0.1:{taken}: the port is in use")


def test_a_port_in_use_is_one_line_and_exit_1_from_a_script(tmp_path: Path, taken: int) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import sticky\n"
        f"sticky.listen(lambda: None, {taken}, on_listening=lambda a: print('listening', a))\n"
        "print('not reached')\n"
    )
    ended = run(str(script))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert_one_line(ended.stderr, f"cannot listen on 127.0.0.1:{taken}: the port is in use")


def test_an_address_of_another_machine_is_one_line_and_exit_1() -> None:
    ended = run("-m", "sticky", "tests.apps:whoami", "-b", "192.0.2.1:0")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert_one_line(ended.stderr, "cannot listen on 192.0.2.1:0: Cannot assign")
