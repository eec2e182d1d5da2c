"""Use further logins where an SSH server limits the sessions per login (`MaxSessions`).

The SFTP session alone may reach the limit, so that no command can start. Commands then run over a
further login, which stays open as long as the first login.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import FULL_BACKOFF, HostBusy, HostFull, SystemUnavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.channel import Channel, Connection

T = TypeVar("T")

MOST_EXTRA = 3
"""The limit on further logins besides the first."""

_LOGIN_PAUSE = 10  # times the duration of a failed login, before the next login
_TRIES = 2  # before a further login


class ExtraLogins:
    """A `Connection` with one login, and further logins when the first is full."""

    def __init__(
        self, first: Connection, connect: Callable[[], Awaitable[Connection]], clock: IReactorTime
    ) -> None:
        """Use `first`; `connect` makes further connections to the same host."""
        self._first = first
        self._connect = connect
        self._clock = clock
        self._extra: list[Connection] = []
        self._lock = DeferredLock()
        self._login: Deferred[Connection] | None = None
        self._failure: DeliveryFailed | None = None  # of the last login
        self._next_login = 0.0  # time on the clock
        self._commands = 0  # running
        self._is_closed = False

    @property
    def usable(self) -> bool:
        """Return whether the first login is not known to be broken."""
        return self._first.usable

    @property
    def window(self) -> int:
        """Return the window of the first login (see `Connection`)."""
        return self._first.window

    async def open_subsystem(self, name: str) -> Channel:
        """Start a subsystem over the first login."""
        return await self._first.open_subsystem(name)

    async def open_command(self, argv: Sequence[str]) -> Channel:
        """Start a program over a login with a free session, or over a new login.

        Raises `HostBusy` instead of `HostFull` while other programs of this object run.
        """
        try:
            channel = await self._open_or_log_in(argv)
        except HostFull as full:
            if not self._commands:
                raise
            raise HostBusy(full.what, remedy=full.remedy, detail=full.detail) from full
        self._commands += 1
        channel.closed.addBoth(self._on_closed)
        return channel

    def _on_closed(self, result: T) -> T:
        self._commands -= 1
        return result

    async def _open_or_log_in(self, argv: Sequence[str]) -> Channel:
        """Start a program; try existing logins with short pauses, then a new login."""
        for failures in range(1, _TRIES + 1):
            with suppress(HostFull):
                return await self._open(argv)
            await FULL_BACKOFF.pause(failures, self._clock)
        async with self._lock:
            try:
                return await self._open(argv)
            except HostFull as full:
                if self._is_closed:
                    raise _closed_error() from None
                if len(self._extra) == MOST_EXTRA:
                    raise
                if self._clock.seconds() < self._next_login:
                    raise self._no_login(full) from self._failure
                extra = await self._log_in(full)
        return await extra.open_command(argv)

    async def _open(self, argv: Sequence[str]) -> Channel:
        """Start a program over an existing login. Raises `HostFull` if all are full."""
        self._extra = [connection for connection in self._extra if connection.usable]
        for connection in self._extra:
            with suppress(HostFull, SystemUnavailable):
                return await connection.open_command(argv)
        return await self._first.open_command(argv)

    async def _log_in(self, full: HostFull) -> Connection:
        """Make a further login. Raises `HostFull` if that fails.

        A host that does not answer costs the whole time limit of a login, so the next login waits:
        a caller that repeats its attempts would otherwise exceed its own limit.
        """
        start = self._clock.seconds()
        self._login = Deferred.fromCoroutine(self._connection())
        try:
            extra = await self._login
        except CancelledError:
            if self._is_closed:
                raise _closed_error() from None
            raise
        except DeliveryFailed as error:
            now = self._clock.seconds()
            self._failure, self._next_login = error, now + _LOGIN_PAUSE * (now - start)
            raise self._no_login(full) from error
        finally:
            self._login = None
        self._extra.append(extra)
        return extra

    def _no_login(self, full: HostFull) -> HostFull:
        error = self._failure
        assert error is not None
        detail = f"{full.detail}; no further login: {error.what} {error.detail}".strip()
        return HostFull(full.what, remedy=full.remedy, detail=detail)

    async def _connection(self) -> Connection:
        return await self._connect()

    async def close(self) -> None:
        """Close all logins; return when they are closed. Never fails."""
        self._is_closed = True
        if self._login is not None:
            self._login.cancel()
        # Close the connections first: the holder of the lock may wait for one of them.
        for connection in [*self._extra, self._first]:
            await connection.close()
        async with self._lock:
            for connection in self._extra:
                await connection.close()


def _closed_error() -> DeliveryFailed:
    return DeliveryFailed("The connection to the system was closed.")
