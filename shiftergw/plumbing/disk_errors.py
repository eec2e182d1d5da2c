"""Raise errors of this gateway for full disks, and skip single files that cannot be read."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from twisted.logger import Logger

from shiftergw.errors import GatewayError, NoSpace, amount
from shiftergw.plumbing.files import free_space

_log = Logger()

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The error numbers of a full disk and of an exhausted quota."""


_UNREADABLE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ESTALE})
"""The error numbers of a damaged inode (XFS and ext4 have three), and of one that a server lost."""

_MOST_REPORTED = 1000

_logged_paths: set[Path] = set()
"""The files that `SkipUnreadable` has logged."""


class SkipUnreadable:
    """Leaves a block without an error if a file is missing or its inode cannot be read.

    A context manager. One damaged inode must not end a loop over all files. The log names such a
    file once. All other errors are raised: those of a process without descriptors say nothing
    about the file.
    """

    def __init__(self, path: Path) -> None:
        """Skip errors about `path`."""
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, FileNotFoundError):
            return True
        if not isinstance(error, OSError) or error.errno not in _UNREADABLE:
            return False
        if self._path not in _logged_paths:
            if len(_logged_paths) == _MOST_REPORTED:
                _logged_paths.clear()
            _logged_paths.add(self._path)
            _log.warn(
                "{path} cannot be read or removed, and is skipped ({problem}): check the disk",
                path=str(self._path),
                problem=str(error),
            )
        return True


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
