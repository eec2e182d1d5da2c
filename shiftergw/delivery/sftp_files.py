"""Access the files of a system over SFTP, with the extensions of OpenSSH if the server has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.delivery import proof, refusals
from shiftergw.delivery.delta import DeltaPlan, DeltaUnusable, segments_from
from shiftergw.delivery.files import MODE, Content, CopyingFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.sftp import packets, parallel_write
from shiftergw.sftp.client import Sftp
from shiftergw.sftp.outgoing_file import COPY_REACH, REACH, OutgoingFile
from shiftergw.sftp.packets import Attributes, FileSystem, SftpRefused
from shiftergw.sftp.session import IN_FLIGHT

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.source_file import SourceFile
    from shiftergw.plumbing.channel import Connection

_log = Logger()

OpenSession = Callable[[], Awaitable[Sftp]]


class SftpFiles:
    """Implement the protocol `RemoteFiles`."""

    unreliable_tail = REACH
    copy_tail = COPY_REACH

    def __init__(
        self, sftp: Sftp, connection: Connection, open_session: OpenSession, rate: float
    ) -> None:
        """Use an open session of a connection; `open_session` opens further ones."""
        self._sftp = sftp
        self._connection = connection
        self._open_session = open_session
        self._rate = rate
        self._has_sync = packets.FSYNC in sftp.extensions
        self._extra_sessions = 0  # open or opening, besides `sftp`

    @classmethod
    async def begin(
        cls,
        connection: Connection,
        clock: IReactorTime,
        idle_seconds: float,
        rate: float = parallel_write.RATE,
    ) -> SftpFiles:
        """Open a session as `OpenFiles` does.

        An upload opens as many further sessions as it needs to reach `rate`, in bytes a second.
        """

        async def open_session(like: Sftp | None = None) -> Sftp:
            channel = await connection.open_subsystem("sftp")
            return await Sftp.begin(channel, clock, idle_seconds, like)

        first = await open_session()
        return cls(first, connection, partial(open_session, first), rate)

    @property
    def usable(self) -> bool:
        """Return whether the session is still open."""
        return self._sftp.usable

    @property
    def shortcomings(self) -> Sequence[str]:
        """Return the features that the server lacks."""
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
        """See `RemoteFiles`."""
        return await self._sftp.file_system(path)

    async def lstat(self, path: bytes) -> Attributes | None:
        """See `RemoteFiles`."""
        return await self._sftp.lstat(path)

    async def entries(
        self, path: bytes, accepts: Callable[[bytes], bool]
    ) -> list[tuple[bytes, Attributes]]:
        """See `RemoteFiles`."""
        return await self._sftp.list(path, accepts)

    async def remove(self, path: bytes) -> None:
        """See `RemoteFiles`."""
        await self._sftp.remove(path)

    async def set_mode(self, path: bytes, mode: int) -> None:
        """See `RemoteFiles`."""
        await self._sftp.set_mode_of(path, mode)

    async def rename(self, old: bytes, new: bytes) -> None:
        """See `RemoteFiles`. Few servers can make the rename durable."""
        await self._sftp.rename(old, new)
        with suppress(SftpRefused):
            directory = new.rpartition(b"/")[0] or b"/"
            async with self._open_file(directory, packets.FOR_READING) as handle:
                await self._sftp.sync(handle, proof.time_limit(0))

    async def upload(
        self, path: bytes, source: Content, start: int | None, report: Callable[[int], None]
    ) -> None:
        """See `RemoteFiles`."""
        offset = start or 0
        async with self._open_for_upload(path, start) as handle:
            with source.blocks(offset) as blocks:
                outgoing = OutgoingFile(blocks, offset, lambda n: report(offset + n))
                await self._send(path, handle, outgoing, source.size - offset)
            await self._finish(path, handle, source.size)

    @property
    def copying(self) -> CopyingFiles | None:
        """See `RemoteFiles`."""
        return self if packets.COPY_DATA in self._sftp.extensions else None

    async def assemble(
        self,
        path: bytes,
        source: SourceFile,
        start: int | None,
        plan: DeltaPlan,
        report: Callable[[int], None],
    ) -> None:
        """See `CopyingFiles`."""
        offset = start or 0
        segments = segments_from(plan.segments, offset)
        size = sum(segment.length for segment in segments if segment.source_offset is None)
        async with self._open_file(plan.path, packets.FOR_READING) as copy_source:
            await self._check_size(plan, copy_source)
            async with self._open_for_upload(path, start) as handle:
                with source.assembly(segments) as blocks:
                    outgoing = OutgoingFile(
                        blocks, offset, lambda n: report(offset + n), reach=COPY_REACH
                    )
                    copies = plan.path, copy_source
                    await self._send(path, handle, outgoing, size, copies)
                await self._finish(path, handle, source.size)
            # The server replies with success although the end of the range was not there.
            await self._check_size(plan, copy_source)

    async def _check_size(self, plan: DeltaPlan, handle: bytes) -> None:
        size = (await self._attributes(plan.path, handle)).size
        if size != plan.source_size:
            raise DeltaUnusable(f"the other image has {size} bytes, not {plan.source_size}")

    @asynccontextmanager
    async def _open_for_upload(self, path: bytes, start: int | None) -> AsyncIterator[bytes]:
        """Open an existing file, or with `start` None a new one, as `upload` does."""
        flags = packets.FOR_WRITING
        if start is None:
            await self._sftp.remove(path)
            flags |= packets.CREATE | packets.EXCLUSIVE
        async with self._open_file(path, flags) as handle:
            yield handle

    async def create(self, path: bytes, content: bytes) -> None:
        """See `RemoteFiles`."""
        flags = packets.FOR_READING | packets.FOR_WRITING | packets.CREATE | packets.EXCLUSIVE
        async with self._open_file(path, flags) as handle:
            await self._sftp.write(handle, OutgoingFile(_single_block(content), 0, lambda _: None))
            await self._finish(path, handle, len(content))
            if await self._sftp.read(handle, 0, len(content) + 1) != content:
                raise proof.content_differs()

    async def pieces(self, path: bytes, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `RemoteFiles`."""
        async with self._open_file(path, packets.FOR_READING) as handle:
            return await gather_or_cancel(self._sftp.read(handle, *place) for place in places)

    async def read_through(self, path: bytes, size: int, take: Callable[[bytes], None]) -> None:
        """See `RemoteFiles`."""
        async with self._open_file(path, packets.FOR_READING) as handle:
            await self._sftp.read_through(handle, size, take)

    async def _send(
        self,
        path: bytes,
        handle: bytes,
        outgoing: OutgoingFile,
        size: int,
        copies: tuple[bytes | None, bytes] = (None, b""),
    ) -> None:
        """Write to an open file, with further sessions if the connection is slow for one.

        `size` bytes of it are sent. `copies` are path and handle of a file to copy from.
        """
        window = min(self._connection.window, IN_FLIGHT)
        sessions = parallel_write.session_count(self._sftp.round_trip, window, size, self._rate)
        extra_sessions = min(sessions, parallel_write.MOST_SESSIONS - self._extra_sessions) - 1
        self._extra_sessions += extra_sessions
        try:
            copy_path, copy_source = copies
            write = parallel_write.ParallelWrite(self._open_session, path, outgoing, copy_path)
            await write.run(self._sftp, handle, extra_sessions, copy_source)
        except DeliveryFailed:
            # The failed session may have broken the others as well: resume over a new connection.
            self.close()
            raise
        finally:
            self._extra_sessions -= extra_sessions

    async def _finish(self, path: bytes, handle: bytes, size: int) -> None:
        """Set the mode of an open file, write it to the disk, and check its size."""
        await gather_or_cancel([self._set_mode(path, handle), self._sync(handle, size)])
        if (await self._attributes(path, handle)).size != size:
            raise proof.content_differs()

    async def _set_mode(self, path: bytes, handle: bytes) -> None:
        """Set the mode of a file; accept a refusal if the file has the mode already."""
        try:
            await self._sftp.set_mode(handle, MODE)
        except SftpRefused as refusal:
            if (await self._attributes(path, handle)).permissions == MODE:
                return
            with suppress(SftpRefused):
                await self._sftp.set_mode_of(path, MODE)
            attributes = await self._attributes(path, handle)
            if attributes.permissions != MODE:
                raise refusals.wrong_mode(refusal, attributes) from refusal

    async def _attributes(self, path: bytes, handle: bytes) -> Attributes:
        """Return the attributes of an open file: by FSTAT, or by its name if that is refused."""
        try:
            return await self._sftp.fstat(handle)
        except SftpRefused as refusal:
            attributes = await self._sftp.lstat(path)
            if attributes is None or not attributes.is_file:
                raise
            _log.debug("{refusal}; its name is looked up instead", refusal=refusal)
            return attributes

    async def _sync(self, handle: bytes, size: int) -> None:
        """Write a file to the disk of the system, if the server offers that."""
        try:
            await self._sftp.sync(handle, proof.time_limit(size))
        except SftpRefused as refusal:
            if refusal.status not in packets.NOT_OFFERED:
                raise
            self._has_sync = False

    async def _open(self, path: bytes, flags: int) -> bytes:
        """Open a file; a new file gets its mode before anything is written to it."""
        try:
            return await self._sftp.open(path, flags, MODE)
        except SftpRefused as refusal:
            if refusal.status not in packets.NOT_OFFERED or not flags & packets.CREATE:
                raise
        # ProFTPD, if it forbids chmod, creates the file and then refuses the request.
        await self._sftp.remove(path)
        handle = await self._sftp.open(path, flags, None)
        try:
            await self._set_mode(path, handle)
        except BaseException:
            self._close_later(handle)
            raise
        return handle

    def _close_later(self, handle: bytes) -> None:
        """Close a file after an error; errors of the close are ignored."""
        closing = Deferred.fromCoroutine(self._sftp.close_handle(handle))
        closing.addErrback(lambda _: None)

    @asynccontextmanager
    async def _open_file(self, path: bytes, flags: int) -> AsyncIterator[bytes]:
        """Open a file for the block and close it; a failed close means that a write failed."""
        handle = await self._open(path, flags)
        try:
            yield handle
        except BaseException:
            self._close_later(handle)
            raise
        await self._sftp.close_handle(handle)


async def _single_block(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content
