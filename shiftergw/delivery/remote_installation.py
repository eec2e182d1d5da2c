"""Install converted files in the image directory of a system on another machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import DeferredLock

from shiftergw.delivery import proof, refusals
from shiftergw.delivery.delta import Delta
from shiftergw.delivery.image_names import temporary_name
from shiftergw.delivery.proof import NoDigest
from shiftergw.delivery.retries import DeliveryRetries
from shiftergw.delivery.source_file import SourceFile, source_errors
from shiftergw.delivery.upload import Upload, Verify
from shiftergw.ports import DeltaSource, Report, Verification
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.delivery.remote_sessions import RemoteSessions
    from shiftergw.delivery.stripes import Stripes
    from shiftergw.plumbing.channel import Connection
    from shiftergw.plumbing.threads import Threads


class RemoteInstallation:
    """Uploads files and renames them. Interrupted uploads are resumed.

    The temporary of an image is named after its content, so each later delivery of the same file
    finds it.
    """

    def __init__(
        self,
        sessions: RemoteSessions,
        verify: Verify,
        stripes: Stripes,
        first_pause: float,
        threads: Threads,
        clock: IReactorTime,
    ) -> None:
        """Compare files as `verify` says; wait `first_pause` seconds before the first retry."""
        self._sessions = sessions
        self._verify: Verify = verify
        self._stripes = stripes
        self._first_pause = first_pause
        self._threads = threads
        self._clock = clock
        self._upload_locks: dict[str, DeferredLock] = {}

    def is_uploading(self, name: str | None) -> bool:
        """Return whether a file is on its way to this name, or waits for that."""
        return name in self._upload_locks

    async def install(
        self,
        source: Path,
        name: str,
        sha256: str,
        report: Report,
        delta_source: DeltaSource | None,
    ) -> Verification:
        """Install a copy of `source` as the port promises."""
        async with self._upload_lock(name):
            with source_errors():
                file = await SourceFile.open(source, self._threads)
            async with file.closed_at_end():
                retries = DeliveryRetries(
                    self._sessions.shared_session, self._clock, report, self._first_pause
                )
                temporary = self._sessions.path_of(temporary_name(name, sha256[:16]))
                delta = Delta(name, delta_source, self._sessions.path_of, file.size)
                upload = Upload(
                    file,
                    temporary,
                    sha256,
                    self._verify,
                    self._stripes,
                    self._clock,
                    retries,
                    delta,
                )
                return await self._deliver(upload, name, retries)

    async def _deliver(self, upload: Upload, name: str, retries: DeliveryRetries) -> Verification:
        """Upload a file, rename it to `name`, and retry both while there is progress."""
        path = self._sessions.path_of(name)
        verification: Verification | None = None

        async def attempt() -> Verification:
            nonlocal verification
            async with self._sessions.create_file(upload.temporary) as (files, connection):
                # The connection may have broken after the rename and before its reply.
                if verification is not None and await self._is_installed(
                    files, connection, path, upload
                ):
                    return Verification("sha256")
                try:
                    verification = await upload.run(files, connection)
                    await files.rename(upload.temporary, path)
                except SftpRefused as refusal:
                    if await self._sessions.is_swept(files, refusal):
                        raise refusals.temporary_swept(refusal) from refusal
                    raise
            return verification

        return await retries.run(attempt)

    async def _is_installed(
        self, files: RemoteFiles, connection: Connection, path: bytes, upload: Upload
    ) -> bool:
        """Return whether the installed file has the digest of the upload; samples prove nothing."""
        attributes = await files.lstat(path)
        if self._verify != "sha256" or attributes is None or not attributes.is_file:
            return False
        size = upload.source.size
        if attributes.size != size:
            return False
        with suppress(NoDigest):
            sha256 = await proof.remote_sha256(connection, path, size, self._clock)
            return sha256 == upload.sha256
        return False

    @asynccontextmanager
    async def _upload_lock(self, name: str) -> AsyncIterator[None]:
        """Allow one upload of a name at a time: they would share a temporary."""
        lock = self._upload_locks.setdefault(name, DeferredLock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked and not lock.waiting:
                self._upload_locks.pop(name, None)
