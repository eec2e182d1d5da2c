"""A result that any number of callers can wait for."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class SharedResult(Generic[T]):
    """A result that is set once; every call of `wait`, before or after that, returns it.

    A `Deferred` serves one caller only, and is lost when that caller is cancelled.
    """

    def __init__(self) -> None:
        """Start without a result."""
        self._results: list[T] = []
        self._waiting: list[Deferred[T]] = []

    @property
    def is_set(self) -> bool:
        """Return whether there is a result."""
        return bool(self._results)

    def set_result(self, result: T) -> None:
        """Wake all waiting callers with this result; ignore every result but the first."""
        if self._results:
            return
        self._results.append(result)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(result)

    async def wait(self) -> T:
        """Return the result as soon as it is set. Cancellable."""
        if self._results:
            return self._results[0]
        waiter: Deferred[T] = Deferred()
        self._waiting.append(waiter)
        try:
            return await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
