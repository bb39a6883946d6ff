"""The shell of the master: one epoll loop around the ledger, the dispatcher and the processes.

It never waits for anything but epoll, never loads the user's code, and logs what happened to
processes. What to do about it is decided in the ledger.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__, channel, inquiry, logs, spawn
from ..board import Board, layout
from ..errors import ChannelError, StickyError
from ..options import MAX_WORKERS, Options
from ..program import Program
from ..topology import Topology
from . import agenda, proc, systemd, upgrade
from .agenda import Rules, Stage, Tell, Why
from .balance import Balance
from .children import Child, Children, Reserve, drained
from .dispatcher import Dispatcher
from .ledger import Ledger
from .listeners import Listeners
from .lives import Process, Slot
from .loop import Loop
from .report import Reporter, Seen
from .signals import Signals, Terminal, describe, reap, reap_orphans
from .state import Packed, Packing
from .surroundings import Surroundings
from .waiting import Line

log = logging.getLogger("sticky.master")

_TOLD = {
    Tell.PING: channel.PING,
    Tell.CLOSING: channel.CLOSING,
    Tell.END: channel.END,
    Tell.QUIT: channel.QUIT,
}
_WHY = {
    Why.NOT_READY: "it was not ready within {boot_timeout:g} s",
    Why.SILENT: "it did not answer for {timeout:g} s",
    Why.NOT_ENDED: "it did not end in time",
}
"""What the log says of a process that is killed; of one that is killed by design, nothing."""

_AT_ONCE = 64
"""Messages of one process that are read before everything else gets its turn again."""

_SPARE_FDS = 100
"""Descriptors that a worker needs beside its connections: for the app, roughly."""

_LOOK_AROUND = 1.0
"""Seconds between two looks at what nothing announces: connections that lie in an inbox for too
long, and what the processes have counted."""


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
        packed: what the master before has left, whose place this one takes; None: there was none.
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
        packed: Packed | None = None,
    ) -> None:
        self._around = surroundings or Surroundings()
        if options.seed is None:
            options = dataclasses.replace(options, seed=os.urandom(8))
        self._options = options
        self._program = program
        self._launcher = launcher
        self._listeners = Listeners(options, descriptors or {}, packed)
        self._auto = options.worker_class == "auto"
        rules = {name: getattr(options, name) for name in Rules._fields if name in vars(options)}
        self._board = board or Board()
        self._reporter = Reporter(self._board)
        self._topology = Topology(options, self._board.topology)
        self._ledger = Ledger(
            Rules(**rules, first_alone=self._auto), self._topology, self._board.master
        )
        self._lives, self._waiting = self._ledger.lives, self._ledger.waiting
        self._agenda = self._ledger.agenda
        self._terminal = Terminal(packed.content["terminal"] if packed else None)
        self._loop = Loop()
        self._children = Children(
            options,
            program,
            self._board,
            self._loop,
            on_end=self._on_end,
            on_control=self._on_control,
            nohup=self._terminal.nohup,
        )
        self._trial = upgrade.Trial(self._loop, self._on_trial)
        self._agreed = False  # the new code can take over
        self._packed = packed
        self._reader = channel.Reader()
        self._status: int | None = None
        self._explained = False
        self._watcher: Child | None = None
        self._looked_around = 0.0
        self._reserve = Reserve()
        # Listeners, channels and processes take a few for each slot; the rest is for connections.
        self._spacious = most_files - _SPARE_FDS - 10 * options.num
        self._signals = Signals(
            (
                signal.SIGTERM,
                signal.SIGINT,
                signal.SIGQUIT,
                signal.SIGHUP,
                signal.SIGUSR1,
                signal.SIGUSR2,
                signal.SIGTTIN,
                signal.SIGTTOU,
                signal.SIGALRM,
                signal.SIGCHLD,
            )
        )
        self._dispatcher = Dispatcher(
            options,
            self._topology,
            self._ledger,
            inboxes=self._children.inboxes,
            own_inboxes=self._children.own_inboxes,
            register=self._loop.register,
            unregister=self._loop.unregister,
            clock=time.monotonic,
            counters=self._board.master,
            next_slot=Balance(options.balance, self._topology, self._load).next,
        )
        if packed is not None:
            self._restore(packed)  # all that was open has to be there before any is kept free
        else:
            self._reserve.keep()
            self._children.grow(options.num)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped; the exit status."""
        self._loop.register(self._signals.fileno(), select.EPOLLIN, self._on_signal)
        if self._launcher is not None:
            self._loop.register(self._launcher.fileno(), select.EPOLLIN, self._on_launcher)
        self._around.attend(self._loop.register, self._loop.unregister)
        try:
            if self._options.reload:
                self._start_watcher()
            packed, self._packed = self._packed, None
            if packed is not None:
                self._resume(packed)
            else:
                self._ledger.start(time.monotonic())
            self._perform()
            self._turn_until_over()
        finally:
            self._close()
        assert self._status is not None
        return self._status

    def _turn_until_over(self) -> None:
        turn, book, clock = self._loop.turn, self._agenda, time.monotonic
        settle = self._perform
        now, behind = clock(), logs.pending
        while self._status is None:
            wait = book.due - now
            if behind():
                logs.flush()
                wait = min(wait, logs.AGAIN)
            turn(max(0.0, wait), settle)
            now = clock()
            if book.actions:  # most turns only hand over: nothing is decided
                self._perform()
            if now >= book.due:
                self._tick(now)

    def _tick(self, now: float) -> None:
        if self._agreed and self._agenda.stage is Stage.SERVING:
            self._agreed = False
            self._replace_code()
            self._perform()
        if self._agenda.stage is Stage.PLACING:
            for key in list(self._children.by_key):
                self._on_control(key, sys.maxsize)  # what was handed back by now
            self._ledger.inboxes(self._children.filled())
        if now >= self._looked_around + _LOOK_AROUND:
            self._looked_around = now
            self._look_around(now)
        self._ledger.tick(now)
        self._agenda.remind(self._looked_around + _LOOK_AROUND)
        self._perform()
        serving = self._agenda.stage is Stage.SERVING
        self._around.tick(now, serving=serving, reloading=self._lives.reloading)
        self._trial.tick(now)
        if not serving:
            self._abandon_upgrade()

    def _perform(self) -> None:
        """Carry out what was decided, and what that leads to."""
        while actions := self._agenda.take():
            for action in actions:
                self._act(action)

    def _act(self, action: agenda.Action) -> None:
        match action:
            case agenda.Spawn(slot):
                self._spawn(slot)
            case agenda.Abort(process, why):
                self._kill(process, why, signal.SIGABRT)
            case agenda.Kill(process, why):
                self._kill(process, why, signal.SIGKILL)
            case agenda.Say(process, what):
                self._say(process, what)
            case agenda.Serves(slot):
                self._publish(slot)
            case agenda.Rescaled(num, done):
                self._rescaled(num, done)
            case agenda.Deliver(line):
                self._reserve.give()  # a large prefix takes a memfd for the moment
                self._dispatcher.deliver(line)
                self._reserve.keep()
            case agenda.Watch(line, on):
                self._watch(line, on)
            case agenda.ReadBack(line):
                self._read_back(line)
            case agenda.Place(connection, unheld):
                self._dispatcher.place(connection, unheld=unheld)
            case agenda.Refuse(connection, status):
                self._dispatcher.refuse(connection, status)
            case agenda.Drop(connection):
                self._dispatcher.drop(connection)
            case agenda.Accepting(on):
                self._dispatcher.accepting(on)
            case agenda.CloseListeners(drain):
                self._dispatcher.close(drain=drain)
                self._listeners.close()
                self._children.drop_spares()
                self._ledger.listeners_closed()
            case agenda.Announce():
                self._announce()
            case agenda.Exit(status):
                self._status = status

    def _close(self) -> None:
        self._around.close()
        self._trial.stop()
        self._stop_watcher()
        self._children.close()
        self._reserve.close()
        self._listeners.close()
        self._board.close()
        self._signals.close()
        self._loop.close()

    # -- connections --------------------------------------------------------------------------

    def _watch(self, line: Line, on: bool) -> None:
        children = self._children
        if on and not line.wants_room:
            return  # to make room, somebody was told to go before this had its turn
        if line.process is None:
            inbox = children.inboxes[line.slot]
        elif line.process in children.own_inboxes:
            inbox = children.own_inboxes[line.process]
        else:
            return  # it has ended, and its inbox with it
        if on:
            self._loop.register(inbox.fileno(), select.EPOLLOUT, lambda _: self._waiting.room(line))
        else:
            self._loop.unregister(inbox.fileno())

    def _read_back(self, line: Line) -> None:
        """Nobody reads this inbox any more: what lies in it waits here again."""
        end = self._children.inbox_end(line.slot, line.process)
        if end is not None:
            self._dispatcher.return_(line, self._collect(end))
            self._make_room()

    def _collect(self, end: socket.socket) -> list[channel.Message]:
        """All that lies in an inbox."""
        found = []
        self._give_reserve()
        for message in drained(end, self._reader):
            found.append(message)
            self._make_room()
            if not self._reserve.keep():  # nobody else could go
                self._dispatcher.turn_away(found.pop())
                self._make_room()
            self._give_reserve()
        self._make_room()
        return found

    def _relieve(self, now: float) -> None:
        """Who lies in an inbox for longer than ``queue_timeout``, its process being busy, is told
        to come again: from there nobody else can have it."""
        ends = [pairs.inbox_end for pairs in self._children.pairs]
        ends += [c.inbox_end for c in self._children.by_key.values() if c.inbox_end is not None]
        for end in ends:
            while (since := channel.oldest(end)) is not None:
                if channel.age(since, now) < self._options.queue_timeout:
                    break
                self._give_reserve()
                try:
                    message = self._reader.receive(end)
                except (OSError, ChannelError):  # the process was faster, after all
                    break
                if message is not None:
                    self._dispatcher.overstayed(message)
                self._settle()

    def _announce(self) -> None:
        bound = self._listeners.addresses
        self._dispatcher.listen(self._listeners.sockets)
        workers, where = self._about()
        self._around.ready(f"{workers} at {where}")
        log.info("Listening at: %s (pid %d), %s", where, os.getpid(), workers)
        if self._launcher is not None:
            payload = json.dumps(bound).encode()
            try:
                channel.send(self._launcher, channel.pack_header(channel.READY), payload)
            except OSError:
                self._ledger.stop(time.monotonic(), quick=True)

    def _about(self) -> tuple[str, str]:
        """What this server is, for people: how many workers, and where."""
        num = self._topology.num
        return f"{num} worker{'s' if num > 1 else ''}", ", ".join(self._listeners.urls)

    # -- processes ----------------------------------------------------------------------------

    def _spawn(self, number: int) -> None:
        try:
            self._children.grow(number + 1)
            key = self._children.start(number)
        except OSError as error:  # no memory, no descriptor, too many processes: it may pass
            log.error("worker %d could not be started: %s", number, error.strerror)
            self._lives.not_started(number, time.monotonic())
            return
        self._lives.spawned(key, number, time.monotonic())
        log.debug("worker %d started (pid %d)", number, self._children.by_key[key].pid)

    def _kill(self, key: Any, why: Why, sig: signal.Signals) -> None:
        child = self._children.by_key[key]
        if (text := _WHY.get(why)) and child.killed_because is None:
            text = text.format(**vars(self._options))
            log.error("worker %d (pid %d) is killed: %s", child.slot, child.pid, text)
        child.killed_because = why
        child.send(sig)

    def _say(self, key: Any, what: Tell) -> None:
        child = self._children.by_key.get(key)
        if child is not None:  # else its last words were that it is ready
            self._children.say(child, _TOLD[what])

    def _publish(self, slot: int) -> None:
        """Have all processes see who serves a slot."""
        by_key = self._children.by_key
        current: Any = self._lives.current(slot)
        previous: Any = self._lives.previous(slot)
        if previous is not None and current is None:
            self._board.hide(by_key[previous].row)
        if current is not None:
            row = by_key[current].row
            self._board.previous(row, previous is not None)
            self._board.show(row, slot, by_key[current].pid)

    def _rescaled(self, num: int, done: bool) -> None:
        self._children.shrink(self._lives.target)
        if done:
            log.info("There are %d worker%s now", num, "s" if num > 1 else "")
            self._around.status(" at ".join(self._about()))
            for child in self._children.by_key.values():
                self._children.say(child, channel.RESCALED)
        else:
            log.error("more workers cannot be started: there are %d, as before", num)

    def _on_control(self, key: int, most: int = _AT_ONCE) -> None:
        self._give_reserve()
        try:
            self._obey(self._children.by_key[key], key, most)
        finally:
            self._settle()

    def _obey(self, child: Child, key: int, most: int) -> None:
        """Read and do what a process has said, so many messages of it."""
        for _ in range(most):
            try:
                message = self._reader.receive(child.control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it died with something of ours unread; what it said comes now
            except ChannelError as error:
                log.error("worker %d (pid %d): %s", child.slot, child.pid, error)
                continue
            if message is None:
                self._loop.unregister(child.control.fileno())  # its end is told by the pidfd
                return
            stays = False
            if message.kind == channel.READY:
                self._learn(child, message.payload)
                if self._lives.ready(key, time.monotonic()):
                    self._publish(child.slot)  # before anybody reads that it is ready
                    log.info("worker %d ready (pid %d)", child.slot, child.pid)
            elif message.kind == channel.PONG:
                self._lives.heard(key)
            elif message.kind == channel.HAND_BACK:
                stays = self._dispatcher.take_back(message, key)
            elif message.kind == channel.REST:
                stays = self._dispatcher.pass_on(message, self._heir(key, message.address))
            elif message.kind == channel.LEAVING:
                log.info("worker %d (pid %d) asks to be replaced", child.slot, child.pid)
                self._lives.leaving(key, time.monotonic())
            elif message.kind == channel.NOTICE:
                notice = json.loads(message.payload)
                self._dispatcher.tell(notice["subject"], logs.printable(notice["text"], 2000))
            elif message.kind == channel.FAILED:
                child.failure = json.loads(message.payload)
            if stays or self._agenda.actions:
                self._settle()
                self._give_reserve()

    def _give_reserve(self) -> None:
        """Make room for what comes, where there may be no other. Nothing but messages may take
        that: see ``_settle``."""
        # The limit may be another one by now, and others may have used up what the system has.
        if self._waiting.held >= self._spacious or self._board.master["starved"]:
            self._reserve.give()

    def _make_room(self) -> None:
        """Have the reserve complete again. If what was handed back has to stay here and takes the
        room, somebody else goes, or it goes itself."""
        while not self._reserve.keep() and self._waiting.crowded(time.monotonic()):
            self._dispatcher.tell(
                "crowded",
                "no file descriptor is left to hold a connection that moves between workers: "
                "raise the limit (ulimit -n) or lower max_queued",
            )
            self._perform()

    def _settle(self) -> None:
        """Have the reserve complete, then do what was decided."""
        self._make_room()
        self._perform()

    def _learn(self, child: Child, said: bytes) -> None:
        """A process that is ready says which class it has become, if that was left to it."""
        found = (json.loads(said or b"null") or {}).get("worker_class")
        if found and child.worker_class == "auto":
            self._children.worker_class = str(found)
            log.info("This app is served by the worker class %r", found)

    def _heir(self, key: int, address: channel.Address) -> int | None:
        """The slot that connections at rest of this process go to; None while it is to keep them.

        Args:
            address: their client's.
        """
        slot = self._children.by_key[key].slot
        if slot >= self._topology.num:
            return self._dispatcher.heir(address)
        return None if self._lives.current(slot) == key else slot

    def _load(self, slot: int) -> int | None:
        """What a slot has to do: its sessions, and the connections on their way to become some.
        None where nobody serves it, or not fast enough: others wait in its queue already."""
        key: Any = self._lives.current(slot)
        if key is None or not self._waiting.free[slot]:
            return None
        return self._board.load(self._children.by_key[key].row) + self._children.unread(slot)

    def _on_end(self, key: int) -> None:
        self._on_control(key, sys.maxsize)  # what it said last
        child = self._children.by_key[key]
        before = self._lives.state_of(key)
        was_serving = self._agenda.stage is Stage.SERVING
        own = self._waiting.own(key, child.slot)
        left = self._collect(child.inbox_end) if child.inbox_end is not None else []
        self._children.forget(key)
        status = reap(child.pid)
        child.close()
        now = time.monotonic()
        failure = child.failure or {}
        right = failure.get("worker_class")
        again = bool(right) and self._auto and right != child.worker_class
        status_then, said_why = failure.get("status", 3), child.failure is not None
        again = self._ledger.ended(key, now, status_then, again=again, said_why=said_why)
        if again:
            self._children.worker_class = str(right)
        self._dispatcher.return_(own, left)
        self._settle()  # what lies in the inbox of a slot that goes is read before it is closed
        self._children.shrink(self._lives.target)
        if again:
            log.info("This app needs the worker class %r: all workers are of that class", right)
        if again or child.killed_because is Why.STOPPED:
            return
        who = f"worker {child.slot} (pid {child.pid})"
        if not status and (before is Process.DRAINING or not was_serving):
            log.info("%s ended", who)
            return
        if before is Process.STARTING and not self._lives.announced:
            if not self._explained:
                self._explained = True
                reason = failure.get("reason") or f"it {describe(status)} before it was ready"
                log.error("%s could not start: %s", who, reason)
            return
        then = ""
        if self._lives.slot_state(child.slot) is Slot.BACKOFF and was_serving:
            then = f"; starting it again in {self._lives.backoff(child.slot):g} s"
        log.warning("%s %s%s", who, failure.get("reason") or describe(status), then)

    def _look_around(self, now: float) -> None:
        """See what nothing announces."""
        self._relieve(now)
        if self._agenda.stage is Stage.SERVING and self._lives.announced:
            self._see_who_is_worn(now)
            self._children.keep_spares()
        self._children.post.catch_up()

    def _see_who_is_worn(self, now: float) -> None:
        """``max_requests`` and ``max_memory``."""
        options = self._options
        if not (options.max_requests or options.max_memory):
            return
        for number in range(self._topology.num):
            key: Any = self._lives.current(number)
            if key is None:
                continue
            child = self._children.by_key[key]
            served, memory = self._board.process(child.row)["requests"], 0
            if options.max_memory:
                memory = proc.rss(child.pid)
            if child.limit and served >= child.limit:
                why = f"has served {served} requests"
            elif options.max_memory and memory > options.max_memory:
                why = f"has {memory >> 20} MB of memory"
            else:
                continue
            if self._lives.worn(key, now):
                log.info("worker %d (pid %d) %s: it is replaced", number, child.pid, why)

    # -- signals and the launcher -------------------------------------------------------------

    def _on_signal(self, _: int) -> None:
        self._obey_signals(self._signals.arrived())

    def _obey_signals(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            if number == signal.SIGCHLD:
                if os.getpid() == 1:
                    ours = {child.pid for child in self._children.by_key.values()}
                    reap_orphans(ours | {self._trial.pid})
            else:
                self._obey_signal(number)

    def _obey_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        match number:
            case signal.SIGHUP if self._terminal.is_closed():
                self._stop("the terminal was closed", now, quick=False)
            case signal.SIGHUP:
                self._reload()
            case signal.SIGUSR1:
                self._reopen_logs()
                log.info("Stats: %s", json.dumps(self._board.stats()))
            case signal.SIGUSR2:
                self._attempt(self.upgrade)
            case signal.SIGTTIN | signal.SIGTTOU:
                step = 1 if number is signal.SIGTTIN else -1
                self._attempt(lambda: self.scale(self._lives.target + step))
            case signal.SIGTERM:
                self._stop("SIGTERM", now, quick=False)
            case signal.SIGINT | signal.SIGQUIT:
                self._stop(number.name, now, quick=True)
            case _:
                log.warning("%s means nothing here", number.name)

    def _stop(self, why: str, now: float, *, quick: bool) -> None:
        if self._agenda.stage is Stage.SERVING:
            log.info("%s: stopping%s", why, "" if quick else " gracefully")
        self._ledger.stop(now, quick=quick)

    def _reload(self) -> None:
        self._explained = False
        if self._lives.reload(time.monotonic()):
            log.info("Reloading: the workers are replaced one after another")
            self._around.reloading()
            self._children.drop_spares()

    def _attempt(self, operation: Callable[[], None]) -> None:
        """Do what a signal asks for; if that is not possible the log says why."""
        try:
            operation()
        except StickyError as error:
            log.warning("%s", error)

    def _reopen_logs(self) -> None:
        """Have all processes open their log files anew: they have been renamed."""
        logs.reopen()
        for child in self._children.by_key.values():
            self._children.say(child, channel.REOPEN)

    # -- what sticky ctl can have done (Operations) -------------------------------------------

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
        lives, waiting = self._lives, self._waiting
        seen = []
        for key, child in self._children.by_key.items():
            state, serves = lives.state_of(key).name.lower(), lives.current(child.slot) == key
            seen.append(Seen(child.slot, child.pid, child.row, state, serves, child.worker_class))
        slots = [
            (lives.slot_state(number).name.lower(), len(line.queue), len(line.resting))
            for number, line in zip(lives.numbers, waiting.lines, strict=False)
            if number < lives.target
        ]
        return self._reporter.status(
            seen,
            slots,
            time.monotonic(),
            stage=self._agenda.stage.name.lower(),
            reloading=lives.reloading,
            listening=self._listeners.urls,
            held=waiting.held,
        )

    def stats(self) -> Mapping[str, Any]:
        """The counters, as ``sticky.stats()`` gives them."""
        return self._board.stats()

    def mail(self) -> tuple[Mapping[str, Any], list[int]]:
        """The workers' mailboxes, for an emitter."""
        answer, fds = self._children.post.mailboxes()
        return {**answer, "pid": os.getpid()}, fds

    def why(self, text: str) -> Mapping[str, Any]:
        """Where an address or a session id goes, and the process that is there.

        Raises:
            StickyError: it is neither.
        """
        found = inquiry.why(text, self._options, self._topology.num)
        slot = found["slot"]  # None where any may have it
        key: Any = None if slot is None else self._lives.current(slot)
        return {**found, "pid": self._children.by_key[key].pid if key is not None else None}

    def reload(self) -> None:
        """Replace all workers by new ones, with what their code is now.

        Raises:
            StickyError: the server stops, or has not started yet.
        """
        self._while_serving()
        self._reload()

    def scale(self, n: int) -> None:
        """Have so many workers.

        Raises:
            StickyError: that many are not possible, or not now.
        """
        self._while_serving()
        if not 1 <= n <= MAX_WORKERS:
            raise StickyError(f"{n} workers are not possible: from 1 to {MAX_WORKERS} are")
        before = self._lives.target
        if self._ledger.scale(n, time.monotonic()):
            log.info("Scaling from %d to %d workers", before, n)

    def drain(self, slot: int) -> None:
        """Replace the process of a slot by a new one, gracefully."""
        self._while_serving()
        self._at(slot)
        self._lives.replace(slot, time.monotonic())

    def kill(self, slot: int) -> None:
        """SIGKILL to the process of a slot, which then gets another."""
        self._at(slot).send(signal.SIGKILL)

    def stop(self, *, quick: bool = False) -> None:
        """End the server: requests in hand are finished, or at once."""
        self._stop("sticky ctl", time.monotonic(), quick=quick)

    def _at(self, slot: int) -> Child:
        if slot >= self._topology.num:
            last = self._topology.num - 1
            raise StickyError(f"there is no slot {slot}: they are 0 to {last}")
        key: Any = self._lives.current(slot)
        if key is None:
            raise StickyError(f"slot {slot} has no process that serves it now")
        return self._children.by_key[key]

    def _while_serving(self) -> None:
        if self._agenda.stage is not Stage.SERVING:
            raise StickyError("the server stops")
        if not self._lives.announced:
            raise StickyError("the server is starting: not all of its workers have been ready yet")

    # -- an upgrade in place ------------------------------------------------------------------

    def upgrade(self) -> None:
        """Go on with new code for the master in this very process, if that can take over; then
        replace all workers.

        Raises:
            StickyError: not now, or there is no room to try it.
        """
        self._perform()  # what was asked for just before: what is packed has nothing half done
        try:
            self._while_serving()
            if self._trial.pid or self._agreed:
                raise StickyError("another one is under way")
            packing = Packing()
            self._trial.start(packing, self._pack(packing), time.monotonic())
        except (OSError, StickyError) as error:
            raise StickyError(upgrade.cannot(error)) from None
        log.info("Upgrading in place: trying the new code")

    def _on_trial(self, why_not: str | None) -> None:
        if why_not is not None:
            log.error("%s", upgrade.cannot(why_not))
        else:
            self._agreed = True
            self._agenda.remind(time.monotonic())  # between two turns, with nothing half done

    def _abandon_upgrade(self) -> None:
        """The server stops, and has no use for it."""
        if self._trial.pid or self._agreed:
            self._trial.stop()
            self._agreed = False
            log.info("%s", upgrade.cannot("the server stops"))

    def _pack(self, packing: Packing) -> dict[str, Any]:
        """Everything that the next master in this process has to know."""
        ledger, connections = self._ledger.pack()
        program, launcher, topology = self._program, self._launcher, self._topology
        return {
            "path": list(program.path),
            "pid": os.getpid(),
            "version": __version__,
            "messages": channel.VERSION,
            "options": self._options.to_json(),
            "program": vars(program),
            "launcher": None if launcher is None else packing.fd(launcher.fileno()),
            "listeners": self._listeners.pack(packing),
            "board": {"fd": packing.fd(self._board.fd), "layout": layout()},
            "topology": {
                "cells": self._board.topology.tolist(),
                "earlier": topology.pack().hex(),
            },
            "children": self._children.pack(packing),
            "ledger": ledger,
            "dispatcher": self._dispatcher.pack(connections, packing),
            "around": self._around.pack(packing),
            "terminal": self._terminal.pack(),
        }

    def _replace_code(self) -> None:
        """Become the new code. If the system refuses, go on as before."""
        self._stop_watcher()
        self._children.drop_spares()
        before = upgrade.hold()
        arrived = self._signals.arrived()
        self._reserve.give()
        packing = Packing()
        try:
            content = self._pack(packing)
            upgrade.become(packing, {**content, "blocked": before, "signals": arrived})
        except (OSError, StickyError) as error:
            log.error("%s", upgrade.cannot(error))
        self._make_room()
        upgrade.release(before)
        self._obey_signals(arrived)
        if self._options.reload:
            self._start_watcher()

    def _restore(self, packed: Packed) -> None:
        """Have everything as the master before had it; ``_resume`` goes on from there."""
        content = packed.content
        self._topology.restore(bytes.fromhex(content["topology"]["earlier"]))
        self._children.restore(content["children"], packed)
        self._board.restore(child.row for child in self._children.by_key.values())
        connections = self._dispatcher.restore(content["dispatcher"], packed)
        self._ledger.restore(content["ledger"], connections)
        self._around.restore(self, packed)

    def _resume(self, packed: Packed) -> None:
        """Take the place of the master before."""
        content = packed.content
        self._children.resume()
        self._dispatcher.listen(self._listeners.sockets)
        if self._waiting.paused:
            self._dispatcher.accepting(False)
        self._dispatcher.resume()
        for line in self._waiting.watched():
            self._watch(line, True)
        self._around.resume()
        upgrade.release(content["blocked"])
        log.info(
            "Upgraded in place from %s to %s (pid %d)", content["version"], __version__, os.getpid()
        )
        arrived = [signal.Signals(number) for number in content["signals"]]
        packed.close()
        self._make_room()
        self._obey_signals(arrived)
        self._reload()  # the workers run the old code still

    # -- files that change --------------------------------------------------------------------

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
        try:
            pid, control = spawn.start("watcher", spec, environment=environment, stdin=os.devnull)
        except OSError as error:
            log.error("changes are not noticed: no watcher can be started: %s", error.strerror)
            return
        self._watcher = Child(-1, pid, control)
        self._loop.register(control.fileno(), select.EPOLLIN, self._on_watcher)

    def _stop_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            self._loop.unregister(watcher.control.fileno())
            watcher.send(signal.SIGKILL)
            reap(watcher.pid)
            watcher.close()

    def _on_watcher(self, _: int) -> None:
        watcher = self._watcher
        assert watcher is not None
        try:
            message = self._reader.receive(watcher.control)
        except (BlockingIOError, ConnectionResetError):
            message = None
        if message is None:
            self._loop.unregister(watcher.control.fileno())
            how = describe(reap(watcher.pid))
            if self._agenda.stage is Stage.SERVING:
                log.error("the watcher for --reload %s: changes are no longer noticed", how)
            watcher.close()
            self._watcher = None
        elif message.kind == channel.CHANGED:
            log.info("Changed: %s", ", ".join(json.loads(message.payload)))
            self._reload()
        elif message.kind == channel.FAILED:
            log.error("%s", json.loads(message.payload)["reason"])
            # That was all; it is collected at the end.
            self._loop.unregister(watcher.control.fileno())
            self._ledger.fail(time.monotonic(), 1)

    def _on_launcher(self, _: int) -> None:
        """Nothing is ever sent from there: it has ended, and we with it."""
        assert self._launcher is not None
        self._loop.unregister(self._launcher.fileno())
        self._ledger.stop(time.monotonic(), quick=True)


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
