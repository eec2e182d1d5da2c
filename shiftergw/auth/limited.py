"""Questions to what may hang: at most so many at a time, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore

from shiftergw.plumbing.timing import shielded, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

MOST_WAITING = 1000
"""Callers that wait for a place; more are refused at once."""


class Limited:
    """Places in a pool of threads for calls that cannot be interrupted.

    A call that is late goes on without its caller, and keeps its place until it ends: what hangs
    holds `places` threads and no more. While it holds them all, callers are refused at once.
    """

    def __init__(
        self,
        threads: Threads,
        places: int,
        seconds: float,
        clock: IReactorTime,
        late: Callable[[], Exception],
    ) -> None:
        """Let nobody wait longer than `seconds`; then raise what `late` makes."""
        self._threads = threads
        self._places = DeferredSemaphore(places)
        self._seconds = seconds
        self._clock = clock
        self._late = late
        self._begun: dict[object, float] = {}

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns in a thread, or raise what it raises."""
        full = self._places.tokens == 0
        if full and (self._one_hangs() or len(self._places.waiting) >= MOST_WAITING):
            raise self._late()
        return await within(
            self._seconds, self._clock, self._run(function, *args, **kwargs), self._late
        )

    def _one_hangs(self) -> bool:
        oldest = next(iter(self._begun.values()))
        return self._clock.seconds() - oldest >= self._seconds

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await self._places.acquire()
        call = object()
        self._begun[call] = self._clock.seconds()
        running = Deferred.fromCoroutine(self._threads.run(function, *args, **kwargs))

        def leave(result: T) -> T:
            del self._begun[call]
            self._places.release()
            return result

        running.addBoth(leave)
        try:
            return await shielded(running)
        finally:
            # After our caller has left, nobody hears how the call fails.
            running.addErrback(_ignore)


def _ignore(_: object) -> None:
    """Drop what came too late."""
