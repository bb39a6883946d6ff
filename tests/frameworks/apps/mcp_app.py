from pathlib import Path

from mcp.server.mcpserver import Context, MCPServer
from saying import state
from starlette.responses import FileResponse

server = MCPServer("counter", log_level="WARNING")
counts: dict[str, int] = {}


@server.tool()
def look(ctx: Context) -> str:
    return state(counts.get(ctx.headers["mcp-session-id"], 0))


@server.tool()
def more(ctx: Context) -> str:
    session = ctx.headers["mcp-session-id"]
    counts[session] = counts.get(session, 0) + 1
    return state(counts[session])


@server.custom_route("/", methods=["GET"])
async def page(request):
    return FileResponse(Path(__file__).with_name("mcp_page.html"))


app = server.streamable_http_app()
