"""The states of a worker process, with a transport and a clock that the test controls."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.plumbing import child_end
from shiftergw.plumbing.child_end import LEAVE_AFTER
from shiftergw.plumbing.log_lines import write_line
from shiftergw.work.process import (
    PIPE_SECONDS,
    STEPS,
    WorkerEnd,
    WorkerProcess,
    WorkerState,
)
from shiftergw.work.worker_protocol import KILL_SECONDS, LEAVE_SECONDS

START_LIMIT = 7.0


class ProcessTransport:
    """The transport of a process that never does anything by itself."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.signals: list[str] = []
        self.input = b""
        self.has_exited = False
        self.is_open = True

    def write(self, data: bytes) -> None:
        """Record the input of the worker."""
        self.input += data

    def closeStdin(self) -> None:
        """Ignore the end of input."""

    def loseConnection(self) -> None:
        """Close the pipes."""
        self.is_open = False

    def signalProcess(self, name: str) -> None:
        """Record a signal."""
        if self.has_exited:
            raise ProcessExitedAlready
        self.signals.append(name)


class Worker:
    """A worker process and its reports."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.transport = ProcessTransport()
        self.done: list[str] = []
        self.ready = 0
        self.ends: list[WorkerEnd] = []
        self.metrics: list[object] = []
        clock: Any = self.clock
        clock.spawnProcess = lambda protocol, *_, **__: protocol.makeConnection(self.transport)
        self.process = WorkerProcess(
            clock,
            self._note_ready,
            lambda _, key: self.done.append(key),
            lambda _, end: self.ends.append(end),
            lambda _, entries: self.metrics.append(entries),
        )
        self.process.start(["worker"], {}, START_LIMIT)

    def _note_ready(self, _: WorkerProcess) -> None:
        self.ready += 1

    def write_line(self, answer: object) -> None:
        """Let the worker write a line to its standard output."""
        self.process.outReceived(json.dumps(answer).encode() + b"\n")

    def exit(self, code: int = 1) -> None:
        """Let the process exit while a child of its holds its output open."""
        self.transport.has_exited = True
        self.process.processExited(exit_reason(code))

    def close(self, code: int = 1) -> None:
        """Close the output of the process, which has exited."""
        self.process.processEnded(exit_reason(code))


def exit_reason(code: int) -> Failure:
    """Return the failure that Twisted passes to a process protocol at an exit."""
    return Failure(ProcessTerminated(exitCode=code) if code else ProcessDone(0))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Return a worker that starts; signals to its process group go nowhere."""
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    monkeypatch.setattr(child_end, "stuck_children", set())
    return Worker()


def test_every_state_leads_to_the_end() -> None:
    """From each state of the table, steps lead to END; each state is reached from STARTING."""
    for state in WorkerState:
        reachable = {state}
        while next_states := {step for start in reachable for step in STEPS[start]} - reachable:
            reachable |= next_states
        assert WorkerState.END in reachable
        assert state is not WorkerState.STARTING or reachable == set(WorkerState)


def test_a_step_that_the_table_lacks(worker: Worker) -> None:
    """A second start of a worker that is ready is a fault of the program."""
    worker.write_line({"ready": True})
    with pytest.raises(AssertionError, match=r"no step leads from WorkerState\.READY"):
        worker.process._step(WorkerState.OVERDUE)


def test_lines_in_json(worker: Worker) -> None:
    """A line in JSON keeps its level and its fields; a text line that looks like it stays text."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        line = write_line(0, "warn", "a.b", "text", {"process": "worker", "request": "1a"})
        for text in (line, '{"level": "warn"}', "", "x" * 5000):
            worker.process.errReceived(text.encode() + b"\n")
    finally:
        globalLogPublisher.removeObserver(observe)
    assert worker.process.last_words == "x" * 300
    first, *rest = events
    assert (first["log_level"], formatEvent(first)) == (LogLevel.warn, "text")
    assert first["fields"] == {
        "time": "1970-01-01T00:00:00.000Z", "logger": "a.b", "process": "worker", "request": "1a",
    }  # fmt: skip
    pid = worker.process.pid
    lines = ['{"level": "warn"}', "", "x" * 4096, "x" * 904]
    assert [formatEvent(event) for event in rest] == [f"worker {pid}: {line}" for line in lines]


def test_debug_messages(worker: Worker) -> None:
    """A worker is told to log debug messages; one that is about to end is not."""
    worker.process.set_debug(is_on=True)
    worker.process.set_debug(is_on=False)
    worker.process.stop()
    worker.process.set_debug(is_on=True)
    assert worker.transport.input == b'{"debug": true}\n{"debug": false}\n'


def test_measurements(worker: Worker) -> None:
    """Measurements are passed on at any time, and are neither an answer nor a line of the log."""
    worker.write_line({"ready": True})
    worker.process.take("k")
    worker.write_line({"metrics": [["name", [], [1]]]})
    worker.write_line({"done": "k"})
    worker.write_line({"metrics": []})
    assert worker.metrics == [[["name", [], [1]]], []]
    assert worker.done == ["k"]


def test_a_job_is_done(worker: Worker) -> None:
    """A worker takes a job while it starts, and is idle again when the job is done."""
    worker.process.take("k1")
    worker.write_line({"ready": True})
    assert not worker.process.is_idle
    worker.write_line({"done": "k1"})
    assert (worker.done, worker.ready, worker.process.state) == (["k1"], 1, WorkerState.READY)
    worker.process.take("k2")
    worker.clock.advance(START_LIMIT)
    assert worker.transport.signals == []


def test_a_worker_that_leaves_while_it_starts(worker: Worker) -> None:
    """The worker finishes its job first; the limits for its start and its exit apply."""
    worker.process.take("k1")
    worker.process.leave()
    worker.clock.advance(START_LIMIT - 1)
    worker.write_line({"ready": True})
    worker.clock.advance(2 * LEAVE_SECONDS)
    assert worker.transport.signals == []
    worker.write_line({"done": "k1"})
    worker.clock.advance(LEAVE_SECONDS)
    assert worker.transport.signals == ["TERM"]
    worker.exit(130)
    worker.close(130)
    assert worker.ends == [WorkerEnd("ended with exit code 130", True, True, False)]


def test_a_start_that_exceeds_its_limit(worker: Worker) -> None:
    """The worker is killed, and orders to leave or to stop do not delay the report of its end."""
    worker.clock.advance(START_LIMIT)
    worker.process.leave()
    worker.process.stop()
    assert worker.transport.signals == ["KILL"]
    assert worker.process.state is WorkerState.OVERDUE
    worker.write_line({"ready": True})
    assert worker.ready == 0
    worker.clock.advance(LEAVE_AFTER)
    assert worker.ends == [WorkerEnd("hangs in the kernel", False, False, True)]


def test_a_worker_that_does_not_stop(worker: Worker) -> None:
    """The worker gets SIGTERM once and SIGKILL once; if it survives both, its exit is ignored."""
    worker.write_line({"ready": True})
    worker.process.stop()
    worker.clock.advance(KILL_SECONDS / 2)
    worker.process.stop()
    worker.clock.advance(KILL_SECONDS / 2)
    assert worker.transport.signals == ["TERM", "KILL"]
    worker.clock.advance(LEAVE_AFTER)
    assert child_end.stuck_children == {worker.process.pid}
    worker.exit()
    worker.close()
    assert child_end.stuck_children == set()
    assert worker.ends == [WorkerEnd("hangs in the kernel", True, True, False)]


def test_an_order_to_stop_after_the_exit(worker: Worker) -> None:
    """The death of the worker counts, and the wait for its output does not become longer."""
    worker.write_line({"ready": True})
    worker.process.take("k1")
    worker.exit()
    worker.process.stop()
    assert not worker.process.is_idle
    worker.clock.advance(PIPE_SECONDS)
    assert not worker.transport.is_open
    worker.close()
    assert worker.ends == [WorkerEnd("ended with exit code 1", False, False, False)]


def test_answers_that_are_read_after_the_exit(worker: Worker) -> None:
    """Late answers count, since a process may be reaped first; the pipes are still closed."""
    worker.process.take("k1")
    worker.exit()
    worker.write_line({"ready": True})
    worker.write_line({"done": "k1"})
    assert (worker.ready, worker.done) == (1, ["k1"])
    worker.clock.advance(PIPE_SECONDS)
    assert not worker.transport.is_open
