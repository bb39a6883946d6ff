"""Session ids in a worker: ids that lead back to it, and which of them the app holds."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..errors import StickyError
from ..topology import Topology
from .held import Held

log = logging.getLogger("sticky.worker")

Make = Callable[[], str]
Holder = Callable[[str], bool]

_DRAWS = 200
"""For each slot, how many ids are drawn until the one that makes them is at fault: with random ones
it takes that many once in e**200 times."""

_SETTLING = 5.0
"""Seconds that the app may take until it holds what it has minted."""


class Sessions:
    """The sessions of one worker process.

    Args:
        topology: from an id to its slot.
        slot: the worker's.
        counters: where to count what is held, as "sessions".
        clock: the monotonic time, in seconds.
        hold: seconds for which an id of ours is held behind its last request.

    Attributes:
        held: the ids of ours, which the app does not know.
    """

    def __init__(
        self,
        topology: Topology,
        slot: int,
        counters: MutableMapping[str, int],
        clock: Callable[[], float] = time.monotonic,
        *,
        hold: float = 0.0,
    ) -> None:
        self._topology = topology
        self._slot = slot
        self._counters = counters
        self._holders: list[Holder] = []
        self._clock = clock
        self.held = Held(hold, clock)
        # Apps mint in threads, too: what they change here is changed in single steps.
        self._minted: dict[str, float] = {}  # and until when it need not be held
        self._unknown = 0  # minted where nobody says what is held: nothing is kept of those
        self._servers: list[Any] = []  # of Engine.IO

    def mint(self, make: Make | None = None) -> str:
        """An id that leads to this worker; see ``sticky.mint``."""
        minted = self._draw(make)
        if self._holders:
            self._minted[minted] = self._clock() + _SETTLING
        else:
            self._unknown += 1
        self._counters["sessions"] += 1
        return minted

    def _draw(self, make: Make | None) -> str:
        router, num = self._topology.router, self._topology.num
        if self._slot >= num:  # there are fewer workers now, and this one is about to end
            return make() if make else secrets.token_urlsafe(15)
        if make is None:
            return router.mint(self._slot, os.urandom(15)).decode("ascii")
        for _ in range(_DRAWS * num):
            drawn = make()
            if router.owner(drawn.encode()) == self._slot:
                return drawn
        raise StickyError(
            f"sticky.mint(make=...) called {make!r} {_DRAWS * num} times, and none of the "
            f"ids leads to worker {self._slot} of {num} (the last one was {drawn!r}): it "
            "must make another, random id each time"
        )

    # -- what is held -------------------------------------------------------------------------

    def held_by(self, holder: Holder) -> None:
        """Ask this function, too, whether the app holds an id; see ``sticky.holds``."""
        if inspect.iscoroutinefunction(holder):
            raise TypeError(f"sticky.holds needs a plain function, and {holder!r} is a coroutine's")
        self._holders.append(holder)

    @property
    def counted(self) -> int:
        """How many are held, as far as it can be known."""
        return self._counters["sessions"]

    @property
    def last(self) -> bool:
        """Whether there are some that only the app ends, when it likes."""
        return bool(self._holders and self._minted)

    def surely_holds(self, session: str) -> bool:
        """Whether the app says that it holds this id."""
        return bool(self._holders or self._servers) and self.hold(session)

    def hold(self, session: str) -> bool:
        """Whether the app holds this id; True where nobody can say."""
        for server in self._servers:
            # One that is closed stays there until it is asked for, and that would be answered 500.
            held = server.sockets.get(session)
            if held is not None and not held.closed:
                return True
        for holder in self._holders:
            try:
                if holder(session):
                    return True
            except Exception:
                log.exception("what was registered with sticky.holds failed: %r", holder)
                return True
        return not self._holders and not self._servers

    def count(self) -> None:
        """Count what is held now. What was minted and nobody can say is held counts for ever."""
        now = self._clock()
        for minted, until in self._minted.copy().items():
            if self.hold(minted):
                self._minted[minted] = now  # from here on it is held, or has ended
            elif until <= now:
                del self._minted[minted]
        self.count_servers()

    def count_servers(self) -> None:
        """The same, without asking the app about each id."""
        held = sum(len(server.sockets) for server in self._servers)
        held += len(self.held)
        self._counters["sessions"] = held + len(self._minted) + self._unknown
        self._counters["marks_forgotten"] = self.held.crowded_out

    # -- Engine.IO ----------------------------------------------------------------------------

    def mint_for_engineio(self) -> None:
        """Have all Engine.IO servers of this process mint their ids here, those that are there and
        those that will be. An app's own ``generate_id`` goes on making the ids."""
        import engineio.base_server

        kind = engineio.base_server.BaseServer

        def generate_id(server: Any) -> str:
            return self._mint_for(server, None)

        kind.generate_id = generate_id
        for server in instances(kind):
            self._servers.append(server)  # a session that it lacks may be held by its predecessor
            if "generate_id" in vars(server) or type(server).generate_id is not generate_id:
                make = server.generate_id
                server.generate_id = functools.partial(self._mint_for, server, make)

    def _mint_for(self, server: Any, make: Make | None) -> str:
        if not any(known is server for known in self._servers):
            self._servers.append(server)
        minted = self._draw(make)
        self.count_servers()
        self._counters["sessions"] += 1  # this one, which the server does not have yet
        return minted


def instances(*kinds: type) -> list[Any]:
    """All objects of these classes in this process.

    By their type, not by what they say their class is: asking a lazy proxy would wake it up.
    """
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


def of_engineio() -> list[Any]:
    """The open Engine.IO sessions of this process. The servers are looked up among all objects,
    because the app may have wrapped them in anything."""
    engineio = sys.modules.get("engineio")
    if engineio is None:
        return []
    servers = instances(engineio.Server, engineio.AsyncServer)
    return [session for server in servers for session in list(server.sockets.values())]


def end(session: Any) -> Any:
    """End an Engine.IO session so that its client comes back.

    No CLOSE packet is sent: python-engineio's client takes that for final, and so does JavaScript's
    what ``sio.disconnect`` sends. The app's handler of "disconnect" is called; then the client sees
    its transport end (a long poll is answered, and the next one finds no session), and connects
    again.

    Returns:
        What is to be awaited, of an asynchronous server.
    """
    try:
        pending = session.close(wait=False, abort=True)
    except Exception:  # one session's trouble must not keep the others
        log.debug("ending a session failed", exc_info=True)
        pending = None
    if inspect.isawaitable(pending):
        return _ended(session, pending)
    _forget(session)
    return None


async def _ended(session: Any, pending: Awaitable[object]) -> None:
    try:
        await pending
    except Exception:
        log.debug("ending a session failed", exc_info=True)
    session.queue.put_nowait(None)  # what waits for packets there; the other server does it itself
    _forget(session)


def _forget(session: Any) -> None:
    """Have its server know it no more: it would raise KeyError when it is asked for a session that
    it has and that is closed, which makes a 500 of what should be a 400."""
    sockets = session.server.sockets
    if session.closed and sockets.get(session.sid) is session:
        sockets.pop(session.sid, None)
