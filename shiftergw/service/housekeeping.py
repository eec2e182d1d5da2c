"""Expire images, forget old failures, and remove unused files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import GatewayError, TimedOut, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.rounds import Rounds
from shiftergw.plumbing.timing import shield, within
from shiftergw.ports import ImageStore, Sweepable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

INTERVAL = 600.0
"""Seconds between two rounds."""

RENEWAL_STEP = 3600.0
"""Seconds by which an expiration must move before a look-up writes it.

So most look-ups only read.
"""

FAILURE_SECONDS = 86400.0
"""Seconds for which clients can ask about a failure, and for which a delivery may take."""

SCRATCH_SECONDS = 3600.0
"""Seconds after its last use when a converted file or a temporary file is removed."""

MOST_DUE = 1000
"""The most images that expire in one round: many queries read all records in flight."""

SWEEP_SECONDS = 120.0
"""The time limit for the sweep of one directory."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The configured expiry of images.

    `enabled` says whether images expire by themselves (None: the store decides), `lifetime` is in
    seconds from their last use, and `systems` names the systems whose images expire (None: all).
    """

    enabled: bool | None = None
    lifetime: float | None = None
    systems: Collection[str] | None = None


class Housekeeping(Rounds):
    """Expires images that are due, and forgets failures and removals after a day."""

    _log = Logger()

    def __init__(
        self,
        store: ImageStore,
        wake: Callable[[], None],
        clock: IReactorTime,
        schedule: Schedule = Schedule(),
        interval: float = INTERVAL,
        audit: Callable[[Mapping[str, object]], object] = bool,
    ) -> None:
        """Work on `store`; call `wake` when there are files to remove.

        Tell each image that expires to `audit`.
        """
        super().__init__(self._tidy_up, clock, interval, "housekeeping")
        self._store = store
        self._wake = wake
        self._schedule = schedule
        self._audit = audit
        self._logged_state: bool | None = None

    async def _tidy_up(self) -> None:
        now, schedule = self._clock.seconds(), self._schedule
        expires = await self._store.expires(schedule.enabled, now, schedule.lifetime)
        self._log_change(expires)
        count = await self._store.forget_ended(now - FAILURE_SECONDS, foreign=expires)
        if count:
            self._log.info("{n} old failures and removals forgotten", n=count)
        for record in await expire_due(self._store, now, schedule.systems) if expires else ():
            self._log.info(
                "image {id} of {system} expires; its tags: {tags}",
                id=record.id,
                system=record.system,
                tags=record.tags,
            )
            names = (f"{record.itype}:{tag}" for tag in record.tags)
            self._audit(
                {
                    "system": record.system,
                    "action": "expiry",
                    "image": ",".join(names) or None,
                    "id": record.id,
                }
            )
            self._wake()
        # Last, since ranges are only a help: if the database refuses this, images still expire.
        await self._store.forget_ranges(now - FAILURE_SECONDS)

    def _log_change(self, expires: bool) -> None:
        """Log whether images expire by themselves, once and whenever that changes."""
        if expires is self._logged_state:
            return
        self._logged_state = expires
        if expires:
            self._log.info("images expire by themselves")
        elif self._schedule.enabled is False:
            self._log.info("images do not expire by themselves: ScheduledExpiry is false")
        else:
            self._log.warn(
                "images do not expire by themselves: another program has filled the database; see"
                " `shiftergw check --database`, then set ScheduledExpiry to true or false"
            )


async def expire_due(
    store: ImageStore, now: float, systems: Collection[str] | None = None
) -> Sequence[ImageRecord]:
    """Expire images whose expiration has passed, of these systems or of all; return their records.

    At most `MOST_DUE`; the rest follows in the next round.
    """
    due = await store.list_expired(now, systems, MOST_DUE)
    records = [await store.expire(record.key, now) for record in due]
    return [record for record in records if record is not None]


async def extend_expiration(
    store: ImageStore, record: ImageRecord, now: float, lifetime: float | None
) -> None:
    """Set the expiration of an image that is in use to `lifetime` seconds from now.

    If the store cannot write at the moment, the next use does it: the caller already has its
    answer.
    """
    if lifetime is not None and now + lifetime - (record.expiration or 0) > RENEWAL_STEP:
        with suppress(Unavailable):
            await store.renew(record.key, now + lifetime)


class Scratch(Rounds):
    """Removes files that have not been used for long; runs in the workers, which write them."""

    _log = Logger()

    def __init__(
        self,
        places: Mapping[str, tuple[Sweepable, float]],
        clock: IReactorTime,
        interval: float = INTERVAL,
    ) -> None:
        """Sweep `places`: name for the log → place, and seconds for which unused files stay."""
        super().__init__(self._tidy_up, clock, interval, "scratch")
        self._places = places
        self._overdue: set[str] = set()
        """Places whose last sweep timed out and still runs: it may be blocked in the kernel."""

    async def _tidy_up(self) -> None:
        now = self._clock.seconds()
        counts = await gather_or_cancel(
            self._sweep(name, place, now - seconds)
            for name, (place, seconds) in self._places.items()
            if name not in self._overdue
        )
        if any(counts):
            self._log.info("{n} unused files removed", n=sum(counts))

    async def _sweep(self, name: str, place: Sweepable, before: float) -> int:
        """Sweep one place and return the number of removed files; log an error and return 0."""
        sweeping = Deferred.fromCoroutine(place.sweep(before))
        try:
            return await within(SWEEP_SECONDS, self._clock, shield(sweeping), _too_late)
        except GatewayError as error:
            self._log.warn(
                "unused files of {name} stay: {error} {detail}",
                name=name,
                error=error,
                detail=error.detail,
            )
            return 0
        finally:
            if not sweeping.called:
                self._overdue.add(name)
                sweeping.addBoth(lambda _: self._overdue.discard(name))
                sweeping.cancel()


def _too_late() -> TimedOut:
    return TimedOut(f"It did not answer within {SWEEP_SECONDS:.0f} s.")
