"""Which slot a request goes to that carries no session id and is not to go by its address.

Decides from what it is told about the slots: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable

from ..topology import Topology

Load = Callable[[int], int | None]
"""How much a slot has to do; None while it can take nothing more."""


class Balance:
    """The next slot, each time it is asked for.

    Args:
        kind: "least": the slot with the least load, and in turn where several have that;
            "round-robin": one after the other. Slots that can take nothing more are left out
            while there are others.
        topology: the number of slots.
        load: asked for each slot, each time.
    """

    def __init__(self, kind: str, topology: Topology, load: Load) -> None:
        self._least = kind == "least"
        self._topology = topology
        self._load = load
        self._turn = 0

    def next(self) -> int:
        """The slot for one more session."""
        num = self._topology.num
        chosen, least = self._turn % num, None
        for step in range(num):
            slot = (self._turn + step) % num
            load = self._load(slot)
            if load is not None and (least is None or load < least):
                chosen, least = slot, load
                if not self._least or not load:
                    break  # nobody has less
        self._turn = (chosen + 1) % num
        return chosen
