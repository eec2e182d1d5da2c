"""Take messages only while a slot is free, and read nothing from them but the key.

Messages are acknowledged when their jobs begin, and the broker then delivers the next message,
although the machine may be busy for hours. So a machine without a free slot stops consuming before
it acknowledges the message that took the last slot, and resumes when a job has ended.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from celery import Celery, bootsteps
from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request

from shiftergw import __version__
from shiftergw.plumbing.backoff import Backoff
from shiftergw.ports import JobEnd
from shiftergw.work.celery.app import TASK, is_key
from shiftergw.work.celery.consumer import CancelStep, TaskStep
from shiftergw.work.celery.status_publisher import StatusPublisher
from shiftergw.work.celery.worker_registry import STATUS_SECONDS
from shiftergw.work.subprocess_job import JobLost

RESTART = Backoff(first=1.0, longest=60.0)
"""The pauses after failed starts of a worker, in which no job is taken."""

_log = get_logger(__name__)
_MESSAGE = re.compile(r"[0-9a-f-]{1,64}")


class SlotGate:
    """The slots of this machine, and the messages that have taken them."""

    def __init__(self) -> None:
        """Start without a consumer and with all slots free."""
        self._run = uuid4().hex
        self._consumer: Any = None
        self._publisher: StatusPublisher | None = None
        self._queues: dict[str, Any] = {}
        self._is_open = False
        self._jobs: dict[str, str] = {}
        """The keys of records in work, by message."""
        self._done: deque[str] = deque(maxlen=50)
        """The messages of the latest jobs that have ended."""
        self._losses: deque[tuple[str, JobEnd]] = deque(maxlen=50)
        self._fault = ""
        """A phrase that says why the latest worker could not start; empty if it could."""
        self._failed_starts = 0
        self._closed_until = 0.0

    def is_full(self) -> bool:
        """Return whether no slot is free."""
        return len(self._jobs) >= self._count_slots()

    def has(self, message: str) -> bool:
        """Return whether a message has taken a slot."""
        return message in self._jobs

    def open(self, consumer: Any) -> None:
        """Let a consumer that has connected consume while a slot is free."""
        self._consumer = consumer
        self._publisher = self._publisher or StatusPublisher(consumer.app, consumer.hostname)
        self._is_open = True
        # The broker delivers messages again that were not acknowledged on the connection before.
        active = {request.id for request in state.active_requests}
        self._jobs = {message: key for message, key in self._jobs.items() if message in active}
        self._queues = {queue.name: queue for queue in consumer.task_consumer.queues}
        # The broker delivers one message at a time: the next one when this one is acknowledged.
        consumer.qos.value = 1
        consumer.qos.set(1)
        self._stop_consuming_if_full()

    def close(self) -> None:
        """Take no more jobs: the connection is broken, or the machine stops."""
        self._is_open = False
        self.publish_status()

    def close_publisher(self) -> None:
        """Publish no more statuses."""
        if self._publisher is not None:
            self._publisher.close()

    def take(self, message: str, key: str) -> None:
        """Give a slot to a message."""
        self._jobs[message] = key
        self._stop_consuming_if_full()
        self.publish_status()

    def release(self, message: str, loss: JobEnd | None = None) -> None:
        """Free the slot of a message whose job has ended; a second call has no effect.

        `loss` is the end of a job that was not done.
        """
        if message not in self._jobs:
            return
        del self._jobs[message]
        self._done.append(message)
        if loss is not None:
            self._losses.append((message, loss))
        self._note_start(loss)
        if self._is_open:
            # Called by the event loop, which connects again if the broker refuses it.
            self._consumer.call_soon(self._consume)
            self.publish_status()

    def _note_start(self, loss: JobEnd | None) -> None:
        """Take no job for a while if the worker of the latest job could not start."""
        if loss is None or loss.died:
            self._fault, self._failed_starts, self._closed_until = "", 0, 0.0
            return
        self._fault = loss.loss
        self._failed_starts += 1
        seconds = RESTART.seconds(self._failed_starts)
        self._closed_until = time.monotonic() + seconds
        _log.error("A worker %s; the next one starts in %g s", loss.loss, seconds)

    def _count_slots(self) -> int:
        """Return the number of slots; after a failed start none for a while, then one."""
        if not self._fault:
            return int(self._consumer.pool.num_processes)
        return 0 if time.monotonic() < self._closed_until else 1

    def update(self) -> None:
        """Resume consuming if the wait after a failed start is over; publish the status."""
        if self._fault and self._is_open:
            self._consume()
        self.publish_status()

    def publish_status(self) -> None:
        """Publish the status of this machine to the gateways."""
        if self._publisher is not None:
            self._publisher.publish(
                run=self._run,
                version=__version__,
                systems=list(self._queues),
                slots=self._count_slots(),
                jobs=self._jobs,
                ended=list(self._done),
                lost={
                    message: [end.key, end.runner, end.loss, end.died]
                    for message, end in self._losses
                },
                fault=self._fault,
                leaving=not self._is_open,
            )

    def _stop_consuming_if_full(self) -> None:
        if self.is_full():
            for name in self._queues:
                self._consumer.task_consumer.cancel_by_queue(name)

    def _consume(self) -> None:
        """Consume from all queues if a slot is free."""
        consumer = self._consumer.task_consumer
        if not self._is_open or consumer is None or self.is_full():
            return
        for name, queue in self._queues.items():
            if not consumer.consuming_from(name):
                consumer.add_queue(queue)
        consumer.consume()


class SlotGateStep(bootsteps.StartStopStep):
    """Open the gate whenever the worker has connected to the broker."""

    # A gateway that receives our status may send an order to stop a job at once.
    requires = (TaskStep, CancelStep)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Belong to a consumer."""
        self._timer: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """Open the gate, and publish the status regularly from now on."""
        gate = consumer.app.shiftergw_slot_gate
        gate.open(consumer)
        gate.publish_status()
        if self._timer is not None:
            self._timer.cancel()  # that of the connection before
        self._timer = consumer.timer.call_repeatedly(STATUS_SECONDS, gate.update)

    def stop(self, consumer: Any) -> None:
        """Close the gate; its timer goes on, so that gateways learn how the last jobs end."""
        consumer.app.shiftergw_slot_gate.close()

    def shutdown(self, consumer: Any) -> None:
        """Publish no more statuses."""
        if self._timer is not None:
            self._timer.cancel()
        consumer.app.shiftergw_slot_gate.close_publisher()


class JobRequest(Request):
    """A message in work, which frees its slot at the end of its job, whatever that end is."""

    def on_success(self, *arguments: Any, **options: Any) -> None:
        super().on_success(*arguments, **options)
        self._app.shiftergw_slot_gate.release(self.id)

    def on_failure(self, exc_info: Any, *arguments: Any, **options: Any) -> None:
        # Celery wraps an exception that comes from another process.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        try:
            super().on_failure(exc_info, *arguments, **options)
        finally:
            loss = error.end if isinstance(error, JobLost) else None
            self._app.shiftergw_slot_gate.release(self.id, loss)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._app.shiftergw_slot_gate.release(self.id)


def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
    """Return the handler of our task's messages, which uses only their key and identifier.

    Anybody with an account on the broker can send a message. So its times, time limits, callbacks
    and other options are ignored.
    """
    gate, controller = app.shiftergw_slot_gate, consumer.controller
    limits = {"soft": controller.soft_time_limit, "hard": controller.time_limit}

    def handle(message: Any, _: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        key, identifier = _read(message)
        if gate.has(identifier):  # its acknowledgement was lost with a connection
            ack(_log, consumer.connection_errors)
            return
        if gate.is_full():
            reject(_log, consumer.connection_errors, True)
            return
        request = JobRequest(
            message,
            on_ack=ack,
            on_reject=reject,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            app=app,
            connection_errors=consumer.connection_errors,
            task=task,
            headers={"id": identifier, "task": TASK, "root_id": identifier},
            body=((key,), limits, {}),
            decoded=True,
        )
        if request.revoked():
            return
        gate.take(identifier, key)
        state.task_reserved(request)
        for callback in callbacks:
            callback(request)
        consumer.on_task_request(request)

    return handle


def _read(message: Any) -> tuple[str, str]:
    """Return the key and the identifier of a message; raise `InvalidTaskError` if they are invalid.

    Celery then rejects the message.
    """
    payload, identifier = message.payload, (message.headers or {}).get("id")
    arguments = payload[0] if isinstance(payload, list | tuple) and payload else None
    if not isinstance(arguments, list | tuple) or len(arguments) != 1 or not is_key(arguments[0]):
        raise InvalidTaskError("The message names no record.")
    if not isinstance(identifier, str) or not _MESSAGE.fullmatch(identifier):
        raise InvalidTaskError("The message has no identifier.")
    return arguments[0], identifier
