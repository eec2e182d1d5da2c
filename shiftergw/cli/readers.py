"""Whether the output of a command still has readers."""

from __future__ import annotations

import os
import select
import stat

LOOK_INTERVAL = 0.5
"""Seconds between two looks at whether the output still has a reader."""


def has_readers() -> bool:
    """Return whether standard output and error, where they are pipes, have readers."""
    poll = select.poll()
    for descriptor in (1, 2):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            poll.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))
