"""Raise errors of this gateway for full disks, and for errors of the system about files."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shiftergw.errors import GatewayError, NoSpace, amount
from shiftergw.plumbing.files import free_space

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The error numbers of a full disk and of an exhausted quota."""


@contextmanager
def translated_disk_errors(
    full: str, other_error: Callable[[OSError], GatewayError]
) -> Iterator[None]:
    """Turn each `OSError` of the block into a `GatewayError`, with the original text as `detail`.

    A full disk or an exhausted quota raises `NoSpace` with the text `full`; all other errors raise
    what `other_error` returns.
    """
    try:
        yield
    except OSError as error:
        gateway_error = NoSpace(full) if error.errno in DISK_FULL else other_error(error)
        gateway_error.detail = str(error)
        raise gateway_error from error


def check_room(directory: Path, size: int, full: str) -> None:
    """Raise `NoSpace`, with the text `full`, if a disk has fewer free bytes than `size`. Blocks."""
    free = free_space(directory)
    if free < size:
        raise NoSpace(
            full, detail=f"{directory} has {amount(free)} left, {amount(size)} are needed"
        )
