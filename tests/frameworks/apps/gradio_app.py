import tempfile

import gradio as gr
from fastapi import FastAPI
from saying import got, state


def written(count):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write(state(count))
    return file.name


def said(count):
    return count, state(count), written(count)


def more(count):
    return said(count + 1)


def look(path):
    with open(path, "rb") as file:
        return got(file.read())


with gr.Blocks() as page:
    count = gr.State(0)
    shown = gr.Markdown()
    button = gr.Button("more")
    file = gr.File()
    seen = gr.Markdown()
    download = gr.DownloadButton("download")
    page.load(said, count, [count, shown, download])
    button.click(more, count, [count, shown, download])
    file.upload(look, file, seen)

app = gr.mount_gradio_app(FastAPI(), page, path="/")
