"""The local worker processes, each of which takes one record at a time from its standard input.

A worker is any command that speaks the protocol of `worker_protocol.py`.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw import __version__
from shiftergw.errors import Unavailable
from shiftergw.model.records import WorkerMachine
from shiftergw.plumbing.backoff import Backoff
from shiftergw.plumbing.timing import shield
from shiftergw.ports import JobEnd, QueueTrouble, runner_name
from shiftergw.work.process import WorkerEnd, WorkerProcess, WorkerState
from shiftergw.work.worker_protocol import LONGEST_START, START_SECONDS

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

STOP_SECONDS = 5.0
"""Seconds that running jobs may go on when the service stops."""

RESTART = Backoff(first=1.0, longest=60.0)
"""The pauses between a failed start of a worker and the next start."""

SLOW_SECONDS = 10.0
"""A start that takes longer is reported to the users whose pulls wait for it."""

SETTLED_SECONDS = 2.0
"""The trouble ends when a worker has lived for this long after it got ready."""

YOUNG_SECONDS = 10.0
"""A worker without a job that crashes sooner after it got ready counts as a failed start."""

JOB_DEATHS = 5
"""Workers that may die at their jobs, one after another, before the next start is delayed.

An image is given up after this many deaths; the images of other users do not wait for that.
"""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How many workers a pool runs, and for which systems."""

    size: int
    """The largest number of worker processes."""
    jobs_per_worker: int
    """A worker is replaced after this many jobs."""
    warm: int = 0
    """Workers that are started before there is work: a start takes as long as a small image."""
    systems: tuple[str, ...] = ()
    """The systems that the pool reports to admins; every worker serves all of them."""


class WorkerPool(Service):
    """A `JobQueue` of local worker processes, which are started when there is work for them.

    A worker is replaced after a number of jobs, and at once when it dies at a job. After a failed
    start the next start waits, longer each time. While no worker can start, the pool has no slots
    and tries one start at a time; the queue is in trouble until a start succeeds.
    """

    _log = Logger()

    def __init__(
        self, reactor: Reactor, argv: Sequence[str], env: Mapping[str, str], options: PoolOptions
    ) -> None:
        """Run `argv` as each worker, with `env` as its whole environment."""
        self.on_idle: Callable[[], object] = lambda: None
        """Called when a slot has become free."""
        self.on_end: Callable[[JobEnd], object] = lambda _: None
        """Called at the end of each job."""
        self.on_metrics: Callable[[str, object], object] = lambda *_: None
        """Called with the unique name of a worker, and its measurements."""
        self.on_metrics_end: Callable[[str], object] = lambda _: None
        """Called with the name of a worker that has ended."""
        self._started_workers = 0
        self._host = socket.gethostname()
        self._reactor = reactor
        self._argv = argv
        self._env = env
        self._options = options
        self._workers: list[WorkerProcess] = []
        self._job_deaths = 0
        self._failed_starts = 0
        self._last_failure = ""
        self._trouble: QueueTrouble | None = None
        self._start_limit = START_SECONDS
        self._backoff: Any = None
        self._settling: Any = None
        self._is_open = False
        self._is_debug = False

    def startService(self) -> None:
        """Start the warm workers and accept offers."""
        super().startService()
        self._is_open = True
        self._start_warm_workers()

    def stopService(self) -> Deferred[None]:
        """Fire when all workers have ended; stop the jobs that do not end in `STOP_SECONDS`."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._is_open = False
        for call in (self._backoff, self._settling):
            if call is not None and call.active():
                call.cancel()
        self._backoff = self._settling = self._trouble = None
        for worker in self._workers:
            worker.leave()
        stop_call = self._reactor.callLater(STOP_SECONDS, self._stop_workers)
        try:
            while self._workers:
                await shield(self._workers[0].termination)
        finally:
            if stop_call.active():
                stop_call.cancel()

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.stop()

    def slots(self, system: str = "") -> int:  # noqa: ARG002 - each worker serves every system
        """See `JobQueue`."""
        if not self._is_open or self._trouble is not None:
            return 0
        idle = sum(worker.is_idle for worker in self._workers)
        if self._backoff is not None:
            return idle
        return idle + self._options.size - len(self._workers)

    async def offer(self, key: str, system: str = "") -> None:  # noqa: ARG002
        """See `JobQueue`."""
        if self.slots() <= 0:
            raise Unavailable("No worker is free.")
        worker = next((worker for worker in self._workers if worker.is_idle), None)
        if worker is None:
            worker = self._start_worker()
        worker.take(key)

    def machines(self) -> Sequence[WorkerMachine]:
        """Return the gateway's own machine, with the workers of this pool."""
        return [
            WorkerMachine(
                self._host,
                __version__,
                self._options.systems,
                self._options.size if self._trouble is None else self._count_ready(),
                tuple(worker.job for worker in self._workers if worker.job is not None),
                not self._is_open,
                self._reactor.seconds(),
            )
        ]

    def trouble(self, system: str = "") -> QueueTrouble | None:  # noqa: ARG002
        """See `JobQueue`."""
        if self._trouble is not None or self._count_ready():
            return self._trouble
        states = (WorkerState.STARTING, WorkerState.OVERDUE)
        starts = [worker.started_at for worker in self._workers if worker.state in states]
        start = min(starts, default=math.inf)
        seconds = self._reactor.seconds() - start
        if not self._is_open or seconds < SLOW_SECONDS:
            return None
        text = f"The gateway's workers take long to start ({seconds:.0f} s so far)."
        return QueueTrouble(text, "", start, grave=False)

    def set_debug(self, is_on: bool) -> None:
        """Switch the debug messages of all workers, including those that start later."""
        self._is_debug = is_on
        for worker in self._workers:
            worker.set_debug(is_on=is_on)

    async def cancel(self, key: str) -> None:
        """See `JobQueue`; returns when the worker that had the job has ended."""
        for worker in [worker for worker in self._workers if worker.job == key]:
            worker.stop()
            await shield(worker.termination)

    def _start_worker(self) -> WorkerProcess:
        self._started_workers += 1
        name = f"worker {self._started_workers}"
        worker = WorkerProcess(
            self._reactor,
            self._note_ready,
            self._note_done,
            self._note_end,
            lambda _, entries: self.on_metrics(name, entries),
        )
        worker.termination.addCallback(lambda _: self.on_metrics_end(name))
        try:
            worker.start(self._argv, self._env, self._start_limit)
        except OSError as error:
            self._note_failed_start(f"cannot be started: {error.strerror}")
            raise Unavailable("No worker can be started.", detail=str(error)) from error
        self._workers.append(worker)
        if self._is_debug:
            worker.set_debug(is_on=True)
        return worker

    def _start_warm_workers(self) -> None:
        number = min(self._options.warm, self._options.size)
        if self._trouble is not None:
            number = 1  # one attempt at a time shows when starts succeed again
        while self._is_open and self._backoff is None and len(self._workers) < number:
            with suppress(Unavailable):  # it is logged, and the backoff ends in a new attempt
                self._start_worker()

    def _count_ready(self) -> int:
        return sum(worker.state is WorkerState.READY for worker in self._workers)

    def _note_ready(self, _: WorkerProcess) -> None:
        if self._is_open and self._settling is None and self._failed_starts:
            self._settling = self._reactor.callLater(SETTLED_SECONDS, self._settle)

    def _settle(self) -> None:
        """End the trouble if a worker that got ready is still alive."""
        self._settling = None
        if self._count_ready() == 0:
            return
        if self._trouble is not None:
            self._log.info("workers can start again")
        self._trouble, self._failed_starts = None, 0
        self.on_idle()

    def _note_done(self, worker: WorkerProcess, key: str) -> None:
        self._job_deaths = 0
        self.on_end(JobEnd(key, runner_name(self._host, worker.pid)))
        if worker.jobs_done >= self._options.jobs_per_worker:
            worker.leave()
        if worker.is_idle:
            self.on_idle()

    def _note_end(self, worker: WorkerProcess, end: WorkerEnd) -> None:
        self._workers.remove(worker)
        if self._is_open and not end.is_ordered:
            self._note_crash(worker, end)
        if worker.job is not None:
            name = runner_name(self._host, worker.pid)
            is_death = worker.ready_at is not None and not end.is_stopped
            self.on_end(JobEnd(worker.job, name, end.reason, is_death))
        if self._is_open:
            self._judge_starts()
            self._start_warm_workers()
            self.on_idle()

    def _note_crash(self, worker: WorkerProcess, end: WorkerEnd) -> None:
        """Log a worker that ended by itself, and count it as a failed start or a death at a job."""
        if worker.ready_at is not None and worker.job is not None:
            self._job_deaths += 1
            excess = self._job_deaths - JOB_DEATHS
            if excess > 0:
                self._back_off(excess, end.reason)
            return
        age = 0.0 if worker.ready_at is None else self._reactor.seconds() - worker.ready_at
        if worker.job is None and (worker.jobs_done > 0 or age > YOUNG_SECONDS):
            self._log.warn("worker {pid} without a job {how}", pid=worker.pid, how=end.reason)
            return
        if end.is_overdue:
            self._start_limit = min(LONGEST_START, self._start_limit * 2)
        words = worker.last_words.rstrip(".")
        self._note_failed_start(f"{end.reason}: {words}" if words else end.reason)

    def _note_failed_start(self, reason: str) -> None:
        if self._backoff is None:  # several workers that fail at once count as one
            self._failed_starts += 1
            self._back_off(self._failed_starts, reason)
        self._last_failure = reason
        self._judge_starts()

    def _judge_starts(self) -> None:
        """Set the trouble if the last start failed and no other worker is ready."""
        if self._backoff is None or not self._failed_starts or self._count_ready():
            return
        now = self._reactor.seconds()
        start = now if self._trouble is None else self._trouble.since
        text = (
            "No worker can start on the gateway's machine; its admins find the reason in the log."
        )
        self._trouble = QueueTrouble(text, f"A worker {self._last_failure}.", start)

    def _back_off(self, failures: int, reason: str) -> None:
        """Start no worker for a while, so that a worker that always dies uses little CPU."""
        if self._backoff is not None:
            return
        seconds = RESTART.seconds(failures)
        self._log.error(
            "A worker {how}; the next one starts in {seconds:g} s", how=reason, seconds=seconds
        )
        self._backoff = self._reactor.callLater(seconds, self._end_backoff)

    def _end_backoff(self) -> None:
        self._backoff = None
        self._start_warm_workers()
        self.on_idle()
