import os
from pathlib import Path

os.environ.setdefault("SOLARA_APP", str(Path(__file__).with_name("solara_page.py")))

from solara.server.starlette import app  # noqa: F401
