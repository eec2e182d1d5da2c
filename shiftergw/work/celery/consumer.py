"""The part of Celery's worker that is at the broker, without what a worker machine does not need.

It talks to no other machine. It takes part in nothing that goes by a queue of a fixed name that
lives as long as a connection: RabbitMQ no longer likes such queues, and two machines that were
given one name would fight for it. A broker that refuses it is asked again, as one that is away is.
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
from kombu.entity import Queue
from kombu.messaging import Consumer as QueueConsumer

from shiftergw.plumbing.backoff import Backoff
from shiftergw.work.celery.app import CANCEL, TASK, is_key, reach, unread
from shiftergw.work.celery.faults import fault

_log = get_logger(__name__)

LONGEST_PAUSE = 5.0
"""Seconds between two attempts to reach the broker, at most."""


class TaskStep(Tasks):
    """Takes messages, with a limit for each queue: RabbitMQ gives up the one for a connection."""

    requires = (Events,)

    def qos_global(self, c: Any) -> bool:  # noqa: ARG002
        """See `Tasks`."""
        return False


class CancelStep(bootsteps.ConsumerStep):
    """Hears of jobs that are to stop, by a queue that is this connection's own."""

    requires = (TaskStep,)

    def get_consumers(self, channel: Any) -> Sequence[QueueConsumer]:
        """Return the one that hears of it."""
        queue = Queue(
            f"shiftergw.machine.{uuid4()}",
            exchange=CANCEL,
            durable=False,
            exclusive=True,
            auto_delete=True,
        )
        options: dict[str, Any] = {"accept": ["json"], "no_ack": True, "on_decode_error": unread}
        return [QueueConsumer(channel, [queue], callbacks=[self._hear], **options)]

    def start(self, c: Any) -> None:
        """Listen."""
        self._pool = c.pool
        super().start(c)

    def _hear(self, body: Any, message: Any) -> None:  # noqa: ARG002
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
    """What is at the broker; it comes back however often the broker goes, or says no."""

    class Blueprint(Consumer.Blueprint):
        """The steps, in their order."""

        default_steps = (Connection, Events, TaskStep, CancelStep, Evloop)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Tell other workers nothing."""
        options |= {"without_gossip": True, "without_heartbeat": True}
        super().__init__(*arguments, **options)
        self._failures = 0
        self._reached = -LONGEST_PAUSE

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Return what handles a message; what has not even our task's name ends here.

        Celery would end the worker for a name that is no text, and keep the message for the next.
        """
        handle = super().create_task_handler(*arguments, **options)

        def handle_ours(message: Any) -> None:
            if (message.headers or {}).get("task") == TASK:
                handle(message)
            else:
                _log.error("A message of another task is thrown away")
                message.reject_log_error(_log, self.connection_errors)

        return handle_ours

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Say in words why the connection ends, perhaps by the broker's will."""
        why = fault(exc)
        _log.error("%s (%s)", why, why.detail)
        super().on_connection_error_after_connected(exc)

    def ensure_connected(self, conn: Any) -> Any:
        """Return the connection once it is there; say in words why it is not yet."""
        if time.monotonic() - self._reached > LONGEST_PAUSE:
            self._failures = 0  # the last connection did not end at once
        while True:
            self._wait()
            try:
                reach(conn)
            except (*self.connection_errors, *self.channel_errors) as error:
                why = fault(error)
                _log.error("%s (%s) We try again.", why, why.detail)
            else:
                self._reached = time.monotonic()
                return conn

    def _wait(self) -> None:
        """Wait for longer each time, unless the machine is told to leave."""
        until = time.monotonic() + Backoff(1.0, LONGEST_PAUSE).seconds(self._failures)
        while time.monotonic() < until:
            state.maybe_shutdown()
            time.sleep(0.1)
        self._failures += 1
