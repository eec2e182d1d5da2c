"""Report to the service manager when the gateway is ready, that it lives, and when it stops."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from shiftergw.errors import GatewayError, Unavailable
from shiftergw.plumbing.rounds import Rounds
from shiftergw.plumbing.service_manager import ServiceManager
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

CHECK_SECONDS = 5.0
"""Seconds between two looks at the store."""

STORE_TIMEOUT_SECONDS = 5.0
"""Seconds that the store may take to answer."""


class Supervision(Service):
    """Supervises the gateway for systemd from its start, after the listeners, to its stop.

    The gateway is ready when the store has answered. The status line of `systemctl status` says
    whether the store answers, also later. The watchdog's signs of life come from the reactor alone,
    because a restart does not mend a store.
    """

    _log = Logger()

    def __init__(
        self,
        environ: Mapping[str, str],
        check_store: Callable[[], Coroutine[Deferred[Any], Any, None]],
        addresses: Sequence[str],
        clock: IReactorTime,
    ) -> None:
        """Report to the manager that `environ` names, if there is one.

        `check_store` raises `GatewayError` while the store does not work. `addresses` are those at
        which the gateway listens.
        """
        self._environ = environ
        self._check_store = check_store
        self._addresses = ", ".join(addresses)
        self._clock = clock
        self._manager: ServiceManager | None = None
        self._rounds = Rounds(self._report_state, clock, CHECK_SECONDS, "supervision")
        self._beats = LoopingCall(self._report, WATCHDOG="1")
        self._beats.clock = clock

    def startService(self) -> None:
        """Begin to report; the environment is read now because twistd may have forked."""
        super().startService()
        self._manager = ServiceManager.from_environment(self._environ)
        if self._manager is None:
            return
        self._rounds.startService()
        if self._manager.beat_seconds is not None:
            self._beats.start(self._manager.beat_seconds)

    def stopService(self) -> Deferred[None] | None:
        """Report the stop. From now on the manager's limit for stops replaces the watchdog."""
        super().stopService()
        if self._manager is None:
            return None
        self._report(STOPPING="1", STATUS="Stopping")
        if self._beats.running:
            self._beats.stop()
        return self._rounds.stopService()

    async def _report_state(self) -> None:
        try:
            await within(STORE_TIMEOUT_SECONDS, self._clock, self._check_store(), _too_late)
        except GatewayError as error:
            fields = {
                "STATUS": f"Listening on {self._addresses}; waiting for the store: {error.what}"
            }
        else:
            fields = {"READY": "1", "STATUS": f"Listening on {self._addresses}"}
        if self.running:
            self._report(**fields)

    def _report(self, **fields: str) -> None:
        assert self._manager is not None
        try:
            self._manager.report(**fields)
        except OSError as error:
            self._log.warn(
                "the service manager cannot be reached at $NOTIFY_SOCKET: {error}", error=error
            )


def _too_late() -> Unavailable:
    return Unavailable("The database does not answer.")
