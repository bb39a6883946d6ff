"""One request of an ASGI app, from its scope to the end of its answer (ASGI 3, HTTP format 2.3).

The app runs in a task of its own. What it sends first is kept until there is something to send
with it, so that an answer of one piece is one packet and has its length; if the app lets go of the
loop in between, the head leaves without waiting for more.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..core import Head
from .asgi_scope import Fields, scope_of
from .boundary import SERVING
from .http1 import CONTINUE, BadAnswer, Http1, Refused, date_line

if TYPE_CHECKING:
    from .asgi import AsgiService
    from .wire import AsgiWire

log = logging.getLogger("sticky.worker")

Message = dict[str, Any]

_FAILED_FIELDS: Fields = [(b"content-type", b"text/plain; charset=utf-8")]
_FAILED = b"Internal Server Error"
_ENDED_FIELDS: Fields = [*_FAILED_FIELDS, (b"retry-after", b"1")]
_ENDED = b"The server ends. Please try again.\n"

# How far an answer is: nothing is there, the app has begun it, its head has been sent, it is whole.
NOTHING, BEGUN, SENT, COMPLETE = range(4)


def _as_text(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


class Exchange(abc.ABC):
    """What a request and a WebSocket have in common: a task, an answer, and waiting.

    Attributes:
        left: the client is gone, or it is over between us.
        stage: how far the answer is.
        began: when its head was there, on the monotonic clock.
    """

    __slots__ = (
        "_noted",
        "_settled",
        "_waiters",
        "began",
        "fields",
        "head",
        "http",
        "left",
        "marking",
        "scope",
        "service",
        "size",
        "stage",
        "status",
        "task",
        "wire",
    )

    def __init__(self, service: AsgiService, wire: AsgiWire, head: Head) -> None:
        self.service = service
        self.wire = wire
        self.http: Http1 = wire.http
        self.head = head
        self.task: asyncio.Task[None] | None = None
        self.stage = NOTHING
        self.status = 0
        self.fields: Any = ()
        self.left = False
        self._settled = False
        self._waiters: list[asyncio.Future[None]] = []
        self.scope: Message
        self.began = time.monotonic()
        self.marking = service.marking(wire, head)
        self._noted = True  # its line of the access log is written, or there is none
        self.size = 0

    # -- the app ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Call the app. Whatever it raises costs this request and nothing else."""
        self.wire.begun()
        self._noted = self.service.access_log is None
        try:
            result = await self.service.app(self.scope, self.receive, self.send)
        except GeneratorExit:
            raise
        except BaseException as error:
            if self.left:
                self.service.end_child(error)
            self.failed(error)
        else:
            self.returned(result)
        finally:
            self.service.ended(self)
            self.note()

    @abc.abstractmethod
    async def receive(self) -> Message:
        """The app's: what comes next."""

    @abc.abstractmethod
    async def send(self, message: Message) -> None:
        """The app's: what is to be sent."""

    @abc.abstractmethod
    def returned(self, result: object) -> None:
        """The app has returned."""

    @abc.abstractmethod
    def failed(self, error: BaseException) -> None:
        """The app has raised this, which is being handled."""

    def complain(self, error: BaseException) -> None:
        """Log what the app has raised: unless we or its client have ended it."""
        cancelled = isinstance(error, asyncio.CancelledError) and self.service.draining.cancelling
        if cancelled or self.left:
            log.debug("%s: the app failed without a client", self.wire.address, exc_info=True)
        elif isinstance(error, BadAnswer):
            self.service.app_misbehaved(self.head, str(error))
        else:
            self.service.app_failed(self.head)

    # -- waiting ------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until ``wake``."""
        waiter = self.service.loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def wake(self) -> None:
        """Whoever waits is to look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    @abc.abstractmethod
    def arrived(self) -> None:
        """Something has arrived, or the client has closed its side."""

    def overdue(self) -> None:
        """See ``AsgiWire.read_by``."""

    def relieved(self) -> None:
        """Whoever wants to send more waits for that itself."""

    def gone(self) -> None:
        """The connection is closed."""
        self.left = True
        self.wake()

    # -- the answer ---------------------------------------------------------------------------

    def settle(self) -> None:
        """All tasks of this turn have had their first turn: if this one is not over, an end of the
        client's is to be noticed, and what the app has begun is not to wait any longer."""
        self._settled = True
        if self.stage < COMPLETE and not self.left:
            self.wire.watch_quietly()
            if self.stage == BEGUN:
                self.send_head()

    def begin_answer(self, message: Message) -> None:
        """The app's message with the status."""
        self.status = message["status"]
        self.fields = message.get("headers", ())
        if not self._noted:
            self.fields = list(self.fields)
        self.stage = BEGUN
        if self._settled:
            self.service.loop.call_soon(self.send_head)

    def send_head(self) -> None:
        """Send the head, unless it has gone with the first piece of the body."""
        if self.stage != BEGUN or self.left:
            return
        try:
            block = self._head_of_answer(None)
        except BadAnswer:
            return  # which the app is told when it goes on
        self.stage = SENT
        self.wire.write(block)

    def _head_of_answer(self, size: int | None) -> bytes:
        http = self.http
        if self.service.closing:
            http.stays = False
        fields = self.fields
        if self.marking is not None:
            fields = self.marking.answer(self.status, fields)
        return http.answer(self.status, fields, date_line(time.time()), size=size)

    def send_body(self, message: Message) -> None:
        """The app's message with a piece of the body.

        Raises:
            BadAnswer: it cannot be sent.
        """
        body = message.get("body", b"")
        more = message.get("more_body", False)
        http = self.http
        if self.stage == BEGUN:
            size = None if more else len(body)
            data = self._head_of_answer(size) + http.data(body)
            if not more:
                data += http.last()
            self.stage = SENT
        else:
            data = http.data(body)
            if not more:
                data += http.last()
        self.size += len(body)
        if data:
            self.wire.write(data)
        if not more:
            self.finish()

    def finish(self) -> None:
        """The answer is complete."""
        self.stage = COMPLETE
        self.note()
        if self._waiters:
            self.wake()
        if not self.left:
            self.wire.complete()

    def answer_instead(self, status: int = 500) -> None:
        """The app has not answered, and will not."""
        if status != 500:
            text = self.service.texts[status]
            self.status, self.fields = status, _FAILED_FIELDS
        elif self.service.draining.cancelling:
            self.status, self.fields, text = 503, _ENDED_FIELDS, _ENDED
        else:
            self.status, self.fields, text = 500, _FAILED_FIELDS, _FAILED
        self.stage = BEGUN
        self.send_body({"body": text})

    def break_off(self) -> None:
        """The answer will never be complete, so that the connection has to end."""
        self.stage = COMPLETE
        self.wake()
        if not self.left:
            self.http.stays = False
            self.wire.complete()

    def note(self) -> None:
        """Write the line of the access log, once."""
        began, access_log = self.began, self.service.access_log
        if self._noted or access_log is None:
            return
        self._noted = True
        scope, client = self.scope, self.scope["client"]
        access_log.write(
            client=client[0] if client else "",
            method=self.head.method,
            target=self.head.target.decode("latin-1"),
            protocol="HTTP/" + scope["http_version"],
            status=self.status or 500,
            size=self.size,
            seconds=time.monotonic() - began,
            request=dict(_as_text(scope["headers"])) if access_log.names_request else {},
            response=_as_text(self.fields) if access_log.names_response else [],
            environ=scope,
        )


class Request(Exchange):
    """A request of HTTP."""

    __slots__ = ("_told",)

    def __init__(self, service: AsgiService, wire: AsgiWire, head: Head) -> None:
        super().__init__(service, wire, head)
        self.scope = scope_of(service, wire, head)
        self._told = False  # the app knows that the body is over

    # -- what the app receives ----------------------------------------------------------------

    async def receive(self) -> Message:
        if self.head.expects:
            self._allow()
        while True:
            if self.left or self.stage == COMPLETE:
                return {"type": "http.disconnect"}
            if not self._told:
                data = self._body()
                self._told = self.http.body_is_over
                if data or self._told:
                    return {"type": "http.request", "body": data, "more_body": not self._told}
                if self.left:
                    continue
                options = self.service.options
                self.wire.read_by(time.monotonic() + options.body_timeout)
            elif self.wire.ended:
                return {"type": "http.disconnect"}
            self.wire.watch_quietly()
            await self.wait()

    def _allow(self) -> None:
        """The client waits with its body until it is asked for it (RFC 9110, 10.1.1)."""
        http = self.http
        if self.stage < SENT and not self.left and http.wants_continue:
            http.continued = True
            self.wire.write(CONTINUE)

    def _body(self) -> bytes:
        try:
            return self.wire.body()
        except Refused as refused:
            self._give_up(refused.status)
            return b""

    def _give_up(self, status: int) -> None:
        """The rest of the body is not to be had, and the app gets no further."""
        wire = self.wire
        begun, self.left = self.stage == SENT, True
        wire.exchange = None
        wire.read_by(float("inf"))
        if wire.state == SERVING:
            if begun or wire.out is not None:
                wire.close()
            else:
                wire.refuse(status)
        self.wake()

    def arrived(self) -> None:
        """Something has arrived: news for who waits for the body, or for the client's end."""
        if self._waiters and (not self._told or self.wire.ended):
            self.wire.read_by(float("inf"))
            self.wake()

    def overdue(self) -> None:
        """The client has sent nothing of a body that the app waits for."""
        self.wire.body_timed_out()
        self._give_up(408)

    # -- what it sends ------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        wire = self.wire
        if wire.full and not self.left and self.stage != COMPLETE:
            await wire.drain()
        if self.left:
            return
        kind = message["type"]
        stage = self.stage
        if stage == NOTHING:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected 'http.response.start', but got {kind!r}.")
            self.begin_answer(message)
        elif stage == COMPLETE:
            raise RuntimeError(f"Unexpected {kind!r}: the response is already complete.")
        elif kind == "http.response.body":
            self.send_body(message)
        else:
            raise RuntimeError(f"Expected 'http.response.body', but got {kind!r}.")

    # -- how it ends --------------------------------------------------------------------------

    def returned(self, result: object) -> None:
        if self.stage == COMPLETE or self.left:
            return
        what = "without starting a response" if self.stage == NOTHING else "in mid-response"
        if self.wire.ended:  # the app was told that its client has left, and gives up
            log.debug("%s: the app returned %s", self.wire.address, what)
        else:
            self.service.app_misbehaved(self.head, f"the app returned {what}")
        self._end()

    def failed(self, error: BaseException) -> None:
        over = isinstance(error, KeyError) and self.service.has_ended(self.head)
        if not over:
            self.complain(error)
        if self.stage != COMPLETE and not self.left:
            if over and self.stage == NOTHING:
                self.answer_instead(400)
            else:
                self._end()

    def _end(self) -> None:
        if self.stage == SENT:
            self.break_off()
        else:
            self.answer_instead()
