"""The gateway's two lines to the broker; all that blocks is here, and runs in threads."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR, socket
from threading import Event, Lock
from typing import Any

from celery import Celery
from celery.events import get_exchange
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer, Producer

from shiftergw.errors import Unavailable
from shiftergw.plumbing.backoff import Backoff
from shiftergw.work.celery.app import (
    CANCEL,
    CONNECT_SECONDS,
    HEARTBEAT_SECONDS,
    STATUS,
    TASK,
    called,
    reach,
    unread,
)
from shiftergw.work.celery.faults import BLOCKED, fault
from shiftergw.work.celery.worker_registry import OFFER_SECONDS, STATUS_SECONDS

CONFIRM_SECONDS = 10.0
"""Limit on the broker's word that it has a message."""

LONGEST_PAUSE = 5.0
"""Seconds between two attempts to reach a broker that is away, at most."""

ECHO_SECONDS = 8.0
"""A broker that has not given our own message back for so long does not work."""

IDLE_SECONDS = 60.0
"""A line on which nothing was sent for so long is opened anew: it may be cut, and nobody knows."""

LOOK_SECONDS = 0.2
"""How soon the listener notices that it is to stop."""


class MessageSender:
    """Sends messages over one connection, opened on use; one thread at a time uses it."""

    def __init__(self, app: Celery) -> None:
        """Send by the settings of `app`."""
        self._app = app
        self._lock = Lock()
        self._connection: Any = None
        self._blocked = False
        self._stale = False
        self._used = 0.0
        self._wire: Any = None
        self._leaving = False

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

    def cancel(self, key: str, *messages: str) -> None:
        """Tell all worker machines to stop the jobs on a record; raises `Unavailable`.

        With `messages` only the jobs of these. A machine of an earlier version stops all.
        """
        order: dict[str, Any] = {"key": key}
        if messages:
            order["messages"] = list(messages)

        def publish(connection: Any) -> None:
            with Producer(connection.default_channel, exchange=CANCEL, serializer="json") as to:
                to.publish(order, delivery_mode=1, confirm_timeout=CONFIRM_SECONDS)

        self._use(publish)

    def abort(self) -> None:
        """Have what is being sent fail, and soon; may be called from any thread."""
        self._leaving = True
        if self._wire is not None:
            with suppress(OSError, AttributeError):  # it is closed, or just being closed
                # Not by the method of TLS's socket, whose thread still uses its state.
                socket.shutdown(self._wire.sock, SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _use(self, act: Callable[[Any], object]) -> None:
        with self._lock:
            if self._stale or time.monotonic() - self._used > IDLE_SECONDS:
                self._stale = False
                self._drop()
            self._used = time.monotonic()
            try:
                if self._connection is None:
                    self._open()
                act(self._connection)
            except Exception as error:
                blocked = self._blocked
                # Whatever it was, what the broker answers next may be the answer to this.
                self._drop()
                why = BLOCKED if blocked else fault(error)
                raise Unavailable(
                    "The broker of the worker machines does not answer.",
                    detail=f"{why} ({why.detail or 'connection.blocked'})",
                ) from error

    def _open(self) -> None:
        self._blocked = False
        self._connection = self._app.connection_for_write(
            transport_options={
                **called("gateway offers"),
                "confirm_publish": True,
                "on_blocked": self._block,
            }
        )
        reach(self._connection)
        self._wire = self._connection.connection
        if self._leaving:
            raise OSError("we leave the broker")

    def _block(self, _: str) -> None:
        self._blocked = True

    def _drop(self) -> None:
        connection, self._connection, self._wire = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(CONNECT_SECONDS)


class StatusListener:
    """Hears what the worker machines tell, and whether the broker works, until it is stopped.

    A broker that is full, or frozen, keeps its connections. So the listener sends itself something
    again and again: what does not come back was not taken.
    """

    def __init__(
        self,
        app: Celery,
        told: Callable[[Any], None],
        changed: Callable[[Unavailable | None], None],
    ) -> None:
        """Call `told` with each state; `changed` with None once all is well, or what is wrong.

        Both are called in the thread that runs `run`.
        """
        self._app = app
        self._told = told
        self._changed = changed
        self._stopping = Event()
        self._blocked = False
        self._echoed = 0.0
        self._trouble: Unavailable | None = None

    def stop(self) -> None:
        """Make `run` return soon; may be called from any thread."""
        self._stopping.set()

    def run(self) -> None:
        """Listen, and connect again however often it takes."""
        failures = 0
        while not self._stopping.is_set():
            connection = self._app.connection_for_read(
                heartbeat=HEARTBEAT_SECONDS,
                transport_options={
                    **called("gateway listens"),
                    "on_blocked": lambda _: self._block(True),
                    "on_unblocked": lambda: self._block(False),
                },
            )
            began = time.monotonic()
            try:
                reach(connection)
                self._listen(connection)
            except Exception as error:  # noqa: BLE001 - whatever it was, we connect again
                self._changed(fault(error))
            finally:
                with suppress(Exception):
                    connection.collect(CONNECT_SECONDS)
            if time.monotonic() - began > LONGEST_PAUSE:
                failures = 0
            failures += 1
            self._stopping.wait(Backoff(1.0, LONGEST_PAUSE).seconds(failures))

    def _listen(self, connection: Any) -> None:
        channel = connection.default_channel
        name = f"shiftergw.gateway.{uuid.uuid4()}"
        exclusive: dict[str, Any] = {"durable": False, "exclusive": True, "auto_delete": True}
        states = Queue(
            name,
            exchange=get_exchange(connection, name=self._app.conf.event_exchange),
            routing_key=STATUS.replace("-", "."),
            message_ttl=STATUS_SECONDS * 3,
            **exclusive,
        )
        echoes = Queue(f"{name}.echo", exchange=Exchange(""), **exclusive)
        # Made before it consumes: our own messages go through the default exchange, by its name.
        echoes(channel).declare()
        both: dict[str, Any] = {"accept": ["json"], "no_ack": True, "on_decode_error": unread}
        Consumer(channel, [states], callbacks=[self._heard], **both).consume()
        Consumer(channel, [echoes], callbacks=[self._echo], auto_declare=False, **both).consume()
        self._blocked, self._trouble = False, None
        self._echoed = sent = time.monotonic()
        self._changed(None)
        with Producer(channel, serializer="json") as producer:
            while not self._stopping.is_set():
                now = time.monotonic()
                if now - sent >= STATUS_SECONDS and not self._blocked:
                    sent = now
                    producer.publish({}, routing_key=echoes.name, delivery_mode=1)
                with suppress(TimeoutError):
                    connection.drain_events(timeout=LOOK_SECONDS)
                connection.heartbeat_check()
                self._judge()

    def _judge(self) -> None:
        """Tell of a broker that takes no messages, and of one that takes them again."""
        trouble = None
        if self._blocked:
            trouble = BLOCKED
        elif time.monotonic() - self._echoed > ECHO_SECONDS:
            trouble = self._trouble or fault(TimeoutError("our own message did not come back"))
        if trouble is not self._trouble:
            self._trouble = trouble
            self._changed(trouble)

    def _block(self, blocked: bool) -> None:
        self._blocked = blocked
        self._echoed = time.monotonic()

    def _echo(self, body: Any, message: Any) -> None:  # noqa: ARG002
        self._echoed = time.monotonic()

    def _heard(self, body: Any, message: Any) -> None:  # noqa: ARG002
        self._told(body)
