"""A buffer of look-up rows on their way to the database: no look-up waits for the write.

A row says who looked up or pulled which image, and when. The buffer writes rows in batches, a
moment after they came. A crash loses the rows in the buffer. If the database is slow or broken, the
buffer drops new rows instead of growing without limit.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from shiftergw.errors import GatewayError
from shiftergw.plumbing.timing import pause, shield

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

ROWS_WAITING = 10_000
"""Rows in the buffer at most; further rows are dropped."""

WRITE_SECONDS = 0.5
"""Seconds for which a row waits, so that more rows are written with it."""

MAX_AGE_SECONDS = 365 * 86400.0
"""Seconds after which a row is removed, counted back from the newest row."""

LookupRow = dict[str, Any]
"""The members `system` and `time` (seconds since 1970), and any others."""

Write = Callable[[Sequence[LookupRow]], Coroutine[Deferred[Any], Any, None]]
"""Write all rows in their order, or none; raise `Unavailable`.

`LookupBuffer` makes one call at a time.
"""


class LookupBuffer:
    """Accept rows at once and write them later."""

    _log = Logger()

    def __init__(self, write: Write, clock: IReactorTime) -> None:
        """Write rows by `write`."""
        self._write_rows = write
        self._clock = clock
        self._rows: list[LookupRow] = []
        self._dropped_count = 0
        self._write_lock = DeferredLock()
        self._pause: Deferred[None] | None = None
        self._writer: Deferred[None] | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, or drop it if the buffer is full."""
        if len(self._rows) >= ROWS_WAITING:
            self._dropped_count += 1
            return
        self._rows.append(dict(row))
        if self._writer is None:
            self._writer = Deferred.fromCoroutine(self._write_batches())

    async def flush(self) -> None:
        """Return when all rows that were added so far are written or lost."""
        if self._pause is not None:
            self._pause.cancel()
        # The cancellation of one caller must not lose the rows of others.
        await shield(Deferred.fromCoroutine(self._write()))

    async def _write_batches(self) -> None:
        while self._rows:
            await self._wait_for_batch()
            await self._write()
        self._writer = None

    async def _write(self) -> None:
        async with self._write_lock:
            rows, self._rows = self._rows, []
            losses, self._dropped_count = self._dropped_count, 0
            try:
                await self._write_rows(rows)
            except GatewayError as error:
                losses += len(rows)
                self._log.warn("lookup metrics: {error} {detail}", error=error, detail=error.detail)
            except Exception:  # noqa: BLE001 - one odd row must not end the writing of all others
                losses += len(rows)
                self._log.failure("lookup metrics")
            if losses:
                self._log.warn("{n} rows of lookup metrics are lost", n=losses)

    async def _wait_for_batch(self) -> None:
        self._pause = Deferred.fromCoroutine(pause(WRITE_SECONDS, self._clock))
        try:
            await self._pause
        except CancelledError:
            pass  # by `flush`, which writes at once
        finally:
            self._pause = None


def cutoff_time(rows: Sequence[LookupRow]) -> float:
    """Return the time before which rows in the database are too old, given the newest rows."""
    times = [row["time"] for row in rows if row.get("time") is not None]
    return max(times, default=0.0) - MAX_AGE_SECONDS
