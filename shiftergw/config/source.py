"""Read the file of a configuration as text."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from shiftergw.errors import ConfigurationError

LARGEST = 4 << 20
"""Bytes of the largest configuration that is read."""


def read_text(path: Path) -> str:
    """Return the text of a file, or of a pipe that has a writer: `--config <(COMMAND)`.

    Raises `OSError` for a device, which may be endless, and for more than `LARGEST` bytes, and
    `ConfigurationError` for a text that is not UTF-8.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        os.set_blocking(file.fileno(), True)
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"More than {LARGEST >> 20} MiB", str(path))
    return decode(content)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without blocking; a pipe without a writer is then empty."""
    return os.open(path, flags | os.O_NONBLOCK)


def decode(content: bytes) -> str:
    """Return the text of a file; raise `ConfigurationError` with line and byte if it is not UTF-8.

    Removes a byte order mark.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"line {line}: this is not UTF-8: byte 0x{content[error.start]:02x}.",
            remedy="Save the file in UTF-8, or write \\uXXXX for characters beyond ASCII.",
        ) from None
