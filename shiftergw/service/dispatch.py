"""From the store to the workers: what waits is offered, what was left behind is offered again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from shiftergw.errors import Superseded, Unavailable
from shiftergw.model import ImageRecord
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.rounds import Rounds
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore, JobQueue
from shiftergw.rules.attempts import describe_attempt, describe_work

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

STOP_SECONDS = 30.0
"""How long a worker that hangs is waited for: one in the kernel's hands cannot even be killed."""

INTERVAL = 5.0
"""Seconds between two rounds when nobody wakes it."""


class Dispatch(Rounds):
    """Offers records to the queue while it has slots, users in turn.

    `wake` is called after a claim and whenever a slot becomes free. The store is the one truth: to
    offer a record twice, or to lose an offer, costs time and does no harm.
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
        """Take work up again whose heartbeat, or whose offer, is `heartbeat_limit` seconds old.

        `systems` are all there are. No user has more than `running_per_user` pulls in work at once.
        """
        super().__init__(self._offer_work, clock, interval, "dispatch")
        self._store = store
        self._queue = queue
        self._limit = heartbeat_limit
        self._systems = systems
        self._running_per_user = running_per_user
        self._offered: dict[str, float] = {}
        """When records that nobody has begun yet were offered."""
        self._unsettled: Counter[str] = Counter()
        """By the key of its record, how many jobs have ended whose ends are not settled yet."""
        self._stops: dict[str, Deferred[None]] = {}
        """By the key of its record, the stop of each worker that hangs."""

    def stopService(self) -> Deferred[None]:
        """Begin no other round; fire when the one under way, and all stops, have ended."""
        ended = super().stopService()

        async def finish() -> None:
            await ended
            for stop in list(self._stops.values()):
                stop.cancel()

        return Deferred.fromCoroutine(finish())

    def begin_settling(self, key: str) -> None:
        """Forget the offer of a record, since its job has ended, and make no other one for now.

        The worker of the job may get the record again. Its new attempt would look like the one
        whose end is being settled.
        """
        self._offered.pop(key, None)
        self._unsettled[key] += 1

    def end_settling(self, key: str) -> None:
        """Offer the record again if it still waits."""
        self._unsettled[key] -= 1
        if not self._unsettled[key]:
            del self._unsettled[key]
        self.wake()

    async def _offer_work(self) -> None:
        now = self._clock.seconds()
        stale = await self._store.stale(now, self._limit)
        self._forget(now - self._limit)
        await gather_or_cancel(self._take_back(one) for one in stale if one.runner is not None)
        slots = {system: self._queue.slots(system) for system in self._systems}
        without = [system for system, free in slots.items() if free <= 0]
        if len(without) == len(slots):
            return
        most = sum(slots.values()) + len(self._offered)
        waiting = await self._store.waiting(
            now, most, self._running_per_user, self._offered.keys(), without, *self._shares()
        )
        found = {record.key: record.system for record in (*stale, *waiting)}
        self._offered = {key: at for key, at in self._offered.items() if key in found}
        for key, system in found.items():
            if key in self._offered or key in self._stops or key in self._unsettled:
                continue
            if self._queue.slots(system) <= 0:
                continue
            # Its job may have ended before the offer returns.
            self._offered[key] = self._clock.seconds()
            try:
                await self._queue.offer(key, system)
            except Unavailable as error:
                self._offered.pop(key, None)
                self._log.warn(
                    "no worker took {key}: {error} {detail}",
                    key=key,
                    error=error,
                    detail=error.detail,
                )
                return

    async def _take_back(self, record: ImageRecord) -> None:
        """Requeue work whose worker vanished or hangs, and stop that worker if it is here."""
        self._log.warn(
            "requeued: {what}, {trace}: worker {runner} gives no sign of life",
            what=describe_work(record),
            trace=describe_attempt(record),
            runner=record.runner,
        )
        message = "The worker of this pull has vanished; another one takes over."
        try:
            await self._store.requeue(record.key, record.attempt, message, died=True)
        except Superseded:
            return  # it has ended, or another gateway was quicker
        # In the background: a stop may take half a minute, and others' work does not wait for it.
        stop = Deferred.fromCoroutine(self._make_room(record.key))
        self._stops[record.key] = stop

        def ended(result: object) -> None:
            self._stops.pop(record.key, None)
            if isinstance(result, Failure) and not result.check(CancelledError):
                self._log.failure("the worker of {key}", result, key=record.key)
            self.wake()

        stop.addBoth(ended)

    def _shares(self) -> tuple[int | None, Mapping[str, int]]:
        """Return how many slots a user, a registry, and each system may have while others wait.

        All but one: the pulls from a slow registry, of a user with slow images, or to a system that
        hangs, take a slot for a long time each. Systems with machines of their own take none from
        others, and have no share.
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

    async def _make_room(self, key: str) -> None:
        """Stop the worker that hangs on a record, if it is here; not even that may work."""
        try:
            await within(
                STOP_SECONDS,
                self._clock,
                self._queue.cancel(key),
                lambda: Unavailable("it cannot be stopped"),
            )
        except Unavailable as error:
            self._log.error("the worker of {key}: {error}", key=key, error=error.what)

    def _forget(self, before: float) -> None:
        """Forget offers that were made before this time, unless a worker has the job."""
        machines = [machine for machine in self._queue.machines() if machine.heard > before]
        jobs = {key for machine in machines for key in machine.jobs}
        self._offered = {key: at for key, at in self._offered.items() if at > before or key in jobs}
