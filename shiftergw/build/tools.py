"""What all builds of a process share: directories, disks, programs, threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

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
        """Return the directory of the slots that all packings of this machine share.

        Each machine has its own below `directory`, which several machines may mount: slots stand
        for its processors and its memory.
        """
        name = quote(os.fsencode(os.uname().nodename), safe="")
        if name.startswith("."):  # neither hidden nor the directory above
            name = f"%2E{name[1:]}"
        return self.directory / "slots" / name
