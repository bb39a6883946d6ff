"""What a worker has of the system before anything is monkey-patched.

eventlet takes ``epoll`` and ``poll`` out of ``select``, and both it and gevent make locks that wait
for their own hub. What the boundary stands on is neither. To be imported before the patching, and
nothing else is imported here that makes a lock or a socket.
"""

from _socket import socket as Socket  # noqa: N812 - a class, and cheaper to make than socket's
from _thread import allocate_lock
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
    "epoll",
]
