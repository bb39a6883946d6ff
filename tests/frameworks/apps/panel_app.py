import io

import panel as pn
from fastapi import FastAPI
from panel.io.fastapi import add_application
from saying import got, state

app = FastAPI()


@add_application("/", app=app, title="Panel")
def page():
    button = pn.widgets.Button(name="more")
    shown = pn.pane.Str(pn.bind(state, button.param.clicks))
    file = pn.widgets.FileInput()
    seen = pn.pane.Str(pn.bind(lambda content: got(content) if content else "", file))

    def content():
        return io.BytesIO(state(button.clicks).encode())

    download = pn.widgets.FileDownload(callback=content, filename="state.txt", label="download")
    return pn.Column(button, shown, file, seen, download)
