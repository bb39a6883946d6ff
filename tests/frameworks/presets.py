"""The frameworks: what is installed, what is served, and the options that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PAGE, SOCKET, RECONNECT, UPLOAD, DOWNLOAD = "page", "socket", "reconnect", "upload", "download"
TABS, CONTEXTS, RELOAD = "tabs", "contexts", "reload"
ALL = (PAGE, SOCKET, RECONNECT, UPLOAD, DOWNLOAD, TABS, CONTEXTS, RELOAD)
"""What is tried: ``drive.mjs`` has a function of each name."""


def _by(session: str, *more: str) -> tuple[str, ...]:
    """Everything comes from one address: with it alone, one worker would have all that is new."""
    return ("--session", session, *more, "--balance", "least")


AFFINITY = _by("affinity")
WITH_RECONNECT = ALL
"""A websocket that breaks is opened anew, and the session goes on."""
USUAL = tuple(check for check in ALL if check != RECONNECT)
NO_FILES = tuple(check for check in USUAL if check not in (UPLOAD, DOWNLOAD))


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
    checks: tuple[str, ...] = USUAL

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


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("MCP", ("mcp>=2",), _by("header:mcp-session-id", "--affix"), checks=NO_FILES),
        Preset("Streamlit", ("streamlit",), checks=WITH_RECONNECT),
        Preset("Gradio", ("gradio",), env={"GRADIO_ANALYTICS_ENABLED": "False"}),
        Preset("NiceGUI", ("nicegui",), checks=WITH_RECONNECT),
        Preset("Panel", ("panel[fastapi]",)),
        Preset("Shiny", ("shiny",)),
        Preset("marimo", ("marimo",), checks=WITH_RECONNECT),
        # Its pages load from a CDN, or what solara-assets has of it: the widgets of Vue 2.
        Preset(
            "Solara",
            ("solara", "solara-assets", "ipyvue<3", "ipyvuetify<3"),
            checks=WITH_RECONNECT,
        ),
        Preset("Chainlit", ("chainlit",), checks=WITH_RECONNECT),
        Preset("LangGraph", ("langgraph", "fastapi"), _by("path:/threads/{id}/"), checks=NO_FILES),
        # Its pages are compiled by a newer Node than there may be: this one is written by hand. Its
        # states are in files otherwise, which all processes share.
        Preset(
            "Reflex",
            ("reflex",),
            env={"__REFLEX_SKIP_COMPILE": "true", "REFLEX_STATE_MANAGER_MODE": "memory"},
            checks=tuple(check for check in WITH_RECONNECT if check not in (UPLOAD, DOWNLOAD)),
        ),
    )
}
