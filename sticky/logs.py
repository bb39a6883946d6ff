"""The error log on stderr, in gunicorn's format, for the processes that are ours alone."""

from __future__ import annotations

import json
import logging
import sys
import traceback

from . import outlet
from .errors import OptionError
from .options import Options
from .outlet import Outlet

_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s"
_DATES = "%Y-%m-%d %H:%M:%S %z"


def printable(text: object, longest: int = 1000, *, quote: str = "") -> str:
    """What somebody else has sent, to be a part of a line of ours.

    Control characters, line ends of any kind and backslashes are escaped, as Python writes them;
    what is longer is cut off, and ends with three dots.

    Args:
        text: what it is; turned into a str.
        longest: characters, without the dots.
        quote: a character that is escaped, too.
    """
    plain = str(text)
    short = plain[:longest]
    if not short.isprintable() or "\\" in short or (quote and quote in short):
        pieces: list[str] = []
        room = longest
        for char in short:
            piece = char
            if char == quote:
                piece = "\\" + char
            elif char == "\\" or not char.isprintable():
                piece = char.encode("unicode_escape").decode("ascii")
            room -= len(piece)
            if room < 0:
                return "".join(pieces) + "..."
            pieces.append(piece)
        short = "".join(pieces)
    return short + "..." if len(plain) > longest else short


def losses(number: int, why: str, what: str = "log") -> str:
    """What is said of lines that could not be written."""
    some = "1 {} line was" if number == 1 else f"{number} {{}} lines were"
    return f"{some.format(what)} lost: {why}"


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("sticky", logging.WARNING, __file__, 0, text, None, None)


class PatientHandler(logging.Handler):
    """Writes to a descriptor, and never waits for whoever reads at the other end (``outlet``)."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._outlet = Outlet(fd, self._on_lost)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            text = self.format(record)
        except Exception:  # its text and its arguments do not fit
            text = traceback.format_exc()
        self._outlet.write((text + "\n").encode(errors="backslashreplace"))

    def _on_lost(self, number: int, why: str) -> None:
        self.emit(_record(losses(number, why)))

    def flush(self) -> None:
        """Write what could not be written before, as far as it can be."""
        self._outlet.flush()

    def close(self) -> None:
        """What is written from now on is written all the same: when an app configures ``logging``,
        that closes all handlers that are there, and leaves them where they are."""
        self.flush()
        super().close()


class _PatientStream:
    """The standard output or error of a handler that the user has set up."""

    def __init__(self, fd: int, handler: logging.Handler) -> None:
        self._outlet = Outlet(fd, self._on_lost)
        self._format = handler.format

    def write(self, text: str) -> None:
        self._outlet.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Nothing is kept that could be written."""

    def _on_lost(self, number: int, why: str) -> None:
        self.write(self._format(_record(losses(number, why))) + "\n")


class _Failures:
    """What a handler of the user's cannot write: the disk is full. By itself it would print a
    traceback for each line."""

    def __init__(self, handler: logging.Handler) -> None:
        self._emit, self._explain = handler.emit, handler.handleError
        self._lost = 0
        self._why = ""
        handler.emit, handler.handleError = self.emit, self.failed  # type: ignore[method-assign]

    def emit(self, record: logging.LogRecord) -> None:
        before = self._lost
        self._emit(record)
        if before and before == self._lost:  # it was written
            self._lost = 0
            self._emit(_record(losses(before, self._why)))

    def failed(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            self._lost += 1
            self._why = error.strerror or str(error)
        else:
            self._explain(record)


def _make_patient() -> None:
    """Have the handlers that a ``log_config`` has given our loggers wait for nobody."""
    for handler in _handlers("sticky", "sticky.master", "sticky.worker", "sticky.access", None):
        if type(handler) is logging.StreamHandler:
            if handler.stream and handler.stream in (sys.stdout, sys.stderr):
                handler.setStream(_PatientStream(handler.stream.fileno(), handler))
        elif isinstance(handler, logging.FileHandler):
            _Failures(handler)


def _handlers(*names: str | None) -> set[logging.Handler]:
    return {handler for name in names for handler in logging.getLogger(name).handlers}


def set_up(options: Options, *, worker: int | None = None) -> None:
    """Log to stderr, or wherever ``log_config`` says.

    Only the logger ``sticky`` is touched: the root logger is the app's to configure.

    Args:
        options: the settings.
        worker: the number of the slot; None in the master.

    Raises:
        OptionError: ``log_config`` cannot be used; nothing of it is in force then.
    """
    logger = logging.getLogger("sticky")
    logger.setLevel(options.log_level.upper())
    if options.log_config is not None:
        try:
            _from_file(options.log_config)
        except Exception as error:  # whatever the file makes logging do
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise OptionError(
                f"option 'log_config' is {options.log_config!r}, which cannot be used: "
                f"{type(error).__name__}: {error}{cause}"
            ) from None
        _make_patient()
        return
    # Closed by whoever started us: there is nobody to tell.
    handler = PatientHandler(sys.stderr.fileno()) if sys.stderr else logging.NullHandler()
    who = "%(process)d" if worker is None else f"%(process)d worker {worker}"
    handler.setFormatter(logging.Formatter(_FORMAT.replace("%(process)d", who), _DATES))
    logger.addHandler(handler)
    logger.propagate = False


_OF_OTHERS = ("uvicorn", "gunicorn.error")
"""Loggers of other servers, which apps write to; uvicorn's ``error`` and ``access`` are below."""


def take_over(options: Options) -> None:
    """Have what is logged in other servers' names come out where our own does, unless the user says
    where (``log_config``, or handlers of their own)."""
    ours = logging.getLogger("sticky")
    for name in _OF_OTHERS:
        logger = logging.getLogger(name)
        if options.log_config is None and not logger.handlers:
            logger.handlers[:] = ours.handlers
            logger.setLevel(ours.level)
            logger.propagate = False


AGAIN = 0.1
"""Seconds until whoever has a loop calls ``flush`` again, while lines are ``pending``."""


def pending() -> bool:
    """Whether there are lines of this process's logs that could not be written yet."""
    return outlet.pending()


def flush() -> None:
    """Write what could not be written before, as far as it can be now: the lines of this process's
    logs, the access log's, too. For whoever has a loop that comes by now and then."""
    outlet.flush()


def finish(seconds: float = 1.0) -> None:
    """The same before the process ends, and wait for the readers, at most so long. An exit does it
    by itself; ``os._exit`` does not."""
    outlet.finish(seconds)


def reopen() -> None:
    """Open every log file of this process anew, by its name: it may have been renamed meanwhile.

    These are the files of all handlers of the module ``logging``, ours and those that a
    ``log_config`` or the app has made. Where the standard error has become another file meanwhile,
    our own lines go there, too.
    """
    outlet.reopen()
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found = {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.FileHandler)
    }
    for handler in found:
        handler.acquire()
        try:
            before = handler.stream
            if before is None:
                continue  # with ``delay``: it was never opened
            handler.stream = handler._open()
            before.close()
        except OSError as error:  # it goes on in the old one
            logging.getLogger("sticky").error("a log file cannot be opened anew: %s", error)
        finally:
            handler.release()


def _from_file(path: str) -> None:
    import logging.config

    if path.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            # Our loggers are there already, and not everybody's file names them.
            logging.config.dictConfig({"disable_existing_loggers": False, **json.load(file)})
    else:
        logging.config.fileConfig(path, disable_existing_loggers=False)
