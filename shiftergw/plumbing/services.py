"""Services that start one after the other and stop in the reverse order.

Twisted's `MultiService` starts all at once and stops all at once, whatever they return.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger


class OrderedServices(Service):
    """Starts its services in order, awaiting each; stops in reverse order, awaiting each."""

    _log = Logger()

    def __init__(self, services: Sequence[Service]) -> None:
        """Take the services in the order of their start."""
        self._services = list(services)
        self._started: list[Service] = []
        self._starting: Deferred[None] | None = None

    def startService(self) -> Deferred[None]:
        """Fire when the last one has started; on a failure stop those that had, and fail."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())
        return self._starting

    async def _start(self) -> None:
        for service in self._services:
            self._started.append(service)
            try:
                await maybeDeferred(service.startService)
            except BaseException:
                await self._stop()
                raise

    def stopService(self) -> Deferred[None]:
        """Fire when the first one has stopped; one that cannot stop does not keep the others.

        A start that is under way is cancelled.
        """
        super().stopService()
        if self._starting is not None and not self._starting.called:
            self._starting.addErrback(lambda failure: failure.trap(CancelledError) and None)
            self._starting.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._started:
            service = self._started.pop()
            if not service.running:
                continue
            try:
                await maybeDeferred(service.stopService)
            except Exception:  # noqa: BLE001 - the others must stop all the same
                self._log.failure("{service} did not stop cleanly", service=service.name)


class ClosedAtStop(Service):
    """Closes something when it stops that opens itself on use."""

    def __init__(self, close: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> None:
        """Await `close()` at the stop."""
        self._close = close

    def stopService(self) -> Deferred[None]:
        """Fire when it is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())
