"""Clients of Socket.IO: python-socketio's, and the one for JavaScript in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import socketio

from tests.harness import MARK

from .oracle import Oracle, Session, now

HERE = Path(__file__).resolve().parent
TRANSPORTS = {
    "polling": ["polling"],
    "websocket": ["websocket"],
    "upgrade": ["polling", "websocket"],
}
OVERDUE = 30.0
"""Seconds in which an event is answered, or its client told."""
GIVES_UP = 10.0
"""Seconds without a session, after which a client is taken to have given up."""
RECONNECT = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.5}
"""Seconds that a client waits: of its own accord, which is not what is looked at here."""


class Spec(NamedTuple):
    """A client to be."""

    name: str
    via: str
    mode: str
    address: str
    url: str


class Talk:
    """All clients of Socket.IO, whatever their language, and what they say."""

    def __init__(self, oracle: Oracle, *, pause: tuple[float, float] = (0.2, 1.5)) -> None:
        self.oracle = oracle
        self.pause = pause
        self.clients: list[PythonClient | JavaScript] = []
        self._events = itertools.count()

    def event(self) -> str:
        return f"e{next(self._events)}"

    async def start(self, specs: Iterable[Spec], scripts: Iterable[list[Spec]] = ()) -> None:
        """With clients of Python, and with programs of such clients of JavaScript."""
        for spec in specs:
            self.clients.append(PythonClient(self, spec))
        for group in scripts:
            self.clients.append(JavaScript(self, group))
        for client in self.clients:
            await client.start()

    def pending(self) -> list[str]:
        """Those that are not connected, or wait for an answer."""
        return [name for client in self.clients for name in client.pending()]

    async def overdue(self) -> None:
        """Look for what has been waited for too long, for ever."""
        while True:
            await asyncio.sleep(1)
            for client in self.clients:
                for session in client.sessions():
                    self.oracle.overdue(session, OVERDUE)

    def quiet(self, on: bool = True) -> None:
        """Say nothing for a while."""
        for client in self.clients:
            client.quiet(on)

    async def stop(self) -> None:
        await asyncio.gather(*(client.stop() for client in self.clients))


class PythonClient:
    """python-socketio's AsyncClient, which comes back by itself where it does so.

    Where it does not, the load goes on with a new one: after a CLOSE packet of Engine.IO, which is
    final for it, and where it has given up without a word, as it does when a connection breaks just
    when it has come back.
    """

    def __init__(self, talk: Talk, spec: Spec) -> None:
        self.talk = talk
        self.spec = spec
        self.session: Session | None = None
        self.welcomed = asyncio.Event()
        self.back: Callable[[Session], None] = lambda session: None
        """Called with each session."""
        self.gone: Callable[[str], None] = lambda reason: None
        """And when it has ended."""
        self._quiet = False
        self._draw = random.Random(spec.name)
        self._sio: Any = None
        self._ended: str | None = None  # the last session of which that is known
        self._over = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        # The headers given to connect() are those of the first request only; these are of all.
        self._http = aiohttp.ClientSession(headers={"X-Forwarded-For": self.spec.address})
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._speak())]

    def _make(self) -> Any:
        sio = socketio.AsyncClient(
            reconnection=True,
            handle_sigint=False,
            request_timeout=30,
            http_session=self._http,
            **RECONNECT,
        )

        async def welcome(about: dict[str, Any]) -> None:
            # It is told of its end at once, and of events a little later.
            sid = sio.eio.sid
            if sio is self._sio and sid is not None and sid != self._ended:
                self._welcome(sid, about)

        async def disconnect(reason: str) -> None:
            if sio is self._sio:
                self._ended = sio.eio.sid
                self._disconnect(reason, final=reason == sio.reason.SERVER_DISCONNECT)

        sio.on("welcome", welcome)
        sio.on("disconnect", disconnect)
        return sio

    def _welcome(self, sid: str, about: dict[str, Any]) -> None:
        spec = self.spec
        self.session = Session(spec.name, "python", spec.mode, spec.via, sid, about, now())
        self.back(self.session)
        self.welcomed.set()

    def _disconnect(self, reason: str, *, final: bool) -> None:
        session, self.session = self.session, None
        self.welcomed.clear()
        self.gone(reason)
        if session is not None:
            self.talk.oracle.ended(session, reason, final=final)
        if final:
            self._over.set()

    async def _keep(self) -> None:
        while True:
            self._over.clear()
            self._sio = self._make()
            try:
                await self._sio.connect(
                    self.spec.url, transports=TRANSPORTS[self.spec.mode], wait_timeout=20
                )
            except socketio.exceptions.ConnectionError as error:
                self.talk.oracle.note(f"{self.spec.name} cannot connect: {error}")
            else:
                await self._end()
            # Not waited for: one that polls may wait for the end of its poll.
            leaving = asyncio.create_task(self._discard())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            await asyncio.sleep(RECONNECT["reconnection_delay"])

    async def _end(self) -> None:
        """Wait until this client will never come back."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GIVES_UP):
                    await self._over.wait()
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GIVES_UP):
                    await self.welcomed.wait()
                    continue
            self.talk.oracle.told[f"python {self.spec.mode}: has given up"] += 1
            self.talk.oracle.note(f"{self.spec.name} has given up: a new one")
            return

    async def _discard(self) -> None:
        old, self._sio = self._sio, None
        self.session = None
        self.welcomed.clear()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await old.shutdown()

    async def _speak(self) -> None:
        while True:
            await self.welcomed.wait()
            await asyncio.sleep(self._draw.uniform(*self.talk.pause))
            if not self._quiet:
                await self.say()

    async def say(self) -> None:
        """Send one event."""
        session = self.session
        if session is None:
            return
        event = self.talk.event()
        session.pending[event] = now()
        try:
            await self._sio.emit(
                "echo",
                {"event": event},
                callback=lambda answer: self.talk.oracle.acknowledged(session, event, answer),
            )
        except socketio.exceptions.SocketIOError:  # it is between two sessions, and will say so
            del session.pending[event]

    def again(self) -> None:
        """Leave, of its own accord, and come back."""
        self.session = None  # nothing is amiss with its end
        self.gone("of its own accord")
        self.welcomed.clear()
        self._over.set()

    def sessions(self) -> list[Session]:
        return [self.session] if self.session else []

    def pending(self) -> list[str]:
        if self.session is None:
            return [f"{self.spec.name}: not connected"]
        return [f"{self.spec.name}: {event} not answered" for event in self.session.pending]

    def quiet(self, on: bool) -> None:
        self._quiet = on

    async def stop(self) -> None:
        self.gone = lambda reason: None
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._sio is not None:
            await self._discard()
        await asyncio.gather(*self._leaving)
        await self._http.close()


class JavaScript:
    """talk.js: several clients in one process, which tells what happens to them."""

    def __init__(self, talk: Talk, specs: list[Spec]) -> None:
        self.talk = talk
        self.specs = {spec.name: spec for spec in specs}
        self._sessions: dict[str, Session] = {}

    async def start(self) -> None:
        program = shutil.which(os.environ.get("NODE", "node"))
        if program is None:
            raise FileNotFoundError("needs node: install Node.js 18 or later")
        config = {
            "clients": [spec._asdict() for spec in self.specs.values()],
            "pause": self.talk.pause,
        }
        self._process = await asyncio.create_subprocess_exec(
            program,
            str(HERE / "talk.mjs"),
            json.dumps(config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != MARK},
        )
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            getattr(self, f"_on_{said.pop('what')}")(**said)

    def _on_welcome(self, client: str, sid: str, about: dict[str, Any], at: float) -> None:
        spec = self.specs[client]
        self._sessions[client] = Session(client, "javascript", spec.mode, spec.via, sid, about, at)

    def _on_sent(self, client: str, sid: str, event: str, at: float) -> None:
        if (session := self._sessions.get(client)) and session.sid == sid:
            session.pending[event] = at

    def _on_ack(self, client: str, sid: str, event: str, answer: dict[str, Any]) -> None:
        if (session := self._sessions.get(client)) and session.sid == sid:
            self.talk.oracle.acknowledged(session, event, answer)

    def _on_disconnect(self, client: str, reason: str, final: bool) -> None:
        if session := self._sessions.pop(client, None):
            self.talk.oracle.ended(session, reason, final=final)

    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    def pending(self) -> list[str]:
        away = [f"{name}: not connected" for name in self.specs if name not in self._sessions]
        return away + [
            f"{session.client}: {event} not answered"
            for session in self._sessions.values()
            for event in session.pending
        ]

    def quiet(self, on: bool) -> None:
        self._tell({"quiet": on})

    def _tell(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(what).encode() + b"\n")

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._listening.cancel()
