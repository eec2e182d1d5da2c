"""Publish the status of a worker machine to the gateways."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.utils.log import get_logger

from shiftergw.work.celery.app import STATUS, connect_once, connection_options
from shiftergw.work.celery.broker_errors import translate_error
from shiftergw.work.celery.worker_registry import STATUS_SECONDS

_log = get_logger(__name__)

RETRY_SECONDS = STATUS_SECONDS * 2
"""Seconds between two attempts to connect: an attempt may take long, and delays other events."""


class StatusPublisher:
    """Publish statuses over a connection of its own.

    A broker that is short of memory or disk reads nothing more from a connection that publishes.
    The acknowledgements of jobs, which use another connection, are not delayed by that.
    """

    def __init__(self, app: Celery, hostname: str) -> None:
        """Publish under this host name; the connection opens on demand."""
        self._app = app
        self._hostname = hostname
        self._connection: Any = None
        self._dispatcher: Any = None
        self._is_blocked = False
        self._retry_at = 0.0

    def publish(self, **status: Any) -> None:
        """Publish a status; if that fails, the status is dropped, since the next one comes soon."""
        if time.monotonic() < self._retry_at:
            return
        try:
            if self._dispatcher is None:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self._connect()
                self._retry_at = 0.0
            # The broker's notices since the last time say whether it takes messages.
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=0)
            if not self._is_blocked:
                self._dispatcher.send(STATUS, **status)
        except Exception as error:  # noqa: BLE001 - the next status is a new attempt
            reason = translate_error(error)
            _log.warning("The status was not published: %s (%s)", reason, reason.detail)
            self.close()

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._dispatcher = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collect()

    def _connect(self) -> None:
        self._is_blocked = False
        self._connection = self._app.connection_for_write(
            transport_options={
                **connection_options(f"tells of {self._hostname.removeprefix('celery@')}"),
                "on_blocked": lambda _: self._note_blocked(True),
                "on_unblocked": lambda: self._note_blocked(False),
            }
        )
        connect_once(self._connection)
        self._dispatcher = self._app.events.Dispatcher(
            self._connection, hostname=self._hostname, buffer_while_offline=False
        )

    def _note_blocked(self, is_blocked: bool) -> None:
        self._is_blocked = is_blocked
        if is_blocked:
            _log.warning("The broker takes no messages: it is short of memory or disk.")
