"""Requeue work whose worker ended without a result; fail work when no worker can start."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from shiftergw.errors import GatewayError, Superseded, Unavailable, key_values
from shiftergw.model.records import Failed, ImageRecord
from shiftergw.model.throughput import Throughput
from shiftergw.plumbing.retry import retry_while_unavailable
from shiftergw.plumbing.rounds import Rounds
from shiftergw.ports import ImageStore, JobEnd, JobQueue, QueueTrouble
from shiftergw.rules.attempts import MAX_ATTEMPTS, STOPPED_MESSAGE, log_values
from shiftergw.rules.work_ends import CAUSE_LIMIT, WorkMeasures, end_fields, event_of
from shiftergw.service.dispatch import Dispatch
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_log = Logger()

GATEWAY = "gateway"
"""The runner of an attempt that the gateway begins only to end the work."""

STOP_SECONDS = 10.0
"""Seconds that the stop waits until the last ends of jobs are in the store."""

INTERVAL = 5.0
"""Seconds between two checks whether workers can start."""

HANDOVER_SECONDS = 60.0
"""The least seconds that work waits before it fails, in case another gateway has workers.

Another gateway starts work of this one within seconds, and restarts within a minute.
"""

MINUTES = 120.0
"""Durations of at least this many seconds are shown in minutes."""

PAGE = 500
"""Records of the queue that are read in one query."""

MOST_FAILED = 1000
"""The most pulls that fail in one round because no worker can start."""


class Recovery(Service):
    """Requeues the record of each job that ended without a result, as soon as its worker is gone.

    Start it before the queue and stop it after the queue: a queue reports ends while it stops.
    """

    _log = Logger()

    def __init__(self, store: ImageStore, dispatch: Dispatch, clock: IReactorTime) -> None:
        """Have `dispatch` offer a record again only after the end of its job is settled."""
        self._store = store
        self._dispatch = dispatch
        self._clock = clock
        self._settling: set[Deferred[None]] = set()
        self._early_deaths: dict[str, int] = {}
        """How many workers in a row died before they began a record, by the record's key."""

    def job_ended(self, end: JobEnd) -> None:
        """Begin to settle the end of a job in the store, and return at once."""
        self._dispatch.begin_settling(end.key)
        settling = Deferred.fromCoroutine(self._settle(end))
        self._settling.add(settling)
        settling.addErrback(self._report, end)

        def forget(_: None) -> None:
            self._settling.discard(settling)
            self._dispatch.end_settling(end.key)

        settling.addCallback(forget)

    def stopService(self) -> Deferred[None]:
        """Fire when all ends are settled, or after `STOP_SECONDS`."""
        super().stopService()
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        deferreds = list(self._settling)

        def cancel() -> None:
            for settling in deferreds:
                settling.cancel()

        timer = self._clock.callLater(STOP_SECONDS, cancel)
        for settling in deferreds:
            await settling
        if timer.active():
            timer.cancel()

    def _report(self, failure: Failure, end: JobEnd) -> None:
        """Log why a record was not requeued; `Dispatch` does it once its heartbeat is old."""
        if failure.check(GatewayError, CancelledError):
            cancellation = "the gateway stopped before its database was available"
            self._log.error(
                "record {key} of worker {runner} was not requeued: {error}",
                key=end.key,
                runner=end.runner,
                error=cancellation if failure.check(CancelledError) else failure.value,
            )
        else:
            self._log.failure("record {key} was not requeued", failure, key=end.key)

    async def _settle(self, end: JobEnd) -> None:
        record = await retry_while_unavailable(
            lambda _: self._store.get(end.key), self._clock, f"the end of the job on {end.key}"
        )
        if record is None or not record.in_flight or not end.runner:
            self._early_deaths.pop(end.key, None)
            return
        if record.runner is None and end.died:
            await self._count_early_death(record, end)
            return
        self._early_deaths.pop(end.key, None)
        if record.runner != end.runner:
            return
        loss = end.loss or "left the record without an end"
        died = end.died or not end.loss
        try:
            record = await retry_while_unavailable(
                lambda _: self._store.requeue(
                    end.key, record.attempt, status_message(loss, died=died), died=died
                ),
                self._clock,
                f"the requeueing of {end.key}",
            )
        except Superseded:
            return
        self._log.warn(
            "requeued: {what}, {trace}: worker {runner} {loss} ({deaths} of {most} deaths)",
            **log_values(record),
            runner=end.runner,
            loss=loss,
            deaths=record.deaths,
            most=MAX_ATTEMPTS,
        )
        if record.deaths >= MAX_ATTEMPTS:
            await self._give_up(record, loss)

    async def _count_early_death(self, record: ImageRecord, end: JobEnd) -> None:
        """Count a worker that died after a record was offered to it and before it began an attempt.

        The store counts deaths of attempts only, so the record would be offered for ever.
        """
        deaths = self._early_deaths[end.key] = self._early_deaths.get(end.key, 0) + 1
        self._log.warn(
            "worker {runner} {loss} before it began {what}, {trace}",
            runner=end.runner,
            loss=end.loss,
            **log_values(record),
        )
        if deaths >= MAX_ATTEMPTS:
            del self._early_deaths[end.key]
            await self._give_up(record, end.loss)

    async def _give_up(self, record: ImageRecord, loss: str) -> None:
        cause = f"{MAX_ATTEMPTS} workers died on this image; the last one {loss}."
        remedy = "Tell the site's support: the log of the gateway says more."
        await _fail(self._store, record, cause, remedy, self._clock.seconds())


def status_message(loss: str, *, died: bool) -> str:
    """Return the status message of a record that waits for the next worker."""
    if died:
        return f"The worker {loss}; another one takes over."
    return STOPPED_MESSAGE


class WorkerShortage(Rounds):
    """Fails waiting pulls when no worker has been able to start for too long.

    If another gateway on the same store has workers, it starts these pulls, and they do not fail.
    It shows that by work in progress, or by starting a pull within `HANDOVER_SECONDS`.
    """

    def __init__(
        self,
        store: ImageStore,
        queue: JobQueue,
        clock: IReactorTime,
        limit: float,
        systems: Collection[str],
        heartbeat_limit: float,
        interval: float = INTERVAL,
    ) -> None:
        """Fail pulls once the trouble of `queue` has lasted for `limit` seconds.

        Work on one of the `systems` counts as in progress if its last heartbeat is at most
        `heartbeat_limit` seconds old.
        """
        super().__init__(self._check, clock, interval, "worker shortage")
        self._store = store
        self._queue = queue
        self._limit = limit
        self._systems = systems
        self._heartbeat_limit = heartbeat_limit
        self._handover = min(HANDOVER_SECONDS, limit)
        self._idle_since: float | None = None
        """The time since which no check has seen work in progress."""

    async def _check(self) -> None:
        trouble, now = self._queue.trouble(), self._clock.seconds()
        if trouble is None or not trouble.grave:
            self._idle_since = None
            return
        # A single check may fall between two pulls of another gateway.
        if await self._has_work_in_progress(now - self._heartbeat_limit):
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = now
        if now - trouble.since < self._limit or now - self._idle_since < self._handover:
            return
        # No heartbeat is that old: these records have none at all.
        without_heartbeat = await self._store.stale(now, now - 1)
        waiting = await self._store.waiting(now, MOST_FAILED)
        for record in (*without_heartbeat, *waiting):
            waiting_since = max(record.last_pull or 0.0, record.not_before or 0.0)
            if record.status is State.PENDING and now - waiting_since >= self._handover:
                await self._end(record, trouble, now)

    async def _has_work_in_progress(self, oldest: float) -> bool:
        """Return whether any work has a heartbeat after the time `oldest`."""
        for system in self._systems:
            page = await self._store.queue(system, limit=PAGE)
            while page:
                for record in page:
                    if record.runner is not None and (record.last_heartbeat or 0) > oldest:
                        return True
                page = await self._store.queue(system, page[-1].key, PAGE)
        return False

    async def _end(self, record: ImageRecord, trouble: QueueTrouble, now: float) -> None:
        seconds = now - trouble.since
        duration = f"{seconds:.0f} s" if seconds < MINUTES else f"{seconds / 60:.0f} minutes"
        cause = f"For {duration} no worker could start on the gateway's machine."
        remedy = "Pull again once the gateway's admins have mended it; its log has the reason."
        await _fail(self._store, record, cause, remedy, now, detail=trouble.detail)


async def _fail(
    store: ImageStore, record: ImageRecord, cause: str, remedy: str, now: float, *, detail: str = ""
) -> None:
    """End work in FAILURE, and log that with `detail`, unless a worker has begun it meanwhile."""
    work = await store.begin(record.key, GATEWAY, now, math.inf)
    if work is None:
        return
    own = record.sealed is not None or record.kind == "acl"
    outcome = Failed(str(State.PENDING), cause, remedy, retryable=True, own=own)
    await store.finish(record.key, work.attempt, outcome, now)
    text = f"{cause} {detail}".strip()
    fields = end_fields(work, str(State.FAILURE), WorkMeasures(now, now), cause=text)
    _log.error(
        "{event} {text}",
        event=event_of(work, str(State.FAILURE)),
        text=key_values(fields, CAUSE_LIMIT),
        fields=fields,
    )
    with suppress(Unavailable):
        await store.add_throughput(Throughput(now, failures=int(record.kind == "pull")))
