"""The shell of the master: one epoll loop around the ledger, the dispatcher and the processes.

It never waits for anything but epoll, never loads the user's code, and logs what happened to
processes. What to do about it is decided in the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import resource
import select
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import channel, inquiry, logs, spawn
from ..board import Board
from ..errors import ChannelError, StickyError
from ..options import Options
from ..program import Program
from ..routing import make_router
from . import ledger, systemd
from .balance import Balance
from .dispatcher import Dispatcher
from .ledger import Ledger, Rules, Tell, Why
from .listeners import Listeners
from .report import Reporter, Seen
from .signals import Signals, describe, reap, reap_orphans
from .surroundings import Surroundings

log = logging.getLogger("sticky.master")

_TOLD = {
    Tell.PING: channel.PING,
    Tell.CLOSING: channel.CLOSING,
    Tell.END: channel.END,
    Tell.QUIT: channel.QUIT,
}
_WHY = {
    Why.REPLACED: "it was replaced before it was ready",
    Why.NOT_READY: "it was not ready within {boot_timeout:g} s",
    Why.SILENT: "it did not answer for {timeout:g} s",
    Why.NOT_ENDED: "it did not end in time",
}
"""What the log says of a process that is killed; of one that is killed by design, nothing."""
_FIONREAD = termios.FIONREAD

_RESERVE = 2
"""Descriptors kept free for what a worker hands back: a connection, and the memfd of a large
prefix. Without room for them the kernel would drop them, and the connection with them."""

_AT_ONCE = 64
"""Messages of one process that are read before everything else gets its turn again."""

_SPARE_FDS = 100
"""Descriptors that a worker needs beside its connections: for the app, roughly."""

Handler = Callable[[int], object]


class _Slot:
    """What the shell holds for a slot: both ends of its inbox, and of its place on the bus."""

    def __init__(self) -> None:
        self.inbox, self.inbox_end = channel.inbox()
        self.sibling, self.mailbox = channel.pair()

    def close(self) -> None:
        for end in (self.inbox, self.inbox_end, self.sibling, self.mailbox):
            end.close()


class _Process:
    """What the shell holds for a worker process."""

    def __init__(
        self, slot: int, pid: int, control: socket.socket, row: int = 0, worker_class: str = ""
    ) -> None:
        self.slot = slot
        self.row = row
        self.worker_class = worker_class
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.control = control
        self.failure: dict[str, Any] | None = None
        self.killed_because: Why | None = None

    def close(self) -> None:
        os.close(self.pidfd)
        self.control.close()


class Master:
    """One server: its port, its workers, and what is between them.

    Args:
        options: the settings.
        program: what the workers run.
        launcher: the control pair's end of the process that started us, or None for the CLI.
        descriptors: for each N of an fd://N in the options, the descriptor it has here.
        board: where to count, for others to see.
        most_files: descriptors that this process may have open; 0: as few as it has now.
        surroundings: systemd, the pid file, ``sticky ctl`` and the like; None: nothing of it.
    """

    def __init__(
        self,
        options: Options,
        program: Program,
        launcher: socket.socket | None = None,
        descriptors: Mapping[int, int] | None = None,
        board: Board | None = None,
        most_files: int = 0,
        surroundings: Surroundings | None = None,
    ) -> None:
        self._around = surroundings or Surroundings()
        if options.seed is None:
            options = dataclasses.replace(options, seed=os.urandom(8))
        self._options = options
        self._program = program
        self._launcher = launcher
        self._listeners = Listeners(options, descriptors or {})
        self._auto = options.worker_class == "auto"
        self._worker_class = options.worker_class  # what new processes are told
        rules = {name: getattr(options, name) for name in Rules._fields if name != "first_alone"}
        self._board = board or Board()
        self._reporter = Reporter(self._board)
        self._ledger = Ledger(Rules(**rules, first_alone=self._auto), self._board.master)
        self._slots = [_Slot() for _ in range(options.num)]
        self._processes: dict[int, _Process] = {}
        # By slot: the process that serves, and the one before, while it is still there.
        self._serving: dict[int, _Process] = {}
        self._previous: dict[int, _Process] = {}
        self._reader = channel.Reader()
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._status: int | None = None
        self._started = 0
        self._explained = False
        self._watcher: _Process | None = None
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._reserve: list[int] = []
        self._keep_reserve()
        # Listeners, channels and processes take a few for each slot; the rest is for connections.
        self._spacious = most_files - _SPARE_FDS - 8 * options.num
        self._signals = Signals(
            (
                signal.SIGTERM,
                signal.SIGINT,
                signal.SIGQUIT,
                signal.SIGHUP,
                signal.SIGUSR1,
                signal.SIGCHLD,
            )
        )
        self._dispatcher = Dispatcher(
            options,
            make_router(options),
            self._ledger,
            inboxes=[slot.inbox for slot in self._slots],
            register=self._register,
            unregister=self._unregister,
            clock=time.monotonic,
            counters=self._board.master,
            next_slot=Balance(options.balance, options.num, self._load).next,
        )

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped; the exit status."""
        self._register(self._signals.fileno(), select.EPOLLIN, self._on_signal)
        if self._launcher is not None:
            self._register(self._launcher.fileno(), select.EPOLLIN, self._on_launcher)
        self._around.attend(self._register, self._unregister)
        try:
            if self._options.reload:
                self._start_watcher()
            self._ledger.start(time.monotonic())
            self._perform()
            self._loop()
        finally:
            self._close()
        assert self._status is not None
        return self._status

    def _loop(self) -> None:
        poll, handlers, book, clock = self._epoll.poll, self._handlers, self._ledger, time.monotonic
        now = clock()
        while self._status is None:
            events = poll(max(0.0, book.due - now))
            if len(events) == 1:
                fd, what = events[0]
                if handler := handlers.get(fd):
                    handler(what)
            else:
                # Handlers close descriptors, and new ones take the same numbers in this turn.
                for fd, due, what in [(fd, handlers.get(fd), what) for fd, what in events]:
                    if due is not None and handlers.get(fd) is due:
                        due(what)
                        if book.actions:  # or the next one would meet what is decided already
                            self._perform()
            now = clock()
            if book.actions:  # most turns only hand over: nothing is decided
                self._perform()
            if now >= book.due:
                self._tick(now)

    def _tick(self, now: float) -> None:
        if self._ledger.stage is ledger.Stage.PLACING:
            for key in list(self._processes):
                self._on_control(key, sys.maxsize)  # what was handed back by now
            self._ledger.inboxes({i for i, slot in enumerate(self._slots) if _unread(slot)})
        self._ledger.tick(now)
        self._perform()
        serving = self._ledger.stage is ledger.Stage.SERVING
        self._around.tick(now, serving=serving, reloading=self._ledger.reloading)

    def _perform(self) -> None:
        """Carry out what was decided, and what that leads to."""
        while actions := self._ledger.take():
            for action in actions:
                self._act(action)

    def _act(self, action: ledger.Action) -> None:
        match action:
            case ledger.Spawn(slot):
                self._spawn(slot)
            case ledger.Kill(process, why):
                self._kill(process, why)
            case ledger.Say(process, what):
                self._say(process, what)
            case ledger.Deliver(slot):
                self._give_reserve()  # a large prefix takes a memfd for the moment
                self._dispatcher.deliver(slot)
                self._keep_reserve()
            case ledger.WatchInbox(slot, on):
                self._watch_inbox(slot, on)
            case ledger.Refuse(connection, status):
                self._dispatcher.refuse(connection, status)
            case ledger.Drop(connection):
                self._dispatcher.drop(connection)
            case ledger.Accepting(on):
                self._dispatcher.accepting(on)
            case ledger.CloseListeners(drain):
                self._dispatcher.close(drain=drain)
                self._listeners.close()
                self._ledger.listeners_closed()
            case ledger.Announce():
                self._announce()
            case ledger.Exit(status):
                self._status = status

    def _register(self, fd: int, events: int, handler: Handler) -> None:
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def _unregister(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _close(self) -> None:
        self._around.close()
        if self._watcher is not None:
            signal.pidfd_send_signal(self._watcher.pidfd, signal.SIGKILL)
            reap(self._watcher.pid)
            self._watcher.close()
        for process in self._processes.values():
            process.close()
        for slot in self._slots:
            slot.close()
        for fd in (self._null, *self._reserve):
            os.close(fd)
        self._listeners.close()
        self._board.close()
        self._signals.close()
        self._epoll.close()

    # -- connections --------------------------------------------------------------------------

    def _watch_inbox(self, slot: int, on: bool) -> None:
        fd = self._slots[slot].inbox.fileno()
        if on:
            self._register(fd, select.EPOLLOUT, lambda _: self._ledger.room(slot))
        else:
            self._unregister(fd)

    def _announce(self) -> None:
        bound = self._listeners.addresses
        self._dispatcher.listen(self._listeners.sockets)
        where, num = ", ".join(self._listeners.urls), len(self._slots)
        workers = f"{num} worker{'s' if num > 1 else ''}"
        self._around.ready(f"{workers} at {where}")
        log.info("Listening at: %s (pid %d), %s", where, os.getpid(), workers)
        if self._launcher is not None:
            payload = json.dumps(bound).encode()
            try:
                channel.send(self._launcher, channel.pack_header(channel.READY), payload)
            except OSError:
                self._ledger.stop(time.monotonic(), quick=True)

    # -- processes ----------------------------------------------------------------------------

    def _spawn(self, number: int) -> None:
        try:
            process = self._start(number)
        except OSError as error:  # no memory, no descriptor, too many processes: it may pass
            log.error("worker %d could not be started: %s", number, error.strerror)
            self._ledger.not_started(number, time.monotonic())
            return
        self._started += 1
        key = self._started
        self._processes[key] = process
        self._register(process.pidfd, select.EPOLLIN, lambda _: self._on_end(key))
        self._register(process.control.fileno(), select.EPOLLIN, lambda _: self._on_control(key))
        self._ledger.spawned(key, number, time.monotonic())
        log.debug("worker %d started (pid %d)", number, process.pid)

    def _start(self, number: int) -> _Process:
        slot = self._slots[number]
        program = self._program
        row = self._board.give()
        spec = {
            "role": "worker",
            "slot": number,
            "master": os.getpid(),
            "options": self._options.to_json() | {"worker_class": self._worker_class},
            "target": program.target,
            "script": program.script,
            "module": program.module,
            "call": program.call,
            "argv": list(program.argv),
            "path": list(program.path),
            "row": row,
        }
        fds = [slot.inbox_end.fileno(), slot.mailbox.fileno(), self._board.fd]
        fds += [other.sibling.fileno() for other in self._slots]
        environment = systemd.without(os.environ) | dict(self._options.env)
        environment["STICKY_WORKER_ID"] = str(number)
        try:
            pid, control = spawn.start(
                f"worker {number}", spec, fds, environment=environment, stdin=os.devnull
            )
        except OSError:
            self._board.take_back(row)
            raise
        try:
            return _Process(number, pid, control, row, self._worker_class)
        except OSError:  # without a pidfd its end would not be noticed
            self._board.take_back(row)
            control.close()
            os.kill(pid, signal.SIGKILL)
            reap(pid)
            raise

    def _kill(self, key: Any, why: Why) -> None:
        process = self._processes[key]
        process.killed_because = why
        if text := _WHY.get(why):
            text = text.format(**vars(self._options))
            log.error("worker %d (pid %d) is killed: %s", process.slot, process.pid, text)
        signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)

    def _say(self, key: Any, what: Tell) -> None:
        process = self._processes.get(key)
        if process is not None:  # else its last words were that it is ready
            self._send(process, _TOLD[what])

    def _send(self, process: _Process, kind: int) -> None:
        try:
            channel.send(process.control, channel.pack_header(kind))
        except OSError as error:
            # It is dead (its pidfd tells), or so far behind that the heartbeat will tell.
            log.debug("worker %d was not told %d: %s", process.slot, kind, error)

    def _on_control(self, key: int, most: int = _AT_ONCE) -> None:
        self._give_reserve()
        try:
            self._obey(self._processes[key], key, most)
        finally:
            self._settle()

    def _obey(self, process: _Process, key: int, most: int) -> None:
        """Read and do what a process has said, so many messages of it."""
        for _ in range(most):
            try:
                message = self._reader.receive(process.control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it died with something of ours unread; what it said comes now
            except ChannelError as error:
                log.error("worker %d (pid %d): %s", process.slot, process.pid, error)
                continue
            if message is None:
                self._unregister(process.control.fileno())  # its end is told by the pidfd
                return
            stays = False
            if message.kind == channel.READY:
                self._learn(process, message.payload)
                self._serves(process)
                log.info("worker %d ready (pid %d)", process.slot, process.pid)
                self._ledger.ready(key, time.monotonic())
            elif message.kind == channel.PONG:
                self._ledger.heard(key)
            elif message.kind == channel.HAND_BACK:
                stays = self._dispatcher.take_back(message, self._holder(process))
            elif message.kind == channel.REST:
                stays = self._dispatcher.pass_on(message, self._successor(process))
            elif message.kind == channel.NOTICE:
                notice = json.loads(message.payload)
                self._dispatcher.tell(notice["subject"], logs.printable(notice["text"], 2000))
            elif message.kind == channel.FAILED:
                process.failure = json.loads(message.payload)
            if stays or self._ledger.actions:
                self._settle()
                self._give_reserve()

    def _keep_reserve(self) -> bool:
        """Take what is missing of the reserve; whether it is complete."""
        with contextlib.suppress(OSError):
            while len(self._reserve) < _RESERVE:
                self._reserve.append(os.dup(self._null))
        return len(self._reserve) == _RESERVE

    def _give_reserve(self) -> None:
        """Make it room for what comes, where there may be no other. Nothing but messages may take
        that: see ``_settle``."""
        # The limit may be another one by now, and others may have used up what the system has.
        if self._ledger.held >= self._spacious or self._board.master["starved"]:
            while self._reserve:
                os.close(self._reserve.pop())

    def _settle(self) -> None:
        """Have the reserve complete again, then do what was decided. If what was handed back has
        to stay here and takes the room, somebody else goes, or it goes itself."""
        while not self._keep_reserve() and self._ledger.crowded(time.monotonic()):
            self._dispatcher.tell(
                "crowded",
                "no file descriptor is left to hold a connection that moves between workers: "
                "raise the limit (ulimit -n) or lower max_queued",
            )
            self._perform()
        self._perform()

    def _learn(self, process: _Process, said: bytes) -> None:
        """A process that is ready says which class it has become, if that was left to it."""
        found = (json.loads(said or b"null") or {}).get("worker_class")
        if found and process.worker_class == "auto":
            self._worker_class = str(found)
            log.info("This app is served by the worker class %r", found)

    def _serves(self, process: _Process) -> None:
        """This process has the slot now; the one before drains."""
        slot = process.slot
        if before := self._serving.get(slot):
            self._previous[slot] = before
        self._serving[slot] = process
        # Also where the one that had replaced it has died meanwhile.
        self._board.previous(process.row, slot in self._previous)
        self._board.show(process.row, slot, process.pid)

    def _has_ended(self, process: _Process) -> None:
        slot = process.slot
        self._board.take_back(process.row)
        if self._serving.get(slot) is process:
            del self._serving[slot]
        if self._previous.get(slot) is process:
            del self._previous[slot]
            if now := self._serving.get(slot):
                self._board.previous(now.row, False)

    def _holder(self, process: _Process) -> socket.socket | None:
        """Who may hold a session that this process does not: the one before it in its slot."""
        before = self._previous.get(process.slot)
        return before.control if before and self._serving.get(process.slot) is process else None

    def _successor(self, process: _Process) -> int | None:
        """The slot of this process, if another one serves it now."""
        serving = self._serving.get(process.slot)
        return None if serving in (None, process) else process.slot

    def _load(self, slot: int) -> int | None:
        """What a slot has to do: its sessions, and the connections on their way to become some.
        None where nobody serves it, or not fast enough: others wait in its queue already."""
        process = self._serving.get(slot)
        if process is None or self._ledger.queues[slot]:
            return None
        waiting = _unread(self._slots[slot]) // channel.HEADER_SIZE
        return self._board.load(process.row) + waiting

    def _on_end(self, key: int) -> None:
        self._on_control(key, sys.maxsize)  # what it said last
        process = self._processes.pop(key)
        self._unregister(process.pidfd)
        self._unregister(process.control.fileno())
        status = reap(process.pid)
        process.close()
        self._has_ended(process)
        now = time.monotonic()
        before = self._ledger.state_of(key)
        was_serving = self._ledger.stage is ledger.Stage.SERVING
        failure = process.failure or {}
        right = failure.get("worker_class")
        again = bool(right) and self._auto and right != process.worker_class
        again = self._ledger.ended(key, now, failure.get("status", 3), again=again)
        if again:
            self._worker_class = str(right)
            log.info("This app needs the worker class %r: all workers are of that class", right)
        if again or process.killed_because is Why.STOPPED:
            return
        who = f"worker {process.slot} (pid {process.pid})"
        if not status and (before is ledger.Process.DRAINING or not was_serving):
            log.info("%s ended", who)
            return
        if before is ledger.Process.STARTING and not self._ledger.announced:
            if not self._explained:
                self._explained = True
                reason = failure.get("reason") or f"it {describe(status)} before it was ready"
                log.error("%s could not start: %s", who, reason)
            return
        then = ""
        if self._ledger.slot_state(process.slot) is ledger.Slot.BACKOFF and was_serving:
            then = f"; starting it again in {self._ledger.backoff(process.slot):g} s"
        log.warning("%s %s%s", who, failure.get("reason") or describe(status), then)

    # -- signals and the launcher -------------------------------------------------------------

    def _on_signal(self, _: int) -> None:
        now = time.monotonic()
        for number in self._signals.arrived():
            if number == signal.SIGCHLD:
                if os.getpid() == 1:
                    reap_orphans({process.pid for process in self._processes.values()})
            elif number == signal.SIGHUP:
                self._reload()
            elif number == signal.SIGUSR1:
                self.reopen_logs()
                log.info("Stats: %s", json.dumps(self._board.stats()))
            elif self._ledger.stage is ledger.Stage.SERVING:
                quick = number != signal.SIGTERM
                log.info("%s: stopping%s", number.name, "" if quick else " gracefully")
                self._ledger.stop(now, quick=quick)
            elif number != signal.SIGTERM:
                self._ledger.stop(now, quick=True)

    def reload(self) -> None:
        """Replace all workers by new ones, with what their code is now.

        Raises:
            StickyError: the server stops, or has not started yet.
        """
        self._while_serving()
        self._reload()

    def _reload(self) -> None:
        log.info("Reloading: the workers are replaced one after another")
        self._around.reloading()
        self._ledger.reload(time.monotonic())

    def reopen_logs(self) -> None:
        """Have all processes open their log files anew: they have been renamed."""
        logs.reopen()
        for process in self._processes.values():
            self._send(process, channel.REOPEN)

    # -- what sticky ctl can have done (Operations) ---------------------------------------------

    def settle(self) -> None:
        """The ports are open: have everything around it, and be who the server is to run as.

        Raises:
            StickyError: something of it cannot be had.
        """
        try:
            self._around.settle(self, self._listeners)
        except StickyError:
            self._close()
            raise

    def status(self) -> Mapping[str, Any]:
        """What there is, slot by slot; report.py says in which words."""
        book = self._ledger
        serving = set(self._serving.values())
        return self._reporter.status(
            [
                Seen(p.slot, p.pid, p.row, state.name.lower(), p in serving, p.worker_class)
                for p, state in [(p, book.state_of(key)) for key, p in self._processes.items()]
            ],
            [
                (book.slot_state(number).name.lower(), len(queue), len(book.resting[number]))
                for number, queue in enumerate(book.queues)
            ],
            time.monotonic(),
            stage=book.stage.name.lower(),
            reloading=book.reloading,
            listening=self._listeners.urls,
            held=book.held,
        )

    def stats(self) -> Mapping[str, Any]:
        """The counters, as ``sticky.stats()`` gives them."""
        return self._board.stats()

    def why(self, text: str) -> Mapping[str, Any]:
        """Where an address or a session id goes, and the process that is there.

        Raises:
            StickyError: it is neither.
        """
        found = inquiry.why(text, self._options, len(self._slots))
        serving = self._serving.get(found["slot"])
        return {**found, "pid": serving.pid if serving else None}

    def scale(self, n: int) -> None:
        """Have so many slots."""
        self._while_serving()
        self._ledger.scale(n, time.monotonic())

    def drain(self, slot: int) -> None:
        """Replace the process of a slot by a new one, gracefully."""
        self._while_serving()
        self._at(slot)
        self._ledger.replace(slot, time.monotonic())

    def kill(self, slot: int) -> None:
        """SIGKILL to the process of a slot, which then gets another."""
        signal.pidfd_send_signal(self._at(slot).pidfd, signal.SIGKILL)

    def stop(self, *, quick: bool = False) -> None:
        """End the server: requests in hand are finished, or at once."""
        self._ledger.stop(time.monotonic(), quick=quick)

    def _at(self, slot: int) -> _Process:
        if slot >= len(self._slots):
            raise StickyError(f"there is no slot {slot}: they are 0 to {len(self._slots) - 1}")
        if slot not in self._serving:
            raise StickyError(f"slot {slot} has no process that serves it now")
        return self._serving[slot]

    def _while_serving(self) -> None:
        if self._ledger.stage is not ledger.Stage.SERVING:
            raise StickyError("the server stops")
        if not self._ledger.announced:
            raise StickyError("the server is starting: not all of its workers have been ready yet")

    def _start_watcher(self) -> None:
        """``--reload``: a child that says when files change."""
        folders = {self._options.app_dir or str(Path.cwd())}
        if self._program.script:
            folders.add(str(Path(self._program.script).parent))
        spec = {
            "role": "watcher",
            "master": os.getpid(),
            "path": list(self._program.path),
            "watch": sorted(folders),
        }
        environment = systemd.without(os.environ)
        pid, control = spawn.start("watcher", spec, environment=environment, stdin=os.devnull)
        self._watcher = _Process(-1, pid, control)
        self._register(control.fileno(), select.EPOLLIN, self._on_watcher)

    def _on_watcher(self, _: int) -> None:
        watcher = self._watcher
        assert watcher is not None
        try:
            message = self._reader.receive(watcher.control)
        except (BlockingIOError, ConnectionResetError):
            message = None
        if message is None:
            self._unregister(watcher.control.fileno())
            how = describe(reap(watcher.pid))
            if self._ledger.stage is ledger.Stage.SERVING:
                log.error("the watcher for --reload %s: changes are no longer noticed", how)
            watcher.close()
            self._watcher = None
        elif message.kind == channel.CHANGED:
            log.info("Changed: %s", ", ".join(json.loads(message.payload)))
            self._reload()
        elif message.kind == channel.FAILED:
            log.error("%s", json.loads(message.payload)["reason"])
            self._unregister(watcher.control.fileno())  # that was all; it is collected at the end
            self._ledger.fail(time.monotonic(), 1)

    def _on_launcher(self, _: int) -> None:
        """Nothing is ever sent from there: it has ended, and we with it."""
        assert self._launcher is not None
        self._unregister(self._launcher.fileno())
        self._ledger.stop(time.monotonic(), quick=True)


def _unread(slot: _Slot) -> int:
    """Bytes that lie in the inbox."""
    size: int = struct.unpack("i", fcntl.ioctl(slot.inbox_end, _FIONREAD, b"\0\0\0\0"))[0]
    return size


def run(
    options: Options,
    program: Program,
    launcher: socket.socket | None = None,
    descriptors: Mapping[int, int] | None = None,
    board: Board | None = None,
) -> int:
    """Be the master: serve until stopped.

    Args:
        options, program, launcher, descriptors, board: as for ``Master``.

    Returns:
        The exit status: 0 when stopped, 1 when the port cannot be used, 3 when the workers cannot
        boot, 4 when the app cannot be loaded.
    """
    try:
        around = Surroundings(options, os.environ, launched=launcher is not None)
        with around.as_user():
            logs.set_up(options)
    except StickyError as error:
        sys.stderr.write(f"sticky: {error}\n")
        return error.exit_status
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < options.max_connections + _SPARE_FDS:
        log.warning(
            "a process may have %d files open here, too few for max_connections=%d: raise the "
            "limit (ulimit -Hn, LimitNOFILE=) or lower that option",
            hard,
            options.max_connections,
        )
    try:
        master = Master(options, program, launcher, descriptors, board, hard, around)
        master.settle()
    except StickyError as error:
        log.error("%s", error)
        return error.exit_status
    return master.run()


def launched(spec: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Be the master that a script's ``listen`` started (``_boot.py`` calls this)."""
    launcher = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, spawn.CONTROL_FD)
    launcher.setblocking(False)
    board, *inherited = fds
    descriptors = dict(zip(spec["inherited"], inherited, strict=True))
    options, program = Options.make(spec["options"]), Program(**spec["program"])
    sys.exit(run(options, program, launcher, descriptors, Board(board)))
