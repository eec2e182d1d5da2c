"""The packs of a machine: their names, their sidecars, and the checks before a pack is used.

A directory holds, for each (layer blob, key):

* `<digest>-<key>.pack`, a squashfs with the contents of the layer's files (see `pack_feed`), which
  gets this name only after the digest of the blob and the `diff_id` were proven;
* `<digest>-<key>.index`, its sidecar, written after it: the index of the layer, the digests of the
  contents, and the size and digests of the pack. Without it there is no pack;
* `<digest>-<key>.lock`, the lock of the process that makes the pack of a layer that has arrived;
* `<digest>-<key>.part`, an incomplete pack of the process with the lock, so one name suffices;
* `<digest>-<key>-early.lock` and `.part`, the same of a process whose layer is still arriving.

A process that uses a pack holds a shared `flock` on it (`hold_pack`).

The sidecar is `_MAGIC`, the SHA-256 of all that follows, the length of a JSON document and the
document, the digests of the contents, and the index. All functions block: they run in threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from struct import Struct
from threading import Event
from typing import Any

from twisted.logger import Logger

from shiftergw.build.pack_feed import directory_count
from shiftergw.errors import (
    BlobCorrupt,
    ConversionFailed,
    GatewayError,
    SquashfsCorrupt,
    SquashfsUnsupported,
)
from shiftergw.model.images import Digest
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.stored_index import SIZE_LIMIT, decode_index, encode_index
from shiftergw.oci.tar import LayerIndex
from shiftergw.plumbing.file_groups import FileGroups
from shiftergw.plumbing.files import (
    closed_on_error,
    read_whole,
    removed_on_error,
    replace_durably,
    write_private,
)
from shiftergw.plumbing.hashing import PIECE_BYTES
from shiftergw.plumbing.locks import try_share
from shiftergw.squashfs.blocks import Source, read_options
from shiftergw.squashfs.superblock import SIZE as SUPERBLOCK_SIZE
from shiftergw.squashfs.superblock import Superblock

_log = Logger()

_MAGIC = b"sgwpack\1"
"""The first bytes of a sidecar; the last of them is the version of its format."""

_DIGEST_SIZE = 32
_LENGTH = Struct("<I")
_BASE = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})-[0-9a-f]{12}(?:-early)?")
_SIDECAR_LIMIT = 2 * SIZE_LIMIT
"""Bytes of the largest sidecar that is read."""


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
        self.part = directory / f"{base}.part"
        self.early_lock = directory / f"{base}-early.lock"
        self.early_part = directory / f"{base}-early.part"

    def exist(self) -> bool:
        """Return whether the pack and its sidecar are in place. Blocks."""
        return self.pack.is_file() and self.sidecar.is_file()


@dataclass(frozen=True, slots=True)
class _Measures:
    """Size, time of the last change in nanoseconds, and digests of the file of a pack.

    `other_sha256` is the digest of the bytes that are not data: before and behind them.
    """

    size: int
    mtime_ns: int
    data_sha256: str
    other_sha256: str


def install_pack(
    files: PackFiles, index: LayerIndex, digests: Sequence[bytes], stop: Event
) -> Pack:
    """Sync and measure a complete pack, give it its name, and write its sidecar.

    Raises `ConversionFailed` if `mksquashfs` has written another number of files than it got, and
    `StopRequested` soon after `stop` is set.
    """
    try:
        with files.part.open("rb") as file:
            os.fsync(file.fileno())
            measures = _measure(file.fileno(), len(digests), stop)
    except (SquashfsCorrupt, SquashfsUnsupported) as error:
        raise ConversionFailed(
            "mksquashfs has written a damaged pack of a layer.", detail=error.detail
        ) from error
    pack = Pack(files.pack, index, digests, measures.size, measures.data_sha256)
    content = _encode(pack, measures, stop)
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
        content, _ = read_whole(files.sidecar, _SIDECAR_LIMIT)
        pack, measures = _decode(content, files.pack, stop)
        if _is_whole(pack, measures, stop):
            return pack
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
        content, _ = read_whole(files.sidecar, _SIDECAR_LIMIT)
        if _has_digests(*_decode(content, files.pack, stop), stop):
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


def _is_whole(pack: Pack, measures: _Measures, stop: Event) -> bool:
    """Return whether the file has the size and the time of its sidecar, or else its digests."""
    state = pack.path.stat()
    if (state.st_size, state.st_mtime_ns) == (measures.size, measures.mtime_ns):
        return True
    return _has_digests(pack, measures, stop)


def _has_digests(pack: Pack, measures: _Measures, stop: Event) -> bool:
    """Return whether the file has the digests of its sidecar."""
    with pack.path.open("rb") as file:
        present = _measure(file.fileno(), len(pack.digests), stop)
    return replace(present, mtime_ns=measures.mtime_ns) == measures


def hold_pack(files: PackFiles) -> int | None:
    """Mark a pack as used now, and in use for as long as the returned descriptor is open.

    Returns None if the pack is not there, or is about to be removed.
    """
    descriptor = try_share(files.pack)
    if descriptor is not None:
        with closed_on_error(descriptor), suppress(FileNotFoundError):
            os.utime(files.sidecar)  # the time of the pack itself is compared with the sidecar
    return descriptor


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


def _encode(pack: Pack, measures: _Measures, stop: Event) -> bytes:
    document = json.dumps(
        {
            "diff_id": str(pack.diff_id),
            "contents": len(pack.digests),
            "size": measures.size,
            "mtime_ns": measures.mtime_ns,
            "data_sha256": measures.data_sha256,
            "other_sha256": measures.other_sha256,
        }
    ).encode()
    index = encode_index(pack.index, stop)
    body = b"".join([_LENGTH.pack(len(document)), document, *pack.digests, index])
    return b"".join([_MAGIC, sha256(body).digest(), body])


def _decode(content: bytes, path: Path, stop: Event) -> tuple[Pack, _Measures]:
    """Return what a sidecar says; raise `ValueError`, `KeyError` or `TypeError` for damage."""
    start = len(_MAGIC) + _DIGEST_SIZE
    body = memoryview(content)[start:]
    if not content.startswith(_MAGIC) or sha256(body).digest() != content[len(_MAGIC) : start]:
        raise ValueError("its sidecar is damaged")
    (length,) = _LENGTH.unpack_from(body)
    position = _LENGTH.size + length
    document: dict[str, Any] = json.loads(bytes(body[_LENGTH.size : position]))
    end = position + _DIGEST_SIZE * document["contents"]
    digests = [bytes(body[at : at + _DIGEST_SIZE]) for at in range(position, end, _DIGEST_SIZE)]
    index = decode_index(body[end:], Digest.parse(document["diff_id"]), stop)
    if any(entry.number >= len(digests) for entry in index.entries):
        raise ValueError("its sidecar has the number of no content")
    names = ("size", "mtime_ns", "data_sha256", "other_sha256")
    measures = _Measures(*(document[name] for name in names))
    return Pack(path, index, digests, measures.size, measures.data_sha256), measures


def _measure(descriptor: int, contents: int, stop: Event) -> _Measures:
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
    return _Measures(state.st_size, state.st_mtime_ns, data.hexdigest(), rest.hexdigest())


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
