"""The users and groups of the gateway's own host, as the C library reports them."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
from typing import TYPE_CHECKING

from shiftergw.auth.cached_calls import CachedCalls
from shiftergw.errors import Unavailable, printable
from shiftergw.model.requests import UserAccount
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

CACHE_SECONDS = 60.0
"""Seconds for which a result is used; the database may be a slow directory service."""

MAX_AGE = 3600.0
"""Seconds for which a result is used while the database hangs, although groups may have changed."""

QUERY_LIMIT = 10.0
"""Seconds that a query may take."""

CONCURRENT_QUERIES = 4


class HostUsers:
    """A `UserDirectory` of the host's own users, which queries the C library in threads."""

    def __init__(self, threads: Threads, clock: IReactorTime) -> None:
        """Query in `threads`."""
        calls = BoundedThreadCalls(threads, CONCURRENT_QUERIES, QUERY_LIMIT, clock, _late)
        ages = (CACHE_SECONDS, clock, MAX_AGE)
        self._accounts: CachedCalls[tuple[int, int], UserAccount] = CachedCalls(
            lambda ids: calls.run(_account, *ids), *ages
        )
        self._groups: CachedCalls[tuple[str, int], frozenset[int]] = CachedCalls(
            lambda user: calls.run(_groups, *user), *ages
        )
        self._uids: CachedCalls[str, int | None] = CachedCalls(
            lambda user: calls.run(_uid_of, user), *ages
        )

    async def account(self, uid: int, gid: int) -> UserAccount:
        """Return names and groups of a user, as `UserDirectory` says."""
        return await self._accounts.get((uid, gid))

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:  # noqa: ARG002
        """Return the gids of a user; only `gid` for a user whom the host does not know."""
        return await self._groups.get((user, gid))

    async def uid_of(self, user: str) -> int | None:
        """Return the uid of a user, as `UserDirectory` says."""
        return await self._uids.get(user)


def _late() -> Unavailable:
    return Unavailable(
        "The gateway cannot look its users up.",
        detail=f"the host's database of users did not answer within {QUERY_LIMIT:g} s",
    )


def _account(uid: int, gid: int) -> UserAccount:
    group = str(gid)
    with suppress(KeyError):
        group = printable(grp.getgrgid(gid).gr_name)
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return UserAccount(str(uid), group, frozenset({gid}))
    groups = _groups(user.pw_name, gid) | {user.pw_gid}
    return UserAccount(printable(user.pw_name), group, groups)


def _groups(user: str, gid: int) -> frozenset[int]:
    return frozenset({gid, *os.getgrouplist(user, gid)})


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):  # ValueError: a NUL in it
        return None
