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
            self._remove(base, group, before)
            for base, group in self._groups().items()
            if _last_touch(group) < before
        )

    def room(self) -> int:
        """Return the free bytes of the disk plus the bytes of all groups.

        Files in use are counted, too.
        """
        present = chain.from_iterable(self._groups().values())
        return free_space(nearest_existing(self.directory)) + sum(map(_size, present))

    def make_room(self, size: int) -> None:
        """Remove unused groups, the least recently used first, until `size` bytes are free."""
        if free_space(self.directory) >= size:
            return
        groups = self._groups()
        for base in sorted(groups, key=lambda base: _last_touch(groups[base])):
            self._remove(base, groups[base], math.inf)
            if free_space(self.directory) >= size:
                return

    def _groups(self) -> dict[str, list[Path]]:
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

    def _remove(self, base: str, group: Sequence[Path], before: float) -> bool:
        """Remove a group unless a process holds it; return whether it did."""
        lock, main = self.directory / f"{base}.lock", self.directory / f"{base}{self.main}"
        with tried_lock(lock) as alone:
            # Measured again: it may have been made or used between the first look and the lock.
            newest = _last_touch([main, *(self.directory / f"{base}{s}" for s in self.companions)])
            if not alone or newest >= before or not remove_unshared(main):
                return False
            for path in group:
                if path != lock:
                    path.unlink(missing_ok=True)
            sync_directory(self.directory)
        return True


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _last_touch(paths: Sequence[Path]) -> float:
    """Return the time of the last touch of any of these files; missing files do not count."""
    newest = 0.0
    for path in paths:
        with suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest
