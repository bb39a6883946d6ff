"""The error log on stderr, in gunicorn's format, for the processes that are ours alone."""

from __future__ import annotations

import json
import logging
import os
import select
import sys

from .errors import OptionError
from .options import Options

_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s"
_DATES = "%Y-%m-%d %H:%M:%S %z"
_PIPE_BUF = 4096
"""A pipe that polls as writable takes this much without blocking (pipe(7))."""


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


class PatientHandler(logging.Handler):
    """Writes to a descriptor, and never waits for whoever reads at the other end.

    A log that nobody reads must not stop the server: what does not fit is dropped and counted, and
    the count is written when there is room again. (Making the descriptor non-blocking would change
    it for everyone who shares it.)
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or drop it."""
        text = self.format(record) + "\n"
        if self._dropped:
            text = f"({self._dropped} log lines were dropped: nobody read them)\n" + text
        data = text.encode(errors="backslashreplace")
        for start in range(0, len(data), _PIPE_BUF):
            try:
                ready = self._poll.poll(0)
                if not ready or not ready[0][1] & select.POLLOUT:
                    self._dropped += 1
                    return
                os.write(self._fd, data[start : start + _PIPE_BUF])
            except OSError:
                return  # the reader is gone: there is nobody to tell
        self._dropped = 0


def set_up(options: Options, *, worker: int | None = None) -> None:
    """Log to stderr, or wherever ``log_config`` says.

    Only the logger ``sticky`` is touched: the root logger is the app's to configure.

    Args:
        options: the settings.
        worker: the number of the slot; None in the master, which never waits for a reader.

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
        return
    handler: logging.Handler
    if sys.stderr is None:  # closed by whoever started us
        handler = logging.NullHandler()
    else:
        patient = worker is None
        handler = PatientHandler(sys.stderr.fileno()) if patient else logging.StreamHandler()
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


def reopen() -> None:
    """Open every log file of this process anew, by its name: it may have been renamed meanwhile.

    These are the files of all handlers of the module ``logging``, ours and those that a
    ``log_config`` or the app has made.
    """
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
