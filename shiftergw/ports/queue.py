"""The seam to the workers: the queue of jobs, and the values that it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model import WorkerMachine


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of the job on the record `key` in the process `runner` (`ImageRecord.runner`).

    `loss` describes the end of a worker that did not report the job as done; it is empty for a job
    that is done. `died` means that the worker ended at its job without an order to stop.
    """

    key: str
    runner: str = ""
    loss: str = ""
    died: bool = False


@dataclass(frozen=True, slots=True)
class QueueTrouble:
    """The reason why work does not proceed, since a time: `what` for users, `detail` for admins.

    `grave` means that no pull proceeds; otherwise pulls are only slow.
    """

    what: str
    detail: str
    since: float
    grave: bool = True

    def __str__(self) -> str:
        """Return both texts, for the log."""
        return f"{self.what} {self.detail}".strip()


def runner_name(host: str, pid: int) -> str:
    """Return the name of a worker process in records."""
    return f"{host}:{pid}"


class JobQueue(Protocol):
    """Carries record keys to workers and keeps nothing: recovery is the store's `stale` alone."""

    on_idle: Callable[[], object]
    """Called when a slot has become free."""

    on_end: Callable[[JobEnd], object]
    """Called at the end of each job that the queue hears of, also after its stop has begun."""

    def slots(self, system: str) -> int:
        """Return how many more jobs of a system may be offered now.

        Systems may have slots in common: an offer for one may take a slot from another.
        """
        ...

    async def offer(self, key: str, system: str) -> None:
        """Give a record to a worker of its system; raise `Unavailable` if there is none now."""
        ...

    async def cancel(self, key: str) -> None:
        """Stop the job on this record if one of our workers runs it; else nothing happens."""
        ...

    def machines(self) -> Sequence[WorkerMachine]:
        """Return the machines that work, by name; also those that have fallen silent lately."""
        ...

    def trouble(self, system: str = "") -> QueueTrouble | None:
        """Return what keeps every job, or every job of `system`, from every worker just now."""
        ...
