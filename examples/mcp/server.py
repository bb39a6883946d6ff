"""An MCP server (streamable HTTP) on three worker processes. It needs `pip install 'mcp>=2'`:

    python examples/mcp/server.py

Its endpoint is http://127.0.0.1:3000/mcp, and its only tool counts the calls of a session. Such a
server answers `initialize` with a session id, which the client sends with each further request, in
the header Mcp-Session-Id. What belongs to the session is in the memory of one process, so each of
these requests has to reach that process, whatever address it comes from: with `affix=True` the
worker puts before the id, on its way to the client, what leads back, and takes it away again on its
way in. Nothing here knows of it.

(From the protocol of 2026-07-28 on there are no sessions. Clients that speak it can be served by
any process; they are, here too, but this tool has nothing to tell them.)
"""

import os
import sys
from collections import Counter

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

import sticky


def factory():
    server = MCPServer("counter", log_level="WARNING")
    calls = Counter()  # of the sessions of this process

    @server.tool()
    def count(ctx: Context) -> dict[str, int]:
        """Say how often this session has called, and which process it is in."""
        session = ctx.headers.get("mcp-session-id")
        if session is None:
            raise ToolError("this request belongs to no session")
        calls[session] += 1
        worker = sticky.current_worker()
        return {"count": calls[session], "worker": worker.id, "pid": os.getpid()}

    return server.streamable_http_app()  # behind a proxy: transport_security=, for its Host


if __name__ == "__main__":
    sticky.listen(
        factory,
        int(sys.argv[1]) if len(sys.argv) > 1 else 3000,
        3,
        worker_class="asgi",
        session="header:mcp-session-id",
        affix=True,
        balance="least",
    )
