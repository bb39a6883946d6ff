"""The table of docs/frameworks.md."""

from __future__ import annotations

from pathlib import Path

from tests.frameworks import table
from tests.frameworks.presets import PRESETS
from tests.frameworks.trial import Seen


def seen(name: str, version: str, **failures: str) -> Seen:
    """Everything was tried; what failed, by server."""
    one = Seen(PRESETS[name], version)
    for server in ("sticky", "uvicorn"):
        for way in ("direct", "nginx"):
            for check in one.preset.checks:
                one.passed[server, way, check] = failures.get(server) != check
    return one


def test_rows_of_frameworks_that_were_not_tried_stay_as_they_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\n{table.END}\nbehind\n")
    table.write([seen("shiny", "1.0", uvicorn="upload"), seen("mcp", "2.0")], page)
    table.write([seen("shiny", "1.1", uvicorn="tabs")], page)
    text = page.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n| framework ")
    assert text.endswith(f"|\n{table.END}\nbehind\n")
    rows = table.of(text)
    assert list(rows) == ["mcp", "shiny"], "in the order of the presets"
    assert rows["mcp"].startswith("| MCP 2.0 |")
    assert rows["shiny"].startswith("| Shiny 1.1 |")
    assert rows["shiny"].endswith("| all work | all work | tabs |")


def test_it_is_right_only_if_the_control_fails_and_we_do_not() -> None:
    assert seen("shiny", "1.0", uvicorn="upload").is_right
    assert not seen("shiny", "1.0").is_right
    failed = seen("shiny", "1.0", uvicorn="upload", sticky="tabs")
    assert not failed.is_right
    assert "not: tabs" in table.row(failed)


def test_the_page_has_a_row_for_each_framework() -> None:
    assert list(table.of(table.PAGE.read_text())) == list(PRESETS)
