"""Index the tar stream of a layer: the header of every entry, and the offset of its data.

This reader handles names as bytes, verifies every checksum, needs one pass, and takes a few
microseconds for an entry (Python's `tarfile` takes a hundred). Formats: V7, ustar, PAX, GNU
(POSIX.1-2017 `pax`; the manual of GNU tar). Any damage raises `LayerInvalid`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event

from shiftergw.errors import BlobCorrupt, LayerInvalid
from shiftergw.model.images import Digest, Opening
from shiftergw.oci.budget import Cost, LayerBudget
from shiftergw.oci.compression import LargeWindow, decompress
from shiftergw.oci.extended import LIMIT, ExtendedHeader
from shiftergw.oci.header import BLOCK, FIELDS, has_valid_checksum, number
from shiftergw.oci.paths import PATH_LIMIT, clean
from shiftergw.oci.sparse import SparseMap, old_gnu_map, pax_map
from shiftergw.oci.tar_stream import TarStream
from shiftergw.oci.tree import NO_CONTENT, REGULAR, SPECIAL, SYMLINK

DIRECTORY = 16
HARDLINK = 17
"""Kinds of an entry in addition to those of a leaf."""

_KINDS = {
    b"0": REGULAR,
    b"\0": REGULAR,
    b"7": REGULAR,
    b"S": REGULAR,
    b"1": HARDLINK,
    b"2": SYMLINK,
    b"3": SPECIAL,
    b"4": SPECIAL,
    b"5": DIRECTORY,
    b"D": DIRECTORY,
    b"6": SPECIAL,
}
_WITH_DATA = frozenset({b"0", b"\0", b"7", b"S", b"D"})
_ZEROS = bytes(BLOCK)
_MAP_PIECE_SIZE = 150
"""Bytes of memory for each piece in the map of a sparse file; they count towards `MaxNamesSize`."""


@dataclass(slots=True, eq=False)
class Entry:
    """One entry of a layer.

    `parent` and `name` are its normalized path, both empty for the root. `mode` has the permission
    bits of the layer; `mtime` may be negative. `target` is the target of a symlink or the path of
    a hard link, not normalized. `offset` is where the data starts in the uncompressed stream;
    `size` is the size of the file in bytes. `sparse` lists the pieces of a sparse file that have
    data. `number` is the number of the file's content in the pack of the layer, if there is one.
    """

    kind: int
    parent: bytes
    name: bytes
    mode: int
    mtime: int
    size: int
    target: bytes
    offset: int
    sparse: SparseMap | None
    xattrs: bool
    number: int = NO_CONTENT


@dataclass(slots=True)
class LayerIndex:
    """The entries of one layer in the order of its stream.

    `diff_id` is the digest that the uncompressed stream has; None if it was not computed. `cost` is
    what reading the layer counts in the budget of its image.
    """

    entries: list[Entry] = field(default_factory=list)
    diff_id: Digest | None = None
    cost: Cost = field(default_factory=Cost)


ReadFile = Callable[[Entry, TarStream], int]
"""Gets a regular file that is not empty, and may read its data (see `read_entries`).

Returns the bytes of zeros that the reader has added to the data: they count as unpacked bytes.
"""


def index_layer(
    opening: Opening,
    diff_id: Digest | None,
    budget: LayerBudget,
    stop: Event,
    report: Callable[[int], None] | None = None,
    read_file: ReadFile | None = None,
    *,
    large_window: LargeWindow = LargeWindow.WAIT,
) -> LayerIndex:
    """Read a layer once, from its first byte to its last, and return its index.

    Blocks: run it in a thread. From that thread it calls `report` with the compressed bytes read so
    far and `read_file` with each regular file that is not empty, and updates `budget`. Without
    `diff_id` the stream is hashed, with SHA-256, only if there is a `read_file`. Raises
    `LayerInvalid`, `ImageTooLarge`, `BlobCorrupt` if the uncompressed stream does not have the
    digest `diff_id`, `StopRequested` soon after `stop` is set, `WindowRefused` (see `decompress`),
    and the errors of `read_file`.
    """
    index = LayerIndex()
    entries, names_size, zeros = index.entries, 0, 0

    def read(position: int) -> None:
        index.cost = index.cost._replace(stored_size=position)
        if report is not None:
            report(position)

    def count(pieces: Iterable[bytes]) -> Iterator[bytes]:
        size = 0
        for piece in pieces:
            yield piece
            size += len(piece)
            index.cost = Cost(size + zeros, len(entries), names_size, index.cost.stored_size)
            budget.update(index.cost, stop)

    budget.reset()
    algorithm = diff_id.algorithm if diff_id else "sha256"
    is_packed = read_file is not None
    is_hashed = diff_id is not None or is_packed
    pieces = decompress(opening, stop, read, is_last_reading=is_packed, large_window=large_window)
    with closing(pieces):
        stream = TarStream(count(pieces), hashlib.new(algorithm) if is_hashed else None)
        for entry in read_entries(stream):
            entries.append(entry)
            if read_file is not None and entry.kind == REGULAR and entry.size:
                zeros += read_file(entry, stream)
            names_size += len(entry.parent) + len(entry.name) + len(entry.target)
            if entry.sparse is not None:
                names_size += _MAP_PIECE_SIZE * len(entry.sparse)
        stream.drain()
    if is_hashed:
        index.diff_id = Digest(algorithm, stream.digest())
    if diff_id is not None and index.diff_id != diff_id:
        raise BlobCorrupt("A layer unpacks to other bytes than the image's configuration says.")
    return index


def read_entries(stream: TarStream) -> Iterator[Entry]:
    """Yield the entries up to two zero blocks, or to the end of the stream.

    The caller may read data of an entry from the stream before it takes the next entry. There are
    `size` bytes of a regular file, or those of the pieces in its map.
    """
    parent = b""
    extension: ExtendedHeader | None = None
    while (block := stream.block()) is not None and block != _ZEROS:
        fields = FIELDS.unpack(block)
        if not has_valid_checksum(block, fields[4]):
            raise LayerInvalid(
                "A layer has a damaged tar header."
                if stream.position > BLOCK
                else "A layer is neither a tar archive nor one packed with gzip or zstd."
            )
        kind = fields[5]
        if kind in b"xXgLK":
            body = _body(stream, number(fields[2]))
            if kind != b"g":  # a global header belongs to no single entry
                extension = extension or ExtendedHeader()
                extension.read(kind, body)
            continue
        entry, path, data_size = _entry(stream, block, fields, extension)
        extension = None
        if len(path) > PATH_LIMIT or len(entry.target) > PATH_LIMIT:
            raise LayerInvalid(f"A layer has a name or target of more than {PATH_LIMIT} bytes.")
        head, _, entry.name = clean(path).rpartition(b"/")
        # Neighbors mostly have the same parent: they share one object.
        parent = entry.parent = parent if head == parent else head
        end = stream.position + data_size
        yield entry
        stream.skip(end - stream.position)
        stream.skip_padding(data_size)
    if extension is not None:
        raise LayerInvalid("A layer's archive ends within an entry.")
    if block is not None and stream.block() not in {None, _ZEROS}:
        raise LayerInvalid("A layer's archive goes on after a lone zero block.")


def _entry(
    stream: TarStream, block: bytes, fields: tuple[bytes, ...], extension: ExtendedHeader | None
) -> tuple[Entry, bytes, int]:
    """Return an entry without its name, its path, and the bytes of data that follow."""
    name, mode, size, mtime, _, kind, target, magic, prefix = fields
    path = name.partition(b"\0")[0]
    if prefix[0] and magic.startswith(b"ustar\0"):
        path = prefix.partition(b"\0")[0] + b"/" + path
    entry = Entry(
        _kind(kind, path),
        b"",
        b"",
        number(mode) & 0o7777,
        number(mtime),
        number(size),
        target.partition(b"\0")[0],
        stream.position,
        None,
        False,
    )
    if extension is not None:
        path = _extend(entry, path, extension)
    data_size = entry.size if kind in _WITH_DATA else 0
    if kind == b"S":
        entry.sparse, entry.size = old_gnu_map(block, stream.take, data_size)
        entry.offset = stream.position
    elif extension is not None and extension.sparse and entry.kind == REGULAR:
        entry.sparse, entry.size, used = pax_map(extension.sparse, stream.take, data_size)
        entry.offset += used
        data_size -= used
    if data_size < 0 or entry.size < 0:
        raise LayerInvalid("A layer has an entry of a negative size.")
    return entry, path, data_size


def _body(stream: TarStream, size: int) -> bytes:
    """Read the body of an extended header."""
    if not 0 <= size <= LIMIT:
        raise LayerInvalid(f"A layer has an extended tar header of more than {LIMIT} bytes.")
    return stream.take((size + BLOCK - 1) // BLOCK * BLOCK)[:size]


def _kind(kind: bytes, path: bytes) -> int:
    """Return the kind of an entry; before POSIX, directories had a trailing slash and no type."""
    if kind == b"\0" and path.endswith(b"/"):
        return DIRECTORY
    try:
        return _KINDS[kind]
    except KeyError:
        raise LayerInvalid("A layer has an entry of a type that layers do not have.") from None


def _extend(entry: Entry, path: bytes, extension: ExtendedHeader) -> bytes:
    """Apply extended headers to an entry, and return its path."""
    if extension.target is not None:
        entry.target = extension.target
    if extension.size is not None:
        entry.size = extension.size
    if extension.mtime is not None:
        entry.mtime = extension.mtime
    entry.xattrs = extension.xattrs
    if extension.path is not None:
        path = extension.path
    return dict(extension.sparse).get(b"name", path)
