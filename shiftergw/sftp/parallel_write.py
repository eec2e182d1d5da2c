"""Write one file in several SFTP sessions over a link with a long round trip.

A channel carries at most one window (2 MiB with OpenSSH) per round trip, whatever the bandwidth of
the link. Further channels over the same connection, each with a session that has opened the same
file, carry more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import ceil
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from shiftergw.sftp.client import Sftp
    from shiftergw.sftp.outgoing_file import OutgoingFile

RATE = 200_000_000
"""The target rate in bytes per second: above 1 Gbit/s, since windows are rarely full."""

MOST_SESSIONS = 6
"""The limit on sessions over one connection; OpenSSH allows 10, and commands need some."""

_WORTHWHILE = 8 << 20  # bytes of a file that justify a further session

_log = Logger()


def session_count(round_trip: float, window: int, size: int, rate: float = RATE) -> int:
    """Return how many sessions reach a rate, each with one `window` per round trip.

    Sizes in bytes, `rate` in bytes per second. A window of 0 means that one session must suffice.
    """
    if not window:
        return 1
    sessions = min(round_trip * rate / window, MOST_SESSIONS)
    return max(1, min(ceil(sessions), size // _WORTHWHILE))


class ParallelWrite:
    """Writes one file; further sessions join the first when they are open."""

    def __init__(
        self,
        begin: Callable[[], Awaitable[Sftp]],
        path: bytes,
        outgoing: OutgoingFile,
        copy_path: bytes | None = None,
    ) -> None:
        """Write `outgoing` to the file at `path`; `begin` opens further sessions.

        The server copies each `CopiedRange` from the file at `copy_path`.
        """
        self._begin = begin
        self._path = path
        self._outgoing = outgoing
        self._copy_path = copy_path
        self._opening: set[Deferred[tuple[Sftp, bytes, bytes]]] = set()
        self._is_complete = False

    async def run(self, first: Sftp, handle: bytes, extra: int, copy_source: bytes = b"") -> None:
        """Write with `first` and up to `extra` further sessions; return when all are done.

        `handle` and `copy_source` are the open files of `first`. It is no error if the server opens
        fewer sessions. An error in an open session is raised.
        """
        first_write = self._write_first(first, handle, copy_source)
        await gather_or_cancel([first_write, *(self._write_extra() for _ in range(extra))])

    async def _write_first(self, first: Sftp, handle: bytes, copy_source: bytes) -> None:
        await first.write(handle, self._outgoing, copy_source)
        self._is_complete = True
        for opening in list(self._opening):  # these sessions have nothing left to do
            opening.cancel()

    async def _write_extra(self) -> None:
        opening = Deferred.fromCoroutine(self._open())
        self._opening.add(opening)
        try:
            session, handle, copy_source = await opening
        except CancelledError:
            if self._is_complete:
                return
            raise
        except (DeliveryFailed, SftpRefused) as error:
            _log.debug("no further session for a delivery: {error}", error=error)
            return
        finally:
            self._opening.discard(opening)
        try:
            await session.write(handle, self._outgoing, copy_source)
            await session.close_handle(handle)  # an error here is a failed write
            await session.end()
        finally:
            session.close()

    async def _open(self) -> tuple[Sftp, bytes, bytes]:
        """Return a further session, and its handles of the file and of the file to copy from."""
        session = await self._begin()
        try:
            handle = await session.open(self._path, packets.FOR_WRITING)
            if self._copy_path is None:
                return session, handle, b""
            return session, handle, await session.open(self._copy_path, packets.FOR_READING)
        except BaseException:
            session.close()
            raise
