"""Measuring in turn, ratios of what was measured in the same turn, tables and verdicts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

QUICK = os.environ.get("BENCH_QUICK", "") not in ("", "0")


class Counted(Protocol):
    """Whose CPU time is counted."""

    def cpu(self) -> dict[str, int]:
        """Nanoseconds so far, by part."""


@dataclass
class Case:
    """What is measured: who does it, and what makes them do it so many times.

    Attributes:
        samples: for each turn microseconds of CPU per request, by part.
    """

    ask: Callable[[int], None]
    counted: Sequence[Counted]
    samples: list[dict[str, float]] = field(default_factory=list)

    def cpu(self) -> dict[str, int]:
        return {part: spent for it in self.counted for part, spent in it.cpu().items()}

    def turn(self, requests: int) -> None:
        before = self.cpu()
        self.ask(requests)
        time.sleep(0.004)  # what the servers do behind the last answer
        after = self.cpu()
        self.samples.append(
            {part: (after[part] - spent) / requests / 1000 for part, spent in before.items()}
        )

    def totals(self) -> list[float]:
        return [sum(sample.values()) for sample in self.samples]

    def part(self, part: str) -> list[float]:
        return [sample[part] for sample in self.samples]

    def row(self) -> dict[str, Any]:
        parts = {
            f"{part} us": median(self.part(part)) if part in self.samples[0] else None
            for part in ("master", "workers", "nginx")
        }
        return {"all us": median(self.totals()), **parts}


def alternate(cases: Mapping[str, Case], turns: int, requests: int) -> None:
    """Each case in turn, forwards and backwards, again and again."""
    for case in cases.values():
        case.turn(requests)
        case.samples.clear()
    for turn in range(turns):
        for case in list(cases.values())[:: -1 if turn % 2 else 1]:
            case.turn(requests)


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios within a turn."""
    return median(a / b for a, b in zip(above, below, strict=True))


@dataclass
class Verdict:
    """What was to be reached, and what was."""

    what: str
    value: float
    limit: float | None = None

    def __str__(self) -> str:
        if self.limit is None:
            return f"* {self.what}: {self.value:.2f}"
        word = "reached" if self.value <= self.limit else "MISSED"
        return f"* {word}: {self.what}: {self.value:.2f} (at most {self.limit:.2f})"


def section(title: str, rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> str:
    """A table with the keys of its rows as headings, then the verdicts."""
    shown = [{key: _shown(value) for key, value in row.items()} for row in rows]
    names = list(shown[0])
    widths = [max(len(name), *(len(row[name]) for row in shown)) for name in names]
    lines = [f"## {title}", ""]
    for cells in (names, ["-" * width for width in widths], *(row.values() for row in shown)):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join([*lines, "", *map(str, verdicts)]).rstrip() + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return str(value)
