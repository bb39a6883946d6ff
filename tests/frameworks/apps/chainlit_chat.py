from pathlib import Path

import chainlit as cl
from saying import got, state


@cl.on_chat_start
async def start():
    cl.user_session.set("count", 0)
    await cl.Message(state(0)).send()


@cl.on_message
async def answer(message):
    count = cl.user_session.get("count")
    if message.elements:
        for element in message.elements:
            await cl.Message(got(Path(element.path).read_bytes())).send()
    elif message.content == "download":
        file = cl.File(name="state.txt", content=state(count).encode(), display="inline")
        await cl.Message("here it is", elements=[file]).send()
    else:
        cl.user_session.set("count", count + 1)
        await cl.Message(state(count + 1)).send()
