"""Encode the index of a layer as bytes, and decode it: columns of numbers, and runs of names.

An encoded index is a frame of zstd with its length, the cost of the layer, and one column for each
member of an entry. Integers are little-endian. Times are limited to those of squashfs, and only
regular files have sizes: nothing else is read from an index.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, repeat
from struct import Struct, error
from threading import Event
from typing import Final

import zstandard

from shiftergw.errors import ImageTooLarge
from shiftergw.model.images import Digest
from shiftergw.oci.budget import Cost, stoppable
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.sparse import SparseMap
from shiftergw.oci.tar import Entry, LayerIndex
from shiftergw.oci.tree import LATEST_MTIME, REGULAR

SIZE_LIMIT = 1 << 30
"""Bytes of the largest encoded index before compression: about ten million entries."""

_HEADER = Struct("<IIQQQQ")  # entries, different parents, and the four numbers of the cost
_XATTRS: Final = 0x80
_SPARSE: Final = 0x40
_KIND: Final = 0x3F
"""Bits of the column of kinds."""

_KINDS = bytes(flag & _KIND for flag in range(256))
_XATTRS_OF = bytes(flag & _XATTRS for flag in range(256))
"""The kind of an entry, and whether it has extended attributes, by its flags."""

_PIECE = 1 << 24
"""Bytes that are compressed between two checks of the stop flag."""

_NUMBER_BIAS = 1
"""What is added to the number of a content, so that `NO_CONTENT` is 0."""


def encode_index(index: LayerIndex, stop: Event) -> bytes:
    """Return the bytes of an index, without its `diff_id`.

    Raises `ImageTooLarge` if they are more than `SIZE_LIMIT` before compression, and
    `StopRequested` soon after `stop` is set.
    """
    parents: dict[bytes, int] = {}
    parts = [b""]
    for part in _parts_of(index.entries, parents, stop):
        if stop.is_set():
            raise StopRequested
        parts.append(_little_endian(part) if isinstance(part, array) else part)
    parts[0] = _HEADER.pack(len(index.entries), len(parents), *index.cost)
    if sum(map(len, parts)) > SIZE_LIMIT:
        raise ImageTooLarge("The names and numbers of a layer's entries take too much space.")
    return compress_columns(b"".join(parts), stop)


def compress_columns(data: bytes, stop: Event) -> bytes:
    """Return a frame of zstd with its length; raise `StopRequested` soon after `stop` is set."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=len(data))
    view = memoryview(data)
    frame: list[bytes] = []
    for start in range(0, len(data), _PIECE):
        if stop.is_set():
            raise StopRequested
        frame.append(compressor.compress(view[start : start + _PIECE]))
    return b"".join([*frame, compressor.flush()])


def decode_index(data: bytes | memoryview, diff_id: Digest, stop: Event) -> LayerIndex:
    """Return the index that `encode_index` encoded; raise `ValueError` for anything else.

    Raises `StopRequested` soon after `stop` is set.
    """
    try:
        reader = _Columns(decompress_columns(data))
        entries = list(stoppable(_entries_of(reader), stop))
        return LayerIndex(entries, diff_id, reader.cost)
    except (error, IndexError) as cause:
        raise ValueError("not the index of a layer") from cause


def _parts_of(
    entries: Sequence[Entry], parents: dict[bytes, int], stop: Event
) -> Iterator[array[int] | bytes]:
    """Yield the columns of all entries, and their texts; number their parents."""

    def walk() -> Iterator[Entry]:
        return stoppable(entries, stop)

    yield array("B", map(_flags_of, walk()))
    yield array("H", [entry.mode for entry in walk()])
    yield array("I", [min(max(entry.mtime, 0), LATEST_MTIME) for entry in walk()])
    yield array("Q", [entry.size if entry.kind == REGULAR else 0 for entry in walk()])
    yield array("Q", [entry.offset for entry in walk()])
    yield array("I", [entry.number + _NUMBER_BIAS for entry in walk()])
    yield array("I", [parents.setdefault(entry.parent, len(parents)) for entry in walk()])
    yield array("H", [len(entry.name) for entry in walk()])
    yield array("H", [len(entry.target) for entry in walk()])
    yield array("H", map(len, stoppable(parents, stop)))
    yield from _map_columns([entry.sparse for entry in walk() if entry.sparse is not None])
    yield b"".join([entry.name for entry in walk()])
    yield b"".join([entry.target for entry in walk()])
    yield b"".join(parents)


def _flags_of(entry: Entry) -> int:
    return (
        entry.kind | (_XATTRS if entry.xattrs else 0) | (_SPARSE if entry.sparse is not None else 0)
    )


def _map_columns(maps: Sequence[SparseMap]) -> Iterator[array[int]]:
    """Return the columns of the sparse files: how many numbers each map has, and the numbers."""
    yield array("I", [2 * len(pieces) for pieces in maps])
    yield array("Q", [number for pieces in maps for piece in pieces for number in piece])


def _little_endian(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def decompress_columns(data: bytes | memoryview) -> bytes:
    """Return what `compress_columns` compressed; raise `ValueError` for anything else."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= SIZE_LIMIT:
            raise ValueError(f"an index of {size} bytes, or columns")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as cause:
        raise ValueError("a damaged index, or damaged columns") from cause


class _Columns:
    """The bytes of an index, read forward."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.entries, self.parents, *cost = _HEADER.unpack_from(data)
        self.cost = Cost(*cost)
        self._position = _HEADER.size

    def column(self, typecode: str, count: int) -> array[int]:
        """Return the next `count` integers."""
        column = array(typecode)
        column.frombytes(self._take(count * column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column

    def texts(self, lengths: Iterable[int]) -> Iterator[bytes]:
        """Yield the next texts, which have these lengths."""
        bounds = list(accumulate(lengths, initial=0))
        text = self._take(bounds[-1])
        return map(text.__getitem__, map(slice, bounds, islice(bounds, 1, None)))

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise ValueError("an index ends within a column")
        data = self._data[self._position : end]
        self._position = end
        return data

    def check_end(self) -> None:
        """Raise `ValueError` if bytes follow."""
        if self._position != len(self._data):
            raise ValueError("an index has bytes after its end")


def _entries_of(reader: _Columns) -> Iterator[Entry]:
    count = reader.entries
    flags = reader.column("B", count)
    modes, mtimes = reader.column("H", count), reader.column("I", count)
    sizes, offsets = reader.column("Q", count), reader.column("Q", count)
    numbers, parent_numbers = reader.column("I", count), reader.column("I", count)
    name_lengths, target_lengths = reader.column("H", count), reader.column("H", count)
    parent_lengths = reader.column("H", reader.parents)
    map_lengths = reader.column("I", sum(flag & _SPARSE != 0 for flag in flags))
    map_numbers = reader.column("Q", sum(map_lengths))
    names, targets = reader.texts(name_lengths), reader.texts(target_lengths)
    parents = list(reader.texts(parent_lengths))
    reader.check_end()
    maps = _maps_of(map_lengths, map_numbers)
    # Calls of `map` run without a step of the interpreter between two entries.
    return map(
        Entry,
        flags.tobytes().translate(_KINDS),
        map(parents.__getitem__, parent_numbers),
        names,
        modes,
        mtimes,
        sizes,
        targets,
        offsets,
        (next(maps) if flag & _SPARSE else None for flag in flags) if map_lengths else repeat(None),
        map(bool, flags.tobytes().translate(_XATTRS_OF)),
        map((-_NUMBER_BIAS).__add__, numbers),
    )


def _maps_of(lengths: Iterable[int], numbers: array[int]) -> Iterator[SparseMap]:
    position = 0
    for length in lengths:
        pieces = numbers[position : position + length]
        position += length
        yield tuple(zip(pieces[::2], pieces[1::2], strict=True))
