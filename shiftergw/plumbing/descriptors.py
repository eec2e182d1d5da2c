"""The limit on open files and connections of this process."""

from __future__ import annotations

import resource
from contextlib import suppress

HIGHEST_LIMIT = 65536
"""The highest limit to set: the hard limit of some systems is a billion."""


def raise_limit() -> int:
    """Raise the soft limit on open descriptors as far as the hard limit allows; return it.

    Many systems start programs with 1,024, for programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = HIGHEST_LIMIT if hard == resource.RLIM_INFINITY else min(hard, HIGHEST_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with suppress(OSError, ValueError):  # the system may refuse it
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HIGHEST_LIMIT if soft == resource.RLIM_INFINITY else soft
