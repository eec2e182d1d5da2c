"""Groups of files that processes leave for later ones, and the removal of unused groups.

A group has a main file, locks, and other files, whose names share a base. A process that makes a
group holds one of its locks, one that removes it all of them; one that uses the main file holds a
shared `flock` on it. When a process dies, the kernel releases all. A file whose inode the disk has
damaged is skipped, and the log names it once (`SkipUnreadable`). All methods block: they run in
threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shiftergw.plumbing.disk_budget import RemovableFiles
from shiftergw.plumbing.disk_errors import SkipUnreadable
from shiftergw.plumbing.files import sync_directory
from shiftergw.plumbing.locks import remove_unshared, tried_lock


@dataclass(frozen=True, slots=True)
class FileGroups:
    """The groups of one kind of files in a directory.

    `base` matches the names without their last suffix. `main` is the suffix of the main file, and
    `companions` are the suffixes of other files whose times show a use, `marks` those of files
    whose times do not. All suffixes begin with a dot. A lock has the name of the base and one of
    `locks`.
    """

    directory: Path
    base: re.Pattern[str]
    main: str
    companions: tuple[str, ...]
    marks: tuple[str, ...] = ()
    locks: tuple[str, ...] = (".lock",)

    def sweep(self, before: float) -> int:
        """Remove each group whose last touch was before this time; return their number.

        Of the other groups, temporary files that are as old are removed: the process that wrote
        them was killed, and a group that is always in use would keep them.
        """
        count = 0
        for base, group in self.by_base().items():
            if self._last_use(group) < before and self.remove(base, group, before):
                count += 1
            else:
                self._remove_temporary_files(group, before)
        return count

    def _remove_temporary_files(self, group: Sequence[Path], before: float) -> None:
        """Remove the temporary files of a group that were last written before this time."""
        for path in group:
            if path.name.startswith("."):
                with SkipUnreadable(path):
                    if path.stat().st_mtime < before:
                        path.unlink()

    def list_removable(self) -> list[RemovableFiles]:
        """Return all groups, as `FileKind` says."""
        return [
            RemovableFiles(
                self.directory / f"{base}{self.main}",
                sum(map(_size, group)),
                self._last_use(group),
                partial(self.remove, base, group, math.inf),
            )
            for base, group in self.by_base().items()
        ]

    def by_base(self) -> dict[str, list[Path]]:
        """Return the existing files by the base of their names; a temporary file begins with a dot.

        Other files are in no group.
        """
        groups: dict[str, list[Path]] = {}
        with SkipUnreadable(self.directory):
            for path in self.directory.iterdir():
                base, dot, _ = path.name.removeprefix(".").partition(".")
                if dot and self.base.fullmatch(base):
                    groups.setdefault(base, []).append(path)
        return groups

    def _last_use(self, group: Sequence[Path]) -> float:
        return _newest_touch([path for path in group if path.suffix not in self.marks])

    def remove(self, base: str, group: Sequence[Path], before: float) -> bool:
        """Remove a group that was not touched since `before`, unless a process holds it.

        Returns whether it did; a group whose main file or lock cannot be read stays.
        """
        main = self.directory / f"{base}{self.main}"
        with SkipUnreadable(main):
            return self._remove(main, base, group, before)
        return False

    def _remove(self, main: Path, base: str, group: Sequence[Path], before: float) -> bool:
        locks = [self.directory / f"{base}{lock}" for lock in self.locks]
        with ExitStack() as stack:
            is_alone = all(stack.enter_context(tried_lock(lock)) for lock in locks)
            # Measured again: it may have been made or used between the first look and the lock.
            companions = [self.directory / f"{base}{suffix}" for suffix in self.companions]
            newest = _newest_touch([main, *companions])
            if not is_alone or newest >= before or not remove_unshared(main):
                return False
            for path in group:
                if path not in locks:
                    with SkipUnreadable(path):
                        path.unlink()
            sync_directory(self.directory)
        return True


def _size(path: Path) -> int:
    with SkipUnreadable(path):
        return path.stat().st_size
    return 0


def _newest_touch(paths: Sequence[Path]) -> float:
    """Do what `last_touch` does, for the files that can be read."""
    newest = 0.0
    for path in paths:
        with SkipUnreadable(path):
            newest = max(newest, last_touch([path]))
    return newest


def last_touch(paths: Sequence[Path]) -> float:
    """Return the time of the last touch of any of these files; missing files do not count."""
    newest = 0.0
    for path in paths:
        with suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest
