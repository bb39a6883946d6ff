"""Picks the twin: the compiled core, or the reference when it is asked for by name.

The only file that knows there are two. A missing extension is an error and not a silent fall-back:
a server that routes an order of magnitude slower than it was built to should say so at its start.
"""

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sticky._core import (
        ChunkError,
        Chunks,
        Firsts,
        Head,
        Router,
        end_of_head,
        parse,
        pick,
        siphash,
    )
elif os.environ.get("STICKY_PURE") == "1":
    from sticky._pycore import (
        ChunkError,
        Chunks,
        Firsts,
        Head,
        Router,
        end_of_head,
        parse,
        pick,
        siphash,
    )
else:
    try:
        from sticky._core import (
            ChunkError,
            Chunks,
            Firsts,
            Head,
            Router,
            end_of_head,
            parse,
            pick,
            siphash,
        )
    except ImportError as error:
        raise ImportError(
            f"sticky's compiled core cannot be loaded ({error}). Reinstall the package "
            "(pip install --force-reinstall socketio-sticky); in a checkout build it with "
            "'python setup.py build_ext --inplace'. STICKY_PURE=1 asks for the reference "
            "in pure Python, which gives the same answers at a fraction of the speed."
        ) from error

TWIN: Final = "py" if Router.__module__.endswith("_pycore") else "c"
"""Which twin was picked: "c" or "py"."""

__all__ = [
    "TWIN",
    "ChunkError",
    "Chunks",
    "Firsts",
    "Head",
    "Router",
    "end_of_head",
    "parse",
    "pick",
    "siphash",
]
