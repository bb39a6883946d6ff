"""Connection events, and with the option ``sync`` the wait until the app releases a connection.

Handlers are called before the app sees any byte of a connection. They may take their time: each
runs where the worker class runs the app (a green thread, a thread, a task), and from wherever an
event is emitted, the connection goes on in the worker's own loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..channel import Address

log = logging.getLogger("sticky.worker")


class Connection:
    """A connection that this process has just adopted, as handlers see it.

    Attributes:
        address: the TCP peer's, as ``accept()`` gives it; "" for a unix socket's.
        key: the bytes that identify its client, b"" while they are not known: what it was routed
            by (``sticky.explain`` says more).
        head: what is there of its request, without anything being consumed. The whole head with
            ``proxy``; possibly less, or nothing yet, without.
        came: how it came: "accepted", or "moved" from another worker.
        released: whether its event was emitted (option ``sync``).
    """

    def __init__(self, address: Address, key: bytes, head: bytes, came: str) -> None:
        self.address = address
        self.key = key
        self.head = head
        self.came = came
        self.released = False
        self._release: Callable[[], object] | None = None
        self._event: str | None = None

    def hold(self, event: str, release: Callable[[], object] | None) -> None:
        """Have ``release`` called when this event is emitted, once; None: no longer."""
        self._event, self._release = event, release

    def emit(self, event: str) -> bool:
        """Release the connection: the app may have its first byte now. From any thread.

        Args:
            event: the one that the option ``sync`` names; others have no effect.

        Returns:
            Whether this released it: it does so once, and not after its time is over.
        """
        if event != self._event or self._release is None:
            return False
        release, self._release = self._release, None
        self.released = True
        release()
        return True

    def __repr__(self) -> str:
        return f"<sticky connection of {self.key!r} from {self.address!r}, {self.came}>"


Handler = Callable[[Connection], object]
