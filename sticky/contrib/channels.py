"""A channel layer for Django Channels, over all workers of one server and without Redis.

    CHANNEL_LAYERS = {"default": {"BACKEND": "sticky.contrib.channels.ChannelLayer"}}

Groups reach the members of every worker; a specific channel (with a "!", as ``new_channel`` makes
them) leads to the worker that has made it. A general channel belongs to the worker that uses it:
who runs ``runworker`` beside the server has no part in this, and needs a layer with a broker.

Delivery is at most once. A message waits ``expiry`` seconds to be received, and a channel has room
for ``capacity`` of them: ``send`` raises ChannelFull where the channel is this worker's own; what
another worker has no room for is dropped there, as ``group_send`` does with it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import time
from collections import deque
from copy import deepcopy
from typing import Any

from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from ..bus import mail_of_worker
from ..mail import Mail
from ..mailbox import Sender

__all__ = ["ChannelLayer"]

_BYTES = "\0bytes"
_CLEAN = 1.0
"""Seconds between two looks for what nobody has received."""

log = logging.getLogger("sticky.contrib.channels")


class _Channel:
    """What waits to be received from one channel, and who waits for it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.messages: deque[tuple[float, dict[str, Any]]] = deque()
        self.waiting: deque[asyncio.Future[None]] = deque()

    def put(self, message: dict[str, Any], until: float) -> bool:
        """False: there is no room."""
        if len(self.messages) >= self.capacity:
            return False
        self.messages.append((until, message))
        self.wake()
        return True

    def wake(self) -> None:
        """Have one of those who wait look."""
        while self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    def drop_expired(self, now: float) -> bool:
        """Whether there were some."""
        found = False
        while self.messages and self.messages[0][0] < now:
            self.messages.popleft()
            found = True
        return found


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]  # it is not typed
    """The layer of one worker.

    Args:
        expiry: seconds that a message waits to be received.
        group_expiry: seconds after which a channel is in a group no more, if it has not been added
            again.
        capacity, channel_capacity: as Channels has them.
        prefix: layers that share it share their groups.
        mail: of this process; for tests.

    Raises:
        StickyError: this process is no worker.
    """

    extensions = ("groups", "flush")

    def __init__(
        self,
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: dict[Any, int] | None = None,
        prefix: str = "channels",
        *,
        mail: Mail | None = None,
    ) -> None:
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        self.group_expiry = group_expiry
        self._mail = mail or mail_of_worker("sticky.contrib.channels.ChannelLayer")
        sender = self._mail.sender
        self._here = f"{sender.row}.{sender.pid}"
        self._prefix = prefix
        self._specific = f"{prefix} specific".encode()
        self._channels: dict[str, _Channel] = {}
        self._groups: dict[str, dict[str, float]] = {}  # with when each was added
        self._cleaned = 0.0
        self._mail.subscribe(self._specific, self._heard)

    @property
    def _in_loop(self) -> bool:
        waiter = self._mail.waiter
        return waiter is not None and waiter.here

    # -- channels -------------------------------------------------------------------------------

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to a channel.

        Raises:
            ChannelFull: it is this worker's, and has no room.
            TypeError: the channel's name is none.
        """
        assert isinstance(message, dict), "message is not a dict"
        self.require_valid_channel_name(channel)
        if (row := self._elsewhere(channel)) is not None:
            self._mail.post(self._specific, _packed([channel, message]), only=row)
        elif self._in_loop:
            if not self._put(channel, deepcopy(message)):
                raise ChannelFull(channel)
        else:
            if (known := self._channels.get(channel)) and len(known.messages) >= known.capacity:
                raise ChannelFull(channel)
            self._mail.post_here(self._specific, _packed([channel, message]))

    def _elsewhere(self, channel: str) -> int | None:
        """The row of the other process that has made a channel; None: it is none of theirs."""
        name, mark, _ = channel.partition("!")
        process = name.rpartition("-")[2]
        if not mark or process == self._here:
            return None
        row, dot, pid = process.partition(".")
        return int(row) if dot and row.isdecimal() and pid.isdecimal() else None

    def _put(self, channel: str, message: dict[str, Any]) -> bool:
        self._clean()
        there = self._channels.get(channel)
        if there is None:
            there = self._channels[channel] = _Channel(self.get_capacity(channel))
        return there.put(message, time.monotonic() + self.expiry)

    def _heard(self, payload: bytes, sender: Sender) -> None:
        channel, message = _unpacked(payload)
        if not self._put(channel, message):
            log.info("a message for the channel %s was dropped: it is full", channel)

    async def receive(self, channel: str) -> dict[str, Any]:
        """The next message of a channel, once there is one."""
        self.require_valid_channel_name(channel)
        there = self._channels.get(channel)
        if there is None:
            there = self._channels[channel] = _Channel(self.get_capacity(channel))
        try:
            while True:
                if there.drop_expired(time.monotonic()):
                    self._leave_groups(channel)
                if there.messages:
                    return there.messages.popleft()[1]
                future = asyncio.get_running_loop().create_future()
                there.waiting.append(future)
                try:
                    await future
                except asyncio.CancelledError:
                    if future.done() and not future.cancelled():
                        there.wake()  # what it was told is somebody else's now
                    raise
        finally:
            self._forget(channel, there)

    def _forget(self, channel: str, there: _Channel) -> None:
        waits = any(not future.done() for future in there.waiting)
        if not there.messages and not waits and self._channels.get(channel) is there:
            del self._channels[channel]

    async def new_channel(self, prefix: str = "specific") -> str:
        """The name of a new channel, which is this worker's."""
        return f"{prefix}.sticky-{self._here}!{secrets.token_hex(8)}"

    def _clean(self) -> None:
        """Drop what nobody has received, and who has been in a group for too long."""
        now = time.monotonic()
        if now < self._cleaned + min(_CLEAN, self.expiry):
            return
        self._cleaned = now
        for channel, there in list(self._channels.items()):
            if there.drop_expired(now):
                self._leave_groups(channel)
                self._forget(channel, there)
        for group, members in list(self._groups.items()):
            oldest = now - self.group_expiry
            for channel in [one for one, since in members.items() if since < oldest]:
                self._discard(group, channel)

    async def flush(self) -> None:
        """Forget all channels and groups of this worker."""
        self._channels = {}
        for group in list(self._groups):
            self._mail.unsubscribe(self._topic(group), self._heard_group)
        self._groups = {}

    async def close(self) -> None:
        """There is nothing to close."""

    # -- groups ---------------------------------------------------------------------------------

    def _topic(self, group: str) -> bytes:
        return f"{self._prefix} group {group}".encode()

    async def group_add(self, group: str, channel: str) -> None:
        """Have a channel get what is sent to a group. It has to be this worker's."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        members = self._groups.get(group)
        if members is None:
            members = self._groups[group] = {}
            self._mail.subscribe(self._topic(group), self._heard_group)
        members[channel] = time.monotonic()

    async def group_discard(self, group: str, channel: str) -> None:
        """The opposite."""
        self.require_valid_channel_name(channel)
        self.require_valid_group_name(group)
        self._discard(group, channel)

    def _discard(self, group: str, channel: str) -> None:
        members = self._groups.get(group)
        if members is not None:
            members.pop(channel, None)
            if not members:
                del self._groups[group]
                self._mail.unsubscribe(self._topic(group), self._heard_group)

    def _leave_groups(self, channel: str) -> None:
        """Nobody receives from it."""
        for group in [group for group, members in self._groups.items() if channel in members]:
            self._discard(group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message to all channels of a group; what one has no room for is dropped."""
        assert isinstance(message, dict), "message is not a dict"
        self.require_valid_group_name(group)
        data, topic = _packed([group, message]), self._topic(group)
        self._mail.post(topic, data)
        if self._in_loop:
            self._tell_group(group, message)
        else:
            self._mail.post_here(topic, data)

    def _heard_group(self, payload: bytes, sender: Sender) -> None:
        group, message = _unpacked(payload)
        self._tell_group(group, message)

    def _tell_group(self, group: str, message: dict[str, Any]) -> None:
        self._clean()
        for channel in list(self._groups.get(group, ())):
            if not self._put(channel, deepcopy(message)):
                log.info("a message for the channel %s was dropped: it is full", channel)


def _packed(content: list[Any]) -> bytes:
    try:
        return json.dumps(content).encode()
    except TypeError:  # there are bytes in it
        return json.dumps(_plain(content)).encode()


def _plain(value: Any) -> Any:
    """The same, with what JSON has not made something that it has."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _unpacked(data: bytes) -> Any:
    return json.loads(data, object_hook=_revived)


def _revived(found: dict[str, Any]) -> Any:
    return base64.b64decode(found[_BYTES]) if found.keys() == {_BYTES} else found
