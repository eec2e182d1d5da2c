"""Value types of a queue of jobs: the end of a job, and the trouble that stops all jobs."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

EXHAUSTED_CODE = os.EX_OSERR
"""The exit code of a worker that ran out of file descriptors, memory, or threads."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Exhausted(Exception):
    """This process ran out of file descriptors, memory, or threads; a new process may have them."""


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an error comes from a lack of file descriptors, memory, or threads."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        # Twisted's errors of connections keep the number in `osError`.
        number = getattr(link, "errno", None) or getattr(link, "osError", None)
        if number in _EXHAUSTED or isinstance(link, MemoryError):
            return True
        if isinstance(link, RuntimeError) and "start new thread" in str(link):
            return True
        link = link.__cause__ or link.__context__
    return False


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
