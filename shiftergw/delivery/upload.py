"""One converted file on its way to a system: the part that is there, the rest of it, the proof."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from twisted.logger import Logger

from shiftergw.delivery import proof
from shiftergw.delivery.proof import NoDigest
from shiftergw.errors import DeliveryFailed
from shiftergw.model import Progress
from shiftergw.ports import Verification

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import Files
    from shiftergw.delivery.reading import SourceFile
    from shiftergw.delivery.stripes import Stripes
    from shiftergw.plumbing.channel import Connection
    from shiftergw.ports import Report

Verify = Literal["sha256", "sample"]
"""How a file is checked there: by `sha256sum`, or by pieces of it."""

CHOSEN = '"verify" is "sample"'
"""The reason for samples where the configuration asks for them."""

_log = Logger()


@dataclass(frozen=True, slots=True)
class Upload:
    """One file to be brought to `temporary`; `sha256` is that of the whole.

    `found` is told how much of it lies there, verified, before the rest goes; `stripes` are those
    of its directory.
    """

    source: SourceFile
    temporary: bytes
    sha256: str
    verify: Verify
    clock: IReactorTime
    report: Report
    found: Callable[[int], None]
    stripes: Stripes

    async def run(self, files: Files, connection: Connection) -> Verification:
        """Upload the file and compare it; return how it was compared.

        A part that lies on the system is resumed as far as it is verified. Raises `SftpRefused` and
        `DeliveryFailed`, also for a source that cannot be read.
        """
        with reading():
            start = await self._part(files, connection)
            self.found(start or 0)
            if start:
                _log.info("a delivery goes on at {n} of {size}", n=start, size=self.source.size)
                self._tell(start)
            elif self.stripes.wanted(self.source.size) and await self.stripes.make_there(
                files, connection, self.temporary, self.clock
            ):
                start = 0
            await files.upload(self.temporary, self.source, start, self._tell)
            return await self._check(files, connection)

    def _tell(self, done: int) -> None:
        self.report(Progress("deliver", done, self.source.size))

    async def _part(self, files: Files, connection: Connection) -> int | None:
        """Return the length of the verified part on the system, or None to begin anew."""
        found = await files.lstat(self.temporary)
        if found is None or not found.is_file or not found.size:
            return None
        # Writes under way when a connection broke may have left a hole, also in a file that has
        # its last byte: some of them overtake others.
        size = found.size - files.reach
        if size <= 0 or found.size > self.source.size:
            return None
        digest = await self._digest_of_part(files, connection, size)
        return size if digest == await self.source.sha256(size) else None

    async def _digest_of_part(self, files: Files, connection: Connection, size: int) -> str:
        """Return the digest of the first bytes on the system; read them back if it makes none.

        Samples do not suffice: after a power cut there may be holes anywhere.
        """
        try:
            return await self._far_sha256(connection, size, prefix=True)
        except NoDigest as reason:
            _log.info("a part of {size} bytes is read back: {reason}", size=size, reason=reason)
        digest = hashlib.sha256()
        await files.read_through(self.temporary, size, digest.update)
        return digest.hexdigest()

    async def _check(self, files: Files, connection: Connection) -> Verification:
        """Raise `DeliveryFailed` unless the file there is the one that was promised."""
        size = self.source.size
        try:
            if await self._far_sha256(connection, size) != self.sha256:
                raise proof.differs()
            return Verification("sha256")
        except NoDigest as error:
            reason, detail = str(error), error.detail
        if await self.source.sha256(size) != self.sha256:
            raise DeliveryFailed("The converted file changed before it was delivered.")
        if not await proof.same_samples(files, self.temporary, self.source, size):
            raise proof.differs()
        if size <= proof.SAMPLED:
            return Verification("read-back", reason)
        name = self.temporary.rpartition(b"/")[2].partition(b".partial.")[0].decode()
        _log.warn(
            "{name} was checked by its size and samples only: {reason}. {detail}",
            name=name,
            reason=reason,
            detail=detail,
        )
        return Verification("samples", reason)

    async def _far_sha256(self, connection: Connection, size: int, *, prefix: bool = False) -> str:
        if self.verify == "sample":
            raise NoDigest(CHOSEN)
        return await proof.far_sha256(connection, self.temporary, size, self.clock, prefix=prefix)


@contextmanager
def reading() -> Iterator[None]:
    """Say what went wrong with the file on this machine."""
    try:
        yield
    except OSError as error:
        raise DeliveryFailed(
            f"The converted file cannot be read: {error.strerror}.", detail=str(error)
        ) from error
