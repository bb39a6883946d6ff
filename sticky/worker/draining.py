"""How a worker ends: what it still serves, what it passes on, and when it has nothing left.

Told CLOSING, the server stops: every answer closes its connection. Told END, nothing more will
come: what is in hand is finished; connections at rest pass to the process that has the slot now,
or are closed where there will be none. Told QUIT, what is still in hand is cancelled: the app's
code for that runs, and behind it its code for the end of the process.

Sessions of a process that was replaced stay while they are held, because the successor asks for
them; Engine.IO's are ended one after another within ``drain_spread``, so that not all clients come
back at once. Clients with an id of ours stay for at most ``session_timeout``; then their WebSockets
are closed with 1012, and their next request goes to the successor.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from ..logs import printable
from .boundary import HEAD, NEW, TAKEN, Wire
from .sessions import of_engineio

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger("sticky.worker")

_LOOK_AGAIN = 0.25
"""Seconds between two looks at whether sessions are still held."""
_SWEEP = 1.0
"""Seconds between two looks at whether others have begun."""
TURN = 1.5
"""Seconds for everything that comes behind QUIT. The master waits a little longer."""
_NAMED = 10
"""Requests that are named in the log."""
_LONGEST = 100
"""Characters of each."""
LAST_HEAD = 1.0
"""Seconds for heads that are not complete when the server stops, as in the master."""


class Draining:
    """The end of one worker process.

    Attributes:
        passes_on: connections at rest go to the successor.
        finishing: what is in hand is the last.
        cancelling: it is being cancelled.
        by: when this process is to have ended, on the monotonic clock.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.passes_on = False
        self.finishing = False
        self.cancelling = False
        self.by = math.inf
        self._lingers = False
        self._swept: set[Wire] = set()

    def end(self, *, replaced: bool = False) -> None:
        """Nothing more will come: finish what is in hand, then end.

        Args:
            replaced: another process has the slot, and asks for the sessions that it lacks.
        """
        service = self.service
        if service.placing.ending:  # told once more: it is not to wait for sessions any longer
            self._lingers = False
            return
        service.placing.stopping = service.closing
        service.placing.ending = True
        service.link.inbox.pause()
        options = service.options
        self.by = time.monotonic() + options.graceful_timeout + TURN
        self.by += options.session_timeout if options.tags else 0.0
        if replaced:
            self.passes_on = True
            self._settle()
        else:
            service.closing = True
        if service.sessions is not None and replaced:
            self._lingers = True
            sessions = of_engineio()
            self._linger(sessions, len(sessions), time.monotonic())
        else:
            self._finish()

    def quit(self) -> None:
        """Cancel what is in hand, and end."""
        if self.cancelling:
            return
        service = self.service
        self.cancelling = True
        self.by = min(self.by, time.monotonic() + TURN)
        service.placing.ending = service.closing = self.finishing = True
        service.link.inbox.pause()
        self._name()
        service.link.leave()
        service.cancel()

    def _name(self) -> None:
        """Say what was still in hand."""
        now = time.monotonic()
        found = sorted(self.service.exchanges, key=lambda one: one.began)
        if not found:
            return
        names = [
            f"{one.head.method} {printable(one.head.target.decode('latin-1'), _LONGEST)} "
            f"({now - one.began:.0f} s)"
            for one in found[:_NAMED]
        ]
        if len(found) > _NAMED:
            names.append(f"and {len(found) - _NAMED} more")
        what = "1 request was" if len(found) == 1 else f"{len(found)} requests were"
        log.warning("%s cancelled: %s", what, ", ".join(names))

    def at_rest(self, wire: Wire) -> None:
        """A connection has nothing to do here, and this process ends."""
        if self.passes_on:
            wire.pass_on()
        else:
            wire.close()

    def _settle(self) -> None:
        """Have connections at rest looked at once more, and then go where they are to go."""
        for wire in list(self.service.wires):
            wire.settle()

    def _linger(self, sessions: list[Any], count: int, began: float) -> None:
        """Stay while sessions are held. Those of Engine.IO are ended one after another, clients
        with an id of ours stay for ``session_timeout``; others end when they like: the master sets
        the limit.

        Args:
            sessions: those of Engine.IO that are left.
            count: how many there were.
            began: when that was.
        """
        service = self.service
        assert service.sessions is not None
        spread = service.options.drain_spread
        elapsed = time.monotonic() - began
        left = math.ceil(count * max(0.0, 1 - elapsed / spread)) if spread else 0
        service.end_sessions([sessions.pop() for _ in range(len(sessions) - left)])
        service.sessions.count()
        held = elapsed < service.options.session_timeout and len(service.sessions.held) > 0
        if self._lingers and (left or held or service.sessions.last):
            service.hub.later(_LOOK_AGAIN, lambda: self._linger(sessions, count, began))
        else:
            self._finish()

    def _finish(self) -> None:
        service = self.service
        self.finishing = True
        self._settle()
        by = time.monotonic() + LAST_HEAD
        for wire in list(service.wires):
            if wire.state in (NEW, HEAD):
                service.hub.keep(wire, min(wire.due, by))
        self._sweep()
        self.check()

    def _sweep(self) -> None:
        """End the sessions that are there, and what is none of HTTP any more; again and again,
        because requests in hand may begin some."""
        service = self.service
        if self.cancelling or service.hub.over:
            return
        service.end_sessions([it for it in of_engineio() if it.sid not in service.ended_sessions])
        taken = {wire for wire in service.wires if wire.state == TAKEN}
        for wire in taken - self._swept:
            service.end_upgraded(wire)
        self._swept = taken
        if service.busy:
            service.hub.later(_SWEEP, self._sweep)

    def check(self) -> None:
        """End if nothing is left."""
        if self.finishing and not self.service.busy and not self.service.hub.over:
            self.service.end()
