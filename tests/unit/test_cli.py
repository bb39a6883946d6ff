"""The command line: what becomes of its words. Nothing is started here."""

from __future__ import annotations

import os
import sys
import tomllib

import pytest

from sticky import __version__, cli
from sticky.config import FIELDS
from sticky.master import master
from sticky.options import Options

# What each option is given as on the command line, and what it is then.
FLAGS = {
    "bind": (["-b", ":3000", "--bind", "[::1]:3000"], (":3000", "[::1]:3000")),
    "num": (["-w", "3"], 3),
    "worker_class": (["-k", "eventlet"], "eventlet"),
    "threads": (["--threads", "7"], 7),
    "loop": (["--loop", "asyncio"], "asyncio"),
    "root_path": (["--root-path", "/app"], "/app"),
    "forwarded_allow_ips": (["--forwarded-allow-ips", "*"], "*"),
    "body_timeout": (["--body-timeout", "5"], 5.0),
    "write_timeout": (["--write-timeout", "5"], 5.0),
    "ws_max_size": (["--ws-max-size", "99"], 99),
    "ws_ping_interval": (["--ws-ping-interval", "0"], 0.0),
    "ws_ping_timeout": (["--ws-ping-timeout", "5"], 5.0),
    "interface": (["--interface", "wsgi"], "wsgi"),
    "app_dir": (["--app-dir", "/"], "/"),
    "env": (["-e", "A=1", "--env", "B=x=y,z"], {"A": "1", "B": "x=y,z"}),
    "proxy": (["--proxy"], True),
    "header": (["--proxy-header", "X-Real-IP"], "x-real-ip"),
    "ignore_missing_header": (["--ignore-missing-header"], True),
    "hops": (["--hops", "2"], 2),
    "ipv4_prefix": (["--ipv4-prefix", "24"], 24),
    "ipv6_prefix": (["--ipv6-prefix", "48"], 48),
    "seed": (["--seed", "00112233445566ff"], bytes.fromhex("00112233445566ff")),
    "session": (["--session", "cookie:id"], "cookie:id"),
    "affix": (["--affix"], True),
    "affinity_cookie": (["--affinity-cookie", "w"], "w"),
    "affinity_attributes": (["--affinity-attributes", "None; Secure"], "SameSite=None; Secure"),
    "session_hold": (["--session-hold", "5"], 5.0),
    "session_timeout": (["--session-timeout", "60"], 60.0),
    "balance": (["--balance", "round-robin"], "round-robin"),
    "sync": (["--sync", "ready"], "ready"),
    "sync_timeout": (["--sync-timeout", "3"], 3.0),
    "backlog": (["--backlog", "9"], 9),
    "defer_accept": (["--no-defer-accept"], False),
    "head_timeout": (["--head-timeout", "1.5"], 1.5),
    "max_head_size": (["--max-head-size", "2048"], 2048),
    "max_pending_heads": (["--max-pending-heads", "7"], 7),
    "max_queued": (["--max-queued", "7"], 7),
    "max_mail": (["--max-mail", "70000"], 70000),
    "queue_timeout": (["--queue-timeout", "7"], 7.0),
    "keep_alive": (["--keep-alive", "5"], 5.0),
    "max_moves": (["--max-moves", "3"], 3),
    "max_connections": (["--max-connections", "5"], 5),
    "prefetch": (["--prefetch", "2"], 2),
    "boot_timeout": (["--boot-timeout", "5"], 5.0),
    "timeout": (["--timeout", "0"], 0.0),
    "graceful_timeout": (["--graceful-timeout", "0"], 0.0),
    "drain_spread": (["--drain-spread", "3"], 3.0),
    "reload": (["--reload"], True),
    "max_requests": (["--max-requests", "1000"], 1000),
    "max_requests_jitter": (["--max-requests-jitter", "50"], 50),
    "max_memory": (["--max-memory", "512M"], 512 << 20),
    "spares": (["--spares", "1"], 1),
    "pid": (["--pid", "/run/app.pid"], "/run/app.pid"),
    "user": (["--user", "www-data"], "www-data"),
    "group": (["--group", "33"], "33"),
    "umask": (["--umask", "027"], "0027"),
    "ctl": (["--ctl", "/run/app/ctl/socket"], "/run/app/ctl/socket"),
    "metrics": (["--metrics", ":9100"], "127.0.0.1:9100"),
    "log_level": (["--log-level", "debug"], "debug"),
    "log_config": (["--log-config", "LOG_CONFIG"], "LOG_CONFIG"),
    "access_logfile": (["--access-logfile", "-"], "-"),
    "access_logformat": (["--access-logformat", "%(h)s"], "%(h)s"),
}
NOT_THERE = {"host", "port"}  # --bind says both


class Ran(Exception):
    """The master would run now."""


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def run(options, program):
        raise Ran(options, program)

    monkeypatch.setattr(master, "run", run)
    for name in [name for name in os.environ if name.startswith(("STICKY_", "LISTEN_", "WEB_CON"))]:
        monkeypatch.delenv(name)


def options_of(*words, target="app:make"):
    with pytest.raises(Ran) as caught:
        cli.main([*words, target])
    return caught.value.args[0]


def refused(capsys, *words):
    """The one line that these words are answered with."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sticky: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err


def test_every_option_is_in_the_table_above():
    assert FLAGS.keys() | NOT_THERE == FIELDS.keys()


@pytest.mark.parametrize("name", FLAGS)
def test_every_option_has_a_flag(name, tmp_path):
    words, value = FLAGS[name]
    if name == "log_config":
        path = tmp_path / "log.ini"
        path.touch()
        words, value = [words[0], str(path)], str(path)
    if name in ("hops", "header", "ignore_missing_header"):
        words = [*words, "--proxy"]
    if name == "balance":
        words = [*words, "--session", "sid"]
    if name == "affix":
        words = [*words, "--session", "header:x-id"]
    if name == "max_requests_jitter":
        words = [*words, "--max-requests", "1000"]
    assert getattr(options_of(*words), name) == value


def test_without_flags_all_options_are_the_defaults():
    assert options_of() == Options()


@pytest.mark.parametrize("flag", ["-w", "--workers", "--num"])
def test_the_number_of_workers_has_the_names_people_know(flag):
    assert options_of(flag, "3").num == 3
    assert options_of(f"{flag}3" if flag == "-w" else f"{flag}=3").num == 3


@pytest.mark.parametrize(
    "bind",
    ["127.0.0.1:3000", ":3000", "localhost", "[::1]:3000", "[::]", "fd://3", "fd://app.socket"],
)
def test_every_form_of_an_address_is_taken(bind):
    assert options_of("-b", bind).bind == (bind,)


def test_a_unix_socket_is_taken_behind_a_proxy(capsys):
    assert options_of("-b", "unix:/tmp/x", "--proxy").bind == ("unix:/tmp/x",)
    assert "'proxy' is False" in refused(capsys, "-b", "unix:/tmp/x", "app:make")


def test_what_the_workers_run_is_the_named_target():
    with pytest.raises(Ran) as caught:
        cli.main(["app.web:make.it"])
    program = caught.value.args[1]
    assert program.target == "app.web:make.it"
    assert program.script is program.module is None
    assert program.argv == sys.argv
    assert all(os.path.isabs(entry) for entry in program.path)


def test_the_status_of_the_master_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(master, "run", lambda options, program: 4)
    with pytest.raises(SystemExit) as caught:
        cli.main(["app:make"])
    assert caught.value.code == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-w", "0", "app:make"], "option 'num' is 0: it must be"),
        (["-w", "many", "app:make"], "option 'num' is 'many': it must be"),
        (["--timeout", "soon", "app:make"], "option 'timeout' is 'soon'"),
        (["--timeout", "nan", "app:make"], "option 'timeout' is nan"),
        (["--hops", "1", "app:make"], "'proxy' is False"),
        (["-b", "a:b:c", "app:make"], "option 'bind' is 'a:b:c'"),
        (["-b", ":99999", "app:make"], "option 'bind' is ':99999'"),
        (["-e", "A", "app:make"], "NAME=VALUE"),
        (["app"], "'module:factory'"),
        (["app:"], "'module:factory'"),
        (["a-b:make"], "'module:factory'"),
        ([], "module:factory"),
        (["app:make", "--wrokers", "3"], "--wrokers"),
        (["app:make", "--work", "3"], "--work"),  # no abbreviations: they break when options come
        (["app:make", "-w"], "expected one argument"),
        (["-c", "/no/such/file", "app:make"], "'/no/such/file' cannot be read"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line_and_the_status_is_two(words, says, capsys):
    assert says in refused(capsys, *words)


def test_the_socket_of_ctl_can_be_left_out(monkeypatch):
    assert options_of().ctl == "auto"
    assert options_of("--no-ctl").ctl == ""
    for text in ("0", "no", "off", "false", ""):
        monkeypatch.setenv("STICKY_CTL", text)
        assert options_of().ctl == ""
    monkeypatch.setenv("STICKY_CTL", "1")
    assert options_of().ctl == "auto"


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, (words, _) in FLAGS.items():
        assert words[0] in text, name
        described = " ".join(FIELDS[name].metadata["help"].split())
        # Lines may break at a hyphen too.
        assert described.replace(" ", "") in text.replace(" ", ""), name
    assert "--no-defer-accept" in text
    assert "(default: 65536)" in text
    assert "(default: 75)" in text
    for word in ("TERM", "INT", "module:factory", "Exit status"):
        assert word in text


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sticky {__version__}\n"


def test_the_environment_comes_after_the_flags_and_before_the_file(monkeypatch, tmp_path):
    path = tmp_path / "sticky.toml"
    path.write_text("num = 1\nprefetch = 1\nbacklog = 1\n")
    monkeypatch.setenv("STICKY_NUM", "2")
    monkeypatch.setenv("STICKY_PREFETCH", "2")
    made = options_of("-c", str(path), "-w", "3")
    assert (made.num, made.prefetch, made.backlog) == (3, 2, 1)


def test_the_options_can_be_checked_and_printed_without_running(capsys):
    for words in (["--check-config"], ["--print-config", "-w", "3"]):
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, "app:make"])
        assert caught.value.code == 0
    assert tomllib.loads(capsys.readouterr().out)["num"] == 3
    assert "'num' is 0" in refused(capsys, "--check-config", "-w", "0", "app:make")


def test_it_is_called_by_the_name_that_it_was_started_with(capsys):
    with pytest.raises(SystemExit):
        cli.main(["-w", "0", "app:make"], prog="python -m sticky")
    assert capsys.readouterr().err.startswith("python -m sticky: option 'num'")


def test_several_sessions_are_several_sources():
    words = ["--session", "header:x-id", "--session", "affinity"]
    assert options_of(*words).session == ("header:x-id", "affinity")
