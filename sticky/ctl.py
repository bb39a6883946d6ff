"""``sticky ctl``: ask a server how it is, and have it do things. The other side of it is
master/control.py."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from . import private
from .arguments import Parser
from .ctlprotocol import pack, peer_of, unpack
from .errors import StickyError
from .logs import printable

_PATIENCE = 10.0
"""Seconds for a server to answer: it does nothing else at that moment, or it hangs."""
_MOST_FDS = 253
_LONGEST = 1 << 20
"""Bytes of an answer."""
_REFRESH = 1.0
_CLEAR = "\x1b[H\x1b[2J"
_ALTERNATE, _BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"

_COMMANDS = {
    "status": "slots and processes: state, age, load, memory, requests per second",
    "top": "the same, live; q ends it",
    "stats": "all counters",
    "reload": "replace all workers by new ones, with new code",
    "upgrade": "the same for the server itself, in place (USR2)",
    "scale": "have N workers",
    "drain": "replace the worker of a slot, gracefully",
    "kill": "kill the worker of a slot (SIGKILL); another one takes its place",
    "stop": "end the server: requests in hand are finished",
    "why": "say where a client's address or a session id goes, and why",
}


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Ask a running server how it is, and have it do things.",
        epilog="Without --pid and --ctl (or $STICKY_CTL) it is the one server that this user runs; "
        "if there are several, they are listed. Exit status: 0 done, 1 no server, or it refused; 2 "
        "a wrong command.",
        allow_abbrev=False,
    )
    _add_common(parser, argument_default=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        # Behind the command as well; what is not given there must not replace what was before it.
        _add_common(command, argument_default=argparse.SUPPRESS)
        if name == "scale":
            command.add_argument("n", metavar="N", type=int, help="how many workers")
        elif name in ("drain", "kill"):
            command.add_argument("slot", metavar="SLOT", type=int, help="its number, from 0")
        elif name == "why":
            command.add_argument("text", metavar="ADDRESS|ID", help="an address or a session id")
        elif name == "stop":
            command.add_argument("--quick", action="store_true", help="at once")
    return parser


def _add_common(parser: argparse.ArgumentParser, argument_default: Any) -> None:
    default = argument_default
    parser.add_argument(
        "--ctl", metavar="PATH", default=default, help="the server's socket (its option ctl)"
    )
    parser.add_argument(
        "--pid", metavar="PID", type=int, default=default, help="the server's process id"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=default if default == argparse.SUPPRESS else False,
        help="print the answer as a line of JSON",
    )


def main(argv: Sequence[str], *, prog: str) -> int:
    """Run the command; its exit status.

    Raises:
        SystemExit: 2: the words make no command.
    """
    given = vars(_parser(prog).parse_args(argv))
    command, as_json = given.pop("command"), given.pop("json")
    where, pid = given.pop("ctl"), given.pop("pid")
    try:
        path = _find(where, pid)
        if command == "top":
            return _stream(path) if as_json else _top(path)
        answer = ask(path, command, given)
    except StickyError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 1
    if as_json:
        print(json.dumps(answer))
    else:
        sys.stdout.write(_shown(command, answer))
    return 0


def find(server: Any) -> Path:
    """The socket of the server that is meant.

    Args:
        server: its process id, the path of its socket, an address that it listens at, or something
            that has the process id of its master as ``pid``; None: the one that there is.

    Raises:
        StickyError: there is none, or more than one.
    """
    if server is None:
        return _find(None, None)
    if isinstance(server, Path) or (isinstance(server, str) and server.startswith("/")):
        return Path(server)
    if isinstance(server, str):
        return _at_address(server)
    pid = server if isinstance(server, int) else server.pid
    return _find(None, pid)


def _at_address(address: str) -> Path:
    """The socket of the server that listens there."""
    directory = private.default(os.environ, os.geteuid())
    wanted = address.removeprefix("http://").rstrip("/")
    for path in private.found(directory).values():
        with contextlib.suppress(StickyError):
            if wanted in (url.removeprefix("http://") for url in ask(path, "status")["listening"]):
                return path
    raise StickyError(f"no server that listens at {address!r} {_hint(directory)}")


def _find(where: str | None, pid: int | None) -> Path:
    """The socket of the server that is meant.

    Raises:
        StickyError: there is none, or more than one.
    """
    if where is None and pid is None and os.environ.get("STICKY_CTL", "").startswith("/"):
        where = os.environ["STICKY_CTL"]  # as the server has it
    if where is not None:
        return Path(where)
    user = os.geteuid()
    directory = private.default(os.environ, user)
    if directory.exists():
        private.check(directory, user)
    found = private.found(directory)
    if pid is not None:
        if pid not in found:
            raise StickyError(f"no server with process id {pid} {_hint(directory)}")
        return found[pid]
    if not found:
        raise StickyError(f"no server {_hint(directory)}")
    if len(found) > 1:
        lines = "\n".join(f"  --pid {number}  {_name(path)}" for number, path in found.items())
        raise StickyError(f"{len(found)} servers run here; say which:\n{lines}")
    return next(iter(found.values()))


def _hint(directory: Path) -> str:
    return (
        f"has a socket in {str(directory)!r}: another user's server, or one with an option 'ctl' "
        "of its own, is named with --ctl PATH"
    )


def _name(path: Path) -> str:
    try:
        answer = ask(path, "status")
    except StickyError as error:
        return str(error)
    return printable(", ".join(map(str, answer.get("listening", []))))


def ask_for_mail(path: Path) -> tuple[dict[str, Any], list[int]]:
    """The mailboxes of a server's workers, as master/post.py has them, and their descriptors.

    Raises: as ``ask``.
    """
    fds: list[int] = []
    try:
        return ask(path, "mail", fds=fds), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def ask(
    path: Path,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    fds: list[int] | None = None,
) -> dict[str, Any]:
    """Send one command to a server, and wait for its answer.

    Args:
        path: its socket.
        command: one of those of master/control.py.
        arguments: what belongs to it.
        fds: where descriptors that come with the answer are put.

    Raises:
        StickyError: nobody listens, somebody else does, or it was refused; why.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # With a timeout of Python's own, connect() would not wait where others wait already.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_PATIENCE), 0))
        try:
            sock.connect(str(path))
            sock.settimeout(_PATIENCE)
            if peer_of(sock) not in (0, os.geteuid()) and os.geteuid() != 0:
                raise StickyError(f"the server at {str(path)!r} is another user's")
            sock.sendall(pack(command=command, arguments=dict(arguments or {})))
            line = b"".join(_pieces(sock, fds))
        except (TimeoutError, BlockingIOError):
            raise StickyError(f"the server did not answer within {_PATIENCE:g} s") from None
        except OSError as error:
            raise StickyError(
                f"no server answers at {str(path)!r}: {error.strerror or error}"
            ) from None
    content = unpack(line)
    if "error" in content:
        raise StickyError(printable(content["error"]))
    answer = content.get("answer")
    if not isinstance(answer, dict):
        raise StickyError("the server gave no answer")
    return answer


def _pieces(sock: socket.socket, fds: list[int] | None) -> Iterator[bytes]:
    size = 0
    while True:
        piece, came, _, _ = socket.recv_fds(sock, 65536, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if fds is not None:
            fds += came
        else:
            for fd in came:
                os.close(fd)
        if not piece:
            return
        size += len(piece)
        if size > _LONGEST:
            raise StickyError("the server's answer is too long")
        yield piece


# -- for people ----------------------------------------------------------------------------------


def _shown(command: str, answer: Mapping[str, Any]) -> str:
    if command == "status":
        return status_text(answer)
    if command == "why":
        return _why_text(answer)
    if command == "stats":
        return _stats_text(answer)
    return "done\n" if command == "kill" else "begun\n"


def _why_text(answer: Mapping[str, Any]) -> str:
    lines = [f"key   {printable(answer['key'])}"] if answer["key"] else []
    lines.append(f"why   {printable(answer['why'])}")
    if answer["slot"] is not None:
        pid = f" (pid {answer['pid']})" if answer.get("pid") else ""
        lines.append(f"slot  {answer['slot']} of {answer['n']}{pid}")
    return "\n".join(lines) + "\n"


def _stats_text(answer: Mapping[str, Any]) -> str:
    lines = [f"{name:20} {answer[name]}" for name in answer if name != "workers"]
    for slot, counted in answer.get("workers", {}).items():
        lines += ["", f"worker {slot}"]
        lines += [f"  {name:18} {value}" for name, value in counted.items()]
    return "\n".join(map(printable, lines)) + "\n"


_COLUMNS = (
    ("slot", ">4"),
    ("pid", ">8"),
    ("state", "<9"),
    ("class", "<9"),
    ("age", ">7"),
    ("rss", ">7"),
    ("open", ">6"),
    ("load", ">6"),
    ("req/s", ">8"),
    ("requests", ">10"),
    ("moves", ">7"),
    ("queued", ">6"),
)


def status_text(answer: Mapping[str, Any]) -> str:
    """An answer to ``status``, as a table.

    Args:
        answer: as report.py has it.
    """
    about = [f"sticky {answer['version']}, pid {answer['pid']}: {answer['stage']}"]
    if answer.get("reloading"):
        about.append("reloading")
    about.append(f"{answer['n']} slots")
    about.append(f"up {_age(answer['age'])}")
    about.append(f"master {_size(answer['rss'])}")
    counted = [f"{name} {answer[name]}" for name in _COUNTED if name in answer]
    lines = [", ".join(about), "at " + ", ".join(answer["listening"]), ", ".join(counted), ""]
    lines.append("  ".join(f"{name:{width}}" for name, width in _COLUMNS))
    for slot in answer["slots"]:
        for process in slot["processes"] or [{}]:
            lines.append(_row(slot, process))
    return "\n".join(printable(line).rstrip() for line in lines) + "\n"


_COUNTED = ("held", "accepted", "moved", "queued", "refused", "restarts", "starved")


def _row(slot: Mapping[str, Any], process: Mapping[str, Any]) -> str:
    waiting = slot["queued"] + slot["resting"]
    first = process.get("serves", True) or not process
    cells = [
        slot["slot"],
        process.get("pid", "-"),
        process.get("state", slot["state"]),
        process.get("worker_class", "-"),
        _age(process["age"]) if process else "-",
        _size(process["rss"]) if process else "-",
        process.get("open", "-"),
        process.get("load", "-"),
        f"{process['requests_per_second']:.1f}" if process else "-",
        process.get("requests", "-"),
        process.get("moves", "-"),
        waiting if first else "",
    ]
    return "  ".join(f"{cell!s:{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _size(size: float) -> str:
    return f"{size / (1 << 30):.1f}G" if size >= 1 << 30 else f"{size / (1 << 20):.0f}M"


# -- top -------------------------------------------------------------------------------------------


def _stream(path: Path) -> int:
    """The status, a line of JSON each time, for programs that read along until they have enough."""
    with contextlib.suppress(BrokenPipeError):
        while True:
            print(json.dumps(ask(path, "status")), flush=True)
            time.sleep(_REFRESH)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at the end
    return 0


def _top(path: Path) -> int:
    """The table, again and again, until q or Ctrl-C."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StickyError("top needs a terminal: use status")
    with _keys(sys.stdin, sys.stdout), contextlib.suppress(KeyboardInterrupt):
        while True:
            height = os.get_terminal_size().lines or 24  # 0: it does not know
            lines = status_text(ask(path, "status")).splitlines()
            sys.stdout.write(_CLEAR + "\r\n".join(lines[: height - 1]))
            sys.stdout.flush()
            ready, _, _ = select.select([sys.stdin], [], [], _REFRESH)
            if ready and os.read(sys.stdin.fileno(), 16)[:1] in (b"q", b"Q", b"\x03", b""):
                break
    return 0


@contextlib.contextmanager
def _keys(stdin: TextIO, stdout: TextIO) -> Iterator[None]:
    """In the body, keys come as they are pressed, and the screen is another one."""
    before = termios.tcgetattr(stdin)
    try:
        tty.setcbreak(stdin)
        stdout.write(_ALTERNATE)
        yield
    finally:
        stdout.write(_BACK)
        stdout.flush()
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
