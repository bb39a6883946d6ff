"""The new code's side of an upgrade in place; ``upgrade`` is the old code's.

``check`` runs in a process of its own, with a copy of the state, and builds from it all that the
master consists of, but for what is open. ``go_on`` runs in the master's process, after it has
replaced itself.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pkgutil
import resource
import sys
from dataclasses import replace
from importlib.abc import InspectLoader
from typing import Any, BinaryIO, NoReturn

from .. import __version__, board, channel, logs, spawn
from ..errors import OptionError, StickyError
from ..options import Options
from ..program import Program
from .master import Master
from .state import Copy, Packed
from .surroundings import Surroundings

log = logging.getLogger("sticky.master")


def check(content: dict[str, Any], rest: BinaryIO) -> dict[str, Any]:
    """Whether this code could go on from this state.

    Args:
        content, rest: as for ``Packed``.

    Returns:
        What the old code is to know of the new one, if it can.

    Raises:
        StickyError, SyntaxError and others: it cannot.
    """
    spawn.die_with(content["pid"])
    packed = Copy(content, rest)
    if content["messages"] not in channel.SPOKEN:
        spoken = ", ".join(map(str, sorted(channel.SPOKEN)))
        raise StickyError(
            f"the messages under way are of version {content['messages']}, and this code speaks "
            f"{spoken}: it has to be started anew"
        )
    if not board.fits(content["board"]["layout"]):
        raise StickyError("the counters of this code are laid out differently")
    _compile_all()
    ours = board.Board()
    ours.topology[0], ours.topology[1] = content["topology"]["cells"]
    _build(packed, ours, None)
    packed.close()
    return {"version": __version__}


def _compile_all() -> None:
    """Raise SyntaxError if a module cannot be compiled, also one that only workers load."""
    packages = [__name__.partition(".")[0]]
    for package in packages:
        whole = importlib.util.find_spec(package)
        assert whole is not None
        for found in pkgutil.iter_modules(whole.submodule_search_locations, package + "."):
            packages += [found.name] if found.ispkg else []
            spec = importlib.util.find_spec(found.name)
            if spec is not None and isinstance(spec.loader, InspectLoader):
                spec.loader.get_code(found.name)


def _build(packed: Packed, ours: board.Board, launcher: int | None) -> Master:
    """The master that goes on from this state."""
    content = packed.content
    options = Options.make(content["options"])
    around = Surroundings(options, os.environ, launched=content["launcher"] is not None)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    control = None if launcher is None else packed.socket(launcher)
    program = Program(**content["program"])
    return Master(options, program, control, None, ours, most_files, around, packed)


def go_on(content: dict[str, Any], rest: BinaryIO) -> NoReturn:
    """Be the master, from this state.

    Args:
        content, rest: as for ``Packed``.
    """
    packed = Packed(content, rest)
    options = Options.make(content["options"])
    try:
        logs.set_up(options)
    except OptionError as error:
        logs.set_up(replace(options, log_config=None))
        log.error("%s", error)
    ours = board.Board(packed.descriptor(content["board"]["fd"]))
    sys.exit(_build(packed, ours, content["launcher"]).run())
