"""Sessions with a system for work in its image directory, with refusals turned into errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from shiftergw.delivery import refusals
from shiftergw.delivery.image_names import probe_name
from shiftergw.delivery.shared_session import SharedSession
from shiftergw.errors import DeliveryFailed, NoSpace, TimedOut
from shiftergw.plumbing.timing import within
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import OpenFiles, RemoteFiles
    from shiftergw.delivery.hosts import Hosts
    from shiftergw.plumbing.channel import Connection

CLEAN_UP_SECONDS = 15.0
"""Seconds that the removal of a temporary may take."""


class RemoteSessions:
    """Open sessions with a host that has the image directory; turn its refusals into errors.

    A host of the system that lacks the directory is not used: not every host may have mounted it.
    """

    def __init__(
        self,
        hosts: Hosts,
        directory: bytes,
        clock: IReactorTime,
        idle_seconds: float,
        open_files: OpenFiles,
    ) -> None:
        """Use `directory` on these hosts; nothing is opened before the first use."""
        self.directory = directory
        self._clock = clock
        self._open_files = open_files
        self.shared_session = SharedSession(hosts, clock, idle_seconds, open_files=self._open)

    def path_of(self, name: str) -> bytes:
        """Return the path of a file in the image directory."""
        return self.directory + b"/" + name.encode()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[tuple[RemoteFiles, Connection]]:
        """Yield a session; refusals in the block become `DeliveryFailed` or `NoSpace`."""
        async with self.shared_session.use() as (files, connection):
            try:
                yield files, connection
            except SftpRefused as refusal:
                raise await self._error_of(files, connection, refusal) from refusal

    @asynccontextmanager
    async def create_file(self, path: bytes) -> AsyncIterator[tuple[RemoteFiles, Connection]]:
        """Yield a session in which the block creates the file `path`.

        If the block raises, the file is removed. If the session broke, the file stays: a sweep
        removes it, or a later delivery resumes it.
        """
        async with self.use() as (files, connection):
            try:
                try:
                    yield files, connection
                except SftpRefused as refusal:
                    # Before the removal of the file, which would free space on a full disk.
                    raise await self._error_of(files, connection, refusal) from refusal
            except BaseException:
                if files.usable:
                    with suppress(SftpRefused, DeliveryFailed, TimedOut):
                        removal = files.remove(path)
                        await within(CLEAN_UP_SECONDS, self._clock, removal, _removal_timed_out)
                raise

    async def check_directory(self, files: RemoteFiles) -> None:
        """Raise `DeliveryFailed` if the directory does not exist or cannot be searched."""
        error = await refusals.directory_error(files, self.directory)
        if error is not None:
            raise error

    async def is_swept(self, files: RemoteFiles, refusal: SftpRefused) -> bool:
        """Return whether a request was refused because its file, not the directory, is gone."""
        if refusal.status != packets.NO_SUCH_FILE:
            return False
        return await refusals.directory_error(files, self.directory) is None

    async def _open(
        self, connection: Connection, clock: IReactorTime, idle_seconds: float
    ) -> RemoteFiles:
        """Open a session; raise `DeliveryFailed` if this host lacks the directory."""
        files = await self._open_files(connection, clock, idle_seconds)
        try:
            await self.check_directory(files)
        except BaseException:
            files.close()
            raise
        return files

    async def _error_of(
        self, files: RemoteFiles, connection: Connection, refusal: SftpRefused
    ) -> DeliveryFailed | NoSpace:
        """Return the error for a refusal; end the session if its host has lost the directory.

        The next session may then be with a host that has it.
        """

        async def test() -> SftpRefused | None:
            path = self.path_of(probe_name())
            return await refusals.write_test(connection, self._clock, path)

        try:
            error = await refusals.directory_error(files, self.directory)
            if error is not None:
                files.close()
                return error
            return await refusals.explain(files, refusal, self.directory, test)
        except DeliveryFailed:
            return refusals.unusable(refusal, self.directory)


def _removal_timed_out() -> TimedOut:
    return TimedOut("The removal of a temporary file took too long.")
