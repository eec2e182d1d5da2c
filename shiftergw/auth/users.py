"""The groups of a user, from the gateway host's own database."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

CACHED_SECONDS = 60.0
"""How long an answer is used; the database may be a slow directory service."""


class HostGroups:
    """A `UserDirectory` that asks the host (`getgrouplist(3)`), off the reactor's thread."""

    def __init__(self, threads: Threads, clock: IReactorTime) -> None:
        """Ask in `threads`."""
        self._threads = threads
        self._clock = clock
        self._known: dict[tuple[str, int], tuple[float, frozenset[int]]] = {}

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:  # noqa: ARG002
        """Return the gids of a user; of one whom the host does not know, his primary one."""
        now = self._clock.seconds()
        self._known = {key: known for key, known in self._known.items() if known[0] > now}
        known = self._known.get((user, gid))
        if known is None:
            found = await self._threads.run(os.getgrouplist, user, gid)
            known = now + CACHED_SECONDS, frozenset({gid, *found})
            self._known[user, gid] = known
        return known[1]
