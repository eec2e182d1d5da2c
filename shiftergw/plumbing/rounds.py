"""A service that repeats one action, at intervals and on request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from shiftergw.errors import GatewayError
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class Rounds(Service):
    """Runs one coroutine repeatedly, never concurrently; errors are logged and do not end it."""

    _log = Logger()

    def __init__(
        self, act: Callable[[], Awaitable[object]], clock: IReactorTime, interval: float, name: str
    ) -> None:
        """Call `act` at the start, then `interval` seconds after the end of each call."""
        self.setName(name)
        self._act = act
        self._clock = clock
        self._interval = interval
        self._wake_requested = False
        self._sleep: Deferred[None] | None = None
        self._loop: Deferred[None] | None = None

    def startService(self) -> None:
        """Start the first round."""
        super().startService()
        self._loop = Deferred.fromCoroutine(self._run())

    def stopService(self) -> Deferred[None]:
        """Start no further round; the result fires when the current round has ended."""
        super().stopService()
        self.wake()
        assert self._loop is not None
        return self._loop

    def wake(self) -> None:
        """Start a round now, or right after the current round."""
        self._wake_requested = True
        if self._sleep is not None:
            self._sleep.cancel()

    async def _run(self) -> None:
        while self.running:
            self._wake_requested = False
            try:
                await self._act()
            except GatewayError as error:
                self._log.warn(
                    "{name}: {error} {detail}", name=self.name, error=error, detail=error.detail
                )
            except Exception:  # noqa: BLE001 - the next round may succeed
                self._log.failure("{name}", name=self.name)
            if not self._wake_requested:
                await self._rest()

    async def _rest(self) -> None:
        self._sleep = Deferred.fromCoroutine(pause(self._interval, self._clock))
        try:
            await self._sleep
        except CancelledError:
            pass  # by `wake`
        finally:
            self._sleep = None
