"""The access log: gunicorn's format and atoms, one line for each request.

https://docs.gunicorn.org/en/stable/settings.html#access-log-format
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import OptionError
from ..options import Options

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Atoms(dict[str, Any]):
    """The values of one line; ``{name}i``, ``{name}o`` and ``{name}e`` are looked up, ``-`` is
    what is not there."""

    tables: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    def __missing__(self, atom: str) -> str:
        if atom.startswith("{") and atom[-2:-1] == "}" and atom[-1] in self.tables:
            return _clean(self.tables[atom[-1]].get(atom[1:-2].lower(), "-"))
        return "-"


class Entry:
    """What a line says about an answer that is still under way."""

    __slots__ = ("begun", "size")

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.size = 0


def _clean(text: object) -> str:
    """Clients choose most of this: no line of theirs begins a line of ours."""
    plain = str(text)
    if not plain.isprintable():
        plain = plain.encode("unicode_escape").decode("ascii")
    return plain.replace('"', '\\"')


class AccessLog:
    """Writes lines to the file that ``access_logfile`` names.

    Args:
        options: the settings; ``access_logfile`` is not None.

    Raises:
        OptionError: the file cannot be written.
    """

    def __init__(self, options: Options) -> None:
        self._format = options.access_logformat
        self._log = logging.getLogger("sticky.access")
        assert options.access_logfile is not None
        if options.log_config is not None:
            return  # that file says where it goes
        handler: logging.Handler
        try:
            if options.access_logfile == "-":
                handler = logging.StreamHandler(sys.stdout)
            else:
                handler = logging.FileHandler(options.access_logfile)
        except OSError as error:
            raise OptionError(
                f"option 'access_logfile' is {options.access_logfile!r}: "
                f"it cannot be written ({error.strerror})"
            ) from None
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._log.addHandler(handler)
        self._log.setLevel(logging.INFO)
        self._log.propagate = False

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
        """Write a line.

        Args:
            client: the TCP peer's address.
            method, target, protocol: the request line's parts.
            status: of the response.
            size: bytes of its body, where that is known.
            seconds: from the head of the request to the end of the response.
            request: header fields by lower-case name.
            response: header fields.
            environ: the WSGI environ or the ASGI scope.
        """
        path, _, query = target.partition("?")
        atoms = Atoms(
            h=client or "-",
            l="-",
            u=_user(request.get("authorization", "")),
            t=_now(),
            r=_clean(f"{method} {target} {protocol}"),
            m=_clean(method),
            U=_clean(path),
            q=_clean(query),
            H=protocol,
            s=status,
            B=size,
            b="-" if size is None else size,
            f=_clean(request.get("referer", "-")),
            a=_clean(request.get("user-agent", "-")),
            T=int(seconds),
            D=int(seconds * 1_000_000),
            M=int(seconds * 1_000),
            L=f"{seconds:.6f}",
            p=f"<{os.getpid()}>",
        )
        atoms.tables = {
            "i": request,
            "o": {name.lower(): value for name, value in response},
            "e": {str(name).lower(): str(value) for name, value in environ.items()},
        }
        self._log.info("%s", self._format % atoms)


    def write_asgi(
        self,
        scope: Mapping[str, Any],
        *,
        target: bytes,
        status: int,
        fields: Iterable[tuple[bytes, bytes]],
        entry: Entry,
    ) -> None:
        """Write a line for a request of an ASGI app.

        Args:
            scope: of the request.
            target: as it was sent.
            status: of the response.
            fields: of its head.
            entry: the rest.
        """
        self.write(
            client=scope["client"][0] if scope["client"] else "",
            method=scope.get("method", "GET"),
            target=target.decode("latin-1"),
            protocol=f"HTTP/{scope['http_version']}",
            status=status,
            size=entry.size,
            seconds=time.monotonic() - entry.begun,
            request=dict(_as_text(scope["headers"])),
            response=_as_text(fields),
            environ=scope,
        )


def _as_text(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


def _user(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        user = base64.b64decode(credentials).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return "-"
    return _clean(user) or "-"


def _now() -> str:
    """The time as web servers write it, in English whatever the locale."""
    now = time.localtime()
    zone = time.strftime("%z", now)
    return time.strftime(f"[%d/{_MONTHS[now.tm_mon - 1]}/%Y:%H:%M:%S ", now) + zone + "]"
