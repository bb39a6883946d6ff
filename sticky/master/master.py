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
from typing import Any

from .. import channel, logs, spawn
from ..board import Board
from ..errors import StickyError
from ..firsts import FirstRequests
from ..options import Options
from ..program import Program
from ..topology import Topology
from . import agenda, proc
from .agenda import Rules, Stage, Tell, Why
from .balance import Balance
from .changes import Changes
from .children import Children
from .dispatcher import Dispatcher
from .hearing import Hearing
from .inboxes import Inboxes
from .ledger import Ledger
from .listeners import Listeners
from .loop import Loop
from .operations import Operator
from .room import Room
from .signals import Signals, Terminal, reap_orphans
from .state import Packed
from .succession import Parts, Succession
from .surroundings import Surroundings

log = logging.getLogger("sticky.master")

_TOLD = {
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
        self._launcher = launcher
        self._listeners = Listeners(options, descriptors or {}, packed)
        rules = {name: getattr(options, name) for name in Rules._fields if name in vars(options)}
        if not options.tags:  # the app's own sessions end when it likes, or with their requests
            rules["session_timeout"] = 0.0
        self._board = board or Board()
        self._topology = Topology(options, self._board.topology)
        auto = options.worker_class == "auto"
        self._ledger = Ledger(Rules(**rules, first_alone=auto), self._topology, self._board.master)
        self._lives, self._waiting = self._ledger.lives, self._ledger.waiting
        self._agenda = self._ledger.agenda
        self._terminal = Terminal(packed.content["terminal"] if packed else None)
        self._loop = loop = Loop()
        self._children = Children(
            options,
            program,
            self._board,
            loop,
            on_end=lambda key: self._hearing.on_end(key),
            on_control=lambda key: self._hearing.on_control(key),
            nohup=self._terminal.nohup,
        )
        self._packed = packed
        self._status: int | None = None
        self._looked_around = 0.0
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
            register=loop.register,
            unregister=loop.unregister,
            clock=time.monotonic,
            counters=self._board.master,
            next_slot=Balance(options.balance, self._topology, self._load).next,
            firsts=FirstRequests(self._topology, self._board.firsts) if options.marks else None,
        )
        reader = channel.Reader()
        self._room = Room(
            self._waiting,
            self._board.master,
            # Listeners, channels and processes take a few for each slot; the rest is for
            # connections.
            most_files - _SPARE_FDS - 10 * options.num,
            self._dispatcher.notices.tell,
            self._perform,
        )
        self._inboxes = Inboxes(
            self._children,
            loop,
            self._room,
            self._dispatcher.returning,
            reader,
            self._waiting.room,
            options.queue_timeout,
        )
        self._hearing = Hearing(
            self._children,
            self._ledger,
            self._dispatcher,
            self._inboxes,
            self._room,
            topology=self._topology,
            loop=loop,
            reader=reader,
            publish=self._publish,
            finds_class=auto,
        )
        self._changes = Changes(
            options,
            program,
            loop,
            reader,
            serving=lambda: self._agenda.stage is Stage.SERVING,
            on_change=lambda: self._operator.renew(),
            on_failure=lambda: self._ledger.fail(time.monotonic(), 1),
        )
        parts = Parts(
            options=options,
            program=program,
            launcher=launcher,
            listeners=self._listeners,
            board=self._board,
            topology=self._topology,
            ledger=self._ledger,
            terminal=self._terminal,
            loop=loop,
            children=self._children,
            dispatcher=self._dispatcher,
            room=self._room,
            inboxes=self._inboxes,
            around=self._around,
            changes=self._changes,
            signals=self._signals,
        )
        self._succession = Succession(parts, self._perform)
        self._operator = Operator(parts, self._succession, self._hearing.expect_other_code)
        if packed is not None:
            self._succession.restore(packed)  # all that was open, before any is kept free
            self._around.restore(self._operator, packed)
        else:
            self._room.keep()
            self._children.grow(options.num)

    def settle(self) -> None:
        """The ports are open: have everything around it, and be who the server is to run as.

        Raises:
            StickyError: something of it cannot be had.
        """
        try:
            self._around.settle(self._operator, self._listeners)
        except StickyError:
            self._close()
            raise

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped; the exit status."""
        self._loop.register(self._signals.fileno(), select.EPOLLIN, self._on_signal)
        if self._launcher is not None:
            self._loop.register(self._launcher.fileno(), select.EPOLLIN, self._on_launcher)
        self._around.attend(self._loop.register, self._loop.unregister)
        try:
            self._changes.start()
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
        if self._succession.agreed and self._agenda.stage is Stage.SERVING:
            self._succession.agreed = False
            self._replace_code()
            self._perform()
        if self._agenda.stage is Stage.PLACING:
            for key in list(self._children.by_key):
                self._hearing.on_control(key, sys.maxsize)  # what was handed back by now
            self._ledger.inboxes(self._children.filled())
        if now >= self._looked_around + _LOOK_AROUND:
            self._looked_around = now
            self._look_around(now)
        for key, child in self._children.by_key.items():
            self._lives.heard(key, self._board.beats(child.row), now)
        self._ledger.tick(now)
        self._agenda.remind(self._looked_around + _LOOK_AROUND)
        self._perform()
        serving = self._agenda.stage is Stage.SERVING
        self._around.tick(now, serving=serving, reloading=self._lives.reloading)
        self._succession.trial.tick(now)
        if not serving:
            self._succession.abandon()

    def _replace_code(self) -> None:
        self._obey_signals(self._succession.replace_code())
        self._changes.start()

    def _resume(self, packed: Packed) -> None:
        """Take the place of the master before."""
        self._obey_signals(self._succession.resume(packed))
        self._operator.renew()  # the workers run the old code still

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
                self._room.empty()  # a large prefix takes a memfd for the moment
                self._dispatcher.sending.deliver(line)
                self._room.keep()
            case agenda.Watch(line, on):
                self._inboxes.watch(line, on)
            case agenda.ReadBack(line):
                self._inboxes.read_back(line)
            case agenda.Place(connection):
                self._dispatcher.returning.place(connection)
            case agenda.Refuse(connection, status):
                self._dispatcher.refusing.refuse(connection, status)
            case agenda.Drop(connection):
                self._dispatcher.refusing.drop(connection)
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
        self._succession.trial.stop()
        self._changes.stop()
        self._children.close()
        self._room.empty()
        self._listeners.close()
        self._board.close()
        self._signals.close()
        self._loop.close()

    # -- connections --------------------------------------------------------------------------

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

    def _load(self, slot: int) -> int | None:
        """What a slot has to do: its sessions, and the connections on their way to become some.
        None where nobody serves it, or not fast enough: others wait in its queue already."""
        key: Any = self._lives.current(slot)
        if key is None or not self._waiting.free[slot]:
            return None
        return self._board.load(self._children.by_key[key].row) + self._children.unread(slot)

    def _look_around(self, now: float) -> None:
        """See what nothing announces."""
        self._inboxes.relieve(now)
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
                    reap_orphans(ours | {self._succession.trial.pid})
            else:
                self._obey_signal(number)

    def _obey_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        match number:
            case signal.SIGHUP if self._terminal.is_closed():
                self._operator.stop_because("the terminal was closed", now, quick=False)
            case signal.SIGHUP:
                self._operator.renew()
            case signal.SIGUSR1:
                self._reopen_logs()
            case signal.SIGUSR2:
                self._attempt(self._operator.upgrade)
            case signal.SIGTTIN | signal.SIGTTOU:
                step = 1 if number is signal.SIGTTIN else -1
                self._attempt(lambda: self._operator.scale(self._lives.target + step))
            case signal.SIGTERM:
                self._operator.stop_because("SIGTERM", now, quick=False)
            case signal.SIGINT | signal.SIGQUIT:
                self._operator.stop_because(number.name, now, quick=True)
            case _:
                log.warning("%s means nothing here", number.name)

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
