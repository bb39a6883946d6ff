"""``wsgi.input`` and ``wsgi.file_wrapper`` (PEP 3333): the body of a request, and of an answer."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

Fill = Callable[[], bytes]

_BLOCK = 65536


class Input:
    """The body of one request, read as the app asks for it.

    Reading ends with the body, however it is framed (``wsgi.input_terminated``). What has been read
    is gone through once, whatever the app asks for.

    Args:
        fill: waits for more of the body and returns it; b"" behind its end.
    """

    __slots__ = ("_at", "_data", "_fill")

    def __init__(self, fill: Fill) -> None:
        self._fill = fill
        self._data = b""
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, fewer only at the end; all without a size.

        Raises:
            OSError: the client has left, is too slow, or sends what is no body.
        """
        if size is None or size < 0:
            parts = [self._rest()]
            while data := self._fill():
                parts.append(data)
            return b"".join(parts)
        parts = []
        while size:
            if self._at == len(self._data) and not self._more():
                break
            part = self._data[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """A line with its end; at most so many bytes of it. Raises as ``read``."""
        parts: list[bytes] = []
        left = -1 if size is None or size < 0 else size
        while left:
            if self._at == len(self._data) and not self._more():
                break
            end = self._data.find(b"\n", self._at) + 1
            stop = end or len(self._data)
            if left > 0:
                stop = min(stop, self._at + left)
                left -= stop - self._at
            parts.append(self._data[self._at : stop])
            self._at = stop
            if stop == end:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """The lines that are left; with a hint about so many bytes of them. Raises as ``read``."""
        lines: list[bytes] = []
        size = 0
        while line := self.readline():
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _rest(self) -> bytes:
        rest = self._data[self._at :]
        self._data, self._at = b"", 0
        return rest

    def _more(self) -> bool:
        self._data, self._at = self._fill(), 0
        return bool(self._data)


class FileWrapper:
    """``wsgi.file_wrapper``: a file as the body of an answer, sent by the system where it can be.

    Args:
        file: has ``read``; with a descriptor of a regular file it is sent with sendfile(2).
        size: bytes that are read at once where it is read.
    """

    def __init__(self, file: Any, size: int = _BLOCK) -> None:
        self.file = file
        self._size = size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        while data := self.file.read(self._size):
            yield data

    def region(self) -> tuple[int, int, int] | None:
        """Descriptor, where to begin, and how many bytes are left; None: it has to be read, because
        it is none of the system's files (a GzipFile has such a descriptor, but not its bytes)."""
        file = self.file
        if not isinstance(getattr(file, "raw", file), io.FileIO):
            return None
        try:
            fd = file.fileno()
            offset = file.tell()
            status = os.fstat(fd)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return fd, offset, max(0, status.st_size - offset)
