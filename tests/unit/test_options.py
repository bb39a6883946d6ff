"""Every option: what is allowed, and what is said about what is not."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from sticky import cpus
from sticky.addresses import parse_bind
from sticky.checks import DEFAULT_SYNC_EVENT
from sticky.errors import OptionError, StickyError
from sticky.options import MAX_WORKERS, Options, default_num

NAMES = [field.name for field in dataclasses.fields(Options)]
INF, NAN = float("inf"), float("nan")


def whole(lowest, highest):
    return [lowest, highest], [lowest - 1, highest + 1, 1.5, "3", None, True, b"3"]


def seconds(lowest):
    return [lowest, 86400, 86400.0], [lowest - 0.01, 86401, -1, INF, NAN, "3", None, True]


FLAG = ([True, False], [1, 0, "yes", None])
HERE = str(Path(__file__).parent)

# By name: values that are allowed, and values that are not.
VALUES = {
    "host": (
        ["127.0.0.1", "::", "[::1]", "localhost", "example.org"],
        ["", "a b", "/x", None, 1, "\0"],
    ),
    "port": whole(0, 65535),
    "bind": (
        ["127.0.0.1:3000", ":3000", "[::1]:80", "fd://3", "fd://x", ["a:1", "b:2"], ("a:1",), []],
        ["a:b:3", "a:70000", "unix:", "fd://1", "fd://a b", 3, None, {"a"}, [3], "::1", ""],
    ),
    "num": whole(1, MAX_WORKERS),
    "worker_class": (
        ["auto", "eventlet", "gevent", "threads", "asgi", "gthread", "uvicorn"],
        ["Eventlet", "gunicorn", "sync", "thread", "", None, 1, ["asgi"]],
    ),
    "threads": ([None, 1, 10_000], [0, -1, 10_001, 1.0, "1", True]),
    "loop": (["auto", "asyncio", "uvloop"], ["", "trio", None, 1]),
    "root_path": (
        ["", "/app", "/a/b", "/a", "/\u00e4", "/a%20b"],
        ["/", "app", "/app/", "//", "/a b", "/a?b", "/a#b", "/a\n", "\n", None, 3, b"/a"],
    ),
    "forwarded_allow_ips": (
        ["", "*", "unix", "127.0.0.1, ::1", "10.0.0.0/8", ["10.0.0.1", "unix"], ()],
        ["x", "10.0.0.1/8", "127.0.0.1;::1", None, 3, [3], b"*", {"*"}],
    ),
    "body_timeout": seconds(0.1),
    "write_timeout": seconds(0.1),
    "ws_max_size": whole(1, 1 << 31),
    "ws_ping_interval": seconds(0),
    "ws_ping_timeout": seconds(0),
    "interface": (["auto", "factory", "wsgi", "asgi"], ["cgi", None]),
    "app_dir": ([HERE, Path(HERE), None], ["/no/such/folder", __file__, 3, b"/"]),
    "env": ([{}, {"A": "1"}], [{"A": 1}, {"": "1"}, {"A=B": "1"}, {"A": "\0"}, "A=1", None]),
    "proxy": FLAG,
    "header": (
        ["x-real-ip", "X-Forwarded-For", "x_y", "a" * 256],
        ["", "a b", "a:", "a\r\n", "é", "a" * 257, b"x-real-ip", None],
    ),
    "ignore_missing_header": FLAG,
    "hops": ([None, 1, 1000], [0, -1, 1001, 1.0, "1", True]),
    "ipv4_prefix": whole(1, 32),
    "ipv6_prefix": whole(1, 128),
    "seed": (
        [None, b"12345678", "0123456789abcDEF"],
        [b"1234567", b"123456789", "0123", "x" * 16, 1, bytearray(8)],
    ),
    "session": (
        [
            *(None, "sid", "affinity", "header:Mcp-Session-Id", "query:a", "cookie:b"),
            *("path:/session/{id}/", ["sid"], ("header:a", "affinity", "path:/{id}", "sid"), []),
        ],
        [
            "",
            "header",
            "header:",
            "header:a b",
            "cookie:a;b",
            "query:a b",
            "query:ä",
            "a:b",
            "mark:a",
            "path:/session/",
            "path:session/{id}",
            "path:/{id}/{id}",
            3,
            True,
            ["sid", "sid"],
            ["query:a", "query:b", "query:c", "query:d", "query:e"],
        ],
    ),
    "affix": FLAG,
    "affinity_cookie": (["a", "sticky_worker", "__Host-x"], ["", "a b", "a=b", "a;b", "é", None]),
    "affinity_attributes": (
        [
            *("SameSite=Lax", "samesite=strict", "None; Secure; Partitioned", "Secure"),
            *(
                "SameSite=None;Secure",
                "Domain=example.com; Max-Age=86400",
            ),
        ],
        ["", "Path=/x", "SameSite=Some", "None", "Partitioned", "Domain=a b", "Max-Age=0", None],
    ),
    "session_hold": seconds(0),
    "session_timeout": seconds(0),
    "balance": (["address", "least", "round-robin"], ["", "Least", "random", None, 3]),
    "sync": (
        [None, False, True, "an event", {"is_synced": True, "event": "x"}, {}],
        ["", 3, {"x": 1}],
    ),
    "sync_timeout": seconds(0.1),
    "backlog": whole(1, 65535),
    "defer_accept": FLAG,
    "head_timeout": seconds(0.1),
    "max_head_size": whole(1024, 65536),
    "max_pending_heads": whole(1, 1_000_000),
    "max_queued": whole(1, 1_000_000),
    "max_mail": whole(65_536, 1 << 40),
    "queue_timeout": seconds(0.1),
    "keep_alive": seconds(0),
    "max_moves": whole(1, 100),
    "max_connections": whole(1, 10_000_000),
    "prefetch": whole(1, 1000),
    "boot_timeout": seconds(0.1),
    "timeout": seconds(0),
    "graceful_timeout": seconds(0),
    "drain_spread": seconds(0),
    "reload": FLAG,
    "max_requests": whole(0, 1_000_000_000),
    "max_requests_jitter": whole(0, 1_000_000_000),
    "max_memory": (
        [0, 16 << 20, "16M", "512m", "2G", "2GiB", "1048576K", "0"],
        [-1, 1, "15M", "1T", "M", "", "1.5G", 1.5e9, None, True, (1 << 50) + 1],
    ),
    "spares": whole(0, 16),
    "pid": ([None, "app.pid", "/run/app.pid", Path(HERE)], ["", 3, b"/", "a\0"]),
    "user": ([None, "www-data", "0", 33], ["", "a b", "a:b", "a/b", "-a", -1, True, 2**32, b"a"]),
    "group": ([None, "www-data", "0", 33], ["", "a b", "a:b", "a/b", "-a", -1, True, 2**32, b"a"]),
    "umask": (
        [None, "0", "27", "0027", "0o27", 0o27, "777"],
        ["", "8", "1777", "0x1f", -1, 0o1000, True, 1.0, b"27"],
    ),
    "ctl": (
        ["auto", "", False, True, "no", "/run/app/ctl/socket", Path("/x")],
        ["/" + "x" * 107, "a\0b", 3, None, b"/x"],
    ),
    "metrics": (
        [None, 9100, "9100", ":9100", "0.0.0.0:9100", "[::1]:9100", "unix:/run/m"],
        ["", "localhost", "fd://3", 70000, "a:b", True, "::1", b":1", "unix:"],
    ),
    "log_level": (["debug", "critical"], ["DEBUG", "loud", None, 10]),
    "log_config": ([None], ["/no/such/file.ini", __file__, "", 3]),
    "access_logfile": ([None, "-", "/tmp/log"], ["", 3]),
    "access_logformat": (["%(h)s"], ["", None, 3]),
}
GOOD = [(name, value) for name, (good, _) in VALUES.items() for value in good]
BAD = [(name, value) for name, (_, bad) in VALUES.items() for value in bad]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)


def test_every_option_is_in_the_table_above():
    assert sorted(VALUES) == sorted(NAMES)


@pytest.mark.parametrize(("name", "value"), GOOD, ids=str)
def test_what_is_allowed_is_taken(name, value):
    others = {"proxy": True, "session": "header:any", "max_requests": 1}
    Options.make({name: value}, **{other: others[other] for other in others if other != name})


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_what_is_not_allowed_is_said_with_option_and_value_and_what_is(name, value):
    with pytest.raises(OptionError) as caught:
        Options.make(**{name: value})
    text = str(caught.value)
    assert repr(name) in text
    assert "must be" in text
    assert "\n" not in text
    one = value[0] if name == "bind" and value == [3] else value
    assert repr(one) in text
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("num", 0, f"a whole number from 1 to {MAX_WORKERS}"),
        ("head_timeout", 0, "a number of seconds from 0.1 to 86400"),
        ("proxy", 1, "True or False"),
        ("log_level", "loud", "one of debug, info, warning, error, critical"),
        ("header", "a b", "for example 'x-forwarded-for'"),
        ("seed", "0123", "16 hexadecimal digits"),
        ("host", "", "for example '127.0.0.1' or '::'"),
        ("app_dir", "/no/such/folder", "a folder that exists"),
        ("worker_class", "sync", "one of auto, eventlet, gevent, threads, asgi"),
        ("root_path", "/app/", "begins with a slash and does not end with one"),
        ("forwarded_allow_ips", "x", "for example '127.0.0.1,10.0.0.0/8,unix'"),
    ],
)
def test_the_message_says_what_is_allowed(name, value, says):
    with pytest.raises(OptionError, match=says):
        Options(**{name: value})


def test_an_option_error_is_ours_and_a_value_error():
    assert issubclass(OptionError, StickyError)
    assert issubclass(OptionError, ValueError)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("prefech", "prefetch"),
        ("head_time", "head_timeout"),
        ("prot", "port"),
        ("loglevel", "log_level"),
    ],
)
def test_an_unknown_name_is_answered_with_a_close_one_and_all_there_are(given, meant):
    with pytest.raises(OptionError) as caught:
        Options.make({given: 1})
    text = str(caught.value)
    assert f"there is no option {given!r}; did you mean {meant!r}?" in text
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize("name", ["zzz", "", 3, None])
def test_an_unknown_name_without_a_close_one_gets_no_guess(name):
    with pytest.raises(OptionError, match="there is no option") as caught:
        Options.make({name: 1})
    assert "did you mean" not in str(caught.value)


def test_options_are_made_from_a_mapping_from_options_or_from_nothing_with_changes():
    base = Options(num=3, proxy=True)
    assert Options.make(num=3, proxy=True) == base
    assert Options.make({"num": 3, "proxy": True}) == base
    assert Options.make({"num": 2}, num=3, proxy=True) == base
    assert Options.make(base) == base
    assert Options.make(base, num=4) == dataclasses.replace(base, num=4)
    assert Options.make(None, num=3, proxy=True) == base


@pytest.mark.parametrize("value", [3, "num=3", [("num", 3)]])
def test_what_is_no_mapping_is_said_so(value):
    with pytest.raises(OptionError, match="must be a mapping or an Options object"):
        Options.make(value)


def test_the_names_of_the_original_are_understood():
    made = Options.make(
        {"proxy": True, "ignoreMissingHeader": True, "header": "X-Real-IP", "num": 2}
    )
    assert made.ignore_missing_header
    assert made.header == "x-real-ip"


@pytest.mark.parametrize("event", [None, "mine"])
def test_sync_is_understood_as_the_original_writes_it(event):
    sync = {"isSynced": True} | ({"event": event} if event else {})
    assert Options.make({"sync": sync}).sync == (event or DEFAULT_SYNC_EVENT)
    assert Options.make({"sync": sync | {"isSynced": False}}).sync is None
    assert Options.make({"isSyncable": True}).sync == DEFAULT_SYNC_EVENT


def test_values_are_normalised():
    made = Options(
        num=1, host="[::1]", header="X-Real-IP", timeout=3, seed="00" * 8, app_dir=".", bind=":1"
    )
    assert (made.host, made.header, made.seed, made.bind) == ("::1", "x-real-ip", bytes(8), (":1",))
    assert isinstance(made.timeout, float)
    assert made.app_dir == os.getcwd()


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options(num=1).num = 2


def test_hops_without_a_proxy_is_a_contradiction_that_is_named():
    with pytest.raises(OptionError, match="'hops' is 2, but 'proxy' is False"):
        Options(hops=2)


def test_jitter_without_what_it_is_of_is_a_contradiction_that_is_named():
    with pytest.raises(OptionError, match="'max_requests_jitter' is 5, but 'max_requests' is 0"):
        Options(max_requests_jitter=5)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("max_memory", "512M", 512 << 20),
        ("max_memory", "2 GiB", 2 << 30),
        ("umask", "27", "0027"),
        ("umask", 0o27, "0027"),
        ("metrics", 9100, "127.0.0.1:9100"),
        ("metrics", ":9100", "127.0.0.1:9100"),
        ("metrics", "[::1]:9100", "[::1]:9100"),
        ("metrics", "unix:///run/m", "unix:/run/m"),
        ("user", 33, "33"),
        ("ctl", False, ""),
        ("ctl", True, "auto"),
        ("ctl", "socket", os.path.abspath("socket")),
        ("pid", "app.pid", os.path.abspath("app.pid")),
    ],
)
def test_what_can_be_written_in_several_ways_is_one_thing(name, given, value):
    made = Options(**{name: given})
    assert getattr(made, name) == value
    assert Options.make(json.loads(json.dumps(made.to_json()))) == made


def test_balance_without_a_session_is_a_contradiction_that_is_named():
    with pytest.raises(OptionError, match="'balance' is 'least', but 'session' is None"):
        Options(balance="least")


@pytest.mark.parametrize(
    ("header", "session"),
    [
        ("x-id", "header:X-Id"),
        ("X-Forwarded-For", "header:x-forwarded-for"),
        ("cookie", "cookie:a"),
    ],
)
def test_the_address_and_the_session_are_not_in_the_same_header(header, session):
    with pytest.raises(OptionError, match="cannot be in the same header"):
        Options(proxy=True, header=header, session=session)


def test_a_unix_socket_without_a_proxy_has_nothing_to_route_by():
    with pytest.raises(OptionError, match="no address to route by"):
        Options(bind="unix:/tmp/x")
    assert Options(bind="unix:/tmp/x", proxy=True).bind == ("unix:/tmp/x",)


def test_all_options_make_the_round_trip_through_json():
    made = Options(
        num=3,
        proxy=True,
        hops=2,
        seed=b"\x00\xff345678",
        bind=["[::1]:3000", "unix:/tmp/x"],
        env={"A": "1"},
        app_dir=HERE,
        sync=True,
        timeout=0,
    )
    assert Options.make(json.loads(json.dumps(made.to_json()))) == made
    default = Options(num=1)
    assert Options.make(json.loads(json.dumps(default.to_json()))) == default


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("127.0.0.1:3000", ("tcp", "127.0.0.1", 3000)),
        (":3000", ("tcp", "0.0.0.0", 3000)),
        ("localhost", ("tcp", "localhost", 8000)),
        ("[::1]:3000", ("tcp", "::1", 3000)),
        ("[fe80::1%eth0]:0", ("tcp", "fe80::1%eth0", 0)),
        ("[::]", ("tcp", "::", 8000)),
        ("unix:/run/app.sock", ("unix", "/run/app.sock", 0)),
        ("unix:///run/app.sock", ("unix", "/run/app.sock", 0)),
        ("unix:" + "x" * 107, ("unix", "x" * 107, 0)),
        ("fd://3", ("fd", "", 3)),
        ("fd://app.socket", ("fd", "app.socket", 0)),
    ],
)
def test_an_address_to_listen_on_is_understood(text, meaning):
    assert parse_bind(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "::1", "a:b", "[::1", "::1]:3", "a:65536", "unix:" + "x" * 108, "a b:1", "fd://2"]
)
def test_an_address_that_is_none_is_said_so(text):
    with pytest.raises(OptionError, match="'bind'"):
        parse_bind(text)


# -- how many workers -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "7", str(MAX_WORKERS)])
def test_web_concurrency_is_the_number_of_workers(text, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", text)
    assert Options().num == int(text)
    assert Options(num=2).num == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", str(MAX_WORKERS + 1), " 3"])
def test_a_wrong_web_concurrency_is_named(text, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", text)
    with pytest.raises(OptionError, match="WEB_CONCURRENCY") as caught:
        Options()
    assert repr(text) in str(caught.value)
    assert f"from 1 to {MAX_WORKERS}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "trusted"),
    [(None, "127.0.0.1,::1,unix"), ("", ""), ("*", "*"), ("10.0.0.0/8", "10.0.0.0/8")],
)
def test_the_variable_of_uvicorn_and_gunicorn_says_who_is_believed(text, trusted, monkeypatch):
    if text is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", text)
    assert Options(num=1).forwarded_allow_ips == trusted
    assert Options(num=1, forwarded_allow_ips="::1").forwarded_allow_ips == "::1"


def test_a_wrong_variable_of_theirs_is_named(monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "proxy.example")
    with pytest.raises(OptionError, match=r"FORWARDED_ALLOW_IPS.*'proxy.example'.*addresses"):
        Options(num=1)
    assert Options(num=1, forwarded_allow_ips="").forwarded_allow_ips == ""


@pytest.mark.parametrize(
    ("given", "meant"), [("gthread", "threads"), ("uvicorn", "asgi"), ("gevent", "gevent")]
)
def test_names_that_other_servers_give_a_worker_class_are_understood(given, meant):
    assert Options(num=1, worker_class=given).worker_class == meant


@pytest.mark.parametrize(
    ("affinity", "cgroup", "workers"),
    [(8, INF, 8), (8, 2.0, 2), (8, 2.9, 2), (1, 4.0, 1), (8, 0.5, 1), (999, INF, MAX_WORKERS)],
)
def test_the_default_is_the_usable_cpus_and_at_least_one(affinity, cgroup, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(cpus, "granted", lambda: cgroup)
    assert default_num() == workers


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_web_concurrency_counts_as_none(empty, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr(cpus, "granted", lambda: INF)
    if empty is not None:
        monkeypatch.setenv("WEB_CONCURRENCY", empty)
    assert default_num() == 3


class Cgroup:
    """A cgroup file system of its own, and what /proc/self/cgroup says."""

    def __init__(self, root: Path) -> None:
        self.root = root / "cgroup"
        self.root.mkdir()
        self.membership = root / "membership"

    def limits(self, **quotas):
        for path, content in quotas.items():
            folder = self.root / path.strip("_").replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.max").write_text(content + "\n")

    def cpus(self, membership):
        if membership is not None:
            self.membership.write_text(membership)
        return cpus.granted(self.root, self.membership)


@pytest.fixture
def cgroup(tmp_path):
    return Cgroup(tmp_path)


def test_the_cgroup_of_the_process_limits_the_cpus(cgroup):
    cgroup.limits(app="150000 100000")
    assert cgroup.cpus("0::/app\n") == 1.5


def test_the_tightest_limit_on_the_way_up_counts(cgroup):
    cgroup.limits(_="800000 100000", a="200000 100000", a__b="max 100000", a__b__c="400000 100000")
    assert cgroup.cpus("0::/a/b/c\n") == 2.0
    assert cgroup.cpus("0::/\n") == 8.0


def test_other_cgroups_do_not_count(cgroup):
    cgroup.limits(a="max 100000", b="100000 100000")
    assert cgroup.cpus("0::/a\n") == INF


@pytest.mark.parametrize("content", ["max 100000", "", "nonsense", "1 2 3"])
def test_without_a_readable_limit_there_is_none(content, cgroup):
    cgroup.limits(app=content)
    assert cgroup.cpus("0::/app\n") == INF


def test_version_one_and_a_missing_proc_have_no_limit(cgroup):
    assert cgroup.cpus("4:memory:/x\n1:cpu:/x\n") == INF
    assert cgroup.cpus("4:memory:/x\n0::/y\n") == INF
    cgroup.membership.unlink()
    assert cgroup.cpus(None) == INF


def test_the_real_cgroup_can_be_read():
    assert cpus.granted() > 0


def test_several_sources_are_a_tuple_and_one_is_text():
    assert Options(session=["affinity"]).session == "affinity"
    both = Options(session=["header:Mcp-Session-Id", "affinity"])
    assert both.session == ("header:mcp-session-id", "affinity")
    assert both.router_session == (b"header:mcp-session-id", b"mark:sticky_worker")
    assert Options.make(both.to_json()) == both
    assert Options(session=[]).session is None


def test_whether_ids_are_ours():
    assert not Options().tags
    assert not Options(session=["sid", "cookie:a"]).tags
    assert Options(session="affinity").tags
    assert Options(session="cookie:a", affix=True).tags


@pytest.mark.parametrize("session", [None, "sid", "affinity", ["query:a", "path:/{id}"]])
def test_an_affix_without_ids_of_the_app_is_a_contradiction_that_is_named(session):
    with pytest.raises(OptionError, match="option 'affix' is True"):
        Options(session=session, affix=True)


def test_a_cookie_for_frames_of_other_sites_is_written_in_full():
    wanted = "SameSite=None; Secure; Partitioned"
    assert Options(affinity_attributes="None; secure;partitioned").affinity_attributes == wanted
