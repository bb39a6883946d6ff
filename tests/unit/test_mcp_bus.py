"""The subscription bus for the package ``mcp``: as its own one, and between workers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .mail_kit import Office

pytest.importorskip("mcp")

from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ToolsListChanged,
)

from sticky.contrib.mcp import SubscriptionBus

EVENTS = [
    ToolsListChanged(),
    PromptsListChanged(),
    ResourcesListChanged(),
    ResourceUpdated("file:///a"),
]


def test_every_event_reaches_the_listeners_of_every_worker_in_order() -> None:
    async def main() -> None:
        office = Office()
        found: list[list[Any]] = [[], [], []]
        buses = []
        for slot in range(3):
            mail = office.join(slot, attend=False)
            office.attend_in_asyncio(mail)
            buses.append(SubscriptionBus(mail=mail))
        await asyncio.sleep(0)

        def fail(event: Any) -> None:
            raise ValueError("no")

        ends = [bus.subscribe(one.append) for bus, one in zip(buses, found, strict=True)]
        buses[1].subscribe(fail)
        for event in EVENTS:
            await buses[0].publish(event)
        assert found[0] == EVENTS  # those of this worker at once
        async with asyncio.timeout(20):
            while not all(one == EVENTS for one in found):
                await asyncio.sleep(0.001)
        ends[1]()
        ends[1]()
        await buses[2].publish(EVENTS[0])
        async with asyncio.timeout(20):
            while len(found[0]) != 5:
                await asyncio.sleep(0.001)
        assert [len(one) for one in found] == [5, 4, 5]
        ends[0]()
        office.close()

    asyncio.run(main())


def test_the_same_listener_may_be_subscribed_twice() -> None:
    async def main() -> None:
        office = Office()
        mail = office.join(0, attend=False)
        bus, found = SubscriptionBus(mail=mail), []
        first, _ = bus.subscribe(found.append), bus.subscribe(found.append)
        await bus.publish(EVENTS[0])
        first()
        await bus.publish(EVENTS[1])
        assert found == [EVENTS[0], EVENTS[0], EVENTS[1]]
        office.close()

    asyncio.run(main())
