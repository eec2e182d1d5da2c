"""A bounded memory of recent values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RecentValues(Generic[K, V]):
    """Values by key, each for a limited time; beyond `limit`, the oldest value is dropped."""

    def __init__(self, limit: int, seconds: float, clock: IReactorTime) -> None:
        """Keep at most `limit` values, each for `seconds` after it was set."""
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def set(self, key: K, value: V) -> None:
        """Set the value of a key, which becomes the most recent one."""
        self._values[key] = self._clock.seconds(), value
        self._values.move_to_end(key)
        if len(self._values) > self._limit:
            self._values.popitem(last=False)

    def get(self, key: K) -> V | None:
        """Return the value of a key; None if there is none or it is too old."""
        if key not in self._values:
            return None
        set_at, value = self._values[key]
        return value if self._clock.seconds() < set_at + self._seconds else None

    def discard(self, key: K) -> None:
        """Drop the value of a key, if there is one."""
        self._values.pop(key, None)
