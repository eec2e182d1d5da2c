"""Make the directory for the temporary files of a command, and remove it at each end."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shiftergw.cli.exits import Misuse

LOCK = "lock"
"""The file whose lock shows that the owner of a directory is alive."""

LEFTOVER_SECONDS = 60.0
"""Seconds after which a directory without a lock is a leftover: its owner locks it at once."""

_NAME = re.compile(r"(.+\.)[0-9a-f]{8}", re.DOTALL)


@contextmanager
def scratch_directory(path: Path) -> Iterator[None]:
    """Make a directory for the block, and remove it with its content; raise `Misuse`.

    `path` ends with a dot and eight random hexadecimal digits. Directories beside it that differ
    in these alone are removed, if the commands that made them were killed.
    """
    from shiftergw.plumbing.locks import try_lock, unlock  # noqa: PLC0415 - loads Twisted

    _remove_leftovers(path)
    try:
        path.mkdir(0o700)
        lock = try_lock(path / LOCK)
    except OSError as error:
        raise Misuse(f"Nothing can be written to {path.parent}: {error.strerror}.") from error
    try:
        yield
    finally:
        shutil.rmtree(path)
        unlock(path / LOCK, lock)


def _remove_leftovers(path: Path) -> None:
    from shiftergw.plumbing.locks import tried_lock  # noqa: PLC0415 - loads Twisted

    match = _NAME.fullmatch(path.name)
    assert match is not None
    oldest = time.time() - LEFTOVER_SECONDS
    with suppress(OSError):
        for directory in path.parent.iterdir():
            name = _NAME.fullmatch(directory.name)
            if name is None or name[1] != match[1]:
                continue
            with suppress(OSError):
                state = directory.lstat()
                is_own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()
                if is_own and state.st_mtime < oldest:
                    with tried_lock(directory / LOCK) as is_free:
                        if is_free:
                            shutil.rmtree(directory)
