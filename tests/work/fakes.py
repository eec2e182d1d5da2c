"""A job queue in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.model import WorkerMachine
from shiftergw.ports import JobEnd, QueueTrouble


class Queue:
    """A `JobQueue` whose slots the test sets; it records offers and cancellations."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self.offered: list[str] = []
        self.cancelled: list[str] = []
        self.refuses = False
        self.deaf = False
        self.without: set[str] = set()
        self.crew: list[WorkerMachine] = []
        self.away: QueueTrouble | None = None
        self.on_idle: Callable[[], object] = lambda: None
        self.on_end: Callable[[JobEnd], object] = lambda _: None

    def slots(self, system: str) -> int:
        """See `JobQueue`."""
        return 0 if system in self.without else self.free

    async def offer(self, key: str, system: str) -> None:
        """See `JobQueue`."""
        if self.refuses:
            raise Unavailable("No worker is free.")
        self.free -= 1
        self.offered.append(key)

    async def cancel(self, key: str) -> None:
        """See `JobQueue`; a deaf worker never ends."""
        self.cancelled.append(key)
        if self.deaf:
            await Deferred[None]()

    def machines(self) -> Sequence[WorkerMachine]:
        """See `JobQueue`."""
        return self.crew

    def trouble(self, system: str = "") -> QueueTrouble | None:
        """See `JobQueue`."""
        return self.away
