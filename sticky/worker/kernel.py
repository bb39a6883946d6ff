"""What a worker has of the system before anything is monkey-patched.

eventlet takes ``epoll`` and ``poll`` out of ``select``, and it and gevent put locks and reads in
the standard library's place that wait for their own hub, and gevent a ``close`` that closes later.
What the boundary stands on waits for none. To be imported before the patching, and nothing else is
imported here that makes a lock or a socket.
"""

from _socket import socket as Socket  # noqa: N812 - a class, and cheaper to make than socket's
from _thread import allocate_lock
from os import close, read
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, epoll

__all__ = [
    "EPOLLERR",
    "EPOLLET",
    "EPOLLHUP",
    "EPOLLIN",
    "EPOLLOUT",
    "EPOLLRDHUP",
    "Socket",
    "allocate_lock",
    "close",
    "epoll",
    "read",
]
