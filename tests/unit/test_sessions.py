"""Session ids in a worker: minted, held, counted."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from sticky import Options, StickyError
from sticky.routing import make_router
from sticky.sessions import Sessions

OPTIONS = Options(num=5, session="query:id", seed=bytes(range(8)))


@pytest.fixture
def counters():
    return Counter()


@pytest.fixture
def sessions(counters):
    return Sessions(OPTIONS, 3, counters)


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
    kept.pop()
    sessions.count()
    assert counters["sessions"] == 2
    kept.clear()
    sessions.count()
    assert (counters["sessions"], sessions.last) == (0, False)


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
    sessions = Sessions(OPTIONS, 3, counters)
    sessions.mint_for_engineio()
    later = engineio.AsyncServer()
    for server in (own, later):
        minted = server.generate_id()
        assert owner(minted) == 3
        assert minted.startswith("own-") == (server is own)
        assert not sessions.hold(minted)
        server.sockets[minted] = object()
        assert sessions.hold(minted)
    sessions.count()
    assert counters["sessions"] == 2
    own.sockets.clear()
    sessions.count_servers()
    assert counters["sessions"] == 1
