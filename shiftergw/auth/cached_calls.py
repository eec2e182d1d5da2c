"""Cache the results of slow calls for a limited time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from shiftergw.errors import Unavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class CachedCalls(Generic[K, V]):
    """Calls a function at most once per key and period; concurrent callers share the result.

    The function must end by itself in a bounded time, since it outlives the cancellation of its
    callers.
    """

    def __init__(
        self,
        function: Callable[[K], Coroutine[Deferred[Any], Any, V]],
        seconds: float,
        clock: IReactorTime,
        seconds_if_unavailable: float = 0.0,
    ) -> None:
        """Use a result of `function` for `seconds`; do not cache exceptions.

        While `function` raises `Unavailable`, a result is used for `seconds_if_unavailable` if that
        is longer.
        """
        self._function = function
        self._seconds = seconds
        self._max_age = max(seconds, seconds_if_unavailable)
        self._clock = clock
        self._results: dict[K, tuple[float, V]] = {}
        self._waiting: dict[K, list[Deferred[V]]] = {}
        self._next_sweep = 0.0

    async def get(self, key: K) -> V:
        """Return the result for a key, or raise what the function raised."""
        entry = self._entry_of(key, self._seconds)
        if entry is not None:
            return entry[0]
        result: Deferred[V] = Deferred()
        waiting = self._waiting.setdefault(key, [])
        waiting.append(result)
        if len(waiting) == 1:
            Deferred.fromCoroutine(self._function(key)).addBoth(self._finish, key)
        return await result

    def _entry_of(self, key: K, seconds: float) -> tuple[V] | None:
        """Return the last result for a key in a tuple, if it is younger than `seconds`."""
        entry = self._results.get(key)
        if entry is None or entry[0] + seconds <= self._clock.seconds():
            return None
        return entry[1:]

    def _finish(self, result: V | Failure, key: K) -> None:
        waiting = self._waiting.pop(key)
        if not isinstance(result, Failure):
            now = self._clock.seconds()
            if now >= self._next_sweep:
                self._sweep(now - self._max_age)
                self._next_sweep = now + self._max_age
            self._results[key] = now, result
        elif result.check(Unavailable):
            entry = self._entry_of(key, self._max_age)
            result = result if entry is None else entry[0]
        for caller in waiting:
            caller.callback(result)

    def _sweep(self, oldest: float) -> None:
        """Drop the results that are not younger than `oldest`, a time of the clock."""
        self._results = {key: entry for key, entry in self._results.items() if entry[0] > oldest}
