from pathlib import Path
from typing import TypedDict

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, StreamingResponse
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from saying import state

import sticky


class Counted(TypedDict):
    count: int


def more(counted: Counted) -> Counted:
    return {"count": counted["count"] + 1}


graph = (
    StateGraph(Counted)
    .add_node("more", more)
    .add_edge(START, "more")
    .add_edge("more", END)
    .compile(checkpointer=InMemorySaver())
)
threads: set[str] = set()
sticky.holds(threads.__contains__)
app = FastAPI()


@app.get("/")
def page():
    return FileResponse(Path(__file__).with_name("langgraph_page.html"))


@app.post("/threads")
def begin():
    thread = sticky.mint()
    threads.add(thread)
    return {"thread": thread, "state": state(0)}


@app.post("/threads/{thread}/runs")
def run(thread: str):
    if thread not in threads:
        raise HTTPException(404)
    config = {"configurable": {"thread_id": thread}}

    def events():
        before = graph.get_state(config).values
        for step in graph.stream(before or {"count": 0}, config, stream_mode="values"):
            count = step["count"]
        yield f"data: {state(count)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
