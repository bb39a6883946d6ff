from pathlib import Path

from chainlit.utils import mount_chainlit
from fastapi import FastAPI

app = FastAPI()


@app.get("/")
def home() -> str:
    return "see /chainlit"


mount_chainlit(app, str(Path(__file__).with_name("chainlit_chat.py")), path="/chainlit")
