"""One job in a worker process of its own, for a caller that may block.

The worker speaks the same lines as in the pool. It is never left behind: whatever ends the caller
ends it, and if the caller is killed the end of its input does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from shiftergw.ports import JobEnd, runner_name
from shiftergw.work.process import (
    KILL_SECONDS,
    LEAVE_SECONDS,
    LONGEST_START,
    START_SECONDS,
    STOPPED_CODE,
    LineSplitter,
    describe_exit,
)


class JobLost(RuntimeError):
    """The worker of a job ended before the job was done; the only argument is a `JobEnd`."""

    @property
    def end(self) -> JobEnd:
        """Return the end of the job."""
        end: JobEnd = self.args[0]
        return end

    def __str__(self) -> str:
        """Return a sentence for the log of this machine."""
        return f"worker {self.end.runner} of record {self.end.key} {self.end.loss}"


class _NotInTime(RuntimeError):
    """The worker took too long."""


class _Gone(RuntimeError):
    """The worker has closed its output: it has ended, or is about to."""


class StartLimit:
    """The time limit for the start of a worker; it doubles after each start that exceeds it."""

    def __init__(self) -> None:
        """Begin with `START_SECONDS`."""
        self.seconds = START_SECONDS

    def raise_limit(self) -> None:
        """Give the next start more time."""
        self.seconds = min(LONGEST_START, self.seconds * 2)


class SubprocessJob:
    """A worker process with one job."""

    def __init__(
        self,
        argv: Sequence[str],
        soft: float | None,
        hard: float | None,
        start: StartLimit | None = None,
    ) -> None:
        """Run `argv`; after `soft` seconds the worker is told that its job has taken too long.

        Then it has a moment to write that down and to clean up; after `hard` seconds it has none.
        `start` is kept from one job to the next.
        """
        self._argv = argv
        self._soft = soft
        self._hard = hard
        self._start = start or StartLimit()
        self._patience = KILL_SECONDS
        self._answers: list[Any] = []
        self._lines = LineSplitter(self._answer)

    def run(self, key: str) -> None:
        """Return when the job on a record is done; raise `JobLost` if its worker did not do it."""
        # What it says goes where we say what we say: into the log of this machine.
        try:
            process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise JobLost(JobEnd(key, "", f"cannot be started: {error.strerror}")) from error
        ready, loss = False, ""
        self._patience = KILL_SECONDS
        try:
            self._until(process, {"ready": True}, self._start.seconds)
            ready = True
            self._work(process, key)
        except _NotInTime:
            self._patience = 0.0
            if ready:
                loss = "was killed at the time limit of this machine"
            else:
                loss = f"did not get ready within {self._start.seconds:g} s"
                self._start.raise_limit()
        except (_Gone, BrokenPipeError):
            pass
        else:
            return
        finally:
            stop(process, self._patience)
        name = runner_name(socket.gethostname(), process.pid)
        loss = loss or _describe(process.returncode)
        died = ready and process.returncode != STOPPED_CODE
        raise JobLost(JobEnd(key, name, loss, died))

    def _work(self, process: subprocess.Popen[bytes], key: str) -> None:
        self._write(process, {"record": key})
        try:
            self._until(process, {"done": key}, self._soft or self._hard)
        except _NotInTime:
            self._patience = 0.0
            if not self._soft:
                raise
            self._write(process, {"late": key})
            self._until(process, {"done": key}, KILL_SECONDS)
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_SECONDS)

    def _write(self, process: subprocess.Popen[bytes], order: Mapping[str, str]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()

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
                raise _Gone
            self._lines.feed(data)

    def _answer(self, line: bytes) -> None:
        with suppress(ValueError):
            self._answers = [*self._answers[-1:], json.loads(line)]


def _describe(code: int) -> str:
    return describe_exit(None, -code) if code < 0 else describe_exit(code, None)


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
