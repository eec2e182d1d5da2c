"""Run blocking calls in threads, with a concurrency limit and a timeout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore

from shiftergw.plumbing.timing import shield, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

QUEUE_LIMIT = 1000
"""Callers that wait for a slot; further callers fail at once."""


class BoundedThreadCalls:
    """Runs calls that may hang in at most `slots` threads of a pool.

    A thread cannot be interrupted. A call that exceeds the timeout goes on without its caller and
    keeps its slot until it ends, so that hanging calls occupy no more than `slots` threads. While
    a call hangs and no slot is free, new callers fail at once.
    """

    def __init__(
        self,
        threads: Threads,
        slots: int,
        timeout: float,
        clock: IReactorTime,
        timeout_error: Callable[[], Exception],
    ) -> None:
        """Limit each call to `timeout` seconds, the wait for a slot included.

        `timeout_error` makes the error that is raised after that.
        """
        self._threads = threads
        self._slots = DeferredSemaphore(slots)
        self._timeout = timeout
        self._clock = clock
        self._timeout_error = timeout_error
        self._start_times: dict[object, float] = {}
        """The start of each running call, the oldest call first."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread; return its result or raise its error."""
        is_full = self._slots.tokens == 0
        if is_full and (self._has_hanging_call() or len(self._slots.waiting) >= QUEUE_LIMIT):
            raise self._timeout_error()
        # Deferreds instead of coroutines: every HTTP request goes through here.
        work: Deferred[Any] = self._slots.acquire()
        work.addCallback(lambda _: self._begin(partial(function, *args, **kwargs)))
        result: T = await within(self._timeout, self._clock, work, self._timeout_error)
        return result

    def _has_hanging_call(self) -> bool:
        oldest = next(iter(self._start_times.values()))
        return self._clock.seconds() - oldest >= self._timeout

    def _begin(self, function: Callable[[], T]) -> Deferred[T]:
        call = object()

        def release_slot(result: T) -> T:
            del self._start_times[call]
            self._slots.release()
            return result

        try:
            running = self._threads.begin(function)
        except BaseException:
            self._slots.release()
            raise
        self._start_times[call] = self._clock.seconds()
        running.addBoth(release_slot)
        result = shield(running)
        # After a timeout no caller handles the error of the call.
        running.addErrback(lambda _: None)
        return result
