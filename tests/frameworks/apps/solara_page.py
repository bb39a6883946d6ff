import solara
from saying import got, state


@solara.component
def Page():  # noqa: N802
    count, set_count = solara.use_state(0)
    seen, set_seen = solara.use_state("")
    solara.Text(state(count))
    solara.Button("more", on_click=lambda: set_count(count + 1))
    solara.FileDrop("file", on_file=lambda file: set_seen(got(file["data"])), lazy=False)
    solara.Text(seen)
    solara.FileDownload(state(count), filename="state.txt", label="download")
