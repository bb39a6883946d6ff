"""Where settings come from: the call or the command line, the environment, a file; in that order.

Everything here ends in ``Options.make``: names and values are checked there and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import OptionError
from .master.listeners import from_systemd, resolved
from .options import Options, as_mapping, nearest_option

FIELDS = {field.name: field for field in dataclasses.fields(Options)}

# No options. Kubernetes sets STICKY_PORT and STICKY_SERVICE_... for a service named "sticky" (and
# STICKY_WEB_PORT_... for one named "sticky-web"), so a port is never read from the environment:
# STICKY_BIND has it.
_KUBERNETES = re.compile(r"STICKY_(\w+_)?(PORT|PORT_\d+_\w+|SERVICE_HOST|SERVICE_PORT\w*)")
_OTHERS = ("STICKY_WORKER_ID", "STICKY_PURE", "STICKY_CONFIG")

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off", ""), False),
}


def settings(
    given: Mapping[str, Any] | Options | None = None,
    /,
    *,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> Options:
    """All settings together.

    Args:
        given: options as a mapping or an ``Options`` object (which has a value for everything).
        config: a TOML file; without it ``$STICKY_CONFIG``, if that is set.
        environ: the environment; without it this process's own.
        **options: options by name; they come first.

    Raises:
        OptionError: a name or a value is not allowed; it says where it came from.
    """
    environ = os.environ if environ is None else environ
    explicit = as_mapping(given) | options
    path = config or environ.get("STICKY_CONFIG")
    sources = [from_file(path) if path else {}, from_environment(environ), explicit]
    merged: dict[str, Any] = {}
    for source in sources:
        # One way of saying where to listen replaces the other, not only the same one.
        if "bind" in source:
            merged = {k: v for k, v in merged.items() if k not in ("host", "port")}
        elif "host" in source or "port" in source:
            merged.pop("bind", None)
        merged.update(source)
    named = options if isinstance(given, Options) else explicit  # an object has all of them
    if explicit.get("bind") and ("port" in named or "host" in named):
        raise OptionError(
            f"option 'bind' is {explicit['bind']!r}, and there is a host or a port beside it: "
            "say where to listen in one way"
        )
    if not {"bind", "host", "port"} & merged.keys() and (passed := from_systemd(environ)):
        merged["bind"] = passed
    made = Options.make(merged)
    if any("fd://" in bind for bind in made.bind):
        return dataclasses.replace(made, bind=tuple(resolved(made.bind, environ)))
    return made


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The options in STICKY_<OPTION>, as ``STICKY_PROXY=1`` or ``STICKY_BIND=:3000,[::1]:3000``."""
    found, names = {}, []
    for name, text in environ.items():
        if not name.startswith("STICKY_") or name in _OTHERS or _KUBERNETES.fullmatch(name):
            continue
        option = name.removeprefix("STICKY_").lower()
        if option in FIELDS:
            found[option] = from_text(option, text, source=f"the environment variable {name}")
            names.append(name)
        elif close := nearest_option(option, [*FIELDS, "config"]):
            close = "bind" if close == "port" else close
            raise OptionError(
                f"the environment variable {name} names no option; "
                f"did you mean STICKY_{close.upper()}?"
            )
    _check(found, "in the environment (" + ", ".join(names) + ")")
    return found


def from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The options in a TOML file, by their names (hyphens count as underscores)."""
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise OptionError(
            f"the file {os.fspath(path)!r} cannot be read: {error.strerror}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"the file {os.fspath(path)!r} is not TOML: {error}") from None
    found = as_mapping({name.replace("-", "_"): value for name, value in content.items()})
    for name in ("app_dir", "log_config"):
        if isinstance(found.get(name), str):  # what a file names is beside it
            found[name] = str(Path(path).absolute().parent / found[name])
    _check(found, f"in {os.fspath(path)!r}")
    return found


def _check(found: Mapping[str, Any], where: str) -> None:
    """Check the options of one source by themselves, so that the error can say where it is."""
    try:
        # What goes together with these is checked at the end: another source may have them.
        Options.make({"proxy": True, "session": "header:any", "max_requests": 1, **found})
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def from_text(option: str, text: str, *, source: str = "") -> Any:
    """The value that an option's text stands for. Text that is no number stays text, for the
    option's own check to complain about."""
    kind = str(FIELDS[option].type)
    if kind == "bool":
        if text.lower() not in _WORDS:
            raise OptionError(
                f"{source or f'option {option!r}'} is {text!r}: it must be one of "
                + ", ".join(word for word in _WORDS if word)
            )
        return _WORDS[text.lower()]
    if kind.startswith("tuple"):
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind.startswith("Mapping"):
        parts = [part for part in text.split(",") if part]
        if not all("=" in part for part in parts):
            raise OptionError(
                f"{source or f'option {option!r}'} is {text!r}: it must be written "
                "NAME=VALUE,NAME=VALUE"
            )
        return dict(part.split("=", 1) for part in parts)
    if kind.endswith("| None") and not text:
        return None
    if option in ("sync", "ctl") and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        if kind.startswith("float"):
            return float(text)
        if kind.startswith("int"):
            return int(text)
    except ValueError:
        pass
    return text


def as_toml(options: Options) -> str:
    """The settings as a file that says the same."""
    lines = []
    for name, value in options.to_json().items():
        if name in ("host", "port") and options.bind:
            continue
        if value is None or (name == "bind" and not value):
            lines.append(f"# {name} =")
        elif isinstance(value, dict):
            pairs = ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items())
            lines.append(f"{name} = {{{pairs}}}")
        else:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """As JSON writes it, but for two things in strings: pairs of surrogates, and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
