"""``tests.asgi_apps`` on the parser and event loop that uvicorn takes where no better ones are."""

import sys

sys.modules["httptools"] = sys.modules["uvloop"] = None  # type: ignore[assignment]

from tests.asgi_apps import *  # noqa: E402, F403
