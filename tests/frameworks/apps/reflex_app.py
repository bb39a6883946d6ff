from pathlib import Path

import reflex as rx
from saying import state
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

CLIENT = "node_modules/socket.io-client/dist/socket.io.min.js"


class Counter(rx.State):
    count: int = 0
    said: str = ""

    @rx.event
    def look(self):
        self.said = state(self.count)

    @rx.event
    def more(self):
        self.count += 1
        self.said = state(self.count)


async def page(request):
    return FileResponse(Path(__file__).with_name("reflex_page.html"))


async def client(request):
    return FileResponse(Path(__file__).parents[2] / "e2e" / CLIENT)


routes = [Route("/", page), Route("/socket.io.js", client)]
app = rx.App(api_transformer=Starlette(routes=routes))()
