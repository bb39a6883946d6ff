"""What every kind of server has in common: the worker's two channels and what they bring.

An adapter adopts connections from the inbox of its slot and obeys its control pair. How it waits
for either, and how it serves a connection, is its framework's business: the methods at the end.
"""

from __future__ import annotations

import abc
import gc
import json
import logging
import os
import socket
import sys
from typing import Any, NoReturn

from .. import channel
from ..errors import ChannelError
from ..options import Options

log = logging.getLogger("sticky.worker")


class Adapter(abc.ABC):
    """Serves one app in one worker process.

    Args:
        app: what the factory returned.
        options: the settings.
        control: our end of the control pair.
        inbox: the worker's end of the slot's inbox.
    """

    def __init__(
        self, app: Any, options: Options, control: socket.socket, inbox: socket.socket
    ) -> None:
        self.app = app
        self.options = options
        self.control = control
        self.inbox = inbox
        self.ending = False
        self.closing = False
        self.not_begun = 0
        self.counters = {"adopted": 0, "lost": 0}
        self._reader = channel.Reader()

    # -- what the framework's event loop calls ------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another connection may be picked up: at most ``prefetch`` are not yet begun.

        Connections that have begun (long polls, websockets, those that wait for their client)
        do not count, or a few of them would keep everyone else out.
        """
        return not self.ending and self.not_begun < self.options.prefetch

    def receive_connections(self) -> None:
        """The inbox is readable: adopt what is there, within the bound."""
        while self.has_room:
            try:
                message = self._reader.receive(self.inbox)
            except BlockingIOError:
                return
            except ChannelError as error:
                self.counters["lost"] += 1
                log.error("a connection was lost: %s", error)
                continue
            if message is None:
                self.orphaned()
            self._adopt(message)

    def receive_control(self) -> None:
        """The control pair is readable: obey."""
        while True:
            try:
                message = self._reader.receive(self.control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = None
            if message is None:
                self.orphaned()
            if message.kind == channel.PING:
                self.tell(channel.PONG, self.counters)
            elif message.kind == channel.CONNECTION:
                self._adopt(message)
            elif message.kind == channel.CLOSING:
                self.closing = True
                self.close_after_answers()
            elif message.kind == channel.END:
                self.end()
            elif message.kind == channel.QUIT:
                self.quit()

    def tell(self, kind: int, content: Any = None) -> None:
        """Send the master a message."""
        payload = b"" if content is None else json.dumps(content).encode()
        try:
            channel.send(self.control, channel.pack_header(kind), payload)
        except BlockingIOError:
            pass  # the master is behind; it will ask again
        except OSError:
            self.orphaned()

    def orphaned(self) -> NoReturn:
        """The master is gone: nobody will ever send anything, so there is no reason to be."""
        os._exit(1)

    def _adopt(self, message: channel.Message) -> None:
        fd = message.fds[0]
        self.counters["adopted"] += 1
        self.not_begun += 1
        self.adopt(fd, message.address, message.payload)

    # -- ending -------------------------------------------------------------------------------

    def end(self) -> None:
        """Nothing more will come: finish what is in hand, then end."""
        if self.ending:
            return
        self.ending = self.closing = True
        self.close_after_answers()
        close_sessions()
        self.finish()

    # -- what a framework provides ------------------------------------------------------------

    @abc.abstractmethod
    def run(self) -> None:
        """Serve until ended. Tells READY when it is ready to adopt."""

    @abc.abstractmethod
    def adopt(self, fd: int, address: channel.Address, prefix: bytes) -> None:
        """Serve this connection; lower ``not_begun`` when it has begun."""

    @abc.abstractmethod
    def close_after_answers(self) -> None:
        """From now on answer with Connection: close."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Close what is idle; let ``run`` return when the rest has been answered."""

    @abc.abstractmethod
    def quit(self) -> None:
        """Let ``run`` return now."""


def socket_family(address: channel.Address) -> socket.AddressFamily:
    """The family of a connection's socket, from its client's address."""
    if not address:
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def close_sessions() -> None:
    """Close Engine.IO sessions so that their clients come back.

    Closed at this level a JavaScript client sees "transport close" and reconnects; after
    ``sio.disconnect(sid)`` it sees "io server disconnect" and does not. The servers are looked up
    among all objects, because the app may have wrapped them in anything.
    """
    engineio = sys.modules.get("engineio")
    if engineio is None:
        return
    for server in [o for o in gc.get_objects() if isinstance(o, engineio.Server)]:
        for session in list(server.sockets.values()):
            try:
                session.close(wait=False)
            except Exception:  # one session's trouble must not keep the others
                log.debug("closing a session failed", exc_info=True)
