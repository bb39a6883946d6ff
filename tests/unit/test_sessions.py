"""Session ids in a worker: minted, held, counted."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from sticky import Options, StickyError
from sticky.routing import make_router
from sticky.worker.sessions import Sessions, end

OPTIONS = Options(num=5, session="query:id", seed=bytes(range(8)))


@pytest.fixture
def counters():
    return Counter()


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


@pytest.fixture
def sessions(counters, clock):
    return Sessions(OPTIONS, 3, counters, lambda: clock.now)


def owner(minted):
    return make_router(OPTIONS).owner(minted.encode())


def test_what_is_minted_leads_back(sessions):
    minted = {sessions.mint() for _ in range(100)}
    assert len(minted) == 100
    assert {owner(one) for one in minted} == {3}


def test_ids_of_the_apps_own_make_are_drawn_until_one_leads_back(sessions):
    drawn = map("id-{}".format, itertools.count())
    minted = [sessions.mint(lambda: next(drawn)) for _ in range(20)]
    assert {owner(one) for one in minted} == {3}
    assert all(one.startswith("id-") for one in minted)


def test_ids_that_are_always_the_same_are_found_out(sessions):
    elsewhere = next(text for text in map(str, range(100)) if owner(text) != 3)
    with pytest.raises(StickyError, match="must make another, random id each time"):
        sessions.mint(lambda: elsewhere)


def test_what_is_held_the_app_says(sessions, counters):
    assert sessions.hold("anything")  # nobody can say
    assert not sessions.last
    kept = set()
    sessions.held_by(kept.__contains__)
    kept.update(minted := [sessions.mint() for _ in range(3)])
    assert counters["sessions"] == 3
    assert all(map(sessions.hold, minted))
    assert not sessions.hold("another")
    assert sessions.last
    sessions.count()
    kept.pop()
    sessions.count()
    assert counters["sessions"] == 2
    kept.clear()
    sessions.count()
    assert (counters["sessions"], sessions.last) == (0, False)


def test_what_the_app_has_minted_it_may_store_a_little_later(sessions, counters, clock):
    kept = set()
    sessions.held_by(kept.__contains__)
    minted, forgotten = sessions.mint(), sessions.mint()
    sessions.count()
    assert sessions.last
    kept.add(minted)
    clock.now += 6
    sessions.count()
    assert not sessions.hold(forgotten)
    assert (counters["sessions"], sessions.last) == (1, True)
    kept.clear()
    sessions.count()
    assert (counters["sessions"], sessions.last) == (0, False)


def test_where_nobody_says_what_is_held_ids_are_not_kept(sessions, counters):
    for _ in range(1000):
        sessions.mint()
    sessions.count()
    assert counters["sessions"] == 1000
    assert not sessions._minted


def test_threads_mint_while_it_is_counted_what_is_held(sessions):
    kept = set()
    sessions.held_by(kept.__contains__)

    def mint():
        for _ in range(2000):
            kept.add(sessions.mint())

    threads = [threading.Thread(target=mint) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sessions.count()
    sessions.count()
    assert len(kept) == len(sessions._minted) == 8000


def test_a_holder_must_be_a_plain_function(sessions):
    async def holder(_):
        return False

    with pytest.raises(TypeError, match="plain function"):
        sessions.held_by(holder)


def test_a_holder_that_fails_holds(sessions, caplog):
    sessions.held_by(lambda _: 1 // 0)
    assert sessions.hold("x")  # the app is to answer itself
    assert "sticky.holds failed" in caplog.text


def test_engineio_mints_here_and_says_what_it_holds(counters, monkeypatch):
    import engineio
    import engineio.base_server

    monkeypatch.setattr(
        engineio.base_server.BaseServer,
        "generate_id",
        engineio.base_server.BaseServer.generate_id,
    )

    class Own(engineio.Server):
        def generate_id(self):
            return "own-" + super().generate_id()

    own = Own(async_mode="threading")
    patched = engineio.AsyncServer()
    patched.generate_id = lambda: "patched-" + os.urandom(4).hex()
    sessions = Sessions(OPTIONS, 3, counters)
    sessions.mint_for_engineio()
    later = engineio.AsyncServer()
    assert not sessions.hold("an id of the process before")
    for server in (own, patched, later):
        minted = server.generate_id()
        assert owner(minted) == 3
        assert minted.startswith("own-") == (server is own)
        assert minted.startswith("patched-") == (server is patched)
        assert not sessions.hold(minted)
        server.sockets[minted] = SimpleNamespace(closed=True)
        assert not sessions.hold(minted)
        server.sockets[minted].closed = False
        assert sessions.hold(minted)
    sessions.count()
    assert counters["sessions"] == 3
    own.sockets.clear()
    sessions.count_servers()
    assert counters["sessions"] == 2


# -- the end of those of Engine.IO -----------------------------------------------------------------


def test_a_session_ends_without_a_packet_that_says_so():
    """A CLOSE packet is final for some clients, so that they would not come back."""
    engineio = pytest.importorskip("engineio")
    server = engineio.Server(async_mode="threading")
    seen = []
    server.on("disconnect", lambda sid, reason: seen.append((sid, server.get_session(sid))))
    session = server.sockets["x"] = engineio.socket.Socket(server, "x")
    with server.session("x") as kept:
        kept["user"] = "somebody"
    assert end(session) is None
    assert seen == [("x", {"user": "somebody"})]  # the app's handler still has what it has kept
    assert server.sockets == {}  # and would make a KeyError, and a 500, of a request for it
    assert session.poll() == []  # which is a poll's, or a websocket's end


def test_a_session_of_an_asynchronous_server_ends_in_the_same_way():
    engineio = pytest.importorskip("engineio")

    async def run():
        server = engineio.AsyncServer(async_mode="asgi")
        seen = []

        async def disconnect(sid, reason):
            await asyncio.sleep(0)
            seen.append(await server.get_session(sid))

        server.on("disconnect", disconnect)
        session = server.sockets["x"] = engineio.async_socket.AsyncSocket(server, "x")
        await server.save_session("x", "kept")
        poll = asyncio.create_task(session.poll())
        await asyncio.sleep(0)
        await end(session)
        assert seen == ["kept"]
        assert server.sockets == {}
        assert await asyncio.wait_for(poll, 10) == []  # what waits there waits no longer

    asyncio.run(run())


def test_a_session_whose_handler_fails_does_not_keep_the_others():
    session = SimpleNamespace(closed=False, sid="x", server=SimpleNamespace(sockets={}))

    def close(**how):
        raise RuntimeError

    session.close = close
    assert end(session) is None


def test_a_session_that_somebody_else_is_ending_is_left_to_them():
    server = SimpleNamespace(sockets={})
    session = SimpleNamespace(closed=False, sid="x", server=server, close=lambda **how: None)
    server.sockets["x"] = session
    assert end(session) is None
    assert server.sockets == {"x": session}
