"""The way to a system: one connection and one session with its files while somebody needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock

from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.timing import shielded

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.channel import Connection
    from shiftergw.delivery.files import Files, OpenFiles

Connect = Callable[[], Awaitable["Connection"]]
"""Makes a connection; raises `DeliveryFailed`, and can be cancelled."""

KEPT_SECONDS = 30.0
"""Time for which a connection that nobody uses is kept for the next one."""


class Link:
    """Opens itself on use, shared by all who use it at the same time, anew once it is broken."""

    def __init__(
        self,
        connect: Connect,
        clock: IReactorTime,
        idle_seconds: float,
        kept_seconds: float = KEPT_SECONDS,
        open_files: OpenFiles = SftpFiles.begin,
    ) -> None:
        """Give up a server that owes an answer for `idle_seconds`; nothing is opened yet."""
        self._connect = connect
        self._open_files = open_files
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._kept_seconds = kept_seconds
        self._lock = DeferredLock()
        self._open: tuple[Files, Connection] | None = None
        self._users = 0
        self._timer: Any = None
        self._closing: set[Deferred[None]] = set()
        self._opening: Deferred[tuple[Files, Connection]] | None = None
        self._closed = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[tuple[Files, Connection]]:
        """Give the session, and the connection for commands; raise `DeliveryFailed`."""
        async with self._lock:
            self._stop_timer()
            opened = self._open
            if opened is None or not opened[0].usable:
                self._discard()
                opened = self._open = await self._reopened()
            self._users += 1
        try:
            yield opened
        finally:
            self._users -= 1
            if not self._users and not self._closed:
                self._stop_timer()
                self._timer = self._clock.callLater(self._kept_seconds, self._expire)

    async def _reopened(self) -> tuple[Files, Connection]:
        if self._closed:
            raise _stopping()
        self._opening = Deferred.fromCoroutine(self._begin())
        try:
            return await self._opening
        except CancelledError:
            if self._closed:
                raise _stopping() from None
            raise
        finally:
            self._opening = None

    async def _begin(self) -> tuple[Files, Connection]:
        connection = await self._connect()
        try:
            return await self._open_files(connection, self._clock, self._idle_seconds), connection
        except BaseException:
            self._close(connection)
            raise

    async def close(self) -> None:
        """Close what is open, for good, and return when it is; whoever uses it is told."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        self._stop_timer()
        self._discard()
        while self._closing:
            await shielded(next(iter(self._closing)))

    def _expire(self) -> None:
        self._timer = None
        if not self._users:
            self._discard()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _discard(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened[0].close()
            self._close(opened[1])

    def _close(self, connection: Connection) -> None:
        closing = Deferred.fromCoroutine(connection.close())
        if not closing.called:
            self._closing.add(closing)
            closing.addBoth(lambda _: self._closing.discard(closing))


def _stopping() -> DeliveryFailed:
    return DeliveryFailed("The gateway is stopping.", remedy="Try again in a moment.")
