"""``--reload``: the workers are replaced when a Python file changes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.harness import ROOT, Kind, Running, wait_until

ENV = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def version(kind: Kind, number: int) -> str:
    """The source of a module that says which version it is."""
    return f"""
from {kind.apps} import says
def make():
    return says(lambda: "version {number}")
"""


def change(running: Running, path: Path, text: str) -> int:
    """Write the file until it is noticed (the watcher may not yet watch); where the log was."""
    mark = len(running.log())
    numbers = itertools.count()

    def noticed() -> bool:
        path.write_text(f"{text}\n# {next(numbers)}\n")
        try:
            running.wait_for(rf"Changed: {re.escape(path.name)}", 2, after=mark)
        except TimeoutError:
            return False
        return True

    wait_until(noticed, 60, "the change was noticed")
    return mark


@pytest.mark.parametrize("how", ["command", "script"])
def test_a_change_is_served_and_a_broken_one_leaves_the_old_version_serving(
    kind: Kind, how: str, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    module = folder / "app.py"
    module.write_text(version(kind, 1))
    if how == "command":
        server = kind.serve("app:make", num=2, cwd=folder, env=ENV, options=["--reload"])
    else:
        script = folder / "serve.py"  # watched although it is run from somewhere else
        script.write_text("import app, sticky\nsticky.listen(app.make, 0, 2, reload=True)\n")
        server = kind.serve(str(script), script=True, num=2, cwd=tmp_path, env=ENV)
    with server as running:
        assert running.get().body == b"version 1"
        change(running, module, version(kind, 2))
        wait_until(lambda: running.get().body == b"version 2", 60)
        mark = change(running, module, "raise RuntimeError('half written')")
        running.wait_for("RuntimeError: half written", 60, after=mark)
        for _ in range(10):
            assert running.get().body == b"version 2"
        mark = change(running, module, version(kind, 3))
        wait_until(lambda: running.get().body == b"version 3", 60)
        for slot in (0, 1):
            running.wait_for(rf"worker {slot} ready", 60, after=mark)
        assert running.stop() == 0


def test_other_files_are_none_of_its_business_and_app_dir_is_what_is_watched(
    kind: Kind,
    tmp_path: Path,
) -> None:
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    module = folder / "app.py"
    module.write_text(version(kind, 1))
    options = ["--reload", "--app-dir", str(folder)]
    with kind.serve("app:make", num=1, cwd=elsewhere, env=ENV, options=options) as running:
        change(running, module, version(kind, 2))
        wait_until(lambda: running.get().body == b"version 2", 60)
        running.wait_for(r"worker 0 ready[\s\S]*worker 0 ready", 60)
        mark = len(running.log())
        (folder / "data.txt").write_text("x")
        (folder / "__pycache__").mkdir(exist_ok=True)
        (folder / "__pycache__" / "app.cpython-311.pyc").write_text("x")
        (elsewhere / "other.py").write_text("x")
        # What is noticed next is the next change of a module, and nothing before it.
        change(running, module, version(kind, 3))
        names = re.findall(r"Changed: (.*)", running.log()[mark:])
        assert set(names) == {"app.py"}


def test_without_the_option_nothing_watches(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(version(kind, 1))
    with kind.serve("app:make", num=1, cwd=tmp_path, env=ENV) as running:
        assert len(running.processes()) == 2
    with kind.serve("app:make", num=1, cwd=tmp_path, env=ENV, options=["--reload"]) as running:
        assert len(running.processes()) == 3
