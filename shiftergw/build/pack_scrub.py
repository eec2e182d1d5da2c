"""Hash the packs of a machine now and then, because a failing disk changes bytes without a trace.

A layer that is read is compared with its `diff_id`, but the data of packs is copied unread.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.build import pack_sidecar
from shiftergw.build.converted import disk_errors
from shiftergw.build.pack_files import READ_ERRORS, PackFiles, is_damage, remove_damaged_pack
from shiftergw.build.pack_measures import measuring
from shiftergw.plumbing.disk_errors import DISK_FULL
from shiftergw.plumbing.exhaustion import is_exhaustion
from shiftergw.plumbing.file_groups import last_touch
from shiftergw.plumbing.locks import tried_file_lock
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.build.pack_places import PackPlaces
    from shiftergw.plumbing.threads import Threads

_log = Logger()

BYTES_PER_SECOND = 20 << 20
"""The speed at which packs are read: a terabyte takes 15 hours, and pulls do not notice."""


@dataclass(slots=True)
class _Comparison:
    """The comparison of one pack with its digests."""

    steps: Generator[int, None, bool]
    is_sound: bool = field(default=False, init=False)

    def step(self) -> int:
        """Read the next piece; return its bytes, or 0 once `is_sound` is known. Blocks."""
        try:
            return next(self.steps)
        except StopIteration as end:
            self.is_sound = end.value
        except FileNotFoundError:
            self.is_sound = True  # it was removed meanwhile
        return 0


class PackScrub:
    """Keeps the port `Scrubbable` for the packs of layers."""

    def __init__(
        self, packs: PackPlaces, threads: Threads, clock: IReactorTime, lock: Path
    ) -> None:
        """Read `packs` in `threads`, while this process holds the file lock `lock`."""
        self._packs = packs
        self._threads = threads
        self._clock = clock
        self._lock = lock
        self._failure_times: dict[Path, float] = {}
        """When the reading of a pack failed for another reason than damage."""

    async def scrub(self, before: float) -> int:
        """See the port."""
        with disk_errors():
            packs = await self._threads.run(self._list_due, before)
            if not packs:
                return 0
            async with tried_file_lock(self._lock, self._threads) as is_alone:
                return await self._scrub_all(packs) if is_alone else 0

    def _list_due(self, before: float) -> list[PackFiles]:
        """Return the packs that were last hashed before this time, the longest ago first.

        A pack was hashed when it was made. An attempt that failed counts, too: a pack that cannot
        be read is tried as seldom as others are hashed, and does not come first each time.
        """
        due_times: dict[PackFiles, float] = {}
        for files in self._packs.list_packs():
            if self._failure_times.get(files.pack, 0.0) >= before:
                continue
            try:
                last_time = last_touch([files.pack, files.scrub_mark])
                exists = files.exist()
            except OSError as error:
                self._note_failure(files, error)
                continue
            if exists and last_time < before:
                due_times[files] = max(last_time, self._failure_times.get(files.pack, 0.0))
        return sorted(due_times, key=due_times.__getitem__)

    async def _scrub_all(self, packs: list[PackFiles]) -> int:
        """Hash these packs; return how many damaged ones were removed.

        One that cannot be read keeps no other from it. An error that is not about one file (a full
        disk, a lack of descriptors) ends the round.
        """
        count = 0
        for files in packs:
            try:
                count += await self._scrub_pack(files)
            except OSError as error:
                self._note_failure(files, error)
            else:
                self._failure_times.pop(files.pack, None)
        return count

    def _note_failure(self, files: PackFiles, error: OSError) -> None:
        """Remember and log a failure to read a pack; raise one that is not about a file."""
        if is_exhaustion(error) or error.errno in DISK_FULL:
            raise error
        self._failure_times[files.pack] = self._clock.seconds()
        _log.warn(
            "the pack {path} could not be read or removed ({problem}), so nobody knows"
            " whether it is damaged: check the permissions and the disk",
            path=str(files.pack),
            problem=str(error),
        )

    async def _scrub_pack(self, files: PackFiles) -> bool:
        """Hash a pack; return whether it was damaged, and is removed."""
        if await self._is_sound(files):
            await self._threads.run(_mark, files)
            return False
        return await self._remove(files)

    async def _is_sound(self, files: PackFiles) -> bool:
        """Read a pack slowly; return whether it has its digests, or is gone."""
        comparison = _Comparison(_comparing(files))
        try:
            while size := await self._threads.run(comparison.step):
                await pause(size / BYTES_PER_SECOND, self._clock)
        finally:
            await self._threads.release(comparison.steps.close)
        return comparison.is_sound

    async def _remove(self, files: PackFiles) -> bool:
        """Remove a pack whose bytes are damaged; return whether it is gone."""
        stop = Event()
        async with tried_file_lock(files.lock, self._threads) as is_alone:
            if not is_alone:
                return False  # a process makes it again, or removes it
            return await self._threads.run_until(stop.set, remove_damaged_pack, files, stop)


def _comparing(files: PackFiles) -> Generator[int, None, bool]:
    """Compare a pack with the digests of its sidecar, piece by piece; yield the bytes of each.

    Returns whether they are the same and the sidecar is sound. Raises `FileNotFoundError` if the
    pack is gone, and `OSError` for a failure that is not damage. The bytes are read from the disk
    and not from the page cache, which may have the right bytes although the disk does not. They do
    not stay in the page cache either.
    """
    try:
        head = pack_sidecar.read_head(files.sidecar)
        yield files.sidecar.stat().st_size
        with files.pack.open("rb") as file:
            descriptor = file.fileno()
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            present = yield from measuring(descriptor, head.contents)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return replace(present, mtime_ns=head.measures.mtime_ns) == head.measures
    except READ_ERRORS as error:
        if not is_damage(error):
            raise
        return False


def _mark(files: PackFiles) -> None:
    """Note that a pack was hashed now. Blocks."""
    if files.exist():
        files.scrub_mark.touch(mode=0o600)
