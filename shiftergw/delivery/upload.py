"""Upload one converted file to a temporary on the system: resume it, send the rest, verify it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from twisted.logger import Logger

from shiftergw.delivery import proof
from shiftergw.delivery.proof import NoDigest
from shiftergw.delivery.source_file import source_errors
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.ports import Verification

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.delivery.retries import DeliveryRetries
    from shiftergw.delivery.source_file import SourceFile
    from shiftergw.delivery.stripes import Stripes
    from shiftergw.plumbing.channel import Connection

Verify = Literal["sha256", "sample"]
"""How a delivered file is compared: by `sha256sum` on the system, or by samples."""

CONFIGURED_SAMPLES = '"verify" is "sample"'
"""The reason for samples if the configuration asks for them."""

_log = Logger()


@dataclass(frozen=True, slots=True)
class Upload:
    """The upload of one file to the path `temporary`; `sha256` is the digest of the whole file.

    `stripes` lays out large files. `retries` gets the progress and the number of verified bytes.
    """

    source: SourceFile
    temporary: bytes
    sha256: str
    verify: Verify
    stripes: Stripes
    clock: IReactorTime
    retries: DeliveryRetries

    async def run(self, files: RemoteFiles, connection: Connection) -> Verification:
        """Upload the file and compare it; return how it was compared.

        A partial file on the system is resumed as far as it can be verified. Raises `SftpRefused`,
        and `DeliveryFailed`, also for a source that cannot be read.
        """
        size = self.source.size
        with source_errors():
            start = await self._verified_prefix(files, connection)
            self.retries.note_verified(start or 0)
            if start:
                _log.info("a delivery resumes at byte {n} of {size}", n=start, size=size)
                self._report(start)
            elif self.stripes.applies_to(size) and await self.stripes.make_remote_file(
                files, connection, self.temporary, self.clock
            ):
                start = 0
            await files.upload(self.temporary, self.source, start, self._report)
            return await self._check(files, connection)

    def _report(self, done: int) -> None:
        self.retries.report(Progress("deliver", done, self.source.size))

    async def _verified_prefix(self, files: RemoteFiles, connection: Connection) -> int | None:
        """Return the length of the verified part on the system, or None to start from scratch."""
        attributes = await files.lstat(self.temporary)
        if attributes is None or not attributes.is_file or not attributes.size:
            return None
        # Writes may be done out of order, so a broken upload may have holes near its end, even if
        # its last byte has arrived.
        size = attributes.size - files.unreliable_tail
        if size <= 0 or attributes.size > self.source.size:
            return None
        digest = await self._prefix_digest(files, connection, size)
        return size if digest == await self.source.sha256(size) else None

    async def _prefix_digest(self, files: RemoteFiles, connection: Connection, size: int) -> str:
        """Return the digest of the first bytes on the system; read them back if it computes none.

        Samples do not suffice: after a power cut there may be holes anywhere.
        """
        try:
            return await self._remote_sha256(connection, size, prefix=True)
        except NoDigest as reason:
            _log.info(
                "a partial file of {size} bytes is read back: {reason}", size=size, reason=reason
            )
        digest = hashlib.sha256()
        await files.read_through(self.temporary, size, digest.update)
        return digest.hexdigest()

    async def _check(self, files: RemoteFiles, connection: Connection) -> Verification:
        """Return how the uploaded file was verified; raise `DeliveryFailed` if it is wrong."""
        size = self.source.size
        try:
            if await self._remote_sha256(connection, size) != self.sha256:
                raise proof.content_differs()
            return Verification("sha256")
        except NoDigest as error:
            reason, detail = str(error), error.detail
        if await self.source.sha256(size) != self.sha256:
            raise DeliveryFailed("The converted file changed before it was delivered.")
        if not await proof.has_same_samples(files, self.temporary, self.source, size):
            raise proof.content_differs()
        if size <= proof.SAMPLE_BYTES:
            return Verification("read-back", reason)
        name = self.temporary.rpartition(b"/")[2].partition(b".partial.")[0].decode()
        _log.warn(
            "{name} was checked by its size and samples only: {reason}. {detail}",
            name=name,
            reason=reason,
            detail=detail,
        )
        return Verification("samples", reason)

    async def _remote_sha256(
        self, connection: Connection, size: int, *, prefix: bool = False
    ) -> str:
        if self.verify == "sample":
            raise NoDigest(CONFIGURED_SAMPLES)
        return await proof.remote_sha256(
            connection, self.temporary, size, self.clock, prefix=prefix
        )
