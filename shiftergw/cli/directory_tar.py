"""Read a directory as if it were a tar archive, without writing the archive anywhere.

The archive depends on the names and contents of the files alone: entries are sorted, and owners,
times and modes are constants. So a second run of a command reads the same bytes, and may begin at
any offset. Everything here blocks.
"""

from __future__ import annotations

import os
import stat
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shiftergw.cli.exits import FAILURE, Misuse, Stop
from shiftergw.errors import printable

FILES_LIMIT = 100_000
"""Files of the largest directory; an image has some hundred layers."""

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
"""The end of an archive: two blocks of zeros."""


class SourceChanged(Stop):
    """A file or directory has changed while it was read."""

    exit_code = FAILURE

    def __init__(self, path: Path) -> None:
        """Name what has changed."""
        super().__init__(
            f"{printable(str(path), 200)} has changed while it was read, so the upload is of no"
            " use. Run the command again when nothing writes there any more."
        )


class FileState(NamedTuple):
    """What shows whether a file is still the same: device, inode, size, time of the last write."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state in the result of `stat`."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of the archive: its header at `offset`, its content, and padding to a whole block."""

    offset: int
    header: bytes
    path: Path
    state: FileState

    @property
    def end(self) -> int:
        return self.offset + len(self.header) + self.state.size + -self.state.size % _BLOCK


class DirectoryTar:
    """The files below a directory as one tar archive."""

    def __init__(self, directory: Path, names: Iterable[str]) -> None:
        """Look at files by their names below `directory`; raise `Misuse` if one cannot be read."""
        entries: list[_Entry] = []
        offset = 0
        for name in sorted(names):
            path = directory / name
            try:
                status = path.stat()
            except OSError as error:
                raise _unreadable(path, error) from error
            if not stat.S_ISREG(status.st_mode):
                raise Misuse(f"{printable(str(path), 200)} is not a regular file.")
            entry = _Entry(offset, _header(name, status.st_size), path, FileState.of(status))
            entries.append(entry)
            offset = entry.end
        self._entries: Sequence[_Entry] = entries
        self._offsets = [entry.offset for entry in entries]
        self._files_end = offset
        self.size = offset + len(_END)
        """Bytes of the archive."""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the archive from `offset`, fewer only at its end.

        Raises `SourceChanged` if a file is not as it was at first.
        """
        pieces = []
        end = min(offset + size, self.size)
        while offset < end:
            piece = self._piece(offset, end - offset)
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def _piece(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes of the entry at `offset`, or of the end of the archive."""
        if offset >= self._files_end:
            start = offset - self._files_end
            return _END[start : start + size]
        entry = self._entries[bisect_right(self._offsets, offset) - 1]
        start = offset - entry.offset
        if start < len(entry.header):
            return entry.header[start : start + size]
        start -= len(entry.header)
        if start < entry.state.size:
            return _read_file(entry, start, min(size, entry.state.size - start))
        return bytes(min(size, entry.end - offset))

    def close(self) -> None:
        """Do nothing: no file stays open."""


def files_below(directory: Path) -> list[str]:
    """Return the names of all files below a directory; raise `Misuse` for too many."""
    names: list[str] = []

    def refuse(error: OSError) -> None:
        raise _unreadable(directory, error) from error

    for parent, _, files in os.walk(directory, onerror=refuse):
        below = Path(parent).relative_to(directory)
        names += [(below / file).as_posix() for file in files]
        if len(names) > FILES_LIMIT:
            raise Misuse(
                f"{printable(str(directory), 200)} has more than {FILES_LIMIT} files: is it an"
                " image?"
            )
    return names


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _read_file(entry: _Entry, offset: int, size: int) -> bytes:
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceChanged(entry.path) from error
    try:
        return read_unchanged(descriptor, entry.path, entry.state, offset, size)
    finally:
        os.close(descriptor)


def read_unchanged(descriptor: int, path: Path, state: FileState, offset: int, size: int) -> bytes:
    """Return exactly `size` bytes of a file; raise `SourceChanged` if its state is another one."""
    pieces = []
    try:
        while size:
            piece = os.pread(descriptor, size, offset)
            if not piece:
                raise SourceChanged(path)
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        # After reading: a write in between has changed the time by now.
        if FileState.of(os.fstat(descriptor)) != state:
            raise SourceChanged(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return b"".join(pieces)


def _unreadable(path: Path, error: OSError) -> Misuse:
    return Misuse(f"{printable(str(path), 200)} cannot be read: {error.strerror}.")
