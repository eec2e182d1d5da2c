"""Report to the service manager when a worker machine is ready, that it lives, and when it stops.

The machine is ready when it has connected to the broker for the first time. A lost connection does
not change that: jobs go on without the broker.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger

from shiftergw.plumbing.service_manager import ServiceManager
from shiftergw.work.celery.slot_gate import SlotGateStep

_log = get_logger(__name__)


class MachineSupervision:
    """Reports of this machine to its service manager, if it has one."""

    def __init__(self, manager: ServiceManager | None) -> None:
        """Report to `manager`."""
        self._manager = manager
        self._is_stopping = False

    @property
    def beat_seconds(self) -> float | None:
        """Return the interval of the signs of life, or None if none are expected."""
        return None if self._manager is None else self._manager.beat_seconds

    def report(self, **fields: str) -> None:
        """Report fields; nothing follows the report of the stop."""
        if self._manager is None or self._is_stopping:
            return
        try:
            self._manager.report(**fields)
        except OSError as error:
            _log.warning("The service manager cannot be reached at $NOTIFY_SOCKET: %s", error)

    def beat(self) -> None:
        """Give the watchdog a sign of life."""
        if self.beat_seconds is not None:
            self.report(WATCHDOG="1")

    def report_wait(self) -> None:
        """Report that the broker is away; Celery's timers do not run meanwhile, so also a beat."""
        self.report(STATUS="Waiting for the broker")
        self.beat()

    def report_stop(self, **_: Any) -> None:
        """Report the stop. From now on the manager's limit for stops replaces the watchdog."""
        self.report(STOPPING="1", STATUS="Stopping: no more jobs are taken")
        self._is_stopping = True


class SupervisionStep(bootsteps.StartStopStep):
    """Report each connection to the broker, and its loss."""

    requires = (SlotGateStep,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Belong to a consumer."""
        self._timer: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """Report that the machine is ready; give signs of life from its event loop."""
        supervision = consumer.app.shiftergw_supervision
        systems = ", ".join(sorted(consumer.app.amqp.queues.consume_from))
        supervision.report(READY="1", STATUS=f"Connected to the broker, for {systems}")
        if self._timer is not None:
            self._timer.cancel()  # that of the connection before
        if supervision.beat_seconds is not None:
            self._timer = consumer.timer.call_repeatedly(supervision.beat_seconds, supervision.beat)

    def stop(self, consumer: Any) -> None:
        """Report the loss of the connection."""
        consumer.app.shiftergw_supervision.report_wait()
