"""The connections of this process to MongoDB, opened when a call needs them.

Theory of operation: the pool is in one of the states of `PoolState`, and an event moves it along
the table `STEPS`. Calls never wait in a queue for the server to come back. While it is away each
call makes one attempt to connect, or shares one that is under way, and fails with it. So there is
nothing to repair after an outage: the next call finds the server again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from shiftergw.errors import Unavailable
from shiftergw.mongo.connection import MongoConnection
from shiftergw.mongo.connector import NO_ANSWER
from shiftergw.plumbing.timing import pause, shield, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

MAX_CONNECTIONS = 3
"""Connections of one process: the server works on one command of each at a time."""

AWAY_SECONDS = 1.0
"""Seconds that a call waits for a server that was away a moment ago."""

CLOSE_SECONDS = 5.0
"""Seconds that the pool waits for a connection to close."""


class PoolState(StrEnum):
    """What the pool knows about the server."""

    NEW = "no attempt to connect has ended yet"
    CONNECTED = "the last attempt to connect has succeeded"
    AWAY = "the last attempt to connect has failed"
    CLOSED = "no further connection is opened"


class PoolEvent(StrEnum):
    """What happens to the pool."""

    SUCCESS = "an attempt to connect has succeeded"
    FAILURE = "an attempt to connect has failed"
    CLOSE = "the owner closes the pool"


_OPEN = {
    PoolEvent.SUCCESS: PoolState.CONNECTED,
    PoolEvent.FAILURE: PoolState.AWAY,
    PoolEvent.CLOSE: PoolState.CLOSED,
}

STEPS: Mapping[PoolState, Mapping[PoolEvent, PoolState]] = {
    PoolState.NEW: _OPEN,
    PoolState.CONNECTED: _OPEN,
    PoolState.AWAY: _OPEN,
    # An attempt may end although it was cancelled.
    PoolState.CLOSED: dict.fromkeys(PoolEvent, PoolState.CLOSED),
}
"""From each state, the state that each event leads to."""


class ConnectionPool:
    """Hand out an idle connection, or else the least busy one, and open one more then."""

    _log = Logger()

    def __init__(
        self,
        open_connection: Callable[[], Coroutine[Deferred[Any], Any, MongoConnection]],
        clock: IReactorTime,
        seconds: float,
    ) -> None:
        """Open connections by `open_connection`; no call waits longer than `seconds` for one."""
        self._open_connection = open_connection
        self._clock = clock
        self._seconds = seconds
        self._connections: list[MongoConnection] = []
        self._attempt: Deferred[None] | None = None
        """The attempt to connect that is under way, or the last one."""
        self._error: Unavailable | None = None
        """Why the last attempt has failed; set in the state AWAY only."""
        self.state = PoolState.NEW
        self.generation = 0
        """Rises whenever the server is found, for the first time or after it was away."""

    def _step(self, event: PoolEvent) -> PoolState:
        """Move along the table; return the state before."""
        state, self.state = self.state, STEPS[self.state][event]
        return state

    async def take(self) -> MongoConnection:
        """Return a connection; raise `Unavailable` with the reason if there is none.

        If the caller shares an attempt to connect and it fails, one more is made for the caller:
        the first attempt may have failed because of the time before the call.
        """
        if self.state is PoolState.CLOSED:
            raise Unavailable(NO_ANSWER, detail="MongoDB: the store is not open")
        connection = self._least_busy()
        if connection is not None and not connection.command_count:
            return connection
        is_own_attempt = self._start_attempt()
        if connection is None:
            is_away = self.state is PoolState.AWAY
            seconds = min(AWAY_SECONDS, self._seconds) if is_away else self._seconds
            attempt = self._wait_for_attempt(is_own_attempt)
            await within(seconds, self._clock, attempt, self._unavailable)
            connection = self._least_busy()
        if connection is None:
            raise self._unavailable()
        return connection

    def _least_busy(self) -> MongoConnection | None:
        self._connections = [connection for connection in self._connections if connection.is_open]
        return min(self._shareable(), key=attrgetter("command_count"), default=None)

    def _shareable(self) -> list[MongoConnection]:
        return [connection for connection in self._connections if not connection.is_reserved]

    def _start_attempt(self) -> bool:
        """Start to open a connection; return False if one is being opened, or there are enough."""
        is_under_way = self._attempt is not None and not self._attempt.called
        if is_under_way or len(self._shareable()) >= MAX_CONNECTIONS:
            return False
        self._attempt = Deferred.fromCoroutine(self._connect())
        return True

    async def _wait_for_attempt(self, is_own_attempt: bool) -> None:
        """Wait for the attempt under way, and for one more if that is not the caller's own.

        The cancellation of a caller does not cancel the attempts.
        """
        assert self._attempt is not None
        await shield(self._attempt)
        if is_own_attempt or self.state is PoolState.CLOSED or self._least_busy() is not None:
            return
        self._start_attempt()
        await shield(self._attempt)

    def _unavailable(self) -> Unavailable:
        """Return a new error with the reason why there is no connection."""
        error = self._error or Unavailable(NO_ANSWER, detail="MongoDB: no connection yet")
        return Unavailable(error.what, remedy=error.remedy, detail=error.detail)

    async def _connect(self) -> None:
        """Try to open one connection; its end moves the pool to the next state."""
        try:
            connection = await self._open_connection()
        except CancelledError:
            return
        except Unavailable as error:
            self._note_failure(error)
        except Exception as error:  # noqa: BLE001 - callers must not wait for an attempt that ended
            self._log.failure("MongoDB: no connection")
            self._note_failure(Unavailable(NO_ANSWER, detail=f"MongoDB: {type(error).__name__}"))
        else:
            self._note_success(connection)

    def _note_success(self, connection: MongoConnection) -> None:
        """Keep the connection; close those to a server that is not the primary any more."""
        for old_connection in self._connections:
            if old_connection.server != connection.server:
                old_connection.abort("another server is the primary now")
        if not self._connections:
            self.generation += 1
        if self._step(PoolEvent.SUCCESS) is PoolState.AWAY:
            self._log.info("the database is there again")
        self._error = None
        self._connections.append(connection)

    def _note_failure(self, error: Unavailable) -> None:
        """Log the failure if it is the first one, or has another reason than the last one."""
        if self._error is None or self._error.what != error.what:
            why = error.detail if error.what == NO_ANSWER else f"{error} {error.detail}"
            self._log.warn("the database is away: {why}", why=why)
        self._step(PoolEvent.FAILURE)
        self._error = error

    def drop(self, reason: str) -> None:
        """Close all connections: their server stays up, but is not the primary any more."""
        for connection in self._connections:
            connection.abort(reason)

    async def close(self) -> None:
        """Close all connections; callers that wait for an answer get an error."""
        self._step(PoolEvent.CLOSE)
        if self._attempt is not None:
            self._attempt.cancel()
            await self._attempt
            await pause(0, self._clock)  # the reactor ends the cancelled attempt in its next turn
        for connection in self._connections:
            connection.abort("the store was closed")
        for connection in self._connections:
            with suppress(Unavailable):
                await within(
                    CLOSE_SECONDS,
                    self._clock,
                    connection.disconnection,
                    lambda: Unavailable(NO_ANSWER),
                )
