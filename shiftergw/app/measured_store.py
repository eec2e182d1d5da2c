"""Measure how long the calls of a store take, and how many of them fail."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from shiftergw.errors import Unavailable
from shiftergw.model.metrics import STORE_ERRORS, STORE_SECONDS
from shiftergw.ports import ImageStore, Metrics

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class _MeasuredStore:
    """Passes every call on to a store."""

    def __init__(self, store: ImageStore, metrics: Metrics, clock: IReactorTime) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the store; a coroutine method is measured."""
        value = getattr(self._store, name)
        if not inspect.iscoroutinefunction(value):
            return value

        async def measured_call(*arguments: Any, **keywords: Any) -> Any:
            start = self._clock.seconds()
            try:
                return await value(*arguments, **keywords)
            except Unavailable:
                self._metrics.add(STORE_ERRORS, 1, name)
                raise
            finally:
                seconds = max(0.0, self._clock.seconds() - start)
                self._metrics.observe(STORE_SECONDS, seconds, name)

        setattr(self, name, measured_call)  # the next time it is found without this method
        return measured_call


def with_measurements(store: ImageStore, metrics: Metrics, clock: IReactorTime) -> ImageStore:
    """Return the store, whose calls are measured by the name of the method."""
    return cast("ImageStore", _MeasuredStore(store, metrics, clock))
