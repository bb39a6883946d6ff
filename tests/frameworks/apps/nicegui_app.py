from fastapi import FastAPI
from nicegui import ui
from saying import got, state

app = FastAPI()


@ui.page("/")
def page():
    count = 0

    def more():
        nonlocal count
        count += 1
        shown.text = state(count)

    async def uploaded(event):
        seen.text = got(await event.file.read())

    shown = ui.label(state(count))
    ui.button("more", on_click=more)
    ui.upload(on_upload=uploaded, auto_upload=True)
    seen = ui.label()
    ui.button("download", on_click=lambda: ui.download.content(state(count), "state.txt"))


ui.run_with(app, show_welcome_message=False)
