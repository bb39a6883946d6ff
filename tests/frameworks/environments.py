"""An environment for each framework, with sticky as it is packaged from this tree."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

from tests.harness import ROOT

PLACE = ROOT / ".venv-frameworks"
CONTROL = "uvicorn"


def _pip(python: Path | str, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def _sources() -> str:
    """What the wheel is made of, as a digest."""
    digest = hashlib.sha256()
    files = [path for path in (ROOT / "sticky").rglob("*.py*") if path.suffix != ".pyc"]
    for path in sorted([*files, ROOT / "pyproject.toml", ROOT / "setup.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def wheel() -> Path:
    """The wheel of this tree: it is built where the last one is of other sources."""
    folder = PLACE / "wheels" / _sources()
    if not any(folder.glob("*.whl")):
        print("Building the wheel of sticky", file=sys.stderr)
        _pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


class Environment:
    """A virtual environment in which one framework is installed, beside sticky and uvicorn.

    Args:
        name: of its folder.
        packages: what pip is to install; what is there already stays as it is.
    """

    def __init__(self, name: str, packages: Sequence[str]) -> None:
        self.folder = PLACE / name
        self.python = self.folder / "bin" / "python"
        self._packages = list(packages)

    def make(self) -> None:
        """Make it, or only bring sticky in it to what the tree has."""
        built = wheel()
        stamp = self.folder / "installed.json"
        wanted = {"packages": self._packages, "wheel": built.parent.name}
        known = json.loads(stamp.read_text()) if stamp.exists() else {}
        if known == wanted:
            return
        if not self.python.exists():
            print(f"Making an environment for {self.folder.name}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        _pip(self.python, "install", f"{built}[asgi]", CONTROL, *self._packages)
        if known.get("wheel") != wanted["wheel"]:
            _pip(self.python, "install", "--force-reinstall", "--no-deps", str(built))
        stamp.write_text(json.dumps(wanted))

    def version(self, package: str) -> str:
        """Of a package that is installed in it."""
        library = next((self.folder / "lib").glob("python*/site-packages"))
        found = [it.version for it in distributions(name=package, path=[str(library)])]
        return found[0]
