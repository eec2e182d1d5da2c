"""A system's image directory on another machine."""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial, wraps
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import DeferredLock

from shiftergw.delivery import proof, refusals
from shiftergw.delivery.again import FIRST_PAUSE, Tries, asked_again
from shiftergw.delivery.files import Files, OpenFiles, beginning_of, small_file
from shiftergw.delivery.link import Link
from shiftergw.delivery.proof import NoDigest
from shiftergw.delivery.reading import SourceFile, close_source, closed_at_end, open_source
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.delivery.stripes import Stripes
from shiftergw.delivery.upload import CHOSEN, Upload, Verify, reading
from shiftergw.errors import DeliveryFailed, NoSpace, TimedOut
from shiftergw.plumbing.timing import within
from shiftergw.ports import InstalledFile, Report, Verification
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.hosts import Hosts
    from shiftergw.plumbing.channel import Connection
    from shiftergw.plumbing.threads import Threads

IDLE_SECONDS = 30.0
"""Time after which a server that owes an answer is given up."""

CLEAN_UP_SECONDS = 15.0
"""Time that the removal of a temporary may take."""

_NAME = re.compile(rb"[0-9a-f]{64}\.(?:squashfs|meta)")
_TEMPORARY = re.compile(rb"[0-9a-f]{64}\.(?:squashfs|meta)\.partial\.[0-9a-f]{16}")
_SMALL = 64 << 10

P = ParamSpec("P")
T = TypeVar("T")


def _again(
    method: Callable[Concatenate[RemoteDirectory, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[RemoteDirectory, P], Coroutine[Any, Any, T]]:
    """Let a method that does no harm twice run once more if its connection breaks."""

    @wraps(method)
    async def run(self: RemoteDirectory, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asked_again(self._link, lambda: method(self, *args, **kwargs), self._clock)

    return run


class RemoteDirectory:
    """Keeps the port `ImageDirectory`; what a broken connection leaves is gone on with.

    The temporary of an image is called after its content: whoever delivers the same file finds it.
    """

    def __init__(
        self,
        hosts: Hosts,
        directory: PurePosixPath,
        threads: Threads,
        clock: IReactorTime,
        verify: Verify = "sha256",
        idle_seconds: float = IDLE_SECONDS,
        open_files: OpenFiles = SftpFiles.begin,
        ost_count: int = 0,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """Deliver into `directory`, which must exist there; nothing is opened before it is used.

        All of the hosts see the same directory. `ost_count` is over how many OSTs large images are
        laid out, as `Stripes` has it.
        """
        self._directory = str(directory).encode("utf-8", "surrogateescape")
        self._threads = threads
        self._clock = clock
        self._verify = verify
        self._open_files = open_files
        self._link = Link(hosts, clock, idle_seconds, open_files=self._begin)
        self._stripes = Stripes(ost_count)
        self._first_pause = first_pause
        self._writing: dict[str, DeferredLock] = {}

    async def close(self) -> None:
        """Close the connection, if there is one."""
        await self._link.close()

    async def reach(self) -> None:
        """See the port: this directory knows of no failures before."""

    @_again
    async def free_space(self) -> int:
        """Return the bytes that the account may still write there; many if nobody can tell."""
        async with self._session() as (files, _):
            try:
                return (await files.file_system(self._directory)).free_bytes
            except SftpRefused as refused:
                if refused.status not in packets.NOT_OFFERED:
                    raise
            await self._check_directory(files)
            return sys.maxsize

    @_again
    async def probe(self, content: bytes) -> None:
        """Write a small file and remove it; raise why a delivery would fail."""
        path = self._test_path()
        async with self._file_made(path) as (files, _):
            await files.create(path, content)
            await files.remove(path)

    @_again
    async def shortcomings(self) -> Sequence[str]:
        """Return what makes deliveries to this system less safe, for the site's support."""
        async with self._session() as (files, _):
            return files.shortcomings

    @_again
    async def try_verification(self) -> Verification:
        """Deliver and remove a small file; return how large files would be verified."""
        content = b"shiftergw check\n"
        path = self._test_path()
        if self._verify == "sample":
            return Verification("samples", CHOSEN)
        async with self._file_made(path) as (files, connection):
            await files.create(path, content)
            try:
                sha256 = await proof.far_sha256(connection, path, len(content), self._clock)
            except NoDigest as error:
                detail = f" ({error.detail})" if error.detail else ""
                return Verification("samples", f"{error}{detail}")
            finally:
                await files.remove(path)
            if sha256 != hashlib.sha256(content).hexdigest():
                raise proof.differs()
            return Verification("sha256")

    @_again
    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file; a symlink, or anything else, is none."""
        path = self._path(name)
        async with self._session() as (files, _):
            found = await files.lstat(path)
        if found is None or not found.is_file:
            return None
        return InstalledFile(name, found.size or 0, found.modified)

    async def install(self, source: Path, name: str, sha256: str, report: Report) -> Verification:
        """Put a file there, or the rest of it if a part of it lies there already."""
        path = self._path(name)
        temporary = b"%s.partial.%s" % (path, sha256[:16].encode())
        async with self._alone(name):
            with reading():
                opening = partial(open_source, source)
                descriptor, size = await self._threads.acquire(opening, close_source)
            async with closed_at_end(descriptor, self._threads):
                file = SourceFile(descriptor, size, self._threads)
                tries = Tries(self._link, self._clock, self._first_pause)
                upload = Upload(
                    file,
                    temporary,
                    sha256,
                    self._verify,
                    self._clock,
                    tries.watched(report),
                    found=tries.found,
                    stripes=self._stripes,
                )

                verification: Verification | None = None

                async def deliver() -> Verification:
                    nonlocal verification
                    async with self._file_made(temporary) as (files, connection):
                        # The connection may have broken after the rename, before its answer.
                        if verification is not None and await self._is_in_place(
                            files, connection, path, size, sha256
                        ):
                            return Verification("sha256")
                        try:
                            verification = await upload.run(files, connection)
                            await files.rename(temporary, path)
                        except SftpRefused as refused:
                            if await self._lost(files, refused):
                                raise refusals.swept(refused) from refused
                            raise
                    return verification

                return await tries.run(deliver)

    @_again
    async def write(self, content: bytes, name: str) -> None:
        """Put a small file there."""
        path = self._path(name)
        temporary = b"%s.partial.%s" % (path, secrets.token_hex(8).encode())
        async with self._file_made(temporary) as (files, _):
            await files.create(temporary, content)
            await files.rename(temporary, path)

    @_again
    async def read(self, name: str, limit: int) -> bytes | None:
        """Return the content of a small file; None if it is absent or larger."""
        async with self._session() as (files, _):
            return await small_file(files, self._path(name), limit)

    @_again
    async def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of a file, fewer if it ends before; none if it is absent."""
        async with self._session() as (files, _):
            return await beginning_of(files, self._path(name), size) or b""

    @_again
    async def remove(self, name: str) -> None:
        """Remove the file; it need not exist."""
        path = self._path(name)
        async with self._session() as (files, _):
            await files.remove(path)

    @_again
    async def list(self) -> list[InstalledFile]:
        """Return the installed images and metadata, sorted by name."""
        async with self._session() as (files, _):
            found = await files.entries(self._directory, lambda name: bool(_NAME.fullmatch(name)))
        installed = (
            InstalledFile(name.decode(), one.size or 0, one.modified)
            for name, one in found
            if one.is_file
        )
        return sorted(installed, key=lambda file: file.name)

    @_again
    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file: by the system, or read back."""
        path = self._path(name)
        async with self._session() as (files, connection):
            found = await files.lstat(path)
            if found is None or not found.is_file or found.size is None:
                raise SftpRefused(packets.NO_SUCH_FILE, "")
            # What is small is here sooner than a program there has begun.
            if self._verify == "sha256" and found.size > _SMALL:
                with suppress(NoDigest):
                    return await proof.far_sha256(connection, path, found.size, self._clock)
            digest = hashlib.sha256()
            await files.read_through(path, found.size, digest.update)
            return digest.hexdigest()

    @_again
    async def sweep(self, before: float) -> int:
        """Remove temporaries that were last written before this time; return how many."""
        async with self._session() as (files, _):
            found = await files.entries(
                self._directory, lambda name: bool(_TEMPORARY.fullmatch(name))
            )
            # A part that is old and about to be gone on with is no dead one's.
            found = [
                one
                for one in found
                if one[0].partition(b".partial.")[0].decode() not in self._writing
            ]
            old = [name for name, one in found if one.modified and one.modified < before]
            for name in old:
                await files.remove(self._directory + b"/" + name)
        return len(old)

    # What every method needs

    async def _begin(
        self, connection: Connection, clock: IReactorTime, idle_seconds: float
    ) -> Files:
        """Begin a session with the files of a host that has the directory: not each may have it."""
        files = await self._open_files(connection, clock, idle_seconds)
        try:
            await self._check_directory(files)
        except BaseException:
            files.close()
            raise
        return files

    async def _check_directory(self, files: Files) -> None:
        """Raise `DeliveryFailed` if the directory does not exist or cannot be searched."""
        error = await refusals.directory_error(files, self._directory)
        if error is not None:
            raise error

    def _path(self, name: str) -> bytes:
        if not name.isascii() or _NAME.fullmatch(name.encode()) is None:
            raise ValueError(f"{name!r} is no name of an image directory")
        return self._directory + b"/" + name.encode()

    def _test_path(self) -> bytes:
        """Return where to write for a test.

        A file that is left behind looks like the temporary of a dead attempt, and is removed.
        """
        return self._path(f"{'0' * 64}.meta") + f".partial.{secrets.token_hex(8)}".encode()

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
    async def _session(self) -> AsyncIterator[tuple[Files, Connection]]:
        async with self._link.use() as (files, connection):
            try:
                yield files, connection
            except SftpRefused as refused:
                raise await self._error(files, connection, refused) from refused

    async def _error(
        self, files: Files, connection: Connection, refused: SftpRefused
    ) -> DeliveryFailed | NoSpace:
        """Return the error for a refusal.

        The session ends if its host has lost the directory: another host may have it.
        """
        try:
            error = await refusals.directory_error(files, self._directory)
            if error is not None:
                files.close()
                return error

            async def test() -> SftpRefused | None:
                return await refusals.write_test(connection, self._clock, self._test_path())

            return await refusals.explain(files, refused, self._directory, test)
        except DeliveryFailed:
            return refusals.unusable(refused, self._directory)

    async def _is_in_place(
        self, files: Files, connection: Connection, path: bytes, size: int, sha256: str
    ) -> bool:
        """Say whether an installed file is the one with this digest: samples would not prove it."""
        found = await files.lstat(path)
        if self._verify != "sha256" or found is None or not found.is_file or found.size != size:
            return False
        with suppress(NoDigest):
            return await proof.far_sha256(connection, path, size, self._clock) == sha256
        return False

    async def _lost(self, files: Files, refused: SftpRefused) -> bool:
        """Say whether a temporary is gone from a directory that is there."""
        if refused.status != packets.NO_SUCH_FILE:
            return False
        return await refusals.directory_error(files, self._directory) is None

    @asynccontextmanager
    async def _file_made(self, path: bytes) -> AsyncIterator[tuple[Files, Connection]]:
        """Give a session to make a file in; the file is removed if the block raises."""
        async with (
            self._session() as (files, connection),
            self._removed_on_error(files, connection, path),
        ):
            yield files, connection

    @asynccontextmanager
    async def _removed_on_error(
        self, files: Files, connection: Connection, temporary: bytes
    ) -> AsyncIterator[None]:
        """Remove a temporary if the block raises, unless there is no connection left to do it."""
        try:
            try:
                yield
            except SftpRefused as refused:
                # Told now: a disk that is full has room again without the temporary.
                raise await self._error(files, connection, refused) from refused
        except BaseException:
            if files.usable:
                with suppress(SftpRefused, DeliveryFailed, TimedOut):
                    await within(CLEAN_UP_SECONDS, self._clock, files.remove(temporary), _late)
            raise


def _late() -> TimedOut:
    return TimedOut("The removal of a temporary file took too long.")
