"""The worker's beat: a cell of the board that is counted up by a timer of the worker's own loop, so
that the master sees a loop that hangs. No message, so nothing else that is said can keep it from
being heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import logs
from ..heartbeat import every

if TYPE_CHECKING:
    from .service import Service

_COUNTED = 3
"""Beats between two counts of the sessions: the app is asked about each."""


class Heartbeat:
    """The only timer of a worker that has nothing to do. It does, too, what nothing announces:
    counts the sessions, and writes log lines that could not be written.

    Args:
        service: whose it is.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._every = every(service.options.timeout)
        self._beats = 0
        self._writing = False

    def begin(self) -> None:
        """The worker is ready."""
        self._beat()

    def _beat(self) -> None:
        service = self._service
        service.hub.later(self._every, self._beat)  # first: whatever fails below, it goes on
        service.worker.beat()
        self._beats += 1
        self._write_logs()
        if service.sessions is not None and not self._beats % _COUNTED:
            service.sessions.count()

    def _write_logs(self) -> None:
        """Write the lines that nobody has read so far, again and again while there are some."""
        if not self._writing and logs.pending():
            self._writing = True
            self._write_more()

    def _write_more(self) -> None:
        logs.flush()
        self._writing = logs.pending()
        if self._writing:
            self._service.hub.later(logs.AGAIN, self._write_more)
