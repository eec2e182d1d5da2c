"""Run a worker process that is killed by SIGKILL at a certain operation on files.

`python -m tests.end_to_end.doomed_worker POINT COUNTS ROOT RUNNER-ARGUMENTS…` runs
`shiftergw.runner`. The operations on files below `ROOT`, and the writes of all pipes, are counted
for each stage of a pull. `POINT` is `STAGE:NUMBER`: before this operation of this stage, or at its
end, the process kills itself. `-` is no point. At the end of the process its counts are written
into the file `COUNTS`, as a JSON object.

The stages are `pack`, `compose`, `install` (the converted file is checked and gets its name),
`deliver` and `publish`.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shiftergw.app.runner import main as run_worker
from shiftergw.build.by_packs import PackConverter
from shiftergw.delivery.disk_calls import DiskCall
from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.remote import RemoteDirectory

STAGES = ("pack", "compose", "install", "deliver", "publish")
_EVENTS = frozenset({"os.rename", "os.link", "os.remove", "os.utime", "os.truncate", "open"})
"""Audit events of the operations that name files; they come before the operation."""

_CALLS = ("write", "pwrite", "fsync", "copy_file_range")


class Doom:
    """Counts operations, and kills the process at one of them."""

    def __init__(self, stage: str, number: int, root: str) -> None:
        """Kill at this operation of this stage."""
        self.counts: Counter[str] = Counter()
        self._stage, self._number, self._root = stage, number, root
        self._current = ""
        self._lock = threading.Lock()

    def enter(self, stage: str) -> None:
        """Begin another stage; kill if the operation of the last one was never reached."""
        if self._current == self._stage:
            self._kill()
        self._current = stage

    def count(self) -> None:
        """Count an operation."""
        with self._lock:
            self.counts[self._current] += 1
            number = self.counts[self._current]
        if (self._current, number) == (self._stage, self._number):
            self._kill()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an operation that Python reports, if it names a file of the test."""
        if event in _EVENTS and self._root in str(arguments[0]):
            self.count()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Count from now on the operations of this process."""
        sys.addaudithook(self.audit)
        for name in _CALLS:
            setattr(os, name, self._counting(getattr(os, name)))
        progress = DiskCall.note_progress
        DiskCall.note_progress = self._counting(progress)  # type: ignore[method-assign]
        self._divide(PackConverter, "read_layers", "pack", "")
        self._divide(PackConverter, "write_image", "compose", "install")
        for directory in (LocalDirectory, RemoteDirectory):
            self._divide(directory, "install", "deliver", "publish")

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted_call(*arguments: Any, **keywords: Any) -> Any:
            self.count()
            return call(*arguments, **keywords)

        return counted_call

    def _divide(self, owner: Any, name: str, stage: str, next_stage: str) -> None:
        """Have a stage begin and end with a method."""
        method = getattr(owner, name)

        @functools.wraps(method)
        async def method_with_stage(*arguments: Any, **keywords: Any) -> Any:
            self.enter(stage)
            result = await method(*arguments, **keywords)
            self.enter(next_stage)
            return result

        setattr(owner, name, method_with_stage)


def main() -> None:
    """Run the worker."""
    point, counts, root = sys.argv[1:4]
    stage, _, number = point.partition(":")
    doom = Doom(stage, int(number or 0), root)
    sys.argv[1:] = sys.argv[4:]
    doom.watch()
    try:
        run_worker()
    finally:
        Path(counts).write_text(json.dumps(doom.counts))


if __name__ == "__main__":
    main()
