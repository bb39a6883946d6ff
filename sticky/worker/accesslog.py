"""The access log: gunicorn's format and atoms, one line for each request.

https://docs.gunicorn.org/en/stable/settings.html#access-log-format

What clients choose of a line is escaped and bounded (``logs.printable``). Of the atoms only those
are made that the format names, and a line is one ``write(2)`` to a file that is opened for
appending, so that the lines of all workers stay whole. Nobody waits until one is written
(``outlet``): what a full disk or a reader that is gone does not take is counted, and told in the
error log.
"""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import OptionError
from ..logs import losses, printable
from ..options import Options
from ..outlet import Outlet

log = logging.getLogger("sticky.worker")

LONGEST_ATOM = 1000
LONGEST_LINE = 8192
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class _Entry(NamedTuple):
    """What is said of one request; see ``AccessLog.write``."""

    client: str
    method: str
    target: str
    protocol: str
    status: int
    size: int | None
    seconds: float
    request: Mapping[str, str]
    response: Sequence[tuple[str, str]]
    environ: Mapping[str, Any]


def _clean(text: Any) -> str:
    """Clients choose most of this: no line of theirs begins a line of ours, or ends a quotation."""
    if (
        text.__class__ is str
        and len(text) <= LONGEST_ATOM
        and text.isprintable()
        and '"' not in text
        and "\\" not in text
    ):
        return text  # as nearly always
    return printable(text, LONGEST_ATOM, quote='"')


def _user(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        user = base64.b64decode(credentials).decode().partition(":")[0]
    except ValueError:  # no base64, no ASCII, no UTF-8
        return "-"
    return _clean(user) or "-"


class _Clock:
    """The time as web servers write it, in English whatever the locale; made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, _: _Entry) -> str:
        second = int(time.time())
        if second != self._second:
            now = time.localtime(second)
            month, zone = _MONTHS[now.tm_mon - 1], time.strftime("%z", now)
            self._text = time.strftime(f"[%d/{month}/%Y:%H:%M:%S ", now) + zone + "]"
            self._second = second
        return self._text


_ATOMS: dict[str, Callable[[_Entry], object]] = {
    "h": lambda it: _clean(it.client or "-"),
    "l": lambda it: "-",
    "u": lambda it: _user(it.request.get("authorization", "")),
    "r": lambda it: f"{_clean(it.method)} {_clean(it.target)} {_clean(it.protocol)}",
    "m": lambda it: _clean(it.method),
    "U": lambda it: _clean(it.target.partition("?")[0]),
    "q": lambda it: _clean(it.target.partition("?")[2]),
    "H": lambda it: _clean(it.protocol),
    "s": lambda it: it.status,
    "B": lambda it: it.size,
    "b": lambda it: "-" if it.size is None else it.size,
    "f": lambda it: _clean(it.request.get("referer", "-")),
    "a": lambda it: _clean(it.request.get("user-agent", "-")),
    "T": lambda it: int(it.seconds),
    "D": lambda it: int(it.seconds * 1_000_000),
    "M": lambda it: int(it.seconds * 1_000),
    "L": lambda it: f"{it.seconds:.6f}",
    "p": lambda it: f"<{os.getpid()}>",
}


def _atom(name: str) -> Callable[[_Entry], object]:
    """How to find what an atom stands for."""
    if name == "t":
        return _Clock()
    if name.startswith("{") and name[-2:-1] == "}":
        field = name[1:-2].lower()
        match name[-1]:
            case "i":
                return lambda it: _clean(it.request.get(field, "-"))
            case "o":
                return lambda it: _clean(_field(it.response, field))
            case "e":
                return lambda it: _clean(_field(tuple(it.environ.items()), field))
    return _ATOMS.get(name, lambda it: "-")


def _field(pairs: Sequence[tuple[Any, Any]], wanted: str) -> object:
    """The last value of this name."""
    for name, value in reversed(pairs):
        if str(name).lower() == wanted:
            return value
    return "-"


class _Names(dict[str, str]):
    """Takes note of what a format names."""

    def __missing__(self, name: str) -> str:
        self[name] = "-"
        return "-"


class AccessLog:
    """Writes lines to the file that ``access_logfile`` names.

    Args:
        options: the settings; ``access_logfile`` is not None.

    Attributes:
        names_request, names_response, names_environ: whether the format names anything in these;
            what it does not name need not be given.

    Raises:
        OptionError: the file cannot be written.
    """

    def __init__(self, options: Options) -> None:
        assert options.access_logfile is not None
        self._format = options.access_logformat
        names = _Names()
        _ = self._format % names
        self._atoms = [(name, _atom(name)) for name in names]
        self.names_request = any(name in ("u", "a", "f") or name.endswith("}i") for name in names)
        self.names_response = any(name.endswith("}o") for name in names)
        self.names_environ = any(name.endswith("}e") for name in names)
        self._path = options.access_logfile
        self._logger: logging.Logger | None = None
        self._outlet: Outlet | None = None
        if options.log_config is not None:
            self._logger = logging.getLogger("sticky.access")  # that file says where it goes
        elif self._path == "-":
            self._outlet = Outlet(1, self._on_lost)
        else:
            try:
                self._outlet = Outlet(self._open(), self._on_lost, own=True)
            except OSError as error:
                raise OptionError(
                    f"option 'access_logfile' is {self._path!r}: "
                    f"it cannot be written ({error.strerror})"
                ) from None

    def _open(self) -> int:
        # Where it is a named pipe that nobody reads, opening would wait.
        how = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | how, 0o666)

    def _on_lost(self, number: int, why: str) -> None:
        log.warning("%s", losses(number, why, "access log"))

    def reopen(self) -> None:
        """Open the file anew, by its name: it may have been renamed meanwhile."""
        if self._path == "-" or self._outlet is None:
            return
        try:
            fd = self._open()
        except OSError as error:
            log.error("%s cannot be opened anew: %s", self._path, error.strerror)
            return
        self._outlet.replace(fd)

    def close(self) -> None:
        """Close the file."""
        if self._outlet is not None:
            self._outlet.close()

    def write(
        self,
        *,
        client: str,
        method: str,
        target: str,
        protocol: str,
        status: int,
        size: int | None,
        seconds: float,
        request: Mapping[str, str],
        response: Sequence[tuple[str, str]],
        environ: Mapping[str, Any],
    ) -> None:
        """Write a line. Nothing that a client has sent makes this raise.

        Args:
            client: the client's address.
            method, target, protocol: the request line's parts.
            status: of the response.
            size: bytes of its body, where that is known.
            seconds: from the head of the request to the end of the response.
            request: header fields by lower-case name.
            response: header fields.
            environ: the WSGI environ or the ASGI scope.
        """
        entry = _Entry(
            client, method, target, protocol, status, size, seconds, request, response, environ
        )
        line = self._format % {name: atom(entry) for name, atom in self._atoms}
        if len(line) > LONGEST_LINE:
            line = line[: LONGEST_LINE - 3] + "..."
        if self._outlet is not None:
            self._outlet.write((line + "\n").encode(errors="backslashreplace"))
        elif self._logger is not None:
            self._logger.info("%s", line)
