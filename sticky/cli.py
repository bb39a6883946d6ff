"""The command line: options in, and then this process is the master."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from . import __version__, master, spawn
from .config import FIELDS, as_toml, from_text, settings
from .errors import OptionError, StickyError
from .server import absolute_path, check_target

_FLAGS = {
    "bind": ("-b", "--bind"),
    "num": ("-w", "--workers", "--num"),
    "worker_class": ("-k", "--worker-class"),
    "env": ("-e", "--env"),
    "header": ("--proxy-header",),  # uvicorn's --header is a response header
}
_LEFT_OUT = ("host", "port")  # --bind says both
_MANY = ("bind", "env")


_ELSEWHERE = {"--port": "--bind", "--host": "--bind", "--factory": "--interface factory"}
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


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Serve a Socket.IO (or any WSGI) app with several worker processes behind "
        "one port; every client always reaches the same worker.",
        epilog="Each option can also be given as STICKY_<OPTION> in the environment, and in a "
        "file (-c). Signals: TERM stops gracefully, INT and QUIT at once, HUP reloads. Exit "
        "status: 0 stopped, 1 the port cannot be used, 2 a wrong option, 3 workers cannot boot, "
        "4 the app cannot be loaded. See also: sticky explain --help",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="module:factory", help="what the workers import and call")
    parser.add_argument("--version", action="version", version=f"sticky {__version__}")
    parser.add_argument("-c", "--config", metavar="FILE", help="a TOML file with options")
    parser.add_argument(
        "--check-config", action="store_true", help="check all options, then end (0, or 2)"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print all options as TOML, then end"
    )
    add_options(parser, [name for name in FIELDS if name not in _LEFT_OUT])
    return parser


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
            if name in _MANY:
                settings["action"] = "append"
        parser.add_argument(*flags, **settings)


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
    if field.default is not dataclasses.MISSING and field.default not in (None, False, True, ()):
        text += (
            f" (default: {field.default:g})"
            if isinstance(field.default, float)
            else (f" (default: {field.default})")
        )
    return text.replace("%", "%%")


def main(argv: Sequence[str] | None = None, *, prog: str = "sticky") -> NoReturn:
    """Run the command; never returns."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["explain"]:
            from .explain import main as explain

            sys.exit(explain(arguments[1:], prog=f"{prog} explain"))
        given = vars(_parser(prog).parse_args(arguments))
        check_target(given["target"])
        options = settings(from_arguments(given), config=given.get("config"))
    except StickyError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        sys.exit(2)
    if "print_config" in given:
        sys.stdout.write(as_toml(options))
    if "check_config" in given or "print_config" in given:
        sys.exit(0)
    program = spawn.Program(target=given["target"], argv=list(sys.argv), path=absolute_path())
    sys.exit(master.run(options, program))
