"""Lines of the access log, in gunicorn's format."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import threading

import pytest

from sticky import outlet
from sticky.errors import OptionError
from sticky.options import ACCESS_LOG_FORMAT, Options
from sticky.worker.accesslog import LONGEST_LINE, AccessLog, _Clock, _user


def line(tmp_path, form, **changes):
    path = tmp_path / "access.log"
    log = AccessLog(Options(num=1, access_logfile=str(path), access_logformat=form))
    request = {
        "client": "203.0.113.7",
        "method": "GET",
        "target": "/path?a=1",
        "protocol": "HTTP/1.1",
        "status": 200,
        "size": 1234,
        "seconds": 1.5,
        "request": {"user-agent": "curl/8", "referer": "http://here/", "x-forwarded-for": "::1"},
        "response": [("Content-Type", "text/plain"), ("X-Worker", "3")],
        "environ": {"REMOTE_ADDR": "203.0.113.7", "wsgi.url_scheme": "http"},
    }
    log.write(**{**request, **changes})
    log.close()
    return path.read_text()


ATOMS = {
    "%(h)s": "203.0.113.7",
    "%(l)s": "-",
    "%(u)s": "-",
    "%(r)s": "GET /path?a=1 HTTP/1.1",
    "%(m)s": "GET",
    "%(U)s": "/path",
    "%(q)s": "a=1",
    "%(H)s": "HTTP/1.1",
    "%(s)s": "200",
    "%(B)s": "1234",
    "%(b)s": "1234",
    "%(f)s": "http://here/",
    "%(a)s": "curl/8",
    "%(T)s": "1",
    "%(M)s": "1500",
    "%(D)s": "1500000",
    "%(L)s": "1.500000",
    "%(p)s": f"<{os.getpid()}>",
    "%({x-forwarded-for}i)s": "::1",
    "%({X-Forwarded-For}i)s": "::1",
    "%({content-type}o)s": "text/plain",
    "%({X-Worker}o)s": "3",
    "%({wsgi.url_scheme}e)s": "http",
    "%({REMOTE_ADDR}e)s": "203.0.113.7",
    "%({no-such}i)s": "-",
    "%({no-such}o)s": "-",
    "%({NO_SUCH}e)s": "-",
    "%(Z)s": "-",
    "100 %%": "100 %",
}


@pytest.mark.parametrize(("atom", "value"), ATOMS.items(), ids=ATOMS)
def test_an_atom_has_the_value_that_gunicorn_gives_it(atom, value, tmp_path):
    assert line(tmp_path, atom) == value + "\n"


def test_the_default_is_gunicorns_line(tmp_path):
    text = line(tmp_path, ACCESS_LOG_FORMAT)
    when = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    rest = re.escape('"GET /path?a=1 HTTP/1.1" 200 1234 "http://here/" "curl/8"')
    assert re.fullmatch(rf"203\.0\.113\.7 - - {when} {rest}\n", text)


def test_what_is_not_known_is_a_hyphen(tmp_path):
    form = "%(h)s %(b)s %(f)s %(a)s"
    assert line(tmp_path, form, client="", size=None, request={}) == "- - - -\n"


@pytest.mark.parametrize(
    ("authorization", "user"),
    [
        ("Basic " + base64.b64encode(b"ada:secret").decode(), "ada"),
        ("basic " + base64.b64encode(b"ada:secret").decode(), "ada"),
        ("Basic " + base64.b64encode(b":secret").decode(), "-"),
        ("Basic " + base64.b64encode(b"\xff:x").decode(), "-"),
        ("Basic " + base64.b64encode(b"no colon").decode(), "no colon"),
        ("Basic " + base64.b64encode("z\u00f6e:x".encode()).decode(), "z\u00f6e"),
        ("Basic " + base64.b64encode("z\u00f6e:x".encode("latin-1")).decode(), "-"),
        ("Basic " + base64.b64encode(b'a"b\\\r\n:x').decode(), 'a\\"b\\\\\\r\\n'),
        ("Basic " + base64.b64encode(b"a" * 3000 + b":x").decode(), "a" * 1000 + "..."),
        ("Basic x", "-"),
        ("Basic", "-"),
        ("Basic ", "-"),
        ("Basic =", "-"),
        ("Basic ====", "-"),
        ("Basic \xff\xfe", "-"),
        ("Basic YWRh\u00e9", "-"),
        ("Basic \udcff", "-"),
        ("Basic \x00\x01", "-"),
        ("Basic YWRhOng", "-"),
        ("Basic YWRhOng= ", "ada"),
        ("\u00df " + base64.b64encode(b"ada:x").decode(), "-"),
        ("Bearer secret", "-"),
        ("", "-"),
    ],
)
def test_the_user_is_that_of_basic_authentication(authorization, user, tmp_path):
    assert line(tmp_path, "%(u)s", request={"authorization": authorization}) == user + "\n"


def test_no_authorization_whatever_makes_a_traceback(tmp_path):
    rng = random.Random(1)
    letters = [*map(chr, range(256)), "=", "=", "\udc80", "\u4e16"]
    for _ in range(2000):
        value = "Basic " + "".join(rng.choices(letters, k=rng.randrange(12)))
        assert _user(value).isprintable()


EVIL = 'x" 200\r\n10.0.0.1 - - "GET / \x1b[31m\x00\u2028\x85\\'
ANY = ["%(h)s", "%(a)s", "%(f)s", "%(r)s", "%(m)s", "%(U)s", "%(q)s", "%(H)s"]
ANY += ["%({x-evil}i)s", "%({x-evil}o)s", "%({evil}e)s"]


@pytest.mark.parametrize("atom", ANY)
def test_no_client_writes_a_line_of_its_own_or_ends_a_quotation(atom, tmp_path):
    fields = {"user-agent": EVIL, "referer": EVIL, "x-evil": EVIL}
    evil = {"client": EVIL, "method": EVIL, "target": f"/{EVIL}?{EVIL}", "protocol": EVIL}
    evil |= {"response": [("X-Evil", EVIL)], "environ": {"evil": EVIL}}
    text = line(tmp_path, f'"{atom}"', request=fields, **evil)
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    assert re.fullmatch(r'"([^"\\]|\\.)*"', text[:-1])


@pytest.mark.parametrize("atom", ANY)
def test_no_client_fills_the_log(atom, tmp_path):
    much = "\x00" * 60_000
    fields = {"user-agent": much, "referer": much, "x-evil": much}
    evil = {"client": much, "method": much, "target": f"/{much}?{much}", "protocol": much}
    evil |= {"response": [("X-Evil", much)], "environ": {"evil": much}}
    text = line(tmp_path, atom, request=fields, **evil)
    assert len(text) < 3100
    assert text.endswith("...\n")


def test_a_line_of_many_atoms_is_bounded_too(tmp_path):
    text = line(tmp_path, "%(a)s" * 20, request={"user-agent": "x" * 5000})
    assert len(text) == LONGEST_LINE + 1
    assert text.endswith("...\n")


def test_bytes_that_are_no_text_are_written_all_the_same(tmp_path):
    assert line(tmp_path, "%(a)s", request={"user-agent": "\udc80\xe9"}) == "\\udc80\xe9\n"


def test_of_the_tables_only_those_are_read_that_the_format_names(tmp_path):
    assert line(tmp_path, "%(h)s %(s)s", request=None, response=None, environ=None) != ""
    names = {
        "%(h)s": (False, False, False),
        "%(a)s": (True, False, False),
        "%(u)s": (True, False, False),
        "%({x}i)s": (True, False, False),
        "%({x}o)s": (False, True, False),
        "%({x}e)s": (False, False, True),
        ACCESS_LOG_FORMAT: (True, False, False),
    }
    for form, named in names.items():
        log = AccessLog(Options(num=1, access_logfile="-", access_logformat=form))
        assert (log.names_request, log.names_response, log.names_environ) == named


def test_the_last_of_several_fields_counts(tmp_path):
    response = [("A", "1"), ("a", "2"), ("b", "3")]
    assert line(tmp_path, "%({A}o)s", response=response) == "2\n"


def test_the_time_goes_on(tmp_path, monkeypatch):
    clock = _Clock()
    now = [1_000_000_000.5]
    monkeypatch.setattr("time.time", lambda: now[0])
    seen = set()
    for _ in range(6):
        seen.add(clock(None))
        now[0] += 0.5
    assert len(seen) == 4


def log_to(path, form="%(s)s"):
    return AccessLog(Options(num=1, access_logfile=str(path), access_logformat=form))


def write(log, status):
    log.write(
        client="",
        method="GET",
        target="/",
        protocol="HTTP/1.1",
        status=status,
        size=0,
        seconds=0.0,
        request={},
        response=[],
        environ={},
    )


def is_open_as(fd, path):
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def test_after_a_rename_and_reopen_lines_go_to_a_new_file(tmp_path):
    path = tmp_path / "log"
    log = log_to(path)
    write(log, 200)
    path.rename(tmp_path / "log.1")
    write(log, 201)
    before = len(os.listdir("/proc/self/fd"))
    log.reopen()
    write(log, 202)
    log.reopen()
    write(log, 203)
    assert len(os.listdir("/proc/self/fd")) == before
    fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_open_as(fd, path)]
    assert [os.get_inheritable(fd) for fd in fds] == [False]
    log.close()
    assert (tmp_path / "log.1").read_text() == "200\n201\n"
    assert path.read_text() == "202\n203\n"


def test_a_file_that_cannot_be_opened_anew_goes_on_and_is_named(tmp_path, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    log = log_to(folder / "log")
    folder.rename(tmp_path / "away")
    with caplog.at_level("ERROR", "sticky.worker"):
        log.reopen()
    write(log, 200)
    log.close()
    assert (tmp_path / "away" / "log").read_text() == "200\n"
    assert "cannot be opened anew: No such file" in caplog.text


def test_the_standard_output_is_not_opened_anew(capfd):
    log = log_to("-")
    log.reopen()
    write(log, 200)
    log.close()
    assert capfd.readouterr().out == "200\n"


def test_a_full_disk_is_told_in_the_error_log_when_there_is_room_again(tmp_path, caplog):
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    log = log_to(path, "%(s)s" + "x" * 1000)
    number = outlet.MOST // 1004 + 20
    for _ in range(number):
        write(log, 200)
    assert not caplog.records
    path.unlink()
    log.reopen()
    write(log, 201)
    log.close()
    lines = path.read_text().splitlines()
    assert [line[:3] for line in lines] == ["200"] * (number - 20) + ["201"]
    assert caplog.messages == ["20 access log lines were lost: No space left on device"]


def test_a_named_pipe_that_nobody_reads_is_an_error_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OptionError, match=r"'access_logfile' is .*it cannot be written"):
        log_to(tmp_path / "log")


def test_a_named_pipe_that_nobody_reads_any_more_is_no_reason_to_wait(tmp_path):
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    log = log_to(tmp_path / "log")
    for _ in range(50_000):
        write(log, 200)
    os.close(reader)
    write(log, 200)
    log.close()


def test_two_processes_do_not_mix_their_lines(tmp_path):
    log = log_to(tmp_path / "log", "%(s)s" * 300)
    other = log_to(tmp_path / "log", "%(s)s" * 300)
    threads = [
        threading.Thread(
            target=lambda it=it, status=status: [write(it, status) for _ in range(300)]
        )
        for it, status in ((log, 200), (other, 404))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    other.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(set(lines)) == ["200" * 300, "404" * 300]
    assert len(lines) == 600


def test_the_time_is_english_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form, when: form.replace("%d", "1").strip())
    assert re.search("Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec", line(tmp_path, "%(t)s"))


def test_lines_are_added_to_a_file_that_is_there(tmp_path):
    (tmp_path / "access.log").write_text("before\n")
    assert line(tmp_path, "%(s)s") == "before\n200\n"


def test_a_file_that_cannot_be_written_is_named():
    with pytest.raises(OptionError, match="'access_logfile' is '/no/such/folder/log'"):
        AccessLog(Options(num=1, access_logfile="/no/such/folder/log"))


@pytest.mark.parametrize("form", ["%(h)", "%(h)d", "%h", "%(h", "100 %"])
def test_a_format_that_is_none_is_an_error_before_anything_runs(form):
    with pytest.raises(OptionError, match=r"option 'access_logformat' is .*gunicorn's atoms"):
        Options(num=1, access_logformat=form)


def test_with_a_log_config_that_file_says_where_it_goes(tmp_path, caplog):
    config = tmp_path / "log.ini"
    config.touch()
    path = tmp_path / "access.log"
    form = {"access_logformat": "%(s)s"}
    log = AccessLog(Options(num=1, access_logfile=str(path), log_config=str(config), **form))
    with caplog.at_level("INFO", "sticky.access"):
        write(log, 200)
        log.reopen()
    assert [record.getMessage() for record in caplog.records] == ["200"]
    assert not path.exists()
