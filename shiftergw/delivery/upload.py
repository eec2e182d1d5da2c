"""Upload one converted file to a temporary on the system: resume it, send the rest, verify it.

What the system has in another image is copied there, if the result can be proven by its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from twisted.logger import Logger

from shiftergw.delivery import proof
from shiftergw.delivery.assembly import Assembly, path_beside
from shiftergw.delivery.delta import DeltaUnusable, copy_counter, segments_from
from shiftergw.delivery.proof import NoDigest
from shiftergw.delivery.source_file import source_errors
from shiftergw.errors import DeliveryFailed, TimedOut
from shiftergw.model.records import Progress
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.ports import Verification
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.delta import Delta, DeltaPlan
    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.delivery.retries import DeliveryRetries
    from shiftergw.delivery.source_file import SourceFile
    from shiftergw.delivery.stripes import Stripes
    from shiftergw.plumbing.channel import Connection

Verify = Literal["sha256", "sample"]
"""How a delivered file is compared: by `sha256sum` on the system, or by samples."""

CONFIGURED_SAMPLES = '"verify" is "sample"'
"""The reason for samples if the configuration asks for them."""

_TESTED_BYTES = 4096  # of the image to copy from, to learn whether the account computes digests

_log = Logger()


@dataclass(frozen=True, slots=True)
class Upload:
    """The upload of one file to the path `temporary`; `sha256` is the digest of the whole file.

    `stripes` lays out large files. `retries` gets the progress and the number of verified bytes.
    `delta` has the ranges that need not be sent.
    """

    source: SourceFile
    temporary: bytes
    sha256: str
    verify: Verify
    stripes: Stripes
    clock: IReactorTime
    retries: DeliveryRetries
    delta: Delta

    async def run(self, files: RemoteFiles, connection: Connection) -> Verification:
        """Upload the file and compare it; return how it was compared.

        A partial file on the system is resumed as far as it can be verified. Raises `SftpRefused`,
        and `DeliveryFailed`, also for a source that cannot be read.
        """
        with source_errors():
            if self.delta.plan is not None:
                doubt = await self._find_doubt(files, connection, self.delta.plan)
                if doubt:
                    self.delta.give_up(doubt)
            start = await self._verified_prefix(files, connection)
            self.retries.note_verified(start or 0)
            self.delta.begin_attempt(start or 0)
            if start:
                _log.info(
                    "a delivery resumes at byte {n} of {size}", n=start, size=self.source.size
                )
            plan = self.delta.plan
            if plan is not None:
                verification = await self._run_delta(files, connection, start, plan)
                if verification is not None:
                    return verification
                start = None  # nothing is kept of what was put together
            if self.delta.has_begun:
                await files.remove(path_beside(self.temporary))
            report = self._report_to(lambda _: 0)
            start = await self._lay_out(files, connection, start, report)
            await files.upload(self.temporary, self.source, start, report)
            with self._comparison(self.source.size):
                start_of_check = self.clock.seconds()
                return self._with_duration(await self._check(files, connection), start_of_check)

    async def _find_doubt(self, files: RemoteFiles, connection: Connection, plan: DeltaPlan) -> str:
        """Return why nothing can be copied from the other image, or "".

        It must have the right size and be readable, and the account must be able to compute the
        digest of a file.
        """
        try:
            attributes = await files.lstat(plan.path)
            if attributes is None or not attributes.is_file:
                return "the other image is not there"
            if attributes.size != plan.source_size:
                return "the other image has another size"
            await self._remote_sha256(connection, plan.path, _TESTED_BYTES, prefix=True)
        except (NoDigest, SftpRefused) as error:
            return str(error)
        except DeliveryFailed as error:
            # A file whose first bytes cannot be read in time, as on a broken disk, is no fault of
            # the connection.
            if isinstance(error, SystemUnavailable) or not files.usable:
                raise
            return f"{error} {error.detail}"
        return ""

    async def _run_delta(
        self, files: RemoteFiles, connection: Connection, start: int | None, plan: DeltaPlan
    ) -> Verification | None:
        """Put the file together and compare it; return None if the whole file must be sent."""
        begin = start or 0
        count = copy_counter(segments_from(plan.segments, begin))
        report = self._report_to(count)
        try:
            start = await self._lay_out(files, connection, start, report)
            verification = await self._assemble(files, connection, start, plan, report)
        except (DeltaUnusable, NoDigest, SftpRefused, TimedOut) as error:
            self.delta.give_up(str(error), has_begun=True)
            return None
        except DeliveryFailed as error:
            if files.usable or not isinstance(error, SystemUnavailable):
                self.delta.give_up(f"{error} {error.detail}", has_begun=True)
            if not files.usable:
                raise
            return None
        copied_bytes = count(self.source.size)
        self.delta.log_end(copied_bytes, self.source.size - begin - copied_bytes)
        return verification

    async def _assemble(
        self,
        files: RemoteFiles,
        connection: Connection,
        start: int | None,
        plan: DeltaPlan,
        report: Callable[[int], None],
    ) -> Verification:
        """Put the file together; raise `DeltaUnusable` unless it has the right digest."""
        path, source = self.temporary, self.source
        if files.copying is not None:
            await files.copying.assemble(path, source, start, plan, report)
        else:
            assembly = Assembly(files, connection, self.clock, path, source, plan)
            await assembly.run(start, report)
        with self._comparison(source.size):
            start_of_check = self.clock.seconds()
            if await self._remote_sha256(connection, path, source.size) != self.sha256:
                raise DeltaUnusable("the file that was put together has another digest")
        return self._with_duration(Verification("sha256"), start_of_check)

    async def _lay_out(
        self,
        files: RemoteFiles,
        connection: Connection,
        start: int | None,
        report: Callable[[int], None],
    ) -> int | None:
        """Report where an upload starts; create a large new file with the layout of the system."""
        if start:
            report(start)
        elif self.stripes.applies_to(self.source.size) and await self.stripes.make_remote_file(
            files, connection, self.temporary, self.clock
        ):
            return 0
        return start

    @contextmanager
    def _comparison(self, size: int) -> Iterator[None]:
        """Report the comparison of `size` bytes on the system, during the block.

        The program there says nothing until it has read them all.
        """
        self.retries.report(Progress("compare", 0, size))
        yield
        self.retries.report(Progress("compare", size, size))

    def _report_to(self, count_copied: Callable[[int], int]) -> Callable[[int], None]:
        """Return a function that reports how many bytes the system has."""

        def report(done: int) -> None:
            size = self.source.size
            self.retries.report(Progress("deliver", done, size, count_copied(done)))

        return report

    async def _verified_prefix(self, files: RemoteFiles, connection: Connection) -> int | None:
        """Return the length of the verified part on the system, or None to start from scratch."""
        attributes = await files.lstat(self.temporary)
        if attributes is None or not attributes.is_file or not attributes.size:
            return None
        # Writes may be done out of order, so a broken upload may have holes near its end, even if
        # its last byte has arrived.
        tail = files.unreliable_tail
        if self.delta.plan is not None and files.copying is not None:
            tail = files.copying.copy_tail
        size = attributes.size - tail
        if size <= 0 or attributes.size > self.source.size:
            return None
        digest = await self._prefix_digest(files, connection, size)
        return size if digest == await self.source.sha256(size) else None

    async def _prefix_digest(self, files: RemoteFiles, connection: Connection, size: int) -> str:
        """Return the digest of the first bytes on the system; read them back if it computes none.

        Samples do not suffice: after a power cut there may be holes anywhere.
        """
        try:
            return await self._remote_sha256(connection, self.temporary, size, prefix=True)
        except NoDigest as reason:
            _log.info(
                "a partial file of {size} bytes is read back: {reason}", size=size, reason=reason
            )
        digest = hashlib.sha256()
        await files.read_through(self.temporary, size, digest.update)
        return digest.hexdigest()

    def _with_duration(self, verification: Verification, start: float) -> Verification:
        """Return a verification that began at the time `start`, with its duration."""
        seconds = max(0.0, self.clock.seconds() - start)  # the clock may be set back
        return replace(verification, seconds=seconds)

    async def _check(self, files: RemoteFiles, connection: Connection) -> Verification:
        """Return how the uploaded file was verified; raise `DeliveryFailed` if it is wrong."""
        size = self.source.size
        try:
            if await self._remote_sha256(connection, self.temporary, size) != self.sha256:
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
        self, connection: Connection, path: bytes, size: int, *, prefix: bool = False
    ) -> str:
        if self.verify == "sample":
            raise NoDigest(CONFIGURED_SAMPLES)
        return await proof.remote_sha256(connection, path, size, self.clock, prefix=prefix)
