"""How a worker machine takes messages: as many as it has slots, and nothing of them but the key.

With early acknowledgement a broker delivers the next message as soon as a job has begun, to a
machine that is busy with it, perhaps for hours. So a machine whose slots are all taken stops
consuming, before it acknowledges what has taken the last one; and goes on when a job has ended.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.consumer.control import Control
from celery.worker.consumer.tasks import Tasks
from celery.worker.control import control_command
from celery.worker.request import Request

from shiftergw import __version__
from shiftergw.work.celery_app import CANCEL, STATUS, TASK, is_key
from shiftergw.work.crew import TELL_SECONDS

_log = get_logger(__name__)
_MESSAGE = re.compile(r"[0-9a-f-]{1,64}")


class Gate:
    """The slots of this machine, and who has them."""

    def __init__(self) -> None:
        """Have no consumer yet."""
        self._consumer: Any = None
        self._open = False
        self._jobs: dict[str, str] = {}
        self._ended: deque[str] = deque(maxlen=50)

    @property
    def full(self) -> bool:
        """Say whether no slot is free."""
        return len(self._jobs) >= self._slots

    @property
    def _slots(self) -> int:
        return int(self._consumer.pool.num_processes)

    def connected(self, consumer: Any) -> None:
        """Work for a consumer that has just connected, and consumes later, if it may."""
        self._consumer = consumer
        self._open = True
        consume = consumer.task_consumer.consume

        def consume_if_free(*arguments: Any, **options: Any) -> None:
            if not self.full:
                consume(*arguments, **options)

        consumer.task_consumer.consume = consume_if_free
        # One message at a time: the next one comes when this one has begun, if we still consume.
        consumer.qos.value = 1
        consumer.qos.set(1)

    def left(self) -> None:
        """Take no more: the connection is lost, or the machine stops."""
        self._open = False
        self.tell()

    def take(self, message: str, key: str) -> None:
        """Give a slot away."""
        self._jobs[message] = key
        if self.full:
            self._consumer.task_consumer.cancel()
        self.tell()

    def leave(self, message: str) -> None:
        """Take a slot back; nothing happens the second time."""
        if self._jobs.pop(message, None) is None:
            return
        self._ended.append(message)
        if not self._open:
            return
        try:
            self._consumer.task_consumer.consume()
        except self._consumer.connection_errors as error:
            _log.warning("The broker is gone: %s", type(error).__name__)
        self.tell()

    def tell(self) -> None:
        """Tell the gateways who we are and what we do; what does not reach them, the next will."""
        dispatcher = self._consumer.event_dispatcher
        if dispatcher is None:
            return
        try:
            dispatcher.send(
                STATUS,
                version=__version__,
                systems=[queue.name for queue in self._consumer.task_consumer.queues],
                slots=self._slots,
                jobs=self._jobs,
                ended=list(self._ended),
                leaving=not self._open,
            )
        except Exception as error:  # noqa: BLE001 - it is told again soon
            _log.warning("The gateways were not told: %s", type(error).__name__)


class GateStep(bootsteps.StartStopStep):
    """Connects the gate whenever the worker has connected to the broker."""

    # Who hears of us may at once tell us to stop a job.
    requires = (Tasks, Control)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Belong to a consumer."""
        self._timer: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """Open the gate, and tell of it from now on."""
        gate = consumer.app.shiftergw_gate
        gate.connected(consumer)
        gate.tell()
        self._timer = consumer.timer.call_repeatedly(TELL_SECONDS, gate.tell)

    def stop(self, consumer: Any) -> None:
        """Close the gate; the gateways hear of the jobs that go on for as long as we can tell."""
        consumer.app.shiftergw_gate.left()

    def shutdown(self, consumer: Any) -> None:  # noqa: ARG002
        """Tell no more."""
        if self._timer is not None:
            self._timer.cancel()


class JobRequest(Request):
    """A message in work, which gives its slot back when its job has ended, however."""

    def on_success(self, *arguments: Any, **options: Any) -> None:
        super().on_success(*arguments, **options)
        self._app.shiftergw_gate.leave(self.id)

    def on_failure(self, *arguments: Any, **options: Any) -> None:
        try:
            super().on_failure(*arguments, **options)
        finally:
            self._app.shiftergw_gate.leave(self.id)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._app.shiftergw_gate.leave(self.id)


def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
    """Return what handles a message of our task: only its key, and its identifier, are looked at.

    Times, limits, calls to follow and whatever else a message may ask for are nobody's to ask for.
    """
    gate = app.shiftergw_gate

    def handle(message: Any, _: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        key, identifier = _read(message)
        if gate.full:
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
            body=((key,), {}, {}),
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


def cancel(panel: Any, key: str, **_: Any) -> None:
    """Stop the job on a record, if it runs here."""
    for request in list(state.requests.values()):
        if isinstance(request, JobRequest) and request.args[0] == key:
            _log.info("The job on %s is cancelled", request.args[0])
            request.terminate(panel.consumer.pool, signal="TERM")


control_command(name=CANCEL, args=[("key", str)])(cancel)
