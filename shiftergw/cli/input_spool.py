"""Copy standard input to a private temporary file, since an upload is read twice. Blocks."""

from __future__ import annotations

import errno
import os
import select
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from shiftergw.cli.exits import Misuse
from shiftergw.cli.upload_source import FileBytes, UploadSource
from shiftergw.errors import amount, printable
from shiftergw.plumbing.files import free_space

HEAD_BYTES = 4096
"""Bytes at the begin of a file, or of standard input, that show what it is."""

_INPUT_PIECE = 1 << 20
_DISK_RESERVE = 64 << 20
"""Bytes of the disk for temporary files that a copy of standard input leaves free."""

_INPUT_WAIT = 0.5
"""Seconds to wait for standard input before the caller gets a chance to stop."""


class InputSpool:
    """A private temporary file that standard input is copied to.

    It has no name, so that nothing is left of it however this process ends.
    """

    def __init__(self) -> None:
        """Create the file in `$TMPDIR`, or else in `/tmp`; raise `Misuse`."""
        # Unlike `tempfile`, do not go elsewhere if `$TMPDIR` is of no use: the user has chosen it.
        self._directory = os.environ.get("TMPDIR") or tempfile.gettempdir()
        if sys.stdin.isatty():
            raise Misuse(
                "Standard input is a terminal: write `docker save IMAGE | shiftergw pull - NAME`."
            )
        with self._errors():
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 - stays open
                prefix="shiftergw-", dir=self._directory
            )
        self.size = 0
        """Bytes that were copied so far."""
        self.head = b""
        """The first `HEAD_BYTES` of them."""

    def copy_piece(self, limit: int | None = None) -> bool:
        """Copy what arrives next, or wait a moment; return False at the end of the input.

        Raises `Misuse` beyond `limit` bytes, and before the disk is full.
        """
        descriptor = sys.stdin.fileno()
        if not select.select([descriptor], [], [], _INPUT_WAIT)[0]:
            return True
        try:
            piece = os.read(descriptor, _INPUT_PIECE)
        except OSError as error:
            raise Misuse(f"Standard input cannot be read: {error.strerror}.") from error
        self.size += len(piece)
        self.head += piece[: HEAD_BYTES - len(self.head)]
        if limit is not None and self.size > limit:
            raise Misuse(
                f"Standard input has more than {amount(limit)}: the gateway takes no larger file"
                " (MaxUploadSize)."
            )
        with self._errors():
            if piece and free_space(Path(self._directory)) < _DISK_RESERVE + len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._file.write(piece)
            if not piece:
                self._file.flush()
        return bool(piece)

    def source(self) -> UploadSource:
        """Return what was copied; raise `Misuse` if it is nothing."""
        if not self.size:
            raise Misuse("Standard input is empty: has the command in front of it failed?")
        content = FileBytes(cast("BinaryIO", self._file), Path("standard input"))
        return UploadSource(content, "", "standard input", "")

    def close(self) -> None:
        """Close the file, which removes it."""
        self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            room = "more room" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "room for it"
            raise Misuse(
                f"Standard input cannot be copied to {printable(self._directory, 200)}:"
                f" {error.strerror}. Set TMPDIR to a directory with {room}, or write the image to"
                " a file and name that."
            ) from error
