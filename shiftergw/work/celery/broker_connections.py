"""The gateway's two connections to the broker. Their calls block, so they run in threads."""

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
    connect_once,
    connection_options,
    ignore_message,
)
from shiftergw.work.celery.broker_errors import BROKER_ALARM, translate_error
from shiftergw.work.celery.worker_registry import OFFER_SECONDS, STATUS_SECONDS

CONFIRM_SECONDS = 10.0
"""Time limit for the broker's confirmation that it has a message."""

RECONNECT = Backoff(first=1.0, longest=5.0)
"""The pauses between attempts to connect."""

ECHO_SECONDS = 8.0
"""A broker that has not returned the listener's own messages for this long does not work."""

IDLE_SECONDS = 60.0
"""A connection on which nothing was sent for this long is replaced: it may be broken unnoticed."""

POLL_SECONDS = 0.2
"""The longest time until the listener notices that it must stop."""


class MessageSender:
    """Send messages over one connection, which opens on demand; only one thread sends at a time."""

    def __init__(self, app: Celery) -> None:
        """Send with the settings of `app`."""
        self._app = app
        self._lock = Lock()
        self._connection: Any = None
        self._is_blocked = False
        self._is_stale = False
        self._used_at = 0.0
        self._amqp_connection: Any = None
        self._is_aborted = False

    def renew(self) -> None:
        """Open a new connection for the next message; may be called from any thread."""
        self._is_stale = True

    def offer(self, message: str, key: str, system: str) -> None:
        """Offer a record to the machines of a system, in a message with the identifier `message`.

        Returns when the broker has confirmed the message. Raises `Unavailable` if it does not.
        """

        def publish(connection: Any) -> None:
            channel = connection.default_channel
            with self._app.amqp.Producer(channel, auto_declare=False) as producer:
                self._app.send_task(
                    TASK,
                    (key,),
                    task_id=message,
                    queue=system,
                    producer=producer,
                    retry=False,
                    ignore_result=True,
                    expiration=OFFER_SECONDS,
                    confirm_timeout=CONFIRM_SECONDS,
                )

        self._send(publish)

    def cancel(self, key: str, *messages: str) -> None:
        """Order all worker machines to stop the jobs on a record; raises `Unavailable`.

        With `messages`, only the jobs that these messages offered are stopped. A machine of an
        earlier version ignores this restriction.
        """
        order: dict[str, Any] = {"key": key}
        if messages:
            order["messages"] = list(messages)

        def publish(connection: Any) -> None:
            channel = connection.default_channel
            with Producer(channel, exchange=CANCEL, serializer="json") as producer:
                producer.publish(order, delivery_mode=1, confirm_timeout=CONFIRM_SECONDS)

        self._send(publish)

    def abort(self) -> None:
        """Make the call in progress fail soon; may be called from any thread."""
        self._is_aborted = True
        if self._amqp_connection is not None:
            with suppress(OSError, AttributeError):  # it is closed, or its thread is closing it
                # Not `SSLSocket.shutdown`: it discards the TLS state that the other thread uses.
                socket.shutdown(self._amqp_connection.sock, SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()

    def _send(self, publish: Callable[[Any], object]) -> None:
        with self._lock:
            if self._is_stale or time.monotonic() - self._used_at > IDLE_SECONDS:
                self._is_stale = False
                self._disconnect()
            self._used_at = time.monotonic()
            try:
                if self._connection is None:
                    self._connect()
                publish(self._connection)
            except Exception as error:
                is_blocked = self._is_blocked
                # On this connection, the next confirmation could be that of this message.
                self._disconnect()
                reason = BROKER_ALARM if is_blocked else translate_error(error)
                raise Unavailable(
                    "The broker of the worker machines does not answer.",
                    detail=f"{reason} ({reason.detail or 'connection.blocked'})",
                ) from error

    def _connect(self) -> None:
        self._is_blocked = False
        self._connection = self._app.connection_for_write(
            transport_options={
                **connection_options("gateway offers"),
                "confirm_publish": True,
                "on_blocked": self._note_blocked,
            }
        )
        connect_once(self._connection)
        self._amqp_connection = self._connection.connection
        if self._is_aborted:
            raise OSError("the gateway is stopping")

    def _note_blocked(self, _: str) -> None:
        self._is_blocked = True

    def _disconnect(self) -> None:
        connection, self._connection, self._amqp_connection = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(CONNECT_SECONDS)


class StatusListener:
    """Receive the statuses of worker machines, and watch whether the broker works.

    A broker without memory or disk space, or a frozen one, keeps its connections open. So the
    listener sends messages to itself: if none returns, the broker takes no messages.
    """

    def __init__(
        self,
        app: Celery,
        on_status: Callable[[Any], None],
        on_change: Callable[[Unavailable | None], None],
    ) -> None:
        """Call `on_status` with each status document, and `on_change` when the broker changes.

        The argument of `on_change` is None if the broker serves, else an error. Both functions are
        called in the thread of `run`.
        """
        self._app = app
        self._on_status = on_status
        self._on_change = on_change
        self._stop_event = Event()
        self._is_blocked = False
        self._echoed_at = 0.0
        self._trouble: Unavailable | None = None

    def stop(self) -> None:
        """Make `run` return soon; may be called from any thread."""
        self._stop_event.set()

    def run(self) -> None:
        """Listen until `stop` is called; connect again after each failure."""
        failures = 0
        while not self._stop_event.is_set():
            connection = self._app.connection_for_read(
                heartbeat=HEARTBEAT_SECONDS,
                transport_options={
                    **connection_options("gateway listens"),
                    "on_blocked": lambda _: self._note_blocked(True),
                    "on_unblocked": lambda: self._note_blocked(False),
                },
            )
            started_at = time.monotonic()
            try:
                connect_once(connection)
                self._listen(connection)
            except Exception as error:  # noqa: BLE001 - after any error it connects again
                self._on_change(translate_error(error))
            finally:
                with suppress(Exception):
                    connection.collect(CONNECT_SECONDS)
            if time.monotonic() - started_at > RECONNECT.longest:
                failures = 0
            failures += 1
            self._stop_event.wait(RECONNECT.seconds(failures))

    def _listen(self, connection: Any) -> None:
        channel = connection.default_channel
        name = f"shiftergw.gateway.{uuid.uuid4()}"
        exclusive: dict[str, Any] = {"durable": False, "exclusive": True, "auto_delete": True}
        status_queue = Queue(
            name,
            exchange=get_exchange(connection, name=self._app.conf.event_exchange),
            routing_key=STATUS.replace("-", "."),
            message_ttl=STATUS_SECONDS * 3,
            **exclusive,
        )
        # The default exchange routes a message to the queue that its routing key names.
        echo_queue = Queue(f"{name}.echo", exchange=Exchange(""), **exclusive)
        options: dict[str, Any] = {
            "accept": ["json"], "no_ack": True, "on_decode_error": ignore_message
        }  # fmt: skip
        Consumer(channel, [status_queue], callbacks=[self._note_status], **options).consume()
        Consumer(channel, [echo_queue], callbacks=[self._note_echo], **options).consume()
        self._is_blocked, self._trouble = False, None
        self._echoed_at = sent_at = time.monotonic()
        self._on_change(None)
        with Producer(channel, serializer="json") as producer:
            while not self._stop_event.is_set():
                now = time.monotonic()
                if now - sent_at >= STATUS_SECONDS and not self._is_blocked:
                    sent_at = now
                    producer.publish({}, routing_key=echo_queue.name, delivery_mode=1)
                with suppress(TimeoutError):
                    connection.drain_events(timeout=POLL_SECONDS)
                connection.heartbeat_check()
                self._judge_broker()

    def _judge_broker(self) -> None:
        """Report that the broker takes no messages, or takes them again."""
        trouble = None
        if self._is_blocked:
            trouble = BROKER_ALARM
        elif time.monotonic() - self._echoed_at > ECHO_SECONDS:
            trouble = self._trouble or translate_error(
                TimeoutError("our own message did not come back")
            )
        if trouble is not self._trouble:
            self._trouble = trouble
            self._on_change(trouble)

    def _note_blocked(self, is_blocked: bool) -> None:
        self._is_blocked = is_blocked
        self._echoed_at = time.monotonic()

    def _note_echo(self, body: Any, message: Any) -> None:  # noqa: ARG002
        self._echoed_at = time.monotonic()

    def _note_status(self, body: Any, message: Any) -> None:  # noqa: ARG002
        self._on_status(body)
