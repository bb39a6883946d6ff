"""Every setting: its default, its unit, its check. Nothing else knows what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import OptionError

MAX_WORKERS = 250
"""One message can carry 253 file descriptors (SCM_MAX_FD), and a worker is given one a slot."""

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
WORKER_CLASSES = ("eventlet",)

# RFC 9110, 5.6.2: the characters a field name is made of.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def _cgroup_cpus(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that the cgroup (v2) of this process grants; infinity where nothing limits it."""
    try:
        path = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].splitlines()[0]
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


def _header(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value) or len(value) > 256:
        raise _fail(
            name,
            value,
            "the name of a header field (letters, digits and hyphens, no spaces and no colon), "
            "for example 'x-forwarded-for'",
        )
    return value.lower()


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


def _app_dir(name: str, value: Any) -> str | None:
    if value is None:
        return None
    path = os.fspath(value)
    if not Path(path).is_dir():
        raise _fail(name, value, "a folder that exists (modules are looked up in it)")
    return str(Path(path).absolute())


def _option(
    default: Any, check: Callable[[str, Any], Any], text: str, *, flag: str | None = None
) -> Any:
    """One setting. ``flag`` is its spelling on the command line where that is not its name."""
    metadata = {"check": check, "help": text, "flag": flag}
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
    num: int = _option(
        default_num,
        _whole(1, MAX_WORKERS),
        "number of worker processes (default: $WEB_CONCURRENCY, else the usable CPUs)",
    )
    worker_class: str = _option("eventlet", _one_of(*WORKER_CLASSES), "server that runs the app")
    app_dir: str | None = _option(None, _app_dir, "folder to look for the app's modules in")

    # Routing
    proxy: bool = _option(
        False, _flag, "behind a reverse proxy: the client's address is in a header"
    )
    header: str = _option(
        "x-forwarded-for",
        _header,
        "with proxy: the header that holds the client's address",
        flag="proxy-header",
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
        10_000, _whole(1, 1_000_000), "connections waiting for workers before accepting pauses"
    )
    queue_timeout: float = _option(
        10.0, _seconds(0.1), "seconds a connection may wait for its worker (503)"
    )
    keep_alive: float = _option(
        75.0, _seconds(0.1), "seconds an idle connection is kept open for a further request"
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

    log_level: str = _option("info", _one_of(*LOG_LEVELS), "least severity that is logged")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = field.metadata["check"](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if not self.proxy:
            for name in ("hops", "ignore_missing_header"):
                if getattr(self, name):
                    raise OptionError(
                        f"option {name!r} is {getattr(self, name)!r}, but 'proxy' is False: "
                        f"it says how to read the proxy's header; add proxy=True or leave it out"
                    )

    @classmethod
    def make(cls, options: Options | Mapping[str, Any] | None = None, /, **changes: Any) -> Options:
        """Options from an Options object, a mapping or nothing, with changes by name.

        Raises:
            OptionError: an unknown name, or a value that is not allowed.
        """
        if isinstance(options, Options):
            base = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
        elif options is None or isinstance(options, Mapping):
            base = dict(options or {})
        else:
            raise OptionError(
                f"the options are {options!r}: they must be a mapping or an Options object"
            )
        base.update(changes)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in base:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise OptionError(
                    f"there is no option {name!r}{hint} (the options are {', '.join(known)})"
                )
        return cls(**base)

    def to_json(self) -> dict[str, Any]:
        """The settings as what JSON can carry; ``Options.make`` takes it back."""
        values = dataclasses.asdict(self)
        values["seed"] = self.seed and self.seed.hex()
        return values
