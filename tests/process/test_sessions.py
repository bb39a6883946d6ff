"""Sessions: how new ones are spread, where ids may be, and what a reload does to them. That they
follow their id is in tests/contract."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter

import pytest

import sticky
from tests.harness import ROOT, Kind, wait_until

from .clients import XFF, Client, head
from .life_kit import stopped
from .session_kit import POLLING, Shared, open_session, replace

NUM = 4


# -- balance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["least", "round-robin"])
@pytest.mark.parametrize("how", ["a connection each", "shared connections"])
def test_a_thousand_clients_behind_one_address_are_spread_evenly(
    kind: Kind, balance: str, how: str
) -> None:
    options = ["--session", "sid", "--balance", balance]
    with kind.serve("socketio_app", num=NUM, proxy=True, options=options) as running:
        shared = Shared(running.port)
        for _ in range(1000):
            if how == "shared connections":
                open_session(shared)
            else:
                assert running.get(POLLING, {XFF: "192.0.2.1"}).status == 200
        sessions = [worker["sessions"] for worker in running.stats()["workers"].values()]
        assert sum(sessions) == 1000
        assert all(225 <= count <= 275 for count in sessions), sessions
        shared.close()


def test_new_sessions_go_to_the_worker_with_the_fewest(kind: Kind) -> None:
    options = ["--session", "query:id", "--balance", "least"]
    with kind.serve("keeper", num=2, options=options) as running:
        made = [running.get("/new").json() for _ in range(8)]
        assert Counter(one["worker"] for one in made) == {0: 4, 1: 4}
        for one in made:
            if one["worker"] == 1:
                assert running.get(f"/end?id={one['id']}").status == 200
        # Which are left is found out with every third beat, some seconds later at most.
        wait_until(lambda: running.stats()["workers"]["1"]["sessions"] == 0)
        assert [running.get("/new").json()["worker"] for _ in range(3)] == [1, 1, 1]


# -- other protocols -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["", "?make=uuid"])
@pytest.mark.parametrize(
    ("place", "line"),
    [("query:id", ""), ("header:X-Id", "X_Id"), ("cookie:id", "Cookie")],
)
def test_ids_in_any_place_lead_to_the_worker_that_minted_them(
    kind: Kind, place: str, line: str, make: str
) -> None:
    options = ["--session", place, "--balance", "round-robin"]
    with kind.serve("keeper", num=3, options=options) as running:
        shared = Shared(running.port)
        made = [shared.ask("/new" + make).json() for _ in range(30)]
        assert Counter(one["worker"] for one in made) == {0: 10, 1: 10, 2: 10}
        for count in (2, 3):
            for one in made:
                said = {"Cookie": f"a=b; id={one['id']}", "X_Id": one["id"]}.get(line)
                answer = (
                    shared.ask("/count", **{line: said})
                    if said
                    else shared.ask(f"/count?id={one['id']}")
                )
                assert answer.status == 200, answer
                assert answer.json() == {**one, "count": count}
        assert all(len(one["id"]) == (32 if make else 20) for one in made)
        shared.close()


@pytest.mark.parametrize("balance", ["address", "least", "round-robin"])
def test_a_new_session_begins_in_the_new_process(kind: Kind, balance: str) -> None:
    options = ["--session", "query:id", "--balance", balance]
    with kind.serve("keeper", num=1, options=options) as running:
        kept_alive = Shared(running.port, 1)
        made = kept_alive.ask("/new").json()
        old = replace(running)
        assert made["pid"] == old[0]
        for shared in (kept_alive, Shared(running.port, 1)):
            assert shared.ask("/new").json()["pid"] == running.worker_pids()[0]
            shared.close()
        assert running.get(f"/count?id={made['id']}").json() == {**made, "count": 2}
        assert running.stats()["moved"] <= 3


def test_a_replaced_process_that_is_busy_gets_all_that_ask_for_its_sessions(kind: Kind) -> None:
    """However many they are: what it cannot take at once waits for it."""
    options = ["--session", "query:id", "--queue-timeout", "60"]
    with (
        kind.serve("keeper", num=1, options=options) as running,
        contextlib.ExitStack() as opened,
    ):
        made = running.get("/new").json()
        old = replace(running)[0]
        with stopped(old):
            asking = head(target=f"/count?id={made['id']}")
            clients = [opened.enter_context(Client(running.port, asking)) for _ in range(300)]
            assert running.get("/new").json()["pid"] != old  # nobody else waits for it
            wait_until(lambda: running.stats()["moved"] == 300, what="all were asked for")
        answers = [client.answer().json() for client in clients]
        assert {answer["pid"] for answer in answers} == {made["pid"]}
        assert sorted(answer["count"] for answer in answers) == list(range(2, 302))


def test_sessions_of_a_replaced_process_outlive_its_successor(kind: Kind) -> None:
    with kind.serve("keeper", num=1, options=["--session", "query:id"]) as running:
        made = running.get("/new").json()
        old = replace(running)
        running.wait_for_successor(0, running.kill_worker(0))
        again = running.get(f"/count?id={made['id']}").json()
        assert again == {**made, "pid": old[0], "count": 2}


def test_a_worker_that_is_told_to_end_does_not_wait_for_its_sessions(kind: Kind) -> None:
    with kind.serve("keeper", num=1, options=["--session", "query:id"]) as running:
        running.get("/new")
        old = running.worker_pids()[0]
        os.kill(old, signal.SIGTERM)
        running.wait_for_successor(0, old)
        assert running.get("/new").status == 200


def test_a_stop_does_not_wait_for_the_sessions_of_a_replaced_process(kind: Kind) -> None:
    options = ["--session", "query:id", "--graceful-timeout", "3600"]
    with kind.serve("keeper", num=1, options=options) as running:
        running.get("/new")
        replace(running)
        assert running.stop() == 0  # or it would wait for an hour


def test_without_the_option_there_is_nothing_to_mint_for(kind: Kind) -> None:
    with kind.serve("keeper", num=1, ready=False) as running:
        running.wait_for("sticky.holds\\(\\) needs the option 'session'")
        assert running.wait() == 3


def test_outside_of_a_worker_ids_are_minted_for_nobody() -> None:
    assert sticky.mint() != sticky.mint()
    assert sticky.mint(lambda: "mine") == "mine"
    assert sticky.holds(bool) is bool
    options = {"port": 0, "num": 1, "app_dir": ROOT, "session": "query:id"}
    with sticky.Server("tests.apps:keeper", options) as server:
        assert server.stats()["workers"][0]["sessions"] == 0
