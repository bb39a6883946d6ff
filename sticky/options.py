"""Every setting: its default, its unit, and its check. Nothing else knows what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import checks, cpus
from .addresses import parse_bind
from .errors import OptionError
from .rules import AFFIX, MARK, PLAIN, Source, sources_of

MAX_WORKERS = 250
"""One message can carry 253 file descriptors (SCM_MAX_FD), and a worker is given one a slot."""

ACCESS_LOG_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
"""gunicorn's default."""

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
INTERFACES = ("auto", "factory", "wsgi", "asgi")
LOOPS = ("auto", "asyncio", "uvloop")
DEFAULT_TRUSTED = "127.0.0.1,::1,unix"
BALANCES = ("address", "least", "round-robin")


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
    return min(cpus.usable(), MAX_WORKERS)


def default_trusted() -> str:
    """``$FORWARDED_ALLOW_IPS``, as uvicorn and gunicorn have it, else the peers on this machine."""
    text = os.environ.get("FORWARDED_ALLOW_IPS", DEFAULT_TRUSTED)
    try:
        return checks.trusted("forwarded_allow_ips", text)
    except OptionError as error:
        raise OptionError(f"the environment variable FORWARDED_ALLOW_IPS: {error}") from None


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
    host: str = _option("127.0.0.1", checks.host, "address or host name to listen on")
    port: int = _option(8000, checks.whole(0, 65535), "TCP port; 0 lets the system choose one")
    bind: tuple[str, ...] = _option(
        (),
        checks.bind,
        "where to listen, instead of host and port: HOST:PORT, [IPV6]:PORT, unix:PATH, fd://N, "
        "fd://NAME (of a socket that systemd passes); "
        "can be given several times (default: 127.0.0.1:8000)",
    )
    num: int = _option(
        default_num,
        checks.whole(1, MAX_WORKERS),
        "number of worker processes (default: $WEB_CONCURRENCY, else the usable CPUs)",
    )
    worker_class: str = _option(
        "auto",
        checks.worker_class,
        "what runs the app: eventlet, gevent, threads, asgi; auto finds out what it needs",
    )
    threads: int | None = _option(
        None,
        checks.threads,
        "with worker class threads: the most there may be (default: one for each connection that "
        "needs one, at most max_connections)",
    )
    loop: str = _option(
        "auto",
        checks.one_of(*LOOPS),
        "with worker class asgi: the event loop, asyncio or uvloop; auto is uvloop where it is "
        "installed",
    )
    interface: str = _option(
        "auto",
        checks.one_of(*INTERFACES),
        "what is served: auto finds out; factory: call it; wsgi, asgi: it is the app itself",
    )
    app_dir: str | None = _option(None, checks.app_dir, "folder to look for the app's modules in")
    root_path: str = _option(
        "", checks.root_path, "path under which a proxy serves the app, which the app is told: /app"
    )
    env: Mapping[str, str] = _option(dict, checks.env, "NAME=VALUE for the workers' environment")

    # Routing
    proxy: bool = _option(
        False, checks.flag, "behind a reverse proxy: the client's address is in a header"
    )
    header: str = _option(
        "x-forwarded-for",
        checks.header,
        "with proxy: the header that holds the client's address",
    )
    forwarded_allow_ips: str = _option(
        default_trusted,
        checks.trusted,
        "peers whose X-Forwarded-For and X-Forwarded-Proto the app is told as client and scheme: "
        "addresses, networks, unix, or * for all; empty: nobody's (default: $FORWARDED_ALLOW_IPS, "
        "else 127.0.0.1,::1,unix)",
    )
    ignore_missing_header: bool = _option(
        False,
        checks.flag,
        "with proxy: route requests without the header by their TCP peer, not 400",
    )
    hops: int | None = _option(
        None,
        checks.hops,
        "with proxy: take the k-th address from the right (default: the leftmost)",
    )
    ipv4_prefix: int = _option(
        32, checks.whole(1, 32), "bits of an IPv4 address that name a client"
    )
    ipv6_prefix: int = _option(
        64, checks.whole(1, 128), "bits of an IPv6 address that name a client"
    )
    seed: bytes | None = _option(
        None,
        checks.seed,
        "16 hexadecimal digits; machines with the same seed choose the same workers",
    )

    session: tuple[str, ...] | str | None = _option(
        None,
        checks.session,
        "route by session id where a request has one: sid (Socket.IO), affinity (a cookie that the "
        "workers set themselves), header:NAME, query:NAME, cookie:NAME, path:/PATH/{id}/; can be "
        "given several times: the first that a request has decides",
    )
    affix: bool = _option(
        False,
        checks.flag,
        "with session in a header or a cookie: the ids are the app's own, and the worker puts what "
        "leads back to it before them on the way out, and takes it away on the way in",
    )
    affinity_cookie: str = _option(
        "sticky_worker", checks.cookie_name, "with session affinity: the name of the cookie"
    )
    affinity_attributes: str = _option(
        "SameSite=Lax",
        checks.cookie_attributes,
        "with session affinity: attributes of the cookie beside Path=/ and HttpOnly; in frames of "
        "other sites 'SameSite=None; Secure; Partitioned'",
    )
    session_hold: float = _option(
        10.0,
        checks.seconds(0),
        "with affinity and affix: seconds for which a worker that is replaced keeps a client "
        "behind its last request",
    )
    session_timeout: float = _option(
        300.0,
        checks.seconds(0),
        "with affinity and affix: seconds after which a worker that was replaced ends, whatever "
        "clients it still keeps",
    )
    balance: str = _option(
        "address",
        checks.one_of(*BALANCES),
        "with session: where requests without an id go: address (as without session), least (the "
        "worker with the fewest sessions), round-robin",
    )

    sync: str | None = _option(
        None, checks.sync, "the app releases each connection's first packet itself, by this event"
    )
    sync_timeout: float = _option(
        10.0, checks.seconds(0.1), "seconds the app may take to release a connection (503)"
    )

    # Limits on what clients may cost
    backlog: int = _option(2048, checks.whole(1, 65535), "connections the system holds unaccepted")
    defer_accept: bool = _option(
        True, checks.flag, "accept a connection when its first bytes are there (TCP_DEFER_ACCEPT)"
    )
    head_timeout: float = _option(
        10.0, checks.seconds(0.1), "seconds for a whole request head (408)"
    )
    max_head_size: int = _option(
        65536, checks.whole(1024, 65536), "bytes of a request head (431 when it is longer)"
    )
    max_pending_heads: int = _option(
        10_000,
        checks.whole(1, 1_000_000),
        "connections whose head is awaited; the oldest makes room",
    )
    max_queued: int = _option(
        10_000,
        checks.whole(1, 1_000_000),
        "connections that may wait for workers; past it the newest of the longest queue is "
        "answered 503",
    )
    max_mail: int = _option(
        8_388_608,
        checks.whole(65_536, 1 << 40),
        "bytes kept of events for one worker that does not keep up; what comes then is dropped",
    )
    queue_timeout: float = _option(
        10.0,
        checks.seconds(0.1),
        "seconds a connection may wait until its worker takes it, and at most one more (503)",
    )
    body_timeout: float = _option(
        60.0,
        checks.seconds(0.1),
        "seconds between two parts of a request's body that the app waits for",
    )
    write_timeout: float = _option(
        60.0, checks.seconds(0.1), "seconds in which a client reads nothing of its answer"
    )
    keep_alive: float = _option(
        75.0,
        checks.seconds(0),
        "seconds an idle connection is kept open for a further request; 0: close after each",
    )
    max_moves: int = _option(
        8, checks.whole(1, 100), "moves of a connection for one request before it is refused (503)"
    )

    max_connections: int = _option(
        10_000,
        checks.whole(1, 10_000_000),
        "connections one worker holds before others have to wait",
    )

    # WebSockets of ASGI apps
    ws_max_size: int = _option(
        16 * 1024 * 1024, checks.whole(1, 1 << 31), "bytes of one message of a WebSocket (asgi)"
    )
    ws_ping_interval: float = _option(
        20.0, checks.seconds(0), "seconds between two pings of a WebSocket (asgi); 0: none"
    )
    ws_ping_timeout: float = _option(
        20.0,
        checks.seconds(0),
        "seconds to wait for the answer to such a ping before closing; 0: for ever",
    )

    # Workers
    prefetch: int = _option(
        4, checks.whole(1, 1000), "connections a worker may have picked up and not begun"
    )
    boot_timeout: float = _option(60.0, checks.seconds(0.1), "seconds a worker may take to start")
    timeout: float = _option(
        30.0,
        checks.seconds(0),
        "seconds a worker may be unresponsive before it is killed; 0: for ever",
    )
    graceful_timeout: float = _option(
        30.0, checks.seconds(0), "seconds that requests in hand are given to end when stopping"
    )

    drain_spread: float = _option(
        10.0,
        checks.seconds(0),
        "with session: seconds over which a worker that is replaced ends its Socket.IO sessions",
    )

    reload: bool = _option(False, checks.flag, "restart the workers when a Python file changes")
    max_requests: int = _option(
        0, checks.whole(0, 1_000_000_000), "requests after which a worker is replaced; 0: never"
    )
    max_requests_jitter: int = _option(
        0,
        checks.whole(0, 1_000_000_000),
        "with max_requests: at most so many more, drawn anew for each worker, so that they are not "
        "all replaced at once",
    )
    max_memory: int = _option(
        0, checks.memory, "bytes (or 512M, 2G) of memory at which a worker is replaced; 0: never"
    )
    spares: int = _option(
        0,
        checks.whole(0, 16),
        "processes that wait, with the app imported, to take a slot that dies",
    )

    # The server as a process
    pid: str | None = _option(None, checks.pid, "write the master's process id to this file")
    user: str | None = _option(
        None, checks.account, "run as this user, once the ports are bound (only root may)"
    )
    group: str | None = _option(
        None, checks.account, "run as this group (default: that of the user; only root may)"
    )
    umask: str | None = _option(
        None, checks.umask, "octal: rights that new files do not get (default: as it is)"
    )
    ctl: str = _option(
        "auto",
        checks.ctl,
        "path of the socket of sticky ctl, in a directory of mode 0700; auto is one of our own",
    )
    metrics: str | None = _option(
        None,
        checks.metrics,
        "serve the counters for Prometheus at HOST:PORT, PORT (on 127.0.0.1) or unix:PATH",
    )

    # Logs
    log_level: str = _option("info", checks.one_of(*LOG_LEVELS), "least severity that is logged")
    log_config: str | None = _option(
        None,
        checks.log_config,
        "configure logging from this file (.ini or .json), in all processes",
    )
    access_logfile: str | None = _option(
        None,
        checks.log_file,
        "write a line for each request to this file; - is the standard output",
    )
    access_logformat: str = _option(
        ACCESS_LOG_FORMAT, checks.log_format, "what such a line holds, in gunicorn's atoms"
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
        for source in self.sources:
            if self.header == source.field.decode("ascii"):
                raise OptionError(
                    f"option 'session' is {self.session!r}, and 'header' is {self.header!r}: the "
                    "client's address and the session id cannot be in the same header"
                )
        if self.affix and not any(source.kind == AFFIX for source in self.sources):
            raise OptionError(
                f"option 'affix' is True, and 'session' is {self.session!r}: it is for ids of the "
                "app's in a header or a cookie; add session='header:NAME' or leave it out"
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
    def sessions(self) -> tuple[str, ...]:
        """What ``session`` says, as a tuple."""
        given = self.session or ()
        return (given,) if isinstance(given, str) else given

    @property
    def router_session(self) -> tuple[bytes, ...]:
        """The same, as ``core.Router`` takes it."""
        words = {checks.SID: "query:sid", checks.AFFINITY: f"mark:{self.affinity_cookie}"}
        return tuple(words.get(one, one).encode("ascii") for one in self.sessions)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The same, taken apart."""
        return sources_of(self.router_session, self.affix)

    @property
    def marks(self) -> bool:
        """Whether the workers mark their clients with a cookie."""
        return any(source.kind == MARK for source in self.sources)

    @property
    def tags(self) -> bool:
        """Whether there are ids that the workers make and tag themselves."""
        return any(source.kind != PLAIN for source in self.sources)

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
        values = dict(vars(self))
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
    given = {
        checks.snake(name) if isinstance(name, str) else name: options[name] for name in options
    }
    for flag in ("is_synced", "is_syncable"):
        if flag in given:
            sync = given.get("sync")
            event = {"event": sync} if isinstance(sync, str) else {}
            event |= sync if isinstance(sync, Mapping) else {}
            given["sync"] = event | {"is_synced": given.pop(flag)}
    return given
