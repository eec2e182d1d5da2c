"""Measure what caches have, now and then: a large one has many files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftergw.errors import Unavailable
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.threads import Threads

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

MEASURE_SECONDS = 60.0
"""Seconds for which the sizes of caches count as new."""

CACHE_SECONDS = 5.0
"""Seconds that all caches may take to be measured; their disk may hang."""


@dataclass(frozen=True, slots=True)
class CacheReport:
    """A cache: its files and their bytes, and the bytes that it may have, its `budget`.

    A file stays for `keep_seconds` after its last use, unless the budget is used up before.
    Without a `size` the cache does not answer.
    """

    name: str
    keep_seconds: float
    files: int = 0
    size: int | None = None
    budget: int | None = None


class CacheReporter:
    """Keeps the last sizes of caches."""

    def __init__(
        self,
        measure: Callable[[], Sequence[CacheReport]],
        threads: Threads,
        clock: IReactorTime,
    ) -> None:
        """Call `measure`, which blocks, in a thread."""
        self._measure = measure
        self._calls = BoundedThreadCalls(threads, 1, CACHE_SECONDS, clock, _late)
        self._clock = clock
        self._caches: Sequence[CacheReport] = ()
        self._time: float | None = None

    async def caches(self) -> Sequence[CacheReport]:
        """Return the caches of this machine; those whose disk does not answer have no size."""
        now = self._clock.seconds()
        if self._time is None or not 0 <= now - self._time < MEASURE_SECONDS:
            try:
                self._caches = await self._calls.run(self._measure)
            except (Unavailable, OSError):
                self._caches = [CacheReport("Caches", 0)]
            self._time = now
        return self._caches


def _late() -> Unavailable:
    return Unavailable("The disk of the caches does not answer.")
