"""The local worker processes: each takes one record at a time on its standard input.

A worker is any command that speaks lines of JSON. It reads `{"record": KEY}`, one at a time, and
writes `{"ready": true}` once it has started and `{"done": KEY}` after each record. The end of its
input means: stop after the current record; so no worker outlives a gateway that was killed. What
it writes to standard error goes into the gateway's log.

A worker that wants its own children to go with it leads a process group (`os.setpgrp`) by the time
it says that it is ready.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw import __version__
from shiftergw.errors import Unavailable
from shiftergw.model import WorkerMachine
from shiftergw.plumbing.timing import shielded
from shiftergw.ports import JobEnd, QueueTrouble, runner_name
from shiftergw.work.process import LONGEST_START, START_SECONDS, WorkerProcess

STOP_SECONDS = 5.0
"""How long running jobs may go on when the service stops."""

LONGEST_BACKOFF = 60.0
"""Seconds; the wait before the next start begins at one second and doubles up to this."""

SLOW_SECONDS = 10.0
"""A start that takes longer is worth a word to those who wait."""

SETTLED_SECONDS = 2.0
"""The trouble ends when a worker has lived for so long after it was ready."""

YOUNG_SECONDS = 10.0
"""A worker without a job that ends by itself sooner than this counts as a failed start."""

JOB_DEATHS = 5
"""Workers that may die at their jobs, one after the other, before the next start is delayed.

An image is given up after so many deaths; the images of other users do not wait for that.
"""


class WorkerPool(Service):
    """A `JobQueue` of at most `size` processes, started when there is work for them.

    A worker is replaced after `jobs_per_worker` jobs, and at once when it dies at one. After a
    start that failed the next one waits, ever longer. While no worker can start there are no slots,
    and one start at a time is tried; the queue is in trouble until one succeeds.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        argv: Sequence[str],
        env: Mapping[str, str],
        size: int,
        jobs_per_worker: int,
        warm: int = 0,
        systems: Sequence[str] = (),
    ) -> None:
        """Run `argv` with the environment `env` and no other.

        So many workers are `warm`: started before there is work, since a start takes as long as a
        small image does. They work for these `systems`.
        """
        self.on_idle: Callable[[], object] = lambda: None
        """Called when a slot has become free."""
        self.on_end: Callable[[JobEnd], object] = lambda _: None
        """Called at the end of each job."""
        self._host = socket.gethostname()
        self._reactor = reactor
        self._argv = argv
        self._env = env
        self._size = size
        self._jobs_per_worker = jobs_per_worker
        self._warm = min(warm, size)
        self._systems = tuple(systems)
        self._workers: list[WorkerProcess] = []
        self._job_deaths = 0
        self._failed_starts = 0
        self._last_failure = ""
        self._fault: QueueTrouble | None = None
        self._start_limit = START_SECONDS
        self._backoff: Any = None
        self._settling: Any = None
        self._open = False

    def startService(self) -> None:
        """Take offers from now on."""
        super().startService()
        self._open = True
        self._warm_up()

    def stopService(self) -> Deferred[None]:
        """Stop all workers; a job that does not end in a few seconds is stopped."""
        super().stopService()
        return Deferred.fromCoroutine(self.drain(STOP_SECONDS))

    def slots(self, system: str = "") -> int:  # noqa: ARG002 - our workers serve every system
        """See `JobQueue`."""
        if not self._open or self._fault is not None:
            return 0
        idle = sum(worker.idle for worker in self._workers)
        return idle + (self._size - len(self._workers) if self._backoff is None else 0)

    async def offer(self, key: str, system: str = "") -> None:  # noqa: ARG002
        """See `JobQueue`."""
        if self.slots() <= 0:
            raise Unavailable("No worker is free.")
        worker = next((worker for worker in self._workers if worker.idle), None)
        if worker is None:
            worker = self._start()
        worker.take(key)

    def machines(self) -> Sequence[WorkerMachine]:
        """See `JobQueue`: this one."""
        jobs = tuple(worker.job for worker in self._workers if worker.job is not None)
        now = self._reactor.seconds()
        leaving = not self._open
        slots = self._size if self._fault is None else self._count_ready()
        return [WorkerMachine(self._host, __version__, self._systems, slots, jobs, leaving, now)]

    def trouble(self, system: str = "") -> QueueTrouble | None:  # noqa: ARG002
        """See `JobQueue`."""
        if self._fault is not None or self._count_ready():
            return self._fault
        starting = [one.started for one in self._workers if not (one.ready or one.leaving)]
        since = min(starting, default=math.inf)
        seconds = self._reactor.seconds() - since
        if not self._open or seconds < SLOW_SECONDS:
            return None
        what = f"The gateway's workers take long to start ({seconds:.0f} s so far)."
        return QueueTrouble(what, "", since, grave=False)

    async def cancel(self, key: str) -> None:
        """See `JobQueue`; returns when the worker that ran it is gone."""
        for worker in [worker for worker in self._workers if worker.job == key]:
            worker.stop()
            await shielded(worker.gone)

    async def drain(self, limit: float) -> None:
        """Take no more jobs; stop workers after `limit` seconds; return when all are gone."""
        self._open = False
        for call in (self._backoff, self._settling):
            if call is not None and call.active():
                call.cancel()
        self._backoff = self._settling = self._fault = None
        for worker in self._workers:
            worker.leave()
        late = self._reactor.callLater(limit, self._stop_all)
        try:
            while self._workers:
                await shielded(self._workers[0].gone)
        finally:
            if late.active():
                late.cancel()

    def _stop_all(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(self._reactor, self._ready, self._done, self._gone)
        try:
            worker.start(self._argv, self._env, self._start_limit)
        except OSError as error:
            self._failed_start(f"cannot be started: {error.strerror}")
            raise Unavailable("No worker can be started.", detail=str(error)) from error
        self._workers.append(worker)
        return worker

    def _warm_up(self) -> None:
        # While no worker can start there is one attempt at a time, wanted or not.
        wanted = 1 if self._fault is not None else self._warm
        while self._open and self._backoff is None and len(self._workers) < wanted:
            with suppress(Unavailable):  # then it is logged, and tried again after a while
                self._start()

    def _count_ready(self) -> int:
        return sum(worker.ready and not worker.leaving for worker in self._workers)

    def _ready(self, _: WorkerProcess) -> None:
        if self._open and self._settling is None and self._failed_starts:
            self._settling = self._reactor.callLater(SETTLED_SECONDS, self._settle)

    def _settle(self) -> None:
        """End the trouble if there is a worker that has started well."""
        self._settling = None
        if self._count_ready() == 0:
            return
        if self._fault is not None:
            self._log.info("workers can start again")
        self._fault, self._failed_starts = None, 0
        self.on_idle()

    def _done(self, worker: WorkerProcess, key: str) -> None:
        self._job_deaths = 0
        self.on_end(JobEnd(key, self._name_of(worker)))
        if worker.jobs_done >= self._jobs_per_worker:
            worker.leave()
        if worker.idle:
            self.on_idle()

    def _name_of(self, worker: WorkerProcess) -> str:
        return runner_name(self._host, worker.pid)

    def _gone(self, worker: WorkerProcess, how: str) -> None:
        self._workers.remove(worker)
        if self._open and not worker.leaving:
            if worker.job is None and self._has_started_well(worker):
                self._log.warn("worker {pid} without a job {how}", pid=worker.pid, how=how)
            elif worker.job is None or not worker.ready:
                self._count_failed_start(worker, how)
            else:
                self._count_job_death(how)
        if worker.job is not None:
            died = worker.ready and not worker.stopped
            self.on_end(JobEnd(worker.job, self._name_of(worker), how, died))
        if self._open:
            self._judge()
            self._warm_up()
            self.on_idle()

    def _has_started_well(self, worker: WorkerProcess) -> bool:
        """Return whether a worker has done a job, or has lived long enough to do one."""
        lived = self._reactor.seconds() - worker.ready_at if worker.ready else 0.0
        return worker.jobs_done > 0 or lived > YOUNG_SECONDS

    def _count_failed_start(self, worker: WorkerProcess, how: str) -> None:
        if worker.overdue:
            self._start_limit = min(LONGEST_START, self._start_limit * 2)
        words = worker.last_words.rstrip(".")
        self._failed_start(f"{how}: {words}" if words else how)

    def _count_job_death(self, how: str) -> None:
        self._job_deaths += 1
        beyond = self._job_deaths - JOB_DEATHS
        if beyond > 0:
            self._back_off(beyond, how)

    def _failed_start(self, how: str) -> None:
        if self._backoff is None:  # several at once count as one
            self._failed_starts += 1
            self._back_off(self._failed_starts, how)
        self._last_failure = how
        self._judge()

    def _judge(self) -> None:
        """Note that no worker can start, if the last start failed and no worker is there."""
        if self._backoff is None or not self._failed_starts or self._count_ready():
            return
        since = self._reactor.seconds() if self._fault is None else self._fault.since
        what = (
            "No worker can start on the gateway's machine; its admins find the reason in the log."
        )
        self._fault = QueueTrouble(what, f"A worker {self._last_failure}.", since)

    def _back_off(self, times: int, how: str) -> None:
        """Start no worker for a while, so that one that always dies cannot spin."""
        if self._backoff is not None:
            return
        seconds = min(LONGEST_BACKOFF, 2.0 ** (times - 1))
        self._log.error(
            "A worker {how}; the next one starts in {seconds:g} s", how=how, seconds=seconds
        )
        self._backoff = self._reactor.callLater(seconds, self._go_on)

    def _go_on(self) -> None:
        self._backoff = None
        self._warm_up()
        self.on_idle()
