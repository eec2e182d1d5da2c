"""The worker machines as a queue of work: Celery carries record keys to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger, LogLevel

from shiftergw import __version__
from shiftergw.errors import Unavailable
from shiftergw.model import WorkerMachine
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause, shielded, within
from shiftergw.ports import JobEnd, QueueTrouble
from shiftergw.work.celery.app import is_key, make_app
from shiftergw.work.celery.broker_connections import MessageSender, StatusListener
from shiftergw.work.celery.worker_registry import STATUS_SECONDS, MachineStatus, WorkerRegistry

SEND_SECONDS = 15.0
"""How long an offer is waited for; the thread that makes it may take a little longer."""

CANCEL_SECONDS = 25.0
"""How long a machine may take to stop a job; a worker that is deaf is killed before."""

TELLINGS = 30
"""Tenths of a second between two orders to stop a job."""

LINES_A_MINUTE = 100
"""Lines of the log about what is told on the broker: anybody may tell anything."""

TOLD_SECONDS = STATUS_SECONDS * 3
"""How long after the broker was reached every machine has told that it is there."""

REFUSED_SECONDS = 15.0
"""After a refused offer nothing is offered for its system for so long: others have their turn."""


class CeleryQueue(Service):
    """A `JobQueue` of all worker machines that say on the broker that they are there.

    What they do goes on without the gateway: it is neither waited for nor stopped at its end.
    """

    _log = Logger()

    def __init__(self, reactor: Any, broker_url: str) -> None:
        """Reach the broker by its URL once the service has started."""
        self.on_idle: Callable[[], object] = lambda: None
        """Called when a machine has a free slot that it had not."""
        self.on_end: Callable[[JobEnd], object] = lambda _: None
        """Called at the end of each job that a machine tells of."""
        self._clock = reactor
        app = make_app(broker_url)
        self._threads = Threads(reactor, 2, "broker")
        self._sender = MessageSender(app)
        self._listener = StatusListener(app, self._hear, self._change)
        self._listening: Deferred[None] | None = None
        self._turn = DeferredLock()
        self._crew = WorkerRegistry()
        self._open = False
        self._away: str | None = "it was not reached yet"
        self._changed_at = reactor.seconds()
        self._refused: dict[str, float] = {}
        self._minute, self._lines = -1.0, 0

    def startService(self) -> None:
        """Listen, and take offers once the broker and a machine are there."""
        super().startService()
        self._open = True
        self._threads.startService()
        self._listening = self._threads.begin(self._listener.run)

    def stopService(self) -> Deferred[None]:
        """Fire when we have left the broker; jobs on other machines go on."""
        super().stopService()
        return Deferred.fromCoroutine(self._leave())

    async def _leave(self) -> None:
        self._open = False
        self._listener.stop()
        if self._turn.locked:
            self._sender.abort()  # nobody waits for it any more
        if self._listening is not None:
            await shielded(self._listening)
        await self._threads.run(self._sender.close)
        await self._threads.stopService()

    def trouble(self, system: str = "") -> QueueTrouble | None:
        """See `JobQueue`."""
        now = self._clock.seconds()
        if self._away is not None:
            what = "The broker of the worker machines does not serve; pulls wait until it does."
            why = f"the broker does not serve: {self._away}"
            return QueueTrouble(what, why, self._changed_at)
        if system and now - self._changed_at > TOLD_SECONDS and not self._crew.serves(system, now):
            return QueueTrouble(f"No worker machine serves {system} at the moment.", "", now)
        fault = self._crew.fault(system, now)
        if fault:
            what = f"No worker can start on the worker machines of {system}."
            return QueueTrouble(what, f"A worker {fault}.", now)
        return None

    def machines(self) -> Sequence[WorkerMachine]:
        """See `JobQueue`; of those that are silent, the ones heard of within the last hour."""
        return [one.seen() for one in self._crew.machines(self._clock.seconds())]

    def slots(self, system: str) -> int:
        """See `JobQueue`."""
        if not self._open or self._away is not None:
            return 0
        now = self._clock.seconds()
        if now - self._refused.get(system, -REFUSED_SECONDS) < REFUSED_SECONDS:
            return 0
        return self._crew.slots(system, now)

    async def offer(self, key: str, system: str) -> None:
        """See `JobQueue`; returns when the broker has confirmed that it has the message."""
        if not is_key(key):
            raise Unavailable("This is no record's key.")
        if self.slots(system) <= 0:
            trouble = self.trouble(system)
            raise Unavailable("No worker machine is free.", detail=str(trouble or ""))
        message = str(uuid.uuid4())
        # Counted before it is sent: a machine may have begun it before we hear of the confirmation.
        self._crew.offered(message, key, system, self._clock.seconds())
        try:
            await self._send(self._sender.offer, message, key, system)
        except BaseException as error:
            self._crew.withdrawn(message)
            if isinstance(error, Unavailable):
                self._refused[system] = self._clock.seconds()
            raise

    async def cancel(self, key: str) -> None:
        """See `JobQueue`; returns when the machine has said that the job has ended, or is silent.

        Jobs that machines begin meanwhile are not stopped: another gateway may have offered the
        record again. Raises `Unavailable` if that takes too long.
        """
        until = self._clock.seconds() + CANCEL_SECONDS
        messages = self._crew.messages_of(key, self._clock.seconds())
        while is_key(key) and self._away is None:
            # Told again and again: what is told to all is told to those who listen just then.
            await self._send(self._sender.cancel, key, *sorted(messages))
            for _ in range(TELLINGS):
                now = self._clock.seconds()
                running = self._crew.messages_of(key, now)
                if not (running & messages if messages else running):
                    return
                if now >= until:
                    raise Unavailable("Its worker machine does not stop it.")
                await pause(0.1, self._clock)

    async def _send(self, act: Callable[..., None], *arguments: str) -> None:
        """Do what blocks, in a thread, one after the other; nobody waits long for one that hangs.

        Raises `Unavailable`.
        """
        await within(
            SEND_SECONDS,
            self._clock,
            self._in_turn(act, *arguments),
            lambda: Unavailable("The broker of the worker machines does not answer."),
        )

    async def _in_turn(self, act: Callable[..., None], *arguments: str) -> None:
        await self._turn.acquire()
        try:
            sending = self._threads.begin(act, *arguments)
        except BaseException:
            self._turn.release()
            raise
        sending.addBoth(self._next)
        awaited = shielded(sending)
        # After our caller has left, nobody hears how it fails.
        sending.addErrback(lambda _: None)
        await awaited

    def _next(self, result: Any) -> Any:
        self._turn.release()
        return result

    # Called by the listener, in its thread.

    def _hear(self, told: Any) -> None:
        self._threads.call_reactor(self._told, told)

    def _change(self, away: Unavailable | None) -> None:
        self._threads.call_reactor(self._changed, away)

    def _told(self, told: Any) -> None:
        machine = MachineStatus.parse(told, self._clock.seconds())
        if machine is None:
            self._say(LogLevel.warn, "somebody told nonsense on the broker")
            return
        if not self._crew.knows(machine):
            level = LogLevel.info if machine.version == __version__ else LogLevel.warn
            self._say(
                level,
                "worker machine {name}: version {version}, {slots} slots for {systems}",
                name=machine.name,
                version=machine.version,
                slots=machine.slots,
                systems=", ".join(machine.systems),
            )
        if machine.fault and not self._crew.has_fault(machine):
            text = "worker machine {name}: a worker {fault}"
            self._say(LogLevel.error, text, name=machine.name, fault=machine.fault)
        ends = self._crew.ends(machine)
        more = self._crew.told(machine)
        for end in ends:
            self.on_end(end)
        if more:
            self.on_idle()

    def _say(self, level: Any, text: str, **fields: Any) -> None:
        minute = self._clock.seconds() // 60
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        self._lines += 1
        if self._lines <= LINES_A_MINUTE:
            self._log.emit(level, text, **fields)
        elif self._lines == LINES_A_MINUTE + 1:
            self._log.warn("more than that is told on the broker; what follows is not logged now")

    def _changed(self, away: Unavailable | None) -> None:
        why = f"{away} {away.detail}".strip() if away is not None else None
        if why is None:
            self._log.info("the broker is there")
            self._sender.renew()
            self._refused.clear()
        elif why != self._away:
            self._log.warn("the broker does not serve: {why}", why=why)
        if (why is None) is not (self._away is None):
            self._changed_at = self._clock.seconds()
        self._away = why
