"""Hash the packs of a machine now and then, because a failing disk changes bytes without a trace.

A layer that is read is compared with its `diff_id`, but the data of packs is copied unread.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.build.converted import disk_errors
from shiftergw.build.pack_files import PackFiles, comparing, list_packs, remove_damaged_pack
from shiftergw.plumbing.file_groups import last_touch
from shiftergw.plumbing.locks import tried_file_lock
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.build.pack_places import PackPlaces
    from shiftergw.plumbing.threads import Threads

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

        A pack was hashed when it was made.
        """
        times = {
            files: last_touch([files.pack, files.scrub_mark])
            for place in self._packs.list_places()
            for files in list_packs(place)
        }
        return sorted((files for files in times if times[files] < before), key=times.__getitem__)

    async def _scrub_all(self, packs: list[PackFiles]) -> int:
        count = 0
        for files in packs:
            if await self._is_sound(files):
                await self._threads.run(_mark, files)
            else:
                count += await self._remove(files)
        return count

    async def _is_sound(self, files: PackFiles) -> bool:
        """Read a pack slowly; return whether it has its digests, or is gone."""
        comparison = _Comparison(comparing(files))
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


def _mark(files: PackFiles) -> None:
    """Note that a pack was hashed now. Blocks."""
    if files.exist():
        files.scrub_mark.touch(mode=0o600)
