"""What the user started: find it, check it, load it, run it again.

Either a "module:factory", which workers import, or the script that called ``sticky.listen`` with a
function, which they run again up to that call.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import runpy
import sys
import types
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import OptionError, StickyError, WorkerError

CANNOT_LOAD = 4
"""The exit status where there is no such app."""

# Programs that only run the user's code: running them again would not reach the same call.
_HOSTS = ("pytest", "py.test", "IPython", "ipykernel", "ipykernel_launcher", "unittest", "doctest")


@dataclasses.dataclass(frozen=True)
class Program:
    """What the user started: enough to run it again in a worker.

    Attributes:
        target: "module:factory", or None when the script's own ``listen`` call has the factory.
        script: path of the script to run again, or None.
        module: name of the module to run again (``python -m name``), or None.
        call: which of the script's ``listen`` calls this server is, from 0.
        argv, path, directory: ``sys.argv``, ``sys.path`` and the working directory.
    """

    target: str | None = None
    script: str | None = None
    module: str | None = None
    call: int = 0
    argv: Sequence[str] = ()
    path: Sequence[str] = ()


def named(target: str) -> Program:
    """The one that is a "module:factory".

    Raises:
        OptionError: it does not read so.
    """
    _check(target)
    return Program(target=target, argv=list(sys.argv), path=_absolute_path())


def find(factory: Callable[[], Any] | Any) -> Program:
    """What the workers are to run: what is running here, unless ``factory`` is a name.

    Raises:
        OptionError: it is a name that cannot be one.
        StickyError: there is no script to run again.
    """
    if isinstance(factory, str):
        return named(factory)
    path = _absolute_path()
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    if spec and spec.name == "__main__":
        # A folder or a zip file with a __main__.py: what is run again is the folder.
        spec, file = None, str(Path(file or "").parent)
    name = spec.name if spec else Path(file or "").stem
    readable = spec or (file and Path(file).exists())  # there is none for standard input
    if name.split(".")[0] in _HOSTS or hasattr(sys, "ps1") or not readable:
        raise StickyError(
            "sticky.listen was called with a function, but there is no script that the workers "
            "could run again to get it (this is a REPL, a notebook, 'python -c' or a test runner): "
            "put the factory in a module and name it, sticky.listen('module:factory', ...), "
            "or run the server with: sticky module:factory"
        )
    if spec:
        return Program(module=name.removesuffix(".__main__"), argv=list(sys.argv), path=path)
    assert file is not None
    return Program(script=str(Path(file).absolute()), argv=list(sys.argv), path=path)


def _absolute_path() -> list[str]:
    """``sys.path`` as it is meant wherever the reader's working directory is."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def _check(target: str) -> None:
    """Raise OptionError unless this reads "module:attribute"."""
    module, colon, attribute = target.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise OptionError(
            f"the app is {target!r}: it must be written 'module:factory', "
            "for example 'myproject.app:create_app'"
        )


def run_again(script: str | None, module: str | None) -> None:
    """Run the program that called ``listen``, as ``__main__``, up to that call."""
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    assert script is not None
    if Path(script).is_dir() or zipfile.is_zipfile(script):  # with a __main__.py
        runpy.run_path(script, run_name="__main__")
        return
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins)
    sys.modules["__main__"] = main
    exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)  # noqa: S102


def load(target: str, app_dir: str | None = None) -> Any:
    """The object that "module:attribute" names.

    Raises:
        WorkerError: there is no such module or attribute. What the module itself raises passes.
    """
    folder = app_dir or str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name, _, attribute = target.partition(":")
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise  # the module is there; something that it imports is not
        raise WorkerError(
            f"there is no module {error.name!r} (from {target!r}); "
            f"it was looked for in {folder} and on sys.path",
            CANNOT_LOAD,
        ) from None
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise WorkerError(
                f"module {name!r} has no attribute {attribute!r} (from {target!r})", CANNOT_LOAD
            ) from None
    return found
