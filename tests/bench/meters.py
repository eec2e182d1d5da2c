"""Watch a pull while it runs: the disk space that it takes, and the CPU time of each process.

A meter looks at regular intervals, in a thread of the bench. So it may miss a file that is there
for less than an interval, and the last CPU time of a program that ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple, Self

from tests.bench.commands import processes_of

_SCRATCH_SECONDS = 0.1
_PROCESS_SECONDS = 0.05
_BLOCK = 512
_SMALLEST = 0.005  # CPU seconds: half a tick, for sums of floats

UNSEEN = "programs that ended between two looks"
"""The name of what parents have waited for, less what was seen of it."""


class _Meter:
    """Calls `look` now, at intervals while the context lasts, and at its end."""

    seconds: float
    """The interval."""

    def __init__(self) -> None:
        self._end = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._end.wait(self.seconds):
            self.look()

    def look(self) -> None:
        """Take a sample."""
        raise NotImplementedError


class ScratchMeter(_Meter):
    """Measures the most bytes and files that directories have while the context lasts.

    What they have at the start does not count.
    """

    seconds = _SCRATCH_SECONDS

    def __init__(self, directories: Sequence[Path]) -> None:
        """Watch these directories."""
        super().__init__()
        self._directories = directories
        self._start: tuple[int, int] | None = None
        self.bytes = self.files = 0

    def look(self) -> None:
        """Count the bytes and files that are there now."""
        size, files = used_space(self._directories)
        self._start = self._start or (size, files)
        self.bytes = max(self.bytes, size - self._start[0])
        self.files = max(self.files, files - self._start[1])


def used_space(directories: Sequence[Path], pattern: str = "*") -> tuple[int, int]:
    """Return the bytes on the disk, and the number, of the files below directories.

    `pattern` selects files and directories by their names. Links to a file count once.
    """
    blocks = {}
    for directory in directories:
        for path in directory.rglob(pattern):
            try:
                status = path.stat(follow_symlinks=False)
            except OSError:
                continue
            blocks[status.st_dev, status.st_ino] = status.st_blocks
    return sum(blocks.values()) * _BLOCK, len(blocks)


class Look(NamedTuple):
    """The CPU seconds of each program since the start of a meter, at a time of the clock."""

    time: float
    cpu: Mapping[str, float]


@dataclass(slots=True)
class _ProcessTimes:
    name: str
    before: float
    """The CPU seconds that do not count."""
    latest: float


class ProcessMeter(_Meter):
    """Measures the CPU time of a process and of all its descendants, by program.

    `names` are the names of processes that are there already; the others have those of their
    programs. Kernels shorten these to 15 characters.
    """

    seconds = _PROCESS_SECONDS

    def __init__(self, pid: int, names: Mapping[int, str]) -> None:
        """Watch the tree below the process `pid`."""
        super().__init__()
        self._pid = pid
        self._names = names
        self._times: dict[tuple[int, int], _ProcessTimes] = {}
        self._children_before: float | None = None
        self.looks: list[Look] = []
        """What was measured, in the order of time."""

    def look(self) -> None:
        """Read the CPU times of all processes of the tree."""
        is_start = not self.looks
        now, past_seconds = time.monotonic(), 0.0
        alive = set()
        for process in processes_of(self._pid):
            key = process.pid, process.start
            alive.add(key)
            past_seconds += process.children
            times = self._times.get(key)
            if times is None:
                name = self._names.get(process.pid, process.name)
                before = process.own if is_start else 0.0
                self._times[key] = times = _ProcessTimes(name, before, process.own)
            times.latest = process.own
        if self._children_before is None:
            self._children_before = past_seconds
        self.looks.append(Look(now, self._by_name(alive, past_seconds - self._children_before)))

    def _by_name(
        self, alive: AbstractSet[tuple[int, int]], past_seconds: float
    ) -> dict[str, float]:
        """Return the seconds by name; `past_seconds` are those of the processes that have ended."""
        cpu: dict[str, float] = {}
        for key, times in self._times.items():
            cpu[times.name] = cpu.get(times.name, 0.0) + times.latest - times.before
            if key not in alive:
                past_seconds -= times.latest
        if past_seconds > _SMALLEST:
            cpu[UNSEEN] = past_seconds
        return cpu
