"""What may load what: the parts of the program know each other in one direction only."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sticky"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in FILES
}
FRAMEWORKS = {
    "asyncio",
    "django",
    "engineio",
    "eventlet",
    "flask",
    "flask_socketio",
    "gevent",
    "greenlet",
    "socketio",
    "uvicorn",
    "uvloop",
    "websockets",
    "werkzeug",
}
NEEDS = {
    "sticky.worker.loops.eventlet": "eventlet",
    "sticky.worker.loops.gevent": "gevent",
    "sticky.worker.loops.greenlets": "greenlet",
}
"""Modules that are nothing without a framework, which may warn of itself."""
TWINS = {"sticky._core", "sticky._pycore"}
# What makes input and output, waits, or reads a clock. (os is for the environment and urandom.)
WORLDLY = {
    *("asyncio", "fcntl", "io", "multiprocessing", "select", "selectors", "shutil", "signal"),
    *("socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "datetime"),
    *("logging", "pathlib", "os"),
}


def loaded_by(module: str) -> set[str]:
    """Everything that is loaded when this is imported, in a clean interpreter."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(name: str, *, typing: bool = False) -> set[str]:
    """The modules that a module imports, by their full names.

    typing: also those that only the type checker sees.
    """
    file = MODULES[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                found.add(whole if whole in MODULES or whole in TWINS else source)
        if is_type_checking(node) and not typing:
            assert isinstance(node, ast.If)
            pending.extend(node.orelse)
        else:
            pending.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize(
    "module", ["sticky", "sticky.master.master", "sticky.server", "sticky.cli"]
)
def test_what_is_not_a_worker_loads_no_framework(module: str) -> None:
    found = loaded_by(module)
    assert module in found
    assert not FRAMEWORKS & found


def test_importing_sticky_loads_nothing_of_it_yet() -> None:
    """A worker imports it before the standard library is monkey-patched."""
    assert {name for name in loaded_by("sticky") if name.startswith("sticky.")} == set()


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NEEDS])
def test_every_module_can_be_imported_alone_and_without_a_warning(name: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    if name == "sticky.__main__":
        code = code.replace(f"import {name}", "import runpy; runpy.run_module('sticky')")
    ended = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_what_stands_on_a_framework_can_be_imported_alone(name: str) -> None:
    pytest.importorskip(NEEDS[name])
    found = loaded_by(name)
    assert name in found
    others = {other for other in NEEDS.values() if other != NEEDS[name]} - {"greenlet"}
    assert not others & found


def test_only_core_imports_a_twin() -> None:
    users = {name for name in MODULES if imports(name, typing=True) & TWINS}
    assert users == {"sticky.core"}


def test_there_is_no_import_cycle() -> None:
    """Not even through an import inside of a function."""
    graph = {name: imports(name) & set(MODULES) - {"sticky"} for name in MODULES}
    del graph["sticky"]  # its names are loaded when they are used
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "name",
    [
        *("core", "_pycore", "rules", "routing", "forwarded", "answers"),
        *(
            "topology",
            "heartbeat",
            "master.agenda",
            "master.waiting",
            "master.queues",
            "master.ledger",
        ),
        *("master.lives", "master.roster", "master.rounds", "master.scaling", "master.ends"),
        *("master.patience", "master.records", "master.balance"),
        *("worker.http1", "worker.placing"),
    ],
)
def test_who_decides_does_no_io_and_reads_no_clock(name: str) -> None:
    module = f"sticky.{name}"
    # The environment says which twin, and a server without a seed draws one: nothing else.
    allowed = {"core": {"os"}, "routing": {"os"}}.get(name, set())
    assert imports(module) & WORLDLY <= allowed
    tree = ast.parse(MODULES[module].read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os"
    }
    assert used <= {"environ", "urandom"}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("errors", set()),
        ("rules", set()),
        ("topology", {"options", "routing"}),
        ("board", set()),
        ("master.agenda", set()),
        ("master.queues", {"rules", "master.agenda"}),
        ("master.waiting", {"master.agenda", "master.queues"}),
        ("master.records", {"errors"}),
        ("master.roster", {"topology", "master.agenda", "master.records"}),
        ("master.ends", {"master.agenda", "master.roster"}),
        ("master.rounds", {"master.agenda", "master.ends", "master.records", "master.roster"}),
        (
            "master.patience",
            {"heartbeat", "master.agenda", "master.ends", "master.records", "master.roster"},
        ),
        ("master.scaling", {"master.agenda", "master.ends", "master.roster", "master.rounds"}),
        (
            "master.lives",
            {
                *("topology", "master.agenda", "master.ends", "master.patience", "master.roster"),
                *("master.rounds", "master.scaling"),
            },
        ),
        ("master.ledger", {"topology", "master.agenda", "master.lives", "master.waiting"}),
        ("master.loop", set()),
        ("_pycore", {"rules"}),
        ("core", {"_core", "_pycore"}),
        ("routing", {"core", "options", "rules"}),
        ("options", {"addresses", "checks", "cpus", "errors", "rules"}),
        ("checks", {"addresses", "forwarded", "rules"}),
        ("addresses", {"errors"}),
        ("cpus", set()),
        ("reserve", set()),
        ("heartbeat", set()),
        ("forwarded", set()),
        ("channel", {"errors"}),
        ("outlet", set()),
        ("logs", {"errors", "options", "outlet"}),
    ],
)
def test_the_parts_below_know_only_what_is_below_them(name: str, known: set[str]) -> None:
    ours = {found for found in imports(f"sticky.{name}") if found.startswith("sticky")}
    assert ours <= {f"sticky.{other}" for other in known}


@pytest.mark.parametrize("part", ["master", "worker"])
def test_the_master_and_the_workers_do_not_know_each_other(part: str) -> None:
    other = {"master": "sticky.worker", "worker": "sticky.master"}[part]
    for name in MODULES:
        if name.startswith(f"sticky.{part}."):
            found = {n for n in imports(name) if n == other or n.startswith(other + ".")}
            assert not found, (name, found)


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.startswith("sticky.worker.loops.")))
def test_a_loop_is_the_smallest_interface_that_serves(name: str) -> None:
    assert len([line for line in MODULES[name].read_text().splitlines() if line]) <= 150


# Names of the standard library that begin with an underscore. Documented as public: _exit, _fields.
# The others cost too much to do without, and a test of the part that uses them would notice.
BORROWED = {
    ("sticky.master.dispatcher", "it._accept"),
    ("sticky.logs", "handler._open"),
    ("sticky.arguments", "self._option_string_actions"),
    ("sticky.spawn", "subprocess._args_from_interpreter_flags"),
    ("sticky.worker.ending", "atexit._run_exitfuncs"),
    ("sticky.master.master", "Rules._fields"),
}
LOW_LEVEL = {"_socket", "_thread"}
"""Modules below those of the standard library, where a worker finds what nobody has patched."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def defined_in(tree: ast.AST) -> set[str]:
    """Private names that this part of a module gives to its own things."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # in __slots__
    return found


def foreign_privates(name: str) -> set[str]:
    """The private names of others that a module uses, as well as that can be seen in its text."""
    tree = ast.parse(MODULES[name].read_text())
    ours = {"self", "cls", "other"}
    known = defined_in(tree)
    for other in imports(name, typing=True) & set(MODULES):
        known |= defined_in(ast.parse(MODULES[other].read_text()))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            whole = ast.unparse(node)
            base = ast.unparse(node.value)
            if whole == "os._exit" or (base in ours and node.attr in known):
                continue
            if node.attr in defined_in(tree) and base not in FRAMEWORKS:
                continue
            found.add(whole)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            named = node.args[1]
            if isinstance(named, ast.Constant) and is_private(str(named.value)):
                found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if parts[0] not in {"sticky", "__future__", *LOW_LEVEL}:
                found.update(part for part in parts if is_private(part))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if any(map(is_private, alias.name.split("."))) and alias.name not in LOW_LEVEL:
                    found.add(alias.name)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_nothing_private_of_another_library_is_used(name: str) -> None:
    """What another library does not promise changes without a word: a renamed method would send
    requests to the wrong worker in silence."""
    assert {(name, found) for found in foreign_privates(name)} <= BORROWED


def test_what_is_borrowed_is_needed_still() -> None:
    assert {(name, found) for name in MODULES for found in foreign_privates(name)} == BORROWED
