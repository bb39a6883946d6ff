"""Events of a connection, and ``sync``: the app prepares something before it sees a byte."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, Kind, Running, serve, wait_until
from tests.process.clients import SEED, XFF, Client, Crowd, addresses_of, head
from tests.process.test_options import run

SYNC = ["--sync", "loaded", "--seed", SEED]


class Gated:
    """A server whose handlers wait for gates that the test opens."""

    def __init__(self, running: Running, gates: Path) -> None:
        self.running = running
        self.gates = gates
        self._clients = iter(f"192.0.2.{n}" for n in range(1, 255))

    def new_client(self) -> str:
        return next(self._clients)

    def open(self, client: str) -> None:
        (self.gates / client).touch()

    def connect(self, client: str, what: str, *lines: str) -> Client:
        return Client(self.running.port, head(f"{XFF}: {client}", f"X-Do: {what}", *lines))

    def happened(self, client: str) -> list[str]:
        """So far, asked in that client's own worker."""
        found: list[str] = self.running.get(f"/of/{client}", {XFF: client}).json()
        while found and found[-1] == "accepted" and found.count("accepted") > 1:
            found.pop()  # our own connections, which ask
        return found

    def stats(self, client: str) -> dict[str, int]:
        found: dict[str, int] = self.running.get("/stats", {XFF: client}).json()
        return found


def serve_gated(kind: Kind, gates: Path, **options: Any) -> Running:
    target = f"tests.process.sync_apps:{kind.interface}"
    return kind.serve(target, env={"GATES": str(gates)}, **options)


@pytest.fixture(scope="module")
def gated(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    gates = tmp_path_factory.mktemp("gates")
    options = [*SYNC, "--sync-timeout", "100"]
    with serve_gated(kind, gates, num=2, proxy=True, options=options) as running:
        yield Gated(running, gates)


def test_a_connection_that_is_released_at_once_is_served(gated: Gated) -> None:
    client = gated.new_client()
    assert gated.running.get("/", {XFF: client}).json() == ["accepted", "app"]


@pytest.mark.parametrize("what", ["load", "later"])
def test_what_is_slow_to_load_for_a_client_is_there_before_the_app_sees_a_byte(
    gated: Gated, what: str
) -> None:
    client, other = gated.new_client(), gated.new_client()
    with gated.connect(client, what) as connection:
        wait_until(lambda: gated.happened(client) == ["accepted"], what="the handler was called")
        # Others of the same worker are served meanwhile, and it still waits.
        for _ in range(10):
            assert gated.running.get("/", {XFF: other}).status == 200
        assert gated.happened(client) == ["accepted"]
        gated.open(client)
        happened = [it for it in connection.answer().json() if it != "accepted"]
        # Released by another thread, the app may be there before that thread can say so.
        assert [it for it in happened if it != "released True"] == ["loaded", "app"]
        wait_until(lambda: "released True" in gated.happened(client), what="it says so")


def test_a_handler_is_called_once_for_each_connection_and_not_for_each_request(
    gated: Gated,
) -> None:
    client = gated.new_client()
    with gated.connect(client, "") as connection:
        assert connection.answer().json() == ["accepted", "app"]
        connection.send(head(f"{XFF}: {client}"))
        assert connection.answer().json() == ["accepted", "app", "app"]


def test_a_handler_that_raises_costs_its_connection_a_500_and_nothing_else(gated: Gated) -> None:
    client = gated.new_client()
    mark = len(gated.running.log())
    before = gated.stats(client)["handler_errors"]
    with gated.connect(client, "fail") as connection:
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (500, "close")
        assert connection.rest() == b""
    gated.running.wait_for("LookupError: nothing is known about this client", after=mark)
    assert gated.running.get("/1", {XFF: client}).status == 200
    assert gated.stats(client)["handler_errors"] == before + 1


def test_another_event_releases_nothing(gated: Gated) -> None:
    client = gated.new_client()
    with gated.connect(client, "other"):
        wait_until(lambda: "released False" in gated.happened(client))
        assert "app" not in gated.happened(client)


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_client_may_leave_before_it_is_released(gated: Gated, how: str) -> None:
    client = gated.new_client()
    left = gated.stats(client)["left_unreleased"]
    connection = gated.connect(client, "nothing")
    wait_until(lambda: gated.happened(client), what="the handler was called")
    getattr(connection, how)()
    wait_until(lambda: gated.stats(client)["left_unreleased"] == left + 1, what="it was noticed")
    connection.close()
    assert "app" not in gated.happened(client)


def test_two_hundred_unreleased_connections_delay_nobody(gated: Gated) -> None:
    """They do not count as not begun: with the default prefetch four would stop a worker."""
    with contextlib.ExitStack() as stack:
        waiting = addresses_of(0, 2, 100) + addresses_of(1, 2, 100)
        held = [stack.enter_context(gated.connect(client, "later")) for client in waiting]

        def open_in(slot: int) -> int:
            return gated.stats(addresses_of(slot, 2, 1)[0])["open"]

        wait_until(lambda: open_in(0) > 100 and open_in(1) > 100, what="200 are waiting")
        with Crowd(gated.running, 10) as crowd, crowd.served():
            pass
        for connection in held:
            connection.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.sock.recv(1)
            connection.sock.setblocking(True)
            connection.sock.settimeout(30)
        for client in waiting:
            gated.open(client)
        for connection in held:
            answer = connection.answer()
            assert answer.status == 200
            assert answer.json()[-1] == "app"


def test_a_connection_that_is_never_released_is_answered_503(kind: Kind, tmp_path: Path) -> None:
    options = ["--sync", "loaded", "--sync-timeout", "0.5"]
    with serve_gated(kind, tmp_path, num=1, proxy=True, options=options) as running:
        gated = Gated(running, tmp_path)
        client = gated.new_client()
        with gated.connect(client, "nothing") as connection:
            answer = connection.answer()
            assert answer.status == 503
            assert answer.headers["retry-after"]
            assert connection.rest() == b""
        # Emitted after its time it releases nothing.
        late = gated.new_client()
        with gated.connect(late, "later") as connection:
            assert connection.answer().status == 503
        gated.open(late)
        wait_until(lambda: "released False" in gated.happened(late))
        assert gated.stats(client)["sync_timeouts"] == 2
        assert "app" not in gated.happened(client)
        assert running.stop() == 0


def test_without_sync_handlers_are_called_and_nothing_is_held(kind: Kind, tmp_path: Path) -> None:
    with serve_gated(kind, tmp_path, num=1, proxy=True) as running:
        gated = Gated(running, tmp_path)
        client = gated.new_client()
        with gated.connect(client, "nothing") as connection:
            assert connection.answer().json() == ["accepted", "app"]
        with gated.connect(client, "fail") as connection:
            assert connection.answer().status == 500


def test_a_stop_does_not_wait_for_the_unreleased_for_ever(kind: Kind, tmp_path: Path) -> None:
    options = ["--sync", "loaded", "--sync-timeout", "100", "--graceful-timeout", "1"]
    with (
        serve_gated(kind, tmp_path, num=1, options=options) as running,
        Client(running.port, head("X-Do: nothing")),
    ):
        assert running.stop(timeout=30) == 0


def test_the_originals_spelling_is_understood(kind: Kind, tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        f"import sticky\nfrom {kind.apps} import says\n"
        "def factory():\n"
        "    worker = sticky.current_worker()\n"
        "    worker.on('connection', lambda connection: connection.emit('my_sync_event'))\n"
        "    return says(lambda: [worker.options.sync, worker.options.proxy,\n"
        "        worker.options.ignore_missing_header, worker.id, worker.pid, repr(worker)])\n"
        "sticky.listen(factory, 0, {'num': 1, 'proxy': True, 'ignoreMissingHeader': True,\n"
        "    'isSynced': True, 'sync': {'event': 'my_sync_event'}})\n"
    )
    with kind.serve(str(script), script=True, num=1, env={"PYTHONPATH": str(ROOT)}) as running:
        found: list[Any] = running.get().json()  # without the header
        pid = running.worker_pids()[0]
        assert found == ["my_sync_event", True, True, 0, pid, f"<sticky worker 0 (pid {pid})>"]


def test_an_event_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import sticky\ndef make():\n    sticky.current_worker().on('conection', print)\n"
    )
    ended = run("-m", "sticky", "app:make", "-b", "127.0.0.1:0", "-w", "1", cwd=tmp_path)
    assert ended.returncode == 3
    assert "there is no event 'conection': the only one is 'connection'" in ended.stderr


def test_what_a_handler_is_shown(kind: Kind, tmp_path: Path) -> None:
    """Client address, key, head, how it came; the app sees the same bytes afterwards."""
    (tmp_path / "app.py").write_text(
        "import json, sticky\n"
        f"from {kind.apps} import echo\n"
        "def make():\n"
        "    def note(connection):\n"
        "        print(json.dumps([connection.address[0], connection.key.decode(),\n"
        "              connection.head.decode(), connection.came]), flush=True)\n"
        "    sticky.current_worker().on('connection', note)\n"
        "    return echo()\n"
    )
    env = {"PYTHONPATH": str(ROOT)}
    with kind.serve("app:make", num=1, proxy=True, cwd=tmp_path, env=env) as running:
        request = head(f"{XFF}: 2001:db8:1:2:3::4", "Content-Length: 4", method="POST")
        with Client(running.port, request + b"body") as client:
            assert client.answer().body == b"body"
        address, key, shown, came = json.loads(running.wait_for(r"^\[\".*\]$")[0])
        assert (address, key, came) == ("127.0.0.1", "2001:db8:1:2::/64", "accepted")
        assert shown.encode().startswith(request)


PAGE = (ROOT / "docs" / "sync.md").read_text()


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_of_the_page_work(example: str, tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(re.sub(r"listen\(factory, 3000", "listen(factory, 0", example))
    with serve(str(script), script=True, num=4, env={"PYTHONPATH": str(ROOT)}) as running:
        answer = running.get("/socket.io/?transport=polling&EIO=4", {XFF: "203.0.113.7"})
        assert answer.body.startswith(b'0{"sid"')
