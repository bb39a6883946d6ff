"""What the master's decisions have in common: the words for what is to be done, and when something
is due. No I/O, no clock.

Connections and processes are whatever hashable values the caller uses to know them by.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .queues import Line

Connection = Hashable

LONGEST_STEP = 1.0
"""Seconds until everything is looked at again, at the latest. What is longer than this in a step of
the clock is time in which we did not run (a stopped or starved master), and is not held against
the workers."""
RETRY = 0.05
"""Seconds until something is tried again that failed for a reason nothing announces the end of."""


class Stage(enum.Enum):
    """How far a stop has come."""

    SERVING = enum.auto()
    LISTENING = enum.auto()
    PLACING = enum.auto()
    ENDING = enum.auto()
    OVER = enum.auto()


class Tell(enum.Enum):
    """What a process can be told."""

    CLOSING = enum.auto()
    END = enum.auto()
    QUIT = enum.auto()


class Why(enum.Enum):
    """Why a process is killed."""

    STOPPED = enum.auto()  # the server stops, or is made smaller, and this one is not even ready
    NOT_READY = enum.auto()  # within boot_timeout
    SILENT = enum.auto()  # for timeout
    NOT_ENDED = enum.auto()  # within graceful_timeout


class Spawn(NamedTuple):
    """Start a process for this slot, and report it with ``spawned`` or ``not_started``."""

    slot: int


class Abort(NamedTuple):
    """SIGABRT: it shows in the log where it hangs. Its end is still to be reported (``ended``)."""

    process: Hashable
    why: Why


class Kill(NamedTuple):
    """SIGKILL; the end of the process is still to be reported with ``ended``."""

    process: Hashable
    why: Why


class Say(NamedTuple):
    """Send a control message."""

    process: Hashable
    what: Tell


class Serves(NamedTuple):
    """Who serves this slot, and who did before, has changed: publish it (``current``,
    ``previous``)."""

    slot: int


class Rescaled(NamedTuple):
    """There are so many slots now; or, if they could not be had, as many as before."""

    num: int
    done: bool


class Deliver(NamedTuple):
    """Send what waits in the line (``first``, ``delivered``) until there is no room."""

    line: Line


class Watch(NamedTuple):
    """Report with ``room`` when the inbox of the line takes messages again (or stop doing so)."""

    line: Line
    on: bool


class ReadBack(NamedTuple):
    """Nobody reads the inbox of this line any more: take back what lies in it (``return_``)."""

    line: Line


class Place(NamedTuple):
    """Where this connection was to go, nobody is: decide anew where it goes. It is nowhere now."""

    connection: Connection


class Refuse(NamedTuple):
    """Answer with this status, and close: the connection is in the place for refused ones now."""

    connection: Connection
    status: int


class Drop(NamedTuple):
    """Close without a word."""

    connection: Connection


class Accepting(NamedTuple):
    """Pause or resume accepting."""

    on: bool


class CloseListeners(NamedTuple):
    """Accept what has arrived (drain), close the listeners, report with ``listeners_closed``."""

    drain: bool


class Announce(NamedTuple):
    """Every worker is ready for the first time."""


class Exit(NamedTuple):
    """All has ended; leave with this status."""

    status: int


Action = (
    Spawn
    | Abort
    | Kill
    | Say
    | Serves
    | Rescaled
    | Deliver
    | Watch
    | ReadBack
    | Place
    | Refuse
    | Drop
    | Accepting
    | CloseListeners
    | Announce
    | Exit
)


class Rules(NamedTuple):
    """The limits, in seconds and numbers; names as in Options."""

    num: int
    head_timeout: float = 10.0
    max_pending_heads: int = 10_000
    max_queued: int = 10_000
    queue_timeout: float = 10.0
    boot_timeout: float = 60.0
    timeout: float = 30.0
    graceful_timeout: float = 30.0
    session_timeout: float = 0.0
    """So much longer who was replaced may keep the clients that it has."""
    first_alone: bool = False
    """Start one worker, and the others when it is ready: it may say that all must be different."""
    reload: bool = False
    """Code that cannot be started is going to be corrected: wait for that."""


class Agenda:
    """What was decided and not yet taken, when something is due, and how far a stop has come.

    Attributes:
        actions: in the order in which to carry them out.
        due: when ``Ledger.tick`` has something to do, at the latest.
    """

    __slots__ = ("actions", "due", "stage")

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.due = 0.0
        self.stage = Stage.SERVING

    def add(self, action: Action) -> None:
        """This is to be done."""
        self.actions.append(action)

    def take(self) -> list[Action]:
        """The actions decided since the last call."""
        actions, self.actions = self.actions, []
        return actions

    def remind(self, when: float) -> float:
        """Something is due then."""
        self.due = min(self.due, when)
        return when
