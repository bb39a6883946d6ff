"""The report of the routing benchmarks: printed at the end, and kept with ``--results``."""

from __future__ import annotations

from pathlib import Path

import pytest

from .measure import Verdict, section
from .rigs import machine

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser):
    parser.addoption(
        "--results", action="store_true", help="write the figures to bench/results/*.md"
    )


_pages: dict[str, list[str]] = {}


@pytest.fixture
def report(request):
    """Adds a section to the page of the asking module: ``report(title, rows, verdicts)``."""
    page = request.module.__name__.rpartition("test_")[2]

    def add(title, rows, verdicts=()):
        text = section(title, rows, [Verdict(*verdict) for verdict in verdicts])
        _pages.setdefault(page, []).append(text)

    return add


def pytest_terminal_summary(terminalreporter, config):
    _report_core(config)
    for page, sections in _pages.items():
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
        _pages["core"] = [section("Nanoseconds a call, from Python", rows, ())]
