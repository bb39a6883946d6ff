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
    _report_core(config)
    for page, sections in _report.pages.items():
        terminalreporter.section(f"{page}: {machine()}")
        terminalreporter.write("\n" + "\n".join(sections))
        if config.getoption("--results"):
            RESULTS.mkdir(exist_ok=True)
            text = "\n".join([f"# {page.capitalize()}\n\n{machine()}\n", *sections])
            (RESULTS / f"{page}.md").write_text(text)


def _report_core(config):
    """What test_core.py measured, by group, beside the compiled twin's time."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, float]] = {}
    for it in session.benchmarks if session else ():
        if "test_core.py" in it.fullname and not it.has_error:
            who = next(iter(set(it.params.values()) - set(it.extra_info.values())))
            groups.setdefault(it.group, {})[who] = it.stats.median * 1_000_000_000
    rows = []
    for group, times in groups.items():
        compiled = times.get("compiled")
        for who, time in sorted(times.items(), key=lambda item: item[1]):
            over = time / compiled if compiled else None
            rows.append({"group": group, "who": who, "median_ns": round(time), "ratio": over})
    if rows:
        _report.section("core", "Nanoseconds a call, from Python", rows)
