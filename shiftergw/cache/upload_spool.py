"""Keep uploads as files: `ID.data` with the bytes, and `ID.json` with what is known of them.

The bytes of a chunk are synced before the JSON with the new offset is written, by rename. So the
offset in the JSON always counts bytes that survive a power cut, and a gateway that was killed
continues there. Bytes behind the offset are dropped.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.cache.upload_states import (
    data_path,
    files_in,
    list_uploads,
    locked_state,
    read_upload,
    remove_upload,
    spool_errors,
    touch_upload,
    write_state,
)
from shiftergw.errors import ConfigurationError, Unavailable
from shiftergw.model.uploads import UPLOAD_ID, UploadDeclaration, UserUpload
from shiftergw.plumbing.disk_errors import SkipUnreadable
from shiftergw.plumbing.files import (
    closed_on_error,
    free_space,
    private_directory,
)
from shiftergw.plumbing.locks import file_lock
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import UploadWriter

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

LOCK_SECONDS = 20.0
"""Seconds for which a gateway waits until another gateway has added its upload."""


class UploadFiles(Service):
    """The spool of uploads: a directory, which is made at the start, and closed to others."""

    def __init__(self, directory: Path, threads: Threads, clock: IReactorTime) -> None:
        """Keep uploads in `directory`; call the file system in `threads`."""
        self.setName("uploads")
        self._directory = directory
        self._threads = threads
        self._clock = clock

    def lock(self) -> AbstractAsyncContextManager[None]:
        """See the port."""
        return file_lock(
            self._directory / ".lock",
            self._threads,
            self._clock,
            limit=LOCK_SECONDS,
            late=lambda: Unavailable("Another gateway holds the lock of the uploads."),
        )

    def startService(self) -> Deferred[None]:
        """Fire when the directory is there; fail with `ConfigurationError`."""
        super().startService()
        return Deferred.fromCoroutine(self._threads.run(_prepare, self._directory))

    async def list(self) -> Sequence[UserUpload]:
        """See the port."""
        return await self._threads.run(list_uploads, self._directory)

    async def get(self, upload_id: str) -> UserUpload | None:
        """See the port."""
        return await self._threads.run(read_upload, self._directory, upload_id)

    async def add(self, declaration: UploadDeclaration, now: float) -> UserUpload:
        """See the port."""
        upload = UserUpload(secrets.token_hex(16), declaration, 0, now)
        await self._threads.run(_add, self._directory, upload)
        return upload

    async def open(self, upload_id: str) -> UploadWriter | None:
        """See the port."""

        def close(writer: UploadFile | None) -> None:
            if writer is not None:
                writer.close_now()

        return await self._threads.acquire(
            lambda: UploadFile.open(self._directory, upload_id, self._threads), close
        )

    async def read(self, upload_id: str, offset: int, size: int) -> bytes:
        """See the port."""
        return await self._threads.run(_read, self._directory, upload_id, offset, size)

    async def note_pull(
        self, upload_id: str, key: str, now: float, old_pulls: Collection[str] = ()
    ) -> bool:
        """See the port."""
        return await self._threads.run(_note_pull, self._directory, upload_id, key, now, old_pulls)

    async def touch(self, upload_id: str, now: float) -> UserUpload | None:
        """See the port."""
        return await self._threads.run(touch_upload, self._directory, upload_id, now)

    async def remove(self, upload_id: str, expected: UserUpload | None = None) -> bool:
        """See the port."""
        return await self._threads.run(remove_upload, self._directory, upload_id, expected)

    async def free_space(self) -> int:
        """See the port."""
        return await self._threads.run(_free_space, self._directory)

    async def sweep(self, before: float) -> int:
        """See the port."""
        return await self._threads.run(_sweep, self._directory, before)


class UploadFile:
    """An upload that is open for writing; its file is locked against all other writers."""

    def __init__(
        self, directory: Path, upload: UserUpload, descriptor: int, threads: Threads
    ) -> None:
        """Write to `descriptor`, which is at the offset of `upload`."""
        self._directory = directory
        self.upload = upload
        self._descriptor = descriptor
        self._threads = threads
        self._size = upload.offset

    @classmethod
    def open(cls, directory: Path, upload_id: str, threads: Threads) -> UploadFile | None:
        """Open and lock the file of an upload; see `UploadSpool.open`. Blocks."""
        if UPLOAD_ID.fullmatch(upload_id) is None:
            return None
        with spool_errors():
            try:
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(data_path(directory, upload_id), flags)
            except FileNotFoundError:
                return None
            with closed_on_error(descriptor):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    upload = None
                else:
                    upload = read_upload(directory, upload_id)
                if upload is not None:
                    # A disk that lost bytes in a crash may have fewer than the offset says.
                    upload = replace(upload, offset=min(upload.offset, _size_of(descriptor)))
                    os.ftruncate(descriptor, upload.offset)
                    os.lseek(descriptor, upload.offset, os.SEEK_SET)
                    return cls(directory, upload, descriptor, threads)
            os.close(descriptor)
        return None

    async def write(self, data: bytes) -> None:
        """See the port."""
        await self._threads.run(self._write, data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        with spool_errors():
            while rest:
                count = os.write(self._descriptor, rest)
                self._size += count
                rest = rest[count:]

    async def commit(self, now: float) -> UserUpload:
        """See the port."""
        return await self._threads.run(self._commit, now)

    def _commit(self, now: float) -> UserUpload:
        with spool_errors():
            os.fsync(self._descriptor)
        with locked_state(self._directory, self.upload.id), spool_errors():
            # Another process may have noted a pull, or removed the upload, meanwhile.
            current_state = read_upload(self._directory, self.upload.id)
            if current_state is None:
                raise Unavailable("The upload was removed while it was written.")
            self.upload = replace(current_state, offset=self._size, last_write=now)
            write_state(self._directory, self.upload)
        return self.upload

    async def close(self) -> None:
        """See the port."""
        await self._threads.release(self.close_now)

    def close_now(self) -> None:
        """Close the file, and so unlock it. Blocks."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _prepare(directory: Path) -> None:
    try:
        private_directory(directory)
    except OSError as error:
        raise ConfigurationError(
            f"UploadDirectory: {directory} cannot be made, or closed to others: {error.strerror}.",
            remedy="Make it a directory that belongs to the gateway's user, or name another one.",
        ) from error


def _add(directory: Path, upload: UserUpload) -> None:
    """Create the file of the bytes first: an upload exists once its JSON does."""
    with spool_errors():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(data_path(directory, upload.id), flags, 0o600))
        write_state(directory, upload)


def _read(directory: Path, upload_id: str, offset: int, size: int) -> bytes:
    with spool_errors():
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(data_path(directory, upload_id), flags)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


def _note_pull(
    directory: Path, upload_id: str, key: str, now: float, old_pulls: Collection[str]
) -> bool:
    if UPLOAD_ID.fullmatch(upload_id) is None:
        return False
    with locked_state(directory, upload_id), spool_errors():
        upload = read_upload(directory, upload_id)
        if upload is None:
            return False
        pulls = (*(pull for pull in upload.pulls if pull != key and pull not in old_pulls), key)
        write_state(directory, replace(upload, pulls=pulls, last_write=now))
    return True


def _sweep(directory: Path, before: float) -> int:
    """Remove bytes without a readable JSON, and temporary files of processes that were killed."""
    count = 0
    uploads = {upload.id for upload in list_uploads(directory)}
    with spool_errors():
        for path in files_in(directory, ""):
            with SkipUnreadable(path):
                if path.stem not in uploads and path.lstat().st_mtime < before:
                    path.unlink()
                    count += 1
    return count


def _free_space(directory: Path) -> int:
    with spool_errors():
        return free_space(directory)


def _size_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_size
