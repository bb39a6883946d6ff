"""What is served and how it is routed: kinds of apps, headers, hops, prefixes, on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

import sticky
from tests.harness import ROOT, Answer, Kind, Running, serve

from .clients import SEED, XFF, Client, addresses_of, head
from .test_options import run


def ask(running: Running, *lines: str) -> Answer:
    with Client(running.port, head("Connection: close", *lines)) as client:
        return client.answer()


ROUTINGS = {
    "x-real-ip": (["--proxy-header", "X-Real-IP"], ["X-Real-IP: {}"]),
    "cf-connecting-ip": (["--proxy-header", "cf-connecting-ip"], ["CF-Connecting-IP: {}"]),
    "forwarded": (
        ["--proxy-header", "forwarded"],
        ["Forwarded: for={};proto=https, for=10.0.0.1", f"{XFF}: 10.9.9.9"],
    ),
    "one hop": (["--hops", "1"], [f"{XFF}: 10.9.9.9, {{}}"]),
    "two hops": (["--hops", "2"], [f"{XFF}: 10.9.9.9, {{}}", f"{XFF}: 10.1.1.1"]),
    "any header": (["--proxy-header", "host2"], ["Host2: {}"]),
}


@pytest.mark.parametrize("how", ROUTINGS)
def test_a_client_is_told_by_what_the_options_say(kind: Kind, how: str) -> None:
    options, lines = ROUTINGS[how]
    with kind.serve("whoami", num=2, proxy=True, options=[*options, "--seed", SEED]) as running:
        for slot in range(2):
            for address in addresses_of(slot, 2, 3):
                answer = ask(running, *(line.format(address) for line in lines))
                assert answer.json()["worker"] == slot, (slot, address)


def test_prefixes_say_which_clients_are_one(kind: Kind) -> None:
    options = ["--ipv4-prefix", "16", "--ipv6-prefix", "32", "--seed", SEED]
    with kind.serve("whoami", num=4, proxy=True, options=options) as running:
        for many in (
            [f"203.0.{number}.{number}" for number in range(1, 12)],
            [f"2001:db8:{number}::{number}" for number in range(1, 12)],
        ):
            slots = {ask(running, f"{XFF}: {address}").json()["worker"] for address in many}
            assert len(slots) == 1
        others = {ask(running, f"{XFF}: 10.{n}.0.1").json()["worker"] for n in range(20)}
        assert len(others) > 1


def test_a_value_that_is_no_address_is_a_key_too(kind: Kind) -> None:
    options = ["--proxy-header", "x-session", "--seed", SEED]
    with kind.serve("whoami", num=4, proxy=True, options=options) as running:
        found = {}
        for number in range(12):
            line = f"X-Session: user-{number}"
            slot = sticky.explain(head(line), "", num=4, seed=SEED, proxy=True, header="x-session")
            found[number] = ask(running, line).json()["worker"]
            assert found[number] == slot.slot
        assert len(set(found.values())) > 1


APPS = """
import functools, sticky

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"a WSGI app"]

def one(thing):
    raise AssertionError("this must not be called")

class Application:
    def __init__(self, environ, start_response):
        start_response("200 OK", [])
    def __iter__(self):
        yield b"a class"

def anything(*args):
    if args:
        args[1]("200 OK", [])
        return [b"called as an app"]
    return app

partial = functools.partial(lambda greeting: app, "hello")

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"an ASGI app"})

async def coroutine():
    return asgi
"""


@pytest.mark.parametrize(
    ("name", "words", "body"),
    [
        ("app", [], b"a WSGI app"),
        ("Application", [], b"a class"),
        ("partial", [], b"a WSGI app"),
        ("asgi", [], b"an ASGI app"),
        ("anything", [], b"called as an app"),
        ("anything", ["--interface", "factory"], b"a WSGI app"),
    ],
)
def test_the_kind_is_found_out_or_said(
    name: str, words: list[str], body: bytes, tmp_path: Path
) -> None:
    (tmp_path / "apps.py").write_text(APPS)
    env = {"PYTHONPATH": str(ROOT)}
    with serve(f"apps:{name}", num=1, cwd=tmp_path, env=env, options=words) as running:
        assert running.get().body == body


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one", "which cannot be served: it must be a WSGI or ASGI app, a Flask app"),
        ("coroutine", "is a coroutine function, and a factory cannot be one"),
    ],
)
def test_what_cannot_be_served_is_said_once_with_status_4(
    name: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "apps.py").write_text(APPS)
    ended = run("-m", "sticky", f"apps:{name}", "-b", "127.0.0.1:0", "-w", "2", cwd=tmp_path)
    assert ended.returncode == 4
    assert ended.stderr.count("[ERROR]") == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_app_sees_the_request_as_it_was_sent(kind: Kind) -> None:
    """Where nobody is trusted: whom of those in the header to believe is then its own decision."""
    nobody = ["--forwarded-allow-ips", ""]
    with kind.serve("whoami", num=2, proxy=True, options=nobody) as running:
        seen = ask(running, f"{XFF}: 203.0.113.1, 10.0.0.1").json()
        assert (seen["xff"], seen["remote_addr"]) == ("203.0.113.1, 10.0.0.1", "127.0.0.1")


def test_the_client_is_the_one_whom_a_trusted_proxy_names(kind: Kind) -> None:
    with kind.serve("whoami", num=2, proxy=True) as running:
        seen = ask(running, f"{XFF}: 203.0.113.1, 10.0.0.1").json()
        assert (seen["xff"], seen["remote_addr"]) == ("203.0.113.1, 10.0.0.1", "10.0.0.1")


def test_an_asgi_app_can_be_given_to_listen_in_a_script(tmp_path: Path) -> None:
    """The first worker finds it out; the script is run once more for it."""
    script = tmp_path / "serve.py"
    script.write_text(APPS + "sticky.listen(asgi, 0, 2)\n")
    with serve(str(script), script=True, num=2, env={"PYTHONPATH": str(ROOT)}) as running:
        assert running.get().body == b"an ASGI app"
        assert running.log().count("This app is served by the worker class 'asgi'") == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [("one", "which cannot be served"), ("fails", "LookupError: no database")],
)
def test_a_script_does_not_take_what_the_factory_raises_for_its_own(
    name: str, says: str, tmp_path: Path
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        APPS
        + "def fails(): raise LookupError('no database')\n"
        + f"try:\n    sticky.listen({name}, 0, 2)\nexcept Exception as error:\n    print(error)\n"
    )
    ended = run(str(script))
    assert ended.returncode in (3, 4)
    assert ended.stdout == ""
    assert ended.stderr.count(says) == 1


def test_explain_says_where_the_server_sends(kind: Kind) -> None:
    words = ["--proxy", "-w", "4", "--seed", SEED]
    with kind.serve("whoami", num=4, proxy=True, options=["--seed", SEED]) as running:
        for address in ("203.0.113.7", "198.51.100.1", "2001:db8::1"):
            ended = run("-m", "sticky", "explain", *words, address)
            assert (ended.returncode, ended.stderr) == (0, "")
            slot = ask(running, f"{XFF}: {address}").json()["worker"]
            assert ended.stdout.endswith(f"slot  {slot} of 4\n")


def test_the_worker_class_is_found_out_where_none_is_named() -> None:
    with serve("tests.apps:whoami") as running:
        running.wait_for("needs the worker class 'eventlet': all workers are of that class")
        assert running.get("/").status == 200
