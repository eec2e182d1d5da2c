"""The gateway's two lines to the broker; all that blocks is here, and runs in threads."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock
from typing import Any

from celery import Celery
from celery.events import get_exchange
from kombu.entity import Queue
from kombu.messaging import Consumer

from shiftergw.errors import Unavailable, printable
from shiftergw.work.celery_app import CANCEL, CONNECT_SECONDS, STATUS, TASK
from shiftergw.work.crew import OFFER_SECONDS, TELL_SECONDS

CONFIRM_SECONDS = 10.0
"""Limit on the broker's word that it has a message."""

LONGEST_PAUSE = 10.0
"""Seconds between two attempts to reach a broker that is away, at most."""


def explained(error: BaseException) -> str:
    """Return what a driver's error says, without a password that may stand in a URL there."""
    return printable(re.sub(r"//[^/@\s]*@", "//", f"{type(error).__name__}: {error}"), 300)


class Sender:
    """Sends messages over one connection, opened on use; one thread at a time uses it."""

    def __init__(self, app: Celery) -> None:
        """Send by the settings of `app`."""
        self._app = app
        self._lock = Lock()
        self._connection: Any = None
        self._stale = False

    def renew(self) -> None:
        """Open a new connection for what is sent next; may be called from any thread."""
        self._stale = True

    def offer(self, message: str, key: str, system: str) -> None:
        """Return when the broker has the message; raises `Unavailable`."""

        def publish(connection: Any) -> None:
            with self._app.amqp.Producer(connection.default_channel, auto_declare=False) as to:
                self._app.send_task(
                    TASK,
                    (key,),
                    task_id=message,
                    queue=system,
                    producer=to,
                    retry=False,
                    ignore_result=True,
                    expiration=OFFER_SECONDS,
                    confirm_timeout=CONFIRM_SECONDS,
                )

        self._use(publish)

    def cancel(self, key: str) -> None:
        """Tell all worker machines to stop the job on a record; raises `Unavailable`."""
        self._use(
            lambda connection: self._app.control.broadcast(
                CANCEL, arguments={"key": key}, connection=connection
            )
        )

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _use(self, act: Callable[[Any], object]) -> None:
        with self._lock:
            if self._stale:
                self._stale = False
                self._drop()
            try:
                if self._connection is None:
                    self._connection = self._app.connection_for_write()
                    self._connection.connect()
                act(self._connection)
            except Exception as error:
                # Whatever it was, what the broker answers next may be the answer to this.
                self._drop()
                raise Unavailable(
                    "The broker of the worker machines does not answer.", detail=explained(error)
                ) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(CONNECT_SECONDS)


class Listener:
    """Hears what the worker machines tell, and whether the broker is there, until it is stopped."""

    def __init__(
        self, app: Celery, told: Callable[[Any], None], changed: Callable[[str | None], None]
    ) -> None:
        """Call `told` with each state; `changed` with None once connected, or with what is wrong.

        Both are called in the thread that runs `run`.
        """
        self._app = app
        self._told = told
        self._changed = changed
        self._stopping = Event()

    def stop(self) -> None:
        """Make `run` return in a second or so; may be called from any thread."""
        self._stopping.set()

    def run(self) -> None:
        """Listen, and connect again however often it takes."""
        pause = 1.0
        while not self._stopping.is_set():
            connection = self._app.connection_for_read()
            try:
                connection.connect()
                self._listen(connection)
            except Exception as error:  # noqa: BLE001 - whatever it was, we connect again
                self._changed(explained(error))
            else:
                pause = 1.0
            finally:
                with suppress(Exception):
                    connection.collect(CONNECT_SECONDS)
            self._stopping.wait(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _listen(self, connection: Any) -> None:
        name = self._app.conf.event_exchange
        queue = Queue(
            f"shiftergw.gateway.{uuid.uuid4()}",
            exchange=get_exchange(connection, name=name),
            routing_key=STATUS.replace("-", "."),
            durable=False,
            exclusive=True,
            auto_delete=True,
            message_ttl=TELL_SECONDS * 3,
        )
        channel = connection.default_channel
        with Consumer(
            channel,
            [queue],
            callbacks=[self._heard],
            accept=["json"],
            no_ack=True,
            prefetch_count=0,
        ):
            self._changed(None)
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=1.0)
                connection.heartbeat_check()

    def _heard(self, body: Any, _: Any) -> None:
        self._told(body)
