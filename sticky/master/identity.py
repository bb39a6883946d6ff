"""Who the server runs as: ``user``, ``group`` and ``umask``.

Root opens the ports and then becomes somebody else, once and for all, before any process is started
that runs the user's code. What is written before that (log files, the pid file, files of unix
sockets) belongs to who it becomes.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import OptionError
from ..options import Options


@dataclass(frozen=True)
class Identity:
    """A user, a group, and the other groups of the user.

    Attributes:
        user, group: their numbers.
        name: the user's name, whose supplementary groups count; None leaves them as they are.
        changes: whether it is another one than this process has now.
    """

    user: int
    group: int
    name: str | None
    changes: bool

    @contextlib.contextmanager
    def assumed(self) -> Iterator[None]:
        """Be it in the body, and root again behind it (seteuid(2)): what is made belongs to it."""
        if not self.changes:
            yield
            return
        before = os.geteuid(), os.getegid(), os.getgroups()
        try:
            os.setgroups(self._groups())
            os.setegid(self.group)
            os.seteuid(self.user)
            yield
        finally:
            os.seteuid(before[0])
            os.setegid(before[1])
            os.setgroups(before[2])

    def take(self) -> None:
        """Become it, for good: real, effective and saved ids (credentials(7)).

        Raises:
            OSError: this process may not.
        """
        if self.changes:
            os.setgroups(self._groups())
            os.setresgid(self.group, self.group, self.group)
            os.setresuid(self.user, self.user, self.user)

    def _groups(self) -> list[int]:
        return [self.group] if self.name is None else os.getgrouplist(self.name, self.group)


def find(options: Options) -> Identity:
    """Who the options say.

    Raises:
        OptionError: there is no such user or group here, or this process is not root and may not
            become another.
    """
    user, group, name = os.geteuid(), os.getegid(), None
    if options.user is not None:
        user, group, name = _user(options.user, group)
        if user == os.geteuid() != 0:  # whoever says who they are anyway
            group = os.getegid()
    if options.group is not None:
        group = _group(options.group)
    changes = (user, group) != (os.geteuid(), os.getegid())
    if changes and os.geteuid() != 0:
        option = "user" if user != os.geteuid() else "group"
        raise OptionError(
            f"option {option!r} is {getattr(options, option)!r}, but only root can "
            "become another: start the server as root, or leave the option out"
        )
    return Identity(user, group, name, changes)


def _user(text: str, group: int) -> tuple[int, int, str | None]:
    """Number, group and name of a user."""
    with contextlib.suppress(KeyError):
        found = pwd.getpwnam(text)
        return found.pw_uid, found.pw_gid, found.pw_name
    if text.isdecimal():
        with contextlib.suppress(KeyError):
            found = pwd.getpwuid(int(text))
            return found.pw_uid, found.pw_gid, found.pw_name
        return int(text), group, None  # a number needs no name
    raise OptionError(f"option 'user' is {text!r}, and this machine has no user of that name")


def _group(text: str) -> int:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(text).gr_gid
    if text.isdecimal():
        return int(text)
    raise OptionError(f"option 'group' is {text!r}, and this machine has no group of that name")
