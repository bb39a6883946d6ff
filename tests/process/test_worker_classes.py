"""Which worker class an app gets: where nobody says, where somebody does, and where it is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, Running, serve

from .test_options import run

APPS = "tests.worker_class_apps"
LINE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:]{8} [+-]\d{4}\] \[\d+\] \[[A-Z]+\] .+")


def look(running: Running) -> dict[str, Any]:
    """What the app says; and of starting and serving it, nothing is said outside of the log."""
    answer = running.get("/")
    assert answer.status == 200, answer
    said = answer.json()
    assert isinstance(said, dict)
    for line in running.log().splitlines():
        assert LINE.fullmatch(line), line
    assert "[WARNING]" not in running.log()
    assert "[ERROR]" not in running.log()
    return said


def ask(name: str, *options: str) -> dict[str, Any]:
    with serve(f"{APPS}:{name}", num=1, options=options) as running:
        return look(running)


# -- auto --------------------------------------------------------------------------------------

CHOSEN = {
    "plain": ("eventlet", []),
    "server": ("eventlet", ["eventlet"]),
    "flask": ("eventlet", ["eventlet"]),
    "flask_eventlet": ("eventlet", ["eventlet"]),
    "django": ("eventlet", []),
    "server_threading": ("threads", ["threading"]),
    "engine_threading": ("threads", ["threading"]),
    "flask_threading": ("threads", ["threading"]),
    "flask_async": ("threads", []),
    "flask_async_in_a_blueprint": ("threads", []),
    "flask_gevent": ("gevent", ["gevent"]),
    "async_server": ("asgi", ["asgi"]),
    "fastapi": ("asgi", []),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_an_app_gets_the_worker_class_that_it_needs(name: str) -> None:
    said = ask(name)
    assert (said["class"], said["modes"]) == CHOSEN[name]
    if said["class"] == "asgi":  # what others need, it does not carry
        assert not {"eventlet", "gevent"} & set(said["loaded"])
    elif said["class"] == "threads":  # (asyncio's views are in threads of Flask's)
        assert said["thread"] == ("sticky" if "async" not in name else "ThreadPoolExecutor")
    else:
        assert said["class"] in said["loaded"]


@pytest.mark.parametrize(
    ("first", "chosen"),
    [
        ("", "eventlet"),
        ("import eventlet; eventlet.monkey_patch()", "eventlet"),
        ("from gevent import monkey; monkey.patch_all()", "gevent"),
    ],
)
@pytest.mark.parametrize("name", ["plain", "server", "flask"])
def test_a_script_that_patches_gets_what_it_patches_for(
    first: str, chosen: str, name: str, tmp_path: Path
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        f"{first}\nimport sticky\nfrom {APPS} import {name}\n"
        f"sticky.listen(lambda: {name}(), 0, 2)\n"
    )
    with serve(str(script), script=True, num=2, env={"PYTHONPATH": str(ROOT)}) as running:
        said = look_at_script(running)
    assert said["class"] == chosen
    assert said["modes"] in ([], [chosen])


def look_at_script(running: Running) -> dict[str, Any]:
    """As look, for what warns of a client manager that several workers need; and the script itself
    has been warned by eventlet, once, where it imports that."""
    said = running.get("/").json()
    assert isinstance(said, dict)
    log = running.log()
    for line in log[re.search("^" + LINE.pattern, log, re.MULTILINE).start() :].splitlines():  # type: ignore[union-attr]
        assert LINE.fullmatch(line), line
    assert log.count("EventletDeprecationWarning") <= 1
    return said


def test_a_script_with_an_app_of_threads_is_not_patched(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        f"import sticky\nfrom {APPS} import flask_threading\nimport socket, _socket\n"
        "assert socket.socket.__mro__[1] is _socket.socket\n"
        "sticky.listen(flask_threading, 0, 1)\n"
    )
    with serve(str(script), script=True, num=1, env={"PYTHONPATH": str(ROOT)}) as running:
        assert look(running)["class"] == "threads"


# -- said --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "server", "flask"])
@pytest.mark.parametrize("worker_class", ["eventlet", "gevent", "threads"])
def test_an_app_that_fits_every_class_gets_the_one_that_is_said(
    name: str, worker_class: str
) -> None:
    said = ask(name, "-k", worker_class)
    assert said["class"] == worker_class
    assert said["modes"] in ([], [{"threads": "threading"}.get(worker_class, worker_class)])
    others = {"eventlet", "gevent"} - {worker_class}
    assert not others & set(said["loaded"])


@pytest.mark.parametrize("worker_class", ["asgi", "uvicorn"])
def test_an_asgi_app_is_served_where_that_is_said(worker_class: str) -> None:
    said = ask("async_server", "-k", worker_class)
    assert (said["class"], said["modes"]) == ("asgi", ["asgi"])
    assert not {"eventlet", "gevent"} & set(said["loaded"])


@pytest.mark.parametrize(
    ("name", "worker_class", "mode", "right"),
    [
        ("flask_threading", "eventlet", "threading", "threads"),
        ("flask_threading", "gevent", "threading", "threads"),
        ("flask_gevent", "eventlet", "gevent", "gevent"),
        ("flask_gevent", "threads", "gevent", "gevent"),
        ("flask_eventlet", "threads", "eventlet", "eventlet"),
        ("flask_eventlet", "gevent", "eventlet", "eventlet"),
        ("server_threading", "gevent", "threading", "threads"),
    ],
)
def test_a_mode_that_does_not_fit_the_class_is_said_in_one_line(
    name: str, worker_class: str, mode: str, right: str
) -> None:
    ended = run(
        "-m", "sticky", f"{APPS}:{name}", "-b", "127.0.0.1:0", "-w", "2", "-k", worker_class
    )
    assert ended.returncode in (3, 4)
    assert ended.stdout == ""
    (line,) = (line for line in ended.stderr.splitlines() if "[ERROR]" in line)
    assert f"worker class is {worker_class!r}" in line
    assert f"async_mode={mode!r}" in line
    assert f"-k {right}" in line
    assert "Traceback" not in ended.stderr
    assert all(LINE.fullmatch(line) for line in ended.stderr.splitlines()), ended.stderr


@pytest.mark.parametrize(
    ("name", "worker_class", "says"),
    [
        ("plain", "asgi", "this is a WSGI app, which the worker class 'asgi' cannot serve"),
        (
            "fastapi",
            "threads",
            "this is an ASGI app, which the worker class 'threads' cannot serve",
        ),
        ("async_server", "eventlet", "this is an ASGI app, which the worker class 'eventlet'"),
        ("async_server", "gevent", "this is an ASGI app, which the worker class 'gevent'"),
    ],
)
def test_an_app_of_the_other_interface_is_said_in_one_line(
    name: str, worker_class: str, says: str
) -> None:
    ended = run(
        "-m", "sticky", f"{APPS}:{name}", "-b", "127.0.0.1:0", "-w", "1", "-k", worker_class
    )
    assert ended.returncode in (3, 4)
    assert ended.stderr.count(says) == 1
    assert "Traceback" not in ended.stderr
