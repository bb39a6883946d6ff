"""What a master is made of."""

from __future__ import annotations

import dataclasses
import socket

from ..board import Board
from ..options import Options
from ..program import Program
from ..topology import Topology
from .changes import Changes
from .children import Children
from .dispatcher import Dispatcher
from .inboxes import Inboxes
from .ledger import Ledger
from .listeners import Listeners
from .loop import Loop
from .room import Room
from .signals import Signals, Terminal
from .surroundings import Surroundings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a master consists of, for those parts that deal with all of it."""

    options: Options
    program: Program
    launcher: socket.socket | None
    listeners: Listeners
    board: Board
    topology: Topology
    ledger: Ledger
    terminal: Terminal
    loop: Loop
    children: Children
    dispatcher: Dispatcher
    room: Room
    inboxes: Inboxes
    around: Surroundings
    changes: Changes
    signals: Signals
