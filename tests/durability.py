"""Record the order in which data reaches a disk, to know if a file survives a power cut.

A file that appears by rename survives if its content was synced before the rename, and its
directory after it. A test cannot cut the power, so it examines the calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SyncedInode = tuple[int, int]
"""Inode and size of a file when it was synced."""


class Disk:
    """The calls that decide whether a file survives, in their order."""

    def __init__(self) -> None:
        """Start without a call."""
        self._calls: list[tuple[str, Any]] = []

    def sync(self, descriptor: int) -> None:
        """Record that a file or a directory was synced."""
        status = os.fstat(descriptor)
        self._calls.append(("sync", (status.st_ino, status.st_size)))

    def appear(self, path: Path) -> None:
        """Record that a file has appeared under a name."""
        self._calls.append(("appear", os.path.abspath(path)))  # noqa: PTH100 - resolves nothing

    def assert_synced(self, path: Path) -> None:
        """Fail unless all content of the file at `path` has been synced."""
        status = path.stat()
        assert ("sync", (status.st_ino, status.st_size)) in self._calls, f"{path} was not synced"

    def vanish(self, path: Path) -> None:
        """Record that a name of a file was removed."""
        self._calls.append(("vanish", os.path.abspath(path)))  # noqa: PTH100 - resolves nothing

    def assert_gone(self, path: Path) -> None:
        """Fail unless the file at `path` would stay removed after a power cut."""
        assert not path.exists()
        assert ("vanish", str(path)) in self._calls, f"{path} has not been removed"
        when = self._calls.index(("vanish", str(path)))
        after = [what[0] for call, what in self._calls[when:] if call == "sync"]
        assert path.parent.stat().st_ino in after, (
            f"the directory of {path} was not synced after its removal"
        )

    def assert_durable(self, path: Path) -> None:
        """Fail unless the file at `path` would exist with all its content after a power cut."""
        assert ("appear", str(path)) in self._calls, f"{path} has not appeared by a new name"
        when = len(self._calls) - 1 - self._calls[::-1].index(("appear", str(path)))
        status, directory = path.stat(), path.parent.stat()
        before = [what for call, what in self._calls[:when] if call == "sync"]
        after = [what[0] for call, what in self._calls[when:] if call == "sync"]
        assert (status.st_ino, status.st_size) in before, (
            f"{path} was not synced before it appeared"
        )
        assert directory.st_ino in after, f"the directory of {path} was not synced after that"


@contextmanager
def watched_disk() -> Iterator[Disk]:
    """Record each sync, rename, link and removal while the context lives."""
    disk = Disk()
    fsync, rename, replace, link = os.fsync, os.rename, os.replace, os.link
    unlink = os.unlink

    def watched_fsync(file: Any) -> None:
        fsync(file)
        disk.sync(file if isinstance(file, int) else file.fileno())

    def watched_rename(old: Any, new: Any) -> None:
        rename(old, new)
        disk.appear(Path(new))

    def watched_replace(
        old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        replace(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        directory = Path() if dst_dir_fd is None else Path(f"/proc/self/fd/{dst_dir_fd}").readlink()
        disk.appear(directory / new)

    def watched_link(old: Any, new: Any) -> None:
        link(old, new)
        disk.appear(Path(new))

    def watched_unlink(path: Any, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        if dir_fd is None:
            disk.vanish(Path(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", watched_fsync)
        patch.setattr(os, "rename", watched_rename)
        patch.setattr(os, "replace", watched_replace)
        patch.setattr(os, "link", watched_link)
        patch.setattr(os, "unlink", watched_unlink)
        yield disk
