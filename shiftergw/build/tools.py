"""What all builds of a process share: directories, programs, threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.build.converted import converted_groups
from shiftergw.build.file_groups import DiskGroups, FileGroups
from shiftergw.build.pack_files import pack_groups

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads


@dataclass(frozen=True, slots=True)
class BuildTools:
    """The means that all builds of a process share.

    Converted files lie in `directory`, and `binary` is the name of `mksquashfs`. `readers` are
    threads that may wait for layers on their way, so they must not be the threads that bring them.
    `reactor` starts processes.
    """

    directory: Path
    binary: str
    threads: Threads
    readers: Threads
    reactor: Reactor
    clock: IReactorTime

    @property
    def pack_directory(self) -> Path:
        """Return the directory of packs, whose names are not told from those of converted files."""
        return self.directory / "packs"

    @property
    def converted_files(self) -> FileGroups:
        """Return the groups of converted files."""
        return converted_groups(self.directory)

    @property
    def packs(self) -> FileGroups:
        """Return the groups of packs."""
        return pack_groups(self.pack_directory)

    def groups_on_disk_of(self, directory: Path) -> DiskGroups:
        """Return all groups on the disk of a directory, which make room for new files there."""
        return DiskGroups(directory, (self.converted_files, self.packs))
