"""A job queue in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.model.records import WorkerMachine
from shiftergw.ports import JobEnd, QueueTrouble


class FakeQueue:
    """A `JobQueue` whose slots the test sets; it records offers and cancellations."""

    def __init__(self, slots: int) -> None:
        self.free_slots = slots
        self.offered_keys: list[str] = []
        self.cancelled_keys: list[str] = []
        self.refuses_offers = False
        self.is_deaf = False
        self.closed_systems: set[str] = set()
        self.worker_machines: list[WorkerMachine] = []
        self.current_trouble: QueueTrouble | None = None
        self.on_idle: Callable[[], object] = lambda: None
        self.on_end: Callable[[JobEnd], object] = lambda _: None

    def slots(self, system: str) -> int:
        """See `JobQueue`."""
        return 0 if system in self.closed_systems else self.free_slots

    async def offer(self, key: str, system: str) -> None:
        """See `JobQueue`."""
        if self.refuses_offers:
            raise Unavailable("No worker is free.")
        self.free_slots -= 1
        self.offered_keys.append(key)

    async def cancel(self, key: str) -> None:
        """See `JobQueue`; a deaf worker never ends."""
        self.cancelled_keys.append(key)
        if self.is_deaf:
            await Deferred[None]()

    def machines(self) -> Sequence[WorkerMachine]:
        """See `JobQueue`."""
        return self.worker_machines

    def trouble(self, system: str = "") -> QueueTrouble | None:
        """See `JobQueue`."""
        return self.current_trouble
