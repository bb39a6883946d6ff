"""The log that never waits for who reads it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import logging.config
import os
import sys

import pytest

from sticky import logs, outlet
from sticky.errors import OptionError
from sticky.options import Options


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """What a test could not write is nothing that the next one has to."""
    yield
    outlet._behind.clear()


@pytest.fixture
def pipe():
    fds = os.pipe()
    fcntl.fcntl(fds[1], fcntl.F_SETPIPE_SZ, 4096)
    yield fds
    for fd in fds:
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


@pytest.fixture
def logger():
    """The logger "sticky" as it was before, afterwards."""
    ours = logging.getLogger("sticky")
    handlers, level, propagate = ours.handlers[:], ours.level, ours.propagate
    ours.handlers.clear()
    yield ours
    ours.handlers[:] = handlers
    ours.setLevel(level)
    ours.propagate = propagate


def record(text):
    return logging.LogRecord("sticky.master", logging.WARNING, __file__, 1, text, None, None)


def read(fd):
    os.set_blocking(fd, False)
    data = b""
    while True:
        try:
            data += os.read(fd, 65536)
        except BlockingIOError:
            return data.decode()


def test_a_record_is_written_at_once_as_one_line(pipe):
    logs.PatientHandler(pipe[1]).emit(record("hello"))
    assert read(pipe[0]) == "hello\n"


def test_a_full_pipe_never_blocks_and_what_was_lost_is_counted(pipe):
    handler = logs.PatientHandler(pipe[1])
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    number = 2 * outlet.MOST // 500
    for index in range(number):
        handler.emit(record(f"line {index} " + "x" * 500))
    assert os.get_blocking(pipe[1])  # it is shared with others, and stays as it was
    text = read(pipe[0])
    while outlet.pending():
        logs.flush()
        text += read(pipe[0])
    handler.emit(record("room again"))
    *first, told, line = (text + read(pipe[0])).splitlines()
    assert [other.split()[2] for other in first] == [str(index) for index in range(len(first))]
    assert told == f"WARNING {number - len(first)} log lines were lost: nobody read them"
    assert line == "WARNING room again"


def test_a_record_larger_than_the_pipe_does_not_block(pipe):
    handler = logs.PatientHandler(pipe[1])
    handler.emit(record("y" * 100_000))
    handler.emit(record("next"))
    text = ""
    while outlet.pending():
        text += read(pipe[0])
        logs.flush()
    assert text + read(pipe[0]) == "y" * 100_000 + "\nnext\n"


def test_one_line_is_one_line():
    assert logs.losses(1, "why") == "1 log line was lost: why"
    assert logs.losses(2, "why", "access log") == "2 access log lines were lost: why"


def test_a_record_that_cannot_be_formatted_says_where_it_comes_from(pipe):
    handler = logs.PatientHandler(pipe[1])
    wrong = logging.LogRecord("sticky", logging.ERROR, __file__, 1, "%d", ("one",), None)
    handler.handle(wrong)
    assert "TypeError: %d format" in read(pipe[0])


def test_a_pipe_that_nobody_reads_any_more_is_no_error(pipe):
    handler = logs.PatientHandler(pipe[1])
    os.close(pipe[0])
    handler.emit(record("to nobody"))
    handler.emit(record("to nobody"))


def test_text_that_is_no_unicode_is_written_escaped(pipe):
    logs.PatientHandler(pipe[1]).emit(record("\udcff"))
    assert read(pipe[0]) == "\\udcff\n"


def test_a_file_takes_everything(tmp_path):
    with open(tmp_path / "log", "wb") as file:
        handler = logs.PatientHandler(file.fileno())
        for _ in range(100):
            handler.emit(record("z" * 10_000))
    assert (tmp_path / "log").stat().st_size == 100 * 10_001


@pytest.mark.parametrize("worker", [None, 3])
def test_only_our_logger_is_set_up_and_nobody_ever_waits(worker, logger, pipe, monkeypatch):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with open(pipe[1], "w", closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        logs.set_up(Options(num=1, log_level="warning"), worker=worker)
        logging.getLogger("sticky.master").info("too little")
        logging.getLogger("sticky.master").error("an error")
    assert (root.handlers, root.level) == before
    assert not logger.propagate
    line = read(pipe[0])
    who = os.getpid() if worker is None else f"{os.getpid()} worker {worker}"
    assert f"[{who}] [ERROR] an error\n" in line
    assert line.count("\n") == 1
    assert isinstance(logger.handlers[0], logs.PatientHandler)
    logger.handlers[0].close()


def test_an_app_that_configures_logging_does_not_silence_ours(logger, pipe, monkeypatch):
    with open(pipe[1], "w", closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        logs.set_up(Options(num=1))
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    logging.getLogger("sticky.master").error("an error")
    assert "an error\n" in read(pipe[0])


def test_without_a_standard_error_nothing_is_written_and_nothing_fails(logger, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    logs.set_up(Options(num=1))
    logging.getLogger("sticky.master").error("to nobody")


@pytest.mark.parametrize("kind", ["json", "ini"])
def test_a_configuration_file_decides_instead(kind, logger, tmp_path):
    path, target = tmp_path / f"log.{kind}", tmp_path / "out"
    if kind == "json":
        path.write_text(
            '{"version": 1, "disable_existing_loggers": false,'
            f' "handlers": {{"h": {{"class": "logging.FileHandler", "filename": "{target}"}}}},'
            ' "loggers": {"sticky": {"handlers": ["h"], "level": "INFO"}}}'
        )
    else:
        path.write_text(
            "[loggers]\nkeys=root,sticky\n[handlers]\nkeys=h\n[formatters]\nkeys=\n"
            "[logger_root]\nhandlers=\n"
            "[logger_sticky]\nhandlers=h\nqualname=sticky\nlevel=INFO\npropagate=0\n"
            f"[handler_h]\nclass=FileHandler\nargs=('{target}',)\n"
        )
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.set_up(Options(num=1, log_config=str(path)))
        logging.getLogger("sticky.master").info("into the file")
    finally:
        for handler in logger.handlers:
            handler.close()
        root.handlers[:], root.level = handlers, level
    assert target.read_text() == "into the file\n"


@pytest.fixture
def configured(logger, tmp_path):
    """Sets the logger "sticky" up with one handler, as a ``log_config`` says it."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def configure(handler):
        config = {
            "version": 1,
            "formatters": {"f": {"format": "mine: %(message)s"}},
            "handlers": {"h": {**handler, "formatter": "f"}},
            "loggers": {"sticky": {"handlers": ["h"], "level": "INFO", "propagate": False}},
        }
        path = tmp_path / "log.json"
        path.write_text(json.dumps(config))
        logs.set_up(Options(num=1, log_config=str(path)))
        return logger

    yield configure
    for handler in logger.handlers:
        handler.close()
    root.handlers[:], root.level = before


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_configured_handler_of_a_standard_stream_never_waits(name, configured, pipe, monkeypatch):
    with open(pipe[1], "w", closefd=False) as stream:
        monkeypatch.setattr(sys, name, stream)
        logger = configured({"class": "logging.StreamHandler", "stream": f"ext://sys.{name}"})
        number = 2 * outlet.MOST // 500
        for index in range(number):
            logger.info("%d %s", index, "x" * 500)
        text = read(pipe[0])
        while outlet.pending():
            logs.flush()
            text += read(pipe[0])
    *first, told = text.splitlines()
    assert first[7].startswith("mine: 7 xxx")
    assert told == f"mine: {number - len(first)} log lines were lost: nobody read them"


def test_a_configured_file_on_a_full_disk_makes_no_tracebacks(configured, tmp_path, capfd):
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    logger = configured({"class": "logging.FileHandler", "filename": str(path)})
    for index in range(100):
        logger.info("line %d", index)
    path.unlink()
    (handler,) = logger.handlers
    with contextlib.suppress(OSError):
        handler.stream.close()
    handler.stream = path.open("w")  # there is room again
    logger.info("room")
    logger.info("and on")
    told = "mine: 100 log lines were lost: No space left on device"
    assert path.read_text().splitlines() == ["mine: room", told, "mine: and on"]
    assert capfd.readouterr() == ("", "")


def test_another_error_of_a_configured_handler_is_told_as_ever(configured, tmp_path, capfd):
    logger = configured({"class": "logging.FileHandler", "filename": str(tmp_path / "log")})
    logger.info("%d", "one")
    assert "TypeError: %d format" in capfd.readouterr().err


@pytest.mark.parametrize("content", ["{}", "nonsense", '{"version": 1, "handlers": {"h": {}}}'])
def test_a_configuration_file_that_cannot_be_used_is_an_error_that_names_it(
    content, logger, tmp_path
):
    path = tmp_path / "log.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=r"log\.json"):
        logs.set_up(Options(num=1, log_config=str(path)))


@pytest.fixture
def file_logger(tmp_path):
    """A logger of the app's, with a file."""
    theirs = logging.getLogger("somebody.elses")
    handler = logging.FileHandler(tmp_path / "app.log")
    theirs.addHandler(handler)
    yield theirs
    theirs.removeHandler(handler)
    handler.close()


def test_a_log_file_that_was_renamed_is_opened_anew(file_logger, tmp_path):
    file_logger.error("one")
    os.rename(tmp_path / "app.log", tmp_path / "app.log.1")
    file_logger.error("two")
    logs.reopen()
    file_logger.error("three")
    assert (tmp_path / "app.log.1").read_text() == "one\ntwo\n"
    assert (tmp_path / "app.log").read_text() == "three\n"


def test_a_log_file_that_cannot_be_opened_anew_goes_on_as_it_was(file_logger, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    handler = logging.FileHandler(folder / "log")
    file_logger.addHandler(handler)
    folder.rename(tmp_path / "away")
    gc.collect()  # or what other tests have left would be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    logs.reopen()
    logs.reopen()
    file_logger.error("still here")
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "away" / "log").read_text() == "still here\n"
    file_logger.removeHandler(handler)
    handler.close()


def test_a_log_file_that_was_never_opened_stays_so(file_logger, tmp_path):
    handler = logging.FileHandler(tmp_path / "later.log", delay=True)
    file_logger.addHandler(handler)
    logs.reopen()
    assert not (tmp_path / "later.log").exists()
    file_logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain text, \u00e9\u4e16", "plain text, \u00e9\u4e16"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[31m\x00\x7f\x85\u2028\u202e", "\\x1b[31m\\x00\\x7f\\x85\\u2028\\u202e"),
        ("\udc80\U000e0001", "\\udc80\\U000e0001"),
        ("a\\n", "a\\\\n"),
        (17, "17"),
        ("x" * 20, "x" * 20),
        ("x" * 21, "x" * 20 + "..."),
        ("\0" * 21, "\\x00" * 5 + "..."),
        ("x" * 19 + "\0", "x" * 19 + "..."),
        ("x" * 10_000_000, "x" * 20 + "..."),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_what_somebody_else_has_sent_is_escaped_and_bounded(text, shown):
    assert logs.printable(text, 40 if "[31m" in str(text) else 20) == shown
    assert logs.printable(text, 40).isprintable()


def test_a_quotation_is_not_ended_by_what_is_in_it():
    assert logs.printable('a"b\\', quote='"') == 'a\\"b\\\\'
    assert logs.printable('"' * 1000, 999, quote='"') == '\\"' * 499 + "..."
