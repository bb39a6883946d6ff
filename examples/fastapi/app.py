"""A chat over websockets, with FastAPI, on three worker processes and no broker. It needs
`pip install fastapi 'socketio-sticky[asgi]'`:

    python examples/fastapi/app.py

Open http://anna.localhost:3000 and http://bert.localhost:3000: this demo routes by the Host header,
so that two tabs of one browser can be two clients. A websocket belongs to the worker that has
accepted it. What somebody says is published on `sticky.bus`, and every worker tells its clients.
"""

import json
import sys
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

import sticky
from sticky import bus

PAGE = """<!doctype html><meta charset="utf-8"><title>chat</title>
<ul id="log"></ul><form><input id="text" autofocus autocomplete="off"></form><script>
const socket = new WebSocket(`ws://${location.host}/chat`);
socket.onmessage = ({data}) => {
  const said = JSON.parse(data), line = document.createElement("li");
  line.textContent = `${said.text} (worker ${said.worker})`;
  document.getElementById("log").append(line);
};
document.forms[0].onsubmit = (event) => {
  event.preventDefault();
  const text = document.getElementById("text");
  socket.send(text.value);
  text.value = "";
};
</script>"""


def factory():
    worker = sticky.current_worker()
    clients = set()  # of this process

    async def tell(message):
        for client in list(clients):
            try:
                await client.send_text(message.data.decode())
            except (RuntimeError, WebSocketDisconnect):
                clients.discard(client)

    @asynccontextmanager
    async def lifespan(app):
        with bus.subscribe("chat", tell):
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/", response_class=HTMLResponse)
    def page():
        return PAGE

    @app.websocket("/chat")
    async def chat(websocket: WebSocket):
        await websocket.accept()
        clients.add(websocket)
        try:
            async for text in websocket.iter_text():
                said = {"worker": worker.id, "text": text[:500]}
                bus.publish("chat", json.dumps(said).encode())
        finally:
            clients.discard(websocket)

    return app


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    sticky.listen(factory, port, 3, worker_class="asgi", proxy=True, header="host")
