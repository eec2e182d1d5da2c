"""Make room on a disk: remove unused files of several kinds, in one order for all of them.

Redundant files go first, then those that were last used longest ago. Files in use stay. All methods
block: they run in threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shiftergw.plumbing.files import free_space, nearest_existing, total_space

RESERVE = 50
"""Files are removed until 1/50 of the disk is free beside a file that grows."""


@dataclass(frozen=True, slots=True)
class RemovableFiles:
    """Files that are removed together: their main file, their bytes, and the time of the last use.

    `remove` removes them unless they are in use, and returns whether it did. `is_redundant` tells
    that other files which stay can replace them.
    """

    main: Path
    size: int
    use_time: float
    remove: Callable[[], bool]
    is_redundant: bool = False


class FileKind(Protocol):
    """Files of one kind, in a directory or below it."""

    @property
    def directory(self) -> Path:
        """Return the directory, which need not exist."""
        ...

    def list_removable(self) -> Sequence[RemovableFiles]:
        """Return all files of this kind, also those that are in use."""
        ...


def _note_nothing(_kind: int, _size: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class DiskBudget:
    """The files of several kinds that make room for each other.

    Files on another disk than the directory that needs room are neither counted nor removed.
    `note_removal` gets the place in `kinds` and the bytes of files that were removed, in the thread
    that has removed them.
    """

    kinds: tuple[FileKind, ...]
    note_removal: Callable[[int, int], object] = _note_nothing

    def room(
        self, directory: Path, but: AbstractSet[Path] = frozenset(), enough: float = math.inf
    ) -> int:
        """Return the free bytes of a directory's disk plus the bytes of all files on it.

        Files in use are counted, too; files whose main file is in `but` are not. If the free bytes
        alone are `enough`, no files are counted: there may be many.
        """
        disk = nearest_existing(directory)
        free = free_space(disk)
        if free >= enough:
            return free
        return free + sum(files.size for _, files in self._files_on_disk(disk, but))

    def make_room(
        self,
        directory: Path,
        size: int,
        but: AbstractSet[Path] = frozenset(),
        *,
        is_full: bool = False,
        is_estimate: bool = False,
    ) -> bool:
        """Remove files until `size` bytes are free on a directory's disk.

        Files whose main file is in `but` stay. If all others together would not suffice, nothing is
        removed, unless `size` is an estimate, which may be too large. With `is_full` only the size
        of removed files counts as free: a write has failed, perhaps by a quota that `statvfs` does
        not show. Returns whether anything was removed.
        """
        disk, freed_size = nearest_existing(directory), 0

        def free() -> int:
            return freed_size if is_full else free_space(disk)

        if free() >= size:
            return False
        candidates = sorted(
            self._files_on_disk(disk, but),
            key=lambda candidate: (not candidate[1].is_redundant, candidate[1].use_time),
        )
        if not is_estimate and free() + sum(files.size for _, files in candidates) < size:
            return False
        for kind, files in candidates:
            if free() >= size:
                break
            if files.remove():
                freed_size += files.size
                self.note_removal(kind, files.size)
        return freed_size > 0

    def make_room_for_growth(
        self, directory: Path, size: int, but: AbstractSet[Path], *, is_full: bool
    ) -> bool:
        """Remove unused files before `size` bytes are added to a file; see `make_room`.

        A fiftieth of the disk stays free as well if possible: other programs write there, too.
        """
        disk = nearest_existing(directory)
        reserve = total_space(disk) // RESERVE
        if not is_full and free_space(disk) >= size + reserve:
            return False
        return self.make_room(disk, size + reserve, but, is_full=is_full) or self.make_room(
            disk, size, but, is_full=is_full
        )

    def _files_on_disk(
        self, disk: Path, but: AbstractSet[Path]
    ) -> Iterator[tuple[int, RemovableFiles]]:
        """Yield files with the place of their kind in `kinds`."""
        device = disk.stat().st_dev
        for number, kind in enumerate(self.kinds):
            if nearest_existing(kind.directory).stat().st_dev == device:
                for files in kind.list_removable():
                    if files.main not in but:
                        yield number, files
