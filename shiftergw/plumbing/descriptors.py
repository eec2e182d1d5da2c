"""The limit of open files and connections of this process."""

from __future__ import annotations

import resource
from contextlib import suppress

WANTED = 65536
"""The highest limit that is set: the hard limit of some systems is a billion."""


def raise_limit() -> int:
    """Raise the soft limit of open descriptors as far as the hard one allows; return it.

    Many systems start programs with 1,024, for the sake of those that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # the system may have a reason
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft
