"""The example of an MCP server, and what it would be without sticky ids."""

from __future__ import annotations

from typing import Any

import sticky
from examples.mcp.server import factory as factory


def unminted() -> Any:
    """The same server with the ids that the package itself draws."""
    sticky.mint = lambda make: make()  # type: ignore[assignment, misc]
    sticky.holds = lambda holder: holder
    return factory()
