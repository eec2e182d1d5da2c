"""How a worker machine takes messages: as many as it has slots, and nothing of them but the key.

With early acknowledgement a broker delivers the next message as soon as a job has begun, to a
machine that is busy with it, perhaps for hours. So a machine whose slots are all taken stops
consuming, before it acknowledges what has taken the last one; and goes on when a job has ended.
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

LONGEST_BACKOFF = 60.0
"""Seconds; after a worker that could not start no job is taken for one second, then for two, …"""

_log = get_logger(__name__)
_MESSAGE = re.compile(r"[0-9a-f-]{1,64}")


class SlotGate:
    """The slots of this machine, and who has them."""

    def __init__(self) -> None:
        """Have no consumer yet."""
        self._run = uuid4().hex
        self._consumer: Any = None
        self._voice: StatusPublisher | None = None
        self._queues: dict[str, Any] = {}
        self._open = False
        self._jobs: dict[str, str] = {}
        self._ended: deque[str] = deque(maxlen=50)
        self._lost: deque[tuple[str, JobEnd]] = deque(maxlen=50)
        self._fault = ""
        self._failed_starts = 0
        self._closed_until = 0.0

    def is_full(self) -> bool:
        """Return whether no slot is free."""
        return len(self._jobs) >= self._slots()

    def has(self, message: str) -> bool:
        """Say whether a message has a slot."""
        return message in self._jobs

    def connected(self, consumer: Any) -> None:
        """Work for a consumer that has just connected, and consumes later, if it may."""
        self._consumer = consumer
        self._voice = self._voice or StatusPublisher(consumer.app, consumer.hostname)
        self._open = True
        # What had come and not begun when the connection was lost comes again.
        begun = {request.id for request in state.active_requests}
        for message in [one for one in self._jobs if one not in begun]:
            self._forget(message)
        self._queues = {queue.name: queue for queue in consumer.task_consumer.queues}
        # One message at a time: the next one comes when this one has begun, if we still consume.
        consumer.qos.value = 1
        consumer.qos.set(1)
        self._close_queues()

    def left(self) -> None:
        """Take no more: the connection is lost, or the machine stops."""
        self._open = False
        self.tell()

    def ended(self) -> None:
        """Tell no more."""
        if self._voice is not None:
            self._voice.close()

    def take(self, message: str, key: str) -> None:
        """Give a slot away."""
        self._jobs[message] = key
        self._close_queues()
        self.tell()

    def leave(self, message: str, lost: JobEnd | None = None) -> None:
        """Take a slot back; nothing happens the second time. `lost`: the job was not done."""
        if message not in self._jobs:
            return
        self._forget(message)
        self._ended.append(message)
        if lost is not None:
            self._lost.append((message, lost))
        self._note_start(lost)
        if self._open:
            # In the loop itself: what the broker has against it makes us connect again there.
            self._consumer.call_soon(self._open_queues)
            self.tell()

    def _note_start(self, lost: JobEnd | None) -> None:
        """Take no job for a while if the worker of the last one could not start."""
        if lost is None or lost.died:
            self._fault, self._failed_starts, self._closed_until = "", 0, 0.0
            return
        self._fault = lost.loss
        self._failed_starts += 1
        seconds = Backoff(1.0, LONGEST_BACKOFF).seconds(self._failed_starts)
        self._closed_until = time.monotonic() + seconds
        _log.error("A worker %s; the next one starts in %g s", lost.loss, seconds)

    def _slots(self) -> int:
        """Return how many jobs this machine takes: one to try with, after one that did not start.

        And none in the meantime.
        """
        if not self._fault:
            return int(self._consumer.pool.num_processes)
        return 0 if time.monotonic() < self._closed_until else 1

    def look(self) -> None:
        """Take jobs again if it is time for that, and tell."""
        if self._fault and self._open:
            self._open_queues()
        self.tell()

    def tell(self) -> None:
        """Tell the gateways who we are and what we do; what does not reach them, the next will."""
        if self._voice is not None:
            self._voice.tell(
                run=self._run,
                version=__version__,
                systems=list(self._queues),
                slots=self._slots(),
                jobs=self._jobs,
                ended=list(self._ended),
                lost={
                    message: [end.key, end.runner, end.loss, end.died]
                    for message, end in self._lost
                },
                fault=self._fault,
                leaving=not self._open,
            )

    def _forget(self, message: str) -> None:
        del self._jobs[message]

    def _close_queues(self) -> None:
        """Consume no more once no slot is free."""
        if self.is_full():
            for name in self._queues:
                self._consumer.task_consumer.cancel_by_queue(name)

    def _open_queues(self) -> None:
        """Consume from all queues if a slot is free."""
        consumer = self._consumer.task_consumer
        if not self._open or consumer is None or self.is_full():
            return
        for name, queue in self._queues.items():
            if not consumer.consuming_from(name):
                consumer.add_queue(queue)
        consumer.consume()


class SlotGateStep(bootsteps.StartStopStep):
    """Connects the gate whenever the worker has connected to the broker."""

    # Who hears of us may at once tell us to stop a job.
    requires = (TaskStep, CancelStep)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Belong to a consumer."""
        self._timer: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """Open the gate, and tell of it from now on."""
        gate = consumer.app.shiftergw_slot_gate
        gate.connected(consumer)
        gate.tell()
        if self._timer is not None:
            self._timer.cancel()  # of the connection before
        self._timer = consumer.timer.call_repeatedly(STATUS_SECONDS, gate.look)

    def stop(self, consumer: Any) -> None:
        """Close the gate; the gateways hear of the jobs that go on for as long as we can tell."""
        consumer.app.shiftergw_slot_gate.left()

    def shutdown(self, consumer: Any) -> None:
        """Tell no more."""
        if self._timer is not None:
            self._timer.cancel()
        consumer.app.shiftergw_slot_gate.ended()


class JobRequest(Request):
    """A message in work, which gives its slot back when its job has ended, however."""

    def on_success(self, *arguments: Any, **options: Any) -> None:
        super().on_success(*arguments, **options)
        self._app.shiftergw_slot_gate.leave(self.id)

    def on_failure(self, exc_info: Any, *arguments: Any, **options: Any) -> None:
        # Celery wraps an exception that comes from another process.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        try:
            super().on_failure(exc_info, *arguments, **options)
        finally:
            lost = error.end if isinstance(error, JobLost) else None
            self._app.shiftergw_slot_gate.leave(self.id, lost)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._app.shiftergw_slot_gate.leave(self.id)


def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
    """Return what handles a message of our task: only its key, and its identifier, are looked at.

    Times, limits, calls to follow and whatever else a message may ask for are nobody's to ask for.
    """
    gate, machine = app.shiftergw_slot_gate, consumer.controller
    limits = {"soft": machine.soft_time_limit, "hard": machine.time_limit}

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
    """Return the key and the identifier in a message, or raise what makes Celery reject it."""
    payload, identifier = message.payload, (message.headers or {}).get("id")
    arguments = payload[0] if isinstance(payload, list | tuple) and payload else None
    if not isinstance(arguments, list | tuple) or len(arguments) != 1 or not is_key(arguments[0]):
        raise InvalidTaskError("The message names no record.")
    if not isinstance(identifier, str) or not _MESSAGE.fullmatch(identifier):
        raise InvalidTaskError("The message has no identifier.")
    return arguments[0], identifier
