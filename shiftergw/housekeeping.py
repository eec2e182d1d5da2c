"""What the gateway and its workers tidy up by themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.model import ImageRecord
from shiftergw.plumbing.rounds import Rounds
from shiftergw.ports import ImageBuilder, ImageDirectory, ImageStore

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

INTERVAL = 600.0
"""Seconds between two rounds."""

ENDED_KEPT = 86400.0
"""Seconds for which a failure can be asked about."""

SCRATCH_KEPT = 3600.0
"""Seconds for which a converted file, or a temporary of a dead attempt, stays unused."""


class Housekeeping(Rounds):
    """Expires images whose time is up, and forgets what ended more than a day ago."""

    _log = Logger()

    def __init__(
        self,
        store: ImageStore,
        wake: Callable[[], None],
        clock: IReactorTime,
        interval: float = INTERVAL,
    ) -> None:
        """Tidy up `store`; call `wake` when there are files to remove."""
        super().__init__(self._tidy_up, clock, interval, "housekeeping")
        self._store = store
        self._wake = wake

    async def _tidy_up(self) -> None:
        now = self._clock.seconds()
        forgotten = await self._store.forget_ended(now - ENDED_KEPT)
        if forgotten:
            self._log.info("{n} old failures and removals forgotten", n=forgotten)
        for record in await expire_due(self._store, now):
            self._log.info(
                "image {id} of {system} expires; its tags: {tags}",
                id=record.id,
                system=record.system,
                tags=record.tags,
            )
            self._wake()


async def expire_due(
    store: ImageStore, now: float, system: str | None = None
) -> Sequence[ImageRecord]:
    """Expire the images, of one system or of all, whose expiration has passed; return them."""
    due = [record for record in await store.expired(now) if system in {None, record.system}]
    expired = [await store.expire(record.key, now) for record in due]
    return [record for record in expired if record is not None]


class Scratch(Rounds):
    """Removes what finished and dead attempts left behind; runs in the workers, which write it."""

    _log = Logger()

    def __init__(
        self,
        builder: ImageBuilder,
        directories: Collection[ImageDirectory],
        clock: IReactorTime,
        interval: float = INTERVAL,
    ) -> None:
        """Tidy up the builder's files and the temporaries of image directories."""
        super().__init__(self._tidy_up, clock, interval, "scratch")
        self._builder = builder
        self._directories = directories

    async def _tidy_up(self) -> None:
        before = self._clock.seconds() - SCRATCH_KEPT
        removed = await self._builder.sweep(before)
        for directory in self._directories:
            removed += await directory.sweep(before)
        if removed:
            self._log.info("{n} unused files removed", n=removed)
