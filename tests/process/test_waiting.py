"""Who waits for a worker: one that cannot start, one that is busy, one that is flooded."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.harness import Kind, Running, wait_until

from .clients import SEED, Client, head, slot_of
from .life_apps import BROKEN
from .life_kit import NUM, ROUTED, ask, served_by, stopped

APP = "tests.process.life_apps:breakable"


def breakable(folder: Path) -> dict[str, str]:
    """An environment in which no worker can start while a file is there."""
    return {BROKEN: str(folder / "broken")}


def refused_for_now(client: Client) -> bool:
    answer = client.answer()
    return (answer.status, answer.headers["Connection"]) == (503, "close") and bool(
        answer.headers["Retry-After"]
    )


def test_clients_of_a_slot_that_cannot_start_are_told_to_come_again(
    kind: Kind, tmp_path: Path
) -> None:
    """Also those whose connection lay in its inbox when it died."""
    options = (*ROUTED, "--queue-timeout", "1")
    env = breakable(tmp_path)
    with (
        kind.serve(APP, num=NUM, proxy=True, options=options, env=env) as running,
        contextlib.ExitStack() as opened,
    ):
        pid = served_by(running, 0)
        Path(env[BROKEN]).touch()
        with stopped(pid):
            before = [opened.enter_context(ask(running, 0)) for _ in range(10)]
            served_by(running, 1)  # the master has handed them over
            os.kill(pid, signal.SIGKILL)
        after = [opened.enter_context(ask(running, 0)) for _ in range(10)]
        assert all(refused_for_now(client) for client in [*before, *after])
        served_by(running, 1)
        Path(env[BROKEN]).unlink()
        running.wait_for_successor(0, pid)
        served_by(running, 0)


def test_clients_of_a_slot_that_cannot_start_are_seen_leaving(kind: Kind, tmp_path: Path) -> None:
    options = (*ROUTED, "--queue-timeout", "60")
    env = breakable(tmp_path)
    with kind.serve(APP, num=NUM, proxy=True, options=options, env=env) as running:
        pid = served_by(running, 0)
        Path(env[BROKEN]).touch()
        with stopped(pid):
            clients = [ask(running, 0) for _ in range(5)]
            served_by(running, 1)  # the master has handed them over
            os.kill(pid, signal.SIGKILL)
        running.wait_for("worker 0 .* was killed")
        clients += [ask(running, 0) for _ in range(5)]
        wait_until(lambda: stats(running)["queued"] >= 5, what="the last ones wait")
        for client in clients:
            client.reset()
        wait_until(lambda: stats(running)["left"] == 10, what="all of them have left")
        Path(env[BROKEN]).unlink()
        running.wait_for_successor(0, pid)


def stats(running: Running) -> dict[str, int]:
    """What all processes of the server have counted."""
    found = served(running, "/all-stats")
    assert isinstance(found, dict)
    return found


def served(running: Running, path: str) -> object:
    with ask(running, 1, path) as client:
        return client.answer().json()


def test_what_has_come_on_a_connection_that_waits_at_rest_is_answered(
    kind: Kind, tmp_path: Path
) -> None:
    """Its worker has given it away, and no process of the slot that is to have it can start."""
    env = breakable(tmp_path)
    options = ("--queue-timeout", "100", "--seed", SEED)
    of_slot_1 = [f"127.0.0.{n}" for n in range(2, 50) if slot_of(f"127.0.0.{n}", 2) == 1]
    with (
        kind.serve(APP, num=2, options=options, env=env) as running,
        Client(running.port, head(), local=of_slot_1[0]) as asks,
        Client(running.port, head(), local=of_slot_1[1]) as silent,
    ):
        assert asks.answer().status == silent.answer().status == 200
        leaving = running.worker_pids()[1]
        Path(env[BROKEN]).touch()
        running.kill_worker(0)
        running.wait_for(r"worker 0 .* starting it again")
        running.send_signal(signal.SIGTTOU)
        running.wait_for(rf"\(pid {leaving}\) ended")
        asks.send(head("Content-Length: 4", method="POST") + b"body")
        assert running.stop() == 0
        assert refused_for_now(asks)
        assert silent.rest() == b""


def test_the_newest_of_the_longest_queue_is_refused_and_other_slots_do_not_wait(
    kind: Kind,
) -> None:
    options = (*ROUTED, "--queue-timeout", "60", "--max-queued", "30")
    with (
        kind.serve(APP, num=NUM, proxy=True, options=options) as running,
        contextlib.ExitStack() as opened,
    ):
        with stopped(served_by(running, 0)):
            clients = [opened.enter_context(ask(running, 0)) for _ in range(80)]
            served_by(running, 1)  # nobody there waits for them
            served_by(running, 2)
            shed = stats(running)["shed"]
            assert 0 < shed <= 50  # an inbox takes about 20
            assert all(refused_for_now(client) for client in clients[80 - shed :])
        assert [client.answer().status for client in clients[: 80 - shed]] == [200] * (80 - shed)
        assert stats(running)["queue_timeouts"] == 0
