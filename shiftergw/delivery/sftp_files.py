"""The files of a system by SFTP, with OpenSSH's extensions where the server has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.delivery import proof, refusals
from shiftergw.delivery.files import MODE
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.sftp import packets, parallel_write
from shiftergw.sftp.client import Sftp
from shiftergw.sftp.outgoing_file import REACH, OutgoingFile
from shiftergw.sftp.packets import Attributes, FileSystem, SftpRefused
from shiftergw.sftp.session import IN_FLIGHT

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.reading import SourceFile
    from shiftergw.plumbing.channel import Connection

_log = Logger()

Begin = Callable[[], Awaitable[Sftp]]


class SftpFiles:
    """Keeps the protocol `Files`."""

    reach = REACH

    def __init__(self, sftp: Sftp, connection: Connection, begin: Begin, rate: float) -> None:
        """Use a session of a connection that has begun; `begin` begins further ones."""
        self._sftp = sftp
        self._connection = connection
        self._begin = begin
        self._rate = rate
        self._has_sync = packets.FSYNC in sftp.extensions
        self._more = 0  # sessions that there are, or will be, beside this one

    @classmethod
    async def begin(
        cls,
        connection: Connection,
        clock: IReactorTime,
        idle_seconds: float,
        rate: float = parallel_write.RATE,
    ) -> SftpFiles:
        """Begin a session over a connection, as `OpenFiles` says.

        Files go there in as many further ones as it takes to reach `rate`, in bytes a second.
        """

        async def begin(like: Sftp | None = None) -> Sftp:
            channel = await connection.open_subsystem("sftp")
            return await Sftp.begin(channel, clock, idle_seconds, like)

        first = await begin()
        return cls(first, connection, partial(begin, first), rate)

    @property
    def usable(self) -> bool:
        """Say whether the session is not over."""
        return self._sftp.usable

    @property
    def shortcomings(self) -> Sequence[str]:
        """Return the features that the server lacks, as `Files` says."""
        texts = []
        if not self._has_sync:
            texts.append("it has no fsync: a power cut may damage files that were just delivered")
        if packets.POSIX_RENAME not in self._sftp.extensions:
            texts.append("it cannot replace files at once: for a moment a file is missing")
        return texts

    def close(self) -> None:
        """End the session."""
        self._sftp.close()

    async def file_system(self, path: bytes) -> FileSystem:
        """Return the state of a file system, as `Files` says."""
        return await self._sftp.file_system(path)

    async def lstat(self, path: bytes) -> Attributes | None:
        """Return the attributes of a name, as `Files` says."""
        return await self._sftp.lstat(path)

    async def entries(
        self, path: bytes, wanted: Callable[[bytes], bool]
    ) -> list[tuple[bytes, Attributes]]:
        """Return entries of a directory, as `Files` says."""
        return await self._sftp.list(path, wanted)

    async def remove(self, path: bytes) -> None:
        """Remove a file, as `Files` says."""
        await self._sftp.remove(path)

    async def rename(self, old: bytes, new: bytes) -> None:
        """Rename a file, as `Files` says; servers that sync directories are few."""
        await self._sftp.rename(old, new)
        with suppress(SftpRefused):
            directory = new.rpartition(b"/")[0] or b"/"
            async with self._opened(directory, packets.FOR_READING) as handle:
                await self._sftp.sync(handle, proof.patience(0))

    async def upload(
        self, path: bytes, source: SourceFile, start: int | None, report: Callable[[int], None]
    ) -> None:
        """Write a file, as `Files` says."""
        flags = packets.FOR_WRITING
        if start is None:
            await self._sftp.remove(path)
            flags |= packets.CREATE | packets.EXCLUSIVE
        offset = start or 0
        async with self._opened(path, flags) as handle:
            with source.blocks(offset) as blocks:
                outgoing = OutgoingFile(blocks, offset, lambda n: report(offset + n))
                await self._send(path, handle, outgoing, source.size - offset)
            await self._finish(path, handle, source.size)

    async def create(self, path: bytes, content: bytes) -> None:
        """Make a small file, as `Files` says."""
        flags = packets.FOR_READING | packets.FOR_WRITING | packets.CREATE | packets.EXCLUSIVE
        async with self._opened(path, flags) as handle:
            await self._sftp.write(handle, OutgoingFile(_once(content), 0, lambda _: None))
            await self._finish(path, handle, len(content))
            if await self._sftp.read(handle, 0, len(content) + 1) != content:
                raise proof.differs()

    async def pieces(self, path: bytes, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return pieces of a file, as `Files` says."""
        async with self._opened(path, packets.FOR_READING) as handle:
            return await gather_or_cancel(self._sftp.read(handle, *place) for place in places)

    async def read_through(self, path: bytes, size: int, take: Callable[[bytes], None]) -> None:
        """Read a file, as `Files` says."""
        async with self._opened(path, packets.FOR_READING) as handle:
            await self._sftp.read_through(handle, size, take)

    async def _send(self, path: bytes, handle: bytes, outgoing: OutgoingFile, size: int) -> None:
        window = min(self._connection.window, IN_FLIGHT)
        sessions = parallel_write.session_count(self._sftp.round_trip, window, size, self._rate)
        more = min(sessions, parallel_write.MOST_SESSIONS - self._more) - 1
        self._more += more
        try:
            write = parallel_write.ParallelWrite(self._begin, path, outgoing)
            await write.run(self._sftp, handle, more)
        except DeliveryFailed:
            # Of one session or of all: what lies there is gone on with over another connection.
            self.close()
            raise
        finally:
            self._more -= more

    async def _finish(self, path: bytes, handle: bytes, size: int) -> None:
        await gather_or_cancel([self._set_mode(path, handle), self._sync(handle, size)])
        if (await self._attributes(path, handle)).size != size:
            raise proof.differs()

    async def _set_mode(self, path: bytes, handle: bytes) -> None:
        """Set the mode of a file; accept a refusal if the file has the mode already."""
        try:
            await self._sftp.set_mode(handle, MODE)
        except SftpRefused as refused:
            if (await self._attributes(path, handle)).permissions == MODE:
                return
            with suppress(SftpRefused):
                await self._sftp.set_mode_of(path, MODE)
            attributes = await self._attributes(path, handle)
            if attributes.permissions != MODE:
                raise refusals.wrong_mode(refused, attributes) from refused

    async def _attributes(self, path: bytes, handle: bytes) -> Attributes:
        """Return the attributes of an open file: by FSTAT, or by its name if that is refused."""
        try:
            return await self._sftp.fstat(handle)
        except SftpRefused as refused:
            attributes = await self._sftp.lstat(path)
            if attributes is None or not attributes.is_file:
                raise
            _log.debug("{refused}; looked at by its name", refused=refused)
            return attributes

    async def _sync(self, handle: bytes, size: int) -> None:
        """Have a file brought to the disk, if the server has such a request."""
        try:
            await self._sftp.sync(handle, proof.patience(size))
        except SftpRefused as refused:
            if refused.status not in packets.NOT_OFFERED:
                raise
            self._has_sync = False

    async def _open(self, path: bytes, flags: int) -> bytes:
        """Open a file, a new one with the right mode before anything is written to it."""
        try:
            return await self._sftp.open(path, flags, MODE)
        except SftpRefused as refused:
            if refused.status not in packets.NOT_OFFERED or not flags & packets.CREATE:
                raise
        # ProFTPD, where it forbids chmod, makes the file and then refuses to have opened it.
        await self._sftp.remove(path)
        handle = await self._sftp.open(path, flags, None)
        try:
            await self._set_mode(path, handle)
        except BaseException:
            self._close_later(handle)
            raise
        return handle

    def _close_later(self, handle: bytes) -> None:
        """Close a file; whoever waits has a better error than that of the close."""
        closing = Deferred.fromCoroutine(self._sftp.close_handle(handle))
        closing.addErrback(lambda _: None)

    @asynccontextmanager
    async def _opened(self, path: bytes, flags: int) -> AsyncIterator[bytes]:
        """Open a file there, and close it: a close that fails is a write that failed."""
        handle = await self._open(path, flags)
        try:
            yield handle
        except BaseException:
            self._close_later(handle)
            raise
        await self._sftp.close_handle(handle)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content
