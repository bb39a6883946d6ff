"""The package as others get it: sdist, wheel from the sdist, a clean environment."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from sticky import Options
from sticky.arguments import add_options
from tests.harness import ROOT, Running, request

pytestmark = pytest.mark.timeout(300)  # downloads what the package depends on

HELLO = """
import os

def hello():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"worker " + os.environ["STICKY_WORKER_ID"].encode()]
    return app
"""
EXAMPLES = ("app_gevent.py", "app_threading.py", "index.html")
# What a stranger's shell has, and nothing that leads back to this tree.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STICKY"))
}


def run(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**ENVIRONMENT, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def sdist(folder: Path) -> Path:
    """Built from a copy, so that it cannot depend on what lies about here."""
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(
        *(".git", ".venv*", ".*_cache", ".hypothesis", ".benchmarks", "__pycache__"),
        *("node_modules", "artifacts", "build", "dist", "*.egg-info"),
    )
    shutil.copytree(ROOT, tree, ignore=ignored)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, tree, cwd=folder)
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(folder: Path, sdist: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bin_dir(folder: Path, wheel: Path) -> Path:
    """The programs of an environment that holds the wheel and what it asks for."""
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=folder)
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", wheel, cwd=folder)
    return environment / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with nothing in it but an app."""
    (tmp_path / "hello.py").write_text(HELLO)
    return tmp_path


def names(files: Sequence[str]) -> set[str]:
    return {Path(file).name for file in files}


def test_the_sdist_carries_the_source_of_the_extension_and_not_what_is_made_of_it(
    sdist: Path,
) -> None:
    with tarfile.open(sdist) as archive:
        files = [name.partition("/")[2] for name in archive.getnames()]
    assert {"sticky/_core.pyx", "sticky/_core.pyi", "sticky/py.typed"} <= set(files)
    assert {"Makefile", "README.md", "CHANGELOG.md", "LICENSE"} <= set(files)
    assert {"tests/harness.py", "examples/chat/app.py", "bench/test_core.py"} <= set(files)
    assert {f"examples/flask/{name}" for name in EXAMPLES} <= set(files)
    assert {".ci/need", "tests/e2e/.npmrc"} <= set(files)
    assert [file for file in files if file.endswith((".c", ".so", ".pyc"))] == []
    assert [file for file in files if "node_modules" in file] == []


def test_the_wheel_carries_the_extension_and_its_types_but_no_sources_and_no_tests(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    modules = {path.name for path in (ROOT / "sticky").glob("*.py")}
    assert modules | {"py.typed", "_core.pyi"} <= names(files)
    assert [file for file in files if file.endswith(".so")] != []
    assert [file for file in files if file.endswith((".c", ".pyx", ".html", ".js"))] == []
    tops = {file.partition("/")[0] for file in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sticky"}


def test_the_installed_command_and_module_run_the_compiled_core(
    bin_dir: Path, elsewhere: Path
) -> None:
    version = run(bin_dir / "sticky", "--version", cwd=elsewhere).stdout
    assert version == run(bin_dir / "python", "-m", "sticky", "--version", cwd=elsewhere).stdout
    assert version.startswith("sticky 0.")
    code = "import sticky, sticky.core; print(sticky.core.TWIN, sticky.__file__)"
    twin, file = run(bin_dir / "python", "-c", code, cwd=elsewhere).stdout.split()
    assert twin == "c"
    assert not Path(file).is_relative_to(ROOT)


def test_the_version_is_the_same_in_the_package_and_in_its_metadata(
    bin_dir: Path, elsewhere: Path
) -> None:
    code = (
        "import sticky, importlib.metadata as m;"
        "assert sticky.__version__ == m.version('socketio-sticky')"
    )
    run(bin_dir / "python", "-c", code, cwd=elsewhere)


def test_the_installed_command_serves_an_app_of_the_current_folder(
    bin_dir: Path, elsewhere: Path
) -> None:
    command = [str(bin_dir / "sticky"), "hello:hello", "-b", "127.0.0.1:0", "-w", "2", "--proxy"]
    # What is set for the run of the tests must not help the installed package.
    hidden = {"PYTHONPATH": "", "STICKY_PURE": ""}
    with Running(command, num=2, cwd=elsewhere, env=hidden) as running:
        headers = {"X-Forwarded-For": "203.0.113.7"}
        answers = {running.get("/", headers).body for _ in range(3)}
        assert len(answers) == 1
        assert answers <= {b"worker 0", b"worker 1"}
        assert running.stop() == 0


def test_a_script_that_calls_listen_serves_with_the_installed_package(
    bin_dir: Path, elsewhere: Path
) -> None:
    script = elsewhere / "script.py"
    script.write_text(HELLO + "\nimport sticky\nsticky.listen(hello, 0, 2)\n")
    command = [str(bin_dir / "python"), str(script)]
    with Running(command, num=2, cwd=elsewhere, env={"PYTHONPATH": ""}) as running:
        assert running.get().body.startswith(b"worker ")
        assert running.stop() == 0


def test_without_the_extension_the_import_fails_and_says_what_to_do(
    bin_dir: Path, elsewhere: Path
) -> None:
    code = "import sticky; print(sticky.__file__)"
    installed = Path(run(bin_dir / "python", "-c", code, cwd=elsewhere).stdout.strip()).parent
    shutil.copytree(installed, elsewhere / "sticky", ignore=shutil.ignore_patterns("*.so"))

    code = "import sticky.core; print(sticky.core.TWIN, sticky.core.__file__)"
    failed = run(bin_dir / "python", "-c", code, cwd=elsewhere, status=1)
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("ImportError: sticky's compiled core cannot be loaded")
    assert "pip install --force-reinstall socketio-sticky" in last
    assert "STICKY_PURE=1" in last

    pure = run(bin_dir / "python", "-c", code, cwd=elsewhere, env={"STICKY_PURE": "1"})
    assert pure.stdout.split() == ["py", str(elsewhere / "sticky" / "core.py")]
    failed = run(bin_dir / "python", "-m", "sticky", "hello:hello", cwd=elsewhere, status=1)
    assert "sticky's compiled core cannot be loaded" in failed.stderr


def test_the_reference_serves_when_it_is_asked_for(bin_dir: Path, elsewhere: Path) -> None:
    command = [str(bin_dir / "sticky"), "hello:hello", "-b", "127.0.0.1:0", "-w", "2"]
    with Running(command, num=2, cwd=elsewhere, env={"STICKY_PURE": "1"}) as running:
        assert running.get().body.startswith(b"worker ")


# The README says what is true, and only one of the two can be wrong.


def options_table() -> str:
    """The README's table of options; after a change paste it there."""
    fields = {field.name: field for field in dataclasses.fields(Options)}
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser, [name for name in fields if name not in ("host", "port")])
    flags: dict[str, list[str]] = {}
    for action in parser._actions:
        flags.setdefault(action.dest, []).extend(action.option_strings)
    rows = ["| option | flag | default | |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        spelled = ", ".join(f"`{flag}`" for flag in flags.get(name, ["--bind"]))
        default = (
            "" if field.default in (None, (), "", dataclasses.MISSING) else f"`{field.default}`"
        )
        if name == "access_logformat":
            default = "gunicorn's"
        rows.append(f"| `{name}` | {spelled} | {default} | {field.metadata['help']} |")
    return "\n".join(rows)


def test_the_readme_lists_every_option_with_its_default() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Options\n")[2].partition("\n## ")[0]
    found = [line for line in section.splitlines() if re.match(r"\| (`\w+`|option) \|", line)]
    wanted = [line for line in options_table().splitlines() if not line.startswith("| ---")]
    assert found == wanted, f"the table is to be:\n{options_table()}"


def test_the_first_example_of_the_readme_shows_the_same_worker_twice(
    bin_dir: Path, elsewhere: Path
) -> None:
    readme = (ROOT / "README.md").read_text()
    source = readme.partition("```python\n")[2].partition("```")[0]
    assert source.count(", 3000, 4,") == 1
    (elsewhere / "app.py").write_text(source.replace(", 3000, 4,", ", 0, 4,"))
    asked = re.findall(r"\$ curl -H '([\w-]+): (\S+)' http://127\.0\.0\.1:3000\n", readme)
    assert len(asked) == 2
    command = [str(bin_dir / "python"), "app.py"]
    with Running(command, num=4, cwd=elsewhere, env={"PYTHONPATH": ""}) as running:
        answers = [request(running.port, headers=dict([header])).body for header in asked]
        assert answers[0] == answers[1]
        assert re.fullmatch(rb"worker [0-3]\n", answers[0])
