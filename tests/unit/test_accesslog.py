"""Lines of the access log, in gunicorn's format."""

from __future__ import annotations

import base64
import io
import logging
import os
import re

import pytest

from sticky.errors import OptionError
from sticky.options import ACCESS_LOG_FORMAT, Options
from sticky.worker.accesslog import AccessLog


@pytest.fixture(autouse=True)
def logger():
    """The logger as it was before, afterwards."""
    ours = logging.getLogger("sticky.access")
    before = ours.handlers[:], ours.level, ours.propagate
    ours.handlers.clear()
    yield ours
    for handler in ours.handlers:
        handler.close()
    ours.handlers[:], ours.level, ours.propagate = before


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
        ("Basic x", "-"),
        ("Bearer secret", "-"),
        ("", "-"),
    ],
)
def test_the_user_is_that_of_basic_authentication(authorization, user, tmp_path):
    assert line(tmp_path, "%(u)s", request={"authorization": authorization}) == user + "\n"


@pytest.mark.parametrize("atom", ["%(a)s", "%(f)s", "%(r)s", "%({x-evil}i)s", "%(U)s", "%(q)s"])
def test_no_client_writes_a_line_of_its_own_or_ends_a_quotation(atom, tmp_path):
    evil = 'x" 200\r\n10.0.0.1 - - "GET / \x1b[31m\x00\u2028'
    fields = {"user-agent": evil, "referer": evil, "x-evil": evil}
    text = line(tmp_path, f'"{atom}"', request=fields, target=f"/{evil}?{evil}", method="GET")
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    assert not re.search(r'[^\\]"', text[1:-2])


def test_the_time_is_english_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form, when: form.replace("%d", "1").strip())
    assert re.search("Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec", line(tmp_path, "%(t)s"))


def test_a_hyphen_is_the_standard_output(monkeypatch, logger):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    log = AccessLog(Options(num=1, access_logfile="-", access_logformat="%(s)s"))
    log.write(
        client="",
        method="GET",
        target="/",
        protocol="HTTP/1.1",
        status=204,
        size=0,
        seconds=0.0,
        request={},
        response=[],
        environ={},
    )
    assert out.getvalue() == "204\n"
    assert not logger.propagate


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


def test_with_a_log_config_that_file_says_where_it_goes(tmp_path, logger):
    config = tmp_path / "log.ini"
    config.touch()
    path = tmp_path / "access.log"
    AccessLog(Options(num=1, access_logfile=str(path), log_config=str(config)))
    assert not logger.handlers
    assert not path.exists()
