"""The packs of a machine: their names, their sidecars, and the checks before a pack is used.

A directory holds, for each (layer blob, key):

* `<digest>-<key>.pack`, a squashfs with the contents of the layer's files (see `pack_feed`), which
  gets this name only after the digest of the blob and the `diff_id` were proven;
* `<digest>-<key>.index`, its sidecar, written after it: the index of the layer, the digests of the
  contents and where their data is, and the size and digests of the pack. Without it there is no
  pack;
* `<digest>-<key>.lock`, the lock of the process that makes the pack of a layer that has arrived;
* `<digest>-<key>-early.lock`, the lock of the first process that needs the pack: it reads the
  layer while it arrives;
* `<digest>-<key>.<random>.part`, an incomplete pack of a process with one of the locks. Each
  attempt has a name of its own: the `mksquashfs` of a process that was killed may still write its
  file, and removes it by its name;
* `<digest>-<key>.scrub`, an empty file with the time when the scrub last hashed the pack.

A process that uses a pack holds a shared `flock` on it (`hold_pack`).

All functions block: they run in threads.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from twisted.logger import Logger

from shiftergw.build import pack_sidecar
from shiftergw.build.pack_measures import measure
from shiftergw.build.pack_sidecar import Measures, Sidecar
from shiftergw.errors import BlobCorrupt, GatewayError
from shiftergw.model.images import Digest
from shiftergw.oci.tar import LayerIndex
from shiftergw.plumbing.disk_errors import SkipUnreadable
from shiftergw.plumbing.file_groups import FileGroups
from shiftergw.plumbing.files import closed_on_error
from shiftergw.plumbing.locks import tried_lock, try_share
from shiftergw.squashfs.columns import FileColumns

_log = Logger()

READ_ERRORS = (OSError, ValueError, KeyError, TypeError, GatewayError)
"""Errors of a pack or a sidecar that is read; all but `OSError` are of damaged bytes."""

_DAMAGES = frozenset({errno.EIO, errno.EUCLEAN, errno.EFBIG, errno.EINVAL, errno.EISDIR})
"""Errors of a file that the disk has damaged, or that is not the file it should be."""

_ALGORITHMS = {64: "sha256", 96: "sha384", 128: "sha512"}
"""The algorithm of a digest by the number of its digits."""

_BASE = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})-[0-9a-f]{12}(?:-early)?")


@dataclass(frozen=True, slots=True)
class Pack:
    """The contents of the files of one layer, compressed, and the index of the layer.

    `digests` has the SHA-256 of each content, or `NO_DIGEST`, by its number, which the entries of
    `index` have; `columns` says where its data is in the file. `size` is the bytes of the file at
    `path`. `data_sha256` is the digest of its data area: equal data of two packs can replace each
    other.
    """

    path: Path
    index: LayerIndex
    digests: Sequence[bytes]
    columns: FileColumns
    size: int
    data_sha256: str

    def open(self) -> int:
        """Open the file for reading; the caller closes the descriptor. Blocks."""
        return open_pack(self.path)

    @property
    def diff_id(self) -> Digest:
        """Return the digest that the uncompressed layer was proven to have."""
        assert self.index.diff_id is not None
        return self.index.diff_id

    def check_claim(self, diff_id: Digest | None) -> None:
        """Raise `BlobCorrupt` if the layer has another `diff_id`; None claims nothing."""
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
        self.scrub_mark = directory / f"{base}.scrub"
        self.early_lock = directory / f"{base}-early.lock"
        self.renew_part()

    def renew_part(self) -> None:
        """Name the part file of the next attempt, which is not that of any attempt before."""
        self.part = self.pack.with_suffix(f".{secrets.token_hex(4)}.part")

    @classmethod
    def of_pack(cls, path: Path) -> PackFiles | None:
        """Return the names of the files of the pack at `path`; None if that names no pack."""
        if _BASE.fullmatch(path.stem) is None:
            return None
        digits, key = path.stem.split("-", 1)
        return cls(path.parent, Digest(_ALGORITHMS[len(digits)], digits), key)

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


def open_pack(path: Path) -> int:
    """Open the file of a pack for reading."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def find_pack(files: PackFiles, stop: Event) -> Pack | None:
    """Return the pack that is in place, or None if there is none or it is damaged.

    The file is hashed only if its size or its time is not what the sidecar says. If only the time
    differs (the file was restored from a backup, or moved), it is set back, so that the file is
    hashed once. Raises `StopRequested` soon after `stop` is set.
    """
    try:
        sidecar = pack_sidecar.read(files.sidecar, stop)
        measures = sidecar.measures
        if _is_unchanged(files, measures) or _has_digests(files, sidecar, stop):
            return Pack(
                files.pack,
                sidecar.index,
                sidecar.digests,
                sidecar.columns,
                measures.size,
                measures.data_sha256,
            )
        problem = "its bytes have changed"
    except FileNotFoundError:
        return None
    except READ_ERRORS as error:
        problem = str(error)
    _warn(files, problem)
    return None


def remove_damaged_pack(files: PackFiles, stop: Event) -> bool:
    """Remove a pack unless its bytes have the digests of its sidecar; return whether it is gone.

    The whole file is hashed, because a failing disk changes neither size nor time. Builds that use
    the pack keep the file that they have opened. Raises `StopRequested` soon after `stop` is set.
    """
    problem = "its bytes have changed"
    try:
        if _has_digests(files, pack_sidecar.read(files.sidecar, stop), stop):
            return False
    except READ_ERRORS as error:
        if not is_damage(error) and not isinstance(error, FileNotFoundError):
            raise
        problem = str(error)
    if files.exist():
        _warn(files, problem)
    files.sidecar.unlink(missing_ok=True)
    files.pack.unlink(missing_ok=True)
    return True


def is_damage(error: Exception) -> bool:
    """Return whether one of `READ_ERRORS` says that the disk has damaged the file."""
    return not isinstance(error, OSError) or error.errno in _DAMAGES


def _warn(files: PackFiles, problem: str) -> None:
    _log.warn(
        "the pack {path} is damaged ({problem}): it is removed, and made again when it is needed",
        path=str(files.pack),
        problem=problem,
    )


def _is_unchanged(files: PackFiles, measures: Measures) -> bool:
    """Return whether a pack has the size and the time that its sidecar says."""
    state = files.pack.stat()
    return (state.st_size, state.st_mtime_ns) == (measures.size, measures.mtime_ns)


def _has_digests(files: PackFiles, sidecar: Sidecar, stop: Event) -> bool:
    """Return whether a pack has the digests that its sidecar says; if so, set its time back."""
    expected = sidecar.measures
    with files.pack.open("rb") as file:
        present = measure(file.fileno(), len(sidecar.digests), stop)
        is_sound = replace(present, mtime_ns=expected.mtime_ns) == expected
        if is_sound and present.mtime_ns != expected.mtime_ns:
            _set_time_back(file.fileno(), present.mtime_ns, expected.mtime_ns)
    return is_sound


def _set_time_back(descriptor: int, present_ns: int, mtime_ns: int) -> None:
    """Give a file its time, where that is possible, unless it was written since `present_ns`."""
    with suppress(OSError):
        state = os.fstat(descriptor)
        if state.st_mtime_ns == present_ns:
            os.utime(descriptor, ns=(state.st_atime_ns, mtime_ns))


def is_pack_expected(files: PackFiles, diff_ids: Iterable[Digest | None]) -> bool:
    """Return whether there is a pack that can stand for its layer under these `diff_id`s.

    Checks only the size and the time of the pack and the beginning of its sidecar; other damage is
    found when the pack is used. A digest of another algorithm than that of the proven `diff_id`
    could be neither confirmed nor refused without the layer.
    """
    try:
        head = pack_sidecar.read_unchecked_head(files.sidecar)
        return _is_unchanged(files, head.measures) and all(
            diff_id is None or diff_id.algorithm == head.diff_id.algorithm for diff_id in diff_ids
        )
    except READ_ERRORS:
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
        with (
            SkipUnreadable(path),
            tried_lock(early_lock) as is_early,
            tried_lock(lock) as is_alone,
        ):
            if is_early and is_alone and _BASE.fullmatch(base):
                path.unlink(missing_ok=True)
                number += 1
    return number


def pack_groups(directory: Path) -> FileGroups:
    """Return the groups of files of the packs in a directory."""
    locks = ".lock", "-early.lock"
    return FileGroups(directory, _BASE, ".pack", (".index", ".part"), (".scrub",), locks)
