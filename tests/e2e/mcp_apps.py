"""An MCP server whose tool changes things that clients of other workers listen for."""

from __future__ import annotations

import os
from typing import Any


def shared() -> Any:
    from sticky.contrib.mcp import SubscriptionBus

    return _app(SubscriptionBus())


def alone() -> Any:
    """With the package's own bus."""
    return _app(None)


def _app(bus: Any) -> Any:
    from mcp.server.mcpserver import Context, MCPServer

    server = MCPServer("changing", subscriptions=bus, log_level="WARNING")

    async def change(ctx: Any, name: str) -> dict[str, int]:
        """Say what has changed, and in which process."""
        await ctx.notify_resource_updated(f"note:///{name}")
        await ctx.notify_tools_changed()
        return {"pid": os.getpid()}

    # The package reads annotations, and knows this class only where it is loaded.
    change.__annotations__["ctx"] = Context
    server.tool()(change)
    return server.streamable_http_app()
