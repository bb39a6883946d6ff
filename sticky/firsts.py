"""Clients that have no id yet: which slot they go to, and the id that they are given.

A browser opens four tabs, or asks for six resources, before it has its cookie. All processes send
it to one slot, and give it one id, for two seconds from the first choice (``core.Firsts``).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from .core import Firsts
from .topology import Topology


class FirstRequests:
    """What is agreed about them.

    Args:
        topology: whose ids they are to be.
        cells: memory that all processes of the server share (``board``).
        clock: the monotonic time, in seconds, the same for all of them.
    """

    def __init__(
        self, topology: Topology, cells: memoryview, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._topology = topology
        self._router = topology.router
        self._firsts = Firsts(cells)
        self._clock = clock

    def who(self, head: bytes | bytearray, length: int, peer: str) -> int:
        """64 bits by which a client is known that has no id; see ``Router.who``."""
        return self._router.who(head, length, peer)

    def agreed(self, who: int) -> int:
        """The slot that was chosen for a client, or -1."""
        slot, _ = self._firsts.agree(who, int(self._clock() * 1000), -1)
        return slot if slot < self._topology.num else -1

    def agree(self, who: int, slot: int) -> int:
        """The slot that was chosen for it, which is this one if there was none."""
        chosen, _ = self._firsts.agree(who, int(self._clock() * 1000), slot)
        return slot if not 0 <= chosen < self._topology.num else chosen

    def id_for(self, who: int, slot: int) -> bytes:
        """An id that leads to a slot, the same for a client's first requests; b"": there is no such
        slot any more."""
        if slot >= self._topology.num:
            return b""
        chosen, when = self._firsts.agree(who, int(self._clock() * 1000), slot)
        if chosen == slot:
            random = self._router.random(struct.pack("!QIH", who, when, slot))
        else:  # it was sent here all the same: that choice is older than two seconds by now
            random = os.urandom(15)
        return self._router.mint(slot, random)
