"""Options in files and the environment, as a running server has them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.harness import ROOT, Kind, request, serve, wait_until

from .test_options import assert_one_line, run

APP = "tests.apps:lab"


def test_the_call_comes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "sticky.toml"
    config.write_text("num = 1\nprefetch = 1\nbacklog = 7\nsync_timeout = 1\n")
    script = tmp_path / "serve.py"
    script.write_text(
        "import dataclasses, json, sticky\n"
        "def factory():\n"
        "    options = sticky.current_worker().options\n"
        "    def app(environ, start_response):\n"
        "        start_response('200 OK', [])\n"
        "        return [json.dumps([options.num, options.prefetch, options.backlog]).encode()]\n"
        "    return app\n"
        f"sticky.listen(factory, 0, 2, config={str(config)!r})\n"
    )
    env = {
        "PYTHONPATH": str(ROOT),
        "STICKY_NUM": "5",
        "STICKY_PREFETCH": "2",
        "STICKY_PORT": "tcp://10.0.0.1:80",
        "STICKY_SERVICE_HOST": "10.0.0.1",
    }
    with serve(str(script), script=True, num=2, env=env) as running:
        assert running.get().json() == [2, 2, 7]
        assert sorted(running.worker_pids()) == [0, 1]


def test_the_command_has_the_environment_and_the_file_too(tmp_path: Path) -> None:
    config = tmp_path / "sticky.toml"
    config.write_text("env = {FROM = 'file'}\nworkers-are = 1\n")
    ended = run("-m", "sticky", APP, "-c", str(config))
    assert ended.returncode == 2
    assert_one_line(ended.stderr, "there is no option 'workers_are'")
    config.write_text("env = {FROM = 'file', OTHER = 'x'}\nnum = 9\nproxy = true\n")
    env = {"STICKY_IGNORE_MISSING_HEADER": "yes", "STICKY_CONFIG": str(config)}
    with serve(APP, num=1, env=env) as running:
        environ = running.get("/process").json()["environ"]  # it is not refused
        assert (environ["FROM"], environ["OTHER"]) == ("file", "x")


def test_check_config_checks_everything_and_binds_nothing(tmp_path: Path) -> None:
    config = tmp_path / "sticky.toml"
    config.write_text("proxy = true\nbind = ['127.0.0.1:1', '[::1]:1']\n")
    words = ["-m", "sticky", "no.such.module:app", "-c", str(config), "--check-config"]
    ended = run(*words)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    ended = run(*words, STICKY_TIMEOUT="soon")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_one_line(ended.stderr, r"\(STICKY_TIMEOUT\): option 'timeout' is 'soon'")


def test_print_config_prints_what_can_be_read_again(tmp_path: Path) -> None:
    words = ["-m", "sticky", APP, "--print-config"]
    first = run(*words, "-w", "3", "--proxy", "-e", "A=b c", "-b", ":1", STICKY_HOPS="2")
    assert (first.returncode, first.stderr) == (0, "")
    assert "num = 3" in first.stdout
    config = tmp_path / "printed.toml"
    config.write_text(first.stdout)
    second = run(*words, "-c", str(config))
    assert second.stdout == first.stdout


@pytest.mark.parametrize("how", ["call", "flag", "variable", "file"])
def test_a_typing_error_ends_it_in_one_line_with_the_nearest_name(how: str, tmp_path: Path) -> None:
    words = ["-m", "sticky", APP, "-b", "127.0.0.1:0"]
    env = {}
    if how == "flag":
        words, says = [*words, "--graceful-timeot", "3"], "did you mean --graceful-timeout"
    elif how == "variable":
        env, says = {"STICKY_GRACEFUL_TIMOUT": "3"}, "did you mean STICKY_GRACEFUL_TIMEOUT"
    elif how == "file":
        (tmp_path / "sticky.toml").write_text("gracefull_timeout = 3\n")
        words += ["-c", str(tmp_path / "sticky.toml")]
        says = "did you mean 'graceful_timeout'"
    else:
        script = tmp_path / "serve.py"
        script.write_text(
            "import sticky, sys\n"
            "try:\n"
            "    sticky.listen(lambda: 1, 0, graceful_timout=3)\n"
            "except sticky.OptionError as error:\n"
            "    sys.exit(f'{error}')\n"
        )
        words, says = [str(script)], "did you mean 'graceful_timeout'"
    ended = run(*words, **env)
    assert ended.returncode == (1 if how == "call" else 2)
    assert_one_line(ended.stderr, says)


# -- logs ------------------------------------------------------------------------------------------

INI = """
[loggers]
keys=root,sticky
[handlers]
keys=file
[formatters]
keys=plain
[logger_root]
handlers=file
[logger_sticky]
handlers=file
qualname=sticky
propagate=0
[handler_file]
class=FileHandler
args=({path!r},)
formatter=plain
[formatter_plain]
format=MINE %(name)s %(levelname)s %(message)s
"""


@pytest.mark.parametrize("form", ["ini", "json"])
def test_a_log_config_says_where_everything_goes(kind: Kind, form: str, tmp_path: Path) -> None:
    log, config = tmp_path / "out.log", tmp_path / f"log.{form}"
    if form == "ini":
        config.write_text(INI.format(path=str(log)))
    else:
        settings = {
            "version": 1,
            "formatters": {"plain": {"format": "MINE %(name)s %(levelname)s %(message)s"}},
            "handlers": {
                "file": {
                    "class": "logging.FileHandler",
                    "filename": str(log),
                    "formatter": "plain",
                }
            },
            "root": {"handlers": ["file"], "level": "INFO"},
        }
        config.write_text(json.dumps(settings))
    options = ["--log-config", str(config), "--access-logfile", "-"]
    with kind.serve("lab", num=1, options=options, ready=False) as running:

        def lines() -> str:
            return log.read_text() if log.exists() else ""

        found = wait_until(lambda: lines() if "Listening at" in lines() else "", 60)
        assert "MINE sticky.master INFO worker 0 ready" in found
        port = int(found.split("Listening at: http://127.0.0.1:")[1].split()[0])
        assert request(port).status == 200
        wait_until(lambda: "MINE sticky.access INFO 127.0.0.1 - - [" in lines())
        assert running.stop() == 0
        assert running.log() == ""


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("log.json", "{", "JSONDecodeError"),
        ("log.json", '{"version": 1, "handlers": {"h": {"class": "no.Such"}}}', "no.Such"),
        ("log.ini", "[loggers]\n", "log.ini"),
        ("log.txt", "", r"'log_config' is '.*log.txt': it must be a file that exists, .ini or"),
        (None, "", r"'log_config' is '.*': it must be a file that exists"),
    ],
)
def test_a_log_config_that_cannot_be_used_is_one_line(
    name: str | None, content: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / (name or "none.ini")
    if name:
        path.write_text(content)
    ended = run("-m", "sticky", APP, "-b", "127.0.0.1:0", "--log-config", str(path))
    assert ended.returncode == 2
    assert_one_line(ended.stderr, says)
    assert "'log_config'" in ended.stderr


def test_importing_the_library_configures_no_logging() -> None:
    ended = run(
        "-c",
        "import logging, sticky\n"
        "for name in sticky.__all__: getattr(sticky, name)\n"
        "for logger in (logging.getLogger(), *map(logging.getLogger, logging.root.manager"
        ".loggerDict)):\n"
        "    assert not logger.handlers or not logger.name.startswith(('root', 'sticky')), logger\n"
        "assert logging.getLogger('sticky').level == logging.NOTSET\n"
        "assert logging.getLogger('sticky').propagate\n",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_error_log_has_slot_and_pid_of_who_writes(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import logging\n"
        "def make():\n"
        "    logging.getLogger('sticky.mine').warning('hello from the app')\n"
        f"    from {kind.apps} import lab\n"
        "    return lab()\n"
    )
    env = {"PYTHONPATH": str(ROOT)}
    with kind.serve("app:make", num=2, cwd=tmp_path, env=env) as running:
        when = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\]"
        running.wait_for(rf"{when} \[{running.master_pid}\] \[INFO\] Listening at: ")
        for slot, pid in running.worker_pids().items():
            running.wait_for(rf"{when} \[{pid} worker {slot}\] \[WARNING\] hello from the app$")


def test_an_error_of_the_app_is_500_and_its_traceback_is_logged_once(kind: Kind) -> None:
    with kind.serve("lab", num=1) as running:
        assert running.get("/raise").status == 500
        assert running.stop() == 0
        pid = running.worker_pids()[0]
        assert re.search(rf"\[{pid} worker 0\] \[ERROR\] (.*\n)?Traceback ", running.log())
        assert running.log().count("RuntimeError: the app is to blame") == 1


# -- extras that are not installed -----------------------------------------------------------------


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """An environment in which packages named in $BLOCKED cannot be imported."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in os.environ['BLOCKED'].split():\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize(
    ("target", "words", "blocked", "says"),
    [
        ("asgi_apps:lab", [], "websockets", r"'asgi' needs 'websockets'.*socketio-sticky\[asgi\]"),
        ("asgi_apps:lab", ["-k", "asgi"], "websockets", r"'websockets'.*'socketio-sticky\[asgi\]'"),
        ("asgi_apps:lab", ["--loop", "uvloop"], "uvloop", r"'loop' is 'uvloop'.*\[asgi\]'"),
        ("apps:lab", ["-k", "gevent"], "gevent", r"'gevent' needs 'gevent'.*\[gevent\]'"),
        ("process.objects:make_gevent_server", [], "gevent", r"'gevent' needs.*\[gevent\]'"),
        ("apps:lab", ["--reload"], "watchfiles", r"'socketio-sticky\[reload\]'"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    target: str, words: list[str], blocked: str, says: str, without: dict[str, str]
) -> None:
    command = ["-m", "sticky", f"tests.{target}", "-w", "1", "-b", "127.0.0.1:0", *words]
    ended = run(*command, **without, BLOCKED=blocked)
    assert ended.returncode in (1, 3, 4)
    lines = [line for line in ended.stderr.splitlines() if "[ERROR]" in line]
    assert len(lines) == 1, ended.stderr
    assert "pip install" in lines[0]
    assert_one_line(lines[0] + "\n", says)
    assert "Traceback" not in ended.stderr


# -- the worker class ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "worker_class", "right"),
    [("asgi_apps:lab", "eventlet", "asgi"), ("apps:lab", "asgi", "eventlet")],
)
def test_a_worker_class_that_cannot_serve_the_app_is_answered_with_the_right_one(
    target: str, worker_class: str, right: str
) -> None:
    words = ["-w", "2", "-b", "127.0.0.1:0", "-k", worker_class]
    ended = run("-m", "sticky", f"tests.{target}", *words)
    assert ended.returncode == 4
    assert ended.stderr.count("[ERROR]") == 1
    assert f"worker class '{worker_class}' cannot serve: use '{right}' (-k {right})" in ended.stderr
