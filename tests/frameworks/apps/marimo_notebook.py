import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo
    from saying import got, state

    return got, mo, state


@app.cell
def _(mo):
    button = mo.ui.button(value=0, on_click=lambda value: value + 1, label="more")
    file = mo.ui.file(label="file")
    mo.vstack([button, file])
    return button, file


@app.cell
def _(button, mo, state):
    now = state(button.value)
    mo.vstack([mo.md(now), mo.download(now.encode(), filename="state.txt", label="download")])


@app.cell
def _(file, got, mo):
    mo.md(got(file.contents()) if file.value else "")


if __name__ == "__main__":
    app.run()
