"""One WSGI request and its answer (PEP 3333), on a connection that is read and written here.

All of it runs in a green thread or a thread, and waits as the worker class does (``Loop``).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from .. import board
from ..channel import Address
from ..core import Head
from . import handshake
from .affinity import Field, Marking
from .body import FileWrapper, Input
from .boundary import CLOSED, READ_SIZE, SEND, SERVING, TAKEN, Wire
from .http1 import CONTINUE, BadAnswer, Refused, date_line, status_line
from .taking import Offer

if TYPE_CHECKING:
    from .wsgi import WsgiService

log = logging.getLogger("sticky.worker")

_DONTWAIT = int(socket.MSG_DONTWAIT)
_MORE = SEND | int(socket.MSG_MORE)
_SMALL = 65536
"""Bytes of a block up to which it is worth copying, to send it with what is before it."""
_PORTS = {"http": "80", "https": "443"}


class ClientLostError(OSError):
    """The client has left, is too slow, or sends what is no body: nobody's fault here."""


@functools.cache
def _of_a_body() -> type[ClientLostError]:
    """What is raised where a body ends too early, or is none. Werkzeug has an exception of its own
    for that, which Flask answers with 400 instead of logging a traceback for whatever a client
    sends; if an app has loaded it, it is meant."""
    werkzeug = sys.modules.get("werkzeug.exceptions")
    if werkzeug is None:
        return ClientLostError
    disconnected = werkzeug.ClientDisconnected

    class BodyLostError(ClientLostError, disconnected):  # type: ignore[misc,valid-type]
        def __init__(self, why: str) -> None:
            disconnected.__init__(self, why)
            self.args = (why,)

    return BodyLostError


class WsgiWire(Wire):
    """A connection whose requests a WSGI app serves."""

    __slots__ = ("local", "marking", "offer", "port")

    service: WsgiService

    def __init__(
        self, service: WsgiService, fd: int, address: Address, moves: int = 0, *, asks: bool = False
    ) -> None:
        super().__init__(service, fd, address, moves, asks=asks)
        self.local: tuple[str, str] | None = None
        self.offer: Offer | None = None  # through which the app has taken the socket
        self.port = str(address[1]) if address else ""
        self.marking: Marking | None = None  # of the request in hand

    def find_local(self, environ: dict[str, Any]) -> tuple[str, str]:
        """SERVER_NAME and SERVER_PORT: where the client has connected to; on a unix socket what
        the request says about that."""
        local = self.service.local(self)
        if local is not None:
            self.local = local[0], str(local[1])
            return self.local
        named: str = environ.get("HTTP_HOST", "")
        host, _, port = named.rpartition(":")
        if port.endswith("]") or not host:  # an address of IPv6, or no port
            host, port = named, ""
        return host or "localhost", port or _PORTS[environ["wsgi.url_scheme"]]

    # -- serving ------------------------------------------------------------------------------

    def serve(self, head: Head) -> None:
        self.service.count(board.NOT_BEGUN)
        self.service.loop.start(self._serve, head)

    def _serve(self, head: Head | None) -> None:
        """Serve this request, and those that are there behind it."""
        service = self.service
        threads = service.loop.threads
        service.count(board.NOT_BEGUN, -1)
        if service.link.paused:
            service.in_loop(service.link.room)
        exchange = None
        try:
            while head is not None:
                exchange = Exchange(self, head)
                contextvars.Context().run(exchange.run)
                if threads:
                    if not service.loop.leave():
                        self._behind()
                        return
                    head = self.answered()
                    service.loop.enter()
                else:
                    head = self.answered()
        except BaseException as error:
            if not isinstance(error, service.loop.cancelled):
                log.exception("%s: an error outside the app", self.address)
            service.in_loop(self.close)
            if exchange is not None:
                service.ended(exchange)

    def _behind(self) -> None:
        """Behind an answer, in a thread that does not have the loop. What touches this connection
        alone is done here; the rest, and what is rare, by who has it."""
        http, draining = self.http, self.service.draining
        if self.state == SERVING and http.body_is_over and not self.pending and not http.ahead:
            if not http.stays:
                self.close()
                return
            if not draining.passes_on and not draining.finishing:
                http.end()
                self.stay()
                return
        self.service.hub.call(self._go_on)

    def _go_on(self) -> None:
        head = self.answered()
        if head is not None:
            self.serve(head)

    # -- what is served with ------------------------------------------------------------------

    def write(self, data: bytes | memoryview, flags: int = SEND) -> None:
        """Send all of this.

        Raises:
            ClientLostError: that cannot be done.
        """
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(error)
        if sent == len(data):
            return
        view = memoryview(data)[sent:]
        while view:
            self._wait_to_write()
            try:
                view = view[self.sock.send(view, flags) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(error)

    def _wait_to_write(self) -> None:
        service = self.service
        seconds = service.options.write_timeout
        if not service.loop.wait(self.fd, writing=True, seconds=seconds):
            service.count(board.WRITE_TIMEOUTS)
            self._lose(TimeoutError(f"the client took nothing for {seconds:g} s"))

    def send_file(self, fd: int, offset: int, size: int) -> None:
        """Send so much of a file; raises as ``write``, and OSError where it ends before that."""
        os.set_blocking(self.fd, False)
        while size:
            try:
                sent = os.sendfile(self.fd, fd, offset, size)
            except BlockingIOError:
                self._wait_to_write()
                continue
            except OSError as error:
                self._lose(error)
            if not sent:
                raise OSError("the file is shorter than it was")
            offset += sent
            size -= sent

    def _lose(self, error: OSError) -> NoReturn:
        self.lost(error)
        raise ClientLostError(*error.args) from error

    def fill(self) -> bytes:
        """Wait for more of the request's body; b"" behind its end.

        Raises:
            ClientLostError: it does not come, or is none.
            Refused: it is malformed.
        """
        http = self.http
        if http.wants_continue:
            http.continued = True
            self.write(CONTINUE)
        while not (data := http.body()):
            if http.body_is_over:
                return b""
            http.receive(self._receive())
        return data

    def _receive(self) -> bytes:
        service = self.service
        while True:
            try:
                data = self.sock.recv(READ_SIZE, _DONTWAIT)
            except BlockingIOError:
                seconds = service.options.body_timeout
                if not service.loop.wait(self.fd, writing=False, seconds=seconds):
                    service.count(board.BODY_TIMEOUTS)
                    raise Refused(408, f"nothing came of the body for {seconds:g} s") from None
                continue
            except OSError as error:
                self._lose(error)
            if not data:
                raise Refused(400, "the body ended too early")
            return data


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_begun",
        "_fields",
        "_http",
        "_line",
        "_refused",
        "_sent",
        "_status",
        "began",
        "environ",
        "head",
        "marking",
        "wire",
    )

    def __init__(self, wire: WsgiWire, head: Head) -> None:
        self.wire = wire
        self.head = head
        self._http = wire.http
        self.marking = wire.marking = wire.service.marking(wire, head)
        self._status = 0
        self._line: bytes | None = None
        self._fields: list[tuple[str, str]] = []
        self._begun = False
        self._sent = 0
        self._refused: Refused | None = None
        self.environ: dict[str, Any] = {}

    def run(self) -> None:
        """Have it answered. Raises nothing that the app is to blame for."""
        wire, service = self.wire, self.wire.service
        self.began = time.monotonic()
        service.exchanges.add(self)
        self.environ = environ = service.environ(wire, self.head)
        environ["wsgi.input"] = Input(self._fill)
        app, behind = service.wsgi, None
        checked = self.head.websocket and service.loop.checks_handshakes
        if checked and (status := handshake.refusal(environ)):
            app = handshake.refuse(status)
        else:
            behind = service.loop.offer(wire, environ, self.head)
        raised: BaseException | None = None
        try:
            result = app(environ, self._start_response)
            try:
                if wire.state == SERVING:
                    self._send_all(result)
            finally:
                if hasattr(result, "close"):
                    result.close()
        except BaseException as error:  # SystemExit in a view, too, costs its request and no more
            raised = error
            self._failed(error)
        finally:
            if behind is not None:
                behind(environ)
            if wire.state == TAKEN:
                wire.close()
            elif wire.state == CLOSED:
                service.end_child(raised)
            raised = None  # it refers to this frame
        service.count(board.REQUESTS)
        if service.access_log is not None:
            self._log()
        service.ended(self)
        self.environ = {}  # which refers to this object, by its input

    def _fill(self) -> bytes:
        try:
            return self.wire.fill()
        except Refused as refused:
            self._refused = refused
            self._http.stays = False
            raise _of_a_body()(refused.why) from None

    # -- the app's side -----------------------------------------------------------------------

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """PEP 3333."""
        if exc_info:
            try:
                if self._begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it refers to this frame
        elif self._status:
            raise AssertionError("start_response was called twice without exc_info")
        self._status, self._line = status_line(status)
        self._fields = headers
        return self._write

    def _write(self, data: bytes) -> None:
        """What ``start_response`` returns: the old way to send a body."""
        if self.wire.state == SERVING:
            self._send(data)

    def _send_all(self, result: Iterable[bytes]) -> None:
        if isinstance(result, FileWrapper) and not self._begun and self._send_file(result):
            return
        size: int | None = None
        if isinstance(result, list | tuple):  # all of it is there
            blocks = b"".join(result) if len(result) != 1 else result[0]
            result = (blocks,)
            size = len(blocks)
        for block in result:
            if self.wire.state != SERVING:
                return  # it has been taken meanwhile
            if block or (self._status and self.head.method == "HEAD"):
                self._send(block, size)
                if not self._http.framing and not self._sent:
                    break  # there is no body: nobody has to wait for what would be one
        if not self._begun:
            self._begin(b"", 0)
        self.wire.write(tail) if (tail := self._http.last()) else None

    def _send(self, block: bytes, size: int | None = None) -> None:
        if not isinstance(block, bytes):
            raise TypeError(f"the app gave {type(block).__name__} as a part of its answer")
        if not self._begun:
            self._begin(block, size)
            return
        if block:
            self._put(b"", block)

    def _begin(self, block: bytes, size: int | None) -> None:
        """Send the head, with the first block."""
        if self._refused is not None:
            raise ClientLostError(self._refused.why)
        if not self._status:
            websocket = self.environ.get("wsgi.websocket")
            if websocket is None:
                raise AssertionError("the app did not call start_response before it gave a body")
            websocket.close()  # it has done with it: there, nothing is what an app answers
            return
        self._put(self._answer_head(size), block)

    def _answer_head(self, size: int | None) -> bytes:
        """The head of the answer; it has begun with this."""
        http = self._http
        if self.wire.service.closing:
            http.stays = False
        fields: Iterable[Field] = self._fields
        if self.marking is not None:
            fields = self.marking.answer(self._status, fields)
        head = http.answer(self._status, fields, date_line(time.time()), size=size, line=self._line)
        self._begun = True
        return head

    def _put(self, head: bytes, block: bytes) -> None:
        http, wire = self._http, self.wire
        try:
            data = http.data(block) if block else b""
        except BadAnswer as error:
            self._say(error)
            wire.write(head + block[: http.left_to_send])
            http.left_to_send = 0
            raise _CutError from None
        self._sent += len(block) if data else 0
        if not head:
            if data:
                wire.write(data)
        elif len(data) <= _SMALL:
            wire.write(head + data)
        else:
            wire.write(head, _MORE)
            wire.write(data)

    def _send_file(self, file: FileWrapper) -> bool:
        """Whether it was sent by the system."""
        region = file.region()
        if region is None:
            return False
        fd, offset, size = region
        http = self._http
        if not self._status:
            return False
        head = self._answer_head(size)
        size = min(size, http.left_to_send)
        self.wire.write(head, _MORE if size else SEND)
        if size:
            self.wire.send_file(fd, offset, size)
        self._sent = size
        http.left_to_send -= size
        http.last()
        return True

    # -- when something goes wrong ------------------------------------------------------------

    def _say(self, error: BadAnswer) -> None:
        log.error("%s %.200r: %s", self.head.method, self.head.target, error)

    def _failed(self, error: BaseException) -> None:
        """The app has raised this, or what it answers cannot be sent."""
        wire, http, service = self.wire, self._http, self.wire.service
        if isinstance(error, _CutError):
            return
        if wire.state != SERVING:  # its client has left, or the app has taken the socket
            log.debug("%s: %r", wire.address, error)
            return
        if self._refused is not None:
            self._answer(self._refused.status)
            return
        if isinstance(error, KeyError) and service.has_ended(self.head):
            self._answer(400)
            return
        if isinstance(error, service.loop.cancelled) and service.draining.cancelling:
            http.stays = False
            self._answer(503)
            return
        if isinstance(error, BadAnswer):
            self._say(error)
            service.count(board.APP_ERRORS)
        else:
            service.app_failed(self.head)
        if self._begun:
            http.stays = False  # its client sees that something is missing
        else:
            self._answer(500)

    def _answer(self, status: int) -> None:
        """Answer in the app's place."""
        self._status = status
        if status != 500:
            self._http.stays = False
        http = self._http
        if self._begun:
            return
        text = self.wire.service.texts[status]
        self._fields, self._line = [("Content-Type", "text/plain")], None
        head = self._answer_head(len(text))
        with contextlib.suppress(ClientLostError):
            self.wire.write(head + http.data(text))

    def _log(self) -> None:
        access_log, head, wire = self.wire.service.access_log, self.head, self.wire
        assert access_log is not None
        taken = wire.offer is not None
        access_log.write(
            client=self.environ.get("REMOTE_ADDR", "") if wire.address else "",
            method=head.method,
            target=head.target.decode("latin-1"),
            protocol=self.environ["SERVER_PROTOCOL"],
            status=101 if taken else self._status or 500,
            size=self._sent,
            seconds=time.monotonic() - self.began,
            request={
                name.decode("latin-1"): value.decode("latin-1") for name, value in head.fields()
            },
            response=self._fields,
            environ=self.environ,
        )


class _CutError(Exception):
    """The answer was cut off where its length ended; that is said."""
