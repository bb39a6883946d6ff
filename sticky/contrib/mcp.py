"""A subscription bus for servers of the package ``mcp`` (2 and later), over all workers.

    server = MCPServer("name", subscriptions=sticky.contrib.mcp.SubscriptionBus())

Without it a client that listens (``subscriptions/listen``) hears only of what happens in the worker
that serves its stream.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import anyio.lowlevel
from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from ..bus import mail_of_worker
from ..mail import Mail
from ..mailbox import Sender

__all__ = ["SubscriptionBus"]

_PLAIN: dict[str, ServerEvent] = {
    "tools": ToolsListChanged(),
    "prompts": PromptsListChanged(),
    "resources": ResourcesListChanged(),
}
_NAMES = {event: name for name, event in _PLAIN.items()}

log = logging.getLogger("sticky.contrib.mcp")


class SubscriptionBus:
    """What ``mcp.server.subscriptions.SubscriptionBus`` asks for. Listeners of the publishing
    worker are called within ``publish``, those of the others in their event loops.

    Args:
        name: servers that share it share their events.
        mail: of this process; for tests.

    Raises:
        StickyError: this process is no worker.
    """

    def __init__(self, name: str = "mcp", *, mail: Mail | None = None) -> None:
        self._mail = mail or mail_of_worker("sticky.contrib.mcp.SubscriptionBus")
        self._topic = f"{name} subscriptions".encode()
        self._listeners: dict[object, Callable[[ServerEvent], None]] = {}

    async def publish(self, event: ServerEvent) -> None:
        """Have all listeners of all workers called with this."""
        content = [_NAMES[event]] if event in _NAMES else ["resource", event.uri]  # type: ignore[union-attr]
        self._mail.post(self._topic, json.dumps(content).encode())
        self._tell(event)
        # So that a burst of one task lets the streams take what has come.
        await anyio.lowlevel.checkpoint()

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Have this called with each event, in the event loop.

        Returns:
            What ends that; to be called as often as one likes.
        """
        token = object()
        if not self._listeners:
            self._mail.subscribe(self._topic, self._heard)
        self._listeners[token] = listener

        def unsubscribe() -> None:
            if self._listeners.pop(token, None) is not None and not self._listeners:
                self._mail.unsubscribe(self._topic, self._heard)

        return unsubscribe

    def _heard(self, payload: bytes, sender: Sender) -> None:
        name, *uri = json.loads(payload)
        self._tell(ResourceUpdated(*uri) if name == "resource" else _PLAIN[name])

    def _tell(self, event: ServerEvent) -> None:
        for listener in list(self._listeners.values()):
            try:
                listener(event)
            except Exception:  # one listener's trouble is not the others'
                log.exception("a listener failed")
