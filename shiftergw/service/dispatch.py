"""Offer waiting records to the job queue, and offer records of dead workers again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from shiftergw.errors import Superseded, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.rounds import Rounds
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore, JobQueue
from shiftergw.rules.attempts import log_values

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

STOP_SECONDS = 30.0
"""Seconds for a hung worker to stop: a process that is blocked in the kernel cannot be killed."""

INTERVAL = 5.0
"""Seconds between two rounds, unless `wake` is called."""


class Dispatch(Rounds):
    """Offers records to the queue while it has free slots, in fair order among users.

    `wake` is called after each claim and whenever a slot becomes free. The store decides who works
    on a record, so an offer that is made twice, or lost, costs time but does no harm.
    """

    _log = Logger()

    def __init__(
        self,
        store: ImageStore,
        queue: JobQueue,
        clock: IReactorTime,
        heartbeat_limit: float,
        systems: Collection[str],
        running_per_user: int | None = None,
        interval: float = INTERVAL,
    ) -> None:
        """Offer work again once its heartbeat or its offer is `heartbeat_limit` seconds old.

        `systems` are all configured systems. At most `running_per_user` pulls of a user run at
        once.
        """
        super().__init__(self._offer_work, clock, interval, "dispatch")
        self._store = store
        self._queue = queue
        self._limit = heartbeat_limit
        self._systems = systems
        self._running_per_user = running_per_user
        self._offers: dict[str, float] = {}
        """When each record was offered that no worker has begun yet, by its key."""
        self._settling_jobs: Counter[str] = Counter()
        """The number of ended jobs that are still being settled, by the key of the record."""
        self._stops: dict[str, Deferred[None]] = {}
        """The stop of each hung worker, by the key of its record."""

    def stopService(self) -> Deferred[None]:
        """Start no new round; fire when the current one, and all stops of workers, have ended."""
        round_end = super().stopService()

        async def finish() -> None:
            await round_end
            for stop in list(self._stops.values()):
                stop.cancel()

        return Deferred.fromCoroutine(finish())

    def begin_settling(self, key: str) -> None:
        """Stop offering a record whose job has ended, until `end_settling`.

        Otherwise the same worker might get the record again, and its new attempt would look like
        the one whose end is being settled.
        """
        self._offers.pop(key, None)
        self._settling_jobs[key] += 1

    def end_settling(self, key: str) -> None:
        """Allow offers of the record again; one follows at once if it still waits."""
        self._settling_jobs[key] -= 1
        if not self._settling_jobs[key]:
            del self._settling_jobs[key]
        self.wake()

    async def _offer_work(self) -> None:
        now = self._clock.seconds()
        stale = await self._store.stale(now, self._limit)
        self._forget_offers(now - self._limit)
        await gather_or_cancel(
            self._requeue_stale(record) for record in stale if record.runner is not None
        )
        slots = {system: self._queue.slots(system) for system in self._systems}
        full_systems = [system for system, free in slots.items() if free <= 0]
        if len(full_systems) == len(slots):
            return
        limit = sum(slots.values()) + len(self._offers)
        waiting = await self._store.waiting(
            now, limit, self._running_per_user, self._offers.keys(), full_systems, *self._shares()
        )
        candidates = {record.key: record.system for record in (*stale, *waiting)}
        self._offers = {key: time for key, time in self._offers.items() if key in candidates}
        for key, system in candidates.items():
            if key in self._offers or key in self._stops or key in self._settling_jobs:
                continue
            if self._queue.slots(system) <= 0:
                continue
            # Before the offer: its job may end before `offer` returns.
            self._offers[key] = self._clock.seconds()
            try:
                await self._queue.offer(key, system)
            except Unavailable as error:
                self._offers.pop(key, None)
                self._log.warn(
                    "no worker took {key}: {error} {detail}",
                    key=key,
                    error=error,
                    detail=error.detail,
                )
                return

    async def _requeue_stale(self, record: ImageRecord) -> None:
        """Requeue work whose worker vanished or hangs, and stop the worker if it runs here."""
        self._log.warn(
            "requeued: {what}, {trace}: worker {runner} gives no sign of life",
            **log_values(record),
            runner=record.runner,
        )
        message = "The worker of this pull has vanished; another one takes over."
        try:
            await self._store.requeue(record.key, record.attempt, message, died=True)
        except Superseded:
            return  # the attempt has ended, or another gateway has requeued it
        # In the background: a stop may take half a minute, and must not delay other users' work.
        stop = Deferred.fromCoroutine(self._stop_worker(record.key))
        self._stops[record.key] = stop

        def log_stop(result: object) -> None:
            self._stops.pop(record.key, None)
            if isinstance(result, Failure) and not result.check(CancelledError):
                self._log.failure("the worker of {key}", result, key=record.key)
            self.wake()

        stop.addBoth(log_stop)

    def _shares(self) -> tuple[int | None, Mapping[str, int]]:
        """Return how many slots a user or registry, and each system, may use while others wait.

        All slots but one: pulls from a slow registry, of a user with slow images, or to a system
        that hangs, each occupy a slot for a long time. Systems with machines of their own take no
        slots from other systems, and have no limit.
        """
        machines = [machine for machine in self._queue.machines() if not machine.leaving]
        systems = {}
        for system in self._systems:
            serving = [machine for machine in machines if system in machine.systems]
            slots = sum(machine.slots for machine in serving)
            if slots > 1 and any(len(machine.systems) > 1 for machine in serving):
                systems[system] = slots - 1
        slots = sum(machine.slots for machine in machines)
        return slots - 1 if slots > 1 else None, systems

    async def _stop_worker(self, key: str) -> None:
        """Stop the hung worker of a record, if it runs here; log it if that fails."""
        try:
            await within(
                STOP_SECONDS,
                self._clock,
                self._queue.cancel(key),
                lambda: Unavailable("it cannot be stopped"),
            )
        except Unavailable as error:
            self._log.error("the worker of {key}: {error}", key=key, error=error.what)

    def _forget_offers(self, before: float) -> None:
        """Forget offers from before this time, unless a worker has the job."""
        machines = [machine for machine in self._queue.machines() if machine.heard > before]
        jobs = {key for machine in machines for key in machine.jobs}
        self._offers = {
            key: time for key, time in self._offers.items() if time > before or key in jobs
        }
