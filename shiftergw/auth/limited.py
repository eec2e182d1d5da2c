"""Questions to what may hang: at most so many at a time, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

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
        # Deferreds instead of coroutines: each request goes through here.
        work: Deferred[Any] = self._places.acquire()
        work.addCallback(lambda _: self._begin(partial(function, *args, **kwargs)))
        result: T = await within(self._seconds, self._clock, work, self._late)
        return result

    def _one_hangs(self) -> bool:
        oldest = next(iter(self._begun.values()))
        return self._clock.seconds() - oldest >= self._seconds

    def _begin(self, function: Callable[[], T]) -> Deferred[T]:
        call = object()

        def leave(result: T) -> T:
            del self._begun[call]
            self._places.release()
            return result

        try:
            running = self._threads.begin(function)
        except BaseException:
            self._places.release()
            raise
        self._begun[call] = self._clock.seconds()
        running.addBoth(leave)
        awaited = shielded(running)
        # After our caller has left, nobody hears how the call fails.
        running.addErrback(_ignore)
        return awaited


def _ignore(_: object) -> None:
    """Drop what came too late."""
