"""The channel layer for Django Channels: what the package's specification asks for, and between
workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from .mail_kit import Office

pytest.importorskip("channels")

from channels.exceptions import ChannelFull

from sticky.contrib import channels
from sticky.contrib.channels import ChannelLayer

Body = Callable[..., Coroutine[Any, Any, None]]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(channels, "time", clock)
    return clock


def with_layers(body: Body, num: int = 1, **options: Any) -> None:
    """Run this with the layers of so many workers."""

    async def main() -> None:
        office = Office()
        layers = []
        for slot in range(num):
            mail = office.join(slot, attend=False)
            office.attend_in_asyncio(mail)
            layers.append(ChannelLayer(mail=mail, **options))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(30):
                await body(*layers)
        finally:
            office.close()

    asyncio.run(main())


async def nothing_comes(layer: ChannelLayer, channel: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await layer.receive(channel)


def test_what_is_sent_is_received_in_order() -> None:
    async def body(layer: ChannelLayer) -> None:
        for number in range(3):
            await layer.send("general", {"type": "a", "n": number})
        assert [(await layer.receive("general"))["n"] for _ in range(3)] == [0, 1, 2]
        name = await layer.new_channel()
        assert "!" in name
        layer.require_valid_channel_name(name)
        await layer.send(name, {"type": "a", "text": "only here"})
        assert await layer.receive(name) == {"type": "a", "text": "only here"}
        assert await layer.new_channel() != await layer.new_channel()

    with_layers(body)


def test_a_message_is_a_copy() -> None:
    async def body(layer: ChannelLayer) -> None:
        message = {"type": "a", "list": [1]}
        await layer.send("general", message)
        message["list"].append(2)
        assert await layer.receive("general") == {"type": "a", "list": [1]}

    with_layers(body)


def test_a_channel_has_so_much_room() -> None:
    async def body(layer: ChannelLayer) -> None:
        for _ in range(3):
            await layer.send("general", {"type": "a"})
        with pytest.raises(ChannelFull):
            await layer.send("general", {"type": "a"})
        for _ in range(5):
            await layer.send("wide.1", {"type": "a"})
        with pytest.raises(ChannelFull):
            await layer.send("wide.1", {"type": "a"})

    with_layers(body, capacity=3, channel_capacity={"wide.*": 5})


def test_groups_reach_their_members_and_no_others() -> None:
    async def body(layer: ChannelLayer) -> None:
        for name in ("one", "two", "three"):
            await layer.group_add("group", name)
        await layer.group_discard("group", "two")
        await layer.group_send("group", {"type": "a"})
        assert await layer.receive("one") == await layer.receive("three") == {"type": "a"}
        await nothing_comes(layer, "two")
        await layer.group_send("empty", {"type": "a"})

    with_layers(body)


def test_sending_to_a_group_ignores_channels_that_are_full() -> None:
    async def body(layer: ChannelLayer) -> None:
        await layer.group_add("group", "one")
        for _ in range(5):
            await layer.group_send("group", {"type": "a"})
        for _ in range(3):
            await layer.receive("one")
        await nothing_comes(layer, "one")

    with_layers(body, capacity=3)


def test_messages_expire_and_who_does_not_receive_leaves_its_groups(clock: Clock) -> None:
    async def body(layer: ChannelLayer) -> None:
        await layer.group_add("group", "one")
        await layer.send("one", {"type": "old"})
        await layer.send("unread", {"type": "old"})
        clock.now += 61
        await nothing_comes(layer, "one")
        await layer.group_send("group", {"type": "new"})
        await nothing_comes(layer, "one")
        await layer.send("other", {"type": "new"})
        assert await layer.receive("other") == {"type": "new"}
        assert layer._channels == {}
        assert layer._groups == {}

    with_layers(body, expiry=60)


def test_membership_of_a_group_expires(clock: Clock) -> None:
    async def body(layer: ChannelLayer) -> None:
        await layer.group_add("group", "one")
        clock.now += 601
        await layer.group_send("group", {"type": "a"})
        await nothing_comes(layer, "one")

    with_layers(body, group_expiry=600, expiry=60)


def test_one_who_stops_waiting_takes_nothing_with_it() -> None:
    async def body(layer: ChannelLayer) -> None:
        first = asyncio.create_task(layer.receive("general"))
        second = asyncio.create_task(layer.receive("general"))
        await asyncio.sleep(0)
        await layer.send("general", {"type": "a"})
        first.cancel()  # it has just been told
        assert await second == {"type": "a"}
        assert layer._channels == {}

    with_layers(body)


def test_flush_forgets_everything() -> None:
    async def body(layer: ChannelLayer) -> None:
        await layer.send("general", {"type": "a"})
        await layer.group_add("group", "one")
        await layer.flush()
        await layer.group_send("group", {"type": "a"})
        await nothing_comes(layer, "general")
        await nothing_comes(layer, "one")

    with_layers(body)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 100, 3])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    async def body(layer: ChannelLayer) -> None:
        for call in (layer.send, layer.group_send):
            with pytest.raises(TypeError):
                await call(name, {"type": "a"})
        with pytest.raises(TypeError):
            await layer.receive(name)
        with pytest.raises(TypeError):
            await layer.group_add(name, "one")
        with pytest.raises(TypeError):
            await layer.group_add("group", name)
        with pytest.raises(AssertionError):
            await layer.send("one", "no dict")

    with_layers(body)


MESSAGE = {"type": "a", "bytes": b"\x00\xff", "list": [1, 2.5, None, True, {"b": b""}], "ä": "ö"}


def test_groups_and_specific_channels_reach_other_workers() -> None:
    async def body(here: ChannelLayer, there: ChannelLayer, third: ChannelLayer) -> None:
        name, other = await there.new_channel(), await third.new_channel("mine")
        await there.group_add("group", name)
        await third.group_add("group", other)
        await here.group_send("group", MESSAGE)
        assert await there.receive(name) == MESSAGE
        assert await third.receive(other) == MESSAGE
        await here.send(other, MESSAGE)
        assert await third.receive(other) == MESSAGE
        await nothing_comes(there, other)
        await there.group_discard("group", name)
        await here.group_send("group", {"type": "b"})
        assert await third.receive(other) == {"type": "b"}
        await nothing_comes(there, name)

    with_layers(body, 3)


def test_a_thread_sends_as_the_loop_does() -> None:
    async def body(here: ChannelLayer, there: ChannelLayer) -> None:
        name, other = await here.new_channel(), await there.new_channel()
        await here.group_add("group", name)
        await there.group_add("group", other)

        def in_thread() -> None:
            asyncio.run(here.group_send("group", {"type": "a"}))
            asyncio.run(here.send(name, {"type": "b"}))

        thread = threading.Thread(target=in_thread)
        thread.start()
        assert await there.receive(other) == {"type": "a"}
        assert await here.receive(name) == {"type": "a"}
        assert await here.receive(name) == {"type": "b"}
        thread.join(10)

    with_layers(body, 2)
