"""What has come for one subscriber and waits to be taken: in a thread, a greenlet or asyncio.

It is put there from the event loop and never waits for the subscriber: what there is no room for is
dropped, counted and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading  # of which monkey-patching makes what it is to be in this process
import time
from collections import deque
from collections.abc import Callable

from .mailbox import Sender
from .outgoing import OVERHEAD

Item = tuple[bytes, Sender]

_QUIET = 10.0  # seconds between two log lines about the same trouble
_FOREVER = -1.0

log = logging.getLogger("sticky.mail")


class Queue:
    """One subscriber's messages. One at a time may take.

    Args:
        limit: bytes that are kept; but one message in any case.
        lost: told how many have been dropped.
        name: of the subscriber, for the log.

    Attributes:
        dropped: how many messages there was no room for.
        closed: nothing more will come.
    """

    def __init__(self, limit: int, lost: Callable[[int], object], name: str) -> None:
        self.limit = limit
        self.dropped = 0
        self.closed = False
        self._lost = lost
        self._name = name
        self._items: deque[Item] = deque()
        self._put = 0  # bytes; each of the two sides counts for itself
        self._taken = 0
        self._waits = False
        self._bell: threading.Lock | None = None
        self._future: asyncio.Future[None] | None = None
        self._thread = 0
        self._next_log = 0.0

    def __bool__(self) -> bool:
        """Whether something is there."""
        return bool(self._items)

    def put(self, payload: bytes, sender: Sender) -> None:
        """A message has come; to be called in the event loop."""
        size = len(payload) + OVERHEAD
        if self._items and self._put - self._taken + size > self.limit:
            self._drop()
            return
        self._put += size
        self._items.append((payload, sender))
        if self._waits:
            self._wake()

    def _drop(self) -> None:
        self.dropped += 1
        self._lost(1)
        if (now := time.monotonic()) >= self._next_log:
            self._next_log = now + _QUIET
            log.warning(
                "%d messages for %s lost so far: it does not keep up", self.dropped, self._name
            )

    def _wake(self) -> None:
        self._waits = False
        bell, future = self._bell, self._future
        if bell is not None:
            with contextlib.suppress(RuntimeError):  # it rings already
                bell.release()
        if future is not None:
            if self._thread == threading.get_ident():
                if not future.done():
                    future.set_result(None)
            else:
                with contextlib.suppress(RuntimeError):  # its loop has ended
                    future.get_loop().call_soon_threadsafe(_done, future)

    def close(self) -> None:
        """Nothing more will come: whoever waits is told so."""
        self.closed = True
        self._wake()

    def _all(self, most: int) -> list[Item]:
        items = self._items
        found = [items.popleft() for _ in range(min(len(items), most))]
        self._taken += sum(len(payload) for payload, _ in found) + OVERHEAD * len(found)
        return found

    def take(self, timeout: float | None = None, most: int = 256) -> list[Item]:
        """What is there, once something is; empty: nothing has come within this time, or nothing
        more will.

        Args:
            timeout: seconds; None: as long as it takes.
            most: so many at once.
        """
        if not self._items:
            self._wait(timeout)
        return self._all(most)

    def _wait(self, timeout: float | None) -> None:
        if self._bell is None:
            self._bell = threading.Lock()
            self._bell.acquire()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._waits = True
            if self._items or self.closed:
                break
            left = _FOREVER if deadline is None else deadline - time.monotonic()
            if deadline is not None and left <= 0:
                break
            self._bell.acquire(timeout=left)
        self._waits = False

    async def take_async(self, timeout: float | None = None, most: int = 256) -> list[Item]:
        """The same in asyncio."""
        if not self._items:
            came = self._coming()
            if timeout is None:
                await came
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await came
        return self._all(most)

    def _coming(self) -> asyncio.Future[None]:
        """Done once something is there, or nothing more will be."""
        future = self._future = asyncio.get_running_loop().create_future()
        self._thread = threading.get_ident()
        self._waits = True
        if self._items or self.closed:  # from another thread, meanwhile
            future.set_result(None)
            self._waits = False
        return future


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
