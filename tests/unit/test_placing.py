"""Whose a request is: what a worker process says, alone, beside others of its slot, and at its
end."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from sticky import Options
from sticky.rules import MALFORMED, MISSING
from sticky.topology import Topology
from sticky.worker.placing import ELSEWHERE, UNHELD, Placing
from sticky.worker.sessions import Sessions

SLOT, NUM = 1, 3
SEED = bytes(range(8))
PEER = "192.0.2.1"


class Roster:
    """What the board would say."""

    def __init__(self) -> None:
        self.id = SLOT
        self.others = self.replaced = False
        self.others_have: list[int] = []

    def has_others(self) -> bool:
        return self.others

    def is_replaced(self) -> bool:
        return self.replaced

    def rivals(self) -> list[int]:
        return self.others_have


def make(**options: object) -> SimpleNamespace:
    """A Placing, and everything around it. ``held``: the ids that the app holds."""
    settings = Options.make({"num": NUM, "seed": SEED.hex(), **options})
    topology = Topology(settings)
    held: set[str] = set()
    sessions = None
    if settings.session:
        sessions = Sessions(topology, SLOT, Counter(), lambda: 0.0)
        sessions.held_by(held.__contains__)
    roster = Roster()
    placing = Placing(settings, topology, roster, sessions)
    return SimpleNamespace(
        placing=placing,
        roster=roster,
        held=held,
        sessions=sessions,
        topology=topology,
        router=topology.router,
    )


def asks(*lines: str, target: str = "/") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: t", *lines, "", ""]).encode()


def look(it: SimpleNamespace, head: bytes, *, first: bool = False) -> int:
    how = it.placing.look_first if first else it.placing.look
    return how(head, len(head), PEER)


def address_of(it: SimpleNamespace, slot: int) -> str:
    """A client's, of this slot."""
    for number in range(1, 255):
        head = asks(f"X-Forwarded-For: 10.0.0.{number}")
        if it.router.route(head, len(head), PEER) == slot:
            return f"10.0.0.{number}"
    raise AssertionError


def id_of(it: SimpleNamespace, slot: int) -> str:
    """A session id that leads to this slot."""
    return next(text for text in map(str, range(1000)) if it.router.owner(text.encode()) == slot)


# -- by address ------------------------------------------------------------------------------------


def test_a_further_request_is_its_clients_slots() -> None:
    it = make(proxy=True)
    for slot in range(NUM):
        head = asks(f"X-Forwarded-For: {address_of(it, slot)}")
        assert look(it, head) == look(it, head, first=True) == slot
    assert look(it, asks()) == MISSING
    assert look(it, asks("X: a\0")) == MALFORMED


@pytest.mark.parametrize(
    ("options", "looking"),
    [
        ({"proxy": True}, True),
        ({"proxy": True, "num": 1}, False),
        ({"proxy": False}, False),
        ({"proxy": False, "session": "sid"}, True),
        ({"proxy": True, "num": 1, "session": "sid"}, True),
    ],
)
def test_who_looks_at_further_requests(options: dict[str, object], looking: bool) -> None:
    assert make(**options).placing.looking == looking


def test_without_sessions_neither_a_successor_nor_an_end_changes_whose_a_request_is() -> None:
    it = make(proxy=True)
    head = asks(f"X-Forwarded-For: {address_of(it, SLOT)}")
    it.roster.others = it.roster.replaced = it.placing.ending = True
    assert look(it, head) == SLOT
    assert not it.placing.asks_first(unheld=False)
    assert it.placing.takes_new


# -- by session ------------------------------------------------------------------------------------


def test_an_id_leads_to_its_slot_whoever_asks() -> None:
    it = make(session="query:id")
    for slot in range(NUM):
        assert look(it, asks(target=f"/?id={id_of(it, slot)}")) == slot


def test_alone_in_its_slot_a_process_answers_for_every_id_of_it() -> None:
    it = make(session="query:id")
    head = asks(target=f"/?id={id_of(it, SLOT)}")
    assert look(it, head) == SLOT  # though nobody holds it
    assert not it.placing.asks_first(unheld=False)


def test_beside_another_process_of_its_slot_it_answers_for_what_it_holds() -> None:
    it = make(session="query:id")
    it.roster.others = True
    session = id_of(it, SLOT)
    head = asks(target=f"/?id={session}")
    assert it.placing.asks_first(unheld=False)
    assert look(it, head) == look(it, head, first=True) == UNHELD
    it.held.add(session)
    assert look(it, head) == look(it, head, first=True) == SLOT
    # Who has asked that process already is not sent there again.
    assert not it.placing.asks_first(unheld=True)


def test_at_its_end_it_answers_for_what_it_holds_and_for_nothing_new() -> None:
    it = make(session="query:id")
    it.placing.ending = True
    session = id_of(it, SLOT)
    it.held.add(session)
    assert look(it, asks(target=f"/?id={session}")) == SLOT
    mine = next(
        f"192.0.2.{n}"
        for n in range(1, 255)
        if it.router.route(asks(), len(asks()), f"192.0.2.{n}") == SLOT
    )
    assert it.placing.look(asks(), len(asks()), mine) == ELSEWHERE
    it.placing.stopping = True  # there will be no successor
    assert it.placing.look(asks(), len(asks()), mine) == SLOT


def test_a_replaced_process_takes_nothing_from_the_inbox_of_its_slot() -> None:
    it = make(session="query:id")
    assert it.placing.takes_new
    it.roster.replaced = it.roster.others = True
    assert not it.placing.takes_new


# -- anywhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "others", "keeps"),
    [
        (0, [0, 0], True),
        (1, [0, 0], True),  # a little more than others is no reason to move it
        (2, [0, 5], False),
        (2, [1, 1], True),
        (101, [98, 200], True),
        (104, [98, 200], False),
    ],
)
def test_a_new_session_stays_where_there_are_not_many_more_than_elsewhere(
    ours: int, others: list[int], keeps: bool
) -> None:
    it = make(session="query:id", balance="least")
    for _ in range(ours):
        it.held.add(it.sessions.mint())
    it.roster.others_have = others
    assert look(it, asks()) == (SLOT if keeps else ELSEWHERE)
    assert look(it, asks(), first=True) == SLOT  # the master has placed it


def test_in_turn_a_new_session_goes_to_the_master() -> None:
    it = make(session="query:id", balance="round-robin")
    it.roster.others_have = [100, 100]
    assert look(it, asks()) == ELSEWHERE
    assert look(it, asks(), first=True) == SLOT


@pytest.mark.parametrize("balance", ["least", "round-robin"])
def test_a_new_session_never_begins_in_a_process_that_was_replaced(balance: str) -> None:
    it = make(session="query:id", balance=balance)
    it.roster.replaced = it.roster.others = True
    assert look(it, asks()) == look(it, asks(), first=True) == ELSEWHERE


# -- for people ------------------------------------------------------------------------------------


def test_the_key_is_what_it_is_routed_by() -> None:
    it = make(proxy=True)
    assert it.placing.key_of(asks("X-Forwarded-For: 10.0.0.7"), PEER) == b"10.0.0.7"
    assert it.placing.key_of(b"GET / HT", PEER) == b""


# -- more slots, or fewer --------------------------------------------------------------------------


def moved(it: SimpleNamespace, before: int, after: int, *, origin: int, to: int) -> str:
    """A session id that leads from one slot to another when there are more slots, or fewer."""
    owner = it.router.owner
    ids = (text for text in map(str, range(10_000)))
    return next(
        text
        for text in ids
        if (owner(text.encode(), before), owner(text.encode(), after)) == (origin, to)
    )


def test_a_session_that_began_here_stays_here_when_there_are_more_slots() -> None:
    it = make(session="query:id")
    mine = moved(it, NUM, NUM + 1, origin=SLOT, to=NUM)
    head = asks(target=f"/?id={mine}")
    it.held.add(mine)
    assert look(it, head) == SLOT
    it.topology.change(NUM + 1)
    assert it.placing.asks_first(unheld=False)
    assert look(it, head) == look(it, head, first=True) == SLOT


def test_one_that_did_not_begin_here_goes_where_its_id_leads() -> None:
    it = make(session="query:id")
    other = moved(it, NUM, NUM + 1, origin=SLOT, to=NUM)
    it.topology.change(NUM + 1)
    head = asks(target=f"/?id={other}")
    assert look(it, head) == NUM
    assert look(it, head, first=True) == UNHELD  # it was asked for, and there may be others


def test_a_slot_that_is_new_asks_for_the_sessions_that_began_elsewhere() -> None:
    it = make(session="query:id", num=NUM - 1)
    head = asks(target=f"/?id={moved(it, NUM - 1, NUM, origin=0, to=NUM - 1)}")
    assert look(it, head) == 0
    it.topology.change(NUM)
    it.placing.slot = NUM - 1
    assert look(it, head, first=True) == UNHELD


def test_further_requests_are_looked_at_once_there_are_several_slots() -> None:
    it = make(proxy=True, num=1)
    assert not it.placing.looking
    it.topology.change(2)
    it.placing.rescaled()
    assert it.placing.looking
