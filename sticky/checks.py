"""What the value of an option may be. Each check takes the option's name and what was given, and
returns what that means, or raises OptionError."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .addresses import MAX_UNIX_PATH, parse_bind, parse_metrics, wrong
from .forwarded import Trusted
from .rules import MAX_SOURCES, sources_of

DEFAULT_SYNC_EVENT = "sticky:sync"
SID = "sid"
AFFINITY = "affinity"
WORKER_CLASSES = ("auto", "eventlet", "gevent", "threads", "asgi")
_SAME_CLASS = {"gthread": "threads", "uvicorn": "asgi"}
"""What other servers call them."""

# RFC 9110, 5.6.2: the characters a field name is made of.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def whole(lowest: int, highest: int, unit: str = "") -> Callable[[str, Any], int]:
    allowed = f"a whole number from {lowest} to {highest}{unit and ' ' + unit}"

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise wrong(name, value, allowed)
        return value

    return check


def seconds(lowest: float, highest: float = 86400.0) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not lowest <= value <= highest:
            raise wrong(name, value, f"a number of seconds from {lowest:g} to {highest:g}")
        return float(value)

    return check


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")
    return value


def one_of(*words: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in words:
            raise wrong(name, value, "one of " + ", ".join(words))
        return str(value)

    return check


def worker_class(name: str, value: Any) -> str:
    known = _SAME_CLASS.get(value, value) if isinstance(value, str) else value
    if known not in WORKER_CLASSES:
        raise wrong(name, value, "one of " + ", ".join(WORKER_CLASSES))
    return str(known)


def threads(name: str, value: Any) -> int | None:
    return None if value is None else whole(1, 10_000)(name, value)


def root_path(name: str, value: Any) -> str:
    good = isinstance(value, str) and re.fullmatch(r"(/[^\0-\x20\x7f?#]*[^\0-\x20\x7f?#/])?", value)
    if not good:
        raise wrong(
            name, value, "a path that begins with a slash and does not end with one, as '/app'"
        )
    return str(value)


def trusted(name: str, value: Any) -> str:
    """As text, like Trusted takes it; a list is understood."""
    parts = list(value) if isinstance(value, list | tuple) else [value]
    try:
        if not all(isinstance(part, str) for part in parts):
            raise ValueError
        text = ",".join(parts)
        Trusted(text)
    except ValueError:
        raise wrong(
            name,
            value,
            "addresses and networks divided by commas, for example '127.0.0.1,10.0.0.0/8,unix', "
            "'*' (everybody) or '' (nobody)",
        ) from None
    return text


def header(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value) or len(value) > 256:
        raise wrong(
            name,
            value,
            "the name of a header field (letters, digits and hyphens, no spaces and no colon), "
            "for example 'x-forwarded-for'",
        )
    return value.lower()


def session(name: str, value: Any) -> tuple[str, ...] | str | None:
    """Where session ids are, as "place:name"; one alone stays text."""
    several = tuple(value) if isinstance(value, list | tuple) else (value,)
    if value is None or not several:
        return None
    checked = tuple(_one_session(name, one) for one in several)
    if len(set(checked)) < len(checked) or len(checked) > MAX_SOURCES:
        raise wrong(name, value, f"at most {MAX_SOURCES} different places")
    return checked if len(checked) > 1 else checked[0]


def _one_session(name: str, value: Any) -> str:
    if value in (SID, AFFINITY):
        return str(value)
    place, _, field = value.partition(":") if isinstance(value, str) else ("", "", "")
    field = field.lower() if place == "header" else field
    try:
        if place == "mark" or len(field) > 256:
            raise ValueError
        sources_of(f"{place}:{field}".encode("ascii"))
    except ValueError:
        raise wrong(
            name,
            value,
            "'sid' (Socket.IO), 'affinity' (a cookie of our own), 'header:NAME', 'query:NAME', "
            "'cookie:NAME' or 'path:/PATH/{id}/', for example 'header:mcp-session-id'",
        ) from None
    return f"{place}:{field}"


def cookie_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value) or len(value) > 256:
        raise wrong(name, value, "the name of a cookie, for example 'sticky_worker'")
    return value


_SAME_SITE = {"lax": "Lax", "strict": "Strict", "none": "None"}


def cookie_attributes(name: str, value: Any) -> str:
    """Attributes of a cookie beside those that are always there."""
    parts = [part.strip() for part in value.split(";")] if isinstance(value, str) else [""]
    made: dict[str, str] = {}
    for part in parts:
        word, _, of = part.partition("=")
        low = word.strip().lower()
        if low in _SAME_SITE and not of:
            low, of = "samesite", low
        if low == "samesite" and of.strip().lower() in _SAME_SITE:
            made[low] = "SameSite=" + _SAME_SITE[of.strip().lower()]
        elif low in ("secure", "partitioned") and not of:
            made[low] = low.capitalize()
        elif low == "domain" and re.fullmatch(r"[.\w-]+", of.strip(), re.ASCII):
            made[low] = "Domain=" + of.strip()
        elif low == "max-age" and re.fullmatch(r"[1-9]\d{0,8}", of.strip(), re.ASCII):
            made[low] = "Max-Age=" + of.strip()
        else:
            raise wrong(
                name,
                value,
                "attributes divided by semicolons: SameSite=Lax, Strict or None, Secure, "
                "Partitioned, Domain=NAME, Max-Age=SECONDS; for frames of other sites "
                "'SameSite=None; Secure; Partitioned'",
            )
    if "secure" not in made and (made.get("samesite") == "SameSite=None" or "partitioned" in made):
        raise wrong(
            name, value, "with Secure: browsers refuse SameSite=None and Partitioned without it"
        )
    return "; ".join(made.values())


def hops(name: str, value: Any) -> int | None:
    return None if value is None else whole(1, 1000)(name, value)


def seed(name: str, value: Any) -> bytes | None:
    if value is None or (isinstance(value, bytes) and len(value) == 8):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{16}", value):
        return bytes.fromhex(value)
    raise wrong(name, value, "8 bytes, or 16 hexadecimal digits; without it every start draws one")


def host(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or re.search(r"[\s/\0]", value):
        raise wrong(name, value, "a host name or an address, for example '127.0.0.1' or '::'")
    return value.removeprefix("[").removesuffix("]")


def bind(name: str, value: Any) -> tuple[str, ...]:
    addresses = [value] if isinstance(value, str) else value
    if not isinstance(addresses, list | tuple):
        raise wrong(name, value, "an address or a list of addresses")
    for address in addresses:
        parse_bind(address)
    return tuple(addresses)


def metrics(name: str, value: Any) -> str | None:
    if value is None:
        return None
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    kind, where, port = parse_metrics(text)
    if kind == "unix":
        return f"unix:{where}"
    return f"[{where}]:{port}" if ":" in where else f"{where}:{port}"


def ctl(name: str, value: Any) -> str:
    """The path of the socket, or "auto", or "" for none."""
    if value in ("auto", True):
        return "auto"
    if value is False or value in ("", "no"):
        return ""
    path = str(Path(value).absolute()) if isinstance(value, str | Path) else ""
    if not 0 < len(os.fsencode(path)) <= MAX_UNIX_PATH or "\0" in path:
        raise wrong(
            name,
            value,
            f"the path of a socket, of at most {MAX_UNIX_PATH} bytes, in a directory of mode 0700; "
            "auto (one of our own), or False (none)",
        )
    return path


def pid(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise wrong(name, value, "the path of a file, for example '/run/app/app.pid'")
    return str(Path(value).absolute())


def account(name: str, value: Any) -> str | None:
    """A user or a group: its name, or its number as text. Whether there is one is seen later, on
    the machine that it has to be on."""
    if value is None:
        return None
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1
    text = str(value) if number else value
    if not isinstance(text, str) or not re.fullmatch(r"[^\s:/\0-][^\s:/\0]*", text):
        raise wrong(name, value, f"the name or the number of a {name}, for example 'www-data'")
    return text


def umask(name: str, value: Any) -> str | None:
    """Octal digits, whatever it was given as: a number is what Python's or TOML's 0o27 makes."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        return f"{value:04o}"
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,4}", value):
        mask = int(value.removeprefix("0o"), 8)
        if mask <= 0o777:
            return f"{mask:04o}"
    raise wrong(name, value, "an octal number from 0 to 0777, for example '0027'")


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LEAST_MEMORY = 16 << 20
"""An interpreter alone has this much: with less, every worker would be replaced at once."""


def memory(name: str, value: Any) -> int:
    """Bytes; 512M is understood, with or without a B or an iB behind."""
    size = value
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,15})\s*([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        size = int(match[1]) * _UNITS[match[2].upper()] if match else None
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not whole or (size and not _LEAST_MEMORY <= size <= 1 << 50):
        raise wrong(name, value, "bytes, or a number with K, M or G, from 16M; or 0 for no limit")
    assert isinstance(size, int)
    return size


def env(name: str, value: Any) -> dict[str, str]:
    good = isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, str) and k and "=" not in k and "\0" not in k + v
        for k, v in value.items()
    )
    if not good:
        raise wrong(name, value, "a mapping of names to values, both text, {'NAME': 'value'}")
    return dict(value)


def sync(name: str, value: Any) -> str | None:
    """The event that releases a connection, or None; the original's mapping is understood."""
    if isinstance(value, Mapping):
        given = {snake(str(key)): item for key, item in value.items()}
        wanted = given.pop("is_synced", given.pop("is_syncable", True))
        event = given.pop("event", DEFAULT_SYNC_EVENT)
        if not given and isinstance(wanted, bool) and isinstance(event, str) and event:
            return event if wanted else None
    elif value is None or value is False:
        return None
    elif value is True:
        return DEFAULT_SYNC_EVENT
    elif isinstance(value, str) and value:
        return value
    raise wrong(name, value, "the name of an event, or {'is_synced': True, 'event': 'a_name'}")


def text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(name, value, "text that is not empty")
    return value


def log_file(name: str, value: Any) -> str | None:
    return None if value is None else text(name, value)


class _AnyAtom(dict[str, str]):
    def __missing__(self, atom: str) -> str:
        return "-"


def log_format(name: str, value: Any) -> str:
    try:
        text(name, value) % _AnyAtom()
    except (TypeError, ValueError) as error:
        raise wrong(
            name, value, f"made of gunicorn's atoms, as '%(h)s \"%(r)s\" %(s)s' ({error})"
        ) from None
    return str(value)


def log_config(name: str, value: Any) -> str | None:
    if value is None:
        return None
    path = Path(text(name, value))
    if path.suffix not in (".ini", ".conf", ".cfg", ".json") or not path.is_file():
        raise wrong(name, value, "a file that exists, .ini or .json, as logging.config reads them")
    return str(path.absolute())


def app_dir(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not Path(value).is_dir():
        raise wrong(name, value, "a folder that exists (modules are looked up in it)")
    return str(Path(value).absolute())


def snake(name: str) -> str:
    """``ignoreMissingHeader`` as ``ignore_missing_header``."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: "_" + m[1].lower(), name)
