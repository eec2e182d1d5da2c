"""The connections to MongoDB that this process has: opened when they are needed, never waited for.

So there is nothing to be mended when a server was away: whoever needs it next finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from shiftergw.errors import Unavailable
from shiftergw.mongo.connection import MongoConnection
from shiftergw.mongo.connector import NO_ANSWER
from shiftergw.plumbing.timing import pause, shielded, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

MOST_LINKS = 3
"""Connections of one process: the server answers one command of each at a time."""

AWAY_SECONDS = 1.0
"""How long a call waits for a server that was away a moment ago."""

CLOSE_SECONDS = 5.0


class ConnectionPool:
    """Hands out links: an idle one, else the one with the least to do, and opens one more."""

    _log = Logger()

    def __init__(
        self,
        open_link: Callable[[], Coroutine[Deferred[Any], Any, MongoConnection]],
        clock: IReactorTime,
        seconds: float,
    ) -> None:
        """Open with `open_link`; nobody waits longer than `seconds` for it."""
        self._open_link = open_link
        self._clock = clock
        self._seconds = seconds
        self._links: list[MongoConnection] = []
        self._opening: Deferred[None] | None = None
        self._away: Unavailable | None = None
        self._closed = False
        self.meetings = 0
        """How often the server was found, for the first time or after it was away."""

    async def take(self) -> MongoConnection:
        """Return a link; raise `Unavailable` if there is none, and why.

        Who finds an attempt under way that then fails has another one made: the first one may have
        failed for what was before he came.
        """
        if self._closed:
            raise Unavailable(NO_ANSWER, detail="MongoDB: the store is not open")
        link = self._least_busy()
        if link is not None and not link.busy:
            return link
        begins = self._begin_to_open()
        if link is None:
            seconds = self._seconds if self._away is None else min(AWAY_SECONDS, self._seconds)
            await within(seconds, self._clock, self._opened(begins), self._not_there)
            link = self._least_busy()
        if link is None:
            raise self._not_there()
        return link

    def _least_busy(self) -> MongoConnection | None:
        self._links = [link for link in self._links if link.open]
        return min(self._free(), key=attrgetter("busy"), default=None)

    def _free(self) -> list[MongoConnection]:
        return [link for link in self._links if not link.taken]

    def _begin_to_open(self) -> bool:
        """Open one more link, if there may be one more; say whether that begins now."""
        if len(self._free()) >= MOST_LINKS or not (self._opening is None or self._opening.called):
            return False
        self._opening = Deferred.fromCoroutine(self._open())
        return True

    async def _opened(self, begins: bool) -> None:
        """Return when the attempt under way has ended, and one more, unless it `begins` now.

        They go on without us if we are cancelled.
        """
        assert self._opening is not None
        await shielded(self._opening)
        if not begins and not self._closed and self._least_busy() is None:
            self._begin_to_open()
            await shielded(self._opening)

    def _not_there(self) -> Unavailable:
        away = self._away or Unavailable(NO_ANSWER, detail="MongoDB: no connection yet")
        return Unavailable(away.what, remedy=away.remedy, detail=away.detail)

    async def _open(self) -> None:
        """Try to open one link; whoever waits learns from `_away` why there is none."""
        try:
            link = await self._open_link()
        except CancelledError:
            return
        except Unavailable as error:
            self._note_away(error)
        except Exception as error:  # noqa: BLE001 - nobody must wait for what is no more tried
            self._log.failure("MongoDB: no connection")
            self._note_away(Unavailable(NO_ANSWER, detail=f"MongoDB: {type(error).__name__}"))
        else:
            for other in self._links:
                if other.server != link.server:
                    other.abort("another server is the primary now")
            if not self._links:
                self.meetings += 1
            if self._away is not None:
                self._log.info("the database is there again")
            self._away = None
            self._links.append(link)

    def _note_away(self, error: Unavailable) -> None:
        """Tell the log, once and whenever it is for another reason."""
        if self._away is None or self._away.what != error.what:
            why = error.detail if error.what == NO_ANSWER else f"{error} {error.detail}"
            self._log.warn("the database is away: {why}", why=why)
        self._away = error

    def leave(self, why: str) -> None:
        """Give up all links: they lead to a server that keeps them, and is not the primary."""
        for link in self._links:
            link.abort(why)

    async def close(self) -> None:
        """Close all; who waits for an answer hears that there will be none."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await self._opening
            await pause(0, self._clock)  # what a connection attempt leaves for the reactor's turn
        for link in self._links:
            link.abort("the store was closed")
        for link in self._links:
            with suppress(Unavailable):
                await within(CLOSE_SECONDS, self._clock, link.lost, lambda: Unavailable(NO_ANSWER))
