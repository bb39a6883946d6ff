"""The frameworks: what is installed, what is served, and the options that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PAGE, SOCKET, UPLOAD, DOWNLOAD = "page", "socket", "upload", "download"
TABS, CONTEXTS, RELOAD = "tabs", "contexts", "reload"
ALL = (PAGE, SOCKET, UPLOAD, DOWNLOAD, TABS, CONTEXTS, RELOAD)
"""What is tried: ``drive.mjs`` has a function of each name."""



def _by(session: str) -> tuple[str, ...]:
    """Everything comes from one address: with it alone, one worker would have all that is new."""
    return ("--session", session, "--balance", "least")


AFFINITY = _by("affinity")


@dataclass(frozen=True)
class Preset:
    """A framework, and how it is served.

    Attributes:
        title: its name as people write it.
        packages: what pip installs; the version of the first is shown.
        target: ``module:app`` in the folder ``apps``.
        options: of sticky.
        env: of sticky and of the control alike.
        checks: what of ``ALL`` there is with it.
    """

    title: str
    packages: tuple[str, ...]
    options: tuple[str, ...] = AFFINITY
    env: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[str, ...] = ALL

    @property
    def name(self) -> str:
        """In file names, and on the command line."""
        return self.title.lower()

    @property
    def target(self) -> str:
        return f"{self.name}_app:app"

    @property
    def package(self) -> str:
        """What the first package is called, without an extra or a version."""
        return self.packages[0].partition(">")[0].partition("[")[0]


NO_FILES = tuple(check for check in ALL if check not in (UPLOAD, DOWNLOAD))

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("MCP", ("mcp>=2",), _by("header:mcp-session-id"), checks=NO_FILES),
        Preset("Streamlit", ("streamlit",)),
        Preset("Gradio", ("gradio",)),
        Preset("NiceGUI", ("nicegui",)),
        Preset("Panel", ("panel[fastapi]",)),
        Preset("Shiny", ("shiny",)),
        Preset("marimo", ("marimo",)),
        Preset("Solara", ("solara", "solara-assets"), _by("cookie:solara-session-id")),
        Preset("Chainlit", ("chainlit",)),
        Preset("LangGraph", ("langgraph", "fastapi"), _by("header:x-thread-id"), checks=NO_FILES),
        Preset("Reflex", ("reflex",), _by("query:token")),
    )
}
