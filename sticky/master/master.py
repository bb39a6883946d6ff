"""The shell of the master: one epoll loop around the ledger, the dispatcher and the processes.

It never waits for anything but epoll, and never loads the user's code. What to do is decided in the
ledger, and done by the performer.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .. import channel, logs, spawn
from ..board import Board
from ..errors import StickyError
from ..firsts import FirstRequests
from ..options import Options
from ..program import Program
from ..topology import Topology
from . import wear
from .agenda import Rules, Stage
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
from .orders import Orders
from .parts import Parts
from .performing import Performer
from .room import Room
from .signals import Signals, Terminal
from .state import Packed
from .succession import Succession
from .surroundings import Surroundings

log = logging.getLogger("sticky.master")

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
            lambda: self._performer.perform(),
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
            publish=lambda slot: self._performer.publish(slot),
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
        self._parts = parts = Parts(
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
        self._performer = Performer(parts)
        self._succession = Succession(parts, self._performer.perform)
        self._operator = Operator(parts, self._succession, self._hearing.expect_other_code)
        self._orders = Orders(parts, self._operator, self._succession)
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

    def run(self) -> int:
        """Serve until stopped; the exit status."""
        self._loop.register(self._signals.fileno(), select.EPOLLIN, self._orders.on_signal)
        if self._launcher is not None:
            self._loop.register(self._launcher.fileno(), select.EPOLLIN, self._orders.on_launcher)
        self._around.attend(self._loop.register, self._loop.unregister)
        try:
            self._changes.start()
            packed, self._packed = self._packed, None
            if packed is not None:
                self._resume(packed)
            else:
                self._ledger.start(time.monotonic())
            self._performer.perform()
            self._turn_until_over()
        finally:
            self._close()
        assert self._performer.status is not None
        return self._performer.status

    def _turn_until_over(self) -> None:
        turn, book, clock = self._loop.turn, self._agenda, time.monotonic
        settle = self._performer.perform
        now, behind = clock(), logs.pending
        while self._performer.status is None:
            wait = book.due - now
            if behind():
                logs.flush()
                wait = min(wait, logs.AGAIN)
            turn(max(0.0, wait), settle)
            now = clock()
            if book.actions:  # most turns only hand over: nothing is decided
                self._performer.perform()
            if now >= book.due:
                self._tick(now)

    def _tick(self, now: float) -> None:
        if self._succession.agreed and self._agenda.stage is Stage.SERVING:
            self._succession.agreed = False
            self._replace_code()
            self._performer.perform()
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
        self._performer.perform()
        serving = self._agenda.stage is Stage.SERVING
        self._around.tick(now, serving=serving, reloading=self._lives.reloading)
        self._succession.trial.tick(now)
        if not serving:
            self._succession.abandon()

    def _replace_code(self) -> None:
        self._orders.obey(self._succession.replace_code())
        self._changes.start()

    def _resume(self, packed: Packed) -> None:
        """Take the place of the master before."""
        self._orders.obey(self._succession.resume(packed))
        self._operator.renew()  # the workers run the old code still

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
            wear.look(self._parts, now)
            self._children.keep_spares()
        self._children.post.catch_up()


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
