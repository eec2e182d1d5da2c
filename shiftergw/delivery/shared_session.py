"""One session with the files of a system, shared by all callers that need it at the same time.

The session opens on first use and closes when it has been idle for a while. `STEPS` is the table of
its states.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock

from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.plumbing.timing import pause, shield
from shiftergw.sftp.packets import SftpRefused
from shiftergw.ssh.extra_logins import ExtraLogins

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import OpenFiles, RemoteFiles
    from shiftergw.delivery.hosts import Connect, Hosts
    from shiftergw.plumbing.channel import Connection

IDLE_CLOSE_SECONDS = 30.0
"""Seconds for which an idle session stays open for the next caller."""

T = TypeVar("T")


class SessionState(Enum):
    """What the session of a system is doing."""

    ABSENT = "absent"  # never opened, closed after a while, or broken
    OPENING = "opening"  # one caller opens it, further callers wait
    IN_USE = "in use"
    IDLE = "idle"  # open, but not in use; a timer will close it
    SHUTDOWN = "shutdown"  # the gateway stops: nothing is opened any more


S = SessionState

STEPS: dict[SessionState, frozenset[SessionState]] = {
    S.ABSENT: frozenset({S.OPENING, S.SHUTDOWN}),
    S.OPENING: frozenset({S.IN_USE, S.ABSENT, S.SHUTDOWN}),
    # A session that broke is replaced although earlier callers may still be using it.
    S.IN_USE: frozenset({S.IN_USE, S.IDLE, S.ABSENT, S.SHUTDOWN}),
    S.IDLE: frozenset({S.IN_USE, S.ABSENT, S.SHUTDOWN}),
    S.SHUTDOWN: frozenset({S.SHUTDOWN}),
}
"""From each state, the states a single step may lead to."""


class SessionBroken(SystemUnavailable):
    """The session with `host` broke while it was used."""

    def __init__(self, host: str, error: DeliveryFailed) -> None:
        """Repeat what `error` says, and name the host in the detail."""
        detail = f"{host}: {error.detail}" if error.detail else host
        super().__init__(error.what, remedy=error.remedy, detail=detail)
        self.host = host


@dataclass(eq=False, slots=True)
class _OpenSession:
    """An open session with one host; `callers` is the number of callers that use it now."""

    host: str
    files: RemoteFiles
    connection: Connection
    callers: int = 0


class SharedSession:
    """Open a session on first use, share it, close it when idle, and replace it when it broke.

    Each new session may be with another host of the system.
    """

    def __init__(
        self,
        hosts: Hosts,
        clock: IReactorTime,
        idle_seconds: float,
        idle_close_seconds: float = IDLE_CLOSE_SECONDS,
        open_files: OpenFiles = SftpFiles.begin,
    ) -> None:
        """Open nothing yet; `idle_seconds` is the longest wait for an answer of a server."""
        self._hosts = hosts
        self._open_files = open_files
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._idle_close_seconds = idle_close_seconds
        self._state = SessionState.ABSENT
        self._session: _OpenSession | None = None
        self._opening_lock = DeferredLock()
        self._failure: SystemUnavailable | None = None
        """The last failure to open a session."""
        self._idle_timer: Any = None
        self._pending: set[Deferred[Any]] = set()
        self._closing: set[Deferred[None]] = set()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[tuple[RemoteFiles, Connection]]:
        """Yield the session, and its connection for running commands.

        Raises `DeliveryFailed`; `SessionBroken` if an error of the block ended the session. Callers
        that wait while another caller opens the session share its failure, because each attempt may
        take a minute.
        """
        session = await self._acquire()
        try:
            yield session.files, session.connection
        except DeliveryFailed as error:
            if session.files.usable or self._state is SessionState.SHUTDOWN:
                raise
            raise SessionBroken(session.host, error) from error
        finally:
            session.callers -= 1
            if session is self._session and not session.callers:
                self._step(SessionState.IDLE)

    @property
    def host_count(self) -> int:
        """Return how many hosts the system has."""
        return self._hosts.count

    def shun(self, host: str) -> None:
        """Prefer other hosts for a while when the next session is opened."""
        self._hosts.shun(host)

    async def pause(self, seconds: float) -> None:
        """Wait for a number of seconds; raise `DeliveryFailed` once `close` is called."""
        await self._until_closed(pause(seconds, self._clock))

    async def close(self) -> None:
        """Close the session for good; return when its connection has ended.

        Callers that use the session, or wait for it, get `DeliveryFailed`.
        """
        self._step(SessionState.SHUTDOWN)
        for wait in list(self._pending):
            wait.cancel()
        self._drop()
        while self._closing:
            await shield(next(iter(self._closing)))

    def _step(self, state: SessionState) -> None:
        """Change the state. The timer runs in the state IDLE only."""
        assert state in STEPS[self._state], f"no step leads from {self._state} to {state}"
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._state = state
        if state is SessionState.IDLE:
            self._idle_timer = self._clock.callLater(self._idle_close_seconds, self._expire)

    def _expire(self) -> None:
        self._idle_timer = None
        self._drop()
        self._step(SessionState.ABSENT)

    async def _acquire(self) -> _OpenSession:
        """Return the session and count the caller; open a new session if there is no usable one."""
        earlier_failure = self._failure
        async with self._opening_lock:
            session = self._session
            if session is not None and not session.files.usable:
                self._drop()
                self._step(SessionState.ABSENT)
                session = None
            if session is None:
                if self._failure is not None and self._failure is not earlier_failure:
                    raise copy(self._failure)
                session = await self._open()
            session.callers += 1
            self._step(SessionState.IN_USE)
            return session

    async def _open(self) -> _OpenSession:
        """Open a session with the first host that works; raise `DeliveryFailed`."""
        if self._state is SessionState.SHUTDOWN:
            raise _stopping()
        self._step(SessionState.OPENING)
        try:
            host, (files, connection) = await self._until_closed(self._hosts.first(self._begin))
        except BaseException as error:
            if isinstance(error, SystemUnavailable):
                self._failure = error
            if self._state is SessionState.OPENING:
                self._step(SessionState.ABSENT)
            raise
        session = self._session = _OpenSession(host, files, connection)
        if self._is_closed():
            # The attempt has succeeded although `close` cancelled it.
            self._drop()
            raise _stopping()
        return session

    async def _begin(self, connect: Connect) -> tuple[RemoteFiles, Connection]:
        """Connect to a host and open a session with its files."""
        connection = ExtraLogins(await connect(), connect, self._clock)
        try:
            return await self._open_files(connection, self._clock, self._idle_seconds), connection
        except SftpRefused as refusal:
            self._close_connection(connection)
            raise DeliveryFailed(
                "The system's files cannot be used.", detail=str(refusal)
            ) from refusal
        except BaseException:
            self._close_connection(connection)
            raise

    async def _until_closed(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Return the result of `work`; `close` cancels it, and `DeliveryFailed` is raised."""
        if self._state is SessionState.SHUTDOWN:
            work.close()
            raise _stopping()
        running = Deferred.fromCoroutine(work)
        self._pending.add(running)
        try:
            return await running
        except CancelledError:
            # `close` may have changed the state meanwhile.
            if self._is_closed():
                raise _stopping() from None
            raise
        finally:
            self._pending.discard(running)

    def _is_closed(self) -> bool:
        return self._state is SessionState.SHUTDOWN

    def _drop(self) -> None:
        """End the session, if there is one, and begin to close its connection."""
        session, self._session = self._session, None
        if session is not None:
            session.files.close()
            self._close_connection(session.connection)

    def _close_connection(self, connection: Connection) -> None:
        closing = Deferred.fromCoroutine(connection.close())
        if not closing.called:
            self._closing.add(closing)
            closing.addBoth(lambda _: self._closing.discard(closing))


def _stopping() -> DeliveryFailed:
    return DeliveryFailed("The gateway is stopping.", remedy="Try again in a moment.")
