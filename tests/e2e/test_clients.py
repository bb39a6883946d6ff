"""Released Socket.IO clients, many at once, with one address each."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import HERE, ROOT, Start, requires
from tests.harness import KINDS, Kind, Running, wait_until

WORKERS = 3
CLIENTS = 100
ECHOES = 5
MODES = ["polling", "websocket", "upgrade"]
TRANSPORT = {"polling": "polling", "websocket": "websocket", "upgrade": "websocket"}


def addresses(count: int) -> list[str]:
    """Half of them IPv4, half IPv6."""
    return [
        f"203.0.113.{number}" if number % 2 else f"2001:db8:{number:x}::1"
        for number in range(1, count + 1)
    ]


def requests_of(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def check(answers: list[dict[str, Any]], record: Path, mode: str, workers: int = WORKERS) -> None:
    """Every client was served, and each session by one worker from its first request on."""
    assert [answer for answer in answers if "error" in answer] == []
    owner: dict[str, int] = {}
    for answer in answers:
        assert answer["transport"] == TRANSPORT[mode]
        assert (answer["acks"], answer["events"]) == (ECHOES, ECHOES), answer
        assert len(set(answer["workers"])) == 1, answer
        owner[answer["sid"]] = answer["workers"][0]
    assert set(owner.values()) == set(range(workers))  # all workers are used

    by_client = defaultdict(set)
    transports = defaultdict(set)
    for request in requests_of(record):
        by_client[request["xff"]].add(request["worker"])
        if request["sid"] is not None:
            assert request["worker"] == owner[request["sid"]], request
        transports[request["xff"]].add(request["transport"])
    assert len(by_client) == len(answers)
    assert {client: found for client, found in by_client.items() if len(found) != 1} == {}
    expected = {"polling", "websocket"} if mode == "upgrade" else {mode}
    assert all(found == expected for found in transports.values())


def recorded(kind: Kind, tmp_path: Path, num: int = WORKERS) -> tuple[Running, Path]:
    record = tmp_path / "requests"
    env = {"REQUEST_RECORD": str(record)}
    return kind.serve("socketio_app", num=num, proxy=True, env=env), record


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("client", ["clients.js", "clients.py"])
def test_every_request_of_a_client_reaches_one_worker(
    kind: Kind, tmp_path: Path, script: Start, client: str, mode: str
) -> None:
    server, record = recorded(kind, tmp_path)
    with server as running:
        clients = script(
            client, url=running.url, addresses=addresses(CLIENTS), mode=mode, echoes=ECHOES
        )
        check(clients.answer(), record, mode)
        clients.end()


def test_a_hundred_outstanding_long_polls_of_a_worker_do_not_keep_the_next_client_out(
    kind: Kind, tmp_path: Path, script: Start
) -> None:
    server, record = recorded(kind, tmp_path, num=2)
    with server as running:
        found: list[str] = []
        for number in range(2000):
            address = f"198.51.{number // 250}.{number % 250 + 1}"
            if running.get("/", {"X-Forwarded-For": address}).json()["worker"] == 0:
                found.append(address)
            if len(found) == CLIENTS + 1:
                break
        held = script("clients.js", url=running.url, addresses=found[:-1], mode="polling", echoes=0)
        assert [answer for answer in held.answer() if "error" in answer] == []

        def polling() -> bool:
            """Each has got its first packets and asked again: this one stays open."""
            asked = defaultdict(int)
            for request in requests_of(record):
                asked[request["sid"]] += 1
            del asked[None]
            return len(asked) == CLIENTS and min(asked.values()) >= 3  # post, poll, poll

        wait_until(polling, what="a hundred long polls")
        further = script(
            "clients.js", url=running.url, addresses=found[-1:], mode="upgrade", echoes=ECHOES
        )
        answer = further.answer()[0]
        assert "error" not in answer, answer
        assert answer["acks"] == ECHOES
        assert set(answer["workers"]) == {0}
        assert held.process.poll() is None
        further.end()
        held.end()


@pytest.mark.parametrize("mode", ["polling", "websocket"])
def test_events_reach_the_clients_of_all_workers_without_a_broker(script: Start, mode: str) -> None:
    """With ``sticky.cluster``, which is a client manager for socketio.Server."""

    def everybody_hears_everybody() -> None:
        clients = script("shout.js", url=running.url, addresses=addresses(30), mode=mode, shouts=5)
        answers = clients.answer()
        assert {answer["worker"] for answer in answers} == set(range(WORKERS))
        everything = sorted(
            [answer["address"], number] for answer in answers for number in range(5)
        )
        for answer in answers:
            assert sorted(answer["heard"]) == everything, answer["address"]
        clients.end()

    with KINDS["eventlet"].serve("socketio_cluster", num=WORKERS, proxy=True) as running:
        everybody_hears_everybody()
        killed = running.kill_worker(0)
        running.wait_for_successor(0, killed)  # it takes over the mailbox, too
        everybody_hears_everybody()


def test_a_released_client_is_served_to_the_pages_of_the_example() -> None:
    modules = Path(requires("node_modules"))
    name = "socket.io.min.js"
    released = modules / "socket.io-client" / "dist" / name
    assert (ROOT / "examples" / "chat" / name).read_bytes() == released.read_bytes()


def test_the_lock_file_names_no_download_address() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    for name, entry in packages.items():
        assert "resolved" not in entry, name
        assert entry["integrity"].startswith("sha512-"), name
