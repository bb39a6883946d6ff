"""Every setting: its default, its unit, its check. Nothing else knows what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import OptionError
from .forwarded import Trusted

MAX_WORKERS = 250
"""One message can carry 253 file descriptors (SCM_MAX_FD), and a worker is given one a slot."""

MAX_UNIX_PATH = 107
"""Bytes of a socket's path (sun_path of unix(7), without the closing NUL)."""

DEFAULT_SYNC_EVENT = "sticky:sync"
ACCESS_LOG_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
"""gunicorn's default."""

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
INTERFACES = ("auto", "factory", "wsgi", "asgi")
WORKER_CLASSES = ("auto", "eventlet", "gevent", "threads", "asgi")
_SAME_CLASS = {"gthread": "threads", "uvicorn": "asgi"}
"""What other servers call them."""
LOOPS = ("auto", "asyncio", "uvloop")
DEFAULT_TRUSTED = "127.0.0.1,::1,unix"
BALANCES = ("address", "least", "round-robin")

# What systemd allows in the name of a descriptor (sd_pid_notify_with_fds(3)), and a URL as well.
_FD_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.@\\-]{0,254}")

# RFC 9110, 5.6.2: the characters a field name is made of.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def _cgroup_cpus(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float:
    """CPUs that the cgroup (v2) of this process grants; infinity where nothing limits it."""
    try:
        path = membership.read_text().split("0::", 1)[1].splitlines()[0]
    except (OSError, IndexError):
        return float("inf")
    here = root / path.lstrip("/")
    cpus = float("inf")
    for folder in (here, *here.parents):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            pass
        else:
            if quota != "max":
                cpus = min(cpus, int(quota) / int(period))
        if folder == root:
            break
    return cpus


def default_num() -> int:
    """``$WEB_CONCURRENCY``, else the CPUs this process may use (affinity and cgroup limits)."""
    wanted = os.environ.get("WEB_CONCURRENCY", "")
    if wanted:
        if not wanted.isdecimal() or not 1 <= int(wanted) <= MAX_WORKERS:
            raise OptionError(
                f"the environment variable WEB_CONCURRENCY is {wanted!r}: "
                f"the number of workers must be a whole number from 1 to {MAX_WORKERS}"
            )
        return int(wanted)
    usable = min(len(os.sched_getaffinity(0)), _cgroup_cpus(), MAX_WORKERS)
    return max(1, int(usable))


def default_trusted() -> str:
    """``$FORWARDED_ALLOW_IPS``, as uvicorn and gunicorn have it, else the peers on this machine."""
    text = os.environ.get("FORWARDED_ALLOW_IPS", DEFAULT_TRUSTED)
    try:
        return _trusted("forwarded_allow_ips", text)
    except OptionError as error:
        raise OptionError(f"the environment variable FORWARDED_ALLOW_IPS: {error}") from None


def _fail(name: str, value: object, allowed: str) -> OptionError:
    return OptionError(f"option {name!r} is {value!r}: it must be {allowed}")


def _whole(lowest: int, highest: int, unit: str = "") -> Callable[[str, Any], int]:
    allowed = f"a whole number from {lowest} to {highest}{unit and ' ' + unit}"

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise _fail(name, value, allowed)
        return value

    return check


def _seconds(lowest: float, highest: float = 86400.0) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not lowest <= value <= highest:
            raise _fail(name, value, f"a number of seconds from {lowest:g} to {highest:g}")
        return float(value)

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _fail(name, value, "True or False")
    return value


def _one_of(*words: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in words:
            raise _fail(name, value, "one of " + ", ".join(words))
        return str(value)

    return check


def _worker_class(name: str, value: Any) -> str:
    known = _SAME_CLASS.get(value, value) if isinstance(value, str) else value
    if known not in WORKER_CLASSES:
        raise _fail(name, value, "one of " + ", ".join(WORKER_CLASSES))
    return str(known)


def _threads(name: str, value: Any) -> int | None:
    return None if value is None else _whole(1, 10_000)(name, value)


def _root_path(name: str, value: Any) -> str:
    good = isinstance(value, str) and re.fullmatch(r"(/[^\0-\x20\x7f?#]*[^\0-\x20\x7f?#/])?", value)
    if not good:
        raise _fail(
            name, value, "a path that begins with a slash and does not end with one, as '/app'"
        )
    return str(value)


def _trusted(name: str, value: Any) -> str:
    """As text, like Trusted takes it; a list is understood."""
    parts = list(value) if isinstance(value, list | tuple) else [value]
    try:
        if not all(isinstance(part, str) for part in parts):
            raise ValueError
        text = ",".join(parts)
        Trusted(text)
    except ValueError:
        raise _fail(
            name,
            value,
            "addresses and networks divided by commas, for example '127.0.0.1,10.0.0.0/8,unix', "
            "'*' (everybody) or '' (nobody)",
        ) from None
    return text


def _header(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value) or len(value) > 256:
        raise _fail(
            name,
            value,
            "the name of a header field (letters, digits and hyphens, no spaces and no colon), "
            "for example 'x-forwarded-for'",
        )
    return value.lower()


def _session(name: str, value: Any) -> str | None:
    """Where a session id is, as "place:name"; "sid" stays, since it says who mints the ids too."""
    if value is None:
        return None
    if value == "sid":
        return "sid"
    place, _, field = value.partition(":") if isinstance(value, str) else ("", "", "")
    good = _TOKEN.fullmatch(field) if place in ("header", "cookie") else field.isascii()
    if place not in ("header", "cookie", "query") or not good or len(field) > 256:
        good = False
    if not good or not field or re.search(r"[\0-\x20\x7f]", field):
        raise _fail(
            name,
            value,
            "'sid' (Socket.IO), 'header:NAME', 'query:NAME' or 'cookie:NAME', "
            "for example 'header:mcp-session-id'",
        )
    return f"{place}:{field.lower() if place == 'header' else field}"


def _hops(name: str, value: Any) -> int | None:
    return None if value is None else _whole(1, 1000)(name, value)


def _seed(name: str, value: Any) -> bytes | None:
    if value is None or (isinstance(value, bytes) and len(value) == 8):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{16}", value):
        return bytes.fromhex(value)
    raise _fail(name, value, "8 bytes, or 16 hexadecimal digits; without it every start draws one")


def _host(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or re.search(r"[\s/\0]", value):
        raise _fail(name, value, "a host name or an address, for example '127.0.0.1' or '::'")
    return value.removeprefix("[").removesuffix("]")


def _bind(name: str, value: Any) -> tuple[str, ...]:
    addresses = [value] if isinstance(value, str) else value
    if not isinstance(addresses, list | tuple):
        raise _fail(name, value, "an address or a list of addresses")
    for address in addresses:
        parse_bind(address)
    return tuple(addresses)


def parse_bind(bind: object) -> tuple[str, str, int]:
    """What an address to listen on says: (kind, host, path or name, port or descriptor).

    HOST:PORT, [V6]:PORT, :PORT (all IPv4 addresses), HOST (port 8000), unix:PATH and fd://N, as
    gunicorn writes them; and fd://NAME, as systemd names the sockets that it passes
    (FileDescriptorName= of systemd.socket(5)), which is descriptor 0 here.

    Raises:
        OptionError: it is none of these.
    """
    text = bind if isinstance(bind, str) else ""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if 0 < len(os.fsencode(path)) <= MAX_UNIX_PATH and "\0" not in path:
            return "unix", path, 0
        raise _fail("bind", bind, f"a path of 1 to {MAX_UNIX_PATH} bytes behind 'unix:'")
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if number.isdecimal() and int(number) > 2:
            return "fd", "", int(number)
        if _FD_NAME.fullmatch(number) and not number.isdecimal():
            return "fd", number, 0
        raise _fail(
            "bind",
            bind,
            "'fd://' and the number of an open descriptor, from 3, or the name of one that systemd "
            "passes",
        )
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^\s:/\[\]]*))(?::(\d{1,5}))?", text)
    if match is None or not text or int(match[3] or 0) > 65535:
        raise _fail(
            "bind",
            bind,
            "HOST:PORT, [IPV6]:PORT, :PORT, unix:PATH or fd://N with a port from 0 to 65535, "
            "for example '127.0.0.1:3000'",
        )
    return "tcp", match[1] or match[2] or "0.0.0.0", int(match[3]) if match[3] else 8000


def parse_metrics(metrics: object) -> tuple[str, str, int]:
    """Where the metrics are served: (kind, host or path, port), as ``parse_bind`` gives it. A port
    alone is one of this machine only: they are nobody else's business.

    Raises:
        OptionError: it is no such address.
    """
    text = metrics if isinstance(metrics, str) else ""
    port = text.removeprefix(":")
    if port.isdecimal() and port.isascii():
        text = f"127.0.0.1:{port}"
    try:
        kind, where, number = parse_bind(text)
        if kind == "fd" or (kind == "tcp" and not re.search(r":\d+$", text)):
            raise _fail("metrics", metrics, "")
    except OptionError:
        raise _fail(
            "metrics",
            metrics,
            "PORT (on 127.0.0.1), HOST:PORT, [IPV6]:PORT or unix:PATH, for example ':9100'",
        ) from None
    return kind, where, number


def _metrics(name: str, value: Any) -> str | None:
    if value is None:
        return None
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    kind, where, port = parse_metrics(text)
    if kind == "unix":
        return f"unix:{where}"
    return f"[{where}]:{port}" if ":" in where else f"{where}:{port}"


def _ctl(name: str, value: Any) -> str:
    """The path of the socket, or "auto", or "" for none."""
    if value in ("auto", True):
        return "auto"
    if value is False or value in ("", "no"):
        return ""
    path = str(Path(value).absolute()) if isinstance(value, str | Path) else ""
    if not 0 < len(os.fsencode(path)) <= MAX_UNIX_PATH or "\0" in path:
        raise _fail(
            name,
            value,
            f"the path of a socket, of at most {MAX_UNIX_PATH} bytes, in a directory of mode 0700; "
            "auto (one of our own), or False (none)",
        )
    return path


def _pid(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise _fail(name, value, "the path of a file, for example '/run/app/app.pid'")
    return str(Path(value).absolute())


def _account(name: str, value: Any) -> str | None:
    """A user or a group: its name, or its number as text. Whether there is one is seen later, on
    the machine that it has to be on."""
    if value is None:
        return None
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1
    text = str(value) if number else value
    if not isinstance(text, str) or not re.fullmatch(r"[^\s:/\0-][^\s:/\0]*", text):
        raise _fail(name, value, f"the name or the number of a {name}, for example 'www-data'")
    return text


def _umask(name: str, value: Any) -> str | None:
    """Octal digits, whatever it was given as: a number is what Python's or TOML's 0o27 makes."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        return f"{value:04o}"
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,4}", value):
        mask = int(value.removeprefix("0o"), 8)
        if mask <= 0o777:
            return f"{mask:04o}"
    raise _fail(name, value, "an octal number from 0 to 0777, for example '0027'")


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LEAST_MEMORY = 16 << 20
"""An interpreter alone has this much: with less, every worker would be replaced at once."""


def _memory(name: str, value: Any) -> int:
    """Bytes; 512M is understood, with or without a B or an iB behind."""
    size = value
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,15})\s*([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        size = int(match[1]) * _UNITS[match[2].upper()] if match else None
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not whole or (size and not _LEAST_MEMORY <= size <= 1 << 50):
        raise _fail(name, value, "bytes, or a number with K, M or G, from 16M; or 0 for no limit")
    assert isinstance(size, int)
    return size


def _env(name: str, value: Any) -> dict[str, str]:
    good = isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, str) and k and "=" not in k and "\0" not in k + v
        for k, v in value.items()
    )
    if not good:
        raise _fail(name, value, "a mapping of names to values, both text, {'NAME': 'value'}")
    return dict(value)


def _sync(name: str, value: Any) -> str | None:
    """The event that releases a connection, or None; the original's mapping is understood."""
    if isinstance(value, Mapping):
        given = {_snake(str(key)): item for key, item in value.items()}
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
    raise _fail(name, value, "the name of an event, or {'is_synced': True, 'event': 'a_name'}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _fail(name, value, "text that is not empty")
    return value


def _log_file(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


class _AnyAtom(dict[str, str]):
    def __missing__(self, atom: str) -> str:
        return "-"


def _log_format(name: str, value: Any) -> str:
    try:
        _text(name, value) % _AnyAtom()
    except (TypeError, ValueError) as error:
        raise _fail(
            name, value, f"made of gunicorn's atoms, as '%(h)s \"%(r)s\" %(s)s' ({error})"
        ) from None
    return str(value)


def _log_config(name: str, value: Any) -> str | None:
    if value is None:
        return None
    path = Path(_text(name, value))
    if path.suffix not in (".ini", ".conf", ".cfg", ".json") or not path.is_file():
        raise _fail(name, value, "a file that exists, .ini or .json, as logging.config reads them")
    return str(path.absolute())


def _snake(name: str) -> str:
    """``ignoreMissingHeader`` as ``ignore_missing_header``."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: "_" + m[1].lower(), name)


def _app_dir(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not Path(value).is_dir():
        raise _fail(name, value, "a folder that exists (modules are looked up in it)")
    return str(Path(value).absolute())


def _option(default: Any, check: Callable[[str, Any], Any], text: str) -> Any:
    """One setting."""
    metadata = {"check": check, "help": text}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Every setting of a server. Unknown names and values that are not allowed raise OptionError.

    Times are in seconds and sizes in bytes. ``Options.make`` builds one from what users pass.
    """

    # What is served, and where
    host: str = _option("127.0.0.1", _host, "address or host name to listen on")
    port: int = _option(8000, _whole(0, 65535), "TCP port; 0 lets the system choose one")
    bind: tuple[str, ...] = _option(
        (),
        _bind,
        "where to listen, instead of host and port: HOST:PORT, [IPV6]:PORT, unix:PATH, fd://N, "
        "fd://NAME (of a socket that systemd passes); "
        "can be given several times (default: 127.0.0.1:8000)",
    )
    num: int = _option(
        default_num,
        _whole(1, MAX_WORKERS),
        "number of worker processes (default: $WEB_CONCURRENCY, else the usable CPUs)",
    )
    worker_class: str = _option(
        "auto",
        _worker_class,
        "what runs the app: eventlet, gevent, threads, asgi; auto finds out what it needs",
    )
    threads: int | None = _option(
        None,
        _threads,
        "with worker class threads: the most there may be (default: one for each connection that "
        "needs one, at most max_connections)",
    )
    loop: str = _option(
        "auto",
        _one_of(*LOOPS),
        "with worker class asgi: the event loop, asyncio or uvloop; auto is uvloop where it is "
        "installed",
    )
    interface: str = _option(
        "auto",
        _one_of(*INTERFACES),
        "what is served: auto finds out; factory: call it; wsgi, asgi: it is the app itself",
    )
    app_dir: str | None = _option(None, _app_dir, "folder to look for the app's modules in")
    root_path: str = _option(
        "", _root_path, "path under which a proxy serves the app, which the app is told: /app"
    )
    env: Mapping[str, str] = _option(dict, _env, "NAME=VALUE for the workers' environment")

    # Routing
    proxy: bool = _option(
        False, _flag, "behind a reverse proxy: the client's address is in a header"
    )
    header: str = _option(
        "x-forwarded-for",
        _header,
        "with proxy: the header that holds the client's address",
    )
    forwarded_allow_ips: str = _option(
        default_trusted,
        _trusted,
        "peers whose X-Forwarded-For and X-Forwarded-Proto the app is told as client and scheme: "
        "addresses, networks, unix, or * for all; empty: nobody's (default: $FORWARDED_ALLOW_IPS, "
        "else 127.0.0.1,::1,unix)",
    )
    ignore_missing_header: bool = _option(
        False, _flag, "with proxy: route requests without the header by their TCP peer, not 400"
    )
    hops: int | None = _option(
        None, _hops, "with proxy: take the k-th address from the right (default: the leftmost)"
    )
    ipv4_prefix: int = _option(32, _whole(1, 32), "bits of an IPv4 address that name a client")
    ipv6_prefix: int = _option(64, _whole(1, 128), "bits of an IPv6 address that name a client")
    seed: bytes | None = _option(
        None, _seed, "16 hexadecimal digits; machines with the same seed choose the same workers"
    )

    session: str | None = _option(
        None,
        _session,
        "route by session id where a request has one: sid (Socket.IO), header:NAME, query:NAME, "
        "cookie:NAME",
    )
    balance: str = _option(
        "address",
        _one_of(*BALANCES),
        "with session: where requests without an id go: address (as without session), least (the "
        "worker with the fewest sessions), round-robin",
    )

    sync: str | None = _option(
        None, _sync, "the app releases each connection's first packet itself, by this event"
    )
    sync_timeout: float = _option(
        10.0, _seconds(0.1), "seconds the app may take to release a connection (503)"
    )

    # Limits on what clients may cost
    backlog: int = _option(2048, _whole(1, 65535), "connections the system holds unaccepted")
    defer_accept: bool = _option(
        True, _flag, "accept a connection when its first bytes are there (TCP_DEFER_ACCEPT)"
    )
    head_timeout: float = _option(10.0, _seconds(0.1), "seconds for a whole request head (408)")
    max_head_size: int = _option(
        65536, _whole(1024, 65536), "bytes of a request head (431 when it is longer)"
    )
    max_pending_heads: int = _option(
        10_000, _whole(1, 1_000_000), "connections whose head is awaited; the oldest makes room"
    )
    max_queued: int = _option(
        10_000,
        _whole(1, 1_000_000),
        "connections that may wait for workers; past it the newest of the longest queue is "
        "answered 503",
    )
    max_mail: int = _option(
        8_388_608,
        _whole(65_536, 1 << 40),
        "bytes kept of events for one worker that does not keep up; what comes then is dropped",
    )
    queue_timeout: float = _option(
        10.0,
        _seconds(0.1),
        "seconds a connection may wait until its worker takes it, and at most one more (503)",
    )
    body_timeout: float = _option(
        60.0, _seconds(0.1), "seconds between two parts of a request's body that the app waits for"
    )
    write_timeout: float = _option(
        60.0, _seconds(0.1), "seconds in which a client reads nothing of its answer"
    )
    keep_alive: float = _option(
        75.0,
        _seconds(0),
        "seconds an idle connection is kept open for a further request; 0: close after each",
    )
    max_moves: int = _option(
        8, _whole(1, 100), "moves of a connection for one request before it is refused (503)"
    )

    max_connections: int = _option(
        10_000, _whole(1, 10_000_000), "connections one worker holds before others have to wait"
    )

    # WebSockets of ASGI apps
    ws_max_size: int = _option(
        16 * 1024 * 1024, _whole(1, 1 << 31), "bytes of one message of a WebSocket (asgi)"
    )
    ws_ping_interval: float = _option(
        20.0, _seconds(0), "seconds between two pings of a WebSocket (asgi); 0: none"
    )
    ws_ping_timeout: float = _option(
        20.0,
        _seconds(0),
        "seconds to wait for the answer to such a ping before closing; 0: for ever",
    )

    # Workers
    prefetch: int = _option(
        4, _whole(1, 1000), "connections a worker may have picked up and not begun"
    )
    boot_timeout: float = _option(60.0, _seconds(0.1), "seconds a worker may take to start")
    timeout: float = _option(
        30.0, _seconds(0), "seconds a worker may be unresponsive before it is killed; 0: for ever"
    )
    graceful_timeout: float = _option(
        30.0, _seconds(0), "seconds that requests in hand are given to end when stopping"
    )

    drain_spread: float = _option(
        10.0,
        _seconds(0),
        "with session: seconds over which a worker that is replaced ends its Socket.IO sessions",
    )

    reload: bool = _option(False, _flag, "restart the workers when a Python file changes")
    max_requests: int = _option(
        0, _whole(0, 1_000_000_000), "requests after which a worker is replaced; 0: never"
    )
    max_requests_jitter: int = _option(
        0,
        _whole(0, 1_000_000_000),
        "with max_requests: at most so many more, drawn anew for each worker, so that they are not "
        "all replaced at once",
    )
    max_memory: int = _option(
        0, _memory, "bytes (or 512M, 2G) of memory at which a worker is replaced; 0: never"
    )
    spares: int = _option(
        0, _whole(0, 16), "processes that wait, with the app imported, to take a slot that dies"
    )

    # The server as a process
    pid: str | None = _option(None, _pid, "write the master's process id to this file")
    user: str | None = _option(
        None, _account, "run as this user, once the ports are bound (only root may)"
    )
    group: str | None = _option(
        None, _account, "run as this group (default: that of the user; only root may)"
    )
    umask: str | None = _option(
        None, _umask, "octal: rights that new files do not get (default: as it is)"
    )
    ctl: str = _option(
        "auto",
        _ctl,
        "path of the socket of sticky ctl, in a directory of mode 0700; auto is one of our own",
    )
    metrics: str | None = _option(
        None,
        _metrics,
        "serve the counters for Prometheus at HOST:PORT, PORT (on 127.0.0.1) or unix:PATH",
    )

    # Logs
    log_level: str = _option("info", _one_of(*LOG_LEVELS), "least severity that is logged")
    log_config: str | None = _option(
        None, _log_config, "configure logging from this file (.ini or .json), in all processes"
    )
    access_logfile: str | None = _option(
        None, _log_file, "write a line for each request to this file; - is the standard output"
    )
    access_logformat: str = _option(
        ACCESS_LOG_FORMAT, _log_format, "what such a line holds, in gunicorn's atoms"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = field.metadata["check"](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.balance != "address" and self.session is None:
            raise OptionError(
                f"option 'balance' is {self.balance!r}, but 'session' is None: without a session "
                "id to follow only the address keeps a client with its worker; add session='sid'"
            )
        if self.max_requests_jitter and not self.max_requests:
            raise OptionError(
                f"option 'max_requests_jitter' is {self.max_requests_jitter}, but 'max_requests' "
                "is 0: it says by how much that differs; add max_requests or leave it out"
            )
        place, _, name = (self.session or "").partition(":")
        if self.header == {"header": name, "cookie": "cookie"}.get(place):
            raise OptionError(
                f"option 'session' is {self.session!r}, and 'header' is {self.header!r}: the "
                "client's address and the session id cannot be in the same header"
            )
        if not self.proxy:
            if self.hops is not None:
                raise OptionError(
                    f"option 'hops' is {self.hops!r}, but 'proxy' is False: it says which address "
                    "of the proxy's header to take; add proxy=True or leave it out"
                )
            for bind in self.bind:
                if parse_bind(bind)[0] == "unix":
                    raise OptionError(
                        f"option 'bind' is {bind!r}, but 'proxy' is False: the clients of a unix "
                        "socket have no address to route by; with proxy=True a header has it"
                    )

    @property
    def peeks(self) -> bool:
        """Whether the bytes of a request say where it goes, and not the peer's address alone."""
        return self.proxy or self.session is not None

    @classmethod
    def make(cls, options: Options | Mapping[str, Any] | None = None, /, **changes: Any) -> Options:
        """Options from an Options object, a mapping or nothing, with changes by name.

        Raises:
            OptionError: an unknown name, or a value that is not allowed.
        """
        base = as_mapping(options) | changes
        known = [field.name for field in dataclasses.fields(cls)]
        for name in base:
            if name not in known:
                raise unknown_option(name, known)
        return cls(**base)

    def to_json(self) -> dict[str, Any]:
        """The settings as what JSON can carry; ``Options.make`` takes it back."""
        values = dataclasses.asdict(self)
        values["bind"] = list(self.bind)
        values["env"] = dict(self.env)
        values["seed"] = self.seed and self.seed.hex()
        return values


_ELSEWHERE = {
    "workers": "num",
    "proxy_header": "header",
    "listen": "bind",
    "reuse_port": "bind",
    "pidfile": "pid",
    "control_socket": "ctl",
}
"""Names that options have on the command line or in other servers."""


def nearest_option(name: str, known: Sequence[str]) -> str | None:
    """The option that was probably meant."""
    close = difflib.get_close_matches(name, [*known, *_ELSEWHERE], 1)
    return _ELSEWHERE.get(close[0], close[0]) if close else None


def unknown_option(name: object, known: Sequence[str]) -> OptionError:
    """The error for a name that no option has."""
    close = nearest_option(str(name), known)
    hint = f"; did you mean {close!r}?" if close else ""
    return OptionError(f"there is no option {name!r}{hint} (the options are {', '.join(known)})")


def as_mapping(options: Options | Mapping[str, Any] | None) -> dict[str, Any]:
    """Options as a user passes them, by the names they have here.

    The original's names in camel case are understood in a mapping, and so are its ``isSynced``
    and ``isSyncable`` beside ``sync``.
    """
    if isinstance(options, Options):
        return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise OptionError(
            f"the options are {options!r}: they must be a mapping or an Options object"
        )
    given = {_snake(name) if isinstance(name, str) else name: options[name] for name in options}
    for flag in ("is_synced", "is_syncable"):
        if flag in given:
            sync = given.get("sync")
            event = {"event": sync} if isinstance(sync, str) else {}
            event |= sync if isinstance(sync, Mapping) else {}
            given["sync"] = event | {"is_synced": given.pop(flag)}
    return given
