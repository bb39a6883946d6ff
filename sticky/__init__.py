"""Socket.IO, and anything else that keeps sessions in a process, on every core behind one port.

    import sticky
    sticky.listen(factory, 3000, proxy=True)  # factory runs only in workers

Names are loaded when they are used: a worker must be able to import this package before the
standard library is monkey-patched, and the master must never load what only workers need.
"""

import sys
from typing import TYPE_CHECKING

if sys.platform != "linux":
    raise ImportError(
        f"sticky needs Linux (SOCK_SEQPACKET, epoll, pidfd); this is {sys.platform!r}"
    )

if TYPE_CHECKING:
    from .errors import ChannelError, OptionError, StickyError, WorkerError
    from .options import Options
    from .outside import emitter
    from .routing import Explanation, explain
    from .server import Server, listen, stats
    from .worker.main import Worker, current_worker, holds, mint, secret

__version__ = "0.1.0"

_HOMES = {
    "ChannelError": "errors",
    "OptionError": "errors",
    "StickyError": "errors",
    "WorkerError": "errors",
    "Options": "options",
    "emitter": "outside",
    "Explanation": "routing",
    "explain": "routing",
    "Server": "server",
    "listen": "server",
    "stats": "server",
    "Worker": "worker.main",
    "current_worker": "worker.main",
    "holds": "worker.main",
    "mint": "worker.main",
    "secret": "worker.main",
}

__all__ = [
    "ChannelError",
    "Explanation",
    "OptionError",
    "Options",
    "Server",
    "StickyError",
    "Worker",
    "WorkerError",
    "__version__",
    "current_worker",
    "emitter",
    "explain",
    "holds",
    "listen",
    "mint",
    "secret",
    "stats",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in ("bus", "cluster"):  # which only workers load, and python-socketio with the second
        return import_module("." + name, __name__)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("." + home, __name__), name)
    globals()[name] = value
    return value
