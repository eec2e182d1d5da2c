"""The way to a system: one connection and one session with its files while somebody needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock

from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Away
from shiftergw.plumbing.timing import pause, shielded
from shiftergw.sftp.packets import SftpRefused
from shiftergw.ssh.extra_logins import ExtraLogins

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import Files, OpenFiles
    from shiftergw.delivery.hosts import Connect, Hosts
    from shiftergw.plumbing.channel import Connection

KEPT_SECONDS = 30.0
"""Time for which a connection that nobody uses is kept for the next one."""

T = TypeVar("T")


class Broken(Away):
    """The connection to `host` broke while it was used, with this error."""

    def __init__(self, host: str, error: DeliveryFailed) -> None:
        """Say the same, and name the host to admins."""
        detail = f"{host}: {error.detail}" if error.detail else host
        super().__init__(error.what, remedy=error.remedy, detail=detail)
        self.host = host


class Link:
    """Opens itself on use, shared by all who use it at the same time, anew once it is broken.

    Which host it leads to may be another one each time.
    """

    def __init__(
        self,
        hosts: Hosts,
        clock: IReactorTime,
        idle_seconds: float,
        kept_seconds: float = KEPT_SECONDS,
        open_files: OpenFiles = SftpFiles.begin,
    ) -> None:
        """Give up a server that owes an answer for `idle_seconds`; nothing is opened yet."""
        self._hosts = hosts
        self._open_files = open_files
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._kept_seconds = kept_seconds
        self._lock = DeferredLock()
        self._open: tuple[Files, Connection] | None = None
        self._host = ""
        self._failures = 0
        self._failure: Away | None = None
        """The last failure to open a session, and how many there have been."""
        self._users = 0
        self._timer: Any = None
        self._closing: set[Deferred[None]] = set()
        self._running: set[Deferred[Any]] = set()
        self._closed = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[tuple[Files, Connection]]:
        """Give the session, and the connection for commands; raise `DeliveryFailed`.

        `Broken` is raised for an error of the block after which the session is over. Callers that
        wait while another one opens the session share its failure: each try may take a minute.
        """
        failures = self._failures
        async with self._lock:
            self._stop_timer()
            opened = self._open
            if opened is None or not opened[0].usable:
                self._discard()
                if self._failures != failures:
                    assert self._failure is not None
                    raise copy(self._failure)
                try:
                    found = await self._until_closed(self._hosts.first(self._begin))
                except Away as away:
                    self._failures, self._failure = self._failures + 1, away
                    raise
                self._host, self._open = found
                opened = found[1]
            self._users += 1
            host = self._host
        try:
            yield opened
        except DeliveryFailed as error:
            if opened[0].usable or self._closed:
                raise
            raise Broken(host, error) from error
        finally:
            self._users -= 1
            if not self._users and not self._closed:
                self._stop_timer()
                self._timer = self._clock.callLater(self._kept_seconds, self._expire)

    @property
    def host_count(self) -> int:
        """Return how many hosts the system has."""
        return self._hosts.count

    def shun(self, host: str) -> None:
        """Lead to another host for a while, once this one's connection is over."""
        self._hosts.shun(host)

    async def pause(self, seconds: float) -> None:
        """Return after so many seconds; raise `DeliveryFailed` once the link is closed."""
        await self._until_closed(pause(seconds, self._clock))

    async def _until_closed(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Return what `work` returns; closing the link cancels it."""
        if self._closed:
            work.close()
            raise _stopping()
        running = Deferred.fromCoroutine(work)
        self._running.add(running)
        try:
            return await running
        except CancelledError:
            if self._closed:
                raise _stopping() from None
            raise
        finally:
            self._running.discard(running)

    async def _begin(self, connect: Connect) -> tuple[Files, Connection]:
        connection = ExtraLogins(await connect(), connect, self._clock)
        try:
            return await self._open_files(connection, self._clock, self._idle_seconds), connection
        except SftpRefused as refused:
            self._close(connection)
            raise DeliveryFailed(
                "The system's files cannot be used.", detail=str(refused)
            ) from refused
        except BaseException:
            self._close(connection)
            raise

    async def close(self) -> None:
        """Close what is open, for good, and return when it is; whoever uses it is told."""
        self._closed = True
        for one in list(self._running):
            one.cancel()
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
