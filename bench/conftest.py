"""The report of the whole-system benchmarks: printed at the end, and kept with ``--results``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from .rigs import machine

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser):
    parser.addoption(
        "--results", action="store_true", help="write the figures to bench/results/*.md"
    )


class Report:
    """Sections of tables and verdicts, by page."""

    def __init__(self) -> None:
        self.pages: dict[str, list[str]] = {}

    def section(
        self,
        page: str,
        title: str,
        rows: Iterable[Mapping[str, Any]],
        verdicts: Iterable[tuple[str, float, float]] = (),
    ) -> None:
        """A table with the keys of its rows as headings, then what was to be reached."""
        rows = [{key: _shown(value) for key, value in row.items()} for row in rows]
        lines = [f"## {title}", ""]
        names = list(rows[0])
        widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
        for cells in (names, ["-" * width for width in widths], *(row.values() for row in rows)):
            padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append("| " + " | ".join(padded) + " |")
        lines.append("")
        for what, value, limit in verdicts:
            word = "PASS" if value <= limit else "MISS"
            lines.append(f"* {word}: {what}: {value:.2f}x (at most {limit:.2f}x)")
        self.pages.setdefault(page, []).append("\n".join(lines).rstrip() + "\n")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


_report = Report()


@pytest.fixture
def report(request):
    """Adds a section to the page of the asking module: ``report(title, rows, verdicts)``."""
    page = request.module.__name__.rpartition("test_")[2]
    return lambda *arguments: _report.section(page, *arguments)


def pytest_terminal_summary(terminalreporter, config):
    for page, sections in _report.pages.items():
        terminalreporter.section(f"{page}: {machine()}")
        terminalreporter.write("\n" + "\n".join(sections))
        if config.getoption("--results"):
            RESULTS.mkdir(exist_ok=True)
            text = "\n".join([f"# {page.capitalize()}\n\n{machine()}\n", *sections])
            (RESULTS / f"{page}.md").write_text(text)
