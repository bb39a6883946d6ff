"""How many slots there are, and to which of them a request leads: one object in each process.

The number lies in memory that all processes of a server share (``board``), and the compiled router
reads it there at each call. So it changes for the master and for every worker at the same moment,
and nobody has to be told.
"""

from __future__ import annotations

import struct

from .options import Options
from .routing import make_router

_MOST_EARLIER = 8
"""Numbers of slots before the present one that are remembered: sessions begun then may live on."""


class Topology:
    """The only holder of n.

    Args:
        options: the settings; ``num`` is what it begins with.
        cells: two cells of 8 bytes, shared: n (0 while nobody has set it), and how often it has
            changed. None: memory of its own.

    Attributes:
        router: from a request to its slot, at any moment.
    """

    def __init__(self, options: Options, cells: memoryview | None = None) -> None:
        self._cells = cells if cells is not None else memoryview(bytearray(16)).cast("Q")
        if not self._cells[0]:
            self._cells[0] = options.num
        self.router = make_router(options)
        self.router.follow(self._cells)
        self._earlier: list[int] = []

    @property
    def num(self) -> int:
        """How many slots there are."""
        return self._cells[0]

    @property
    def epoch(self) -> int:
        """How often their number has changed."""
        return self._cells[1]

    def change(self, num: int) -> None:
        """From now on there are so many; for the master alone."""
        before = self.num
        self._earlier = [it for it in self._earlier if it not in (before, num)]
        self._earlier.insert(0, before)
        del self._earlier[_MOST_EARLIER:]
        self._cells[1] += 1
        self._cells[0] = num

    def owners(self, session: bytes) -> list[int]:
        """The slots that may hold a session, likeliest first: where its id leads now, and where it
        did when there were more or fewer slots."""
        owner = self.router.owner
        return list(dict.fromkeys(owner(session, num) for num in (self.num, *self._earlier)))

    def pack(self) -> bytes:
        """What ``restore`` needs, beside the shared cells."""
        return struct.pack(f"!{len(self._earlier)}H", *self._earlier)

    def restore(self, packed: bytes) -> None:
        """In a new master: what the one before remembered."""
        self._earlier = list(struct.unpack(f"!{len(packed) // 2}H", packed))
