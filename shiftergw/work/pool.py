"""The local worker processes: each takes one record at a time on its standard input.

A worker is any command that speaks lines of JSON. It reads `{"record": KEY}`, one at a time, and
writes `{"ready": true}` once it has started and `{"done": KEY}` after each record. The end of its
input means: stop after the current record; so no worker outlives a gateway that was killed. What
it writes to standard error goes into the gateway's log.

A worker that wants its own children to go with it leads a process group (`os.setpgrp`) by the time
it says that it is ready.
"""

from __future__ import annotations

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
from shiftergw.work.process import WorkerProcess

STOP_SECONDS = 5.0
"""How long running jobs may go on when the service stops."""

LONGEST_BACKOFF = 60.0
"""Seconds; the wait for a new worker after crashes begins at one second and doubles up to this."""


class WorkerPool(Service):
    """A `JobQueue` of at most `size` processes, started when there is work for them.

    A worker is replaced after `jobs_per_worker` jobs. One that dies is replaced too, after a wait
    that grows until a job is done again; its job is left to the store's `stale`.
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
        self._reactor = reactor
        self._argv = argv
        self._env = env
        self._size = size
        self._jobs_per_worker = jobs_per_worker
        self._warm = min(warm, size)
        self._systems = tuple(systems)
        self._workers: list[WorkerProcess] = []
        self._crashes = 0
        self._backoff: Any = None
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
        if not self._open:
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
        name = socket.gethostname()
        leaving = not self._open
        return [WorkerMachine(name, __version__, self._systems, self._size, jobs, leaving, now)]

    def trouble(self) -> str | None:
        """See `JobQueue`: workers that crash are no trouble that lasts."""
        return None

    async def cancel(self, key: str) -> None:
        """See `JobQueue`; returns when the worker that ran it is gone."""
        for worker in [worker for worker in self._workers if worker.job == key]:
            worker.stop()
            await shielded(worker.gone)

    async def drain(self, limit: float) -> None:
        """See `JobQueue`; returns when all workers are gone."""
        self._open = False
        if self._backoff is not None:
            self._backoff.cancel()
            self._backoff = None
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
        worker = WorkerProcess(self._reactor, self._done, self._gone)
        try:
            worker.start(self._argv, self._env)
        except OSError as error:
            self._back_off(f"cannot be started: {error.strerror}")
            raise Unavailable("No worker can be started.", detail=str(error)) from error
        self._workers.append(worker)
        return worker

    def _warm_up(self) -> None:
        while self._open and self._backoff is None and len(self._workers) < self._warm:
            with suppress(Unavailable):  # then it is logged, and tried again after a while
                self._start()

    def _done(self, worker: WorkerProcess) -> None:
        self._crashes = 0
        if worker.jobs_done >= self._jobs_per_worker:
            worker.leave()
        if worker.idle:
            self.on_idle()

    def _gone(self, worker: WorkerProcess, how: str) -> None:
        self._workers.remove(worker)
        if not self._open:
            return
        if worker.leaving:
            self.on_idle()
            self._warm_up()
        else:
            self._back_off(how)

    def _back_off(self, why: str) -> None:
        """Start no worker for a while, so that one that always crashes cannot spin."""
        if self._backoff is not None:
            return
        seconds = min(LONGEST_BACKOFF, 2.0**self._crashes)
        self._crashes += 1
        self._log.error(
            "A worker {why}; the next one starts in {seconds:g} s", why=why, seconds=seconds
        )
        self._backoff = self._reactor.callLater(seconds, self._go_on)

    def _go_on(self) -> None:
        self._backoff = None
        self.on_idle()
        self._warm_up()
