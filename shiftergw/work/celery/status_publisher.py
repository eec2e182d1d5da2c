"""The line on which a worker machine tells the gateways who it is and what it does."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.utils.log import get_logger

from shiftergw.work.celery.app import STATUS, called, reach
from shiftergw.work.celery.faults import fault
from shiftergw.work.celery.worker_registry import STATUS_SECONDS

_log = get_logger(__name__)

PAUSE_SECONDS = STATUS_SECONDS * 2
"""Between two attempts to open a line: one may take a while, and jobs end meanwhile."""


class StatusPublisher:
    """Tells by a connection of its own, so that a broker which takes nothing holds up no job."""

    def __init__(self, app: Celery, hostname: str) -> None:
        """Tell under this name; the line is opened on use."""
        self._app = app
        self._hostname = hostname
        self._connection: Any = None
        self._dispatcher: Any = None
        self._blocked = False
        self._silent_until = 0.0

    def tell(self, **state: Any) -> None:
        """Tell a state; one that does not go out is lost: the next one comes soon."""
        if time.monotonic() < self._silent_until:
            return
        try:
            if self._dispatcher is None:
                self._silent_until = time.monotonic() + PAUSE_SECONDS
                self._open()
                self._silent_until = 0.0
            if self._may_speak():
                self._dispatcher.send(STATUS, **state)
        except Exception as error:  # noqa: BLE001 - it is told again soon
            why = fault(error)
            _log.warning("The gateways were not told: %s (%s)", why, why.detail)
            self.close()

    def close(self) -> None:
        """Leave the line."""
        connection, self._connection, self._dispatcher = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collect()

    def _open(self) -> None:
        self._blocked = False
        self._connection = self._app.connection_for_write(
            transport_options={
                **called(f"tells of {self._hostname.removeprefix('celery@')}"),
                "on_blocked": lambda _: self._block(True),
                "on_unblocked": lambda: self._block(False),
            }
        )
        reach(self._connection)
        self._dispatcher = self._app.events.Dispatcher(
            self._connection, hostname=self._hostname, buffer_while_offline=False
        )

    def _may_speak(self) -> bool:
        """Say whether the broker takes what we tell, by what it has said since the last time."""
        with suppress(TimeoutError):
            self._connection.drain_events(timeout=0)
        return not self._blocked

    def _block(self, blocked: bool) -> None:
        self._blocked = blocked
        if blocked:
            _log.warning("The broker takes no messages: it is short of memory or disk.")
