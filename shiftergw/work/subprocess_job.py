"""Run one job in a worker process, for a caller that may block.

The worker speaks the protocol of `worker_protocol.py`. No worker outlives its caller: an exception
in the caller ends the worker, and if the caller is killed, the worker sees the end of its input.
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
from dataclasses import dataclass
from typing import Any

from shiftergw.ports import JobEnd, runner_name
from shiftergw.work.worker_protocol import (
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


class _TimeLimitExceeded(RuntimeError):
    """The worker took too long."""


class _OutputClosed(RuntimeError):
    """The worker has closed its output: it has ended, or is about to end."""


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The time limits of a job, in seconds; None means that there is no limit."""

    soft: float | None = None
    """After this the worker gets the order to end the job, and has `KILL_SECONDS` to do so."""
    hard: float | None = None
    """After this the worker is killed; it has no effect if there is a soft limit."""


class StartLimit:
    """The time limit for the start of a worker; it doubles after each start that exceeds it."""

    def __init__(self) -> None:
        """Begin with `START_SECONDS`."""
        self.seconds = START_SECONDS

    def raise_limit(self) -> None:
        """Double the limit, up to `LONGEST_START`."""
        self.seconds = min(LONGEST_START, self.seconds * 2)


class SubprocessJob:
    """A job that runs in a worker process of its own."""

    def __init__(
        self, argv: Sequence[str], limits: JobLimits, start_limit: StartLimit | None = None
    ) -> None:
        """Prepare to run `argv` as the worker.

        `start_limit` is shared by the jobs of a machine, so that each learns from earlier starts.
        """
        self._argv = argv
        self._limits = limits
        self._start_limit = start_limit or StartLimit()
        self._kill_seconds = KILL_SECONDS
        self._answers: list[Any] = []
        self._lines = LineSplitter(self._read_answer)

    def run(self, key: str) -> None:
        """Return when the job on a record is done; raise `JobLost` if its worker did not do it."""
        # The worker inherits our standard error, so its log lines go into the log of this machine.
        try:
            process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise JobLost(JobEnd(key, "", f"cannot be started: {error.strerror}")) from error
        is_ready, loss = False, ""
        self._kill_seconds = KILL_SECONDS
        try:
            self._wait_for(process, {"ready": True}, self._start_limit.seconds)
            is_ready = True
            self._run_job(process, key)
        except _TimeLimitExceeded:
            self._kill_seconds = 0.0
            if is_ready:
                loss = "was killed at the time limit of this machine"
            else:
                loss = f"did not get ready within {self._start_limit.seconds:g} s"
                self._start_limit.raise_limit()
        except (_OutputClosed, BrokenPipeError):
            pass
        else:
            return
        finally:
            stop(process, self._kill_seconds)
        name = runner_name(socket.gethostname(), process.pid)
        code = process.returncode
        loss = loss or (describe_exit(None, -code) if code < 0 else describe_exit(code, None))
        is_death = is_ready and code != STOPPED_CODE
        raise JobLost(JobEnd(key, name, loss, is_death))

    def _run_job(self, process: subprocess.Popen[bytes], key: str) -> None:
        self._send(process, {"record": key})
        try:
            self._wait_for(process, {"done": key}, self._limits.soft or self._limits.hard)
        except _TimeLimitExceeded:
            self._kill_seconds = 0.0
            if not self._limits.soft:
                raise
            self._send(process, {"late": key})
            self._wait_for(process, {"done": key}, KILL_SECONDS)
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_SECONDS)

    def _send(self, process: subprocess.Popen[bytes], order: Mapping[str, str]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()

    def _wait_for(
        self, process: subprocess.Popen[bytes], answer: Any, limit: float | None = None
    ) -> None:
        """Read the worker's output until it gives `answer`, for at most `limit` seconds."""
        assert process.stdout is not None
        deadline = time.monotonic() + (limit or 0.0)
        while answer not in self._answers:
            timeout = max(0.0, deadline - time.monotonic()) if limit else None
            if not select.select([process.stdout], [], [], timeout)[0]:
                raise _TimeLimitExceeded(f"The worker did not say {answer} in time.")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise _OutputClosed
            self._lines.feed(data)

    def _read_answer(self, line: bytes) -> None:
        with suppress(ValueError):
            self._answers = [*self._answers[-1:], json.loads(line)]


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End a worker and its process group: send SIGTERM, then SIGKILL after `seconds`."""
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
    finally:  # also when an exception, such as that of a signal, ends the wait
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            process.kill()
    process.wait()
