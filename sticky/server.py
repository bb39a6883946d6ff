"""The launcher's side: ``listen`` and ``Server``.

The master is a child process, never part of the user's: it needs a process without monkey-patching,
threads and signal handlers of somebody else's. What connects the two is one control pair; each
notices the other's end as its end of file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import channel, spawn
from ._boot import open_standard
from .board import Board
from .config import settings
from .errors import StickyError, WorkerError
from .master import listeners
from .options import Options
from .program import find
from .worker import main as worker

Factory = Callable[[], Any] | Any
Address = tuple[Any, ...] | str
OnListening = Callable[[list[Address]], object]

_FORWARDED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)

_calls = 0
_last: Server | None = None


def listen(
    factory: Factory,
    port: int | None = None,
    num: int | Options | Mapping[str, Any] | None = None,
    *,
    on_listening: OnListening | None = None,
    config: str | None = None,
    **options: Any,
) -> None:
    """Serve what ``factory`` makes, in several worker processes behind one port, until stopped.

    ``factory`` runs once in each worker and nowhere else: workers run the calling script again, up
    to this call. Code after the call runs only in the launching process, once the server has been
    stopped.

    Args:
        factory: called without arguments; returns a WSGI app, a Flask app, a Flask-SocketIO object
            or a ``socketio.Server``. Also such an app itself; or "module:factory", which is
            imported in the workers instead of running the script again.
        port: TCP port; 0 lets the system choose one.
        num: the number of workers; or all options, as an ``Options`` object or a mapping.
        on_listening: called in the launching process with the bound addresses, once the port is
            open and all workers are ready.
        config: a TOML file with options.
        **options: any option of ``Options``, by name. What is not given here is looked up as
            ``STICKY_<OPTION>`` in the environment, and then in the file.

    Raises:
        OptionError: an option is unknown or has a value that is not allowed. Nothing is bound.
        StickyError: there is no script to run again (a REPL, a notebook, a test).
        SystemExit: the server ended with an exit status that is not 0: 1 when the port cannot be
            used, 3 when the workers cannot boot, 4 when the app cannot be loaded.
    """
    base: Options | Mapping[str, Any] | None = None
    if isinstance(num, Options | Mapping):
        base = num
    elif num is not None:
        options["num"] = num
    if port is not None:
        options["port"] = port
    server = Server(factory, base, config=config, **options)
    with server.forwarding_signals():
        try:
            server.start()
            if on_listening is not None and server.addresses:
                on_listening(server.addresses)
            status = server.wait()
        except WorkerError:
            status = server.wait()
        finally:
            # If the callback raised: what it was to be told about must not go on without us.
            server.close()
            server.wait()
    if status:
        sys.exit(status)


def stats() -> dict[str, Any]:
    """What the server has counted since its start, and what it holds now.

    In a worker: the server that it is a worker of. Elsewhere: the one that this process started
    last, with ``listen`` or ``Server``; after its end what it had counted. Neither waits for
    anybody, and the figures are of this moment.

    Returns:
        The master's counters by name, and under "workers" for each slot "pid" and the counters
        of the process that serves it, which begin again with each process. docs/stats.md says
        what each of them counts.

    Raises:
        StickyError: this process is no worker and has started no server.
    """
    current = worker.current_worker()
    if current is not None:
        return current.board.stats()
    if _last is None:
        raise StickyError(
            "sticky.stats() has no server to ask: this process is no worker of one and has "
            "started none (of any server on this machine: sticky ctl stats)"
        )
    return _last.stats()


class Server:
    """The same as ``listen``, for tests and for embedding: started, stopped, waited for.

    The master is a child process, so the signals, threads and children of this one are untouched.
    All methods may be called from any thread. As a context manager it is started on entry and
    stopped on exit.

        with sticky.Server("myproject.app:create_app", {"port": 0}) as server:
            print(server.addresses)

    Args:
        factory: as for ``listen``. With a function the calling script is run again by the workers,
            up to the call of ``start``; several servers of one script must then be started in
            the same order each time.
        options: all options, as an ``Options`` object or a mapping.
        config: a TOML file with options.
        **more: any option, by name.

    Attributes:
        options: the settings.
        addresses: what it is bound to, once started.
        pid: the master's process id, once started.

    Raises:
        OptionError: an option is unknown or has a value that is not allowed.
        StickyError: there is no script to run again.
    """

    def __init__(
        self,
        factory: Factory,
        options: Options | Mapping[str, Any] | None = None,
        *,
        config: str | None = None,
        **more: Any,
    ) -> None:
        self.addresses: list[Address] = []
        self.pid: int | None = None
        self._factory = factory
        self._control: socket.socket | None = None
        self._board: Board | None = None
        self._pidfd = -1
        self._status: int | None = None
        self._lock = threading.Lock()
        current = worker.current_worker()
        self._in_worker = current is not None
        if current is not None:  # what a worker serves, and how, is decided already
            self.options = current.options
        else:
            self.options = settings(options, config=config, **more)
            self._program = find(factory)

    def start(self) -> Server:
        """Start the master; returns when the port is open and all workers are ready.

        Raises:
            StickyError: it ended before that; the log says why, ``exit_status`` as for ``listen``.
        """
        global _calls, _last
        if self._in_worker:
            worker.listen_called(self._factory)
            return self
        if self.pid is not None:
            raise StickyError("the server was started already; make a new Server for another")
        program = self._program
        if program.target is None:
            program = dataclasses.replace(program, call=_calls)
            _calls += 1
        given = listeners.inherited(self.options)
        open_standard()
        self._board = Board()
        spec = {
            "role": "master",
            "options": self.options.to_json(),
            "program": vars(program),
            "path": list(program.path),
            "inherited": given,
        }
        try:
            self.pid, self._control = spawn.start(
                "master", spec, [self._board.fd, *given], environment=os.environ
            )
        except OSError as error:
            raise StickyError(f"the master cannot be started: {error.strerror}") from None
        finally:
            self._board.close()
        self._pidfd = os.pidfd_open(self.pid)
        weakref.finalize(self, os.close, self._pidfd)
        # A plain blocking read: this process may have been monkey-patched, which leaves no other
        # way of waiting that is the same for all (signals interrupt it, PEP 475).
        os.set_blocking(self._control.fileno(), True)
        message = _read(self._control)
        if not message:
            status = self.wait()
            raise WorkerError(
                f"the server did not start (exit status {status}); its log says why", status or 1
            )
        bound = json.loads(message[channel.HEADER_SIZE :])
        self.addresses = [tuple(at) if isinstance(at, list) else at for at in bound]
        _last = self
        return self

    def stop(self, *, quick: bool = False) -> int:
        """Stop, and wait for the end; the exit status.

        Args:
            quick: at once, instead of finishing the requests in hand.
        """
        if self.pid is not None:
            self._signal(signal.SIGINT if quick else signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until the server has ended; its exit status."""
        if self.pid is None:
            return 0
        with selectors.DefaultSelector() as selector, self._lock:
            if self._status is None:
                selector.register(self._pidfd, selectors.EVENT_READ)
                while not selector.select():
                    pass
                _, status = os.waitpid(self.pid, 0)
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code
        self.close()
        return self._status

    def stats(self) -> dict[str, Any]:
        """What the server has counted; as ``sticky.stats()``, for this one of several servers.

        Raises:
            StickyError: it was never started.
        """
        if self._board is None:
            raise StickyError("the server was not started, so it has counted nothing")
        return self._board.stats()

    def close(self) -> None:
        """Let go of the master, which then stops at once if it still runs."""
        if self._control is not None:
            self._control.close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            signal.pidfd_send_signal(self._pidfd, number)

    @contextlib.contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Pass the signals that stop a server on to the master, in the body."""
        before = {}
        if self._in_worker:  # its signals are its own, and INT is none of its business
            yield
            return
        # Python allows handlers in the main thread only, and says which that is only by refusing
        # (after monkey-patching, threading.current_thread() no longer knows).
        with contextlib.suppress(ValueError):
            for number in _FORWARDED:
                before[number] = signal.signal(number, lambda got, _: self._forward(got))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int) -> None:
        if self._pidfd < 0:
            sys.exit(128 + number)  # nothing runs yet
        self._signal(number)


def _read(control: socket.socket) -> bytes:
    try:
        return os.read(control.fileno(), 65536)
    except ConnectionResetError:
        return b""
