"""The packs of a machine: their names, their sidecars, and the checks before a pack is used.

A directory holds, for each (layer blob, key):

* `<digest>-<key>.pack`, a squashfs with the contents of the layer's files (see `pack_feed`), which
  gets this name only after the digest of the blob and the `diff_id` were proven;
* `<digest>-<key>.index`, its sidecar, written after it: the index of the layer, the digests of the
  contents, and the size and digests of the pack. Without it there is no pack;
* `<digest>-<key>.lock`, the lock of the process that makes the pack of a layer that has arrived;
* `<digest>-<key>-early.lock`, the lock of the first process that needs the pack: it reads the
  layer while it arrives;
* `<digest>-<key>.<random>.part`, an incomplete pack of a process with one of the locks. Each
  attempt has a name of its own: the `mksquashfs` of a process that was killed may still write its
  file, and removes it by its name.

A process that uses a pack holds a shared `flock` on it (`hold_pack`).

All functions block: they run in threads.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event

from twisted.logger import Logger

from shiftergw.build import pack_sidecar
from shiftergw.build.pack_feed import directory_count
from shiftergw.build.pack_sidecar import Measures, Sidecar
from shiftergw.errors import (
    BlobCorrupt,
    ConversionFailed,
    GatewayError,
    SquashfsCorrupt,
    SquashfsUnsupported,
)
from shiftergw.model.images import Digest
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.tar import LayerIndex
from shiftergw.plumbing.file_groups import FileGroups
from shiftergw.plumbing.files import (
    closed_on_error,
    removed_on_error,
    replace_durably,
    write_private,
)
from shiftergw.plumbing.hashing import PIECE_BYTES
from shiftergw.plumbing.locks import tried_lock, try_share
from shiftergw.squashfs.blocks import Source, read_options
from shiftergw.squashfs.superblock import SIZE as SUPERBLOCK_SIZE
from shiftergw.squashfs.superblock import Superblock

_log = Logger()

_BASE = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})-[0-9a-f]{12}(?:-early)?")


@dataclass(frozen=True, slots=True)
class Pack:
    """The contents of the files of one layer, compressed, and the index of the layer.

    `digests` has the SHA-256 of each content by its number, which the entries of `index` have.
    `size` is the bytes of the file at `path`. `data_sha256` is the digest of its data area: equal
    data of two packs can replace each other.
    """

    path: Path
    index: LayerIndex
    digests: Sequence[bytes]
    size: int
    data_sha256: str

    @property
    def diff_id(self) -> Digest:
        """Return the digest that the uncompressed layer was proven to have."""
        assert self.index.diff_id is not None
        return self.index.diff_id

    def check_claim(self, diff_id: Digest | None) -> None:
        """Raise `BlobCorrupt` unless the layer may have this `diff_id`, as one without a pack."""
        if diff_id is not None and diff_id != self.diff_id:
            raise BlobCorrupt("A layer unpacks to other bytes than the image's configuration says.")


class PackFiles:
    """The names of the files of one (layer blob, key)."""

    def __init__(self, directory: Path, digest: Digest, key: str) -> None:
        """Name the files; raise `ValueError` if the digest or the key is malformed."""
        base = f"{digest.hex}-{key}"
        if _BASE.fullmatch(base) is None:
            raise ValueError(f"{base!r} names no pack")
        self.pack = directory / f"{base}.pack"
        self.sidecar = directory / f"{base}.index"
        self.lock = directory / f"{base}.lock"
        self.early_lock = directory / f"{base}-early.lock"
        self.part = directory / f"{base}.{secrets.token_hex(4)}.part"

    def exist(self) -> bool:
        """Return whether the pack and its sidecar are in place. Blocks."""
        return self.pack.is_file() and self.sidecar.is_file()

    def remove_other_parts(self) -> None:
        """Remove what killed processes have left of this pack. Blocks.

        The caller holds both locks, so that no other process makes the pack.
        """
        for path in self.pack.parent.glob(f"{self.pack.stem}*.part"):
            if path != self.part:
                path.unlink(missing_ok=True)


def install_pack(
    files: PackFiles, index: LayerIndex, digests: Sequence[bytes], stop: Event
) -> Pack:
    """Sync and measure a complete pack, give it its name, and write its sidecar.

    Raises `ConversionFailed` if `mksquashfs` has written another number of files than it got, and
    `StopRequested` soon after `stop` is set.
    """
    try:
        with files.part.open("rb") as file, ThreadPoolExecutor(1, "sync") as disk:
            syncing = disk.submit(os.fsync, file.fileno())
            measures = _measure(file.fileno(), len(digests), stop)
            syncing.result()
    except (SquashfsCorrupt, SquashfsUnsupported) as error:
        raise ConversionFailed(
            "mksquashfs has written a damaged pack of a layer.", detail=error.detail
        ) from error
    pack = Pack(files.pack, index, digests, measures.size, measures.data_sha256)
    content = pack_sidecar.encode(Sidecar(index, digests, measures), stop)
    replace_durably(files.part, files.pack)
    with removed_on_error(files.pack):
        write_private(files.sidecar, content)
    return pack


def find_pack(files: PackFiles, stop: Event) -> Pack | None:
    """Return the pack that is in place, or None if there is none or it is damaged.

    The file is hashed only if its size or its time is not what the sidecar says. Raises
    `StopRequested` soon after `stop` is set.
    """
    try:
        sidecar = pack_sidecar.read(files.sidecar, stop)
        if _is_unchanged(files, sidecar.measures) or _has_digests(files, sidecar, stop):
            measures = sidecar.measures
            return Pack(
                files.pack, sidecar.index, sidecar.digests, measures.size, measures.data_sha256
            )
        problem = "its bytes have changed"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, GatewayError) as error:
        problem = str(error)
    _warn(files, problem)
    return None


def remove_damaged_pack(files: PackFiles, stop: Event) -> bool:
    """Remove a pack unless its bytes have the digests of its sidecar; return whether it is gone.

    The whole file is hashed, because a failing disk changes neither size nor time. Builds that use
    the pack keep the file that they have opened. Raises `StopRequested` soon after `stop` is set.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, GatewayError):
        if _has_digests(files, pack_sidecar.read(files.sidecar, stop), stop):
            return False
        _warn(files, "its bytes have changed")
    files.sidecar.unlink(missing_ok=True)
    files.pack.unlink(missing_ok=True)
    return True


def _warn(files: PackFiles, problem: str) -> None:
    _log.warn(
        "the pack {path} is damaged ({problem}), and is made again",
        path=str(files.pack),
        problem=problem,
    )


def _is_unchanged(files: PackFiles, measures: Measures) -> bool:
    """Return whether a pack has the size and the time that its sidecar says."""
    state = files.pack.stat()
    return (state.st_size, state.st_mtime_ns) == (measures.size, measures.mtime_ns)


def _has_digests(files: PackFiles, sidecar: Sidecar, stop: Event) -> bool:
    """Return whether a pack has the digests that its sidecar says."""
    with files.pack.open("rb") as file:
        present = _measure(file.fileno(), len(sidecar.digests), stop)
    return replace(present, mtime_ns=sidecar.measures.mtime_ns) == sidecar.measures


def promises_pack(files: PackFiles, diff_ids: Iterable[Digest | None]) -> bool:
    """Return whether there is a pack that can stand for its layer under these `diff_id`s.

    A glance: the pack is unchanged since it was made, and its sidecar begins as it should. What
    else is damaged is found when the pack is used. A digest of another algorithm than that of the
    proven `diff_id` could be neither confirmed nor refused without the layer.
    """
    try:
        head = pack_sidecar.glance(files.sidecar)
        return _is_unchanged(files, head.measures) and all(
            diff_id is None or diff_id.algorithm == head.diff_id.algorithm for diff_id in diff_ids
        )
    except (OSError, ValueError, KeyError, TypeError, GatewayError):
        return False


def hold_pack(files: PackFiles) -> int | None:
    """Mark a pack as used now, and in use for as long as the returned descriptor is open.

    Returns None if the pack is not there, or is about to be removed.
    """
    descriptor = try_share(files.pack)
    if descriptor is not None:
        with closed_on_error(descriptor), suppress(FileNotFoundError):
            os.utime(files.sidecar)  # the time of the pack itself is compared with the sidecar
    return descriptor


def remove_abandoned_parts(directory: Path) -> int:
    """Remove the incomplete packs that no process makes any longer; return their number. Blocks."""
    number = 0
    for path in directory.glob("*.part"):
        base = path.name.partition(".")[0].removesuffix("-early")
        lock, early_lock = directory / f"{base}.lock", directory / f"{base}-early.lock"
        with tried_lock(early_lock) as is_early, tried_lock(lock) as is_alone:
            if is_early and is_alone and _BASE.fullmatch(base):
                path.unlink(missing_ok=True)
                number += 1
    return number


def pack_groups(directory: Path) -> FileGroups:
    """Return the groups of files of the packs in a directory."""
    return FileGroups(directory, _BASE, ".pack", (".index", ".part"))


def last_uses(directory: Path) -> dict[str, float]:
    """Return when a pack of each layer was last used, by the hexadecimal digits of its digest."""
    uses: dict[str, float] = {}
    for path in directory.glob("*.index"):
        with suppress(FileNotFoundError):
            layer = path.name.partition("-")[0]
            uses[layer] = max(path.stat().st_mtime, uses.get(layer, 0.0))
    return uses


def _measure(descriptor: int, contents: int, stop: Event) -> Measures:
    """Measure an open pack of this many contents; raise `SquashfsCorrupt`, `StopRequested`."""
    state = os.fstat(descriptor)
    source = Source(partial(os.pread, descriptor), state.st_size)
    head = Superblock.unpack(source.read(0, min(SUPERBLOCK_SIZE, state.st_size)))
    head.check(state.st_size)
    inodes = 1 + directory_count(contents) + contents
    if head.inodes != inodes:
        raise SquashfsCorrupt(
            "A pack has too few or too many files.", detail=f"{head.inodes} inodes, not {inodes}"
        )
    start = SUPERBLOCK_SIZE
    if head.has_compressor_options:
        _, start = read_options(source, start)
    data, rest = sha256(), sha256()
    _hash_area(descriptor, rest, 0, start, stop)
    _hash_area(descriptor, data, start, head.inode_table, stop)
    _hash_area(descriptor, rest, head.inode_table, state.st_size, stop)
    return Measures(state.st_size, state.st_mtime_ns, data.hexdigest(), rest.hexdigest())


def _hash_area(descriptor: int, hasher: hashlib._Hash, start: int, end: int, stop: Event) -> None:
    """Add the bytes from `start` to `end` to a hash."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    while start < end:
        if stop.is_set():
            raise StopRequested
        size = os.preadv(descriptor, [buffer[: end - start]], start)
        if not size:
            raise SquashfsCorrupt("A pack is shorter than before.")
        hasher.update(buffer[:size])
        start += size
