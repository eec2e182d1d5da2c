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

START_SECONDS = 60.0
"""How long a worker may take until it is ready."""

LEAVE_SECONDS = 30.0
"""How long a worker without a job may take to leave once its input has ended."""

KILL_SECONDS = 10.0
"""Between SIGTERM and SIGKILL: a worker stops its own children and removes what is half done."""

PIPE_SECONDS = 1.0
"""How long a dead worker's output is read while some child of its still holds it open."""

LINE_LIMIT = 4096
"""Bytes of one line; longer ones come in pieces. A traceback is one line."""

_LEVELS = {level.name.encode(): level for level in LogLevel.iterconstants()}
"""What a line of a worker's log begins with."""

LINES_LOGGED = 200
"""Lines of a worker that are logged for each job."""


class Lines:
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
        done: Callable[[WorkerProcess], object],
        gone: Callable[[WorkerProcess, str], object],
    ) -> None:
        """Call `done` after each job, and `gone` at the end, with a word on how it ended."""
        self.job: str | None = None
        self.jobs_done = 0
        self.leaving = False
        """Whether it was told to end, so that its end is no crash."""
        self.gone: Deferred[None] = Deferred()
        self._reactor = reactor
        self._tell_done = done
        self._tell_gone = gone
        self._pid = 0
        self._leads_group = False
        self._stopping = False
        self._logged = 0
        self._limit: Any = None
        self._stdout = Lines(self._answer)
        self._stderr = Lines(self._say)

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the process; raises `OSError`."""
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
        if not self._stopping:
            self._stopping = True
            self._signal("TERM")
            self._after(KILL_SECONDS, self._kill)

    # What the process tells.

    def connectionMade(self) -> None:
        self._pid = self._transport.pid
        self._after(START_SECONDS, self._too_late)

    def outReceived(self, data: bytes) -> None:
        self._stdout.feed(data)

    def errReceived(self, data: bytes) -> None:
        self._stderr.feed(data)

    def processExited(self, reason: Any) -> None:  # noqa: ARG002
        if self._leads_group:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        self._after(PIPE_SECONDS, self._transport.loseConnection)

    def processEnded(self, reason: Any) -> None:
        self._disarm()
        self.job = None
        how = "ended by itself" if reason.check(ProcessDone) else _how(reason.value)
        self._tell_gone(self, how)
        self.gone.callback(None)

    def _answer(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if answer == {"ready": True}:
            self._is_ready()
        elif self.job is not None and answer == {"done": self.job}:
            self.job = None
            self.jobs_done += 1
            if self.leaving:
                self._go_soon()
            self._tell_done(self)
        else:
            self._say(line)

    def _is_ready(self) -> None:
        with suppress(ProcessLookupError):
            self._leads_group = os.getpgid(self._pid) == self._pid
        if not self._stopping and (self.job is not None or not self.leaving):
            self._disarm()

    def _say(self, line: bytes) -> None:
        """Put a line that is no answer into the log, unless there were too many."""
        self._logged += 1
        if self._logged <= LINES_LOGGED:
            word, blank, rest = line.partition(b" ")
            level = _LEVELS.get(word) if blank else None
            text = printable(rest if level else line, LINE_LIMIT)
            self._log.emit(level or LogLevel.info, "worker {pid}: {line}", pid=self._pid, line=text)
        elif self._logged == LINES_LOGGED + 1:
            self._log.warn("worker {pid} says too much; the rest is dropped", pid=self._pid)

    # Its limits: one at a time.

    def _go_soon(self) -> None:
        if not self._stopping:
            self._after(LEAVE_SECONDS, self.stop)

    def _too_late(self) -> None:
        self._log.error("worker {pid} did not get ready", pid=self._pid)
        self._signal("KILL")

    def _after(self, seconds: float, act: Callable[[], object]) -> None:
        self._disarm()
        self._limit = self._reactor.callLater(seconds, act)

    def _disarm(self) -> None:
        if self._limit is not None and self._limit.active():
            self._limit.cancel()

    def _kill(self) -> None:
        self._log.warn("worker {pid} did not stop and is killed", pid=self._pid)
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self._transport.signalProcess(name)

    @property
    def _transport(self) -> Any:
        return self.transport


def _how(end: Any) -> str:
    if end.signal is not None:
        return f"was killed by signal {end.signal}"
    return f"ended with exit code {end.exitCode}"
