"""One worker process of the local pool: its states, its input and output lines, and its end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel

from shiftergw.errors import printable
from shiftergw.plumbing import log_lines
from shiftergw.plumbing.child_end import LEAVE_AFTER, leave_behind, note_end, send_signal
from shiftergw.work.worker_protocol import (
    KILL_SECONDS,
    LEAVE_SECONDS,
    LINE_LIMIT,
    START_SECONDS,
    STOPPED_CODE,
    LineSplitter,
    describe_exit,
)

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

PIPE_SECONDS = 1.0
"""Seconds for which the output of a dead worker is read while a child of its holds it open."""

LAST_WORDS = 300
"""Characters of the line that is shown as the reason why a worker could not start."""

LINES_LOGGED = 200
"""Lines of a worker that are logged for each job."""

_LEVELS = {level.name.encode(): level for level in LogLevel.iterconstants()}
"""Log levels, by the word with which a line of a worker's log begins."""


class WorkerState(Enum):
    """The states of a worker process; a worker may have a job in each of them."""

    STARTING = auto()  # spawned; a job on its input waits until it is ready
    READY = auto()
    LEAVING = auto()  # its input is closed: it exits after its job, if it has one
    STOPPING = auto()  # SIGTERM is sent: it gives up its job
    KILLING = auto()  # SIGKILL is sent, since it did not stop
    OVERDUE = auto()  # SIGKILL is sent, since it did not get ready in time
    DRAINING = auto()  # the process has ended; its output may still be open
    END = auto()


S = WorkerState

STEPS: dict[WorkerState, frozenset[WorkerState]] = {
    S.STARTING: frozenset({S.READY, S.LEAVING, S.STOPPING, S.OVERDUE, S.DRAINING}),
    S.READY: frozenset({S.LEAVING, S.STOPPING, S.DRAINING}),
    # A worker that leaves may not have been ready yet, and its time limit goes on.
    S.LEAVING: frozenset({S.STOPPING, S.OVERDUE, S.DRAINING}),
    S.STOPPING: frozenset({S.KILLING, S.DRAINING}),
    # A process that the kernel holds reaches the end without an exit.
    S.KILLING: frozenset({S.DRAINING, S.END}),
    S.OVERDUE: frozenset({S.DRAINING, S.END}),
    S.DRAINING: frozenset({S.END}),
    S.END: frozenset(),
}
"""From each state, the states a single step may lead to."""

ACTIVE = frozenset({S.STARTING, S.READY})
"""The states in which a worker may be given a job."""


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker process ended."""

    reason: str
    """A phrase for the log, such as "was killed by signal 9"."""
    is_ordered: bool
    """Whether the pool had ordered the worker to leave or to stop; otherwise its end is a crash."""
    is_stopped: bool
    """Whether an order to stop, of this gateway or of another process, has ended the worker."""
    is_overdue: bool
    """Whether the worker was killed because it did not get ready in time."""


class WorkerProcess(ProcessProtocol):
    """A worker process; `STEPS` says how its state changes."""

    _log = Logger()

    def __init__(
        self,
        reactor: Reactor,
        on_ready: Callable[[WorkerProcess], object],
        on_done: Callable[[WorkerProcess, str], object],
        on_end: Callable[[WorkerProcess, WorkerEnd], object],
        on_metrics: Callable[[WorkerProcess, object], object] = lambda *_: None,
    ) -> None:
        """Call `on_ready` once, `on_done` after each job with its key, and `on_end` once.

        `on_metrics` is called with what the worker has measured.
        """
        self.state = S.STARTING
        self.job: str | None = None
        """The key of the record that this worker has."""
        self.jobs_done = 0
        self.started_at = reactor.seconds()
        self.ready_at: float | None = None
        self.last_words = ""
        """The last line of its standard error before it was ready."""
        self.termination: Deferred[None] = Deferred()
        """Fires when the worker has ended and `on_end` was called."""
        self.pid = 0
        self._reactor = reactor
        self._on_ready = on_ready
        self._on_done = on_done
        self._on_end = on_end
        self._on_metrics = on_metrics
        self._last_state = S.STARTING
        """The state of the living process before its latest step; in the end, that at its exit."""
        self._leads_group = False
        self._line_count = 0
        self._start_limit = START_SECONDS
        self._timer: Any = None
        self._stdout = LineSplitter(self._read_answer)
        self._stderr = LineSplitter(self._log_stderr, log_lines.LINE_LIMIT)

    def start(self, argv: Sequence[str], env: Mapping[str, str], limit: float) -> None:
        """Start the process; kill it if it is not ready in `limit` seconds. Raises `OSError`."""
        self._start_limit = limit
        self._reactor.spawnProcess(self, argv[0], list(argv), env=dict(env))

    @property
    def is_idle(self) -> bool:
        """Return whether the worker can take a job, now or once it is ready."""
        return self.job is None and self.state in ACTIVE

    def take(self, key: str) -> None:
        """Give the worker a job; a worker that still starts reads it when it is ready."""
        assert self.is_idle
        self.job, self._line_count = key, 0
        self._transport.write(json.dumps({"record": key}).encode() + b"\n")

    def set_debug(self, *, is_on: bool) -> None:
        """Switch the debug messages of the worker, unless it is about to end."""
        if self.state in ACTIVE:
            self._transport.write(json.dumps({"debug": is_on}).encode() + b"\n")

    def leave(self) -> None:
        """Close the worker's input, so that it exits after its job."""
        if self.state in ACTIVE:
            self._step(S.LEAVING)
            self._transport.closeStdin()
            if self.job is None:
                self._set_timer(LEAVE_SECONDS, self.stop)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if the worker does not end in time."""
        if self.state in ACTIVE or self.state is S.LEAVING:
            self._step(S.STOPPING)
            self._signal("TERM")
            self._set_timer(KILL_SECONDS, self._kill)

    # Called by Twisted.

    def connectionMade(self) -> None:
        self.pid = self._transport.pid
        self._set_timer(self._start_limit, self._kill_overdue)

    def outReceived(self, data: bytes) -> None:
        self._stdout.feed(data)

    def errReceived(self, data: bytes) -> None:
        self._stderr.feed(data)

    def processExited(self, reason: Any) -> None:  # noqa: ARG002
        if self._leads_group:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        if self.state is not S.END:
            self._step(S.DRAINING)
        self._set_timer(PIPE_SECONDS, self._transport.loseConnection)

    def processEnded(self, reason: Any) -> None:
        self._cancel_timer()
        note_end("worker", self.pid)
        if self.state is S.END:
            return
        code = reason.value.exitCode
        if self._last_state is S.OVERDUE:
            text = f"did not get ready within {self._start_limit:g} s"
        elif reason.check(ProcessDone):
            text = "ended by itself with exit code 0"
        else:
            text = describe_exit(code, reason.value.signal)
        self._close(text, has_stopped=code == STOPPED_CODE)

    def _close(self, reason: str, has_stopped: bool = False) -> None:
        self._step(S.END)
        ordered_stop = self._last_state in (S.STOPPING, S.KILLING)
        end = WorkerEnd(
            reason,
            is_ordered=ordered_stop or self._last_state is S.LEAVING,
            is_stopped=ordered_stop or has_stopped,
            is_overdue=self._last_state is S.OVERDUE,
        )
        self._on_end(self, end)
        self.job = None
        self.termination.callback(None)

    def _read_answer(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if answer == {"ready": True}:
            self._note_ready()
        elif self.job is not None and answer == {"done": self.job}:
            key, self.job = self.job, None
            self.jobs_done += 1
            if self.state is S.LEAVING:
                self._set_timer(LEAVE_SECONDS, self.stop)
            self._on_done(self, key)
        elif isinstance(answer, dict) and answer.keys() == {"metrics"}:
            self._on_metrics(self, answer["metrics"])
        else:
            self._log_line(line)

    def _note_ready(self) -> None:
        with suppress(ProcessLookupError):
            self._leads_group = os.getpgid(self.pid) == self.pid
        is_too_late = self.state is S.END or S.OVERDUE in (self.state, self._last_state)
        if self.ready_at is not None or is_too_late:
            return
        # A process may be reaped before this line of its output is read: then it stays DRAINING.
        self.ready_at = self._reactor.seconds()
        if self.state is S.STARTING:
            self._step(S.READY)
        if self.state is S.READY or (self.state is S.LEAVING and self.job is not None):
            self._cancel_timer()
        self._on_ready(self)

    def _log_stderr(self, line: bytes) -> None:
        """Log a line of standard error: a JSON object of its log, or text."""
        parsed_line = log_lines.read_line(line)
        if parsed_line is None:
            for start in range(0, len(line) or 1, LINE_LIMIT):
                self._log_line(line[start : start + LINE_LIMIT])
            return
        # The object names its process itself.
        level, fields = LogLevel.levelWithName(parsed_line.level), parsed_line.members
        self._log_text(parsed_line.message, level, "{line}", fields=fields)

    def _log_line(self, line: bytes) -> None:
        """Log a line of text that is not an answer."""
        word, blank, rest = line.partition(b" ")
        level = _LEVELS.get(word) if blank else None
        text = printable(rest if level else line, LINE_LIMIT)
        self._log_text(text, level or LogLevel.info, "worker {pid}: {line}")

    def _log_text(self, text: str, level: Any, form: str, **values: Any) -> None:
        """Log a text, unless this job has caused too many lines."""
        self._line_count += 1
        if self.ready_at is None and text.strip():
            self.last_words = text.strip()[:LAST_WORDS]
        if self._line_count <= LINES_LOGGED:
            self._log.emit(level, form, pid=self.pid, line=text, **values)
        elif self._line_count == LINES_LOGGED + 1:
            self._log.warn("worker {pid} says too much; the rest is dropped", pid=self.pid)

    def _step(self, state: WorkerState) -> None:
        """Move to another state along the table."""
        assert state in STEPS[self.state], f"no step leads from {self.state} to {state}"
        if self.state not in (S.DRAINING, S.END):
            self._last_state = self.state
        self.state = state

    # A worker has one timer: that of its state.

    def _set_timer(self, seconds: float, act: Callable[[], object]) -> None:
        self._cancel_timer()
        self._timer = self._reactor.callLater(seconds, act)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _kill_overdue(self) -> None:
        self._log.error("worker {pid} did not get ready", pid=self.pid)
        self._step(S.OVERDUE)
        self._signal("KILL")
        self._set_timer(LEAVE_AFTER, self._give_up)

    def _kill(self) -> None:
        self._log.warn("worker {pid} did not stop and is killed", pid=self.pid)
        self._step(S.KILLING)
        self._signal("KILL")
        self._set_timer(LEAVE_AFTER, self._give_up)

    def _give_up(self) -> None:
        """Count the worker as ended: the kernel holds it, and nothing can end that wait."""
        leave_behind("worker", self.pid)
        self._close("hangs in the kernel")

    def _signal(self, name: str) -> None:
        send_signal(self._transport, name)

    @property
    def _transport(self) -> Any:
        return self.transport
