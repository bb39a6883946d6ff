"""The command line: options in, and then this process is the master."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__, ctl, explaining
from ._boot import open_standard
from .arguments import Parser, add_options, from_arguments
from .config import FIELDS, as_toml, settings
from .errors import StickyError
from .master import master
from .program import named

_LEFT_OUT = ("host", "port")  # --bind says both


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Serve a Socket.IO (or any WSGI) app with several worker processes behind "
        "one port; every client always reaches the same worker.",
        epilog="Each option can also be given as STICKY_<OPTION> in the environment, and in a "
        "file (-c). Signals: TERM stops gracefully, INT and QUIT at once, HUP reloads, USR1 opens "
        "log files anew, TTIN and TTOU have one worker more or less, "
        "USR2 upgrades the server in place. Exit "
        "status: 0 stopped, 1 the port cannot be used, 2 a wrong option, 3 workers cannot boot, "
        "4 the app cannot be loaded. See also: sticky ctl --help, sticky explain --help",
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


def main(argv: Sequence[str] | None = None, *, prog: str = "sticky") -> NoReturn:
    """Run the command; never returns."""
    open_standard()
    # What was closed when the interpreter started has no stream. Nobody reads what is said there,
    # and yet it is to be said without an AttributeError.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["explain"]:
            sys.exit(explaining.main(arguments[1:], prog=f"{prog} explain"))
        if arguments[:1] == ["ctl"]:
            sys.exit(ctl.main(arguments[1:], prog=f"{prog} ctl"))
        given = vars(_parser(prog).parse_args(arguments))
        program = named(given["target"])
        options = settings(from_arguments(given), config=given.get("config"))
    except StickyError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        sys.exit(2)
    if "print_config" in given:
        sys.stdout.write(as_toml(options))
    if "check_config" in given or "print_config" in given:
        sys.exit(0)
    sys.exit(master.run(options, program))
