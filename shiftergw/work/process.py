"""One worker process: its lines in and out, and its end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel

from shiftergw.errors import printable
from shiftergw.plumbing.exhaustion import EXHAUSTED_CODE

START_SECONDS = 60.0
"""How long a worker may take until it is ready, unless earlier ones took longer."""

LONGEST_START = 600.0
"""Seconds; the limit of a start doubles up to this, each time that one reaches it."""

LEAVE_SECONDS = 30.0
"""How long a worker without a job may take to leave once its input has ended."""

KILL_SECONDS = 10.0
"""Between SIGTERM and SIGKILL: a worker stops its own children and removes what is half done."""

GONE_SECONDS = 5.0
"""After SIGKILL; a process that is still there then hangs in the kernel."""

PIPE_SECONDS = 1.0
"""How long a dead worker's output is read while some child of its still holds it open."""

LINE_LIMIT = 4096
"""Bytes of one line; longer ones come in pieces. A traceback is one line."""

_LEVELS = {level.name.encode(): level for level in LogLevel.iterconstants()}
"""What a line of a worker's log begins with."""

STOPPED_CODE = 130
"""The exit code of a worker that a signal has stopped in an orderly way."""

LAST_WORDS = 300
"""Characters of the line that tells why a worker could not start."""

LINES_LOGGED = 200
"""Lines of a worker that are logged for each job."""


class LineSplitter:
    """Cuts a stream into lines of bounded length."""

    def __init__(self, line: Callable[[bytes], object]) -> None:
        """Hand each line to `line`, without its end."""
        self._line = line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) >= LINE_LIMIT:
            line, self._rest = self._rest, b""
            self._line(line)


class WorkerProcess(ProcessProtocol):
    """A worker: starting, idle, at a job, or leaving."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        ready: Callable[[WorkerProcess], object],
        done: Callable[[WorkerProcess, str], object],
        gone: Callable[[WorkerProcess, str], object],
    ) -> None:
        """Call `ready` once it is, `done` after each job, with its key, and `gone` at the end.

        `gone` is told how it ended.
        """
        self.job: str | None = None
        self.jobs_done = 0
        self.ready = False
        self.ready_at = 0.0
        self.leaving = False
        """Whether it was told to end, so that its end is no crash."""
        self.stopping = False
        """Whether its job was told to end, too."""
        self.stopped = False
        """Whether it ended by an order to stop, of this gateway or of somebody else."""
        self.overdue = False
        """Whether it was killed because it did not get ready in time."""
        self.last_words = ""
        """The last line of its standard error."""
        self.gone: Deferred[None] = Deferred()
        self.pid = 0
        self.started = reactor.seconds()
        self._reactor = reactor
        self._tell_ready = ready
        self._tell_done = done
        self._tell_gone = gone
        self._ended = False
        self._leads_group = False
        self._logged = 0
        self._start_limit = START_SECONDS
        self._limit: Any = None
        self._stdout = LineSplitter(self._answer)
        self._stderr = LineSplitter(self._say)

    def start(self, argv: Sequence[str], env: Mapping[str, str], limit: float) -> None:
        """Start the process; kill it if it is not ready in `limit` seconds. Raises `OSError`."""
        self._start_limit = limit
        self._reactor.spawnProcess(self, argv[0], list(argv), env=dict(env))

    @property
    def idle(self) -> bool:
        """Say whether it can take a job."""
        return self.job is None and not self.leaving

    def take(self, key: str) -> None:
        """Give it a job; a worker that still starts finds it on its input when it is ready."""
        assert self.idle
        self.job, self._logged = key, 0
        self._transport.write(json.dumps({"record": key}).encode() + b"\n")

    def leave(self) -> None:
        """End its input: it goes after its job."""
        self.leaving = True
        self._transport.closeStdin()
        if self.job is None:
            self._go_soon()

    def stop(self) -> None:
        """End it now: SIGTERM, then SIGKILL."""
        self.leaving = True
        if not self.stopping:
            self.stopping = True
            self._signal("TERM")
            self._after(KILL_SECONDS, self._kill)

    # What the process tells.

    def connectionMade(self) -> None:
        self.pid = self._transport.pid
        self._after(self._start_limit, self._too_late)

    def outReceived(self, data: bytes) -> None:
        self._stdout.feed(data)

    def errReceived(self, data: bytes) -> None:
        self._stderr.feed(data)

    def processExited(self, reason: Any) -> None:  # noqa: ARG002
        if self._leads_group:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._after(PIPE_SECONDS, self._transport.loseConnection)

    def processEnded(self, reason: Any) -> None:
        end = reason.value
        self.stopped = self.stopping or end.exitCode == STOPPED_CODE
        if self.overdue:
            how = f"did not get ready within {self._start_limit:g} s"
        elif reason.check(ProcessDone):
            how = "ended by itself with exit code 0"
        else:
            how = describe_exit(end.exitCode, end.signal)
        self._end(how)

    def _end(self, how: str) -> None:
        self._disarm()
        if not self._ended:
            self._ended = True
            self._tell_gone(self, how)
            self.job = None
            self.gone.callback(None)

    def _answer(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if answer == {"ready": True}:
            self._is_ready()
        elif self.job is not None and answer == {"done": self.job}:
            key, self.job = self.job, None
            self.jobs_done += 1
            if self.leaving:
                self._go_soon()
            self._tell_done(self, key)
        else:
            self._say(line)

    def _is_ready(self) -> None:
        with suppress(ProcessLookupError):
            self._leads_group = os.getpgid(self.pid) == self.pid
        if not self.stopping and (self.job is not None or not self.leaving):
            self._disarm()
        self.ready = True
        self.ready_at = self._reactor.seconds()
        self._tell_ready(self)

    def _say(self, line: bytes) -> None:
        """Put a line that is no answer into the log, unless there were too many."""
        self._logged += 1
        word, blank, rest = line.partition(b" ")
        level = _LEVELS.get(word) if blank else None
        text = printable(rest if level else line, LINE_LIMIT)
        if not self.ready and text.strip():
            self.last_words = text.strip()[:LAST_WORDS]
        if self._logged <= LINES_LOGGED:
            self._log.emit(level or LogLevel.info, "worker {pid}: {line}", pid=self.pid, line=text)
        elif self._logged == LINES_LOGGED + 1:
            self._log.warn("worker {pid} says too much; the rest is dropped", pid=self.pid)

    # Its limits: one at a time.

    def _go_soon(self) -> None:
        if not self.stopping:
            self._after(LEAVE_SECONDS, self.stop)

    def _too_late(self) -> None:
        self._log.error("worker {pid} did not get ready", pid=self.pid)
        self.overdue = True
        self._signal("KILL")
        self._after(GONE_SECONDS, self._hangs)

    def _after(self, seconds: float, act: Callable[[], object]) -> None:
        self._disarm()
        self._limit = self._reactor.callLater(seconds, act)

    def _disarm(self) -> None:
        if self._limit is not None and self._limit.active():
            self._limit.cancel()

    def _kill(self) -> None:
        self._log.warn("worker {pid} did not stop and is killed", pid=self.pid)
        self._signal("KILL")
        self._after(GONE_SECONDS, self._hangs)

    def _hangs(self) -> None:
        """Count it as gone: the kernel holds it, and nobody can wait for that."""
        self._log.error(
            "worker {pid} is still there after SIGKILL; look at its disks", pid=self.pid
        )
        self.stopped = self.stopping
        self._end("hangs in the kernel")

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self._transport.signalProcess(name)

    @property
    def _transport(self) -> Any:
        return self.transport


def describe_exit(code: int | None, number: int | None) -> str:
    """Return how a process ended, by its exit code or the signal that killed it."""
    if number is None and code == EXHAUSTED_CODE:
        return "ran out of file descriptors, memory, or threads"
    if number is None:
        return f"ended with exit code {code}"
    if number == signal.SIGKILL:
        return "was killed by signal 9, perhaps because the machine ran out of memory"
    return f"was killed by signal {number}"
