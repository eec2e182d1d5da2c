"""Follow the work of a system: one reader of the store, whatever the number of watchers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.timing import pause
from shiftergw.web import render

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

ROUND_SECONDS = 1.0
"""Seconds between two looks at the store, at least."""

BUSY_SHARE = 10
"""After a look that took long, the pause is this many times as long."""

MOST_PAUSE_SECONDS = 30.0
"""Seconds between two looks, at most, also if the clock is set during a look."""

PLACE_SECONDS = 5.0
"""Seconds between two rounds in which a new place in the queue alone is a change.

Each pull that starts changes the places of all others, and thousands may wait.
"""

OUTAGE_SECONDS = 5.0
"""Seconds between two looks while the store is unavailable."""

END_SECONDS = 60.0
"""Seconds for which the end of a pull is kept, for watchers whose clients read slowly."""

SLICE = 20
"""Watchers that are notified in one turn of the reactor: each delays requests by 0.2 ms."""

NOTES = 2000
"""Notifications in one turn of the reactor; a single watcher gets all changes in one turn."""

MOST_ENDS = 100
"""Ends that one round looks up; a round with more of them is one after an outage."""


@dataclass(frozen=True, slots=True)
class WorkEntry:
    """A record, and its row as JSON, which is rendered once for all watchers."""

    record: ImageRecord
    row: bytes


class WorkReader(Protocol):
    """Reads the work of a system, as `WorkQueue` does."""

    def pages(self, system: str) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield pages of all work and failures, oldest first."""
        ...

    async def end_of(self, record: ImageRecord) -> ImageRecord | None:
        """Return the READY image that a pull has ended with, or None."""
        ...


class FeedListener(Protocol):
    """Receives the changes of a feed."""

    def note(self, key: str, before: WorkEntry | None) -> None:
        """Take note that a record is new, has changed or is gone; `before` is what it was."""
        ...

    def end_round(self) -> None:
        """Send what was noted."""
        ...


class Feed:
    """The work of one system, as it was a moment ago, while anybody watches it."""

    _log = Logger()

    def __init__(self, reader: WorkReader, system: str, clock: IReactorTime) -> None:
        """Start without watchers; nothing is read before the first one comes."""
        self._reader = reader
        self._system = system
        self._clock = clock
        self._watchers: dict[FeedListener, None] = {}
        self._running: Deferred[None] | None = None
        self._ends: dict[str, tuple[float, WorkEntry]] = {}
        self._places_until = clock.seconds()
        """Until then new places alone are no change."""
        self.entries: Mapping[str, WorkEntry] = {}
        """The work and the failures by key, oldest first."""
        self.round = 0
        """The number of looks at the store that have ended; 0 means that nothing is known yet."""

    def add(self, watcher: FeedListener) -> None:
        """Tell a watcher of all records, now or after the first look, and then of changes."""
        self._watchers[watcher] = None
        if self._running is None:
            self.round = 0
            self._running = Deferred.fromCoroutine(self._run())
            self._running.addErrback(lambda failure: failure.trap(CancelledError))
        elif self.round:
            for key in self.entries:
                watcher.note(key, None)
            watcher.end_round()

    def remove(self, watcher: FeedListener) -> None:
        """Forget a watcher; after the last one the store is no longer read."""
        self._watchers.pop(watcher, None)
        if not self._watchers and self._running is not None:
            running, self._running = self._running, None
            running.cancel()
            self.entries, self._ends, self.round = {}, {}, 0

    def end_of(self, key: str) -> WorkEntry | None:
        """Return the READY image with which a pull has ended a moment ago, or None."""
        _, entry = self._ends.get(key, (0, None))
        return entry

    async def _run(self) -> None:
        is_away = False
        while True:
            seconds = ROUND_SECONDS
            try:
                seconds = max(seconds, BUSY_SHARE * await self._look())
                seconds = min(seconds, MOST_PAUSE_SECONDS)
                is_away = False
            except Unavailable as error:
                if not is_away:
                    self._log.warn("events of {system}: {error}", system=self._system, error=error)
                is_away, seconds = True, OUTAGE_SECONDS
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001 - the next look may succeed
                self._log.failure("events of {system}", system=self._system)
                seconds = OUTAGE_SECONDS
            await pause(seconds, self._clock)

    async def _look(self) -> float:
        """Read all work, and tell what has changed; return how many seconds that took.

        Other work of the reactor between two turns of notifying watchers does not count.
        """
        start = self._clock.seconds()
        before, entries = self.entries, {}
        # After a step back of the clock the end is too far away.
        keeps_places = start < self._places_until <= start + PLACE_SECONDS
        if not keeps_places:
            self._places_until = start + PLACE_SECONDS
        async for page in self._reader.pages(self._system):
            for record in page:
                entry = before.get(record.key)
                if entry is None or not _is_same(entry.record, record, keeps_places=keeps_places):
                    entry = WorkEntry(record, render.to_json(render.event_row(record)))
                entries[record.key] = entry
        gone_keys = [key for key in before if key not in entries]
        await self._find_ends([before[key].record for key in gone_keys])
        duration = self._clock.seconds() - start
        changes = [key for key, entry in entries.items() if _differs(before.get(key), entry)]
        self.entries = entries
        self.round += 1
        earlier_entries = {key: before.get(key) for key in (*changes, *gone_keys)}
        return duration + await self._notify_watchers(earlier_entries)

    async def _notify_watchers(self, changes: Mapping[str, WorkEntry | None]) -> float:
        """Notify all watchers of changes, which have the earlier entries by key.

        Returns the seconds for which the reactor was kept from other work.
        """
        duration, start, notes = 0.0, self._clock.seconds(), 0
        for watcher in list(self._watchers):
            if watcher in self._watchers:  # its client may have hung up meanwhile
                for key, entry in changes.items():
                    watcher.note(key, entry)
                watcher.end_round()
            notes += max(len(changes), NOTES // SLICE)
            if notes >= NOTES:
                notes = 0
                duration += self._clock.seconds() - start
                await deferLater(self._clock, 0)
                start = self._clock.seconds()
        return duration + self._clock.seconds() - start

    async def _find_ends(self, records: Sequence[ImageRecord]) -> None:
        now = self._clock.seconds()
        self._ends = {key: end for key, end in self._ends.items() if end[0] > now - END_SECONDS}
        pulls = [record for record in records if record.is_polled]
        for record in pulls[:MOST_ENDS]:
            image = await self._reader.end_of(record)
            if image is not None:
                row = render.to_json(render.end_row(record, image))
                self._ends[record.key] = now, WorkEntry(image, row)


def _is_same(before: ImageRecord, record: ImageRecord, *, keeps_places: bool) -> bool:
    """Return whether a record is as before, with `keeps_places` apart from its place in the queue.

    Of records that have places only the messages are compared then: thousands may wait, and a
    comparison of all members takes long. Other changes of theirs count in the next round without
    `keeps_places`.
    """
    if not keeps_places or before.queue_place is None or record.queue_place is None:
        return before == record
    messages = record.status_message, record.waits_for
    return (before.status_message, before.waits_for) == messages


def _differs(before: WorkEntry | None, after: WorkEntry) -> bool:
    """Return whether users see a change: heartbeats change a record, but not its row."""
    if before is None or before.row != after.row:
        return True
    # The users who may see a record can change while its row stays the same.
    return before.record.own_failure != after.record.own_failure
