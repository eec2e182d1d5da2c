"""Questions to what may hang: at most so many at a time, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from shiftergw.plumbing.timing import shielded, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")

MOST_WAITING = 1000
"""Callers that wait for a place; more are refused at once."""

MOST_TOGETHER = 16
"""Calls in one batch: the first of them waits for the last."""


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
        self.late = late
        self._begun: dict[object, float] = {}

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns in a thread, or raise what it raises."""
        full = self._places.tokens == 0
        if full and (self._one_hangs() or len(self._places.waiting) >= MOST_WAITING):
            raise self.late()
        # Deferreds instead of coroutines: each request goes through here.
        work: Deferred[Any] = self._places.acquire()
        work.addCallback(lambda _: self._begin(partial(function, *args, **kwargs)))
        result: T = await within(self._seconds, self._clock, work, self.late)
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


class Batched(Generic[A, T]):
    """Calls of one function, those that come while others are under way together in one thread.

    To wake a thread, and the reactor after it, costs as much as a short call does.
    """

    def __init__(self, function: Callable[[A], T], limited: Limited, batches: int) -> None:
        """Have at most so many `batches` under way, within the limits of `limited`."""
        self._function = function
        self._limited = limited
        self._free = batches
        self._waiting: list[tuple[A, Deferred[T]]] = []

    async def run(self, argument: A) -> T:
        """Return what the function returns for an argument, or raise what it raises."""
        if len(self._waiting) >= MOST_WAITING:
            raise self._limited.late()
        answer: Deferred[T] = Deferred()
        self._waiting.append((argument, answer))
        self._begin()
        return await answer

    def _begin(self) -> None:
        if not self._free or not self._waiting:
            return
        self._free -= 1
        batch, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
        arguments = [argument for argument, _ in batch]
        calling = Deferred.fromCoroutine(self._limited.run(self._call, arguments))
        calling.addErrback(lambda failure: [failure] * len(batch))
        calling.addCallback(self._tell, [answer for _, answer in batch])

    def _call(self, arguments: list[A]) -> list[T | Failure]:
        """Call the function for each argument; in a thread."""
        return [self._result(argument) for argument in arguments]

    def _result(self, argument: A) -> T | Failure:
        try:
            return self._function(argument)
        except Exception:  # noqa: BLE001 - it is its caller's
            return Failure()

    def _tell(self, results: list[T | Failure], answers: list[Deferred[T]]) -> None:
        self._free += 1
        self._begin()
        for result, answer in zip(results, answers, strict=True):
            if not answer.called:  # its caller may have left
                answer.callback(result)


def _ignore(_: object) -> None:
    """Drop what came too late."""
