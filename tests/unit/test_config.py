"""Where options come from: the call or the command line, the environment, a file."""

from __future__ import annotations

import os
import random
import tomllib

import pytest

from sticky.arguments import _FLAGS, Parser, add_options
from sticky.cli import _LEFT_OUT
from sticky.config import FIELDS, as_toml, from_environment, from_file, from_text, settings
from sticky.errors import OptionError
from sticky.master import listeners
from sticky.options import Options

# Each option's value as Python, and as text in the environment.
SAMPLES = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": (3000, None),  # never from the environment
    "bind": ((":3000", "[::1]:3000"), ":3000, [::1]:3000"),
    "num": (3, "3"),
    "worker_class": ("asgi", "asgi"),
    "threads": (7, "7"),
    "loop": ("uvloop", "uvloop"),
    "root_path": ("/app", "/app"),
    "forwarded_allow_ips": ("10.0.0.0/8,unix", "10.0.0.0/8,unix"),
    "interface": ("wsgi", "wsgi"),
    "app_dir": ("/", "/"),
    "env": ({"A": "1", "B": "x=y"}, "A=1,B=x=y"),
    "proxy": (True, "yes"),
    "header": ("x-real-ip", "X-Real-IP"),
    "ignore_missing_header": (True, "1"),
    "hops": (2, "2"),
    "ipv4_prefix": (24, "24"),
    "ipv6_prefix": (48, "48"),
    "seed": (bytes(range(8)), "0001020304050607"),
    "session": ("header:mcp-session-id", "header:Mcp-Session-Id"),
    "affix": (True, "yes"),
    "affinity_cookie": ("worker", "worker"),
    "affinity_attributes": ("SameSite=None; Secure", "None; Secure"),
    "balance": ("least", "least"),
    "sync": ("loaded", "loaded"),
    "defer_accept": (False, "off"),
    "reload": (True, "true"),
    "max_memory": (512 << 20, "512M"),
    "pid": ("/run/app.pid", "/run/app.pid"),
    "user": ("www-data", "www-data"),
    "group": ("33", "33"),
    "umask": ("0027", "27"),
    "ctl": ("", "off"),
    "metrics": ("127.0.0.1:9100", "9100"),
    "log_level": ("debug", "debug"),
    "access_logfile": ("-", "-"),
    "access_logformat": ("%(h)s", "%(h)s"),
}
NUMBERS = {
    name: (5 if field.type == "int" else 1.5, "5" if field.type == "int" else "1.5")
    for name, field in FIELDS.items()
    if name not in SAMPLES and str(field.type) in ("int", "float")
}
NUMBERS["max_head_size"] = (2048, "2048")
NUMBERS["max_mail"] = (1 << 20, "1048576")


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith(("STICKY_", "LISTEN_", "WEB_CON"))]:
        monkeypatch.delenv(name)
    (tmp_path / "log.ini").touch()


def samples(tmp_path):
    config = str(tmp_path / "log.ini")
    return {**SAMPLES, **NUMBERS, "log_config": (config, config)}


def test_every_option_has_a_sample(tmp_path):
    assert samples(tmp_path).keys() == FIELDS.keys()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_option_can_be_given_in_each_way_and_the_nearer_one_counts(name, tmp_path):
    value, text = samples(tmp_path)[name]
    others = {"proxy": True, "session": "header:any", "max_requests": 1}
    others.pop(name, None)
    assert getattr(settings({name: value} | others, environ={}), name) == value
    assert getattr(settings(environ={}, **{name: value}, **others), name) == value
    written = tmp_path / "sticky.toml"
    toml = as_toml(Options.make({name: value}, **others))
    line = next(line for line in toml.splitlines() if line.startswith(f"{name} = "))
    written.write_text(line)
    assert getattr(settings(others, config=written, environ={}), name) == value
    if text is None:
        return
    environ = {f"STICKY_{name.upper()}": text}
    assert getattr(settings(others, environ=environ), name) == value
    # The environment counts more than the file, and the call more than both.
    default = getattr(settings(environ={}), name)
    if default is not None and name != "bind":
        line = next(
            line for line in as_toml(Options()).splitlines() if line.startswith(f"{name} = ")
        )
        written.write_text(line)
        assert getattr(settings(others, config=written, environ=environ), name) == value
        assert getattr(settings({name: default} | others, environ=environ), name) == default


def test_the_port_is_never_read_from_the_environment():
    """Kubernetes sets these for services named "sticky" and "sticky-web"."""
    environ = {
        "STICKY_PORT": "tcp://10.0.0.1:80",
        "STICKY_PORT_80_TCP": "tcp://10.0.0.1:80",
        "STICKY_PORT_80_TCP_ADDR": "10.0.0.1",
        "STICKY_SERVICE_HOST": "10.0.0.1",
        "STICKY_SERVICE_PORT": "80",
        "STICKY_SERVICE_PORT_HTTP": "80",
        "STICKY_WEB_SERVICE_HOST": "10.0.0.1",
        "STICKY_WEB_PORT": "tcp://10.0.0.1:80",
        "STICKY_WEB_PORT_80_TCP_PROTO": "tcp",
    }
    assert settings(environ=environ) == Options()
    assert settings(environ={"STICKY_PORT": "4000"}).port == 8000


def test_what_is_no_option_is_left_alone():
    environ = {"STICKY_WORKER_ID": "3", "STICKY_PURE": "1", "STICKY_MY_OWN_THING": "x", "NUM": "9"}
    assert from_environment(environ) == {}


def test_one_way_of_saying_where_to_listen_replaces_the_other(tmp_path):
    path = tmp_path / "sticky.toml"
    path.write_text("host = '10.0.0.1'\nport = 1\n")
    found = settings(config=path, environ={"STICKY_BIND": ":2"})
    assert (found.bind, found.host, found.port) == ((":2",), "127.0.0.1", 8000)
    path.write_text("bind = ':1'\n")
    found = settings(config=path, environ={}, port=3)
    assert (found.bind, found.port) == ((), 3)
    found = settings(environ={"STICKY_BIND": ":2"}, port=3)
    assert (found.bind, found.port) == ((), 3)


def test_two_ways_of_saying_it_at_once_are_an_error():
    for given, more in [
        (None, {"bind": ":1", "port": 2}),
        ({"bind": ":1"}, {"port": 2}),
        (Options(bind=":1"), {"port": 2}),
    ]:
        with pytest.raises(OptionError, match="say where to listen in one way"):
            settings(given, environ={}, **more)


def test_an_options_object_has_a_value_for_everything():
    environ = {"STICKY_NUM": "7", "STICKY_PREFETCH": "9"}
    assert settings(Options(num=2), environ=environ) == Options(num=2)
    assert settings(Options(num=2), environ=environ, num=3).num == 3


def test_the_originals_names_are_understood_in_a_mapping_and_in_a_file(tmp_path):
    given = {"proxy": True, "ignoreMissingHeader": True, "isSynced": True, "sync": {"event": "go"}}
    found = settings(given, environ={"STICKY_IGNORE_MISSING_HEADER": "0"})
    assert (found.ignore_missing_header, found.sync) == (True, "go")
    assert settings({"isSyncable": True}, environ={}).sync == "sticky:sync"
    assert settings({"isSynced": False, "sync": "go"}, environ={}).sync is None
    assert settings({"isSynced": True, "sync": True}, environ={}).sync == "sticky:sync"
    path = tmp_path / "sticky.toml"
    path.write_text(
        "proxy = true\nignoreMissingHeader = false\nipv4-prefix = 24\n"
        "[sync]\nisSynced = true\nevent = 'go'\n"
    )
    found = settings(config=path, environ={"STICKY_IGNORE_MISSING_HEADER": "1"})
    assert (found.ignore_missing_header, found.ipv4_prefix, found.sync) == (True, 24, "go")


@pytest.mark.parametrize(("text", "value"), [("1", "sticky:sync"), ("off", None), ("go", "go")])
def test_sync_can_be_switched_on_by_a_word(text, value):
    assert settings(environ={"STICKY_SYNC": text}).sync == value


def test_the_file_can_be_named_in_the_environment(tmp_path):
    path = tmp_path / "sticky.toml"
    path.write_text("num = 3\n")
    assert settings(environ={"STICKY_CONFIG": str(path)}).num == 3
    other = tmp_path / "other.toml"
    other.write_text("num = 4\n")
    assert settings(config=other, environ={"STICKY_CONFIG": str(path)}).num == 4


def test_what_a_file_names_is_beside_it(tmp_path, monkeypatch):
    (tmp_path / "app").mkdir()
    path = tmp_path / "sticky.toml"
    path.write_text("app_dir = 'app'\nlog-config = 'log.ini'\n")
    monkeypatch.chdir("/")
    found = settings(config=path, environ={})
    assert found.app_dir == str(tmp_path / "app")
    assert found.log_config == str(tmp_path / "log.ini")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("num = 0", "in '{path}': option 'num' is 0"),
        ("num = 'many'", "in '{path}': option 'num' is 'many'"),
        ("app_dir = 3", "in '{path}': option 'app_dir' is 3"),
        ("nun = 3", "in '{path}': there is no option 'nun'; did you mean 'num'?"),
        ("workers = 3", "in '{path}': there is no option 'workers'; did you mean 'num'?"),
        ("[server]\nnum = 3", "in '{path}': there is no option 'server'"),
        ("num =", "the file '{path}' is not TOML"),
        ("num = 3\nnum = 4", "the file '{path}' is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(content, says, tmp_path):
    path = tmp_path / "sticky.toml"
    path.write_text(content)
    with pytest.raises(OptionError) as raised:
        settings(config=path, environ={})
    assert says.format(path=path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(content, tmp_path):
    path = tmp_path / "sticky.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match=str(path)):
        from_file(path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("STICKY_NUM", "0", r"in the environment \(STICKY_NUM\): option 'num' is 0"),
        ("STICKY_NUM", "many", "option 'num' is 'many'"),
        ("STICKY_PROXY", "maybe", "variable STICKY_PROXY is 'maybe': it must be one of 1, true"),
        ("STICKY_ENV", "A", "variable STICKY_ENV is 'A': it must be written NAME=VALUE"),
        ("STICKY_TIMEOUT", "soon", "option 'timeout' is 'soon'"),
        ("STICKY_NUN", "3", "variable STICKY_NUN names no option; did you mean STICKY_NUM"),
        ("STICKY_WORKERS", "3", "did you mean STICKY_NUM"),
        ("STICKY_PROT", "3", "did you mean STICKY_BIND"),
        ("STICKY_CONFG", "x", "did you mean STICKY_CONFIG"),
    ],
)
def test_what_is_wrong_in_the_environment_is_said_with_the_variable(name, text, says):
    with pytest.raises(OptionError, match=says) as raised:
        settings(environ={name: text})
    assert "\n" not in str(raised.value)


def test_a_contradiction_between_two_sources_is_found_at_the_end(tmp_path):
    path = tmp_path / "sticky.toml"
    path.write_text("hops = 1\n")
    with pytest.raises(OptionError, match="'hops' is 1, but 'proxy' is False"):
        settings(config=path, environ={})
    assert settings(config=path, environ={"STICKY_PROXY": "1"}).hops == 1


def test_what_is_printed_says_the_same_when_it_is_read_again(tmp_path):
    made = Options.make(
        {
            name: value
            for name, (value, _) in samples(tmp_path).items()
            if name not in ("host", "port")
        }
    )
    special = 'a "quote", \\ a back slash, \t a tab, ä, 😀, \x7f and \x01'
    for options in (
        made,
        Options(),
        Options(host="::1", port=0),
        Options(access_logformat=special, env={"A b": special}, bind=()),
    ):
        path = tmp_path / "printed.toml"
        path.write_text(as_toml(options))
        assert settings(config=path, environ={}) == options
        assert tomllib.loads(as_toml(options))


def test_text_for_an_option_that_may_be_nothing_can_be_empty():
    assert from_text("hops", "") is None
    assert from_text("seed", "") is None


def test_systemds_descriptors_are_for_the_process_that_they_name():
    mine = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}
    assert listeners.from_systemd(mine) == ["fd://3", "fd://4"]
    assert settings(environ=mine).bind == ("fd://3", "fd://4")
    assert settings(environ=mine, port=3).bind == ()
    for other in ({"LISTEN_PID": "1"}, {"LISTEN_FDS": "x"}, {"LISTEN_FDS": ""}):
        assert listeners.from_systemd(mine | other) == []


def test_systemds_descriptors_can_be_named():
    mine = {"LISTEN_FDS": "4", "LISTEN_PID": str(os.getpid())}
    mine["LISTEN_FDNAMES"] = "web:admin:web:sticky-127.0.0.1-3000"
    assert settings(environ=mine, bind="fd://admin").bind == ("fd://4",)
    assert settings(environ=mine, bind=["fd://web", ":3000"]).bind == ("fd://3", "fd://5", ":3000")
    # What it has only kept for us counts where we want to listen there.
    assert settings(environ=mine).bind == ("fd://3", "fd://4", "fd://5")
    # Whether there is one of the name is seen where the server is started.
    assert settings(environ=mine, bind="fd://other").bind == ("fd://other",)
    assert settings(environ={}, bind="fd://web").bind == ("fd://web",)


# -- typing errors ---------------------------------------------------------------------------------


def typing_errors(name):
    """One letter missing, twice, another one, or two exchanged; the first letter is right."""
    dice = random.Random(name)
    for at in range(1, len(name)):
        yield name[:at] + name[at + 1 :]
        yield name[: at + 1] + name[at:]
        yield name[:at] + dice.choice("qxzj") + name[at + 1 :]
        yield name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_typing_error_in_any_option_names_it_and_the_nearest(name, tmp_path):
    wrong_ones = [w for w in typing_errors(name) if w not in FIELDS and len(w) > 2]
    assert wrong_ones
    hits = 0  # of two that are equally near (hops, host) it may be the other
    for wrong in wrong_ones:
        with pytest.raises(OptionError) as raised:
            settings(environ={}, **{wrong: 1})
        said = str(raised.value)
        assert f"there is no option {wrong!r}; did you mean '" in said
        hits += f"did you mean {name!r}?" in said
        path = tmp_path / "sticky.toml"
        path.write_text(f"{wrong} = 1\n")
        with pytest.raises(OptionError, match=f"there is no option '{wrong}'; did you mean"):
            settings(config=path, environ={})
        with pytest.raises(OptionError, match=f"STICKY_{wrong.upper()} names no option") as raised:
            settings(environ={f"STICKY_{wrong.upper()}": "1"})
        assert "did you mean STICKY_" in str(raised.value)
    assert hits >= 0.6 * len(wrong_ones), (hits, wrong_ones)


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - set(_LEFT_OUT)))
def test_a_typing_error_in_any_flag_names_it_and_the_nearest(name, capsys):
    parser = Parser(prog="sticky", allow_abbrev=False)
    add_options(parser, [name for name in FIELDS if name not in _LEFT_OUT])
    flags = _FLAGS.get(name, ("--" + name.replace("_", "-"),))
    for flag in flags:
        for wrong in typing_errors(flag.removeprefix("--")):
            if not flag.startswith("--") or f"--{wrong}" in parser._option_string_actions:
                continue
            with pytest.raises(SystemExit) as raised:
                parser.parse_args([f"--{wrong}", "3"])
            assert raised.value.code == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert f"there is no option --{wrong}; did you mean --" in said


def test_other_servers_names_are_answered_with_ours(capsys):
    parser = Parser(prog="sticky", allow_abbrev=False)
    add_options(parser, [name for name in FIELDS if name not in _LEFT_OUT])
    for theirs, ours in {
        "--port": "--bind",
        "--host": "--bind",
        "--worker": "--workers",
        "--header": "--proxy-header",
        "--keepalive": "--keep-alive",
        "--graceful_timeout": "--graceful-timeout",
    }.items():
        with pytest.raises(SystemExit):
            parser.parse_args([theirs, "3"])
        assert f"there is no option {theirs}; did you mean {ours}?" in capsys.readouterr().err
