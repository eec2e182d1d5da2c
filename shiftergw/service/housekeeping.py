"""What the gateway and its workers tidy up by themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import GatewayError, TimedOut, Unavailable
from shiftergw.model import ImageRecord
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.rounds import Rounds
from shiftergw.plumbing.timing import shielded, within
from shiftergw.ports import ImageStore, Swept

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

INTERVAL = 600.0
"""Seconds between two rounds."""

RENEWAL_STEP = 3600.0
"""Seconds by which an expiration must move before a look-up writes it: a look-up is one read."""

ENDED_KEPT = 86400.0
"""Seconds for which a failure can be asked about."""

SCRATCH_KEPT = 3600.0
"""Seconds for which a converted file, or a temporary of a dead attempt, stays unused."""

MOST_DUE = 1000
"""Images that expire together: all that is in flight is looked through again and again."""

SWEEP_SECONDS = 120.0
"""Seconds that the sweep of one image directory may take."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the configuration says of expiry, and for how many seconds images are `kept`.

    `wanted` is whether they expire by themselves; None: as the store sees fit. Those of other
    systems than these stay (None: of all).
    """

    wanted: bool | None = None
    kept: float | None = None
    systems: Collection[str] | None = None


class Housekeeping(Rounds):
    """Expires images whose time is up, and forgets what ended more than a day ago."""

    _log = Logger()

    def __init__(
        self,
        store: ImageStore,
        wake: Callable[[], None],
        clock: IReactorTime,
        schedule: Schedule = Schedule(),
        interval: float = INTERVAL,
    ) -> None:
        """Tidy up `store`; call `wake` when there are files to remove."""
        super().__init__(self._tidy_up, clock, interval, "housekeeping")
        self._store = store
        self._wake = wake
        self._schedule = schedule
        self._told: bool | None = None

    async def _tidy_up(self) -> None:
        now, schedule = self._clock.seconds(), self._schedule
        expires = await self._store.expires(schedule.wanted, now, schedule.kept)
        self._tell(expires)
        forgotten = await self._store.forget_ended(now - ENDED_KEPT, foreign=expires)
        if forgotten:
            self._log.info("{n} old failures and removals forgotten", n=forgotten)
        for record in await expire_due(self._store, now, schedule.systems) if expires else ():
            self._log.info(
                "image {id} of {system} expires; its tags: {tags}",
                id=record.id,
                system=record.system,
                tags=record.tags,
            )
            self._wake()

    def _tell(self, expires: bool) -> None:
        """Log whether images expire by themselves, once and whenever that changes."""
        if expires is self._told:
            return
        self._told = expires
        if expires:
            self._log.info("images expire by themselves")
        elif self._schedule.wanted is False:
            self._log.info("images do not expire by themselves: ScheduledExpiry is false")
        else:
            self._log.warn(
                "images do not expire by themselves: another program has filled the database; see"
                " `shiftergw check --database`, then set ScheduledExpiry to true or false"
            )


async def expire_due(
    store: ImageStore, now: float, systems: Collection[str] | None = None
) -> Sequence[ImageRecord]:
    """Expire the images, of these systems or of all, whose expiration has passed; return them.

    No more than `MOST_DUE`: the others are due the next time, too.
    """
    due = await store.expired(now, systems, MOST_DUE)
    expired = [await store.expire(record.key, now) for record in due]
    return [record for record in expired if record is not None]


async def put_off(store: ImageStore, record: ImageRecord, now: float, kept: float | None) -> None:
    """Put off the expiration of an image that is in use; images are `kept` so many seconds.

    Or leave that to the next time, if the store cannot write now: what was asked for is known.
    """
    if kept is not None and now + kept - (record.expiration or 0) > RENEWAL_STEP:
        with suppress(Unavailable):
            await store.renew(record.key, now + kept)


class Scratch(Rounds):
    """Removes what has not been of use for long; runs in the workers, which write it."""

    _log = Logger()

    def __init__(
        self,
        places: Mapping[str, tuple[Swept, float]],
        clock: IReactorTime,
        interval: float = INTERVAL,
    ) -> None:
        """Tidy up `places`: what is said of each in the log → what it is, how long it keeps."""
        super().__init__(self._tidy_up, clock, interval, "scratch")
        self._places = places
        self._late: set[str] = set()
        """Where a sweep was given up and has not ended: one in the kernel's hands may never."""

    async def _tidy_up(self) -> None:
        now = self._clock.seconds()
        removed = await gather_or_cancel(
            self._swept(name, place, now - kept)
            for name, (place, kept) in self._places.items()
            if name not in self._late
        )
        if any(removed):
            self._log.info("{n} unused files removed", n=sum(removed))

    async def _swept(self, name: str, place: Swept, before: float) -> int:
        """Return how many files went from one place; what kept them from going is logged."""
        sweeping = Deferred.fromCoroutine(place.sweep(before))
        try:
            return await within(SWEEP_SECONDS, self._clock, shielded(sweeping), _late)
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
                self._late.add(name)
                sweeping.addBoth(lambda _: self._late.discard(name))
                sweeping.cancel()


def _late() -> TimedOut:
    return TimedOut(f"It did not answer within {SWEEP_SECONDS:.0f} s.")
