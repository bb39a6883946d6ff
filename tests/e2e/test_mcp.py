"""MCP servers (streamable HTTP): the official package's own client, whose address changes with each
request, and the example with three workers."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import random
import re
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import httpx2
import pytest
from mcp import Client, ClientSession, MCPError
from mcp.client.streamable_http import streamable_http_client

import sticky
from tests.harness import KINDS, Answer, Running, wait_until

from .conftest import Script

SEED = "0123456789abcdef"
WORKERS = 3
SESSIONS = 50
CALLS = 4
BY_SESSION = ("--session", "header:mcp-session-id", "--affix")
LEAST = (*BY_SESSION, "--balance", "least")

Told = dict[str, int]
"""What a session is told when it calls: how often it has, and by whom it is served."""


def server(*options: str, num: int = WORKERS) -> Running:
    return KINDS["asgi"].serve(
        "examples.mcp.server:factory", num=num, proxy=True, options=["--seed", SEED, *options]
    )


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with server(*LEAST) as running:
        yield running
        assert "Traceback" not in running.log()


# -- clients --------------------------------------------------------------------------------------

Addresses = Callable[[], str]


def anything(seed: int) -> Addresses:
    rng = random.Random(seed)
    return lambda: f"198.51.{rng.randrange(256)}.{rng.randrange(256)}"


def http_client(address: Addresses) -> httpx2.AsyncClient:
    """A client that may have another address each time it asks."""

    async def wander(request: httpx2.Request) -> None:
        request.headers["X-Forwarded-For"] = address()

    limits = httpx2.Limits(max_connections=None, keepalive_expiry=None)
    hooks = {"request": [wander]}
    return httpx2.AsyncClient(event_hooks=hooks, limits=limits, timeout=60, verify=False)


@contextlib.asynccontextmanager
async def session(port: int, client: httpx2.AsyncClient) -> AsyncIterator[ClientSession]:
    url = f"http://127.0.0.1:{port}/mcp"
    async with (
        streamable_http_client(url, http_client=client) as streams,
        ClientSession(*streams) as session,
    ):
        await session.initialize()
        yield session


async def count(session: ClientSession) -> Told:
    result = await session.call_tool("count", {})
    assert not result.is_error, result
    told: Told = result.structured_content
    return told


async def calls(port: int, client: httpx2.AsyncClient) -> list[Told]:
    async with session(port, client) as one:
        return [await count(one) for _ in range(CALLS)]


async def on_own_connections(port: int) -> list[list[Told]]:
    async def one(number: int) -> list[Told]:
        async with http_client(anything(number)) as client:
            return await calls(port, client)

    return await asyncio.gather(*(one(number) for number in range(SESSIONS)))


async def on_shared_connections(port: int) -> list[list[Told]]:
    async with http_client(anything(0)) as client:
        return await asyncio.gather(*(calls(port, client) for _ in range(SESSIONS)))


somewhere = anything(1)
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
PING = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
CALL = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "count"}}


def ask(
    port: int,
    message: object,
    session_id: str | None = None,
    method: str = "POST",
    line: http.client.HTTPConnection | None = None,
) -> Answer:
    """One request without the package's client, on a connection of its own or on a given one."""
    headers = {
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "X-Forwarded-For": somewhere(),
    }
    if session_id is not None:
        headers["Mcp-Session-Id"] = session_id
    own = contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60))
    with own if line is None else contextlib.nullcontext(line) as connection:
        connection.request(method, "/mcp", body=json.dumps(message), headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def begin(port: int, line: http.client.HTTPConnection | None = None) -> str:
    """The id of a new session."""
    answer = ask(port, INITIALIZE, line=line)
    assert answer.status == 200, answer
    return str(answer.headers["mcp-session-id"])


def pid_of(port: int, session_id: str) -> int:
    """The process that serves this session."""
    answer = ask(port, CALL, session_id)
    assert answer.status == 200, answer
    found = re.search(rb'"structuredContent":.*"pid":(\d+)', answer.body)
    assert found, answer
    return int(found[1])


def sessions_held(running: Running) -> int:
    """By all workers, as they count them."""
    return sum(worker["sessions"] for worker in running.stats()["workers"].values())


# -- whose session it is --------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [on_own_connections, on_shared_connections])
def test_each_of_fifty_sessions_is_served_by_one_worker(
    running: Running, clients: Callable[[int], Coroutine[Any, Any, list[list[Told]]]]
) -> None:
    # Or a worker that still counts those of the test before gets none.
    wait_until(lambda: sessions_held(running) == 0, 60)
    told = asyncio.run(clients(running.port))
    assert len(told) == SESSIONS
    for answers in told:
        assert [answer["count"] for answer in answers] == list(range(1, CALLS + 1))
        assert len({(answer["worker"], answer["pid"]) for answer in answers}) == 1
    assert {answers[0]["worker"] for answers in told} == set(range(WORKERS))


def test_so_are_those_of_the_client_for_typescript(
    script: Callable[..., Script],
) -> None:
    """All from one address, and it keeps no cookies."""
    with KINDS["asgi"].serve("examples.mcp.server:factory", num=WORKERS, options=LEAST) as running:
        clients = script("mcp.js", url=f"{running.url}/mcp", sessions=30, calls=CALLS)
        told = clients.answer()
    assert len(told) == 30
    for answers in told:
        assert [answer["count"] for answer in answers] == list(range(1, CALLS + 1))
        assert len({answer["pid"] for answer in answers}) == 1
    assert {answers[0]["worker"] for answers in told} == set(range(WORKERS))


def test_without_session_ids_a_client_that_changes_its_address_loses_its_session() -> None:
    """The negative control: the same server, as it was without ``session``."""

    async def outcomes(addresses: list[str]) -> list[str]:
        async def one() -> str:
            turns = itertools.cycle(addresses)
            async with (
                http_client(lambda: next(turns)) as client,
                session(running.port, client) as began,
            ):
                try:
                    return str([(await count(began))["count"] for _ in range(CALLS)])
                except MCPError as error:
                    return str(error)

        return await asyncio.gather(*(one() for _ in range(10)))

    with server() as running:
        by_slot = addresses_by_slot()
        assert asyncio.run(outcomes(by_slot[:1])) == ["[1, 2, 3, 4]"] * 10
        assert asyncio.run(outcomes(by_slot)) == ["Session not found"] * 10


def addresses_by_slot() -> list[str]:
    """For each worker, in order, an address that leads to it."""
    found: dict[int, str] = {}
    for number in range(1, 255):
        address = f"203.0.113.{number}"
        head = f"GET / HTTP/1.1\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
        slot = sticky.explain(head, "127.0.0.1", num=WORKERS, seed=SEED, proxy=True).slot
        assert slot is not None
        found.setdefault(slot, address)
    return [found[slot] for slot in range(WORKERS)]


def test_what_belongs_to_no_session_is_answered_as_by_a_single_server(running: Running) -> None:
    def answers(port: int) -> set[tuple[str, int, bytes]]:
        found = set()
        for _ in range(12):  # which is more often than there are workers
            ended = begin(port)
            assert ask(port, PING, ended).status == 200
            assert ask(port, None, ended, method="DELETE").status == 200
            for what, answer in (
                ("ended", ask(port, PING, ended)),
                ("made up", ask(port, PING, uuid.uuid4().hex)),
                ("none", ask(port, PING)),
            ):
                found.add((what, answer.status, answer.body))
        return found

    with server(*BY_SESSION, num=1) as single:
        expected = answers(single.port)
    assert {(what, status) for what, status, _ in expected} == {
        ("ended", 404),
        ("made up", 404),
        ("none", 400),
    }
    assert answers(running.port) == expected


def test_a_client_of_the_protocol_without_sessions_is_served(running: Running) -> None:
    async def one() -> None:
        async with (
            http_client(anything(1)) as client,
            Client(streamable_http_client(f"{running.url}/mcp", http_client=client)) as modern,
        ):
            assert [tool.name for tool in (await modern.list_tools()).tools] == ["count"]
            result = await modern.call_tool("count", {})
            assert result.is_error
            assert "belongs to no session" in str(result.content)

    asyncio.run(one())


# -- processes that come and go -------------------------------------------------------------------


def reload(running: Running) -> dict[int, int]:
    """Replace all workers; the processes that were there before, which held a session each until
    then and are asked for it once more."""
    port, before = running.port, running.worker_pids()
    held: dict[int, str] = {}
    while set(held) != set(before.values()):
        new = begin(port)
        held[pid_of(port, new)] = new
    running.send_signal(signal.SIGHUP)
    for slot, pid in before.items():
        running.wait_for_successor(slot, pid, 90)
    for one in held.values():
        assert ask(port, PING, one).status == 200
        assert ask(port, None, one, method="DELETE").status == 200
    return before


def test_a_session_outlives_a_reload_and_new_ones_go_to_the_new_processes() -> None:
    async def one(running: Running) -> None:
        async with http_client(anything(1)) as client, contextlib.AsyncExitStack() as stack:
            enter = stack.enter_async_context
            old = [await enter(session(running.port, client)) for _ in range(4 * WORKERS)]
            first = [await count(one) for one in old]
            pids = {told["worker"]: told["pid"] for told in first}
            assert await asyncio.to_thread(reload, running) == pids
            new = [await enter(session(running.port, client)) for _ in range(4 * WORKERS)]
            told = [await count(one) for one in new]
            assert {answer["count"] for answer in told} == {1}
            now = {answer["worker"]: answer["pid"] for answer in told}
            assert now == running.worker_pids()
            assert not set(now.values()) & set(pids.values())
            for number in (2, 3):
                second = [await count(one) for one in old]
                assert second == [{**told, "count": number} for told in first]
        for slot, pid in pids.items():  # nobody needs them any more
            running.wait_for(rf"worker {slot} \(pid {pid}\) ended", 60)

    with server(*LEAST, "--session-hold", "20") as running:
        asyncio.run(one(running))
        assert running.stop() == 0
        assert not re.search("Traceback|ERROR|WARNING", running.log())


def test_a_stop_does_not_wait_for_sessions_that_a_replaced_process_holds() -> None:
    with server(*LEAST, "--session-hold", "300") as running:
        held = [begin(running.port) for _ in range(4 * WORKERS)]
        before = reload(running)
        assert {ask(running.port, PING, one).status for one in held} == {200}
        assert len(running.processes()) == 2 * WORKERS + 1
        assert running.stop() == 0
        for slot, pid in before.items():
            running.wait_for(rf"worker {slot} \(pid {pid}\) ended")


@pytest.mark.parametrize("balance", ["address", "least"])
def test_a_process_that_was_replaced_begins_no_sessions(balance: str) -> None:
    with (
        server(*BY_SESSION, "--balance", balance, "--session-hold", "300", num=1) as running,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", running.port)) as line,
    ):
        port = running.port
        old = begin(port, line)
        before = reload(running)
        new = begin(port, line)  # on a connection that the process before has
        assert pid_of(port, old) == before[0]
        assert pid_of(port, new) == running.worker_pids()[0] != before[0]


# -- events between workers -----------------------------------------------------------------------


async def heard_and_said(running: Running, seconds: float) -> tuple[dict[int, list[str]], set[int]]:
    """A client for each worker listens while each worker in turn says that something has changed:
    what they hear, by the number of their worker, and which processes have said something."""
    addresses = addresses_by_slot()
    heard: dict[int, list[str]] = {slot: [] for slot in range(WORKERS)}
    notes = [f"note:///{slot}" for slot in range(WORKERS)]

    async def listen(slot: int, stack: contextlib.AsyncExitStack) -> Client:
        turns = itertools.cycle([addresses[slot]])
        http_ = await stack.enter_async_context(http_client(lambda: next(turns)))
        transport = streamable_http_client(f"{running.url}/mcp", http_client=http_)
        client = await stack.enter_async_context(Client(transport))
        listening = client.listen(tools_list_changed=True, resource_subscriptions=notes)
        changes = await stack.enter_async_context(listening)

        async def note() -> None:
            async for change in changes:
                heard[slot].append(getattr(change, "uri", "tools"))

        task = asyncio.create_task(note())
        stack.callback(task.cancel)
        return client

    async with contextlib.AsyncExitStack() as stack:
        clients = [await listen(slot, stack) for slot in range(WORKERS)]
        said = set()
        for slot, client in enumerate(clients):
            result = await client.call_tool("change", {"name": str(slot)})
            assert not result.is_error, result
            said.add(result.structured_content["pid"])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all({*notes, "tools"} <= set(found) for found in heard.values()):
                    await asyncio.sleep(0.01)
        return heard, said


def test_what_changes_in_one_worker_is_heard_by_those_who_listen_in_the_others() -> None:
    with KINDS["asgi"].serve(
        "tests.e2e.mcp_apps:shared", num=WORKERS, proxy=True, options=["--seed", SEED]
    ) as running:
        heard, said = asyncio.run(heard_and_said(running, 30))
        assert said == set(running.worker_pids().values())
    for found in heard.values():
        assert {*found} == {"tools", *(f"note:///{slot}" for slot in range(WORKERS))}


def test_with_the_package_s_own_bus_it_is_heard_in_its_own_worker_only() -> None:
    """The negative control."""
    with KINDS["asgi"].serve(
        "tests.e2e.mcp_apps:alone", num=WORKERS, proxy=True, options=["--seed", SEED]
    ) as running:
        heard, _ = asyncio.run(heard_and_said(running, 1))
    for slot, found in heard.items():
        assert set(found) == {"tools", f"note:///{slot}"}
