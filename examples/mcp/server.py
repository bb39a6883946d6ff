"""An MCP server (streamable HTTP) on three worker processes. It needs `pip install 'mcp>=2'`:

    python examples/mcp/server.py

Its endpoint is http://127.0.0.1:3000/mcp, and its only tool counts the calls of a session. Such a
server answers `initialize` with a session id, which the client sends with each further request, in
the header Mcp-Session-Id. What belongs to the session is in the memory of one process, so each of
these requests has to reach that process, whatever address it comes from.

(From the protocol of 2026-07-28 on there are no sessions. Clients that speak it can be served by
any process; they are, here too, but this tool has nothing to tell them.)
"""

import os
import sys
import weakref
from uuid import UUID, uuid4

from mcp.server import streamable_http_manager
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

import sticky


def factory():
    worker = sticky.current_worker()
    server = MCPServer("counter", log_level="WARNING")
    counters = weakref.WeakKeyDictionary()  # of the sessions of this process

    @server.tool()
    def count(ctx: Context) -> dict[str, int]:
        """Say how often this session has called, and which process it is in."""
        session = sessions.get(ctx.headers.get("mcp-session-id"))
        if session is None:
            raise ToolError("this request belongs to no session")
        counters[session] = counters.get(session, 0) + 1
        return {"count": counters[session], "worker": worker.id, "pid": os.getpid()}

    # The package draws its session ids with uuid4() and has no option for anything else, so this is
    # the one name that is replaced: by the same ids, of those that lead back to this worker.
    streamable_http_manager.uuid4 = lambda: UUID(sticky.mint(lambda: uuid4().hex))

    app = server.streamable_http_app()  # behind a proxy: transport_security=, for its Host
    sessions = server.session_manager._server_instances  # by their ids
    sticky.holds(sessions.__contains__)
    return app


if __name__ == "__main__":
    sticky.listen(
        factory,
        int(sys.argv[1]) if len(sys.argv) > 1 else 3000,
        3,
        worker_class="asgi",
        session="header:mcp-session-id",
        balance="least",
    )
