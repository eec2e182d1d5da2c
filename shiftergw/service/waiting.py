"""Tell what waiting work waits for: its place in the queue, or workers that do not start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.ports import ImageStore, QueueTrouble
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

VALID_SECONDS = 1.0
"""Seconds for which places are valid: all clients that poll meanwhile share one query."""

BUSY_SHARE = 10
"""A query that takes long is valid for this many times as long as it took."""

MOST_VALID_SECONDS = 30.0
"""Seconds for which places are valid at most, also if the clock is set while they are read."""

PATIENCE = 1.0
"""Seconds that an answer waits for places; answers do without them until the query ends."""

Places = Mapping[str, int]
"""The place in the queue of each waiting record, from 1, by its key."""


class WaitingWork:
    """Describes records that wait; the places of all of them are read at most once a second."""

    _log = Logger()

    def __init__(
        self,
        store: ImageStore,
        trouble: Callable[[str], QueueTrouble | None],
        clock: IReactorTime,
    ) -> None:
        """Read the places from `store`; `trouble` is that of `JobQueue`."""
        self._store = store
        self._trouble = trouble
        self._clock = clock
        self._places: Places = {}
        self._valid_until = clock.seconds()
        self._reading: SharedResult[Places] | None = None

    async def describe(self, record: ImageRecord) -> ImageRecord:
        """Return the record; if it waits, with its place and any trouble with the workers.

        Places ignore the limit of running pulls of each user. Other users' work may overtake work
        that this limit holds back.
        """
        if record.status is not State.PENDING:
            return record
        # Of another user's hidden pull, which has no claim, only the name is shown.
        places = await self._current_places() if record.in_flight else {}
        if record.key in places:
            if record.not_before is not None:  # it has waited for long enough
                record = replace(record, status_message="", waits_for=None, not_before=None)
            place = places[record.key]
            record = replace(record, queue_place=place, queue_length=len(places))
        trouble = self._trouble(record.system)
        if trouble is None:
            return record
        message = f"{record.status_message or ''} {trouble.what}".strip()
        return replace(record, status_message=message, waits_for=trouble.what)

    async def _current_places(self) -> Places:
        if self._reading is not None:
            return await self._reading.wait()
        now = self._clock.seconds()
        # After a step back of the clock the end is too far away.
        if now < self._valid_until <= now + MOST_VALID_SECONDS:
            return self._places
        reading = self._reading = SharedResult()
        # On its own: the client of the call may hang up, and others wait for the same result.
        Deferred.fromCoroutine(self._read(reading))
        return await reading.wait()

    async def _read(self, result: SharedResult[Places]) -> None:
        """Read the places; answers do without while the store is unavailable or slow."""
        start = self._clock.seconds()
        self._places = {}
        # Callers that come later get this result as well, until the query ends.
        late_call = self._clock.callLater(PATIENCE, result.set_result, self._places)
        try:
            keys = await self._store.schedule(start)
            self._places = {key: place for place, key in enumerate(keys, start=1)}
        except Unavailable:
            pass
        except Exception:  # noqa: BLE001 - callers wait for the result
            self._log.failure("places in the queue")
        finally:
            if late_call.active():
                late_call.cancel()
        now = self._clock.seconds()
        seconds = max(VALID_SECONDS, BUSY_SHARE * (now - start))
        self._valid_until = now + min(seconds, MOST_VALID_SECONDS)
        self._reading = None
        result.set_result(self._places)
