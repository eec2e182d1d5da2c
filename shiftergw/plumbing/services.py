"""Services that start in order and stop in reverse order.

Twisted's `MultiService` starts and stops all of its services at once and awaits none of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger


class OrderedServices(Service):
    """Starts its services in order, awaiting each; stops in reverse order, awaiting each."""

    _log = Logger()

    def __init__(self, services: Sequence[Service]) -> None:
        """Start `services` in this order."""
        self._services = list(services)
        self._running_services: list[Service] = []
        self._starting: Deferred[None] | None = None

    def startService(self) -> Deferred[None]:
        """Start the services; on a failure stop the started ones, and fail."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())
        return self._starting

    async def _start(self) -> None:
        for service in self._services:
            self._running_services.append(service)
            try:
                await maybeDeferred(service.startService)
            except BaseException:
                await self._stop()
                raise

    def stopService(self) -> Deferred[None]:
        """Stop the services; one that fails to stop is logged, and the others stop too.

        A start in progress is cancelled.
        """
        super().stopService()
        if self._starting is not None and not self._starting.called:
            self._starting.addErrback(lambda failure: failure.trap(CancelledError) and None)
            self._starting.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._running_services:
            service = self._running_services.pop()
            if not service.running:
                continue
            try:
                await maybeDeferred(service.stopService)
            except Exception:  # noqa: BLE001 - the other services must stop too
                self._log.failure("{service} did not stop cleanly", service=service.name)


@asynccontextmanager
async def run_services(services: Sequence[Service]) -> AsyncIterator[None]:
    """Start services in this order for the time of the context; stop them in reverse order.

    If one fails to start, the started ones stop, and its error is raised. One that fails to stop
    is logged, and the others stop too.
    """
    ordered_services = OrderedServices(services)
    await ordered_services.startService()
    try:
        yield
    finally:
        await ordered_services.stopService()


class ClosedAtStop(Service):
    """Closes a resource, which opens itself on first use, when the service stops."""

    def __init__(self, close: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> None:
        """Call `close` at the stop."""
        self._close = close

    def stopService(self) -> Deferred[None]:
        """Close the resource; the result fires when it is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())
