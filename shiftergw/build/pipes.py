"""Write archives into the pipe of `mksquashfs`; all functions block, so they run in threads."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from threading import Event

from shiftergw.oci.compression import StopRequested

LARGE = 1 << 16
"""Bytes from which data goes out by itself, without being copied beside its neighbors."""

_PIPE = 1 << 20
"""Bytes that the pipe may hold, where the system allows it."""


def enlarge_pipe(pipe: int) -> None:
    """Let a pipe hold more bytes, so that its writer and its reader wait for each other less."""
    with suppress(OSError):  # not a pipe, or this user's pipes hold too much already
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


def write_all(pipe: int, data: bytes | memoryview, stop: Event) -> None:
    """Write all bytes.

    Raises `BrokenPipeError` once the reader is gone, and `StopRequested` soon after `stop` is set,
    unless the pipe is full.
    """
    rest = memoryview(data)
    while rest:
        if stop.is_set():
            raise StopRequested
        rest = rest[os.write(pipe, rest) :]
