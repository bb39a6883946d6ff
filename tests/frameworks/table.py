"""The table of docs/frameworks.md: a row for each framework, as it was tried last."""

from __future__ import annotations

from pathlib import Path

from tests.frameworks.presets import PRESETS
from tests.frameworks.trial import WAYS, Seen
from tests.harness import ROOT

PAGE = ROOT / "docs" / "frameworks.md"
BEGIN, END = "<!-- make frameworks: begin -->", "<!-- make frameworks: end -->"
HEAD = (
    "| framework | option | what was tried | direct | behind nginx | `uvicorn --workers 4` fails |",
    "| --- | --- | --- | --- | --- | --- |",
)


def _option(options: tuple[str, ...]) -> str:
    return f"`{' '.join(options)}`"


def row(seen: Seen) -> str:
    """What was seen of one framework."""
    tried = [
        f"socket ({seen.socket})" if check == "socket" else check for check in seen.preset.checks
    ]
    cells = [f"{seen.preset.title} {seen.version}", _option(seen.preset.options), ", ".join(tried)]
    for way in WAYS:
        failed = seen.failed("sticky", way)
        cells.append(
            "not tried" if not seen.ran("sticky", way) else _failures(failed) or "all work"
        )
    theirs = [_control(seen, way) for way in WAYS]
    cells.append(theirs[0] if theirs[0] == theirs[1] else "; behind nginx: ".join(theirs))
    return f"| {' | '.join(cells)} |"


def _control(seen: Seen, way: str) -> str:
    if not seen.ran("uvicorn", way):
        return "not tried"
    return ", ".join(seen.failed("uvicorn", way)) or "nothing"


def _failures(failed: list[str]) -> str:
    return f"not: {', '.join(failed)}" if failed else ""


def of(text: str) -> dict[str, str]:
    """The rows that a page has, by the framework's name."""
    rows = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[len(HEAD) :]
    return {line.split()[1].lower(): line for line in rows}


def table(rows: dict[str, str]) -> str:
    """All rows, in the order of the presets."""
    return "\n".join([*HEAD, *(rows[name] for name in PRESETS if name in rows)])


def write(seen: list[Seen], page: Path = PAGE) -> None:
    """Put what was seen into the page; the rows of other frameworks stay."""
    text = page.read_text()
    rows = of(text) | {one.preset.name: row(one) for one in seen}
    before, rest = text.split(BEGIN)
    anew = page.with_suffix(".new")
    anew.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}")
    anew.replace(page)  # at once: tests that run meanwhile read it
