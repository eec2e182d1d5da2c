"""The files of the layer cache: where they lie, when they may be used, when they may go.

`<directory>/<algorithm>/<hex>` is a whole blob, `<hex>.partial` what a download got so far, and
`<hex>.lock` is locked by whoever downloads or removes it, in this process or in another.

Whoever uses a blob holds a shared `flock` on its file, which is touched then. A blob is removed
only under its lock *and* with an exclusive `flock` on the file: what is in use stays, and when a
process dies the kernel gives back both. Only one whose bytes prove damaged goes from under those
who use it: they would fail by it. All functions block; `lock` and `hold` only for a moment.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Event

from shiftergw.cache.partial import disk_errors
from shiftergw.image import Digest
from shiftergw.plumbing.files import (
    closed_on_error,
    free_space,
    nearest_existing,
    sync_directory,
    total_space,
)
from shiftergw.plumbing.hashing import hash_file
from shiftergw.plumbing.locks import remove_unshared, tried_lock, try_lock, try_share

PRIVATE = "private"
"""The directory that has the blobs of private repositories, each in a directory of its own."""

RESERVE = 50
"""Blobs are removed until 1/50 of the disk is free beside the blob that grows."""

_PIECE = 1 << 20

_FILE = re.compile(r"([0-9a-f]{64,128})(\.partial|\.lock)?")


@dataclass(frozen=True, slots=True)
class BlobPaths:
    """The names of what belongs to one blob; `whole` is where it lies once it is whole."""

    whole: Path

    @property
    def partial(self) -> Path:
        """Return where it lies until then."""
        return self.whole.with_name(f"{self.whole.name}.partial")

    @property
    def lock(self) -> Path:
        """Return what is locked by whoever downloads or removes it."""
        return self.whole.with_name(f"{self.whole.name}.lock")

    @classmethod
    def of(cls, directory: Path, digest: Digest) -> BlobPaths:
        """Name the files of a blob below a directory."""
        return cls(directory / digest.algorithm / digest.hex)


def lock(blob: BlobPaths) -> int | None:
    """Lock a blob and return the descriptor, or None if another holds the lock."""
    with disk_errors():
        return try_lock(blob.lock)


def is_whole(path: Path, size: int) -> bool:
    """Say whether a blob of this size lies there."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 if there is none."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def hold(path: Path, size: int) -> int | None:
    """Mark a blob as used now, and in use for as long as the returned descriptor is open.

    None if no blob of this size is there, or it is being removed.
    """
    if not is_whole(path, size):
        return None
    with disk_errors():
        descriptor = try_share(path)
        if descriptor is not None:
            with closed_on_error(descriptor):
                os.utime(descriptor)
        return descriptor


def give_up(blob: BlobPaths) -> None:
    """Remove what a broken download left, unless somebody is at it now."""
    if not blob.partial.exists():
        return
    with disk_errors(), tried_lock(blob.lock) as alone:
        if alone:
            blob.partial.unlink(missing_ok=True)


def discard(
    blob: BlobPaths, digest: Digest, stop: Event, inodes: AbstractSet[int] = frozenset()
) -> bool | None:
    """Remove a blob, even one in use, if its bytes have another digest.

    `inodes` are those of the blob's files that the caller uses. Returns whether the caller's
    bytes are no longer in the cache: another process may have removed them before. Returns None
    if another process works on the blob now. Removes nothing once `stop` is set.
    """
    with disk_errors():
        if inodes - {_inode_of(blob.whole)}:
            return True
        if not blob.whole.exists():
            return False
        with tried_lock(blob.lock) as alone:
            if not alone:
                return None
            inode = _inode_of(blob.whole)
            if inodes - {inode}:
                return True
            is_damaged = inode != 0 and _is_damaged(blob.whole, digest, stop)
            if is_damaged:
                blob.whole.unlink(missing_ok=True)
            return is_damaged


def _inode_of(path: Path) -> int:
    """Return the inode number of a file; 0 if there is none."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0


def _is_damaged(path: Path, digest: Digest, stop: Event) -> bool:
    _, content_hash = hash_file(path, digest.algorithm, should_stop=stop.is_set)
    return content_hash != digest.hex and not stop.is_set()


def sweep(root: Path, before: float) -> int:
    """Remove the blobs that were last used before this time; return how many.

    Time is compared with the files' own (seconds since 1970).
    """
    with disk_errors():
        return sum(
            _removed(BlobPaths(whole), before)
            for whole, used in _last_used(root).items()
            if used < before
        )


def make_room(root: Path, needed: int, but: AbstractSet[Path], *, is_full: bool = False) -> bool:
    """Remove blobs, those unused for longest first, until `needed` bytes are free.

    These (`but`) stay, and what is in use; where even all others would not do, none goes. With
    `is_full` nothing counts as free but what is removed now: a write has failed, perhaps by a quota
    that `statvfs` does not show. Returns whether any blob was removed.
    """
    with disk_errors():
        disk, freed, used = nearest_existing(root), 0, _last_used(root)

        def free() -> int:
            return freed if is_full else free_space(disk)

        others = sorted(used.keys() - but, key=used.__getitem__)
        sizes = {whole: _stored(whole) for whole in others}
        if free() + sum(sizes.values()) < needed:
            return False
        for whole in others:
            if free() >= needed:
                break
            if _removed(BlobPaths(whole), math.inf):
                freed += sizes[whole]
        return freed > 0


def make_room_for_growth(root: Path, size: int, but: AbstractSet[Path], *, is_full: bool) -> bool:
    """Remove unused blobs before `size` bytes are added to one; see `make_room`.

    Beside them a fiftieth of the disk stays free if it can: others write there, too.
    """
    with disk_errors():
        disk = nearest_existing(root)
        reserve = total_space(disk) // RESERVE
        if not is_full and free_space(disk) >= size + reserve:
            return False
        return make_room(root, size + reserve, but, is_full=is_full) or make_room(
            root, size, but, is_full=is_full
        )


def removable(root: Path, but: AbstractSet[Path]) -> int:
    """Return the bytes of all blobs except `but`: those that can be removed unless in use."""
    with disk_errors():
        return sum(_stored(whole) for whole in _last_used(root).keys() - but)


def _stored(whole: Path) -> int:
    return size_of(whole) + size_of(BlobPaths(whole).partial)


def _last_used(root: Path) -> dict[Path, float]:
    """Return when each blob, or the part of it that is there, was last used."""
    used: dict[Path, float] = {}
    for path in chain(root.glob("sha*/*"), root.glob(f"{PRIVATE}/*/sha*/*")):
        match = _FILE.fullmatch(path.name)
        with suppress(FileNotFoundError):
            found = path.lstat()
            if match is not None and stat.S_ISREG(found.st_mode):
                whole = path.with_name(match[1])
                used[whole] = max(found.st_mtime, used.get(whole, 0.0))
    return used


def _removed(blob: BlobPaths, before: float) -> bool:
    """Remove a blob unless somebody is at it, or was since `before`; say whether it was done."""
    with tried_lock(blob.lock) as alone:
        there = [path for path in (blob.whole, blob.partial) if alone and path.exists()]
        # Looked at again: it may have been made or used between the first look and the lock.
        if not there or any(path.stat().st_mtime >= before for path in there):
            return False
        if not remove_unshared(blob.whole):
            return False
        blob.partial.unlink(missing_ok=True)
        sync_directory(blob.lock.parent)
    return True
