"""A value to come, for any number of those who wait."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Promise(Generic[T]):
    """Kept once; whoever comes before waits, whoever comes after need not.

    A `Deferred` has one waiter, and a cancelled one takes it along.
    """

    def __init__(self) -> None:
        """Promise."""
        self._values: list[T] = []
        self._waiting: list[Deferred[T]] = []

    @property
    def is_kept(self) -> bool:
        """Say whether the value is there."""
        return bool(self._values)

    def keep(self, value: T) -> None:
        """Give the value to all who wait and all who come; the first one counts."""
        if self._values:
            return
        self._values.append(value)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(value)

    async def kept(self) -> T:
        """Return the value once it is there; cancellable."""
        if self._values:
            return self._values[0]
        waiting: Deferred[T] = Deferred()
        self._waiting.append(waiting)
        try:
            return await waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
