"""The files of a system by SFTP, with OpenSSH's extensions where the server has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.delivery import proof
from shiftergw.delivery import sftp_packets as packets
from shiftergw.delivery.files import MODE
from shiftergw.delivery.sftp import Sftp
from shiftergw.delivery.sftp_packets import Attributes, Refused
from shiftergw.delivery.sftp_session import IN_FLIGHT
from shiftergw.plumbing.gather import gather_or_cancel

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.channel import Connection
    from shiftergw.delivery.reading import SourceFile


class SftpFiles:
    """Keeps the protocol `Files`."""

    reach = IN_FLIGHT

    def __init__(self, sftp: Sftp) -> None:
        """Use a session that has begun."""
        self._sftp = sftp

    @classmethod
    async def begin(
        cls, connection: Connection, clock: IReactorTime, idle_seconds: float
    ) -> SftpFiles:
        """Begin a session over a connection, as `OpenFiles` says."""
        channel = await connection.open_subsystem("sftp")
        return cls(await Sftp.begin(channel, clock, idle_seconds))

    @property
    def usable(self) -> bool:
        """Say whether the session is not over."""
        return self._sftp.usable

    def close(self) -> None:
        """End the session."""
        self._sftp.close()

    async def space(self, path: bytes) -> int:
        """Return the bytes left, as `Files` says."""
        return await self._sftp.space(path)

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
        with suppress(Refused):
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
                await self._sftp.write(handle, offset, blocks, lambda n: report(offset + n))
            await self._finish(handle, source.size)

    async def create(self, path: bytes, content: bytes) -> None:
        """Make a small file, as `Files` says."""
        flags = packets.FOR_READING | packets.FOR_WRITING | packets.CREATE | packets.EXCLUSIVE
        async with self._opened(path, flags) as handle:
            await self._sftp.write(handle, 0, _once(content), lambda _: None)
            await self._finish(handle, len(content))
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

    async def _finish(self, handle: bytes, size: int) -> None:
        await self._sftp.set_mode(handle, MODE)
        with _suppress_unsupported():
            await self._sftp.sync(handle, proof.patience(size))
        if (await self._sftp.fstat(handle)).size != size:
            raise proof.differs()

    @asynccontextmanager
    async def _opened(self, path: bytes, flags: int) -> AsyncIterator[bytes]:
        """Open a file there, and close it: a close that fails is a write that failed."""
        handle = await self._sftp.open(path, flags, MODE)
        try:
            yield handle
        except BaseException:
            closing = Deferred.fromCoroutine(self._sftp.close_handle(handle))
            closing.addErrback(lambda _: None)  # whoever waits has a better error
            raise
        await self._sftp.close_handle(handle)


@contextmanager
def _suppress_unsupported() -> Iterator[None]:
    """Go on where the server has no such request."""
    try:
        yield
    except Refused as refused:
        if refused.status != packets.UNSUPPORTED:
            raise


async def _once(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content
