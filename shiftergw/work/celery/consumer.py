"""The part of a worker machine that is connected to the broker, reduced to what it needs.

The machine does not talk to other machines. It uses no queue with a fixed name that lives as long
as a connection: RabbitMQ 4 refuses such queues, and two machines with the same name would take it
from each other. If the broker refuses the machine, it tries again, as after a broken connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.consumer import Evloop
from celery.worker.consumer.events import Events
from celery.worker.consumer.tasks import Tasks
from kombu import messaging
from kombu.entity import Queue

from shiftergw.plumbing.backoff import Backoff
from shiftergw.work.celery.app import CANCEL, TASK, connect_once, ignore_message, is_key
from shiftergw.work.celery.broker_errors import translate_error

_log = get_logger(__name__)

RECONNECT = Backoff(first=1.0, longest=5.0)
"""The pauses between attempts to connect."""


class TaskStep(Tasks):
    """Take messages, with a prefetch limit for each queue: RabbitMQ 4 refuses a global limit."""

    requires = (Events,)

    def qos_global(self, c: Any) -> bool:  # noqa: ARG002
        """Return False: no limit for the whole channel."""
        return False


class CancelStep(bootsteps.ConsumerStep):
    """Receive orders to stop jobs, in a queue that belongs to this connection."""

    requires = (TaskStep,)

    def get_consumers(self, channel: Any) -> Sequence[messaging.Consumer]:
        """Return the consumer of the orders."""
        queue = Queue(
            f"shiftergw.machine.{uuid4()}",
            exchange=CANCEL,
            durable=False,
            exclusive=True,
            auto_delete=True,
        )
        options: dict[str, Any] = {
            "accept": ["json"], "no_ack": True, "on_decode_error": ignore_message
        }  # fmt: skip
        return [messaging.Consumer(channel, [queue], callbacks=[self._cancel_jobs], **options)]

    def start(self, c: Any) -> None:
        """Begin to consume."""
        self._pool = c.pool
        super().start(c)

    def _cancel_jobs(self, body: Any, message: Any) -> None:  # noqa: ARG002
        key = body.get("key") if isinstance(body, dict) else None
        if not is_key(key):
            return
        messages = body.get("messages")
        for request in list(state.requests.values()):
            is_named = not isinstance(messages, list) or request.id in messages
            if request.args[0] == key and is_named:
                _log.info("The job on %s is cancelled", key)
                request.terminate(self._pool, signal="TERM")


class MachineConsumer(Consumer):
    """Celery's consumer, which connects again however often the broker fails or refuses it."""

    class Blueprint(Consumer.Blueprint):
        """The steps of the consumer, in their order; `SlotGateStep` is added to them."""

        default_steps = (Connection, Events, TaskStep, CancelStep, Evloop)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Disable gossip between machines and Celery's own heartbeat events."""
        options |= {"without_gossip": True, "without_heartbeat": True}
        super().__init__(*arguments, **options)
        self._attempts = 0
        self._connected_at = -RECONNECT.longest

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Return the handler of messages, which rejects all that do not name our task.

        Celery's handler would end the worker if the name is not text, and the broker would deliver
        the message to the next one.
        """
        handle = super().create_task_handler(*arguments, **options)

        def handle_conversion(message: Any) -> None:
            if (message.headers or {}).get("task") == TASK:
                handle(message)
            else:
                _log.error("A message of another task is thrown away")
                message.reject_log_error(_log, self.connection_errors)

        return handle_conversion

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Log why the connection has ended, then let Celery connect again."""
        reason = translate_error(exc)
        _log.error("%s (%s)", reason, reason.detail)
        super().on_connection_error_after_connected(exc)

    def ensure_connected(self, conn: Any) -> Any:
        """Return the connection once it is open; log why each attempt fails."""
        if time.monotonic() - self._connected_at > RECONNECT.longest:
            self._attempts = 0  # the connection before lived for a while
        while True:
            self._wait_before_attempt()
            try:
                connect_once(conn)
            except (*self.connection_errors, *self.channel_errors) as error:
                reason = translate_error(error)
                _log.error("%s (%s) Trying again.", reason, reason.detail)
            else:
                self._connected_at = time.monotonic()
                return conn

    def _wait_before_attempt(self) -> None:
        """Wait, longer each time; end the wait if the machine gets the order to stop."""
        self.app.shiftergw_supervision.report_wait()
        deadline = time.monotonic() + RECONNECT.seconds(self._attempts)
        while time.monotonic() < deadline:
            state.maybe_shutdown()
            time.sleep(0.1)
        self._attempts += 1
