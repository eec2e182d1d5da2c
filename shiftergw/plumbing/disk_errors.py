"""Translate errors of the operating system about files into errors of this gateway."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shiftergw.errors import GatewayError, NoSpace

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
