"""The command line: options in, and then this process is the master."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from . import __version__, master, spawn
from .errors import OptionError, StickyError
from .options import Options
from .server import absolute_path, check_target

_SHORT = {"num": ("-w", "--workers", "--num"), "worker_class": ("-k", "--worker-class")}


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve a Socket.IO (or any WSGI) app with several worker processes behind "
        "one port; every client always reaches the same worker.",
        epilog="Signals: TERM stops gracefully, INT and QUIT at once. Exit status: 0 stopped, "
        "1 the port cannot be used, 2 a wrong option, 3 workers cannot boot, "
        "4 the app cannot be loaded.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="module:factory", help="what the workers import and call")
    parser.add_argument("--version", action="version", version=f"sticky {__version__}")
    parser.add_argument(
        "-b", "--bind", metavar="HOST:PORT", help="where to listen (default: 127.0.0.1:8000)"
    )
    for field in dataclasses.fields(Options):
        flags = _SHORT.get(field.name) or [
            "--" + (field.metadata["flag"] or field.name.replace("_", "-"))
        ]
        if field.name in ("host", "port"):
            continue
        settings: dict[str, Any] = {"dest": field.name, "help": _help(field)}
        if field.type == "bool":
            settings["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        else:
            settings["metavar"] = "N" if field.type in ("int", "int | None") else "VALUE"
            if field.type == "float":
                settings["metavar"] = "SECONDS"
        parser.add_argument(*flags, **settings)
    return parser


def _help(field: dataclasses.Field[Any]) -> str:
    text: str = field.metadata["help"]
    if field.default is not dataclasses.MISSING and field.default not in (None, False, True):
        text += (
            f" (default: {field.default:g})"
            if isinstance(field.default, float)
            else (f" (default: {field.default})")
        )
    return text.replace("%", "%%")


def _number(field: dataclasses.Field[Any], text: str) -> Any:
    """The value of a numeric option; text that is no number stays text, for the option's own
    check to complain about."""
    try:
        if field.type == "float":
            return float(text)
        if field.type in ("int", "int | None"):
            return int(text)
    except ValueError:
        pass
    return text


def parse_bind(bind: str) -> dict[str, Any]:
    """``host`` and ``port`` from HOST:PORT, [V6]:PORT, :PORT or PORT.

    Raises:
        OptionError: it is none of these.
    """
    host, colon, port = bind.rpartition(":")
    if not colon and not port.isdecimal():
        host, port = bind, "8000"
    if not port.isdecimal() or (":" in host and not host.startswith("[")):
        raise OptionError(
            f"option 'bind' is {bind!r}: it must be HOST:PORT, "
            "for example 127.0.0.1:3000, [::1]:3000 or :3000"
        )
    return (
        {"host": host or "0.0.0.0", "port": int(port)}
        if colon
        else {
            "host": host or "127.0.0.1",
            "port": int(port),
        }
    )


def main(argv: Sequence[str] | None = None, *, prog: str = "sticky") -> NoReturn:
    """Run the command; never returns."""
    given = vars(_parser(prog).parse_args(argv))
    try:
        target = given.pop("target")
        check_target(target)
        if "bind" in given:
            given.update(parse_bind(given.pop("bind")))
        for field in dataclasses.fields(Options):
            if isinstance(given.get(field.name), str):
                given[field.name] = _number(field, given[field.name])
        options = Options.make(given)
    except StickyError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        sys.exit(2)
    program = spawn.Program(target=target, argv=list(sys.argv), path=absolute_path())
    sys.exit(master.run(options, program))
