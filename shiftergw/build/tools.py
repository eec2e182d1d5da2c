"""What all builds of a process share: directories, disks, programs, threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.disk_budget import DiskBudget
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads


@dataclass(frozen=True, slots=True)
class BuildTools:
    """The means that all builds of a process share.

    Converted files lie in `directory`, and `binary` is the name of `mksquashfs`. `readers` may wait
    for layers that are arriving, so they must not be the threads that write these layers to the
    disk. `reactor` starts processes. The files of `budget` make room for converted files and packs.
    """

    directory: Path
    binary: str
    threads: Threads
    readers: Threads
    reactor: Reactor
    clock: IReactorTime
    budget: DiskBudget

    @property
    def slot_directory(self) -> Path:
        """Return the directory of the slots that the packings of all processes share."""
        return self.directory / "slots"
