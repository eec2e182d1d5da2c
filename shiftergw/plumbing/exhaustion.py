"""Which errors come from a lack of file descriptors, memory, or threads of this process."""

from __future__ import annotations

import errno
import os

EXHAUSTED_CODE = os.EX_OSERR
"""The exit code of a worker that ran out of file descriptors, memory, or threads."""

_ERROR_NUMBERS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Exhausted(Exception):
    """This process ran out of file descriptors, memory, or threads; a new process may have them."""


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an error comes from a lack of file descriptors, memory, or threads."""
    visited_ids: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in visited_ids:
        visited_ids.add(id(link))
        # Twisted's errors of connections keep the number in `osError`.
        number = getattr(link, "errno", None) or getattr(link, "osError", None)
        if number in _ERROR_NUMBERS or isinstance(link, MemoryError):
            return True
        if isinstance(link, RuntimeError) and "start new thread" in str(link):
            return True
        link = link.__cause__ or link.__context__
    return False
