"""Several sessions that write one file, where the way is too long for one.

A server takes no more than a window (2 MiB, with OpenSSH) on each channel before it has heard that
the client knows of it: one channel carries a window in a round trip, whatever the link could. More
channels over the same connection, each with a session that has opened the same file, carry more.
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
"""Bytes a second that sessions are opened for: 1 Gbit/s, and more, as windows are seldom full."""

MOST_SESSIONS = 6
"""Sessions over one connection, at most; OpenSSH has room for 10, and commands run beside them."""

_WORTHWHILE = 8 << 20  # bytes of a file that are worth another session

_log = Logger()


def session_count(round_trip: float, window: int, size: int, rate: float = RATE) -> int:
    """Return how many sessions bring `size` bytes at this rate, each a `window` in a round trip.

    A window of 0 is that of a connection where one session has to do.
    """
    if not window:
        return 1
    needed = min(round_trip * rate / window, MOST_SESSIONS)
    return max(1, min(ceil(needed), size // _WORTHWHILE))


class ParallelWrite:
    """Sessions that write one file; those beyond the first join it when they are open."""

    def __init__(
        self, begin: Callable[[], Awaitable[Sftp]], path: bytes, outgoing: OutgoingFile
    ) -> None:
        """Write to the file that has this name in sessions that `begin` opens."""
        self._begin = begin
        self._path = path
        self._outgoing = outgoing
        self._opening: set[Deferred[tuple[Sftp, bytes]]] = set()
        self._written = False

    async def run(self, first: Sftp, handle: bytes, more: int) -> None:
        """Return when everything is answered and the `more` sessions are closed.

        A server that opens fewer, or none, is no error. What goes wrong in one of them is.
        """
        await gather_or_cancel([self._write(first, handle), *(self._lane() for _ in range(more))])

    async def _write(self, first: Sftp, handle: bytes) -> None:
        await first.write(handle, self._outgoing)
        self._written = True
        for opening in list(self._opening):  # there is nothing left for them to do
            opening.cancel()

    async def _lane(self) -> None:
        opening = Deferred.fromCoroutine(self._open())
        self._opening.add(opening)
        try:
            lane, handle = await opening
        except CancelledError:
            if self._written:
                return
            raise
        except (DeliveryFailed, SftpRefused) as error:
            _log.debug("no further session for a delivery: {error}", error=error)
            return
        finally:
            self._opening.discard(opening)
        try:
            await lane.write(handle, self._outgoing)
            await lane.close_handle(handle)  # one that fails is a write that failed
            await lane.end()
        finally:
            lane.close()

    async def _open(self) -> tuple[Sftp, bytes]:
        lane = await self._begin()
        try:
            return lane, await lane.open(self._path, packets.FOR_WRITING)
        except BaseException:
            lane.close()
            raise
