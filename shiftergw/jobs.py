"""What a queue of jobs tells of its workers: ends of jobs, and what keeps work from all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job: of which record, in which process (`ImageRecord.runner`), and how.

    `loss` says what became of a worker that did not report the job as done, else it is empty.
    `died`: the worker was at the job, and nobody had told it to stop.
    """

    key: str
    runner: str = ""
    loss: str = ""
    died: bool = False


@dataclass(frozen=True, slots=True)
class QueueTrouble:
    """What keeps work from every worker, since when: `what` for users, `detail` for admins.

    `grave`: no pull can be worked on. Else it is only slow.
    """

    what: str
    detail: str
    since: float
    grave: bool = True

    def __str__(self) -> str:
        """Return all of it, for the log."""
        return f"{self.what} {self.detail}".strip()


def runner_name(host: str, pid: int) -> str:
    """Return the name of a worker process in records."""
    return f"{host}:{pid}"
