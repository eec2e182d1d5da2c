"""The image directory of a system on another machine."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from shiftergw.delivery import proof
from shiftergw.delivery.file_access import set_remote_access
from shiftergw.delivery.files import OpenFiles, file_prefix, small_file
from shiftergw.delivery.image_names import (
    check_installed_name,
    is_installed_name,
    name_of_temporary,
    probe_name,
    temporary_name,
)
from shiftergw.delivery.proof import NoDigest
from shiftergw.delivery.remote_installation import RemoteInstallation
from shiftergw.delivery.remote_sessions import RemoteSessions
from shiftergw.delivery.retries import FIRST_PAUSE, retry_request
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.delivery.stripes import Stripes
from shiftergw.delivery.upload import CONFIGURED_SAMPLES, Verify
from shiftergw.ports import DeltaSource, FileAccess, InstalledFile, Report, Verification
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.hosts import Hosts
    from shiftergw.plumbing.threads import Threads

IDLE_SECONDS = 30.0
"""Seconds after which a server that owes an answer counts as unavailable."""

_SMALL = 64 << 10
"""Bytes of the largest file that is read back to hash it: that is faster than a command."""

_TEST_CONTENT = b"shiftergw check\n"

P = ParamSpec("P")
T = TypeVar("T")


def _retry_once(
    method: Callable[Concatenate[RemoteDirectory, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[RemoteDirectory, P], Coroutine[Any, Any, T]]:
    """Decorate an idempotent method: repeat it as `retry_request` does if its session breaks."""

    @wraps(method)
    async def run(self: RemoteDirectory, /, *args: P.args, **kwargs: P.kwargs) -> T:
        session = self._sessions.shared_session
        return await retry_request(session, lambda: method(self, *args, **kwargs), self._clock)

    return run


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How files get into a remote image directory.

    `verify` is how a delivered file is compared, `idle_seconds` the longest wait for an answer,
    `open_files` the file protocol, `ost_count` as with `Stripes`, and `first_pause` the seconds
    before a broken delivery is retried.
    """

    verify: Verify = "sha256"
    idle_seconds: float = IDLE_SECONDS
    open_files: OpenFiles = SftpFiles.begin
    ost_count: int = 0
    first_pause: float = FIRST_PAUSE


_DEFAULTS = RemoteOptions()


class RemoteDirectory:
    """Implement the port `ImageDirectory` over a file protocol. Interrupted uploads are resumed."""

    def __init__(
        self,
        hosts: Hosts,
        directory: PurePosixPath,
        threads: Threads,
        clock: IReactorTime,
        options: RemoteOptions = _DEFAULTS,
    ) -> None:
        """Deliver into `directory`, which must exist; nothing is opened before the first use.

        All hosts see the same directory.
        """
        self._clock = clock
        self._options = options
        path = str(directory).encode("utf-8", "surrogateescape")
        self._sessions = RemoteSessions(
            hosts, path, clock, options.idle_seconds, options.open_files
        )
        self._installation = RemoteInstallation(
            self._sessions,
            options.verify,
            Stripes(options.ost_count),
            options.first_pause,
            threads,
            clock,
        )

    async def close(self) -> None:
        """See the port."""
        await self._sessions.shared_session.close()

    async def reach(self) -> None:
        """See the port: this class keeps no record of earlier failures."""

    @_retry_once
    async def probe(self, content: bytes) -> None:
        """See the port."""
        path = self._sessions.path_of(probe_name())
        async with self._sessions.create_file(path) as (files, _):
            await files.create(path, content)
            await files.remove(path)

    @_retry_once
    async def free_space(self) -> int:
        """Return the bytes that the account may still write; a large number if unknown."""
        async with self._sessions.use() as (files, _):
            try:
                return (await files.file_system(self._sessions.directory)).free_bytes
            except SftpRefused as refusal:
                if refusal.status not in packets.NOT_OFFERED:
                    raise
            await self._sessions.check_directory(files)
            return sys.maxsize

    @_retry_once
    async def shortcomings(self) -> Sequence[str]:
        """Return what makes deliveries to this system less safe, for the site's support."""
        async with self._sessions.use() as (files, _):
            return files.shortcomings

    @_retry_once
    async def test_verification(self) -> Verification:
        """Deliver and remove a small file; return how large files would be verified."""
        path = self._sessions.path_of(probe_name())
        if self._options.verify == "sample":
            return Verification("samples", CONFIGURED_SAMPLES)
        async with self._sessions.create_file(path) as (files, connection):
            await files.create(path, _TEST_CONTENT)
            try:
                size = len(_TEST_CONTENT)
                sha256 = await proof.remote_sha256(connection, path, size, self._clock)
            except NoDigest as error:
                detail = f" ({error.detail})" if error.detail else ""
                return Verification("samples", f"{error}{detail}")
            finally:
                await files.remove(path)
            if sha256 != hashlib.sha256(_TEST_CONTENT).hexdigest():
                raise proof.content_differs()
            return Verification("sha256")

    @_retry_once
    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file, or None; a symlink, or anything but a file, is ignored."""
        path = self._path(name)
        async with self._sessions.use() as (files, _):
            attributes = await files.lstat(path)
        if attributes is None or not attributes.is_file:
            return None
        return InstalledFile(name, attributes.size or 0, attributes.modified)

    async def install(
        self,
        source: Path,
        name: str,
        sha256: str,
        report: Report,
        delta: DeltaSource | None = None,
    ) -> Verification:
        """See the port. A partial file of an earlier delivery is resumed."""
        check_installed_name(name)
        if delta is not None:
            check_installed_name(delta.name)
        return await self._installation.install(source, name, sha256, report, delta)

    @_retry_once
    async def set_access(self, name: str, access: FileAccess) -> bool:
        """See the port."""
        path = self._path(name)
        async with self._sessions.use() as (files, connection):
            await set_remote_access(files, connection, path, access, self._clock)
        return True

    @_retry_once
    async def write(self, content: bytes, name: str) -> None:
        """See the port."""
        path = self._path(name)
        temporary = self._sessions.path_of(temporary_name(name))
        async with self._sessions.create_file(temporary) as (files, _):
            await files.create(temporary, content)
            await files.rename(temporary, path)

    @_retry_once
    async def read(self, name: str, limit: int) -> bytes | None:
        """See the port."""
        async with self._sessions.use() as (files, _):
            return await small_file(files, self._path(name), limit)

    @_retry_once
    async def head(self, name: str, size: int) -> bytes:
        """See the port."""
        async with self._sessions.use() as (files, _):
            return await file_prefix(files, self._path(name), size) or b""

    @_retry_once
    async def remove(self, name: str) -> None:
        """See the port."""
        path = self._path(name)
        async with self._sessions.use() as (files, _):
            await files.remove(path)

    @_retry_once
    async def list(self) -> list[InstalledFile]:
        """Return the installed images and metadata, sorted by name."""
        async with self._sessions.use() as (files, _):
            entries = await files.entries(self._sessions.directory, _has_installed_name)
        installed_files = (
            InstalledFile(name.decode(), attributes.size or 0, attributes.modified)
            for name, attributes in entries
            if attributes.is_file
        )
        return sorted(installed_files, key=lambda file: file.name)

    @_retry_once
    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file: computed on the system, or read back."""
        path = self._path(name)
        async with self._sessions.use() as (files, connection):
            attributes = await files.lstat(path)
            if attributes is None or not attributes.is_file or attributes.size is None:
                raise SftpRefused(packets.NO_SUCH_FILE, "")
            size = attributes.size
            if self._options.verify == "sha256" and size > _SMALL:
                with suppress(NoDigest):
                    return await proof.remote_sha256(connection, path, size, self._clock)
            digest = hashlib.sha256()
            await files.read_through(path, size, digest.update)
            return digest.hexdigest()

    @_retry_once
    async def sweep(self, before: float) -> int:
        """Remove temporaries that were last written before this time; return how many.

        Skip partial files of an upload that is running here: it may be about to resume them.
        """
        async with self._sessions.use() as (files, _):
            entries = await files.entries(self._sessions.directory, _has_temporary_name)
            names = [
                name.decode()
                for name, attributes in entries
                if attributes.modified and attributes.modified < before
            ]
            expired_names = [
                name
                for name in names
                if not self._installation.is_uploading(name_of_temporary(name))
            ]
            for name in expired_names:
                await files.remove(self._sessions.path_of(name))
        return len(expired_names)

    def _path(self, name: str) -> bytes:
        check_installed_name(name)
        return self._sessions.path_of(name)


def _has_installed_name(name: bytes) -> bool:
    return name.isascii() and is_installed_name(name.decode())


def _has_temporary_name(name: bytes) -> bool:
    return name.isascii() and name_of_temporary(name.decode()) is not None
