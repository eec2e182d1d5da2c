"""What a queue of jobs tells of its workers: ends of jobs, and what keeps work from all of them."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

EXHAUSTED_CODE = os.EX_OSERR
"""The exit code of a worker that can open no file, or start no thread, any more."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Exhausted(Exception):
    """This process lacks what all work needs; another one may have it."""


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
