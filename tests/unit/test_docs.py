"""The pages in docs/ say what is true. ``python -m tests.unit.test_docs`` prints the table."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from sticky.arguments import Parser, add_options
from sticky.config import FIELDS, settings
from sticky.options import ACCESS_LOG_FORMAT, Options
from tests.harness import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
NOT_ON_THE_COMMAND_LINE = ("host", "port")


def flags() -> dict[str, list[str]]:
    parser = Parser(prog="sticky", allow_abbrev=False)
    add_options(parser, [name for name in FIELDS if name not in NOT_ON_THE_COMMAND_LINE])
    found: dict[str, list[str]] = {}
    for action in parser._actions:
        found.setdefault(action.dest, []).extend(action.option_strings)
    return found


def table() -> str:
    """The table of docs/options.md."""
    rows = ["| in Python and in a file | command line | environment | default | |"]
    rows.append("| --- | --- | --- | --- | --- |")
    known = flags()
    for field in dataclasses.fields(Options):
        name, default = field.name, field.default
        if default is dataclasses.MISSING or default in (None, (), ""):
            shown = ""
        elif default == ACCESS_LOG_FORMAT:
            shown = "gunicorn's"
        else:
            shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        words = ", ".join(f"`{flag}`" for flag in known.get(name, ["-b"]))
        variable = "" if name == "port" else f"`STICKY_{name.upper()}`"
        rows.append(f"| `{name}` | {words} | {variable} | {shown} | {field.metadata['help']} |")
    return "\n".join(rows) + "\n"


def test_the_page_of_options_has_all_of_them_with_flags_variables_and_defaults():
    page = (ROOT / "docs" / "options.md").read_text()
    assert page.endswith("\n" + table()), f"the table is to be:\n{table()}"


def blocks(kind):
    found = [
        (page.name, number, text)
        for page in PAGES
        for number, text in enumerate(re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.S))
    ]
    assert found
    return [pytest.param(text, id=f"{name}-{number}") for name, number, text in found]


@pytest.mark.parametrize("text", blocks("python"))
def test_examples_are_python(text):
    compile(text, "docs", "exec")


@pytest.mark.parametrize("text", blocks("toml"))
def test_examples_of_files_are_understood(text, tmp_path):
    (tmp_path / "sticky.toml").write_text(text)
    settings(config=tmp_path / "sticky.toml", environ={})


def test_commands_have_options_that_exist():
    parser = Parser(prog="sticky", allow_abbrev=False)
    add_options(parser, [name for name in FIELDS if name not in NOT_ON_THE_COMMAND_LINE])
    parser.add_argument("target")
    commands = [
        line.strip()
        for page in PAGES
        for line in page.read_text().splitlines()
        if re.match(r"    sticky \w+\.", line)
    ]
    assert commands
    for command in commands:
        parser.parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_variables_that_are_named_exist(page):
    text = re.sub(r"```(dockerfile|ini|nginx).*?```", "", page.read_text(), flags=re.S)
    known = {flag for words in flags().values() for flag in words}
    known |= {"--check-config", "--print-config", "--config", "--json", "--quick"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known
    variables = {f"STICKY_{name.upper()}" for name in FIELDS}
    variables |= {"STICKY_CONFIG", "STICKY_WORKER_ID"}
    assert set(re.findall(r"\bSTICKY_[A-Z0-9_]+", text)) <= variables


if __name__ == "__main__":
    print(table(), end="")
