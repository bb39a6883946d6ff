"""The child's side: load the app, and have it served.

A worker's program is either a "module:factory" string, imported here, or the user's own script,
run again until it calls ``sticky.listen``, which then serves instead of launching.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import faulthandler
import gc
import hashlib
import importlib
import json
import logging
import os
import runpy
import secrets
import socket
import sys
import traceback

# Not of kernel: the launcher comes here, too, whatever it has monkey-patched.
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import channel, logs, program, spawn
from ..board import Board
from ..errors import OptionError, StickyError, WorkerError
from ..firsts import FirstRequests
from ..mail import Mail
from ..mailbox import Sender
from ..options import Options
from ..topology import Topology
from . import classes, ending, signals
from .sessions import Holder, Make, Sessions

if TYPE_CHECKING:
    from .service import Service
    from .sync import Handler

log = logging.getLogger("sticky.worker")

_CANNOT_BOOT = 3
_LAST_MAIL = 1.0
"""Seconds for what other workers are still to be told by one that ends."""


class Worker:
    """The worker that this process is.

    Attributes:
        id: the number of its slot, from 0; a respawned worker has the same.
        pid: its process id.
        options: the settings of the server.
        board: what all processes of the server have counted.
        handlers: of the event "connection".
        counters: what this process has counted.
        service: what serves the app, once it is there.
        sessions: with the option ``session``: those of this process.
        firsts: with ids of ours: what is agreed about clients that have none yet.
        topology: how many slots there are, and to which of them a request leads.
        mail: what this process sends to the others and receives from them.
    """

    def __init__(
        self,
        id: int,
        options: Options,
        board: Board | None = None,
        row: int = 0,
        mail: Mail | None = None,
    ) -> None:
        self.id = id
        self.pid = os.getpid()
        self.options = options
        self.handlers: list[Handler] = []
        self.board = board or Board()
        self.counters = self.board.process(row)
        self.mail = mail or Mail(Sender(row, id, self.pid), self.board)
        self.service: Service | None = None
        self._row = row
        self.topology = Topology(options, self.board.topology)
        self.sessions: Sessions | None = None
        self.firsts: FirstRequests | None = None
        if options.session:
            hold = options.session_hold
            self.sessions = Sessions(self.topology, id, self.counters, hold=hold)
        if options.tags:
            self.firsts = FirstRequests(self.topology, self.board.firsts)

    def on(self, event: str, handler: Handler) -> Handler:
        """Have ``handler(connection)`` called each time this process adopts a connection.

        It is called before the app sees any byte, and may take its time: other connections do not
        wait for it. If it raises, that connection is answered 500.

        Args:
            event: "connection"; there is no other.
            handler: called with a ``sticky.worker.sync.Connection``.

        Raises:
            ValueError: there is no such event.
        """
        if event != "connection":
            raise ValueError(f"there is no event {event!r}: the only one is 'connection'")
        self.handlers.append(handler)
        return handler

    def stats(self) -> dict[str, int]:
        """What this process has counted since it started, and what it holds now."""
        return dict(self.counters)

    def beat(self) -> None:
        """This process is there, and its loop turns."""
        self.board.beat(self._row)

    def has_others(self) -> bool:
        """Whether another process of this slot is there, or may be."""
        return self.board.has_others(self._row)

    def is_replaced(self) -> bool:
        """Whether another process has the slot now."""
        return self.board.is_replaced(self._row)

    def rivals(self) -> Iterable[int]:
        """What each of the other workers has to do: sessions, and what will be some."""
        return (load for slot, load in self.board.loads() if slot != self.id)

    def __repr__(self) -> str:
        return f"<sticky worker {self.id} (pid {self.pid})>"


@dataclasses.dataclass
class _Boot:
    """What is needed between the start of the process and the adapter's loop."""

    worker: Worker
    secret: bytes
    control: Socket
    inbox: Socket
    own_inbox: Socket
    calls_before: int | None
    """How many of the script's ``listen`` calls come before ours; None: it is not run at all."""
    is_child: bool = False
    has_served: bool = False
    """An exit is an exit from now on, not a failure to boot."""

    def forked(self) -> None:
        """In a child that the app has forked, perhaps before there was anything to serve: all of
        this is the parent's, which is to be the only one that has it open."""
        if self.is_child:  # of a child: these numbers may be the app's by now
            return
        self.is_child = True
        signals.give_back()
        worker = self.worker
        if worker.service is not None:
            worker.service.forked()
            return
        worker.mail.close()
        for end in (self.control, self.inbox, self.own_inbox):
            end.close()

    def exits(self) -> None:
        """The app's shutdown code has run, and may have sent something."""
        if not self.is_child:
            self.worker.mail.finish(_LAST_MAIL)


_boot: _Boot | None = None


def current_worker() -> Worker | None:
    """The worker that this process is; None in the launcher and everywhere else."""
    return _boot.worker if _boot else None


def _sessions(what: str) -> Sessions | None:
    """Those of this worker; None where this process is none."""
    if _boot is None:
        return None
    if _boot.worker.sessions is None:
        raise StickyError(
            f"sticky.{what}() needs the option 'session', which says where a request carries its "
            "session id: session='header:mcp-session-id', for example"
        )
    return _boot.worker.sessions


def mint(make: Make | None = None) -> str:
    """A new session id that leads back to this worker.

    The server's ids then need no table: whoever knows the server's seed (its processes, nobody
    else) sees from the id which worker minted it. The id is as random as before.

    Args:
        make: called without arguments, returns a random id (a str), each time another one; it is
            called until one leads here, which takes as many calls as there are workers. Without
            it the id has 20 characters of base64 (RFC 4648, section 5) and 96 bits that nobody can
            predict, and takes microseconds with any number of workers.

    Returns:
        The id. Outside of a worker (the app runs without sticky) any one.

    Raises:
        StickyError: the option ``session`` is not set, or no id of ``make`` leads here.
    """
    sessions = _sessions("mint")
    if sessions is None:
        return make() if make else secrets.token_urlsafe(15)
    return sessions.mint(make)


def holds(holder: Holder) -> Holder:
    """Say which session ids the app holds; to be used as a decorator, too.

    A worker that has just replaced another one is asked for sessions that the other still has: what
    it does not hold goes there first. (Engine.IO's servers are asked without this.)

    Args:
        holder: called with an id (a str); returns whether the app of this process holds it. It is
            called often, and must not wait for anything. To be said before the first is minted.

    Returns:
        The same function. Outside of a worker it is never called.

    Raises:
        StickyError: the option ``session`` is not set.
        TypeError: it is a coroutine function.
    """
    sessions = _sessions("holds")
    if sessions is not None:
        sessions.held_by(holder)
    return holder


_own_secret = os.urandom(32)


def secret(name: str) -> bytes:
    """32 random bytes, the same for the same name in all workers of this server, those included
    that come later: after a reload, an upgrade, or in the place of one that has died.

    For what a framework would draw in each process and all of them need alike: a key that signs
    cookies or tokens, a salt. It is never in the environment or on a command line. Another start of
    the server draws others.

    Args:
        name: what it is for; from one nobody can tell another.

    Returns:
        The bytes. Outside of a worker (the app runs without sticky) those of this process.

    Raises:
        TypeError: the name is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a secret must be a str, not {type(name).__name__}")
    key = _boot.secret if _boot else _own_secret
    # RFC 7693: with a key, and with text of any length.
    return hashlib.blake2b(name.encode(), key=key, digest_size=32, person=b"sticky secret").digest()


def main(spec: Mapping[str, Any], fds: Sequence[int]) -> NoReturn:
    """Be the worker that the spec describes (``_boot.py`` calls this, after patching)."""
    global _boot
    spawn.die_with(spec["master"])
    signals.leave_to_master(nohup=spec.get("nohup", False))
    if sys.stderr is not None:
        faulthandler.enable()  # whoever ends a worker that hangs (SIGABRT) learns where it hung
    options = Options.make(spec["options"])
    unix, packets = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET)
    control = Socket(unix, packets, 0, spawn.CONTROL_FD)
    if spec["role"] == "spare":
        place, fds = _wait_for_slot(spec["target"], options, control)
        spec = {**spec, **place}
    logs.set_up(options, worker=spec["slot"])
    inbox, own_inbox, mailbox, news, memory, *siblings = fds
    board = Board(memory)
    board.close()
    mail = Mail(
        Sender(spec["row"], spec["slot"], os.getpid()),
        board,
        news=Socket(unix, packets, 0, news),
        mailbox=Socket(unix, packets, 0, mailbox),
        siblings=[(*who, fd) for who, fd in zip(spec["siblings"], siblings, strict=True)],
        epoch=spec["epoch"],
        limit=options.max_mail,
        cells=board.process(spec["row"]).cells,
    )
    _boot = _Boot(
        Worker(spec["slot"], options, board, spec["row"], mail),
        bytes.fromhex(spec["secret"]),
        control,
        Socket(unix, packets, 0, inbox),
        Socket(unix, packets, 0, own_inbox),
        None if spec["target"] else spec["call"],
    )
    os.register_at_fork(after_in_child=_boot.forked)
    atexit.register(_boot.exits)  # before the app's own, so it comes behind them
    sys.argv[:] = spec["argv"]
    with _failures_told():
        if spec["target"]:
            serve(program.load(spec["target"], options.app_dir))
        program.run_again(spec["script"], spec["module"])
        raise WorkerError(
            f"{spec['script'] or spec['module']} ended without calling sticky.listen(...), "
            "which it did when it was started: workers run it again up to that call. "
            "If it cannot be run twice, pass the factory as a string: "
            "sticky.listen('module:factory', ...)",
            program.CANNOT_LOAD,
        )
    raise AssertionError("not reached")


def _wait_for_slot(
    target: str | None, options: Options, control: Socket
) -> tuple[dict[str, Any], list[int]]:
    """Be a spare: have everything imported that a worker needs, as far as that can be known without
    running the user's code, and then wait until one is needed."""
    try:
        classes.load(options.worker_class)
        if target:
            program.load(target, options.app_dir)
    except BaseException as error:
        payload = json.dumps({"reason": _explain(error)[-channel.MAX_INLINE // 2 :]})
        channel.send(control, channel.pack_header(channel.FAILED), payload.encode())
        os._exit(_CANNOT_BOOT)
    channel.send(control, channel.pack_header(channel.READY))
    control.setblocking(True)
    message = channel.Reader().receive(control, wait=True)
    control.setblocking(False)
    if message is None:
        os._exit(0)
    place = json.loads(message.payload)
    os.environ["STICKY_WORKER_ID"] = str(place["slot"])
    spawn.rename(spawn.SPARE, f"worker {place['slot']}")
    return place, message.fds


@contextlib.contextmanager
def _failures_told() -> Iterator[None]:
    """Whatever ends the body before the worker can serve is told the master, and ends it."""
    try:
        yield
    except SystemExit as end:
        if _boot is None or _boot.has_served:
            raise
        _fail(f"it ended with {end!r} before it could serve", _CANNOT_BOOT)
    except classes.WrongWorkerClassError as error:
        _fail(str(error), error.exit_status, worker_class=error.right)
    except (WorkerError, OptionError) as error:
        _fail(str(error), error.exit_status)
    except BaseException as error:
        _fail(_explain(error), _CANNOT_BOOT)


def _fail(reason: str, status: int, **more: str) -> NoReturn:
    """Tell the master why this worker cannot serve, and end. The master logs it, once for all."""
    assert _boot is not None
    what = {"reason": reason[-channel.MAX_INLINE // 2 :], "status": status, **more}
    payload = json.dumps(what)
    try:
        _boot.control.setblocking(True)
        channel.send(_boot.control, channel.pack_header(channel.FAILED), payload.encode())
    except OSError:
        if sys.stderr is not None:
            sys.stderr.write(reason + "\n")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started us
            stream.flush()
    logs.finish()
    os._exit(status)


def _explain(error: BaseException) -> str:
    """The traceback of what the user's code did, without the frames that are ours."""
    ours = str(Path(__file__).parents[1]), runpy.__file__, importlib.__file__, "<frozen "
    report = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in report.stack if not frame.filename.startswith(ours)]
    report.stack = traceback.StackSummary.from_list(theirs or report.stack)
    return "\n" + "".join(report.format()).rstrip()


def serve(factory: Callable[[], Any] | Any) -> NoReturn:
    """Make the app and serve it until told to end. ``listen`` comes here in a worker."""
    assert _boot is not None
    boot = _boot
    worker, options = boot.worker, boot.worker.options
    app, worker_class = classes.find(factory, options)
    if os.getpid() != worker.pid:  # the factory has forked, and this is the child
        ending.end_child(None)
    if worker_class != options.worker_class:
        worker.options = options = dataclasses.replace(options, worker_class=worker_class)
    make = classes.load(worker_class)
    worker.service = service = make(worker, app, boot.control, boot.inbox, boot.own_inbox)
    service.run()
    worker.mail.finish(_LAST_MAIL)
    boot.has_served = True  # SystemExit runs the atexit handlers
    gc.freeze()  # the interpreter's last collection would take longer than all the rest of the end
    ending.leave(service.draining.by)


def _check_thread() -> None:
    """Python has signal handlers in the main thread only. (Which that is it says only by refusing:
    after monkey-patching, threading no longer knows.)"""
    try:
        signals.leave_to_master()
    except ValueError:
        _fail(  # an exception would only end this thread
            "the server was started with a function in a thread, and workers, which run the "
            "script again, cannot serve in a thread: start it in the main thread, or name the "
            "factory: Server('module:factory', ...)",
            program.CANNOT_LOAD,
        )


def listen_called(factory: Callable[[], Any] | Any) -> None:
    """``listen`` was called in a worker: serve, if this is the call that launched us.

    A script may call it several times, one server after another: those before ours have ended. A
    module that was named ("module:factory") may call it too when it is imported: what this worker
    serves is decided already.
    """
    assert _boot is not None
    if _boot.calls_before is None or isinstance(factory, str):
        return
    if _boot.calls_before == 0:
        _check_thread()
        with _failures_told():  # the script might take what is raised here for its own
            serve(factory)
    _boot.calls_before -= 1
