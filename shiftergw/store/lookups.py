"""Rows of lookup metrics on their way to the database: no lookup waits until one is written.

They are written some at a time, a moment after they came. What waits when the process dies is lost,
and so is what a slow or broken database keeps waiting for too long: they must not pile up.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from shiftergw.errors import GatewayError
from shiftergw.plumbing.timing import pause, shielded

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

ROWS_WAITING = 10_000
"""Rows that wait to be written; those that come when so many wait are dropped."""

WRITE_SECONDS = 0.5
"""How long rows wait for others to be written with them."""

KEPT_SECONDS = 365 * 86400.0
"""Age of the oldest row, counted from the newest."""

LookupRow = dict[str, Any]
"""What is to be kept: its `system`, its `time` in seconds since 1970, and whatever else."""

Write = Callable[[Sequence[LookupRow]], Coroutine[Deferred[Any], Any, None]]
"""Writes rows in their order, or none; raises `Unavailable`. Called once at a time."""


class LookupRows:
    """Takes rows at once and writes them later."""

    _log = Logger()

    def __init__(self, write: Write, clock: IReactorTime) -> None:
        """Hand the rows to `write`."""
        self._write_rows = write
        self._clock = clock
        self._waiting: list[LookupRow] = []
        self._dropped = 0
        self._turn = DeferredLock()
        self._rest: Deferred[None] | None = None
        self._soon: Deferred[None] | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Note a row."""
        if len(self._waiting) >= ROWS_WAITING:
            self._dropped += 1
            return
        self._waiting.append(dict(row))
        if self._soon is None:
            self._soon = Deferred.fromCoroutine(self._write_soon())

    async def settle(self) -> None:
        """Return when none of the rows noted so far waits any more."""
        if self._rest is not None:
            self._rest.cancel()
        # A caller who is cancelled must not take others' rows with him.
        await shielded(Deferred.fromCoroutine(self._write()))

    async def _write_soon(self) -> None:
        while self._waiting:
            await self._wait_for_others()
            await self._write()
        self._soon = None

    async def _write(self) -> None:
        async with self._turn:
            rows, self._waiting = self._waiting, []
            lost, self._dropped = self._dropped, 0
            try:
                await self._write_rows(rows)
            except GatewayError as error:
                lost += len(rows)
                self._log.warn("lookup metrics: {error} {detail}", error=error, detail=error.detail)
            except Exception:  # noqa: BLE001 - one odd row must not be the last that is written
                lost += len(rows)
                self._log.failure("lookup metrics")
            if lost:
                self._log.warn("{n} rows of lookup metrics are lost", n=lost)

    async def _wait_for_others(self) -> None:
        self._rest = Deferred.fromCoroutine(pause(WRITE_SECONDS, self._clock))
        try:
            await self._rest
        except CancelledError:
            pass  # by `settle`
        finally:
            self._rest = None


def oldest_kept(rows: Sequence[LookupRow]) -> float:
    """Return the time before which rows are too old, once these have come."""
    times = [row["time"] for row in rows if row.get("time") is not None]
    return max(times, default=0.0) - KEPT_SECONDS
