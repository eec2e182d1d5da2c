"""The users and groups of a system: the seam, and the gateway host's own database behind it."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shiftergw.auth.remembered import Remembered
from shiftergw.errors import Unavailable, printable
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.ports import UserDirectory

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

CACHED_SECONDS = 60.0
"""How long an answer is used; the database may be a slow directory service."""

LARGEST_AGE = 3600.0
"""Seconds for which an answer is used while the database hangs, though groups may have changed."""

ASKING_LIMIT = 10.0
"""Seconds that an answer may take."""

PLACES = 4
"""Questions that the database is asked at the same time."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a uid and a gid are called, and all gids that the user is in, this one included.

    An id that the directory does not know is called by its digits, so that no two are alike.
    """

    user: str
    group: str
    groups: frozenset[int]


class Users(UserDirectory, Protocol):
    """A `UserDirectory` that knows names, too. Raises `Unavailable` when it cannot be asked."""

    async def account(self, uid: int, gid: int) -> Account:
        """Return what there is to know of the user with these ids."""
        ...

    async def uid_of(self, user: str) -> int | None:
        """Return the uid of a user by name; None if there is none."""
        ...


class HostUsers:
    """The host's own users, as the C library knows them; asked off the reactor's thread."""

    def __init__(self, threads: Threads, clock: IReactorTime) -> None:
        """Ask in `threads`."""
        asking = BoundedThreadCalls(threads, PLACES, ASKING_LIMIT, clock, _late)
        ages = (CACHED_SECONDS, clock, LARGEST_AGE)
        self._accounts: Remembered[tuple[int, int], Account] = Remembered(
            lambda ids: asking.run(_account, *ids), *ages
        )
        self._groups: Remembered[tuple[str, int], frozenset[int]] = Remembered(
            lambda user: asking.run(_groups, *user), *ages
        )
        self._uids: Remembered[str, int | None] = Remembered(
            lambda user: asking.run(_uid_of, user), *ages
        )

    async def account(self, uid: int, gid: int) -> Account:
        """Return names and groups, as `Users` says."""
        return await self._accounts.get((uid, gid))

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:  # noqa: ARG002
        """Return the gids of a user; of one whom the host does not know, his primary one."""
        return await self._groups.get((user, gid))

    async def uid_of(self, user: str) -> int | None:
        """Return the uid of a user by name, as `Users` says."""
        return await self._uids.get(user)


def _late() -> Unavailable:
    return Unavailable(
        "The gateway cannot look its users up.",
        detail=f"the host's database of users did not answer within {ASKING_LIMIT:g} s",
    )


def _account(uid: int, gid: int) -> Account:
    group = str(gid)
    with suppress(KeyError):
        group = printable(grp.getgrgid(gid).gr_name)
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), group, frozenset({gid}))
    groups = _groups(user.pw_name, gid) | {user.pw_gid}
    return Account(printable(user.pw_name), group, groups)


def _groups(user: str, gid: int) -> frozenset[int]:
    return frozenset({gid, *os.getgrouplist(user, gid)})


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):  # ValueError: a NUL in it
        return None
