"""A server's mail in one process: a master's side, and as many processes as a test wants, each with
an event loop in a thread, or with none."""

from __future__ import annotations

import asyncio
import os
import threading
from _socket import socket as Socket  # noqa: N812 - what a worker has
from socket import AF_UNIX, SOCK_SEQPACKET
from typing import Any

from sticky.board import Board
from sticky.mail import QUEUE, Mail
from sticky.mailbox import Sender
from sticky.master.post import Post
from sticky.worker.hub import Hub
from sticky.worker.mailing import AsyncioWaiter, HubWaiter
from tests.harness import wait_until


def own(fd: int) -> Socket:
    return Socket(int(AF_UNIX), int(SOCK_SEQPACKET), 0, os.dup(fd))


class Office:
    """Close it at the end: ``close``."""

    def __init__(self) -> None:
        self.board = Board()
        self.post = Post(self.board)
        self.mails: list[Mail] = []
        self._hubs: dict[int, tuple[Hub, threading.Thread]] = {}

    def join(self, slot: int, *, attend: bool = True, limit: int = QUEUE, **more: Any) -> Mail:
        """One more process."""
        row = self.board.give()
        ends = self.post.open(row, slot)
        mail = Mail(
            Sender(row, slot, os.getpid()),
            self.board,
            news=own(ends.news.fileno()),
            mailbox=own(ends.mailbox.fileno()),
            siblings=[
                (*who, os.dup(fd)) for who, fd in zip(ends.spec["siblings"], ends.fds, strict=True)
            ],
            epoch=ends.spec["epoch"],
            limit=limit,
            cells=self.board.process(row).cells,
            **more,
        )
        ends.close()
        self.mails.append(mail)
        if attend:
            self.attend(mail)
        return mail

    def attend(self, mail: Mail) -> None:
        """It has an event loop from now on, in a thread."""
        hub = Hub()

        def live() -> None:
            while not hub.over:
                hub.turn(0.05)

        thread = threading.Thread(target=live, name="mail of a test", daemon=True)
        self._hubs[id(mail)] = hub, thread
        thread.start()
        mail.attend(HubWaiter(hub))

    def attend_in_asyncio(self, mail: Mail) -> None:
        """It has the event loop that runs here."""
        mail.attend(AsyncioWaiter(asyncio.get_running_loop()))

    def leave(self, mail: Mail) -> None:
        """This process has ended."""
        self.mails.remove(mail)
        self._stop(mail)
        mail.close()
        self.post.close(mail.sender.row)
        self.board.take_back(mail.sender.row)

    def _stop(self, mail: Mail) -> None:
        if id(mail) in self._hubs:
            hub, thread = self._hubs.pop(id(mail))
            hub.call(hub.stop)
            thread.join(10)
            assert not thread.is_alive()
            hub.close_after_fork()
        elif mail.waiter is not None:
            for fd in mail.descriptors():
                mail.waiter.unwatch(fd)

    def close(self) -> None:
        for mail in list(self.mails):
            self.leave(mail)
        self.post.close_all()
        self.board.close()


def raw(mail: Mail) -> list[bytes]:
    """The datagrams that lie in a mailbox that nobody reads."""
    found = []
    mailbox = mail.descriptors()[0]
    sock = own(mailbox)
    try:
        while True:
            found.append(sock.recv(1 << 20, 0x40))  # MSG_DONTWAIT
    except BlockingIOError:
        return found
    finally:
        sock.close()


def heard(mail: Mail, topic: bytes) -> list[bytes]:
    """What comes under a topic from now on; it grows."""
    found: list[bytes] = []
    mail.subscribe(topic, lambda payload, sender: found.append(payload))
    return found


__all__ = ["Office", "heard", "own", "raw", "wait_until"]
