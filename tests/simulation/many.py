"""Many histories, one after another, and what became of them in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .history import Disproved, run
from .kernel import Code

Told = tuple[int, int, Counter[str], Counter[str], str]
"""Histories, turns, connections by their outcome, histories by what happened in them, what was
disproved ("" for nothing)."""


def some(seeds: Iterable[int]) -> Told:
    """These histories, up to the first in which a promise is broken."""
    code = Code()
    number = turns = 0
    total: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for seed in seeds:
        try:
            world = run(seed, code)
        except Disproved as error:
            return number, turns, total, events, str(error)
        number += 1
        turns += world.kernel.turns
        total.update(world.outcomes())
        events.update(set(world.kernel.events))
    return number, turns, total, events, ""
