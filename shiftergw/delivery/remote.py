"""A system's image directory on another machine, by SFTP."""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from shiftergw.delivery import proof
from shiftergw.delivery import sftp_packets as packets
from shiftergw.delivery.link import Connect, Link
from shiftergw.delivery.reading import SourceFile, closed_at_end, open_source
from shiftergw.delivery.sftp_packets import Refused
from shiftergw.delivery.sftp_session import IN_FLIGHT
from shiftergw.errors import DeliveryFailed, NoSpace, TimedOut
from shiftergw.model import Progress
from shiftergw.plumbing.timing import within
from shiftergw.ports import InstalledFile, Report

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.channel import Connection
    from shiftergw.delivery.sftp import Sftp
    from shiftergw.plumbing.threads import Threads

IDLE_SECONDS = 60.0
"""Time after which a server that owes an answer is given up."""

CLEAN_UP_SECONDS = 15.0
"""Time that the removal of a temporary may take."""

_NAME = re.compile(rb"[0-9a-f]{64}\.(?:squashfs|meta)")
_TEMPORARY = re.compile(rb"[0-9a-f]{64}\.(?:squashfs|meta)\.partial\.[0-9a-f]{16}")
_MODE = 0o600


class SftpDirectory:
    """Keeps the port `ImageDirectory`; what a broken connection leaves is gone on with.

    The temporary of an image is called after its content: whoever delivers the same file finds it.
    """

    _log = Logger()

    def __init__(
        self,
        connect: Connect,
        directory: PurePosixPath,
        threads: Threads,
        clock: IReactorTime,
        verify: Literal["sha256", "sample"] = "sha256",
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Deliver into `directory`, which must exist there; nothing is opened before it is used.

        `verify` says how a delivered file is checked: by `sha256sum` there, or by pieces of it.
        """
        self._directory = str(directory).encode("utf-8", "surrogateescape")
        self._threads = threads
        self._clock = clock
        self._verify = verify
        self._link = Link(connect, clock, idle_seconds)
        self._writing: dict[str, DeferredLock] = {}

    async def close(self) -> None:
        """Close the connection, if there is one."""
        await self._link.close()

    async def free_space(self) -> int:
        """Return the bytes that the account may still write there; many if nobody can tell."""
        async with self._session() as (sftp, _):
            try:
                return await sftp.space(self._directory)
            except Refused as refused:
                if refused.status != packets.UNSUPPORTED:
                    raise
            if await sftp.lstat(self._directory) is None:
                raise Refused(packets.NO_SUCH_FILE, "")
            return sys.maxsize

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file; a symlink, or anything else, is none."""
        path = self._path(name)
        async with self._session() as (sftp, _):
            found = await sftp.lstat(path)
        if found is None or not found.is_file:
            return None
        return InstalledFile(name, found.size or 0)

    async def install(self, source: Path, name: str, sha256: str, report: Report) -> None:
        """Put a file there, or the rest of it if a part of it lies there already."""
        path = self._path(name)
        temporary = b"%s.partial.%s" % (path, sha256[:16].encode())
        async with self._alone(name):
            with _reading():
                descriptor, size = await self._threads.run(open_source, source)
            with closed_at_end(descriptor):
                file = SourceFile(descriptor, size, self._threads)
                async with self._session() as (sftp, connection):
                    async with self._removed_on_error(sftp, temporary):
                        await self._upload(sftp, connection, file, temporary, report)
                        await self._check(sftp, connection, file, temporary, sha256)
                        await sftp.rename(temporary, path)
                    await self._sync_directory(sftp)

    async def write(self, content: bytes, name: str) -> None:
        """Put a small file there."""
        path = self._path(name)
        temporary = b"%s.partial.%s" % (path, secrets.token_hex(8).encode())
        flags = packets.FOR_READING | packets.FOR_WRITING | packets.CREATE | packets.EXCLUSIVE
        async with self._session() as (sftp, _):
            async with self._removed_on_error(sftp, temporary):
                async with _handle(sftp, temporary, flags) as handle:
                    await sftp.write(handle, 0, _once(content), lambda _: None)
                    await self._finish(sftp, handle, len(content))
                    if await sftp.read(handle, 0, len(content) + 1) != content:
                        raise _differs()
                await sftp.rename(temporary, path)
            await self._sync_directory(sftp)

    async def remove(self, name: str) -> None:
        """Remove the file; it need not exist."""
        path = self._path(name)
        async with self._session() as (sftp, _):
            await sftp.remove(path)

    async def list(self) -> list[InstalledFile]:
        """Return the installed images and metadata, sorted by name."""
        async with self._session() as (sftp, _):
            found = await sftp.list(self._directory, lambda name: bool(_NAME.fullmatch(name)))
        return sorted(
            (InstalledFile(name.decode(), one.size or 0) for name, one in found if one.is_file),
            key=lambda file: file.name,
        )

    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file: by the system, or read back."""
        path = self._path(name)
        async with self._session() as (sftp, connection):
            found = await sftp.lstat(path)
            if found is None or found.size is None:
                raise Refused(packets.NO_SUCH_FILE, "")
            if self._verify == "sha256":
                told = await proof.far_sha256(connection, path, found.size, self._clock)
                if told is not None:
                    return told
            digest = hashlib.sha256()
            async with _handle(sftp, path, packets.FOR_READING) as handle:
                await sftp.read_through(handle, found.size, digest.update)
            return digest.hexdigest()

    async def sweep(self, before: float) -> int:
        """Remove temporaries that were last written before this time; return how many."""
        async with self._session() as (sftp, _):
            found = await sftp.list(self._directory, lambda name: bool(_TEMPORARY.fullmatch(name)))
            old = [name for name, one in found if one.modified and one.modified < before]
            for name in old:
                await sftp.remove(self._directory + b"/" + name)
        return len(old)

    # The steps of a delivery

    async def _upload(
        self,
        sftp: Sftp,
        connection: Connection,
        file: SourceFile,
        temporary: bytes,
        report: Report,
    ) -> None:
        start = await self._part(sftp, connection, file, temporary)
        flags = packets.FOR_WRITING
        if start is None:
            await sftp.remove(temporary)
            flags |= packets.CREATE | packets.EXCLUSIVE
        offset = start or 0
        if offset:
            self._log.info("a delivery goes on at {n} of {size} bytes", n=offset, size=file.size)
            report(Progress("deliver", offset, file.size))

        def tell(answered: int) -> None:
            report(Progress("deliver", offset + answered, file.size))

        async with _handle(sftp, temporary, flags) as handle:
            with file.blocks(offset) as blocks, _reading():
                await sftp.write(handle, offset, blocks, tell)
            await self._finish(sftp, handle, file.size)

    async def _part(
        self, sftp: Sftp, connection: Connection, file: SourceFile, temporary: bytes
    ) -> int | None:
        """Return how much of the file lies there, looked through, or None to begin anew."""
        found = await sftp.lstat(temporary)
        if found is None or not found.is_file or not found.size or found.size > file.size:
            return None
        # Writes under way when a connection broke may have left a hole.
        size = found.size - IN_FLIGHT if found.size < file.size else found.size
        if size <= 0:
            return None
        if self._verify == "sha256":
            told = await proof.far_sha256(connection, temporary, size, self._clock, prefix=True)
            if told is not None:
                with _reading():
                    return size if told == await file.sha256(size) else None
        with _reading():
            return size if await proof.same_samples(sftp, temporary, file, size) else None

    async def _check(
        self,
        sftp: Sftp,
        connection: Connection,
        file: SourceFile,
        temporary: bytes,
        sha256: str,
    ) -> None:
        """Raise `DeliveryFailed` unless the file there is the one that was promised."""
        if self._verify == "sha256":
            told = await proof.far_sha256(connection, temporary, file.size, self._clock)
            if told is not None:
                if told != sha256:
                    raise _differs()
                return
        with _reading():
            if await file.sha256(file.size) != sha256:
                raise DeliveryFailed("The converted file changed before it was delivered.")
            if not await proof.same_samples(sftp, temporary, file, file.size):
                raise _differs()
        self._log.info("a delivered file was checked by its size and samples of it only")

    async def _finish(self, sftp: Sftp, handle: bytes, size: int) -> None:
        await sftp.set_mode(handle, _MODE)
        with suppress_unsupported():
            await sftp.sync(handle, proof.patience(size))
        if (await sftp.fstat(handle)).size != size:
            raise _differs()

    async def _sync_directory(self, sftp: Sftp) -> None:
        """Have the rename survive a power cut, where the server lets us open a directory."""
        with suppress(Refused):
            async with _handle(sftp, self._directory, packets.FOR_READING) as handle:
                await sftp.sync(handle, proof.patience(0))

    # What every method needs

    def _path(self, name: str) -> bytes:
        if not name.isascii() or _NAME.fullmatch(name.encode()) is None:
            raise ValueError(f"{name!r} is no name of an image directory")
        return self._directory + b"/" + name.encode()

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """Deliver one file of a name at a time: they would share a temporary."""
        lock = self._writing.setdefault(name, DeferredLock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked and not lock.waiting:
                self._writing.pop(name, None)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[tuple[Sftp, Connection]]:
        async with self._link.use() as (sftp, connection):
            try:
                yield sftp, connection
            except Refused as refused:
                raise await self._error(sftp, refused) from refused

    async def _error(self, sftp: Sftp, refused: Refused) -> DeliveryFailed | NoSpace:
        """Return what an answer of no means; the protocol has no word for a full disk."""
        reason = {
            packets.NO_SUCH_FILE: "it is not there",
            packets.PERMISSION_DENIED: "the account may not write there",
        }.get(refused.status, "the system could not do what it was asked")
        if refused.status == packets.FAILURE:
            with suppress(Refused, DeliveryFailed):
                if await sftp.space(self._directory) < IN_FLIGHT:
                    return NoSpace(
                        "The system's image directory has no space left.",
                        remedy="Tell the site's support: a disk of the system is full.",
                        detail=str(refused),
                    )
        return DeliveryFailed(
            f"The system's image directory cannot be used: {reason}.",
            remedy="Tell the site's support: `shiftergw check` says more.",
            detail=f"{refused} in {self._directory.decode('utf-8', 'backslashreplace')}",
        )

    @asynccontextmanager
    async def _removed_on_error(self, sftp: Sftp, temporary: bytes) -> AsyncIterator[None]:
        """Remove a temporary if the block raises, unless there is no connection left to do it."""
        try:
            yield
        except BaseException:
            if sftp.usable:
                with suppress(Refused, DeliveryFailed, TimedOut):
                    await within(CLEAN_UP_SECONDS, self._clock, sftp.remove(temporary), _late)
            raise


def _late() -> TimedOut:
    return TimedOut("The removal of a temporary file took too long.")


def _differs() -> DeliveryFailed:
    return DeliveryFailed(
        "The delivered file is not what was sent.",
        remedy="Try again; tell the site's support if it happens again.",
    )


@contextmanager
def _reading() -> Iterator[None]:
    """Say what went wrong with the file on this machine."""
    try:
        yield
    except OSError as error:
        raise DeliveryFailed(
            f"The converted file cannot be read: {error.strerror}.", detail=str(error)
        ) from error


@contextmanager
def suppress_unsupported() -> Iterator[None]:
    """Go on where the server has no such request."""
    try:
        yield
    except Refused as refused:
        if refused.status != packets.UNSUPPORTED:
            raise


@asynccontextmanager
async def _handle(sftp: Sftp, path: bytes, flags: int) -> AsyncIterator[bytes]:
    """Open a file there, and close it: a close that fails is a write that failed."""
    handle = await sftp.open(path, flags, _MODE)
    try:
        yield handle
    except BaseException:
        closing = Deferred.fromCoroutine(sftp.close_handle(handle))
        closing.addErrback(lambda _: None)  # whoever waits has a better error
        raise
    await sftp.close_handle(handle)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content
