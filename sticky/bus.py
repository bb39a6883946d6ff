"""Publish and subscribe between the workers of a server, without a broker.

    from sticky import bus

    bus.publish("prices", b"...")                 # from any worker, from any thread of it

    bus.subscribe("prices", callback)             # callback(message), one after another
    with bus.subscribe("prices") as prices:       # in a thread or greenlet of its own
        for message in prices: ...
    async for message in bus.subscribe("prices"): ...

Every subscriber of every worker gets each message, those of the publishing worker too. Publishing
never waits. Delivery is at most once, in order for each publishing process, and bounded: a worker
or a subscriber that does not keep up loses the newest messages, which is counted and logged. A
subscription counts from the moment ``subscribe`` returns; what came before the worker serves is
handed over when it does.

On eventlet and gevent a callback runs in a greenlet of its own, with threads in a thread, and in
ASGI workers in a task of the event loop, where it may be a coroutine function.
"""

from __future__ import annotations

import _thread
import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

from .errors import StickyError
from .mail import Mail
from .mailbox import LONGEST_TOPIC
from .mailqueue import Item, Queue
from .worker.main import current_worker

__all__ = ["Message", "Subscription", "publish", "subscribe"]

log = logging.getLogger("sticky.bus")


class Message(NamedTuple):
    """What a subscriber gets.

    Attributes:
        topic: what it was published under.
        data: what was published.
        worker: the number of the publishing worker's slot; -1: it was no worker.
        pid: the publishing process.
    """

    topic: str
    data: bytes
    worker: int
    pid: int


def publish(topic: str, data: bytes) -> None:
    """Have all subscribers of a topic get this. It never waits.

    Args:
        topic: 1 to 255 bytes in UTF-8.
        data: bytes, of any length.

    Raises:
        StickyError: this process is no worker.
        TypeError, ValueError: the topic or the data is something else.
    """
    mail, name = mail_of_worker("sticky.bus.publish"), _encoded(topic)
    if not isinstance(data, bytes):
        if not isinstance(data, (bytearray, memoryview)):
            raise TypeError(f"what is published is bytes, and not {type(data).__name__}")
        data = bytes(data)
    mail.post(name, data)
    mail.post_here(name, data)


def subscribe(
    topic: str, callback: Callable[[Message], Any] | None = None, *, limit: int | None = None
) -> Subscription:
    """Get what is published under a topic from now on.

    Args:
        topic: as for ``publish``.
        callback: called with each message, one after another; what it raises is logged. Without it
            the subscription is to be iterated over.
        limit: bytes that are kept for it while it does not keep up; as the option ``max_mail``
            without it.

    Raises:
        StickyError: this process is no worker.
        TypeError, ValueError: the topic is none.
    """
    return Subscription(mail_of_worker("sticky.bus.subscribe"), topic, callback, limit)


class Subscription:
    """What is published under a topic, until ``close``; use ``subscribe``.

    It is an iterator, an asynchronous iterator and a context manager. One at a time may take from
    it.
    """

    def __init__(
        self,
        mail: Mail,
        topic: str,
        callback: Callable[[Message], Any] | None = None,
        limit: int | None = None,
    ) -> None:
        self.topic = topic
        self._name = _encoded(topic)
        self._mail = mail
        self._queue = Queue(
            mail.out.limit if limit is None else limit, mail.lost, f"a subscriber of {topic!r}"
        )
        self._came: list[Item] = []
        self._callback = callback
        self._task: asyncio.Task[None] | None = None
        mail.subscribe(self._name, self._queue.put)
        if callback is not None:
            mail.attended(self._attended)

    @property
    def dropped(self) -> int:
        """How many messages this subscriber has lost because it did not keep up."""
        return self._queue.dropped

    def get(self, timeout: float | None = None) -> Message:
        """The next message.

        Args:
            timeout: seconds; None: as long as it takes.

        Raises:
            TimeoutError: none has come.
            StickyError: the subscription is closed, or this is asyncio's event loop.
        """
        if not self._came:
            _refuse_in_asyncio()
            self._came = self._queue.take(timeout)[::-1]
        if not self._came:
            if self._queue.closed:
                raise StickyError(f"the subscription of {self.topic!r} is closed")
            raise TimeoutError(f"nothing was published under {self.topic!r} within {timeout} s")
        return self._message(self._came.pop())

    def _message(self, item: Item) -> Message:
        payload, sender = item
        return Message(self.topic, payload, sender.slot, sender.pid)

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        try:
            return self.get()
        except StickyError:
            if self._queue.closed:
                raise StopIteration from None
            raise

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if not self._came:
            self._came = (await self._queue.take_async())[::-1]
        if not self._came:
            raise StopAsyncIteration
        return self._message(self._came.pop())

    def close(self) -> None:
        """Get nothing more. Whoever iterates is at the end."""
        self._mail.unsubscribe(self._name, self._queue.put)
        self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- callbacks --------------------------------------------------------------------------------

    def _attended(self) -> None:
        """There is an event loop, and this is called in it."""
        assert self._mail.waiter is not None
        if self._mail.waiter.asynchronous:
            self._task = asyncio.get_running_loop().create_task(self._call_async())
        else:
            # Not threading.Thread, whose start() waits.
            _thread.start_new_thread(self._call, ())

    def _call(self) -> None:
        assert self._callback is not None
        for message in self:
            try:
                self._callback(message)
            except Exception:
                log.exception("a subscriber of %r failed", self.topic)

    async def _call_async(self) -> None:
        assert self._callback is not None
        async for message in self:
            try:
                pending = self._callback(message)
                if inspect.isawaitable(pending):
                    await pending
            except Exception:
                log.exception("a subscriber of %r failed", self.topic)


@functools.lru_cache(1024)
def _encoded(topic: str) -> bytes:
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a str, and not {type(topic).__name__}")
    name = topic.encode()
    if not 1 <= len(name) <= LONGEST_TOPIC or name[0] == 0:
        raise ValueError(
            f"the topic {topic[:80]!r} is not allowed: it has 1 to {LONGEST_TOPIC} bytes, and the "
            "first of them is not zero"
        )
    return name


def mail_of_worker(what: str) -> Mail:
    """The mail of the worker that this process is.

    Raises:
        StickyError: it is none.
    """
    worker = current_worker()
    if worker is None:
        raise StickyError(
            f"{what} connects the workers of a server, and this process is not one: use it in the "
            "app, or in the factory that is given to sticky.listen; from another process "
            "sticky.emitter reaches the clients"
        )
    return worker.mail


def _refuse_in_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise StickyError("here all of the worker would wait: use `async for`, or a callback")
