"""Port to the workers: the job queue, and the values that it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model.records import WorkerMachine


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of the job on the record `key` in the process `runner` (`ImageRecord.runner`).

    `loss` is empty if the worker reported the job as done; otherwise it describes how the worker
    ended. `died` means that the worker ended during its job without an order to stop.
    """

    key: str
    runner: str = ""
    loss: str = ""
    died: bool = False


@dataclass(frozen=True, slots=True)
class QueueTrouble:
    """The reason why work has not proceeded since a time: `what` for users, `detail` for admins.

    `grave` means that no pull proceeds; otherwise pulls are only slow. `since` is in seconds since
    1970.
    """

    what: str
    detail: str
    since: float
    grave: bool = True

    def __str__(self) -> str:
        """Return both texts on one line, for the log."""
        return f"{self.what} {self.detail}".strip()


def runner_name(host: str, pid: int) -> str:
    """Return the name of a worker process that records contain (`ImageRecord.runner`)."""
    return f"{host}:{pid}"


class JobQueue(Protocol):
    """Carries record keys to workers and stores nothing.

    A queue may lose a key or deliver it twice: the only recovery mechanism is `ImageStore.stale`.
    """

    on_idle: Callable[[], object]
    """Called after a slot has become free."""

    on_end: Callable[[JobEnd], object]
    """Called at the end of each job that the queue learns of, also while it is stopping."""

    def slots(self, system: str) -> int:
        """Return how many more jobs of a system can be offered now.

        Systems may share slots: an offer for one system may take a slot from another one.
        """
        ...

    async def offer(self, key: str, system: str) -> None:
        """Send a record to a worker of its system; raise `Unavailable` if no worker is free."""
        ...

    async def cancel(self, key: str) -> None:
        """Stop the job on a record, and return once it has ended; do nothing without such a job.

        Raises `Unavailable` if the worker machine does not stop it.
        """
        ...

    def machines(self) -> Sequence[WorkerMachine]:
        """Return the worker machines by name, including those that became silent recently."""
        ...

    def trouble(self, system: str = "") -> QueueTrouble | None:
        """Return why no job, or no job of `system`, reaches a worker now; None if jobs do."""
        ...
