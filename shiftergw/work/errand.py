"""One job in a worker process of its own, for a caller that may block.

The worker speaks the same lines as in the pool. It is never left behind: whatever ends the caller
ends it, and if the caller is killed the end of its input does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from shiftergw.work.process import KILL_SECONDS, LEAVE_SECONDS, START_SECONDS, Lines


class _NotInTime(RuntimeError):
    """The worker took too long."""


class Errand:
    """A worker process with one job."""

    def __init__(self, argv: Sequence[str], soft: float | None, hard: float | None) -> None:
        """Run `argv`; after `soft` seconds the worker is told that its job has taken too long.

        Then it has a moment to write that down and to clean up; after `hard` seconds it has none.
        """
        self._argv = argv
        self._soft = soft
        self._hard = hard
        self._answers: list[Any] = []
        self._lines = Lines(self._answer)

    def run(self, key: str) -> None:
        """Return when the job on a record is done.

        Raises `RuntimeError` if its worker died, or did not end in time.
        """
        # What it says goes where we say what we say: into the log of this machine.
        process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        patience = KILL_SECONDS
        try:
            self._until(process, {"ready": True}, START_SECONDS)
            assert process.stdin is not None
            process.stdin.write(json.dumps({"record": key}).encode() + b"\n")
            process.stdin.flush()
            try:
                self._until(process, {"done": key}, self._soft or self._hard)
            except _NotInTime:
                patience = 0.0
                if not self._soft:
                    raise
                process.stdin.write(json.dumps({"late": key}).encode() + b"\n")
                process.stdin.flush()
                self._until(process, {"done": key}, KILL_SECONDS)
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_SECONDS)
        finally:
            stop(process, patience)

    def _until(
        self, process: subprocess.Popen[bytes], wanted: Any, limit: float | None = None
    ) -> None:
        assert process.stdout is not None
        deadline = time.monotonic() + (limit or 0.0)
        while wanted not in self._answers:
            left = max(0.0, deadline - time.monotonic()) if limit else None
            if not select.select([process.stdout], [], [], left)[0]:
                raise _NotInTime(f"The worker did not say {wanted} in time.")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError("The worker died.")
            self._lines.feed(data)

    def _answer(self, line: bytes) -> None:
        with suppress(ValueError):
            self._answers = [*self._answers[-1:], json.loads(line)]


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End a worker and its group: SIGTERM, then SIGKILL after `seconds`."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    if process.poll() is not None:
        return
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:  # also if something ends us while we wait
        _kill_group(process)
    process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        process.kill()
