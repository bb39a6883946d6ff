"""python-socketio client managers across the local workers, without a broker.

    sio = socketio.Server(client_manager=sticky.cluster.Manager())
    sio = socketio.AsyncServer(async_mode="asgi", client_manager=sticky.cluster.AsyncManager())

An emit, a room change or a disconnect of one worker reaches the clients of all of them, as with
socketio.RedisManager; and there are questions to all workers, which that one has not: who is in a
room, who is connected, and any that the app itself answers.

Delivery is at most once, as with any publish and subscribe, and in order for each worker that
emits. A worker hears from when it has its first client.
"""

from __future__ import annotations

import abc
import asyncio
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, TypeVar

import socketio
from socketio.async_pubsub_manager import AsyncPubSubManager

from . import events
from .bus import mail_of_worker
from .errors import StickyError
from .mail import Mail
from .mailbox import EVENTS
from .mailqueue import Item, Queue
from .questions import Asked, Place, Questions, Reply, UnansweredError

__all__ = ["AsyncManager", "Manager", "Place", "UnansweredError"]

PATIENCE = 5.0
"""Seconds for all workers to answer a question."""

_TURN = 0.005
"""Seconds of handling what others have emitted before everything else gets its turn."""
_LOOK = 16  # messages between two looks at the clock

log = logging.getLogger("sticky.cluster")

_read: set[int] = set()  # the mail, by identity, of which there is a manager

Handler = TypeVar("Handler", bound=Callable[..., Any])


class _Member(abc.ABC):
    """What both managers do alike. It comes before python-socketio's class among the bases."""

    # Of python-socketio:
    server: Any
    json: Any
    host_id: str
    get_participants: Callable[[str, Any], Iterator[tuple[str, str]]]

    _queue: Queue | None = None
    _questions: Questions | None = None

    def _join(self, mail: Mail | None, name: str) -> None:
        self._mail = mail or mail_of_worker(f"sticky.cluster.{name}")
        self._name = name
        sender = self._mail.sender
        # An answer to a callback is for one process only, and has nothing but the asker's host_id.
        self.host_id = f"{sender.row}.{self.host_id}"
        self._handlers: dict[str, Callable[..., Any]] = {}

    @property
    def dropped(self) -> dict[int, int]:
        """Slot -> messages that were not sent to its workers because they did not keep up."""
        return self._mail.dropped

    def _claim(self) -> None:
        if id(self._mail) in _read:
            raise StickyError(
                f"one sticky.cluster.{self._name} per worker: two would each get what is the "
                "other's"
            )
        _read.add(id(self._mail))
        self._questions = Questions(self._mail, self._respond)

    def _begin(self) -> None:
        """There is a first client: hear what others emit."""
        self._queue = Queue(self._mail.out.limit, self._mail.lost, "this worker's clients")
        self._mail.subscribe(EVENTS, self._queue.put)

    def _close(self) -> None:
        _read.discard(id(self._mail))
        if self._questions is not None:
            self._questions.close()
        if self._queue is not None:
            self._mail.unsubscribe(EVENTS, self._queue.put)
            self._queue.close()

    def _send(self, message: dict[str, Any]) -> None:
        only = _row_of(message["host_id"]) if message["method"] == "callback" else None
        if self._mail.is_wanted(EVENTS):
            self._mail.post(EVENTS, events.pack(message, self.json), only=only)

    def _unpacked(self, items: list[Item]) -> Iterator[dict[str, Any]]:
        for payload, _ in items:
            try:
                message = events.unpack(payload, self.json)
            except Exception as error:  # whatever the server's JSON module raises
                log.error("an event of another worker cannot be read: %r", error)
            else:
                yield message

    # -- questions ------------------------------------------------------------------------------

    def on_server_event(self, event: str, handler: Handler | None = None) -> Any:
        """Have this called when another worker calls ``server_side_emit``; also a decorator.

        Args:
            event: its name.
            handler: called with what was given with the event. What it returns (JSON) is the reply.
                It runs beside everything else, and may be a coroutine function with
                ``AsyncManager``.
        """

        def add(handler: Handler) -> Handler:
            self._handlers[event] = handler
            return handler

        return add if handler is None else add(handler)

    def _ask(self, what: str, **arguments: Any) -> Asked:
        if self._questions is None:
            raise StickyError(f"this {self._name} is no server's client manager")
        return self._questions.ask(what, arguments)

    def _tell(self, event: str, data: Any) -> None:
        if self._questions is None:
            raise StickyError(f"this {self._name} is no server's client manager")
        self._questions.tell("event", {"event": event, "data": data})

    def _here(self, room: Any, namespace: str) -> list[str]:
        """The ids of this process's own clients in a room."""
        return [sid for sid, _ in self.get_participants(namespace, room)]

    def _respond(self, what: str, arguments: Mapping[str, Any], reply: Reply | None) -> None:
        if what == "event":
            self._respond_to_event(arguments["event"], arguments["data"], reply)
            return
        if what not in ("participants", "connected"):
            raise StickyError(f"this worker does not know the question {what!r}")
        found = self._here(arguments["room"], arguments["namespace"])
        if reply is not None:
            reply(len(found) if what == "participants" else found)

    def _respond_to_event(self, event: str, data: Any, reply: Reply | None) -> None:
        handler = self._handlers.get(event)
        if handler is not None:
            self._start(handler, data, reply)
        elif reply is not None:
            raise StickyError(f"it has no handler for {event!r} (on_server_event)")

    @abc.abstractmethod
    def _start(self, handler: Callable[..., Any], data: Any, reply: Reply | None) -> None:
        """Have a handler called where it may wait, and its answer sent."""

    def _own_place(self) -> Place:
        return Place(self._mail.sender.slot, self._mail.sender.pid)

    def _everybody(self, answers: Mapping[Place, list[str]], own: list[str]) -> dict[str, Place]:
        found = {sid: place for place, sids in answers.items() for sid in sids}
        return found | dict.fromkeys(own, self._own_place())


class Manager(_Member, socketio.PubSubManager):  # type: ignore[misc]  # it is not typed
    """One for each worker's socketio.Server.

    Args:
        logger: as for socketio.PubSubManager.
        mail: of this process; for tests.

    Raises:
        StickyError: this process is no worker.
    """

    name = "sticky"

    def __init__(self, logger: logging.Logger | None = None, *, mail: Mail | None = None) -> None:
        super().__init__(logger=logger)
        self._join(mail, "Manager")

    def set_server(self, server: Any) -> None:
        """python-socketio says whose manager this is."""
        super().set_server(server)
        self._claim()

    def initialize(self) -> None:
        """python-socketio says that there is a first client."""
        self._begin()
        super().initialize()

    def close(self) -> None:
        """Hear nothing more; for tests, a worker's manager lives as long as the process."""
        self._close()

    def _publish(self, message: dict[str, Any]) -> None:
        self._send(message)

    def _listen(self) -> Iterator[dict[str, Any]]:
        """Each message that others have sent."""
        queue = self._queue
        assert queue is not None
        number, until = 0, 0.0
        while True:
            if not queue:  # whoever waits for its turn gets it now
                until = math.inf
            if not (items := queue.take()):
                return
            if until == math.inf:
                until = time.monotonic() + _TURN
            for message in self._unpacked(items):
                yield message
                number += 1
                if number % _LOOK == 0 and time.monotonic() > until:
                    self.server.sleep(0)
                    until = time.monotonic() + _TURN

    # -- questions ------------------------------------------------------------------------------

    def participants(
        self, room: Any = None, namespace: str = "/", *, timeout: float = PATIENCE
    ) -> int:
        """How many clients are in a room, over all workers.

        Args:
            room: None for all clients of the namespace.
            timeout: seconds that it may take.

        Raises:
            UnansweredError: not every worker has answered; which, and what the others say.
        """
        answers = self._ask("participants", room=room, namespace=namespace).wait(timeout)
        return len(self._here(room, namespace)) + sum(map(int, answers.values()))

    def connected(
        self, namespace: str = "/", room: Any = None, *, timeout: float = PATIENCE
    ) -> dict[str, Place]:
        """The session ids of all clients, over all workers, each with the worker that has it.

        Args, raises: as ``participants``.
        """
        answers = self._ask("connected", room=room, namespace=namespace).wait(timeout)
        return self._everybody(answers, self._here(room, namespace))

    def server_side_emit(
        self, event: str, data: Any = None, *, timeout: float | None = None
    ) -> dict[Place, Any]:
        """Have the handler of ``on_server_event`` called in every other worker.

        Args:
            event: its name.
            data: what it is called with; what JSON can carry.
            timeout: seconds to wait for what it returns in each; None: replies are not waited for.

        Returns:
            The replies.

        Raises:
            UnansweredError: as for ``participants``; also where there is no such handler, or it has
                failed.
        """
        if timeout is None:
            self._tell(event, data)
            return {}
        return self._ask("event", event=event, data=data).wait(timeout)

    def _start(self, handler: Callable[..., Any], data: Any, reply: Reply | None) -> None:
        self.server.start_background_task(_call, handler, data, reply)


class AsyncManager(_Member, AsyncPubSubManager):  # type: ignore[misc]  # it is not typed
    """One for each worker's socketio.AsyncServer; as ``Manager``, but for the questions, which are
    coroutines."""

    name = "sticky"

    def __init__(self, logger: logging.Logger | None = None, *, mail: Mail | None = None) -> None:
        super().__init__(logger=logger)
        self._join(mail, "AsyncManager")
        self._tasks: set[asyncio.Task[None]] = set()

    def set_server(self, server: Any) -> None:
        """python-socketio says whose manager this is."""
        super().set_server(server)
        self._claim()

    def initialize(self) -> None:
        """python-socketio says that there is a first client."""
        self._begin()
        super().initialize()

    def close(self) -> None:
        """Hear nothing more; for tests, a worker's manager lives as long as the process."""
        self._close()

    async def _publish(self, message: dict[str, Any]) -> None:
        self._send(message)

    async def _listen(self) -> AsyncIterator[dict[str, Any]]:
        """Each message that others have sent."""
        queue = self._queue
        assert queue is not None
        number, until = 0, 0.0
        while True:
            if not queue:  # whoever waits for its turn gets it now
                until = math.inf
            if not (items := await queue.take_async()):
                return
            if until == math.inf:
                until = time.monotonic() + _TURN
            for message in self._unpacked(items):
                yield message
                number += 1
                if number % _LOOK == 0 and time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _TURN

    # -- questions ------------------------------------------------------------------------------

    async def participants(
        self, room: Any = None, namespace: str = "/", *, timeout: float = PATIENCE
    ) -> int:
        """As ``Manager.participants``."""
        answers = await self._ask("participants", room=room, namespace=namespace).wait_async(
            timeout
        )
        return len(self._here(room, namespace)) + sum(map(int, answers.values()))

    async def connected(
        self, namespace: str = "/", room: Any = None, *, timeout: float = PATIENCE
    ) -> dict[str, Place]:
        """As ``Manager.connected``."""
        answers = await self._ask("connected", room=room, namespace=namespace).wait_async(timeout)
        return self._everybody(answers, self._here(room, namespace))

    async def server_side_emit(
        self, event: str, data: Any = None, *, timeout: float | None = None
    ) -> dict[Place, Any]:
        """As ``Manager.server_side_emit``."""
        if timeout is None:
            self._tell(event, data)
            return {}
        return await self._ask("event", event=event, data=data).wait_async(timeout)

    def _start(self, handler: Callable[..., Any], data: Any, reply: Reply | None) -> None:
        task = asyncio.get_running_loop().create_task(_call_async(handler, data, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _row_of(host_id: str) -> int | None:
    """The process of a manager; -1: it is none of ours, and gets nothing."""
    row = host_id.partition(".")[0]
    return int(row) if row.isdecimal() else -1


def _call(handler: Callable[..., Any], data: Any, reply: Reply | None) -> None:
    try:
        answer = handler(data)
    except Exception as error:
        log.exception("a handler of a server-side event failed")
        answer = error
    if reply is not None:
        reply(answer)


async def _call_async(handler: Callable[..., Any], data: Any, reply: Reply | None) -> None:
    try:
        answer: Any = handler(data)
        if inspect.isawaitable(answer):
            answer = await answer
    except Exception as error:
        log.exception("a handler of a server-side event failed")
        answer = error
    if reply is not None:
        reply(answer)
