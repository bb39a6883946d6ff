from pathlib import Path

import marimo

notebook = str(Path(__file__).with_name("marimo_notebook.py"))
app = marimo.create_asgi_app(quiet=True).with_app(path="", root=notebook).build()
