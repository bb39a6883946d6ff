"""The options as command-line arguments, for every command that takes some."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

from .config import FIELDS, from_text
from .errors import OptionError

_FLAGS = {
    "bind": ("-b", "--bind"),
    "num": ("-w", "--workers", "--num"),
    "worker_class": ("-k", "--worker-class"),
    "env": ("-e", "--env"),
    "header": ("--proxy-header",),  # uvicorn's --header is a response header
    "pid": ("-p", "--pid"),
    "user": ("-u", "--user"),
    "group": ("-g", "--group"),
    "umask": ("-m", "--umask"),
}
_OFF = {"ctl": "--no-ctl"}
"""What turns off an option that has a value otherwise."""
_METAVARS = {
    "ctl": "PATH",
    "pid": "FILE",
    "metrics": "ADDRESS",
    "max_memory": "SIZE",
}
_MANY = ("bind", "env", "session")


_ELSEWHERE = {
    "--port": "--bind",
    "--host": "--bind",
    "--factory": "--interface factory",
    "--control-socket": "--ctl",
    "--no-control-socket": "--no-ctl",
}
"""What other servers call it."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse puts all options there are in front of it."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As usual, but an option that does not exist is answered with one that was meant."""
        found, left = self.parse_known_args(args, namespace)
        for word in left:
            name = word.partition("=")[0]
            close = difflib.get_close_matches(
                name.lower(), [*_ELSEWHERE, *self._option_string_actions], 1
            )
            hint = f"; did you mean {_ELSEWHERE.get(close[0], close[0])}?" if close else ""
            if name.startswith("-"):
                self.error(f"there is no option {name}{hint}")
        if left:
            self.error(f"this is too much: {' '.join(left)}")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_options(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Give the parser these options of ``Options``. Values stay text; ``config`` converts them."""
    for name in names:
        field = FIELDS[name]
        flags = _FLAGS.get(name, ("--" + name.replace("_", "-"),))
        settings: dict[str, Any] = {"dest": name, "help": _help(field)}
        if field.type == "bool":
            settings["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        else:
            kind = str(field.type).partition(" ")[0].partition("[")[0]
            settings["metavar"] = {"int": "N", "float": "SECONDS"}.get(kind, "VALUE")
            settings["metavar"] = _METAVARS.get(name, settings["metavar"])
            if name in _MANY:
                settings["action"] = "append"
        parser.add_argument(*flags, **settings)
        if name in _OFF:
            parser.add_argument(
                _OFF[name], dest=name, action="store_const", const="", help=f"no {name}"
            )


def from_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The options among parsed arguments, with the values that their texts stand for."""
    found = {}
    for name, value in given.items():
        if name not in FIELDS:
            continue
        if isinstance(value, list):
            value = [item for text in value for item in _split(name, text)]
            value = dict(value) if name == "env" else value
        elif isinstance(value, str):
            value = from_text(name, value)
        found[name] = value
    return found


def _split(name: str, text: str) -> list[Any]:
    if name != "env":
        return [text]
    variable, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"option 'env' is {text!r}: it must be written NAME=VALUE")
    return [(variable, value)]


def _help(field: dataclasses.Field[Any]) -> str:
    text: str = field.metadata["help"]
    if field.default is not dataclasses.MISSING and field.default not in (
        None,
        False,
        True,
        (),
        "",
    ):
        text += (
            f" (default: {field.default:g})"
            if isinstance(field.default, float)
            else (f" (default: {field.default})")
        )
    return text.replace("%", "%%")
