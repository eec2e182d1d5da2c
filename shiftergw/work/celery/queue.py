"""A job queue whose workers are on other machines: Celery carries the record keys to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger, LogLevel

from shiftergw import __version__
from shiftergw.errors import Unavailable
from shiftergw.model.records import WorkerMachine
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause, shield, within
from shiftergw.ports import JobEnd, QueueTrouble
from shiftergw.work.celery.app import is_key, make_app
from shiftergw.work.celery.broker_connections import MessageSender, StatusListener
from shiftergw.work.celery.worker_registry import STATUS_SECONDS, MachineStatus, WorkerRegistry

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

SEND_SECONDS = 15.0
"""Time limit for the caller of a message; its thread may take a little longer."""

CANCEL_SECONDS = 25.0
"""Time limit for a machine to stop a job; a worker that does not react is killed before."""

CANCEL_POLLS = 30
"""Looks at the registry, a tenth of a second apart, between two orders to stop a job."""

LINES_A_MINUTE = 100
"""Log lines about statuses: anybody with an account on the broker can send any number of them."""

FIRST_STATUS_SECONDS = STATUS_SECONDS * 3
"""Every machine has published a status within this time after the broker was reached."""

REFUSED_SECONDS = 15.0
"""After a refused offer its system gets no offers for this time, so that other systems do."""


class CeleryQueue(Service):
    """A `JobQueue` of all worker machines that publish their status on the broker.

    Jobs on these machines do not depend on the gateway: its stop neither waits for them nor stops
    them.
    """

    _log = Logger()

    def __init__(self, reactor: Reactor, broker_url: str) -> None:
        """Connect to the broker once the service has started."""
        self.on_idle: Callable[[], object] = lambda: None
        """Called when a machine has more free slots than before."""
        self.on_end: Callable[[JobEnd], object] = lambda _: None
        """Called at the end of each job that a machine reports."""
        self._clock = reactor
        app = make_app(broker_url)
        self._threads = Threads(reactor, 2, "broker")
        self._sender = MessageSender(app)
        self._listener = StatusListener(app, self._receive_status, self._receive_change)
        self._listening: Deferred[None] | None = None
        self._send_lock = DeferredLock()
        self._registry = WorkerRegistry()
        self._is_open = False
        self._broker_fault: str | None = "it was not reached yet"
        self._changed_at = reactor.seconds()
        self._refused_at: dict[str, float] = {}
        """The time of the latest refused offer, by system."""
        self._minute, self._lines = -1.0, 0

    def startService(self) -> None:
        """Listen; accept offers once the broker serves and machines have free slots."""
        super().startService()
        self._is_open = True
        self._threads.startService()
        self._listening = self._threads.begin(self._listener.run)

    def stopService(self) -> Deferred[None]:
        """Fire when both connections are closed; jobs on other machines go on."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._is_open = False
        self._listener.stop()
        if self._send_lock.locked:
            self._sender.abort()  # its caller has been cancelled, or no longer needs it
        if self._listening is not None:
            await shield(self._listening)
        await self._threads.run(self._sender.close)
        await self._threads.stopService()

    def trouble(self, system: str = "") -> QueueTrouble | None:
        """See `JobQueue`."""
        now = self._clock.seconds()
        if self._broker_fault is not None:
            text = "The broker of the worker machines does not serve; pulls wait until it does."
            detail = f"the broker does not serve: {self._broker_fault}"
            return QueueTrouble(text, detail, self._changed_at)
        has_statuses = now - self._changed_at > FIRST_STATUS_SECONDS
        if system and has_statuses and not self._registry.serves(system, now):
            return QueueTrouble(f"No worker machine serves {system} at the moment.", "", now)
        fault = self._registry.start_fault(system, now)
        if fault:
            text = f"No worker can start on the worker machines of {system}."
            return QueueTrouble(text, f"A worker {fault}.", now)
        return None

    def machines(self) -> Sequence[WorkerMachine]:
        """See `JobQueue`; a silent machine is returned for an hour."""
        return [status.to_machine() for status in self._registry.machines(self._clock.seconds())]

    def slots(self, system: str) -> int:
        """See `JobQueue`."""
        if not self._is_open or self._broker_fault is not None:
            return 0
        now = self._clock.seconds()
        if now - self._refused_at.get(system, -REFUSED_SECONDS) < REFUSED_SECONDS:
            return 0
        return self._registry.slots(system, now)

    async def offer(self, key: str, system: str) -> None:
        """See `JobQueue`; returns when the broker has confirmed the message."""
        if not is_key(key):
            raise Unavailable("This is no record's key.")
        if self.slots(system) <= 0:
            trouble = self.trouble(system)
            raise Unavailable("No worker machine is free.", detail=str(trouble or ""))
        message = str(uuid.uuid4())
        # Counted before it is sent: a machine may begin the job before the confirmation arrives.
        self._registry.add_offer(message, key, system, self._clock.seconds())
        try:
            await self._send(self._sender.offer, message, key, system)
        except BaseException as error:
            self._registry.remove_offer(message)
            if isinstance(error, Unavailable):
                self._refused_at[system] = self._clock.seconds()
            raise

    async def cancel(self, key: str) -> None:
        """See `JobQueue`; returns when the machine reports the end of the job, or is silent.

        A job that begins meanwhile is not stopped, since another gateway may have offered the
        record again. Raises `Unavailable` after `CANCEL_SECONDS`.
        """
        deadline = self._clock.seconds() + CANCEL_SECONDS
        messages = self._registry.messages_of(key, self._clock.seconds())
        while is_key(key) and self._broker_fault is None:
            # Sent repeatedly: a broadcast reaches only the machines that are connected just then.
            await self._send(self._sender.cancel, key, *sorted(messages))
            for _ in range(CANCEL_POLLS):
                now = self._clock.seconds()
                running = self._registry.messages_of(key, now)
                if not (running & messages if messages else running):
                    return
                if now >= deadline:
                    raise Unavailable("Its worker machine does not stop it.")
                await pause(0.1, self._clock)

    async def _send(self, send: Callable[..., None], *arguments: str) -> None:
        """Call a method of the sender in a thread, one call at a time.

        Raises `Unavailable` after `SEND_SECONDS`, even if the call hangs.
        """
        await within(
            SEND_SECONDS,
            self._clock,
            self._send_alone(send, *arguments),
            lambda: Unavailable("The broker of the worker machines does not answer."),
        )

    async def _send_alone(self, send: Callable[..., None], *arguments: str) -> None:
        def release(result: Any) -> Any:
            self._send_lock.release()
            return result

        await self._send_lock.acquire()
        try:
            sending = self._threads.begin(send, *arguments)
        except BaseException:
            self._send_lock.release()
            raise
        sending.addBoth(release)
        result = shield(sending)
        # If the caller is cancelled, no code looks at an error of the call.
        sending.addErrback(lambda _: None)
        await result

    # The listener calls these two in its thread.

    def _receive_status(self, document: Any) -> None:
        self._threads.call_reactor(self._record_status, document)

    def _receive_change(self, error: Unavailable | None) -> None:
        self._threads.call_reactor(self._record_change, error)

    def _record_status(self, document: Any) -> None:
        status = MachineStatus.parse(document, self._clock.seconds())
        if status is None:
            self._log_status(LogLevel.warn, "an invalid status has arrived from the broker")
            return
        previous = self._registry.previous(status)
        if previous is None or previous.version != status.version:
            level = LogLevel.info if status.version == __version__ else LogLevel.warn
            self._log_status(
                level,
                "worker machine {name}: version {version}, {slots} slots for {systems}",
                name=status.name,
                version=status.version,
                slots=status.slots,
                systems=", ".join(status.systems),
            )
        if status.fault and not (previous and previous.fault):
            text = "worker machine {name}: a worker {fault}"
            self._log_status(LogLevel.error, text, name=status.name, fault=status.fault)
        ends = self._registry.take_ends(status)
        has_more_slots = self._registry.record(status)
        for end in ends:
            self.on_end(end)
        if has_more_slots:
            self.on_idle()

    def _log_status(self, level: Any, text: str, **fields: Any) -> None:
        minute = self._clock.seconds() // 60
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        self._lines += 1
        if self._lines <= LINES_A_MINUTE:
            self._log.emit(level, text, **fields)
        elif self._lines == LINES_A_MINUTE + 1:
            self._log.warn("too many statuses from the broker; more of this minute are not logged")

    def _record_change(self, error: Unavailable | None) -> None:
        fault = f"{error} {error.detail}".strip() if error is not None else None
        if fault is None:
            self._log.info("the broker serves")
            self._sender.renew()
            self._refused_at.clear()
        elif fault != self._broker_fault:
            self._log.warn("the broker does not serve: {why}", why=fault)
        if (fault is None) is not (self._broker_fault is None):
            self._changed_at = self._clock.seconds()
        self._broker_fault = fault
