"""The files of the layer cache: their names, locks, use and removal.

`<directory>/<algorithm>/<hex>` is a whole blob and `<hex>.partial` the bytes of an unfinished
download. `<hex>.lock` is locked by the process that downloads or removes the blob.
`<hex>.<mark>.partial` and `<hex>.<mark>.lock` are those of a second download, from another place,
whose mark is in the names (`download_locks`). `<directory>/packs` has the packs of these blobs,
which the builder makes.

A process that uses a blob holds a shared `flock` on its file and has set its time. A blob is
removed only under its lock *and* with an exclusive `flock` on the file, so blobs in use stay; if a
process dies, the kernel releases both. Only a blob with wrong bytes is removed while it is in use,
since its users would fail anyway. All functions block; `lock` and `hold` only for a moment.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from shiftergw.cache.partial import disk_errors
from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.plumbing.disk_budget import RemovableFiles
from shiftergw.plumbing.disk_errors import SkipUnreadable
from shiftergw.plumbing.files import closed_on_error, sync_directory
from shiftergw.plumbing.hashing import hash_file
from shiftergw.plumbing.locks import remove_unshared, tried_lock, try_share

PRIVATE = "private"
"""The directory that has the blobs of private repositories, each in a directory of its own."""

PACKS = "packs"
"""The directory of packs beside the blobs of each place."""

_PIECE = 1 << 20

_FILE = re.compile(r"([0-9a-f]{64,128})(?:(?:\.[0-9a-f]{16})?\.(?:partial|lock))?")


@dataclass(frozen=True, slots=True)
class BlobPaths:
    """The paths of the files of one blob; `whole` is the path of the complete blob.

    `mark` is empty, or that of the place from which a second download comes.
    """

    whole: Path
    mark: str = ""

    @property
    def partial(self) -> Path:
        """Return the path of the bytes of an unfinished download."""
        return self._beside("partial")

    @property
    def lock(self) -> Path:
        """Return the path of the lock for downloads and removals."""
        return self._beside("lock")

    def _beside(self, suffix: str) -> Path:
        return self.whole.with_name(".".join(filter(None, (self.whole.name, self.mark, suffix))))

    def second_downloads(self) -> list[BlobPaths]:
        """Return the paths of the second downloads that have files. Blocks."""
        names = (path.name for path in self.whole.parent.glob(f"{self.whole.name}.*.*"))
        return [BlobPaths(self.whole, mark) for mark in {name.split(".")[1] for name in names}]

    @classmethod
    def of(cls, directory: Path, digest: Digest) -> BlobPaths:
        """Name the files of a blob below a directory."""
        return cls(directory / digest.algorithm / digest.hex)


def is_whole(path: Path, size: int) -> bool:
    """Return whether a path is a file of this size."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 if there is none."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def present_sizes(directory: Path, descriptors: Sequence[Descriptor]) -> list[int]:
    """Return how many bytes of each of these blobs are below a directory, whole or in part."""
    sizes = []
    for descriptor in descriptors:
        blob, size = BlobPaths.of(directory, descriptor.digest), descriptor.size
        sizes.append(size if is_whole(blob.whole, size) else min(size_of(blob.partial), size))
    return sizes


def needed_size(directory: Path, descriptors: Sequence[Descriptor], *, with_packs: bool) -> int:
    """Return how many bytes the download of these blobs below a directory adds at least.

    A blob counts once. With packs, half of all sizes is added: a pack is about as large as its
    layer, but may be smaller, by a better compression or because files occur twice.
    """
    blobs = list({descriptor.digest: descriptor for descriptor in descriptors}.values())
    size = sum(blob.size for blob in blobs)
    growth = size - sum(present_sizes(directory, blobs))
    if with_packs:
        growth += size // 2
    return growth


def hold(path: Path, size: int) -> int | None:
    """Mark a blob as used now, and in use for as long as the returned descriptor is open.

    Returns None if there is no blob of this size, or it is being removed.
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
    """Remove the bytes of an interrupted download, unless another process is resuming it."""
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
        # One look: another pull may remove the blob between two, and would then hide the damage.
        inode = _inode_of(blob.whole)
        if inodes - {inode}:
            return True
        if inode == 0:
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


PackUses = Callable[[Path], Mapping[str, float]]
"""Returns when a pack of each layer in a directory was last used, by the hex of its digest."""


@dataclass(frozen=True, slots=True)
class CachedBlobs:
    """The blobs of all places below a directory, as a `FileKind`.

    A blob is redundant if a pack of it was used since the blob was. A blob that was used after its
    packs is not: a system with other options needs it. `pack_uses` lists the uses of packs.
    """

    directory: Path
    pack_uses: PackUses = lambda _: {}

    def list_removable(self) -> list[RemovableFiles]:
        """Return all blobs, each with its partial files."""
        return [
            RemovableFiles(
                whole,
                files.size,
                files.use_time,
                partial(_remove, BlobPaths(whole), math.inf),
                is_redundant=files.use_time <= pack_uses.get(whole.name, -1.0),
            )
            for place in places_in(self.directory)
            for pack_uses in [self.pack_uses(place / PACKS)]
            for whole, files in _blobs_in(place)
        ]

    def sweep(self, before: float) -> int:
        """Remove the blobs that were last used before this time (seconds since 1970).

        Returns how many were removed. The time of the last use is that of the file's last write.
        """
        with disk_errors():
            return sum(
                _remove(BlobPaths(whole), before)
                for place in places_in(self.directory)
                for whole, files in _blobs_in(place)
                if files.use_time < before
            )


def place_of(root: Path, image: ResolvedImage) -> Path:
    """Return the directory that has the blobs of an image."""
    if not image.private:
        return root
    origin = f"{image.location}\n{image.repository}".encode()
    return root / PRIVATE / hashlib.sha256(origin).hexdigest()[:32]


def places_in(root: Path) -> list[Path]:
    """Return the directory of public blobs, and those of private repositories."""
    return [root, *root.glob(f"{PRIVATE}/*")]


def pack_directories(root: Path) -> list[Path]:
    """Return the directories of the packs of all places; they need not exist."""
    return [place / PACKS for place in places_in(root)]


@dataclass(slots=True)
class _BlobState:
    """The bytes of a blob and its partial files, and when one of them was last used."""

    size: int = 0
    use_time: float = 0.0


def _blobs_in(place: Path) -> Iterator[tuple[Path, _BlobState]]:
    """Yield the path of each whole blob of a place, which need not exist, and its state."""
    states: dict[Path, _BlobState] = {}
    for path in place.glob("sha*/*"):
        match = _FILE.fullmatch(path.name)
        with SkipUnreadable(path):
            status = path.lstat()
            if match is not None and stat.S_ISREG(status.st_mode):
                state = states.setdefault(path.with_name(match[1]), _BlobState())
                state.size += status.st_size
                state.use_time = max(state.use_time, status.st_mtime)
    yield from states.items()


def _remove(blob: BlobPaths, before: float) -> bool:
    """Remove a blob unless it is in use, or was since `before`; return whether files are gone."""
    with SkipUnreadable(blob.whole):
        return _remove_readable(blob, before)
    return False


def _remove_readable(blob: BlobPaths, before: float) -> bool:
    with tried_lock(blob.lock) as alone:
        seconds = blob.second_downloads() if alone else []
        paths = (blob.whole, blob.partial, *(second.partial for second in seconds))
        files = {path for path in paths if alone and path.exists()}
        # Checked again, since it may have been made or used before the lock was taken.
        if any(path.stat().st_mtime >= before for path in files):
            return False
        if not (files or seconds) or not remove_unshared(blob.whole):
            return False
        blob.partial.unlink(missing_ok=True)
        is_removed = bool(files & {blob.whole, blob.partial})
        for second in seconds:
            with tried_lock(second.lock) as is_idle:
                if is_idle and second.partial in files:
                    second.partial.unlink(missing_ok=True)
                    is_removed = True
        sync_directory(blob.lock.parent)
    return is_removed
