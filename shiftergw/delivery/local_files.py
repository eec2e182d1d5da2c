"""Blocking functions on the files of a local image directory: run them with `DiskCalls`."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shiftergw.delivery.disk_calls import DiskCall
from shiftergw.delivery.files import MODE
from shiftergw.delivery.image_names import is_installed_name, name_of_temporary, temporary_name
from shiftergw.plumbing.files import removed_on_error, replace_durably, sync_directory
from shiftergw.plumbing.hashing import hash_file
from shiftergw.ports import InstalledFile


def open_for_writing(path: Path, flags: int) -> BinaryIO:
    """Open a file of mode 0600 for writing, with further flags of `os.open`; follow no link."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, MODE), "wb")


def installed_file(path: Path) -> InstalledFile | None:
    """Return name, size and time of a regular file; None if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return InstalledFile(path.name, status.st_size, int(status.st_mtime))


def read_file(path: Path, limit: int) -> bytes | None:
    """Return the content of a file; None if it is absent or has more than `limit` bytes."""
    file = installed_file(path)
    if file is None or file.size > limit:
        return None
    # Not `read_prefix`: for a file that is removed meanwhile, it would return an empty content.
    with path.open("rb") as stream:
        return stream.read(limit)


def read_prefix(path: Path, size: int) -> bytes:
    """Return the first `size` bytes of a file, or fewer if it is shorter or absent."""
    if installed_file(path) is None:
        return b""
    with path.open("rb") as file:
        return file.read(size)


def remove_file(path: Path) -> None:
    """Remove a file durably: after a power cut, a removed image must not reappear."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def write_file(content: bytes, target: Path, call: DiskCall) -> None:
    """Write a small file by way of a temporary."""
    temporary = target.with_name(temporary_name(target.name))
    with removed_on_error(temporary):
        _create(content, temporary)
        call.note_progress()  # an abandoned call must not replace the file
        replace_durably(temporary, target)


def write_and_remove(content: bytes, path: Path, call: DiskCall) -> None:
    """Write a small file and remove it."""
    with removed_on_error(path):
        _create(content, path)
        call.note_progress()
    path.unlink()


def _create(content: bytes, path: Path) -> None:
    """Create a file and write it to the disk."""
    with open_for_writing(path, os.O_CREAT | os.O_EXCL) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def list_installed(directory: Path, call: DiskCall) -> list[InstalledFile]:
    """Return the installed images and metadata, sorted by name."""
    files = []
    for name in sorted(filter(is_installed_name, os.listdir(directory))):  # noqa: PTH208 - names
        call.note_progress()
        files.append(installed_file(directory / name))
    return [file for file in files if file is not None]


def digest_file(path: Path, call: DiskCall) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hash_file(path, should_stop=call.note_progress)[1]


def sweep_temporaries(directory: Path, before: float, call: DiskCall) -> int:
    """Remove temporaries that were last written before this time; return how many."""
    removed_count = 0
    for entry in list(os.scandir(directory)):
        if name_of_temporary(entry.name) is None:
            continue
        call.note_progress()
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            # A hard link has the times of its file; only `st_ctime` tells when it was made.
            time = status.st_ctime if status.st_nlink > 1 else status.st_mtime
            if time < before:
                Path(entry.path).unlink()
                removed_count += 1
    return removed_count
