"""The lifespan of an ASGI app: what it does before its first request and after its last.

https://asgi.readthedocs.io/en/latest/specs/lifespan.html. An app that does not know it is served
without: it raises, or returns, before it has said that it is ready.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..errors import WorkerError

log = logging.getLogger("sticky.worker")

_CANNOT_BOOT = 3


class Lifespan:
    """One app's.

    Args:
        app: as it is served.

    Attributes:
        state: what the app keeps for its requests: each scope has a copy.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._said: asyncio.Future[dict[str, Any] | None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    async def start(self) -> None:
        """Have the app start.

        Raises:
            WorkerError: it says that it cannot.
        """
        said = await self._ask("lifespan.startup")
        if said is None:
            if self._error is not None:
                log.debug("the app has no lifespan: %r", self._error)
            self._task = None
        elif said["type"] == "lifespan.startup.failed":
            reason = said.get("message") or "the app's lifespan failed"
            raise WorkerError("\n" + reason.rstrip(), _CANNOT_BOOT) from None

    async def stop(self, seconds: float) -> None:
        """Have it shut down; wait for that so long."""
        if self._task is None or self._task.done():
            return
        try:
            async with asyncio.timeout(seconds):
                said = await self._ask("lifespan.shutdown")
        except TimeoutError:
            log.warning("the app's lifespan has not ended within %g s", seconds)
            self._task.cancel()
            return
        if said is not None and said["type"] == "lifespan.shutdown.failed":
            log.error("the app's lifespan failed to end: %s", said.get("message") or "")
        elif said is None and self._error is not None:
            log.error("the app's lifespan failed to end", exc_info=self._error)

    async def _ask(self, kind: str) -> dict[str, Any] | None:
        """What the app says to this; None: it has ended."""
        self._said = asyncio.get_running_loop().create_future()
        self._messages.put_nowait({"type": kind})
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await self._said

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._messages.get, self._send)
        except GeneratorExit:
            raise
        except BaseException as error:
            self._error = error
        self._answer(None)

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if not kind.startswith("lifespan."):
            raise RuntimeError(f"Expected a message of the lifespan, but got {kind!r}.")
        self._answer(message)

    def _answer(self, message: dict[str, Any] | None) -> None:
        if self._said is not None and not self._said.done():
            self._said.set_result(message)
