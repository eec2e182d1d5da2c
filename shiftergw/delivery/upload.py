"""One converted file on its way to a system: the part that is there, the rest of it, the proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from twisted.logger import Logger

from shiftergw.delivery import proof
from shiftergw.delivery.outgoing import REACH
from shiftergw.errors import DeliveryFailed
from shiftergw.model import Progress

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.channel import Connection
    from shiftergw.delivery.files import Files
    from shiftergw.delivery.reading import SourceFile
    from shiftergw.delivery.stripes import Stripes
    from shiftergw.ports import Report

Verify = Literal["sha256", "sample"]
"""How a file is checked there: by `sha256sum`, or by pieces of it."""

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

    async def run(self, files: Files, connection: Connection) -> None:
        """Return when the whole file lies there, proven; what lies there already is gone on with.

        Raises `Refused` and `DeliveryFailed`, also for a source that cannot be read.
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
            await self._check(files, connection)

    def _tell(self, done: int) -> None:
        self.report(Progress("deliver", done, self.source.size))

    async def _part(self, files: Files, connection: Connection) -> int | None:
        """Return how much of the file lies there, looked through, or None to begin anew."""
        found = await files.lstat(self.temporary)
        whole = self.source.size
        if found is None or not found.is_file or not found.size or found.size > whole:
            return None
        # Writes under way when a connection broke may have left a hole, also in a file that has
        # its last byte: some of them overtake others.
        size = found.size - files.reach
        if self.verify == "sha256" and size > 0:
            told = await proof.far_sha256(connection, self.temporary, size, self.clock, prefix=True)
            if told is not None:
                return size if told == await self.source.sha256(size) else None
        size = found.size - REACH  # no sample need hit a hole, and it may be another protocol's
        if size <= 0:
            return None
        same = await proof.same_samples(files, self.temporary, self.source, size)
        return size if same else None

    async def _check(self, files: Files, connection: Connection) -> None:
        """Raise `DeliveryFailed` unless the file there is the one that was promised."""
        size = self.source.size
        if self.verify == "sha256":
            told = await proof.far_sha256(connection, self.temporary, size, self.clock)
            if told is not None:
                if told != self.sha256:
                    raise proof.differs()
                return
        if await self.source.sha256(size) != self.sha256:
            raise DeliveryFailed("The converted file changed before it was delivered.")
        if not await proof.same_samples(files, self.temporary, self.source, size):
            raise proof.differs()
        _log.info("a delivered file was checked by its size and samples of it only")


@contextmanager
def reading() -> Iterator[None]:
    """Say what went wrong with the file on this machine."""
    try:
        yield
    except OSError as error:
        raise DeliveryFailed(
            f"The converted file cannot be read: {error.strerror}.", detail=str(error)
        ) from error
