from saying import got, state
from shiny import App, render, ui

page = ui.page_fluid(
    ui.input_action_button("more", "more"),
    ui.output_text("shown"),
    ui.input_file("file", "file"),
    ui.output_text("seen"),
    ui.download_button("download", "download"),
)


def server(input, output, session):
    @render.text
    def shown():
        return state(input.more())

    @render.text
    def seen():
        files = input.file()
        if not files:
            return ""
        with open(files[0]["datapath"], "rb") as file:
            return got(file.read())

    @render.download(filename="state.txt")
    def download():
        yield state(input.more())


app = App(page, server)
