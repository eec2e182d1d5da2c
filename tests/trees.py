"""Compare file trees, such as an unpacked image and a mounted squashfs."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Entry = tuple[str, int, int, bytes]
"""Type, mode, mtime (files only) and content, which is a digest or a link's target."""


def tree(root: Path) -> dict[bytes, Entry]:
    """Return every path below `root`, with type, mode, time and content."""
    entries: dict[bytes, Entry] = {}
    top = os.fsencode(root)
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)  # noqa: PTH118 - bytes
            status = os.lstat(path)
            mode = stat.S_IMODE(status.st_mode)
            relative = os.path.relpath(path, top)
            if stat.S_ISLNK(status.st_mode):
                entries[relative] = ("link", 0, 0, os.readlink(path))  # noqa: PTH115 - bytes
            elif stat.S_ISDIR(status.st_mode):
                entries[relative] = ("directory", mode, 0, b"")
            else:
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest()
                entries[relative] = ("file", mode, int(status.st_mtime), content)
    return entries


def links(root: Path) -> set[frozenset[bytes]]:
    """Return the groups of paths that share an inode."""
    groups: dict[int, set[bytes]] = {}
    top = os.fsencode(root)
    for directory, _, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)  # noqa: PTH118 - bytes
            status = os.lstat(path)
            if status.st_nlink > 1:
                groups.setdefault(status.st_ino, set()).add(os.path.relpath(path, top))
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def as_delivered(entries: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Return a tree as the gateway delivers it: readable for all, no setuid, nothing in `dev`."""
    result: dict[bytes, Entry] = {}
    for path, (kind, mode, mtime, content) in entries.items():
        if path.startswith(b"dev/"):
            continue
        if kind == "directory":
            delivered_mode = mode & 0o1777 | 0o755
        elif kind == "file":
            delivered_mode = mode & 0o1777 | 0o644 | (0o111 if mode & 0o111 else 0)
        else:
            delivered_mode = mode
        result[path] = (kind, delivered_mode, mtime, content)
    return result


def unsquash(image: Path, directory: Path) -> Path:
    """Unpack a squashfs file into `directory` and return that."""
    subprocess.run(["unsquashfs", "-q", "-n", "-d", directory, image], check=True)
    return directory


@contextmanager
def mount(image: Path, directory: Path) -> Iterator[Path]:
    """Mount a squashfs file for a while; only root can, and it takes a loop device."""
    directory.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", image, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)
