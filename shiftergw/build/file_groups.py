"""The groups of files that a build leaves for the next ones, and the removal of unused groups.

A group has a main file, a lock, and other files, whose names share a base. A process that makes or
removes the group holds the lock; one that uses the main file holds a shared `flock` on it. When a
process dies, the kernel releases both. All methods block: they run in threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from shiftergw.plumbing.files import free_space, nearest_existing, sync_directory
from shiftergw.plumbing.locks import remove_unshared, tried_lock


@dataclass(frozen=True, slots=True)
class FileGroups:
    """The groups of one kind of files in a directory.

    `base` matches the names without their last suffix. `main` is the suffix of the main file, and
    `companions` are those of the other files whose times tell the last use. All suffixes begin with
    a dot.
    """

    directory: Path
    base: re.Pattern[str]
    main: str
    companions: tuple[str, ...]

    def sweep(self, before: float) -> int:
        """Remove each group whose last touch was before this time; return their number."""
        return sum(
            self.remove(base, group, before)
            for base, group in self.by_base().items()
            if last_touch(group) < before
        )

    def by_base(self) -> dict[str, list[Path]]:
        """Return the existing files by the base of their names; a temporary file begins with a dot.

        Other files are in no group.
        """
        groups: dict[str, list[Path]] = {}
        with suppress(FileNotFoundError):
            for path in self.directory.iterdir():
                base, dot, _ = path.name.removeprefix(".").partition(".")
                if dot and self.base.fullmatch(base):
                    groups.setdefault(base, []).append(path)
        return groups

    def remove(self, base: str, group: Sequence[Path], before: float) -> bool:
        """Remove a group that was not touched since `before`, unless a process holds it.

        Returns whether it did.
        """
        lock, main = self.directory / f"{base}.lock", self.directory / f"{base}{self.main}"
        with tried_lock(lock) as alone:
            # Measured again: it may have been made or used between the first look and the lock.
            newest = last_touch([main, *(self.directory / f"{base}{s}" for s in self.companions)])
            if not alone or newest >= before or not remove_unshared(main):
                return False
            for path in group:
                if path != lock:
                    path.unlink(missing_ok=True)
            sync_directory(self.directory)
        return True


@dataclass(frozen=True, slots=True)
class DiskGroups:
    """The groups of several kinds that have one order of removal: the least recently used first.

    What lies on another disk than `directory` counts for nothing.
    """

    directory: Path
    kinds: tuple[FileGroups, ...]

    def room(self) -> int:
        """Return the free bytes of the disk plus the bytes of all groups.

        Files in use are counted, too.
        """
        groups = chain.from_iterable(kind.by_base().values() for kind in self._kinds_of_disk())
        present = sum(map(_size, chain.from_iterable(groups)))
        return free_space(nearest_existing(self.directory)) + present

    def make_room(self, size: int) -> None:
        """Remove unused groups, the least recently used first, until `size` bytes are free."""
        if free_space(self.directory) >= size:
            return
        groups = [
            (last_touch(group), kind, base, group)
            for kind in self._kinds_of_disk()
            for base, group in kind.by_base().items()
        ]
        for _, kind, base, group in sorted(groups, key=lambda group: group[0]):
            kind.remove(base, group, math.inf)
            if free_space(self.directory) >= size:
                return

    def _kinds_of_disk(self) -> list[FileGroups]:
        device = nearest_existing(self.directory).stat().st_dev
        return [
            kind for kind in self.kinds if nearest_existing(kind.directory).stat().st_dev == device
        ]


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def last_touch(paths: Sequence[Path]) -> float:
    """Return the time of the last touch of any of these files; missing files do not count."""
    newest = 0.0
    for path in paths:
        with suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest
