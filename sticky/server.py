"""The launcher's side: ``listen`` and ``Server``.

The master is a child process, never part of the user's: it needs a process without monkey-patching,
threads and signal handlers of somebody else's. What connects the two is one control pair; each
notices the other's end as its end of file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import channel, spawn, worker
from .errors import OptionError, StickyError
from .options import Options

Factory = Callable[[], Any] | Any
Address = tuple[Any, ...]
OnListening = Callable[[list[Address]], object]

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Programs that only run the user's code: running them again would not reach the same call.
_HOSTS = ("pytest", "py.test", "IPython", "ipykernel", "ipykernel_launcher", "unittest", "doctest")

_calls = 0


def listen(
    factory: Factory,
    port: int | None = None,
    num: int | Options | Mapping[str, Any] | None = None,
    *,
    on_listening: OnListening | None = None,
    **options: Any,
) -> None:
    """Serve what ``factory`` makes, in several worker processes behind one port, until stopped.

    ``factory`` runs once in each worker and nowhere else: workers run the calling script again, up
    to this call. Code after the call runs only in the launching process, once the server has been
    stopped.

    Args:
        factory: called without arguments; returns a WSGI app, a Flask app, a Flask-SocketIO object
            or a ``socketio.Server``. Also "module:factory", which is imported in the workers
            instead of running the script again.
        port: TCP port; 0 lets the system choose one.
        num: the number of workers; or all options, as an ``Options`` object or a mapping.
        on_listening: called in the launching process with the bound addresses, once the port is
            open and all workers are ready.
        **options: any option of ``Options``, by name.

    Raises:
        OptionError: an option is unknown or has a value that is not allowed. Nothing is bound.
        StickyError: there is no script to run again (a REPL, a notebook, a test).
        SystemExit: the server ended with an exit status that is not 0: 1 when the port cannot be
            used, 3 when the workers cannot boot, 4 when the app cannot be loaded.
    """
    global _calls
    if worker.current_worker() is not None:
        worker.listen_called(factory)
        return
    base: Options | Mapping[str, Any] | None = None
    if isinstance(num, int) and not isinstance(num, bool):
        options["num"] = num
    elif num is not None:
        base = num  # type: ignore[assignment]
    if port is not None:
        options["port"] = port
    settings = Options.make(base, **options)
    program = _program(factory, _calls)
    if program.target is None:
        _calls += 1
    status = _launch(settings, program, on_listening)
    if status:
        sys.exit(status)


def _program(factory: Factory, call: int) -> spawn.Program:
    """What the workers are to run."""
    path = absolute_path()
    if isinstance(factory, str):
        check_target(factory)
        return spawn.Program(target=factory, argv=list(sys.argv), path=path)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    name = spec.name if spec else Path(file or "").stem
    if name.split(".")[0] in _HOSTS or hasattr(sys, "ps1") or not (spec or file):
        raise StickyError(
            "sticky.listen was called with a function, but there is no script that the workers "
            "could run again to get it (this is a REPL, a notebook, 'python -c' or a test runner): "
            "put the factory in a module and name it, sticky.listen('module:factory', ...), "
            "or run the server with: sticky module:factory"
        )
    if spec:
        return spawn.Program(
            module=name.removesuffix(".__main__"), call=call, argv=list(sys.argv), path=path
        )
    assert file is not None
    return spawn.Program(
        script=str(Path(file).absolute()), call=call, argv=list(sys.argv), path=path
    )


def absolute_path() -> list[str]:
    """``sys.path`` as it is meant wherever the reader's working directory is."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def check_target(target: str) -> None:
    """Raise OptionError unless this reads "module:attribute"."""
    module, colon, attribute = target.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise OptionError(
            f"the app is {target!r}: it must be written 'module:factory', "
            "for example 'myproject.app:create_app'"
        )


def _launch(options: Options, program: spawn.Program, on_listening: OnListening | None) -> int:
    """Run a master as a child process, to its end; its exit status."""
    spec = {
        "role": "master",
        "options": options.to_json(),
        "program": vars(program),
        "path": list(program.path),
    }
    pid, control = spawn.start("master", spec, environment=os.environ)
    try:
        with control, _forwarding(pid):
            # A plain blocking read: the script may have been monkey-patched, which leaves no
            # other way of waiting that is the same for all (signals interrupt it, PEP 475).
            os.set_blocking(control.fileno(), True)
            while message := _read(control):
                if message[1] == channel.READY and on_listening is not None:
                    bound = json.loads(message[channel.HEADER_SIZE :])
                    on_listening([tuple(address) for address in bound])
    finally:
        # Whatever happened here (the callback may have raised): the pair is closed, so it ends.
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _read(control: socket.socket) -> bytes:
    try:
        return os.read(control.fileno(), 65536)
    except ConnectionResetError:
        return b""


@contextlib.contextmanager
def _forwarding(pid: int) -> Iterator[None]:
    """Pass the signals that stop a server on to the master."""
    before = {}
    # Python allows handlers in the main thread only, and says which that is only by refusing
    # (after monkey-patching, threading.current_thread() no longer knows).
    with contextlib.suppress(ValueError):
        for number in _FORWARDED:
            before[number] = signal.signal(number, lambda got, _: os.kill(pid, got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
